//! Unwind tables of real binaries, against gimli's own answer.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may fail loudly, and reads installed programs"
)]

use std::{path::Path, time::Instant};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection as _};
use object::{Object as _, ObjectSection as _, ObjectSegment as _};
use profiler_agent::unwind::{
    cfi::{self, Section, Sections},
    table::Table,
};
use profiler_common::row::Rule;

/// The sections of a file that unwinding needs, and where its code is.
fn sections<'a>(file: &object::File<'a>) -> (Sections<'a>, std::ops::Range<u64>) {
    let range = |name| {
        file.section_by_name(name).map_or(0..0, |section| {
            section.address()..section.address() + section.size()
        })
    };
    let section = |name| {
        file.section_by_name(name)
            .map_or(Section::default(), |section| Section {
                address: section.address(),
                bytes: section.data().unwrap(),
            })
    };
    let executable = object::SegmentFlags::Elf {
        p_flags: object::elf::PF_R | object::elf::PF_X,
    };
    let code = file
        .segments()
        .filter(|segment| segment.flags() == executable)
        .map(|segment| segment.address()..segment.address() + segment.size())
        .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        .unwrap();
    let sections = Sections {
        eh_frame: section(".eh_frame"),
        debug_frame: section(".debug_frame").bytes,
        text: range(".text").start,
        got: range(".got").start,
        plt: range(".plt"),
        jumps: [range(".plt.sec"), range(".plt.got")],
    };
    (sections, code)
}

/// Installed binaries, large and small, by different compilers and linkers.
fn binaries() -> Vec<&'static str> {
    [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1",
        "/usr/bin/perl",
        "/usr/bin/xz",
        "/usr/bin/sqlite3",
        "/usr/bin/git",
        "/usr/bin/node",
        "/bin/bash",
    ]
    .into_iter()
    .filter(|path| Path::new(path).exists())
    .chain([env!("CARGO_BIN_EXE_profiler-agent")])
    .collect()
}

#[test]
fn tables_say_what_gimli_says_at_every_row() {
    let mut checked = 0;
    for path in binaries() {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(bytes.as_slice()).unwrap();
        let (sections, code) = sections(&file);
        let started = Instant::now();
        let rules = cfi::rules(&sections).unwrap();
        let table = Table::new(&rules.by_address, code.clone()).unwrap();
        let built = started.elapsed();
        assert_eq!(rules.broken, 0, "{path}");

        let eh_frame = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
        let bases = BaseAddresses::default()
            .set_eh_frame(sections.eh_frame.address)
            .set_text(sections.text);
        let mut context = UnwindContext::new();
        let mut entries = eh_frame.entries(&bases);
        let (mut rows, mut unsupported) = (0_u64, 0_u64);
        while let Some(entry) = entries.next().unwrap() {
            let CieOrFde::Fde(partial) = entry else { continue };
            let function = partial.parse(EhFrame::cie_from_offset).unwrap();
            let signal = function.is_signal_trampoline();
            let mut table_rows = function.rows(&eh_frame, &bases, &mut context).unwrap();
            while let Some(row) = table_rows.next_row().unwrap() {
                let expected = if signal {
                    Rule::Signal
                } else {
                    cfi::rule_of(row, &eh_frame)
                };
                let (start, end) = (row.start_address(), row.end_address());
                if start >= end || !code.contains(&start) {
                    continue;
                }
                for address in [start, end - 1] {
                    assert_eq!(table.rule(address), expected, "{path} at {address:#x}");
                }
                rows += 1;
                unsupported += u64::from(expected == Rule::Unsupported);
            }
        }
        assert!(rows > 100, "{path}: only {rows} rows");
        let bytes_a_row = table.len() as f64 / rows as f64;
        println!(
            "{path}: {rows} rows in {} bytes ({bytes_a_row:.2} a row, {} entries, {unsupported} unsupported), {built:?}",
            table.len(),
            table.entries.len()
        );
        assert!(
            unsupported * 1000 < rows,
            "{path}: {unsupported} of {rows} rules are not supported"
        );
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} binaries to check on");
}
