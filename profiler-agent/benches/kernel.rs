//! What one sample costs in the kernel, by the kernel's own accounting (bpf_stats), against the least that a stack sampler can do: a
//! program that only calls `bpf_get_stack` on the same stack, built with frame pointers.
//!
//! # Targets
//! A C program 33 frames deep, of 64 and of 208 bytes a frame, built twice: with frame pointers and nothing else, which both programs
//! walk; and without frame pointers, which only the agent can walk, by tables.
//!
//! And rustc at work, optimising: some 3 million rows, which fill the whole memory for tables, and a program that needs the caches for
//! itself. Its stacks have other depths. They are compared with `bpf_get_stack` of a C program that is as deep as they were on average, kernel
//! frames included, in the same round.
//!
//! # Rounds
//! The targets share CPU 0 and run one at a time; the others stand still. The programs run in turn, in rounds, so that a neighbour's load hits
//! all alike; what counts is the median over the rounds of the ratio within a round. Before that the agent runs until the kernel side
//! knows all that the target's stacks need, and each run is checked: samples finished in the kernel, complete, as deep as they should be,
//! by tables or by frame pointers.
//!
//! A clock ticks on whatever runs. A tick that hits another process ends at the filter; its price is measured by itself, while
//! the target asked for sleeps and another runs, and taken off with the number of such ticks, so that a sample is billed for itself alone.
//!
//! At 99 Hz, what users get, 10 ms of other work lie between two samples, work that needs the caches for itself: code and data of the walk
//! are cold. At 9999 Hz, and with a target that only counts, they are hot.
//!
//! Run by `cargo xtask bench kernel`, as root. Prints a table; fails when a ratio is above its bar.
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
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use aya::{
    EbpfLoader,
    maps::{Map, PerCpuArray},
    programs::PerfEvent as PerfEventProgram,
};
use profiler_agent::sampling::{
    bpf,
    perf_event::{Clock, PerfEvent},
};
use profiler_common::record::HEADER_LEN;
use support::{
    Bars, Running, figure, median,
    perf_ring::PerfRing,
    sampled::{Sampled, Seen},
    target::{self, Frames, Work},
};

/// User frames of the C program: what is called, and what calls `main`.
const DEPTH: u32 = 33;
/// How many functions deep it is for that.
const CALLS: u32 = 30;
/// Sizes of its frames.
const SIZES: [u32; 2] = [64, 208];

/// Walks by frame pointer, times `bpf_get_stack`.
const BAR_POINTERS: f64 = 1.2;
/// Walks by tables, hot.
const BAR_HOT: f64 = 1.3;
/// Walks by tables, cold, with three million rows.
const BAR_COLD: f64 = 2.5;

/// Microseconds of a sample whose walk user space finishes, in the kernel and there.
const BAR_UNKNOWN_KERNEL: f64 = 10.0;
const BAR_UNKNOWN_USER: f64 = 20.0;

/// How long such samples are taken: each leaves a stack of some 10 kB in a ring of 4 MiB.
const UNKNOWN_SPAN: Duration = Duration::from_millis(30);

/// Bytes of rustc's tables: 2.9 million rows of 4 bytes.
const LARGE: usize = 2_900_000 * 4;

/// Samples that have to be as they should.
const SHARE: f64 = 0.99;

/// One run of a program.
#[derive(Clone, Copy)]
struct Run {
    /// Ticks that hit the target.
    samples: u64,
    /// Others.
    dropped: u64,
    /// Nanoseconds of all.
    time: f64,
    /// Frames of a sample, kernel and user.
    depth: f64,
}

impl Run {
    fn per_sample(&self, dropped_tick: f64) -> f64 {
        assert!(self.samples > 50, "only {} ticks hit the target", self.samples);
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

/// A rate, how many rounds, and how long each program runs in a round.
struct Rate {
    frequency: u32,
    rounds: usize,
    span: Duration,
}

impl Rate {
    fn heat(&self) -> &'static str {
        if self.frequency < 1000 { "cold" } else { "hot" }
    }

    fn work(&self) -> Work {
        if self.frequency < 1000 {
            Work::Writing
        } else {
            Work::Counting
        }
    }
}

fn main() -> ExitCode {
    let bench = Bench::new();
    let rates = [(9999, 9, 250), (99, 15, 1000)].map(|(frequency, rounds, span)| Rate {
        frequency,
        rounds,
        span: Duration::from_millis(span),
    });
    // Words on the command line choose: rates, and `deep` or `rustc`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = |name: &str, among: &[&str]| {
        !words.iter().any(|word| among.contains(&word.as_str())) || words.iter().any(|word| word == name)
    };
    let mut bars = Bars::default();
    for rate in &rates {
        if !chosen(&rate.frequency.to_string(), &["99", "9999"]) {
            continue;
        }
        if chosen("deep", &["deep", "rustc"]) {
            for frame in SIZES {
                bench.deep(rate, frame, &mut bars);
            }
            if rate.frequency > 1000 {
                bench.unknown(rate, &mut bars);
            }
        }
        if chosen("rustc", &["deep", "rustc"]) {
            bench.large(rate, &mut bars);
        }
    }
    bars.code()
}

/// What all comparisons need.
struct Bench {
    baseline: Vec<u8>,
    sleeper: Running,
    folder: tempfile::TempDir,
    _accounting: std::os::fd::OwnedFd,
}

impl Bench {
    fn new() -> Self {
        let baseline = std::env::var_os("PROFILER_BENCH_BASELINE")
            .map(PathBuf::from)
            .expect("run me by `cargo xtask bench kernel`, which builds the programs to compare with");
        Self {
            _accounting: aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("bpf_stats; are you root?"),
            baseline: profiler_agent::procfs::read(baseline, 16 << 20).expect("the object to compare with"),
            sleeper: Running::start(Command::new("sleep").arg("1200")),
            folder: tempfile::tempdir().expect("temporary folder"),
        }
    }

    /// Ticks that hit another process: the price of one in the agent and in the programs compared with.
    fn dropped(&self, rate: &Rate, other: &Running) -> (f64, f64) {
        other.awake(|| {
            let agent =
                run_of(&Sampled::new(self.sleeper.pid(), rate.frequency).run(rate.span)).per_dropped();
            let walk = self
                .baseline("walk", self.sleeper.pid(), rate.frequency, rate.span)
                .per_dropped();
            (agent, walk)
        })
    }

    /// 33 frames, by frame pointer and by tables.
    fn deep(&self, rate: &Rate, frame: u32, bars: &mut Bars) {
        let &Rate {
            frequency,
            rounds,
            span,
        } = rate;
        let pointers = target::deep(self.folder.path(), Frames::Pointers, frame, CALLS, rate.work());
        let tables = target::deep(self.folder.path(), Frames::Tables, frame, CALLS, rate.work());
        let (dropped_agent, dropped_walk) = self.dropped(rate, &pointers);
        let agent = |target: &Running| {
            let mut agent = Sampled::new(target.pid(), frequency);
            target.awake(|| agent.warm_up());
            agent
        };
        let mut by_pointers = agent(&pointers);
        let mut by_tables = agent(&tables);
        let mut figures = Figures::default();
        for _ in 0..rounds {
            for program in ["walk", "perf_ring", "bpf_ring"] {
                let run = pointers.awake(|| self.baseline(program, pointers.pid(), frequency, span));
                figures.add(program, run.per_sample(dropped_walk));
            }
            let seen = pointers.awake(|| by_pointers.run(span));
            check(&seen, u64::from(DEPTH));
            assert!(
                seen.chained as f64 >= SHARE * f64::from(CALLS) * seen.samples as f64,
                "not by frame pointer: {seen:?}"
            );
            figures.add("by frame pointer", run_of(&seen).per_sample(dropped_agent));
            let seen = tables.awake(|| by_tables.run(span));
            check(&seen, u64::from(DEPTH));
            assert_eq!(seen.chained, 0, "not by tables: {seen:?}");
            figures.add("by tables", run_of(&seen).per_sample(dropped_agent));
        }
        let heat = rate.heat();
        println!(
            "{frequency} Hz ({heat}), {DEPTH} frames of {frame} bytes: ns a sample, median of {rounds} rounds; a dropped tick, {} ns in the \
             agent and {} ns in the bare walk, is taken off",
            figure(dropped_agent),
            figure(dropped_walk)
        );
        figures.print();
        println!(
            "  by frame pointer = {:.2} x (bpf_get_stack + perf ring), {:.2} x (bpf_get_stack + BPF ring)",
            figures.ratio("by frame pointer", "perf_ring"),
            figures.ratio("by frame pointer", "bpf_ring")
        );
        for (program, bar) in [
            ("by frame pointer", BAR_POINTERS),
            ("by tables", if heat == "hot" { BAR_HOT } else { BAR_COLD }),
        ] {
            bars.at_most(
                &format!("{program} / bare bpf_get_stack, {frequency} Hz ({heat}), frames of {frame} bytes"),
                figures.ratio(program, "walk"),
                bar,
                "x",
            );
        }
    }

    /// Samples that the programs leave to user space, since they know nothing: what copying the stack costs, and what finishing it.
    fn unknown(&self, rate: &Rate, bars: &mut Bars) {
        let target = target::deep(self.folder.path(), Frames::Tables, SIZES[1], CALLS, rate.work());
        let (dropped_agent, _) = self.dropped(rate, &target);
        let mut agent = Sampled::new(target.pid(), rate.frequency);
        target.awake(|| agent.warm_up());
        let mut figures = Figures::default();
        for _ in 0..rate.rounds {
            let (seen, here) = target.awake(|| agent.run_unknown(UNKNOWN_SPAN));
            assert!(
                seen.complete == seen.samples && seen.least >= u64::from(DEPTH),
                "not finished in user space: {seen:?}"
            );
            figures.add("in the kernel", run_of(&seen).per_sample(dropped_agent));
            figures.add("in user space", here);
        }
        println!(
            "{} Hz, {DEPTH} frames of {} bytes, unknown to the kernel side: ns a sample",
            rate.frequency, SIZES[1]
        );
        figures.print();
        for (place, bar) in [
            ("in the kernel", BAR_UNKNOWN_KERNEL),
            ("in user space", BAR_UNKNOWN_USER),
        ] {
            bars.at_most(
                &format!("a sample of unknown code, {place}"),
                median(&figures.0[place]) / 1e3,
                bar,
                "us",
            );
        }
    }

    /// rustc.
    fn large(&self, rate: &Rate, bars: &mut Bars) {
        let &Rate {
            frequency,
            rounds,
            span,
        } = rate;
        let compiler = target::compiler(self.folder.path());
        let mut agent = Sampled::new(compiler.pid(), frequency);
        compiler.awake(|| agent.warm_up());
        let deep = |depth: u32| {
            let calls = depth - (DEPTH - CALLS);
            target::deep(self.folder.path(), Frames::Pointers, SIZES[1], calls, rate.work())
        };
        let mut alike = BTreeMap::from([(DEPTH, deep(DEPTH))]);
        let (dropped_agent, dropped_walk) = self.dropped(rate, &alike[&DEPTH]);
        let mut figures = Figures::default();
        let mut all = Seen::default();
        for _ in 0..rounds {
            let seen = compiler.awake(|| agent.run(span));
            check(&seen, 1);
            let run = run_of(&seen);
            figures.add("agent", run.per_sample(dropped_agent));
            let depth = run.depth.round() as u32;
            let alike = alike.entry(depth).or_insert_with(|| deep(depth));
            let walk = alike.awake(|| self.baseline("walk", alike.pid(), frequency, span));
            figures.add("walk", walk.per_sample(dropped_walk));
            all.samples += seen.samples;
            all.finished += seen.finished;
            all.complete += seen.complete;
            all.user += seen.user;
            all.kernel += seen.kernel;
            all.chained += seen.chained;
        }
        let heat = rate.heat();
        let share = |part: u64| 100.0 * part as f64 / all.samples as f64;
        let each = |part: u64| part as f64 / all.samples as f64;
        println!(
            "{frequency} Hz ({heat}), rustc: ns a sample, median of {rounds} rounds; {} samples, {:.2} % finished in the kernel, {:.2} % \
             complete, {:.1} user and {:.1} kernel frames each, {:.2} of them by frame pointer; tables of at least {:.1} MB",
            all.samples,
            share(all.finished),
            share(all.complete),
            each(all.user),
            each(all.kernel),
            each(all.chained),
            LARGE as f64 / 1e6,
        );
        figures.print();
        println!(
            "  {:.0} ns a frame",
            median(&figures.0["agent"]) / each(all.user + all.kernel),
        );
        // Whole segments are counted, the last of which may be begun only.
        assert!(
            agent.memory() >= LARGE,
            "only {} bytes of tables: another rustc?",
            agent.memory()
        );
        if heat == "cold" {
            bars.at_most(
                &format!("3 million rows / bare bpf_get_stack of as many frames, {frequency} Hz ({heat})"),
                figures.ratio("agent", "walk"),
                BAR_COLD,
                "x",
            );
        }
    }

    /// One of the programs to compare with.
    fn baseline(&self, name: &str, pid: u32, frequency: u32, span: Duration) -> Run {
        let mut programs = EbpfLoader::new()
            .btf(None)
            .override_global("TARGET", &pid, true)
            .load(&self.baseline)
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
        let ring = PerfRing::new();
        bpf::set_descriptor(slots.fd().as_fd(), 0, ring.as_fd()).expect("ring");
        let clock = PerfEvent::clock(Clock::CpuClock, frequency, 0).expect("clock");
        clock
            .set_program(program.fd().expect("fd").as_fd())
            .expect("attach");
        clock.enable().expect("enable");
        std::thread::sleep(span);
        clock.disable().expect("disable");
        let info = program.info().expect("info");
        let dropped =
            PerCpuArray::<_, u64>::try_from(programs.map("DROPPED").expect("DROPPED")).expect("map");
        let dropped: u64 = dropped.get(&0, 0).expect("DROPPED").iter().sum();
        let samples = info.run_count() - dropped;
        if name == "perf_ring" {
            // The frames, the header of the agent's size, and perf's own.
            let bytes = ring.written();
            assert!(
                bytes >= samples * (u64::from(CALLS) * 8 + HEADER_LEN as u64 + 20),
                "the ring holds {bytes} bytes after {samples} samples"
            );
        }
        Run {
            samples,
            dropped,
            time: info.run_time().as_nanos() as f64,
            depth: 0.0,
        }
    }
}

/// The samples are what they should be, at least [`SHARE`] of them.
fn check(seen: &Seen, least: u64) {
    let enough = SHARE * seen.samples as f64;
    assert!(
        seen.finished as f64 >= enough,
        "not finished in the kernel: {seen:?}"
    );
    assert!(seen.complete as f64 >= enough, "not complete: {seen:?}");
    assert!(seen.least >= least, "not deep enough: {seen:?}");
}

/// What the agent did, as a run of a program.
fn run_of(seen: &Seen) -> Run {
    Run {
        samples: seen.samples,
        dropped: seen.runs - seen.samples,
        time: seen.time,
        depth: (seen.user + seen.kernel) as f64 / seen.samples as f64,
    }
}

/// Nanoseconds a sample of each program, by round.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, Vec<f64>>);

impl Figures {
    fn add(&mut self, program: &'static str, nanoseconds: f64) {
        self.0.entry(program).or_default().push(nanoseconds);
    }

    fn ratio(&self, program: &str, other: &str) -> f64 {
        let ratios: Vec<f64> = self.0[program]
            .iter()
            .zip(&self.0[other])
            .map(|(a, b)| a / b)
            .collect();
        median(&ratios)
    }

    fn print(&self) {
        for (program, values) in &self.0 {
            let all: Vec<String> = values.iter().map(|value| format!("{value:.0}")).collect();
            println!("  {program:18} {:6.0}   ({})", median(values), all.join(" "));
        }
    }
}
