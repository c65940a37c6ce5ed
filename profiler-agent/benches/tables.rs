//! What it costs to make the unwind tables of a file, against a bare walk: gimli's entries and the rows of each, and nothing else.
//!
//! Both take the same sections, in turn, in rounds; both must have made the same number of rows. What counts is the median of the rounds'
//! own ratios, by CPU time of this thread.
//!
//! Then the whole way from the file, by a counting allocator: the most that was allocated at one time, sections and finished tables
//! included, because the agent as a whole has a ceiling.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark may fail loudly, and reads installed programs"
)]

mod support;

use std::{
    fs::File,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection as _};
use hashbrown::HashMap;
use profiler_agent::unwind::cfi::{self, FileSections, Sections, Tables};
use rustix::time::{ClockId, clock_gettime};
use support::{
    Bars,
    allocations::{self, Counting},
    figure, median,
};

const ROUNDS: usize = 15;
/// Of the table of libLLVM, the largest library of many hosts.
const LLVM_MEGABYTES: f64 = 5.5;
const RATIO: f64 = 1.3;
/// Sections, tables and what lies between, of the largest file.
const PEAK_MEGABYTES: f64 = 24.0;
/// What the agent cuts tables into.
const PIECE: usize = 1 << 20;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let mut bars = Bars::default();
    let mut largest = 0.0_f64;
    println!(
        "{:<24} {:>9} {:>10} {:>9} {:>9} {:>9} {:>6} {:>8}",
        "file", "functions", "rows", "bytes", "bare ms", "build ms", "ratio", "peak MB"
    );
    for path in files() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = File::open(&path).unwrap();
        let sections = FileSections::read(&file).unwrap();
        let sections = sections.borrow();
        let (mut bare, mut build, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut made = Tables::default();
        for _ in 0..ROUNDS {
            let (rows, bare_time) = timed(|| walk(&sections));
            let (tables, build_time) = timed(|| cfi::tables(&sections, 0..0, PIECE).unwrap());
            assert_eq!(
                (tables.rows, tables.broken),
                (rows, 0),
                "{name}: all rows that gimli makes"
            );
            bare.push(bare_time * 1e3);
            build.push(build_time * 1e3);
            ratios.push(build_time / bare_time);
            made = tables;
        }
        assert!(made.rows > 1000, "{name}: only {} rows", made.rows);
        let bytes: usize = made.pieces.iter().map(|(_, table)| table.block_len()).sum();
        let (functions, rows) = (made.functions, made.rows);
        drop(made);

        let before = allocations::in_use();
        allocations::take_most();
        let read = FileSections::read(&file).unwrap();
        let tables = cfi::tables(&read.borrow(), 0..0, PIECE).unwrap();
        drop(black_box((read, tables)));
        let peak = (allocations::take_most() - before) as f64 / 1e6;
        largest = largest.max(peak);

        println!(
            "{name:<24} {functions:>9} {rows:>10} {bytes:>9} {:>9} {:>9} {:>6} {:>8}",
            figure(median(&bare)),
            figure(median(&build)),
            figure(median(&ratios)),
            figure(peak),
        );
        bars.at_most(
            &format!("tables of {name} / bare walk of its rows"),
            median(&ratios),
            RATIO,
            "x",
        );
        if name.starts_with("libLLVM") {
            bars.at_most(
                &format!("tables of {name}"),
                bytes as f64 / 1e6,
                LLVM_MEGABYTES,
                "MB",
            );
        }
    }
    assert!(largest > 0.0, "no file to measure on");
    bars.at_most(
        "most memory while tables of a file are built",
        largest,
        PEAK_MEGABYTES,
        "MB",
    );
    bars.code()
}

/// A small one and the largest that are installed: the C library, libLLVM, node, the Rust compiler.
fn files() -> Vec<PathBuf> {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .expect("rustc");
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim());
    let named = |folder: &Path, prefix: &str| {
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(prefix) && name.contains(".so") && !path.is_symlink()
            })
            .collect();
        found.sort();
        found.pop()
    };
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    [
        Some(libraries.join("libc.so.6")),
        named(libraries, "libLLVM"),
        Some(PathBuf::from("/usr/bin/node")),
        named(&sysroot.join("lib"), "librustc_driver"),
    ]
    .into_iter()
    .flatten()
    .filter(|path| path.exists())
    .collect()
}

/// All rows of gimli's; how many they are.
fn walk(sections: &Sections<'_>) -> usize {
    let mut eh_frame = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
    eh_frame.set_address_size(8);
    let bases = BaseAddresses::default()
        .set_eh_frame(sections.eh_frame.address)
        .set_text(sections.text)
        .set_got(sections.got);
    let mut context = UnwindContext::new();
    let mut common = HashMap::new();
    let mut entries = eh_frame.entries(&bases);
    let mut count = 0;
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let function = partial
            .parse(|section, bases, offset| {
                if let Some(cie) = common.get(&offset) {
                    return Ok(Clone::clone(cie));
                }
                let cie = section.cie_from_offset(bases, offset)?;
                common.insert(offset, cie.clone());
                Ok(cie)
            })
            .unwrap();
        if function.len() == 0 {
            continue;
        }
        let mut rows = function.rows(&eh_frame, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            black_box(row.start_address());
            count += 1;
        }
    }
    count
}

/// What it gives, and the CPU seconds of this thread that it takes.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = cpu_time();
    let result = work();
    (result, cpu_time() - before)
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
