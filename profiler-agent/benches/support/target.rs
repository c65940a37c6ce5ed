//! Programs of which samples are taken: they get nearly all of CPU 0, while others still get some. No real-time priority, which would
//! starve them. They end with the benchmark, and after ten minutes in any case.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use super::{Running, gcc};

/// The start of a C program and its end. Between them are functions of which each calls the one before, so that each frame is another
/// function's.
const HEAD: &str = r"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
volatile unsigned long sink;
static volatile char memory[MEMORY];
__attribute__((noipa)) int deep0(int n) {
    volatile char locals[LOCALS];
    locals[n % LOCALS] = 1;
    for (unsigned long at = 0;; at += 64) { sink++; memory[at % MEMORY]++; }
    return locals[n % LOCALS];
}
#define DEEP(name, callee) __attribute__((noipa)) int name(int n) { \
    volatile char locals[LOCALS]; \
    locals[n % LOCALS] = 1; \
    return callee(n - 1) + locals[n % LOCALS]; }
";
const TAIL: &str = r#"
int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(600);
    cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set); sched_setaffinity(0, sizeof set, &set);
    setpriority(PRIO_PROCESS, 0, -20);
    /* Between sessions it is their groups' that counts. */
    setsid();
    int group = open("/proc/self/autogroup", O_WRONLY);
    if (group >= 0) (void)!write(group, "-20", 3);
    return OUTERMOST(7);
}
"#;

/// How the program's stack can be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frames {
    /// By frame pointers, and by them alone: no tables.
    Pointers,
    /// By tables alone: no frame pointers.
    Tables,
}

/// What the innermost function does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Counts: the caches stay as they are.
    Counting,
    /// Writes 4 MiB over and over, which leaves nothing of others in the first two caches, as programs do that have much to do.
    Writing,
}

/// Starts the program, `depth` functions deep, each of whose frames is `frame` bytes by the compiler's own account, return address included. It
/// stands still.
pub(crate) fn deep(folder: &Path, frames: Frames, frame: u32, depth: u32, work: Work) -> Running {
    let folder = folder.join(format!("{frames:?}-{frame}-{depth}-{work:?}"));
    std::fs::create_dir_all(&folder).expect("folder");
    let (source, program) = (folder.join("deep.c"), folder.join("deep"));
    // `main` is one of them.
    let outermost = depth - 2;
    let mut text = String::from(HEAD);
    for number in 1..=outermost {
        writeln!(text, "DEEP(deep{number}, deep{})", number - 1).expect("text");
    }
    text.push_str(TAIL);
    std::fs::write(&source, text).expect("source");
    // Beside the locals lie the return address and a saved register; the frame pointer, and what keeps the stack aligned.
    let beside = match frames {
        Frames::Pointers => 32,
        Frames::Tables => 16,
    };
    let locals = format!("-DLOCALS={}", frame - beside);
    let outermost = format!("-DOUTERMOST=deep{outermost}");
    let memory = format!(
        "-DMEMORY={}",
        match work {
            Work::Counting => 64,
            Work::Writing => 4 << 20,
        }
    );
    let mut flags = vec![
        "-O1",
        "-fno-optimize-sibling-calls",
        "-fstack-usage",
        "-static",
        &locals,
        &outermost,
        &memory,
    ];
    flags.extend(match frames {
        Frames::Pointers => [
            "-fno-omit-frame-pointer",
            "-fno-asynchronous-unwind-tables",
            "-fno-unwind-tables",
        ]
        .as_slice(),
        Frames::Tables => &["-fomit-frame-pointer"],
    });
    gcc(&source, &program, &flags);
    let usage = std::fs::read_dir(&folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "su"))
        .expect("gcc -fstack-usage writes a file");
    let usage =
        String::from_utf8(profiler_agent::procfs::read(usage, 1 << 16).expect("stack usage")).expect("text");
    let line = usage
        .lines()
        .find(|line| line.contains(":deep1\t"))
        .expect("`deep` is in the file");
    let bytes = line
        .split('\t')
        .nth(1)
        .and_then(|bytes| bytes.parse::<u32>().ok());
    assert_eq!(bytes, Some(frame), "{line}");
    let running = Running::start(&mut Command::new(&program));
    running.signal(Signal::STOP);
    running
}

/// A compiler at work for minutes: rustc, whose two libraries have three million rows. It stands still, in the midst of optimising.
pub(crate) fn compiler(folder: &Path) -> Running {
    let source = folder.join("large.rs");
    let mut text = String::from("#![crate_type = \"lib\"]\nuse std::collections::BTreeMap;\n");
    for number in 0..FUNCTIONS {
        writeln!(
            text,
            "pub fn f{number}(input: &[u64], words: &mut Vec<String>) -> BTreeMap<u64, String> {{\n\
             let mut map = BTreeMap::new();\n\
             for (at, value) in input.iter().enumerate().filter(|(at, _)| at % {} != 0) {{\n\
             let text = format!(\"{{at}} {{value}} {number}\");\n\
             if let Some(old) = map.insert(value.rotate_left({number} % 64) ^ at as u64, text.clone()) {{ words.push(old); }}\n\
             words.sort_unstable();\n\
             words.retain(|word| word != &text);\n\
             }}\n\
             map\n}}",
            number % 7 + 2
        )
        .expect("text");
    }
    std::fs::write(&source, text).expect("source");
    let mut command = Command::new("setsid");
    command
        .args(["sh", "-c", "echo -20 > /proc/self/autogroup; exec \"$@\"", "sh"])
        .args([
            "setpriv",
            "--pdeathsig",
            "KILL",
            "taskset",
            "--cpu-list",
            "0",
            "nice",
            "-n",
            "-20",
            "rustc",
        ])
        .args(["-O", "-Ccodegen-units=1", "--emit=obj", "--out-dir"])
        .arg(folder)
        .arg(&source)
        .stderr(Stdio::null());
    let mut running = Running::start(&mut command);
    // Its threads have names; the one that optimises runs to the end.
    while !threads(running.pid())
        .iter()
        .any(|name| name.starts_with(b"opt "))
    {
        assert!(!running.has_ended(), "rustc ended; is it installed?");
        std::thread::sleep(Duration::from_millis(50));
    }
    running.signal(Signal::STOP);
    running
}

/// Names of a process's threads.
fn threads(pid: u32) -> Vec<Vec<u8>> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| profiler_agent::procfs::read(task.ok()?.path().join("comm"), 64).ok())
        .collect()
}

/// Functions of the program that the compiler compiles.
const FUNCTIONS: u32 = 3000;
