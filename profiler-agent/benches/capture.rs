//! Whole captures by the release binary, as a user runs it.
//!
//! The target is workloads/mixed.rs with full debug information: half of its time in inlined Rust code, half in libc.
//!
//! - *wall*: what `-d 1s -o x.svg -p PID` takes beyond the second, and that the names are in the picture;
//! - *CPU*: what the agent and its kernel programs use while two CPUs are busy, between the 4th and the 16th second, so that neither
//!   the start nor the end counts;
//! - *memory*: the peak of a capture of 30 s, with what the kernel holds for it.
//!
//! Run by `cargo xtask bench capture`, as root.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use profiler_agent::procfs;
use support::{
    Bars, Running, figure,
    footprint::{self, Footprint, children, fdinfo, number},
    median,
};

const FREQUENCY: u64 = 99;

fn main() -> ExitCode {
    let agent = std::env::var_os("PROFILER_BENCH_AGENT")
        .map(PathBuf::from)
        .expect("run me by `cargo xtask bench capture`, which builds the agent");
    let folder = tempfile::tempdir().expect("temporary folder");
    let program = compile(folder.path());
    // Words on the command line choose: wall, cpu, memory.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let mut bars = Bars::default();
    if wanted("wall") {
        wall(&agent, &program, folder.path(), &mut bars);
    }
    if wanted("cpu") {
        cpu(&agent, &program, folder.path(), &mut bars);
    }
    if wanted("memory") {
        memory(&agent, &program, folder.path(), &mut bars);
    }
    bars.code()
}

/// The target, with everything that rustc can tell about it.
fn compile(folder: &Path) -> PathBuf {
    let program = folder.join("mixed");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/mixed.rs");
    let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args([
            "-g",
            "-O",
            "-Cforce-frame-pointers=yes",
            "--edition",
            "2024",
            source,
            "-o",
        ])
        .arg(&program)
        .status();
    assert!(status.expect("rustc").success(), "rustc failed");
    program
}

/// The agent, at work on `pid`.
struct Agent {
    child: Running,
    /// Where its words go.
    words: PathBuf,
}

impl Agent {
    fn start(agent: &Path, pid: u32, seconds: u64, out: &Path) -> Self {
        let words = out.with_extension("words");
        let file = std::fs::File::create(&words).expect("file");
        let mut command = Command::new(agent);
        command
            .args([OsStr::new("--force"), "-p".as_ref(), pid.to_string().as_ref()])
            .args([
                OsStr::new("-d"),
                format!("{seconds}s").as_ref(),
                "-o".as_ref(),
                out.as_ref(),
            ])
            .stdout(Stdio::null())
            .stderr(file);
        Self {
            child: Running::start_now(&mut command),
            words,
        }
    }

    fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits for its end; CPU time in seconds and peak memory in bytes, as it says itself: of both its processes.
    fn end(mut self) -> (f64, u64) {
        while !self.child.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let words = procfs::read(&self.words, 1 << 20).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        assert!(
            words.contains("lost: 0\n"),
            "samples were lost, or it failed: {words}"
        );
        let cost = words
            .lines()
            .find_map(|line| line.strip_prefix("the agent itself: "));
        let number = |before: &str| -> f64 {
            let text = cost.and_then(|cost| cost.split_once(before)).expect(before).0;
            let number = text.rsplit(' ').next().expect(before);
            number.parse().expect(before)
        };
        (number(" s of CPU time"), (number(" MB of memory") * 1e6) as u64)
    }
}

/// The threads of a process.
fn tasks(pid: u32) -> Vec<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten();
    tasks.map(|task| task.expect("task").path()).collect()
}

/// The processes that a process has started: its symbolizer.
fn wall(agent: &Path, program: &Path, folder: &Path, bars: &mut Bars) {
    let target = Running::start(Command::new(program).arg("1"));
    let picture = folder.join("wall.svg");
    let (mut over, mut used) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let start = Instant::now();
        let running = Agent::start(agent, target.pid(), 1, &picture);
        let (cpu, _) = running.end();
        over.push(start.elapsed().as_secs_f64() - 1.0);
        used.push(cpu);
        let svg = String::from_utf8(procfs::read(&picture, 16 << 20).expect("picture")).expect("text");
        // Rust by DWARF, the two that are inlined everywhere among them, and libc by whatever it has.
        for name in ["mixed::in_rust", "mixed::sum_of_mixed", "mixed::mix (", "lrand48"] {
            assert!(svg.contains(name), "the picture does not name {name}");
        }
    }
    println!(
        "-d 1s -o x.svg: {} s beyond the second, {} s of CPU time (medians of 5: {over:.3?}); inlined frames and libc are named",
        figure(median(&over)),
        figure(median(&used))
    );
    bars.at_most(
        "`-d 1s -o x.svg` beyond the second, wall time",
        median(&over),
        0.3,
        "s",
    );
}

/// What is used up to some time.
struct Used {
    at: Instant,
    /// CPU time of the agent's threads and of its symbolizer by their names, nanoseconds.
    agent: std::collections::BTreeMap<String, u64>,
    /// Of its kernel programs: nanoseconds, runs.
    kernel: u64,
    runs: u64,
}

impl Used {
    fn by(pid: u32) -> Self {
        let mut agent = std::collections::BTreeMap::new();
        let symbolizers = children(pid);
        for task in [pid].into_iter().chain(symbolizers).flat_map(tasks) {
            let text = |name: &str| {
                String::from_utf8(procfs::read(task.join(name), 256).expect("a thread's file")).expect("text")
            };
            let time = text("schedstat");
            let time: u64 = time.split(' ').next().expect("time").parse().expect("time");
            *agent.entry(text("comm").trim().to_owned()).or_default() += time;
        }
        // One program may be open more than once.
        let mut programs = std::collections::BTreeMap::new();
        for facts in fdinfo(pid) {
            // A link names its program too, without its cost.
            if let (Some(id), Some(runs)) = (number(&facts, "prog_id:"), number(&facts, "run_cnt:")) {
                programs.insert(id, (number(&facts, "run_time_ns:").expect("bpf_stats"), runs));
            }
        }
        assert!(programs.len() >= 3, "the programs of the agent: {programs:?}");
        Self {
            at: Instant::now(),
            agent,
            kernel: programs.values().map(|(time, _)| time).sum(),
            runs: programs.values().map(|(_, runs)| runs).sum(),
        }
    }
}

fn cpu(agent: &Path, program: &Path, folder: &Path, bars: &mut Bars) {
    let _accounting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("bpf_stats; are you root?");
    // Before others, so that it really has both CPUs, but not so far that the agent gets none.
    let target = Running::start(Command::new("nice").args(["-n", "-4"]).arg(program).arg("2"));
    let ticks = procfs::Stat::of(target.pid()).expect("target").cpu;
    let running = Agent::start(agent, target.pid(), 18, &folder.join("cpu.folded"));
    std::thread::sleep(Duration::from_secs(4));
    let before = Used::by(running.pid());
    std::thread::sleep(Duration::from_secs(12));
    let after = Used::by(running.pid());
    let busy = (procfs::Stat::of(target.pid()).expect("target").cpu - ticks) as f64 / 100.0 / 16.2;
    let (total, _) = running.end();
    let seconds = (after.at - before.at).as_secs_f64();
    let share = |time: u64| time as f64 / 1e9 / seconds * 100.0;
    let kernel = share(after.kernel - before.kernel);
    let threads: Vec<(&str, f64)> = after
        .agent
        .iter()
        .map(|(name, time)| (name.as_str(), share(time - before.agent.get(name).unwrap_or(&0))))
        .collect();
    let user: f64 = threads.iter().map(|(_, share)| share).sum();
    let runs = after.runs - before.runs;
    assert!(runs > 12 * FREQUENCY, "the programs ran {runs} times");
    println!(
        "{FREQUENCY} Hz, target on {busy:.2} CPUs, {seconds:.1} s: agent {} % of one CPU ({}), kernel programs {} % ({runs} runs of {} ns, cold); \
         {total:.3} s of CPU time for all 18 s with start and end",
        figure(user),
        threads
            .iter()
            .map(|(name, share)| format!("{name} {}", figure(*share)))
            .collect::<Vec<_>>()
            .join(", "),
        figure(kernel),
        (after.kernel - before.kernel) / runs.max(1),
    );
    bars.at_most(
        "whole agent at 99 Hz on two busy CPUs, of one CPU",
        user + kernel,
        0.1,
        "%",
    );
}

fn memory(agent: &Path, program: &Path, folder: &Path, bars: &mut Bars) {
    let target = Running::start(Command::new(program).arg("1"));
    let running = Agent::start(agent, target.pid(), 30, &folder.join("memory.svg"));
    std::thread::sleep(Duration::from_secs(25));
    let held = Footprint::of(running.pid());
    println!(
        "30 s of one process; after 25 s: {} MB resident, of its symbolizer {} MB",
        megabytes(held.agent),
        megabytes(held.children),
    );
    let held = footprint::kernel(running.pid());
    for (what, bytes) in &held {
        println!("  {what}: {bytes} bytes");
    }
    let kernel: u64 = held.iter().map(|(_, bytes)| bytes).sum();
    let (_, peak) = running.end();
    println!(
        "  peak: {} MB resident in both processes, {} MB in the kernel",
        megabytes(peak),
        megabytes(kernel)
    );
    bars.at_most(
        "peak memory of a 30 s capture of one process, both processes and the kernel",
        (peak + kernel) as f64 / 1e6,
        70.0,
        "MB",
    );
}

fn megabytes(bytes: u64) -> String {
    figure(bytes as f64 / 1e6)
}
