//! Generated code: its names, where the program writes them down, and what a program can do to whoever reads that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use support::{
    agent::{Agent, Run},
    tools,
    workload::{Workload, alone, compiled, text},
};

/// Samples of each function that was generated, by the leaf or any frame above; and how many samples there were.
fn generated(folded: &str) -> (BTreeMap<String, u64>, u64) {
    let mut counts = BTreeMap::new();
    let mut all = 0;
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let count: u64 = count.parse().unwrap();
        all += count;
        let mut names: Vec<&str> = stack
            .split(';')
            .filter_map(|frame| frame.strip_suffix("_[j]"))
            .collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            *counts.entry(name.to_owned()).or_default() += count;
        }
    }
    (counts, all)
}

/// Runs a command under the agent, in the agent's folder.
fn sample(agent: &Agent, command: &[&str]) -> (Run, BTreeMap<String, u64>, u64) {
    let options = ["-F", "499", "-o", "out.folded", "--force", "--"];
    let run = agent.run(options.iter().chain(command));
    run.expect(0, &["samples of"]);
    let (counts, all) = generated(&text(&agent.path("out.folded")));
    (run, counts, all)
}

/// Half of the samples are of the one, half of the other.
fn assert_halves(how: &str, counts: &BTreeMap<String, u64>, all: u64, tolerance: f64) {
    let share = |name: &str| counts.get(name).copied().unwrap_or_default() as f64 / all as f64;
    for name in ["first", "second"] {
        assert!(
            (share(name) - 0.5).abs() < tolerance,
            "{how}, {name}: {counts:?} of {all}"
        );
    }
}

#[test]
fn an_address_has_the_name_of_its_time() {
    let Some(_alone) = alone("an_address_has_the_name_of_its_time") else {
        return;
    };
    let program = compiled("jit");
    let agent = Agent::new();
    // A dump says when. Of a map it is only known when the file was changed last.
    for (how, tolerance) in [("dump", 0.08), ("map", 0.12)] {
        let (_, counts, all) = sample(&agent, &[program.to_str().unwrap(), how, "700"]);
        assert!(all > 400, "{how}: {all}");
        assert_halves(how, &counts, all, tolerance);
        assert!(!counts.contains_key("[anon]"), "{how}: {counts:?}");
    }
}

#[test]
fn the_map_of_another_pid_namespace_and_root_is_found() {
    let test = "the_map_of_another_pid_namespace_and_root_is_found";
    let Some(_alone) = alone(test) else { return };
    let program = compiled("jit");
    let agent = Agent::new();
    // There it is number 1 or 2, and its /tmp is its own; the program may lie below the other one.
    let script = format!(
        "exec 3<{} && mount -t tmpfs none /tmp && exec /proc/self/fd/3 map 500",
        program.display()
    );
    let command = ["unshare", "-m", "-p", "-f", "--", "sh", "-c", &script];
    let (_, counts, all) = sample(&agent, &command);
    assert!(all > 250, "{all}");
    assert_halves("map", &counts, all, 0.2);
}

#[test]
fn what_is_no_map_of_the_process_is_not_read() {
    let Some(_alone) = alone("what_is_no_map_of_the_process_is_not_read") else {
        return;
    };
    let program = compiled("jit");
    let agent = Agent::new();
    for how in ["none", "fifo", "device", "link", "foreign", "sparse"] {
        let (run, counts, all) = sample(&agent, &[program.to_str().unwrap(), how, "200"]);
        let nameless = counts.get("[anon]").copied().unwrap_or_default();
        // Two hundred are due, and fewer where the machine stands still. The share is the point.
        assert!(all > 40 && nameless * 10 > all * 8, "{how}: {counts:?} of {all}");
        assert_eq!(counts.len(), 1, "{how}: {counts:?}");
        assert_eq!(
            run.stderr.contains("without an end"),
            how == "sparse",
            "{}",
            run.stderr
        );
    }
}

/// By CPU time: on a busy machine it runs for longer, and the agent has as much more time to see its map.
const SCRIPT: &str = "
function fibonacci(n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
while (process.cpuUsage().user < 1500000) fibonacci(22);
try { require('fs').unlinkSync(`/tmp/perf-${process.pid}.map`); } catch {}
";

#[test]
fn node_has_names() {
    let Some(_alone) = alone("node_has_names") else {
        return;
    };
    if tools::find("", Some("node")).is_none() {
        return tools::skip("node_has_names", "node (Debian package nodejs)");
    }
    let agent = Agent::new();
    std::fs::write(agent.path("fibonacci.js"), SCRIPT).unwrap();
    for flag in ["--perf-basic-prof", "--perf-prof"] {
        let (_, counts, all) = sample(&agent, &["node", flag, "fibonacci.js"]);
        // Optimized, as it ends up.
        let named = |prefix: &str| -> u64 {
            let of_it = counts.iter().filter(|(name, _)| name.starts_with(prefix));
            of_it.map(|(_, count)| count).sum()
        };
        assert!(
            named("JS:*fibonacci ") * 10 > all * 5,
            "{flag}: {counts:?} of {all}"
        );
        assert!(named("[anon]") * 50 < all, "{flag}: {counts:?} of {all}");
    }
}

/// Trampolines, one for each function, of Python 3.12 and later.
#[test]
#[ignore = "Debian 12 has Python 3.11; run it with PROFILER_TEST_PYTHON=/path/to/python3.12"]
fn python_has_names() {
    let Some(_alone) = alone("python_has_names") else {
        return;
    };
    let python = std::env::var("PROFILER_TEST_PYTHON").unwrap();
    let agent = Agent::new();
    let script =
        "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\nfibonacci(31)\n";
    std::fs::write(agent.path("burn.py"), script).unwrap();
    let (_, counts, all) = sample(&agent, &[&python, "-X", "perf", "burn.py"]);
    let named: u64 = counts
        .iter()
        .filter(|(name, _)| name.starts_with("py::fibonacci:"))
        .map(|(_, count)| count)
        .sum();
    assert!(all > 50 && named * 10 > all * 7, "{counts:?} of {all}");
}

const PROGRAM: &str = "
public class Fibonacci {
    static int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
    public static void main(String[] arguments) {
        long end = System.currentTimeMillis() + 60000, sum = 0;
        while (System.currentTimeMillis() < end) sum += fibonacci(22);
        System.out.println(sum);
    }
}
";

/// Java writes its map when it is asked to: here after the samples were taken.
#[test]
fn java_has_names() {
    let test = "java_has_names";
    let Some(_alone) = alone(test) else { return };
    if tools::find("", Some("jcmd")).is_none() {
        return tools::skip(test, "jcmd (Debian package default-jdk-headless)");
    }
    let agent = Agent::new();
    std::fs::write(agent.path("Fibonacci.java"), PROGRAM).unwrap();
    let mut java = Command::new("java");
    java.args(["-XX:+PreserveFramePointer", "-XX:-UsePerfData", "Fibonacci.java"])
        .current_dir(agent.path("."))
        .stdout(Stdio::null());
    let java = Workload::of(&mut java);
    let pid = java.pid().to_string();
    let has_compiled = || {
        let mut jcmd = Command::new("jcmd");
        let output = jcmd.args([&pid, "Compiler.perfmap"]).output().unwrap();
        output.status.success() && String::from_utf8_lossy(&map_of(&pid)).contains("Fibonacci.fibonacci(int)")
    };
    support::workload::wait_for("Java's compiler", has_compiled);
    remove_map(&pid);
    let mut running = agent.start(["-p", &pid, "-F", "499", "-o", "out.folded"]);
    running.samples();
    std::thread::sleep(Duration::from_millis(1200));
    // Before the end, however long it takes.
    assert!(has_compiled());
    running.send(Signal::INT);
    running.finish().expect(0, &["samples of java"]);
    let (counts, all) = generated(&text(&agent.path("out.folded")));
    let fibonacci = counts
        .get("int Fibonacci.fibonacci(int)")
        .copied()
        .unwrap_or_default();
    assert!(fibonacci * 10 > all * 5, "{counts:?} of {all}");
    remove_map(&pid);
}

fn map(pid: &str) -> PathBuf {
    Path::new("/tmp").join(format!("perf-{pid}.map"))
}

#[expect(clippy::disallowed_methods, reason = "a file that the test has had made")]
fn map_of(pid: &str) -> Vec<u8> {
    std::fs::read(map(pid)).unwrap_or_default()
}

/// Java leaves its map behind.
fn remove_map(pid: &str) {
    let _ = std::fs::remove_file(map(pid));
}
