//! Samples as they come from the rings, without a kernel that takes them: in plain memory, of processes that really run.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "a benchmark may fail loudly"
)]

use profiler_common::record::HEADER_LEN;

use profiler_agent::{
    aggregate::Aggregator,
    process::Processes,
    procfs,
    sampling::{
        merge::{Buffer, Merger, Window},
        record::{Layout, Record},
    },
};

/// The ring of a CPU, in plain memory, full of samples.
pub(crate) struct Memory {
    pub(crate) cpu: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) tail: u64,
}

impl Buffer for Memory {
    fn cpu(&self) -> u32 {
        self.cpu
    }

    fn layout(&self) -> Layout {
        Layout::Samples
    }

    fn head(&self) -> u64 {
        self.data.len() as u64
    }

    fn tail(&self) -> u64 {
        self.tail
    }

    fn window(&self, from: u64, to: u64) -> Window<'_> {
        Window {
            first: &self.data[from as usize..to as usize],
            second: &[],
        }
    }

    fn release(&mut self, tail: u64) -> bool {
        self.tail = tail;
        false
    }
}

/// A stack, and whose it is.
pub(crate) struct Stack {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) frames: Vec<u64>,
}

/// All records up to a time through all stages; the rings are as full as before then.
pub(crate) fn pass(
    merger: &mut Merger,
    rings: &mut [Memory],
    until: u64,
    aggregator: &mut Aggregator,
    processes: &mut Processes,
) {
    merger.drain(rings, until, |event| match event.record {
        Record::Sample(sample) => {
            let process = std::sync::Arc::clone(processes.find(sample.pid));
            aggregator.add(&sample, event.cpu, event.time, &process, processes);
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(merger.take_torn(), 0);
    for ring in rings {
        ring.tail = 0;
    }
}

/// Executable mappings of files.
pub(crate) fn executable(pid: u32) -> Vec<(u64, u64)> {
    let maps = procfs::read(format!("/proc/{pid}/maps"), 1 << 20).expect("maps");
    let maps = String::from_utf8(maps).expect("text");
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.contains(" r-xp ") && line.contains(" /"))
        .map(|line| {
            let (range, _) = line.split_once(' ').expect("range");
            let (start, end) = range.split_once('-').expect("range");
            (
                u64::from_str_radix(start, 16).expect("address"),
                u64::from_str_radix(end, 16).expect("address"),
            )
        })
        .collect();
    assert!(ranges.len() >= 3, "the program, libc and its loader: {maps}");
    ranges
}

/// A record as it is in a BPF ring buffer, with what the agent's program writes.
pub(crate) fn record(out: &mut Vec<u8>, time: u64, stack: &Stack) {
    let start = out.len();
    let length = HEADER_LEN + stack.frames.len() * 8;
    out.extend((length as u32).to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    out.extend([0, 0]);
    out.extend(0_u16.to_ne_bytes());
    out.extend((stack.frames.len() as u16).to_ne_bytes());
    out.extend(0_u16.to_ne_bytes());
    out.extend(stack.pid.to_ne_bytes());
    out.extend(stack.tid.to_ne_bytes());
    out.extend(time.to_ne_bytes());
    out.extend(10_101_010_u64.to_ne_bytes());
    out.extend(*b"worker\0\0\0\0\0\0\0\0\0\0");
    for frame in &stack.frames {
        out.extend(frame.to_ne_bytes());
    }
    assert_eq!(out.len() - start, 8 + length);
}

/// xorshift64*: the same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
