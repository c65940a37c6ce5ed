//! What one sample costs in the kernel, by the kernel's own accounting (bpf_stats), against the least that a stack sampler can do: a
//! program that only calls `bpf_get_stack` on the same stack.
//!
//! One target, pinned to one CPU, 33 frames deep with frame pointers to the end. The programs run in turn on it, several rounds, so
//! that a neighbour's load hits all alike; what counts are the ratios of one run. `99` Hz is what users get: caches are cold.
//!
//! Run by `cargo xtask bench kernel`, as root. Prints a table; fails when a ratio is above its bar.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(clippy::disallowed_methods, reason = "the file it reads is the project's own")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may fail loudly"
)]

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::Duration,
};

use aya::{EbpfLoader, maps::Map, programs::PerfEvent as PerfEventProgram};
use profiler_agent::sampling::{
    Config, Sampler, bpf,
    perf_event::{Clock, PerfEvent},
    ring::Ring,
};

/// A C program that calls itself 31 deep below `main`, burns there, and has CPU 0 for itself (but for the 5 % that the kernel keeps
/// from real-time tasks): nearly every tick there hits it, so that runs can be taken for samples.
const TARGET: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <unistd.h>
volatile unsigned long sink;
__attribute__((noinline)) int deep(int n) { if (n == 0) for (;;) sink++; return deep(n - 1) + 1; }
int main(void) {
    cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set); sched_setaffinity(0, sizeof set, &set);
    struct sched_param first = { .sched_priority = 1 }; sched_setscheduler(0, SCHED_FIFO, &first);
    alarm(60); // whatever becomes of the benchmark, the CPU is given back
    return deep(31);
}
"#;

const ROUNDS: usize = 3;
const BAR: f64 = 1.2;

fn main() -> ExitCode {
    let baseline = std::env::var_os("PROFILER_BENCH_BASELINE")
        .map(PathBuf::from)
        .expect("run me by `cargo xtask bench kernel`, which builds the programs to compare with");
    let target = Target::start();
    let _accounting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("bpf_stats; are you root?");
    let mut failed = false;
    for frequency in [99, 999, 9999] {
        // At least 200 samples of each program a round.
        let span = Duration::from_millis(if frequency == 99 { 2500 } else { 1000 });
        let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for program in ["walk", "perf_ring", "bpf_ring"] {
                figures.entry(program).or_default().push(run_baseline(
                    &baseline,
                    program,
                    target.pid(),
                    frequency,
                    span,
                ));
            }
            figures
                .entry("agent")
                .or_default()
                .push(run_agent(target.pid(), frequency, span));
        }
        let median = |program: &str| {
            let mut values = figures[program].clone();
            values.sort_by(f64::total_cmp);
            values[ROUNDS / 2]
        };
        let walk = median("walk");
        println!("{frequency} Hz, 33 frames, ns a sample (median of {ROUNDS}):");
        for (program, values) in &figures {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.0}")).collect();
            println!(
                "  {program:10} {:6.0}  = {:.2} x walk   ({})",
                median(program),
                median(program) / walk,
                values.join(" ")
            );
        }
        let ratio = median("agent") / median("perf_ring");
        let verdict = if ratio <= BAR { "ok" } else { "ABOVE THE BAR" };
        println!("  agent / (bpf_get_stack + perf ring) = {ratio:.2}, bar {BAR}: {verdict}");
        failed |= ratio > BAR;
    }
    // Not `exit`: the target must be ended.
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run_agent(pid: u32, frequency: u32, span: Duration) -> f64 {
    let mut sampler = Sampler::new(Config {
        frequency,
        targets: Some(vec![pid]),
    })
    .expect("sampler");
    let mut frames = (0, 0);
    sampler.start().expect("start");
    std::thread::sleep(span);
    sampler.stop();
    sampler.drain(u64::MAX, |event| {
        if let profiler_agent::sampling::record::Record::Sample(sample) = event.record {
            frames = (frames.0 + 1, frames.1 + sample.user.len());
        }
    });
    assert!(
        frames.0 > 0 && frames.1 / frames.0 >= 33,
        "the agent's stacks are not the ones to compare: {frames:?}"
    );
    // Its clocks tick on the other CPUs too; those runs end at the filter, and their cost is counted here as well.
    sampler.cost().expect("cost").time.as_nanos() as f64 / frames.0 as f64
}

fn run_baseline(object: &Path, name: &str, pid: u32, frequency: u32, span: Duration) -> f64 {
    let bytes = std::fs::read(object).expect("the object to compare with");
    let mut programs = EbpfLoader::new()
        .btf(None)
        .override_global("TARGET", &pid, true)
        .load(&bytes)
        .expect("load");
    let Some(Map::PerfEventArray(samples)) = programs.take_map("SAMPLES") else {
        panic!("no SAMPLES")
    };
    let program: &mut PerfEventProgram = programs
        .program_mut(name)
        .expect("program")
        .try_into()
        .expect("type");
    program.load().expect("verifier");
    let owner = PerfEvent::ring_owner(0, u32::MAX, false).expect("ring");
    let ring = Ring::new(owner, 0, 4 << 20).expect("ring");
    ring.event().enable().expect("ring");
    bpf::set_descriptor(samples.fd().as_fd(), 0, ring.event().as_fd()).expect("ring");
    let clock = PerfEvent::clock(Clock::CpuClock, frequency, 0).expect("clock");
    clock
        .set_program(program.fd().expect("fd").as_fd())
        .expect("attach");
    clock.enable().expect("enable");
    std::thread::sleep(span);
    clock.disable().expect("disable");
    let info = program.info().expect("info");
    if name == "perf_ring" {
        assert!(
            ring.head() > 300 * info.run_count() / 2,
            "the ring holds {} bytes after {} runs",
            ring.head(),
            info.run_count()
        );
    }
    assert!(info.run_count() > 50, "only {} runs", info.run_count());
    info.run_time().as_nanos() as f64 / info.run_count() as f64
}

struct Target(Child);

impl Target {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (source, program) = (folder.path().join("deep.c"), folder.path().join("deep"));
        std::fs::write(&source, TARGET).expect("source");
        let flags = [
            "-O1",
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
            "-static",
            "-o",
        ];
        let status = Command::new("gcc")
            .args(flags)
            .arg(&program)
            .arg(&source)
            .status()
            .expect("gcc");
        assert!(status.success(), "gcc failed");
        let child = Command::new(&program).spawn().expect("target");
        std::thread::sleep(Duration::from_millis(200));
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
