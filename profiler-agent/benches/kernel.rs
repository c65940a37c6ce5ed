//! What one sample costs in the kernel, by the kernel's own accounting (bpf_stats), against the least that a stack sampler can do: a
//! program that only calls `bpf_get_stack` on the same stack.
//!
//! Two targets, 33 frames deep with frame pointers to the end, of 64 and of 208 bytes a frame, on CPU 0. The programs run in turn on
//! each, in rounds, so that a neighbour's load hits all alike; what counts is the median over the rounds of the ratio within a round.
//!
//! A clock ticks on whatever runs. A tick that hits another process ends at the filter; its price is measured by itself, with a target
//! that sleeps, and taken off with the number of such ticks, so that a sample is billed for itself alone.
//!
//! At 99 Hz, what users get, 10 ms of other work lie between two samples: code and data of the walk are cold. At 9999 Hz they are hot.
//!
//! Run by `cargo xtask bench kernel`, as root. Prints a table; fails when a ratio is above its bar.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use aya::{
    EbpfLoader,
    maps::{Map, PerCpuArray},
    programs::PerfEvent as PerfEventProgram,
};
use profiler_agent::sampling::{
    Config, Sampler, bpf,
    perf_event::{Clock, PerfEvent},
    record::Record,
    ring::Ring,
};
use profiler_common::record::Counter;
use support::{Bars, Running, figure, gcc, median};

/// A C program that calls itself 31 deep below `main` and burns there. It gets nearly all of CPU 0 while others still get some: no
/// real-time priority, which would starve them. It ends with its parent, and after five minutes in any case.
const TARGET: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
volatile unsigned long sink;
__attribute__((noinline)) int deep(int n) {
    volatile char locals[LOCALS];
    locals[n] = 1;
    if (n == 0) for (;;) sink++;
    return deep(n - 1) + locals[n];
}
int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(300);
    cpu_set_t set; CPU_ZERO(&set); CPU_SET(0, &set); sched_setaffinity(0, sizeof set, &set);
    setpriority(PRIO_PROCESS, 0, -20);
    return deep(31);
}
"#;

/// Bytes of locals, and what a frame is by the compiler's own account, return address included.
const FRAMES: [(u32, u32); 2] = [(32, 64), (176, 208)];
const BAR: f64 = 1.2;

/// What is run in turn.
const PROGRAMS: [&str; 4] = ["walk", "perf_ring", "bpf_ring", "agent"];

/// One run of a program.
struct Run {
    /// Ticks that hit the target.
    samples: u64,
    /// Others.
    dropped: u64,
    /// Nanoseconds of all.
    time: f64,
}

impl Run {
    fn per_sample(&self, dropped_tick: f64) -> f64 {
        (self.time - dropped_tick * self.dropped as f64) / self.samples as f64
    }

    fn per_dropped(&self) -> f64 {
        assert!(
            self.samples == 0 && self.dropped > 20,
            "{} samples, {} dropped",
            self.samples,
            self.dropped
        );
        self.time / self.dropped as f64
    }
}

fn main() -> ExitCode {
    let baseline = std::env::var_os("PROFILER_BENCH_BASELINE")
        .map(PathBuf::from)
        .expect("run me by `cargo xtask bench kernel`, which builds the programs to compare with");
    let _accounting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("bpf_stats; are you root?");
    let sleeper = Running::start(Command::new("sleep").arg("600"));
    // Numbers on the command line choose among the rates.
    let chosen: Vec<u32> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let mut bars = Bars::default();
    for (locals, frame) in FRAMES {
        let folder = tempfile::tempdir().expect("temporary folder");
        let target = start(folder.path(), locals, frame);
        for (frequency, rounds, span) in [(9999, 7, 300), (999, 5, 700), (99, 5, 2500)] {
            if !chosen.is_empty() && !chosen.contains(&frequency) {
                continue;
            }
            let span = Duration::from_millis(span);
            let once = |program: &str, pid: u32| match program {
                "agent" => agent(pid, frequency, span),
                _ => baseline_of(&baseline, program, pid, frequency, span),
            };
            let dropped_agent = once("agent", sleeper.pid()).per_dropped();
            let dropped_walk = once("walk", sleeper.pid()).per_dropped();
            let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            let (mut samples, mut dropped) = (0, 0);
            for _ in 0..rounds {
                for program in PROGRAMS {
                    let run = once(program, target.pid());
                    assert!(
                        run.samples > 50,
                        "{program}: only {} ticks hit the target",
                        run.samples
                    );
                    let price = if program == "agent" {
                        dropped_agent
                    } else {
                        dropped_walk
                    };
                    figures.entry(program).or_default().push(run.per_sample(price));
                    samples += run.samples;
                    dropped += run.dropped;
                }
            }
            let heat = if frequency == 99 { "cold" } else { "hot" };
            println!(
                "{frequency} Hz ({heat}), 33 frames of {frame} bytes: ns a sample, median of {rounds} rounds; {samples} samples, {dropped} \
                 dropped ticks ({} ns each in the agent, {} ns in the bare walk; taken off)",
                figure(dropped_agent),
                figure(dropped_walk)
            );
            let against = |other: &str| {
                let ratios: Vec<f64> = figures["agent"]
                    .iter()
                    .zip(&figures[other])
                    .map(|(a, b)| a / b)
                    .collect();
                median(&ratios)
            };
            for program in PROGRAMS {
                let values: Vec<String> = figures[program]
                    .iter()
                    .map(|value| format!("{value:.0}"))
                    .collect();
                println!(
                    "  {program:10} {:6.0}   ({})",
                    median(&figures[program]),
                    values.join(" ")
                );
            }
            println!(
                "  agent = {:.2} x (bpf_get_stack + perf ring), {:.2} x (bpf_get_stack + BPF ring)",
                against("perf_ring"),
                against("bpf_ring")
            );
            bars.at_most(
                &format!(
                    "kernel side / bare bpf_get_stack, {frequency} Hz ({heat}), frames of {frame} bytes"
                ),
                against("walk"),
                BAR,
                "x",
            );
        }
    }
    bars.code()
}

/// The target with `locals` bytes of locals, and frames of `frame` bytes by the compiler's own account.
fn start(folder: &Path, locals: u32, frame: u32) -> Running {
    let (source, program) = (folder.join("deep.c"), folder.join("deep"));
    std::fs::write(&source, TARGET).expect("source");
    let locals = format!("-DLOCALS={locals}");
    let flags = [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
        "-fstack-usage",
        "-static",
        &locals,
    ];
    gcc(&source, &program, &flags);
    let usage = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "su"))
        .expect("gcc -fstack-usage writes a file");
    let usage =
        String::from_utf8(profiler_agent::procfs::read(usage, 1 << 16).expect("stack usage")).expect("text");
    let deep = usage
        .lines()
        .find(|line| line.contains(":deep"))
        .expect("`deep` is in the file");
    let bytes = deep
        .split('\t')
        .nth(1)
        .and_then(|bytes| bytes.parse::<u32>().ok());
    assert_eq!(bytes, Some(frame), "{deep}");
    Running::start(&mut Command::new(&program))
}

/// The agent's program.
fn agent(pid: u32, frequency: u32, span: Duration) -> Run {
    let mut sampler = Sampler::new(Config {
        frequency,
        targets: Some(vec![pid]),
    })
    .expect("sampler");
    let (mut samples, mut frames) = (0_u64, 0_u64);
    sampler.start().expect("start");
    std::thread::sleep(span);
    sampler.stop();
    sampler.drain(u64::MAX, |event| {
        if let Record::Sample(sample) = event.record {
            samples += 1;
            frames += sample.user.len() as u64;
        }
    });
    assert_eq!(
        samples,
        sampler.counter(Counter::Written).expect("counter"),
        "what was written is not what was read"
    );
    assert_eq!(
        sampler.counter(Counter::RingFull).expect("counter"),
        0,
        "the ring was full"
    );
    assert!(
        samples == 0 || frames / samples >= 33,
        "{frames} frames of {samples} samples"
    );
    let cost = sampler.cost().expect("cost");
    Run {
        samples,
        dropped: cost.runs - samples,
        time: cost.time.as_nanos() as f64,
    }
}

/// One of the programs to compare with.
fn baseline_of(object: &Path, name: &str, pid: u32, frequency: u32, span: Duration) -> Run {
    let bytes = profiler_agent::procfs::read(object, 16 << 20).expect("the object to compare with");
    let mut programs = EbpfLoader::new()
        .btf(None)
        .override_global("TARGET", &pid, true)
        .load(&bytes)
        .expect("load");
    let Some(Map::PerfEventArray(slots)) = programs.take_map("SAMPLES") else {
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
    bpf::set_descriptor(slots.fd().as_fd(), 0, ring.event().as_fd()).expect("ring");
    let clock = PerfEvent::clock(Clock::CpuClock, frequency, 0).expect("clock");
    clock
        .set_program(program.fd().expect("fd").as_fd())
        .expect("attach");
    clock.enable().expect("enable");
    std::thread::sleep(span);
    clock.disable().expect("disable");
    let info = program.info().expect("info");
    let dropped = PerCpuArray::<_, u64>::try_from(programs.map("DROPPED").expect("DROPPED")).expect("map");
    let dropped: u64 = dropped.get(&0, 0).expect("DROPPED").iter().sum();
    let samples = info.run_count() - dropped;
    if name == "perf_ring" {
        // 33 frames, the header of the agent's size, and perf's own.
        let bytes = ring.head();
        assert!(
            bytes >= samples * (33 * 8 + 40 + 20),
            "the ring holds {bytes} bytes after {samples} samples"
        );
    }
    Run {
        samples,
        dropped,
        time: info.run_time().as_nanos() as f64,
    }
}
