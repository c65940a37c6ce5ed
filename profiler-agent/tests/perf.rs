//! The unwinder on samples that perf has taken: the same registers and the same copy of the stack that perf unwinds itself, by the same steps
//! and tables that the kernel programs go by.
//!
//! Part of `cargo xtask prove equality`, which makes the samples and compares.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail loudly, and reads installed programs"
)]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use linux_perf_data::{
    PerfFileReader, PerfFileRecord,
    linux_perf_event_reader::{EventRecord, Mmap2Record, SampleRecord},
};
use object::{Object as _, ObjectSegment as _};
use profiler_agent::unwind::{
    cfi::{self, FileSections},
    walk::{Walked, Way, walk},
};
use profiler_common::{
    arch::{REGISTERS, Registers},
    record::{BY_FRAME_POINTER, INTERRUPTED, Unfinished, copy_start},
    row::Rule,
    unwind::Origin,
};

/// Pieces of tables, as the agent makes them.
const PIECE: usize = 1 << 20;

/// perf's numbers of the registers, by DWARF's (`PERF_REG_X86_AX` and so on).
const PERF_REGISTERS: [u64; REGISTERS] = [0, 3, 2, 1, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const PERF_IP: u64 = 8;

/// Executable code of a process.
#[derive(Clone)]
struct Mapping {
    end: u64,
    offset: u64,
    path: String,
}

type Mappings = BTreeMap<u64, Mapping>;

/// A file's tables, and where its bytes are loaded: file offsets, and the address of the first one.
struct Image {
    tables: cfi::Tables,
    segments: Vec<(std::ops::Range<u64>, u64)>,
}

impl Image {
    fn read(path: &str) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let file = object::File::parse(bytes.as_slice()).ok()?;
        let segments = file.segments().map(|segment| {
            let (offset, len) = segment.file_range();
            (offset..offset + len, segment.address())
        });
        let segments = segments.collect();
        let sections = FileSections::read(&File::open(path).ok()?).ok()?;
        Some(Self {
            tables: cfi::tables(&sections.borrow(), 0..0, PIECE).ok()?,
            segments,
        })
    }

    fn rule(&self, offset: u64) -> Rule {
        let segment = self.segments.iter().find(|(range, _)| range.contains(&offset));
        segment.map_or(Rule::None, |(range, address)| {
            self.tables.rule(offset - range.start + address)
        })
    }
}

#[derive(Default)]
struct Host {
    processes: HashMap<i32, Mappings>,
    images: HashMap<String, Option<Image>>,
}

impl Host {
    fn map(&mut self, record: &Mmap2Record<'_>) {
        let mappings = self.processes.entry(record.pid).or_default();
        let (start, end) = (record.address, record.address + record.length);
        mappings.retain(|&at, old| at >= end || old.end <= start);
        mappings.insert(
            start,
            Mapping {
                end,
                offset: record.page_offset,
                path: String::from_utf8_lossy(&record.path.as_slice()).into_owned(),
            },
        );
    }

    /// A sample as `perf script -F pid,tid,time,ip,dso` writes it, with the outcome in its first line.
    fn unwind(&mut self, sample: &SampleRecord<'_>) -> Option<String> {
        let (pid, tid, time) = (sample.pid?, sample.tid?, sample.timestamp?);
        let registers = sample.user_regs.as_ref()?;
        let (stack, size) = sample.user_stack.as_ref()?;
        let leaf = PERF_REGISTERS.map(|number| registers.get(number).unwrap_or_default());
        let sp = leaf[7];
        let mut copy = vec![0; usize::try_from(sp - copy_start(sp)).unwrap()];
        let stack = stack.as_slice();
        copy.extend_from_slice(stack.get(..usize::try_from(*size).ok()?).unwrap_or(&stack));
        copy.truncate(copy.len() / 8 * 8);
        let state = Unfinished {
            registers: Registers {
                ip: registers.get(PERF_IP)?,
                sp,
                bp: leaf[6],
                bx: leaf[3],
            },
            origin: Origin::INNERMOST.bits(),
            copied: u32::try_from(copy.len()).ok()?,
            holes: 0,
            reserved: 0,
            leaf,
        };
        let Self { processes, images } = self;
        let none = Mappings::new();
        let mappings = processes.get(&pid).unwrap_or(&none);
        let find = |address: u64| {
            let (start, mapping) = mappings.range(..=address).next_back()?;
            (address < mapping.end).then(|| (mapping, address - start + mapping.offset))
        };
        let mut frames = Vec::new();
        let walked = walk(&state, &copy, &mut frames, |address| {
            let Some((mapping, offset)) = find(address) else {
                return Way::Nowhere;
            };
            let image = images
                .entry(mapping.path.clone())
                .or_insert_with(|| Image::read(&mapping.path));
            match image.as_ref().map(|image| image.rule(offset)) {
                None | Some(Rule::None) => Way::Untold,
                Some(Rule::FramePointer) => Way::FramePointer,
                Some(rule) => Way::Table(rule),
            }
        });
        let (Walked::To(outcome) | Walked::Astray(outcome)) = walked else {
            panic!("{walked:?}");
        };
        let mut text = format!(
            "{pid}/{tid} {}.{:09}: {outcome:?}\n",
            time / 1_000_000_000,
            time % 1_000_000_000
        );
        for frame in frames {
            let address = frame & !(BY_FRAME_POINTER | INTERRUPTED);
            let address = address - u64::from(frame & INTERRUPTED == 0);
            let (path, offset) = find(address).map_or(("[unknown]", address), |(mapping, offset)| {
                (mapping.path.as_str(), offset)
            });
            writeln!(text, "\t{offset:x} ({path})").unwrap();
        }
        text.push('\n');
        Some(text)
    }
}

#[test]
#[ignore = "part of `cargo xtask prove equality`, which makes what it needs"]
fn perfs_samples_are_unwound() {
    let data = std::env::var_os("PROFILER_PROVE_PERF").unwrap();
    let output = std::env::var_os("PROFILER_PROVE_CHAINS").unwrap();
    let mut reader = PerfFileReader::parse_file(BufReader::new(File::open(data).unwrap())).unwrap();
    let mut host = Host::default();
    let mut text = String::new();
    let PerfFileReader {
        perf_file,
        record_iter,
    } = &mut reader;
    while let Some(record) = record_iter.next_record(perf_file).unwrap() {
        let PerfFileRecord::EventRecord { record, .. } = record else {
            continue;
        };
        match record.parse().unwrap() {
            EventRecord::Mmap2(record) => host.map(&record),
            EventRecord::Fork(record) if record.pid != record.ppid => {
                let mappings = host.processes.get(&record.ppid).cloned().unwrap_or_default();
                host.processes.insert(record.pid, mappings);
            }
            EventRecord::Comm(record) if record.is_execve => {
                host.processes.remove(&record.pid);
            }
            EventRecord::Sample(sample) => text.extend(host.unwind(&sample)),
            _ => {}
        }
    }
    fs::write(Path::new(&output), text).unwrap();
}
