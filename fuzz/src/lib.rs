//! What each fuzz target does with its bytes. Also run by `profiler-agent/tests/fuzz.rs`, over the inputs that once failed.

use std::{fs::File, hint::black_box, ops::Range, os::unix::fs::FileExt as _};

use profiler_agent::{
    clock::Clock,
    export::file::Format as Output,
    export::text::is_plain,
    history, http,
    jit::{Code, Follower, Format},
    process, read,
    sampling::record::{Layout, Record},
    spool::segment,
    symbols::{self, Kallsyms, Parts, Pclntab},
    unwind::cfi::{self, FileSections, Section, Sections},
};
use profiler_common::{
    arch::Registers,
    arena::{self, Pages, Segment},
    row::{Packed, Row, Rule},
    unwind::{self, Frame, Thread},
};

/// A target, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("cfi", cfi),
    ("copy", copy),
    ("elf", elf),
    ("gopclntab", gopclntab),
    ("identity", identity),
    ("jitdump", jitdump),
    ("kallsyms", kallsyms),
    ("maps", maps),
    ("message", message),
    ("perf_map", perf_map),
    ("profile", profile),
    ("question", question),
    ("record", record),
    ("segment", segment),
    ("step", step),
];

/// Code that tables are made for.
const CODE: Range<u64> = 0x1000..0x40_1000;

/// Bytes as call frame information. What our reader makes of it is what gimli makes of it.
pub fn cfi(bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    let (debug, whole) = (choice & 1 != 0, choice & 2 != 0);
    let sections = Sections {
        eh_frame: Section {
            address: 0x2000,
            bytes: if debug { &[] } else { bytes },
        },
        debug_frame: if debug { bytes } else { &[] },
        text: 0x1000,
        got: 0x3000,
        plt: 0x1000..0x1040,
        jumps: [0x1040..0x1080, 0..0],
        entry: 0,
        ..Sections::default()
    };
    let code = if whole { 0..0 } else { CODE };
    let Ok(tables) = cfi::tables(&sections, code, 1 << 16) else {
        return;
    };
    let mut behind = None;
    for (range, table) in &tables.pieces {
        assert!(range.start < range.end && behind.is_none_or(|end| end == range.start));
        behind = Some(range.end);
        assert!(table.index.is_sorted());
        assert_eq!(
            table.index.last().map(|&last| last as usize),
            Some(table.rows.len())
        );
        let block = table.block();
        assert_eq!(block.len(), table.block_len());
        // As the kernel side finds it.
        let segment = Bytes(&block);
        let step = ((range.end - range.start) / 512).max(1);
        for address in range.clone().step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let bits = arena::find_row(&segment, 0, Pages::read(&segment, 0), address);
            let rule = match Rule::unpack(bits) {
                Packed::Rule(rule) => rule,
                Packed::Entry(number) => Rule::of_entry(arena::entry(&segment, 0, number)),
            };
            assert_eq!(rule, table.rule(address), "{address:#x}");
        }
    }
    if !debug && tables.functions == 1 && tables.broken == 0 {
        compare(&sections, &tables);
    }
}

/// A single function, row by row: then nothing overlaps.
fn compare(sections: &Sections<'_>, tables: &cfi::Tables) {
    use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection as _};
    let mut eh_frame = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
    eh_frame.set_address_size(8);
    let bases = BaseAddresses::default()
        .set_eh_frame(sections.eh_frame.address)
        .set_text(sections.text)
        .set_got(sections.got);
    let mut entries = eh_frame.entries(&bases);
    let mut context = UnwindContext::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(function) = partial.parse(EhFrame::cie_from_offset) else {
            return;
        };
        let range = function.initial_address()..function.end_address();
        let Ok(mut rows) = function.rows(&eh_frame, &bases, &mut context) else {
            return;
        };
        while let Ok(Some(row)) = rows.next_row() {
            let address = row.start_address();
            let is_code = tables.pieces.iter().any(|(piece, _)| piece.contains(&address));
            if address >= row.end_address() || !range.contains(&address) || !is_code {
                continue;
            }
            let expected = if function.is_signal_trampoline() {
                Rule::Signal
            } else {
                cfi::rule_of(row, &eh_frame)
            };
            assert_eq!(tables.rule(address), expected, "{address:#x}");
        }
    }
}

/// Bytes as a file whose symbols are asked for: its copy holds nothing else, and is no longer.
pub fn copy(bytes: &[u8]) {
    let Some(file) = file("copy", bytes) else { return };
    for parts in [Parts::Facts, Parts::Symbols, Parts::Names { most: 1 << 12 }] {
        let Ok(copy) = symbols::copy(&file, parts) else {
            continue;
        };
        let mut copied = vec![0; bytes.len()];
        let len = copy.file.metadata().map_or(0, |metadata| metadata.len());
        assert!(len <= bytes.len() as u64);
        copied.truncate(usize::try_from(len).unwrap_or_default());
        assert!(copy.file.read_exact_at(&mut copied, 0).is_ok());
        assert!(copied.get(..64) == bytes.get(..64));
        assert!(copy.file.write_all_at(b"x", 0).is_err() && copy.file.set_len(0).is_err());
    }
}

/// Bytes as what /proc/kallsyms says.
pub fn kallsyms(bytes: &[u8]) {
    let Ok(table) = Kallsyms::read(bytes) else { return };
    for address in [0, 0xffff_ffff_8100_0000, u64::MAX] {
        if let Some((full, bare)) = table.name(address) {
            assert!(full.starts_with(bare));
        }
    }
}

/// Bytes as a message, either way: what is taken fits what was asked, and names are short.
pub fn message(bytes: &[u8]) {
    let asked = [0x1000, 0x2000, u64::MAX];
    if let Ok(Some(response)) = symbols::check_answer(bytes, 7, &asked) {
        assert!(response.id == 7 && (1..=asked.len()).contains(&response.symbols.len()));
        for (symbols, address) in response.symbols.iter().zip(asked) {
            assert_eq!(symbols.address, address);
            assert!(symbols.functions.len() < 1000);
            assert!(
                symbols
                    .functions
                    .iter()
                    .all(|function| function.name.len() <= 4096)
            );
        }
    }
    for files in [0, 3] {
        assert!(symbols::check_question(bytes, files).unwrap_or_default() <= 512);
    }
}

/// Bytes as a file.
pub fn elf(bytes: &[u8]) {
    let Some(file) = file("elf", bytes) else { return };
    if let Ok(sections) = FileSections::read(&file) {
        let _ = black_box(cfi::tables(&sections.borrow(), 0..0, 1 << 16));
    }
}

/// Bytes as a file that a process has mapped: which one is it, and where may the rest of its names be?
pub fn identity(bytes: &[u8]) {
    let Some(file) = file("identity", bytes) else {
        return;
    };
    if let Some((segments, build_id, go_build_id)) = process::identify(&file) {
        assert!(segments.iter().all(|segment| segment.start < segment.limit));
        assert!(build_id.len() <= bytes.len() && go_build_id.len() <= bytes.len());
    }
    if let Ok(len) = symbols::check_image(&file) {
        assert!(len <= bytes.len());
    }
}

/// Bytes as a file.
fn file(name: &str, bytes: &[u8]) -> Option<File> {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).ok()?);
    file.write_all_at(bytes, 0).ok()?;
    Some(file)
}

/// Bytes as Go's table of functions.
pub fn gopclntab(bytes: &[u8]) {
    let Some(file) = file("gopclntab", bytes) else {
        return;
    };
    let Some(table) = Pclntab::parse(&file, (0, bytes.len() as u64), CODE.start) else {
        return;
    };
    for address in CODE.step_by(0x1_0003).chain([0, u64::MAX, CODE.start]) {
        if let Some(position) = table.position(&file, address) {
            assert!(!position.name.is_empty() && position.name.len() <= 8192 && position.file.len() <= 8192);
        }
    }
}

/// Bytes as /proc/PID/maps.
pub fn maps(bytes: &[u8]) {
    for mapping in process::executable(bytes) {
        black_box(format!("{mapping:?}"));
    }
}

/// Bytes as a perf map.
pub fn perf_map(bytes: &[u8]) {
    follow(bytes, Format::PerfMap);
}

/// Bytes as a jitdump.
pub fn jitdump(bytes: &[u8]) {
    follow(bytes, Format::Dump);
}

/// Reads a file at once, and another time as it grows: the same comes of it.
fn follow(bytes: &[u8], format: Format) {
    const LIMIT: usize = 1 << 20;
    let clock = Clock::now();
    let pieces: Vec<Vec<(u64, u64, String)>> = [
        &[bytes.len()][..],
        &[bytes.len() / 3, bytes.len() / 2, bytes.len()],
    ]
    .into_iter()
    .filter_map(|lengths| {
        let file = file("jit", &[])?;
        let mut follower = Follower::new(file.try_clone().ok()?, format);
        let mut code = Code::default();
        code.limit(LIMIT);
        for (time, &len) in (1..).zip(lengths) {
            file.write_all_at(bytes.get(..len)?, 0).ok()?;
            for _ in 0..2 {
                let mut left = 4 << 20;
                follower.read(&mut code, &mut left, time, &clock);
            }
        }
        assert!(code.bytes() <= LIMIT, "{}", code.bytes());
        let pieces = code
            .pieces()
            .map(|(start, end, name)| (start, end, name.to_owned()));
        Some(pieces.collect())
    })
    .collect();
    for pieces in &pieces {
        let mut behind = 0;
        for (start, end, name) in pieces {
            assert!(behind <= *start && start < end && !name.is_empty());
            behind = *end;
        }
    }
    assert_eq!(pieces.first(), pieces.last());
}

/// Bytes as a file of a profile: what is read can be written, and read again to the same sum.
pub fn profile(bytes: &[u8]) {
    let options = read::Options {
        limit: 1 << 20,
        ..read::Options::default()
    };
    let Ok(profile) = read::bytes(bytes, &options) else {
        return;
    };
    let total = profile.sample_count();
    assert!(total > 0);
    let report = profiler_agent::report::Report {
        profile: &profile,
        rows: 3,
        columns: 80,
    };
    black_box(report.to_string());
    for format in [Output::Folded, Output::Pprof, Output::Otlp, Output::Speedscope] {
        let mut out = Vec::new();
        assert!(format.write(&profile, &mut out).is_ok(), "{format:?}");
        let Ok(again) = read::bytes(&out, &read::Options::default()) else {
            panic!("{format:?} is not read again");
        };
        // Numbers of speedscope's have a fraction instead of a unit.
        if format != Output::Speedscope {
            assert_eq!(again.sample_count(), total, "{format:?}");
        }
    }
}

/// Bytes as the parameters of a question: what is read can be asked of a history, and what is wrong is told in a line.
pub fn question(bytes: &[u8]) {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    match http::Question::parse(&String::from_utf8_lossy(bytes), now, now) {
        Ok(question) => {
            if let Some(range) = &question.query.range {
                assert!(!range.is_empty());
            }
            if let Some((before, after)) = &question.compared {
                assert!(!before.is_empty() && !after.is_empty());
            }
            let history = history::History::new(history::Limits::default());
            assert!(history.profile(&question.query).samples.is_empty());
            assert!(history.timeline(&question.query, 10, 3).processes.is_empty());
        }
        Err(wrong) => {
            assert!(!wrong.0.is_empty() && wrong.0.len() < 2000);
            assert!(wrong.0.chars().all(is_plain), "it is shown in terminals");
        }
    }
}

/// Bytes as what lies in a ring.
pub fn record(bytes: &[u8]) {
    for layout in [Layout::Events, Layout::Samples] {
        let Ok(len) = layout.length(bytes) else { continue };
        let _ = black_box(layout.time_offset(len));
        let whole = bytes.get(..len).unwrap_or(bytes);
        if let Ok((_, record)) = layout.parse(whole) {
            if let Record::Sample(sample) = record {
                assert!(sample.user.iter().count() == sample.user.len());
                assert!(sample.kernel.iter().count() == sample.kernel.len());
            }
            black_box(format!("{record:?}"));
        }
        let _ = black_box(layout.parse(bytes));
    }
}

/// Bytes as registers, rules and the memory of a thread, and as a segment of the arena.
pub fn step(bytes: &[u8]) {
    let word = |at: usize| Bytes(bytes).u64(u32::try_from(8 * at).unwrap_or(u32::MAX));
    let mut frame = Frame::innermost(Registers {
        ip: word(0),
        sp: word(1),
        bp: word(2),
        bx: word(3),
    });
    let memory = bytes.get(32..).unwrap_or_default();
    for row in memory.chunks_exact(4).take(1 << 10) {
        let row = Row(u32::from_le_bytes(row.try_into().unwrap_or_default()));
        let rule = match row.rule() {
            Packed::Rule(rule) => {
                assert_eq!(rule.pack().map(Rule::unpack), Some(Packed::Rule(rule)));
                rule
            }
            Packed::Entry(number) => {
                let rule = Rule::of_entry([word(3) as u32, number]);
                if let Some(entry) = rule.entry() {
                    assert_eq!(Rule::of_entry(entry), rule);
                }
                rule
            }
        };
        let mut thread = Memory {
            bytes: memory,
            at: word(3),
        };
        match unwind::step(frame, rule, &mut thread) {
            Ok(caller) => {
                let elsewhere = matches!(
                    rule,
                    Rule::Signal | Rule::FramePointer | Rule::Frameless | Rule::ReturnIn(_)
                );
                let up = caller.registers.sp > frame.registers.sp;
                assert!(elsewhere || up, "{rule:?}: {caller:x?}");
                assert_eq!(caller.origin.is_interrupted(), rule == Rule::Signal);
                assert!(!caller.origin.is_innermost());
                frame = caller;
            }
            Err(outcome) => {
                black_box(outcome);
            }
        }
    }
    let segment = Bytes(bytes);
    for at in 0..4 {
        let (offset, count) = (word(at) as u32, (word(at) >> 32) as u32);
        for address in [word(0), word(1), 0, u64::MAX] {
            if let Some(mapping) = arena::find_mapping(&segment, offset, count, address) {
                assert!(address < mapping.end);
            }
            if let Packed::Entry(number) = Rule::unpack(arena::find_row(
                &segment,
                offset,
                Pages::read(&segment, offset),
                address,
            )) {
                black_box(arena::entry(&segment, offset, number));
            }
        }
    }
}

/// Words of bytes, as the kernel side reads them; 0 where there are none.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn word<const N: usize>(&self, offset: u32) -> [u8; N] {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.0.get(offset..));
        rest.and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }
}

impl Segment for Bytes<'_> {
    fn u32(&self, offset: u32) -> u32 {
        u32::from_ne_bytes(self.word(offset))
    }

    fn u64(&self, offset: u32) -> u64 {
        u64::from_ne_bytes(self.word(offset))
    }
}

/// Memory that begins at an address.
struct Memory<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Thread for Memory<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        assert!(address.is_multiple_of(8), "{address:#x}");
        let offset = usize::try_from(address.checked_sub(self.at)?).ok()?;
        self.bytes
            .get(offset..)?
            .first_chunk()
            .map(|word| u64::from_ne_bytes(*word))
    }

    fn register(&mut self, number: u8) -> Option<u64> {
        (number < 8).then_some(self.at)
    }
}

/// Bytes as a segment of the spool: what is taken for one is, when it is written again, the same bytes.
pub fn segment(bytes: &[u8]) {
    let header = segment::Header::read(bytes);
    match segment::decode(bytes.to_vec()) {
        Ok(parcel) => {
            assert_eq!(header.map(|header| header.events), Ok(parcel.events));
            assert_eq!(segment::encode(&parcel).as_deref(), Some(bytes));
        }
        Err(damage) => {
            black_box(damage.to_string());
        }
    }
}
