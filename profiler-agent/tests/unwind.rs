//! Unwind tables of real binaries, against gimli's own answer.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may fail loudly, and reads installed programs"
)]

use std::{path::Path, time::Instant};

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection as _};
use object::{Object as _, ObjectSection as _, ObjectSegment as _};
use profiler_agent::unwind::cfi::{self, FileSections, Section, Sections};
use profiler_common::row::{Base, Rule, SavedBp, SavedBx};

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
        entry: file.entry(),
        ..Sections::default()
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

/// What the agent cuts tables into, and a size that makes many of them.
const PIECES: [usize; 2] = [1 << 20, 64 << 10];

#[test]
fn tables_say_what_gimli_says_at_every_row_and_nothing_between_functions() {
    let mut checked = 0;
    for path in binaries() {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(bytes.as_slice()).unwrap();
        let (sections, code) = sections(&file);
        let read = FileSections::read(&std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(
            read.borrow().eh_frame.bytes,
            sections.eh_frame.bytes,
            "{path}: the same section by another reader"
        );
        let started = Instant::now();
        let tables = cfi::tables(&sections, code.clone(), PIECES[0]).unwrap();
        let built = started.elapsed();
        assert_eq!(tables.broken, 0, "{path}");
        let smaller = cfi::tables(&sections, code.clone(), PIECES[1]).unwrap();
        let pieces = smaller.pieces.len();

        let eh_frame = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
        let bases = BaseAddresses::default()
            .set_eh_frame(sections.eh_frame.address)
            .set_text(sections.text);
        let mut context = UnwindContext::new();
        let mut entries = eh_frame.entries(&bases);
        let (mut rows, mut unsupported) = (0_u64, 0_u64);
        let mut covered = vec![sections.plt.clone()];
        covered.extend(sections.jumps.clone());
        while let Some(entry) = entries.next().unwrap() {
            let CieOrFde::Fde(partial) = entry else { continue };
            let function = partial.parse(EhFrame::cie_from_offset).unwrap();
            covered.push(function.initial_address()..function.end_address());
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
                    assert_eq!(tables.rule(address), expected, "{path} at {address:#x}");
                    assert_eq!(smaller.rule(address), expected, "{path} at {address:#x}");
                }
                rows += 1;
                unsupported += u64::from(expected == Rule::Unsupported);
            }
        }
        let mut gaps = 0;
        covered.sort_by_key(|range| range.start);
        let mut behind = code.start;
        for range in covered.into_iter().filter(|range| !range.is_empty()) {
            let gap = behind..range.start.min(code.end);
            for address in [gap.start, gap.start.midpoint(gap.end), gap.end.saturating_sub(1)] {
                if gap.contains(&address) {
                    // The dynamic linker does not say that threads begin where it is entered.
                    let entered = gap.contains(&sections.entry)
                        && (sections.entry..sections.entry + 64).contains(&address);
                    let expected = if entered { Rule::End } else { Rule::None };
                    assert_eq!(tables.rule(address), expected, "{path} at {address:#x}");
                    assert_eq!(smaller.rule(address), expected, "{path} at {address:#x}");
                    gaps += 1;
                }
            }
            behind = behind.max(range.end);
        }
        assert!(rows > 100, "{path}: only {rows} rows");
        let bytes: usize = tables.pieces.iter().map(|(_, table)| table.len()).sum();
        let entries: usize = tables.pieces.iter().map(|(_, table)| table.entries.len()).sum();
        println!(
            "{path}: {rows} rows in {bytes} bytes ({:.2} a row, {entries} entries, {unsupported} unsupported), {gaps} addresses between \
             functions, {pieces} small pieces, {built:?}",
            bytes as f64 / rows as f64,
        );
        assert!(
            unsupported * 1000 < rows,
            "{path}: {unsupported} of {rows} rules are not supported"
        );
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} binaries to check on");
}

/// What begins every function's frame, and what is in force after so many further bytes were pushed.
fn pushed(bytes: i32) -> Rule {
    Rule::Cfa {
        base: Base::Sp,
        offset: 8 + bytes,
        bp: SavedBp::Same,
        bx: SavedBx::Same,
    }
}

/// Nothing is said of these in any section.
#[test]
fn functions_that_the_c_compiler_adds_are_known() {
    let mut checked = 0;
    for path in binaries().into_iter().filter(|path| path.starts_with('/')) {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(bytes.as_slice()).unwrap();
        let read = FileSections::read(&std::fs::File::open(path).unwrap()).unwrap();
        let tables = cfi::tables(&read.borrow(), sections(&file).1, PIECES[0]).unwrap();
        for name in [".init", ".fini"] {
            let Some(section) = file.section_by_name(name) else {
                continue;
            };
            let code = section.data().unwrap();
            let endbr = if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) {
                4
            } else {
                0
            };
            if !code[endbr..].starts_with(&[0x48, 0x83, 0xec, 8]) {
                continue; // by another compiler
            }
            let body = section.address() + endbr as u64;
            let end = section.address() + code.len() as u64;
            assert_eq!(tables.rule(body), pushed(0), "{path} {name}");
            assert_eq!(tables.rule(body + 4), pushed(8), "{path} {name}");
            assert_eq!(tables.rule(end - 2), pushed(8), "{path} {name}");
            assert_eq!(tables.rule(end - 1), pushed(0), "{path} {name}: its return");
            checked += 1;
        }
        // mov eax, 435; syscall; test rax, rax
        let clone3 = [0xb8, 0xb3, 0x01, 0, 0, 0x0f, 0x05, 0x48, 0x85, 0xc0];
        if path.ends_with("/libc.so.6") {
            let text = file.section_by_name(".text").unwrap();
            let found = text
                .data()
                .unwrap()
                .windows(clone3.len())
                .position(|bytes| bytes == clone3);
            let call = text.address() + found.unwrap() as u64 + 5;
            assert!(
                (call..call + 10).all(|address| tables.rule(address) == pushed(0)),
                "{call:#x}"
            );
            checked += 1;
        }
        // The first of these is `__do_global_dtors_aux`, or a function that is described.
        let Some(last) = file.section_by_name(".fini_array") else {
            continue;
        };
        let last = u64::from_le_bytes(*last.data().unwrap().first_chunk().unwrap());
        if last != 0 {
            assert_eq!(tables.rule(last), pushed(0), "{path}: {last:#x}");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} functions");
}
