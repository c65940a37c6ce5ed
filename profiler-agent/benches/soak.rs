//! Does memory stay what it is? Slice after slice without a pause, as fast as they can be made: 100,000 distinct stacks in each, of 2,000
//! processes that really run, nearly no stack the same as in any slice before. Each goes the whole way: rings, aggregation, profile, history,
//! encoding, compression, a spool that nobody empties.
//!
//! At an interval of 10 s each slice stands for 10 s: 4,320 are 12 hours. How many there were is told. `PROFILER_SOAK_SECONDS` says for how
//! long, 60 by default; `cargo xtask prove soak` takes ten minutes. Names are not part of it: those addresses have none.
//!
//! Resident memory is read after every slice. Compared are the second quarter and the last, median with median and most with most: from slice to
//! slice it goes up and down by 7 %, as blocks of the history are forgotten and tables are cut back. Locations are kept for 60 slices, so this says
//! something only of runs of some 250 slices and more: in a shorter one, tables that fill look like memory that grows.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
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
    collections::{BTreeMap, HashMap},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use profiler_agent::{
    aggregate::{Aggregator, Limits},
    clock::Clock,
    export::otlp::{
        encode::{self, encode},
        parcel::{Compression, Parcel},
    },
    history::{self, History},
    process::Processes,
    procfs,
    profile::Capture,
    sampling::merge::Merger,
    spool::{self, Spool},
};
use support::{
    Bars, Running, figure, median,
    ring::{Memory, Random, Stack, executable, pass, record},
};

const PROCESSES: usize = 2000;
const STACKS: usize = 100_000;
/// Taken in at one time, as rings would be.
const AT_ONCE: usize = 2000;
const FRAMES: usize = 33;
const SPOOL: u64 = 64 << 20;
/// The last quarter by the second.
const GROWTH: f64 = 1.05;

fn main() -> ExitCode {
    let seconds = std::env::var("PROFILER_SOAK_SECONDS").map_or(60, |text| text.parse().expect("seconds"));
    let running: Vec<Running> = (0..PROCESSES)
        .map(|_| Running::start_now(Command::new("sleep").arg((seconds + 600).to_string())))
        .collect();
    // Until the last of them runs its program.
    std::thread::sleep(Duration::from_secs(1));
    let pids: Vec<u32> = running.iter().map(Running::pid).collect();
    // All are one program, but each has its own addresses.
    let code: HashMap<u32, Vec<(u64, u64)>> = pids.iter().map(|&pid| (pid, executable(pid))).collect();
    let mut processes = Processes::new(Some(&pids));
    processes.scan();

    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = Spool::open(&spool::Options {
        folder: folder.path().to_owned(),
        limit: SPOOL,
    })
    .expect("spool");
    let mut history = History::new(history::Limits::default());
    let clock = Clock::now();
    let mut aggregator = Aggregator::new(Limits::default(), clock);
    let mut merger = Merger::default();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut time, mut slices, mut taken, mut spooled) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut resident: Vec<f64> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        for first in (0..STACKS).step_by(AT_ONCE) {
            let mut ring = Memory {
                cpu: 0,
                data: Vec::new(),
                tail: 0,
            };
            for number in first..first + AT_ONCE {
                time += 1;
                record(
                    &mut ring.data,
                    time,
                    &stack(pids[number % PROCESSES], &code, &mut random),
                );
            }
            let rings = &mut [ring];
            pass(&mut merger, rings, u64::MAX, &mut aggregator, &mut processes);
        }
        aggregator.close();
        let profile = aggregator.take(capture(slices), &clock);
        assert_eq!(profile.sample_count(), STACKS as u64);
        assert_eq!(profile.processes.len(), PROCESSES);
        // Markers of a budget may stand for some.
        assert!(
            profile.stacks.len() > STACKS / 2,
            "{} stacks",
            profile.stacks.len()
        );
        history.push(&profile);
        taken += profile.sample_count();
        for request in encode(&profile, &encode::Options::default()) {
            assert!(request.bytes.len() <= encode::DEFAULT_LIMIT);
            let parcel = Parcel::pack(&request, Compression::Gzip);
            spooled += parcel.events;
            spool.push(&parcel, None).expect("the disk takes it");
        }
        slices += 1;
        resident.push(resident_megabytes());
    }
    assert_eq!(taken, spooled, "every sample is in a request");
    assert!(spool.bytes() <= SPOOL && history.bytes() <= history::Limits::default().bytes);
    assert!(
        resident.len() >= 8,
        "only {} slices; give it more time",
        resident.len()
    );
    let quarter = resident.len() / 4;
    let quarters: [&[f64]; 4] = std::array::from_fn(|at| &resident[at * quarter..(at + 1) * quarter]);
    let medians = quarters.map(median);
    let most = quarters.map(|quarter| quarter.iter().copied().fold(0.0, f64::max));
    println!(
        "{slices} slices of {STACKS} distinct stacks of {PROCESSES} processes in {seconds} s: {} of 12 h; {} MB resident after the first; by quarters, median: {}; most: {}",
        figure(slices as f64 / 4320.0),
        figure(resident[0]),
        medians.map(figure).join(", "),
        most.map(figure).join(", ")
    );
    let mut bars = Bars::default();
    for (what, of_quarters) in [("median", medians), ("most", most)] {
        bars.at_most(
            &format!("resident memory, {what} of the last quarter / of the second, 100,000 stacks a slice"),
            of_quarters[3] / of_quarters[1],
            GROWTH,
            "x",
        );
    }
    bars.code()
}

fn stack(pid: u32, code: &HashMap<u32, Vec<(u64, u64)>>, random: &mut Random) -> Stack {
    let code = &code[&pid];
    let mut frame = || {
        let (start, end) = code[random.below(code.len())];
        start + random.below(((end - start) / 16).min(200) as usize) as u64 * 16
    };
    Stack {
        pid,
        tid: pid,
        frames: (0..FRAMES).map(|_| frame()).collect(),
    }
}

fn resident_megabytes() -> f64 {
    let resident = procfs::status(std::process::id(), "VmRSS").expect("VmRSS");
    let kilobytes: f64 = resident.trim_end_matches(" kB").trim().parse().expect("number");
    kilobytes / 1000.0
}

fn capture(slice: u64) -> Capture {
    Capture {
        target: "sleep".into(),
        command: String::new(),
        host: "host".into(),
        start: 1_700_000_000_000_000_000 + slice * 10_000_000_000,
        duration: 10_000_000_000,
        frequency: 99,
        clock: "cpu-clock",
        lost: BTreeMap::new(),
    }
}
