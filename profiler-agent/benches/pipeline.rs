//! What one sample costs in user space, from the bytes in the ring to the sum: parse, merge by time, aggregate.
//!
//! 1,000 distinct stacks of 33 frames, of 50 threads of 5 processes that really run, in the rings of 2 CPUs; every address lies in
//! code that its process has mapped. CPU time of this thread, median over the passes, of a sample that
//!
//! - is only read;
//! - has a known stack, which the cache of stacks finds: how it is in a capture after its first seconds;
//! - has a new stack of known addresses, which the cache of locations finds;
//! - has a new stack of new addresses, which nothing finds.
//!
//! It says how many look-ups of a cache were answered by it. Then samples with known stacks while another thread draws flamegraphs; what
//! 1,000 stacks are in memory, by a counting allocator; what a string costs; and what a profile and each of its outputs costs.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(unsafe_code, reason = "a counting allocator is one")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::wildcard_enum_match_arm,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use profiler_agent::{
    aggregate::{Aggregator, Limits, LocationCounts},
    clock::Clock,
    export::{file::Format, otlp},
    history::{self, History, Query},
    process::Processes,
    profile::{Capture, Profile, tables::Tables},
    render::svg::{self, Look},
    sampling::{merge::Merger, record::Record},
    symbols::Symbolizer,
};
use rustix::time::{ClockId, clock_gettime};
use support::{
    Bars, Running,
    allocations::{self, Counting},
    figure, median,
    ring::{Memory, Random, Stack, executable, pass, record},
};

const PROCESSES: usize = 5;
const THREADS: usize = 50;
const STACKS: usize = 1000;
const FRAMES: usize = 33;
const SAMPLES: usize = 20_000;
const PASSES: usize = 31;
const BAR: f64 = 2.0;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let running: Vec<Running> = (0..PROCESSES)
        .map(|_| Running::start(Command::new("sleep").arg("600")))
        .collect();
    let pids: Vec<u32> = running.iter().map(Running::pid).collect();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let stacks = stacks(&pids, &mut random);
    let mut rings = rings(&stacks, &mut random);
    println!(
        "{SAMPLES} samples of {STACKS} stacks of {FRAMES} frames, {THREADS} threads of {PROCESSES} processes, {} bytes in 2 rings",
        rings.iter().map(|ring| ring.data.len()).sum::<usize>()
    );

    let mut processes = Processes::new(Some(&pids));
    processes.scan();
    let mut merger = Merger::default();
    let clock = Clock::now();

    let read: Vec<f64> = (0..PASSES)
        .map(|_| {
            let before = cpu_time();
            let mut samples = 0;
            merger.drain(&mut rings, u64::MAX, |event| {
                assert!(matches!(event.record, Record::Sample(_)));
                samples += 1;
            });
            for ring in &mut rings {
                ring.tail = 0;
            }
            assert_eq!(samples, SAMPLES);
            (cpu_time() - before) / SAMPLES as f64
        })
        .collect();
    println!("a sample that is only read: {} us", figure(median(&read) * 1e6));

    new_stacks(&pids, &mut merger, &mut processes);

    let before = allocations::in_use();
    let mut aggregator = Aggregator::new(Limits::default(), Clock::now());
    pass(
        &mut merger,
        &mut rings,
        STACKS as u64,
        &mut aggregator,
        &mut processes,
    );
    let after = allocations::in_use();
    println!(
        "memory of a distinct stack without names: {} bytes, of which {} are its addresses",
        (after - before) / STACKS,
        FRAMES * 8
    );

    let mut known = Vec::new();
    for _ in 0..PASSES {
        let before = (cpu_time(), aggregator.counts());
        pass(&mut merger, &mut rings, u64::MAX, &mut aggregator, &mut processes);
        let time = cpu_time() - before.0;
        let counts = aggregator.counts();
        assert_eq!(counts.samples - before.1.samples, SAMPLES as u64);
        assert_eq!(
            counts.cache_hits - before.1.cache_hits,
            SAMPLES as u64,
            "every stack was known"
        );
        known.push(time / SAMPLES as f64);
    }
    let known = median(&known) * 1e6;
    println!(
        "a sample with a known stack: {} us; all of them found by the cache of stacks",
        figure(known)
    );
    beside_questions(known, &mut merger, &mut rings, &mut processes);
    strings();

    outputs(&mut aggregator, &clock, &mut || {
        let mut filled = Aggregator::new(Limits::default(), Clock::now());
        pass(&mut merger, &mut rings, u64::MAX, &mut filled, &mut processes);
        name(&mut filled);
        filled
    });

    let mut bars = Bars::default();
    bars.at_most(
        "user side, CPU time of a sample at steady state",
        known,
        BAR,
        "us",
    );
    bars.code()
}

/// Samples with stacks that the first cache does not know, of addresses that the second one knows or not.
fn new_stacks(pids: &[u32], merger: &mut Merger, processes: &mut Processes) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let [first, second] = [(); 2].map(|()| stacks(pids, &mut random));
    let [mut first, mut second] = [first, second].map(|stacks| rings_of(&stacks));
    // Every address once: of one process, since processes share the locations of a file.
    let mut fresh = executable(pids[0])
        .into_iter()
        .flat_map(|(start, end)| (start..end).step_by(16));
    let unknown: Vec<Stack> = (0..STACKS)
        .map(|number| Stack {
            pid: pids[0],
            tid: 100_000 + number as u32 % 2,
            frames: fresh.by_ref().take(FRAMES).collect(),
        })
        .collect();
    assert!(unknown.iter().all(|stack| stack.frames.len() == FRAMES));
    let mut unknown = rings_of(&unknown);

    for (what, mut before, rings) in [
        ("known addresses", Some(&mut first), &mut second),
        ("new addresses", None, &mut unknown),
    ] {
        let mut found = LocationCounts::default();
        let times: Vec<f64> = (0..7)
            .map(|_| {
                let mut aggregator = Aggregator::new(Limits::default(), Clock::now());
                if let Some(before) = &mut before {
                    pass(merger, before, u64::MAX, &mut aggregator, processes);
                }
                let (counts, locations) = (aggregator.counts(), aggregator.location_counts());
                let start = cpu_time();
                pass(merger, rings, u64::MAX, &mut aggregator, processes);
                let time = cpu_time() - start;
                let after = aggregator.counts();
                assert_eq!(after.samples - counts.samples, STACKS as u64);
                assert_eq!(after.cache_hits, counts.cache_hits, "every stack was new");
                let LocationCounts {
                    looked_up,
                    known,
                    over_budget: _,
                } = aggregator.location_counts();
                found.looked_up = looked_up - locations.looked_up;
                found.known = known - locations.known;
                time / STACKS as f64
            })
            .collect();
        let share = found.known as f64 / found.looked_up as f64;
        println!(
            "a sample with a new stack of {what}: {} us; {:.1} % of {} addresses found by the cache of locations",
            figure(median(&times) * 1e6),
            100.0 * share,
            found.looked_up
        );
        assert!(if before.is_some() {
            share > 0.95
        } else {
            share == 0.0
        });
    }
}

/// The same samples with known stacks, while another thread draws one flamegraph after the other of the history.
fn beside_questions(alone: f64, merger: &mut Merger, rings: &mut [Memory], processes: &mut Processes) {
    let mut aggregator = Aggregator::new(Limits::default(), Clock::now());
    pass(merger, rings, u64::MAX, &mut aggregator, processes);
    let mut history = History::new(history::Limits::default());
    history.push(&aggregator.take(capture(), &Clock::now()));
    let (done, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let span = history.snapshot().folded(&Query::default());
                assert_eq!(span.total(), SAMPLES as u64);
                svg::draw(&span, Look::default(), &mut std::io::sink()).expect("a picture");
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        let times: Vec<f64> = (0..PASSES)
            .map(|_| {
                let before = cpu_time();
                pass(merger, rings, u64::MAX, &mut aggregator, processes);
                (cpu_time() - before) / SAMPLES as f64
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        median(&times) * 1e6
    });
    println!(
        "the same while {} flamegraphs were drawn: {} us, {:.2} x",
        answers.into_inner(),
        figure(beside),
        beside / alone
    );
}

/// What a string costs that comes once, and again.
fn strings() {
    const STRINGS: usize = 100_000;
    let names: Vec<String> = (0..STRINGS)
        .map(|number| format!("<alloc::vec::Vec<T> as core::iter::Extend<{number:06}>>::extend"))
        .collect();
    let bytes: usize = names.iter().map(String::len).sum();
    let before = allocations::in_use();
    let mut tables = Tables::new(capture());
    let [new, known] = [(); 2].map(|()| {
        let start = cpu_time();
        for name in &names {
            tables.string(name);
        }
        (cpu_time() - start) / STRINGS as f64
    });
    assert_eq!(tables.profile().strings.len(), STRINGS + 1, "each is there once");
    println!(
        "a string of {} bytes: {} us the first time, {} us again, {} bytes of memory",
        bytes / STRINGS,
        figure(new * 1e6),
        figure(known * 1e6),
        (allocations::in_use() - before) / STRINGS
    );
}

/// What a profile of the stacks costs, and each of its outputs.
fn outputs(aggregator: &mut Aggregator, clock: &Clock, fill: &mut dyn FnMut() -> Aggregator) {
    let before = allocations::in_use();
    name(aggregator);
    println!(
        "memory of its names: {} bytes a stack",
        (allocations::in_use() - before) / STACKS
    );
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..5 {
        let mut filled = fill();
        let start = cpu_time();
        let profile = filled.take(capture(), clock);
        figures.entry("profile").or_default().push(cpu_time() - start);
        assert_eq!(profile.stacks.len(), STACKS);
        assert_eq!(
            profile.samples.iter().map(|sample| sample.count).sum::<u64>(),
            SAMPLES as u64
        );
        for (name, format) in [
            ("folded", Format::Folded),
            ("svg", Format::Svg),
            ("pprof", Format::Pprof),
            ("otlp", Format::Otlp),
        ] {
            let mut out = Vec::new();
            let start = cpu_time();
            format.write(&profile, &mut out).expect("output");
            figures.entry(name).or_default().push(cpu_time() - start);
            sizes.insert(name, out.len());
        }
        let start = cpu_time();
        let requests = encode(&profile);
        figures
            .entry("otlp requests")
            .or_default()
            .push(cpu_time() - start);
        assert!(requests > 0);
    }
    println!("of these {STACKS} stacks, with names, {SAMPLES} samples with their times:");
    for (name, times) in figures {
        let size = sizes
            .get(name)
            .map(|size| format!(", {} kB", size / 1000))
            .unwrap_or_default();
        println!("  {name:14} {} ms{size}", figure(median(&times) * 1e3));
    }
}

fn encode(profile: &Profile) -> usize {
    otlp::encode::encode(profile, &otlp::encode::Options::default()).len()
}

fn capture() -> Capture {
    Capture {
        target: "sleep".into(),
        command: String::new(),
        host: "host".into(),
        start: 1_700_000_000_000_000_000,
        duration: 10_000_000_000,
        frequency: 99,
        clock: "cpu-clock",
        lost: BTreeMap::new(),
    }
}

/// Finds every name, as the symbol thread does.
fn name(aggregator: &mut Aggregator) {
    let program = Path::new(env!("CARGO_BIN_EXE_profiler-agent"));
    let mut symbolizer = Symbolizer::start(program, true, None).unwrap();
    loop {
        let mut requests = Vec::new();
        aggregator.request_names(|request| {
            requests.push(request);
            Ok(())
        });
        if requests.is_empty() {
            return;
        }
        for request in requests {
            symbolizer.try_request(request).unwrap();
            let patience = Duration::from_secs(60);
            aggregator.name(symbolizer.recv_timeout(patience).unwrap());
        }
    }
}

/// Stacks of addresses in mapped code, each of one thread.
fn stacks(pids: &[u32], random: &mut Random) -> Vec<Stack> {
    let code: Vec<Vec<(u64, u64)>> = pids.iter().map(|&pid| executable(pid)).collect();
    (0..STACKS)
        .map(|number| {
            let thread = number % THREADS;
            let process = thread % PROCESSES;
            let mut frame = || {
                let (start, end) = code[process][random.below(code[process].len())];
                // Programs call from some hundred places, not from everywhere.
                start + random.below(((end - start) / 16).min(200) as usize) as u64 * 16
            };
            Stack {
                pid: pids[process],
                tid: 100_000 + thread as u32,
                frames: (0..FRAMES).map(|_| frame()).collect(),
            }
        })
        .collect()
}

/// Rings with samples of these stacks: first every stack once, then any.
fn rings(stacks: &[Stack], random: &mut Random) -> Vec<Memory> {
    rings_of((0..SAMPLES).map(|number| match stacks.get(number) {
        Some(stack) => stack,
        None => &stacks[random.below(STACKS)],
    }))
}

/// Rings with samples in order of time, which is the number of the sample, from 1.
fn rings_of<'a>(stacks: impl IntoIterator<Item = &'a Stack>) -> Vec<Memory> {
    let mut rings: Vec<Memory> = (0..2)
        .map(|cpu| Memory {
            cpu,
            data: Vec::new(),
            tail: 0,
        })
        .collect();
    for (stack, time) in stacks.into_iter().zip(1..) {
        record(&mut rings[stack.tid as usize % 2].data, time, stack);
    }
    rings
}

/// CPU time of this thread, seconds.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_secs_f64()
}
