//! What the benchmarks share: bars, medians, and programs to measure on.
#![allow(dead_code, reason = "each benchmark uses what it needs")]

pub(crate) mod allocations;
pub(crate) mod footprint;
pub(crate) mod perf_ring;
pub(crate) mod ring;
pub(crate) mod sampled;
pub(crate) mod target;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};

/// What must hold, and whether it did. `cargo xtask bench` collects the lines that begin with `bar: `.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    missed: bool,
}

impl Bars {
    /// Holds `measured` against the most that it may be.
    pub(crate) fn at_most(&mut self, what: &str, measured: f64, bar: f64, unit: &str) {
        let holds = measured <= bar;
        self.missed |= !holds;
        let verdict = if holds { "ok" } else { "MISSED" };
        println!(
            "bar: {what} | {} {unit} | {bar} {unit} | {verdict}",
            figure(measured)
        );
    }

    /// How the benchmark ends. Not by `exit`, which would leave its programs running.
    pub(crate) fn code(&self) -> ExitCode {
        if self.missed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Three digits that count.
pub(crate) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        ..0.1 => 4,
        0.1..1.0 => 3,
        1.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The OpenTelemetry eBPF profiler, ready to be started, that sends to a receiver.
pub(crate) fn otel_profiler(program: &Path, receiver: SocketAddr, frequency: u32) -> Command {
    let mut command = Command::new("unshare");
    command
        // It insists on tracefs, which not every machine has mounted; the mount is gone with it.
        .args(["--mount", "sh", "-c"])
        .args(["mount -t tracefs nodev /sys/kernel/tracing; exec \"$@\"", "sh"])
        .arg(program)
        .args(["-collection-agent", &receiver.to_string(), "-disable-tls"])
        .args(["-samples-per-second", &frequency.to_string()])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts it and gives it time to get to work.
    pub(crate) fn start(command: &mut Command) -> Self {
        let running = Self::start_now(command);
        std::thread::sleep(Duration::from_millis(200));
        running
    }

    /// Starts it.
    pub(crate) fn start_now(command: &mut Command) -> Self {
        Self(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        )
    }

    /// The same, and a way to say something to it.
    pub(crate) fn with_input(command: &mut Command) -> (Self, ChildStdin) {
        let mut running = Self::start_now(command.stdin(Stdio::piped()));
        let input = running.0.stdin.take().expect("a pipe");
        (running, input)
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs `work` while this goes on; before and after, it stands still.
    pub(crate) fn awake<T>(&self, work: impl FnOnce() -> T) -> T {
        self.signal(Signal::CONT);
        let result = work();
        self.signal(Signal::STOP);
        result
    }

    /// Has it stand still, or go on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .expect("pid");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Compiles a C program.
pub(crate) fn gcc(source: &Path, program: &Path, flags: &[&str]) {
    let status = Command::new("gcc")
        .args(flags)
        .arg("-o")
        .arg(program)
        .arg(source)
        .status();
    assert!(
        status.expect("gcc; `cargo xtask setup` installs it").success(),
        "gcc failed"
    );
}
