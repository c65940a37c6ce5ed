//! Call frame information of files that are odd, and of files that mean harm: each costs bounded time and memory, and gives a table or an
//! error with a name.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail loudly, and reads what it made"
)]

use std::{fs::File, io::Write as _, ops::Range, os::unix::fs::FileExt as _, path::Path, process::Command};

use profiler_agent::unwind::{
    cfi::{self, CfiError, FileSections, MAX_FUNCTIONS, Section, Sections, Tables},
    table::TableError,
};
use profiler_common::row::{Base, Rule, SavedBp, SavedBx};

const PIECE: usize = 1 << 20;

/// DWARF: the return address and rsp + 8, as every function begins.
const COMMON: [u8; 5] = [0x0c, 7, 8, 0x90, 1];
/// DWARF: one byte on.
const ADVANCE: u8 = 0x41;
/// DWARF: the canonical frame address lies … above the stack pointer.
const DEF_CFA_OFFSET: u8 = 0x0e;
const REMEMBER: u8 = 0x0a;

/// What begins every function's frame.
const ENTRY: Rule = above_sp(8);

const fn above_sp(offset: i32) -> Rule {
    Rule::Cfa {
        base: Base::Sp,
        offset,
        bp: SavedBp::Same,
        bx: SavedBx::Same,
    }
}

/// An `.eh_frame` under construction. Addresses in it are absolute.
#[derive(Default)]
struct Frames(Vec<u8>);

impl Frames {
    fn entry(&mut self, body: &[u8]) -> usize {
        let at = self.0.len();
        self.0.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        self.0.extend(body);
        at
    }

    /// A common part.
    fn common(&mut self, program: &[u8]) -> usize {
        let head = b"\0\0\0\0\x01zR\0\x01\x78\x10\x01\0"; // id, version, augmentation, 1, -8, rip, its length, absolute
        self.entry(&[head, program].concat())
    }

    fn function(&mut self, common: usize, code: Range<u64>, program: &[u8]) {
        let pointer = u32::try_from(self.0.len() + 4 - common).unwrap();
        let len = code.end.wrapping_sub(code.start);
        self.entry(
            &[
                &pointer.to_le_bytes()[..],
                &code.start.to_le_bytes(),
                &len.to_le_bytes(),
                &[0],
                program,
            ]
            .concat(),
        );
    }

    fn tables(&self, code: Range<u64>) -> Result<Tables, CfiError> {
        let sections = Sections {
            eh_frame: Section {
                address: 0x1000,
                bytes: &self.0,
            },
            ..Sections::default()
        };
        cfi::tables(&sections, code, PIECE)
    }
}

/// A whole and ordinary function behind what is wrong: it must be there all the same.
fn and_one_more(frames: &mut Frames) {
    let common = frames.common(&COMMON);
    frames.function(common, 0x9000..0x9010, &[]);
}

fn is_there(tables: &Tables) {
    assert_eq!(tables.rule(0x9000), ENTRY);
    assert_eq!(tables.rule(0x900f), ENTRY);
    assert_eq!(tables.rule(0x9010), Rule::None);
}

#[test]
fn entries_that_lead_to_themselves_or_nowhere_are_left_out() {
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    for pointer in [4, 8, 1, u32::MAX, u32::MAX - 3, 0x8000_0000] {
        let at = frames.0.len();
        frames.function(common, 0x2000..0x2010, &[]);
        frames.0[at + 4..at + 8].copy_from_slice(&pointer.to_le_bytes());
    }
    and_one_more(&mut frames);
    let tables = frames.tables(0x1000..0x10000).unwrap();
    assert_eq!((tables.functions, tables.broken), (1, 6));
    is_there(&tables);
}

#[test]
fn absurd_lengths_end_a_section_and_keep_what_came_before() {
    for length in [
        &0xffff_fff0_u32.to_le_bytes()[..],
        &0x7fff_ffff_u32.to_le_bytes(),
        &[0xff; 4],
        &[0xff; 12],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0],
        &[1],
        &[9, 0, 0, 0, 1],
    ] {
        let mut frames = Frames::default();
        and_one_more(&mut frames);
        frames.0.extend(length);
        let tables = frames.tables(0x1000..0x10000).unwrap();
        assert_eq!((tables.functions, tables.broken), (1, 1), "{length:x?}");
        is_there(&tables);
    }
}

#[test]
fn lengths_of_64_bits_and_marks_of_an_end_are_read_over() {
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    frames.0.extend([0; 4]); // a crt file ends here; more follows
    let body_at = frames.0.len() + 12;
    let mut body = u32::try_from(body_at - common).unwrap().to_le_bytes().to_vec();
    body.extend(0x2000_u64.to_le_bytes());
    body.extend(0x10_u64.to_le_bytes());
    body.extend([0, ADVANCE, DEF_CFA_OFFSET, 16]);
    frames.0.extend([0xff; 4]);
    frames.0.extend((body.len() as u64).to_le_bytes());
    frames.0.extend(body);
    and_one_more(&mut frames);
    frames.0.extend([0; 12]);
    let tables = frames.tables(0x1000..0x10000).unwrap();
    assert_eq!((tables.functions, tables.broken, tables.rows), (2, 0, 3));
    assert_eq!(tables.rule(0x2000), ENTRY);
    assert_eq!(tables.rule(0x200f), above_sp(16));
    is_there(&tables);
}

#[test]
fn addresses_at_the_end_of_all_do_not_overflow() {
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    let last = u64::MAX;
    let far = [0x04, 0xff, 0xff, 0xff, 0xff]; // advance by 2^32 - 1
    for code in [last - 8..last, last..3, 0..last, 0x9100..last, last - 1..last - 1] {
        frames.function(common, code, &far.repeat(3));
    }
    // A factor that makes 2^64 of every step.
    let head = b"\0\0\0\0\x01zR\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x78\x10\x01\0";
    let wide = frames.entry(&[&head[..], &COMMON].concat());
    frames.function(wide, 0x3000..0x4000, &[ADVANCE, 0x42, 0x43]);
    and_one_more(&mut frames);
    is_there(&frames.tables(0x1000..0x10000).unwrap());
    // All that it speaks of is more than there can be.
    assert!(matches!(
        frames.tables(0..0),
        Err(CfiError::Table(TableError::TooLong(_)))
    ));
    let mut high = Frames::default();
    let common = high.common(&COMMON);
    high.function(common, last - 8..last, &[]);
    assert!(matches!(
        high.tables(0..0),
        Err(CfiError::Table(TableError::TooHigh(_)))
    ));
}

#[test]
fn functions_that_overlap_end_where_the_next_begins() {
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    let offset = |bytes| [DEF_CFA_OFFSET, bytes];
    frames.function(
        common,
        0x2000..0x2100,
        &[ADVANCE, DEF_CFA_OFFSET, 16, 0x02, 0xf0, DEF_CFA_OFFSET, 24],
    );
    frames.function(common, 0x2010..0x2020, &offset(32));
    frames.function(common, 0x2010..0x2018, &offset(40));
    // Goes on behind its own end.
    frames.function(common, 0x3000..0x3010, &[0x02, 0x20, DEF_CFA_OFFSET, 48]);
    and_one_more(&mut frames);
    let tables = frames.tables(0x1000..0x10000).unwrap();
    for (address, rule) in [
        (0x2000, ENTRY),
        (0x2001, above_sp(16)),
        (0x200f, above_sp(16)),
        (0x2010, above_sp(32)),
        (0x201f, above_sp(32)),
        (0x2020, Rule::None),
        (0x20f8, Rule::None),
        (0x300f, ENTRY),
        (0x3010, Rule::None),
        (0x3020, Rule::None),
    ] {
        assert_eq!(tables.rule(address), rule, "{address:#x}");
    }
    is_there(&tables);
}

#[test]
fn a_program_that_breaks_off_is_known_up_to_there() {
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    let broken: [&[u8]; 6] = [
        &[0x3f],                               // no instruction
        &[0x0b],                               // nothing was remembered
        &[0x0f, 0xff, 0xff, 0xff, 0xff, 0x0f], // an expression longer than the section
        &[0x0e, 0x80, 0x80, 0x80, 0x80, 0x80], // a number without an end
        &[0x01, 0, 0, 0, 0, 0, 0, 0, 0],       // back to address 0
        &[0x0f, 1, 0x30, DEF_CFA_OFFSET, 8],   // an offset to an expression
    ];
    for (at, broken) in (0x2000..).step_by(0x100).zip(broken) {
        let program = [&[ADVANCE, DEF_CFA_OFFSET, 16, ADVANCE][..], broken].concat();
        frames.function(common, at..at + 0x10, &program);
    }
    let flood = [&[ADVANCE][..], &[REMEMBER; 1 << 20]].concat();
    frames.function(common, 0x2600..0x2610, &flood);
    and_one_more(&mut frames);
    let tables = frames.tables(0x1000..0x10000).unwrap();
    assert_eq!((tables.functions, tables.broken), (8, 7));
    for at in (0x2000..0x2600).step_by(0x100) {
        assert_eq!(tables.rule(at), ENTRY);
        assert_eq!(tables.rule(at + 1), above_sp(16), "{at:#x}");
        assert_eq!(tables.rule(at + 2), Rule::None, "{at:#x}");
    }
    is_there(&tables);
}

#[test]
fn garbage_in_augmentations_is_a_broken_function_each() {
    for augmentation in [
        "zRRRRRRRR",
        "zPPPPPPPP",
        "R",
        "zX",
        "\u{7f}",
        "eh",
        "zR\u{1}",
        "zLSBG",
    ] {
        let mut frames = Frames::default();
        let head = [
            b"\0\0\0\0\x01",
            augmentation.as_bytes(),
            b"\0\x01\x78\x10\x01\xff",
        ]
        .concat();
        let common = frames.entry(&[&head[..], &COMMON].concat());
        frames.function(common, 0x2000..0x2010, &[]);
        and_one_more(&mut frames);
        let tables = frames.tables(0x1000..0x10000).unwrap();
        assert!(tables.broken <= 1, "{augmentation}");
        is_there(&tables);
    }
}

#[test]
fn what_asks_for_too_much_is_refused_by_name() {
    // One byte a row.
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    frames.function(common, 0x2000..0x9000, &vec![ADVANCE; cfi::MAX_ROWS + 1]);
    assert!(matches!(frames.tables(0..0), Err(CfiError::TooManyRows)));

    // More common parts than are remembered, in turn.
    let mut frames = Frames::default();
    let common: Vec<usize> = (0..20).map(|_| frames.common(&vec![0; 1 << 18])).collect();
    for at in 0..400 {
        let start = 0x2000 + 16 * at as u64;
        frames.function(common[at % 20], start..start + 16, &[]);
    }
    assert!(matches!(frames.tables(0..0), Err(CfiError::TooMuchWork)));

    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    for at in 0..=MAX_FUNCTIONS as u64 {
        frames.function(common, 0x2000 + at..0x2000 + at + 1, &[]);
    }
    assert!(matches!(frames.tables(0..0), Err(CfiError::TooManyFunctions)));

    // Another rule at every byte.
    let mut frames = Frames::default();
    let common = frames.common(&COMMON);
    let program = [ADVANCE, DEF_CFA_OFFSET, 16, ADVANCE, DEF_CFA_OFFSET, 24].repeat(5 << 19);
    frames.function(common, 0x2000..0x2000 + (5 << 20), &program);
    assert!(matches!(
        frames.tables(0..0),
        Err(CfiError::Table(TableError::TooLarge))
    ));
    assert!(frames.tables(0x2000..0x3000).is_ok(), "as much as is asked for");
}

#[test]
fn common_parts_without_number_are_not_all_kept() {
    let mut frames = Frames::default();
    for at in 0..10_000 {
        let common = frames.common(&COMMON);
        frames.function(common, 0x2000 + at..0x2001 + at, &[]);
    }
    let tables = frames.tables(0..0).unwrap();
    assert_eq!((tables.functions, tables.broken), (10_000, 0));
    assert_eq!(tables.rule(0x2000 + 9_999), ENTRY);
}

/// A file of 64 bits with these sections: name, flags, address, bytes.
fn elf(sections: &[(&str, u64, u64, &[u8])]) -> Vec<u8> {
    let mut bytes = std::fs::read("/proc/self/exe").unwrap()[..64].to_vec();
    let mut names = vec![0];
    let mut headers = vec![0; 64];
    for (name, flags, address, content) in sections.iter().copied().chain([(".names", 0, 0, &[][..])]) {
        let name_at = names.len();
        names.extend(name.as_bytes());
        names.push(0);
        let content = if name == ".names" {
            names.as_slice()
        } else {
            content
        };
        headers.extend(u32::try_from(name_at).unwrap().to_le_bytes());
        headers.extend(1_u32.to_le_bytes());
        for word in [flags, address, bytes.len() as u64, content.len() as u64, 0, 0, 0] {
            headers.extend(word.to_le_bytes());
        }
        bytes.extend(content);
    }
    let at = bytes.len() as u64;
    let count = u16::try_from(headers.len() / 64).unwrap();
    bytes.extend(headers);
    put(&mut bytes, 32, &0_u64.to_le_bytes()); // e_phoff
    put(&mut bytes, 40, &at.to_le_bytes()); // e_shoff
    put(&mut bytes, 56, &0_u16.to_le_bytes()); // e_phnum
    put(&mut bytes, 60, &count.to_le_bytes()); // e_shnum
    put(&mut bytes, 62, &(count - 1).to_le_bytes()); // e_shstrndx
    bytes
}

/// A `.debug_frame` with a function at each of these addresses, whose frame is of `offset` bytes.
fn debug_frame(starts: &[u64], offset: u8) -> Vec<u8> {
    debug_frame_of(b"\xff\xff\xff\xff\x03\0\x01\x78\x10", starts, offset)
}

/// The same behind a common part that begins like this.
fn debug_frame_of(common: &[u8], starts: &[u64], offset: u8) -> Vec<u8> {
    let mut frames = Frames::default();
    frames.entry(&[common, &COMMON[..]].concat());
    for start in starts {
        let mut body = vec![0; 4];
        body.extend(start.to_le_bytes());
        body.extend(0x10_u64.to_le_bytes());
        body.extend([DEF_CFA_OFFSET, offset]);
        frames.entry(&body);
    }
    frames.0
}

/// A section in the packed form: what it unpacks to is said to be `size` bytes.
fn packed(kind: u32, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut section = kind.to_le_bytes().to_vec();
    section.extend([0; 4]);
    section.extend(size.to_le_bytes());
    section.extend(1_u64.to_le_bytes());
    section.extend(bytes);
    section
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

#[test]
fn packed_debug_frame_is_unpacked_but_never_beyond_what_it_says() {
    const COMPRESSED: u64 = 1 << 11;
    const OTHER: u32 = 7;
    let frames = debug_frame(&[0x2000, 0x2100], 24);
    let len = frames.len() as u64;
    let bomb = vec![0; 64 << 20];
    let good = [packed(1, len, &zlib(&frames)), packed(2, len, &zstd(&frames))];
    let bad = [
        packed(1, len - 1, &zlib(&frames)),
        packed(1, len + 1, &zlib(&frames)),
        packed(2, len - 1, &zstd(&frames)),
        packed(2, len + 1, &zstd(&frames)),
        packed(1, 1 << 50, &zlib(&frames)),
        packed(2, u64::MAX, &zstd(&frames)),
        packed(1, 1 << 20, &zlib(&bomb)),
        packed(2, 1 << 20, &zstd(&bomb)),
        packed(1, len, b"not packed at all"),
        packed(2, len, b"not packed at all"),
        packed(OTHER, len, &frames),
        vec![1],
    ];
    for section in good {
        let tables = tables_of(&elf(&[(".debug_frame", COMPRESSED, 0, &section)]));
        assert_eq!((tables.functions, tables.broken), (2, 0));
        assert_eq!(tables.rule(0x2100), above_sp(24));
    }
    for section in bad {
        let tables = tables_of(&elf(&[(".debug_frame", COMPRESSED, 0, &section)]));
        assert_eq!((tables.functions, tables.rows), (0, 0));
    }
}

#[test]
fn debug_frame_is_for_what_eh_frame_does_not_know() {
    let mut eh_frame = Frames::default();
    let common = eh_frame.common(&COMMON);
    eh_frame.function(common, 0x2000..0x2010, &[]);
    let debug_frame = debug_frame(&[0x2000, 0x2008, 0x1ff8, 0x2010, 0x3000], 32);
    let tables = tables_of(&elf(&[
        (".eh_frame", 0, 0x1000, &eh_frame.0),
        (".debug_frame", 0, 0, &debug_frame),
    ]));
    assert_eq!((tables.functions, tables.broken), (3, 0));
    for (address, rule) in [
        (0x1fff, Rule::None),
        (0x2000, ENTRY),
        (0x200f, ENTRY),
        (0x2010, above_sp(32)),
        (0x2020, Rule::None),
        (0x3000, above_sp(32)),
    ] {
        assert_eq!(tables.rule(address), rule, "{address:#x}");
    }
}

#[test]
fn functions_of_go_are_left_to_the_frame_pointer_where_they_have_a_frame() {
    // As Go's linker writes it: a data alignment of -4, return address at twice that.
    let mut frames = Frames::default();
    frames.entry(b"\xff\xff\xff\xff\x03\0\x01\x7c\x10\x0c\x07\x08\x90\x02");
    let mut body = vec![0; 4];
    body.extend(0x2000_u64.to_le_bytes());
    body.extend(0x10_u64.to_le_bytes());
    for offset in [8, 16, 32, 8] {
        body.extend([DEF_CFA_OFFSET, offset, ADVANCE]);
    }
    frames.entry(&body);
    let tables = tables_of(&elf(&[(".debug_frame", 0, 0, &frames.0)]));
    assert_eq!((tables.functions, tables.broken), (1, 0));
    for (address, rule) in [
        (0x2000, Rule::Frameless),
        (0x2001, Rule::None),
        (0x2002, Rule::None),
        (0x2003, Rule::Frameless),
        (0x200f, Rule::Frameless),
        (0x2010, Rule::None),
    ] {
        assert_eq!(tables.rule(address), rule, "{address:#x}");
    }
}

#[test]
fn of_several_sections_of_a_name_the_first_that_can_be_read_counts() {
    let mut frames = Frames::default();
    and_one_more(&mut frames);
    let nothing: &[u8] = &[];
    let mut bytes = elf(&[
        (".eh_frame", 0, 0, nothing),
        (".eh_frame", 0, 0, b"to be sent beyond the end"),
        (".eh_frame", 0, 0x1000, &frames.0),
        (".eh_frame_hdr", 0, 0, b"another name"),
    ]);
    let headers = usize::try_from(u64::from_le_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    put(&mut bytes, headers + 2 * 64 + 32, &(1_u64 << 20).to_le_bytes()); // sh_size
    is_there(&tables_of(&bytes));
}

#[test]
fn what_headers_claim_beyond_the_file_is_not_read() {
    let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    // Numbers of the file's header, one after the other and all together, by their place and length.
    let fields = [(32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2), (62, 2)];
    for value in [[0xff; 8], [0x7f; 8], [0; 8], 64_u64.to_le_bytes()] {
        let mut all = libc.clone();
        for (at, len) in fields {
            let mut one = libc.clone();
            put(&mut one, at, &value[..len]);
            put(&mut all, at, &value[..len]);
            let _ = FileSections::read(&file(&one)).map(|read| cfi::tables(&read.borrow(), 0..0, PIECE));
        }
        let _ = FileSections::read(&file(&all)).map(|read| cfi::tables(&read.borrow(), 0..0, PIECE));
    }
    // Segments without end, beyond the end, and both.
    let segments = 64;
    for (offset, value) in [
        (8, u64::MAX),
        (8, 1 << 40),
        (32, u64::MAX),
        (32, 1 << 60),
        (16, u64::MAX),
    ] {
        let mut bytes = libc.clone();
        put(&mut bytes, 40, &0_u64.to_le_bytes());
        for segment in 0..14 {
            put(&mut bytes, segments + 56 * segment + offset, &value.to_le_bytes());
        }
        let _ = FileSections::read(&file(&bytes)).map(|read| cfi::tables(&read.borrow(), 0..0, PIECE));
    }
    for len in [0, 1, 63, 64, 65, 1000, 100_000] {
        let _ = FileSections::read(&file(&libc[..len]));
    }
    assert!(FileSections::read(&file(&[0; 4096])).is_err());
    assert!(FileSections::read(&file(b"\x7fELF")).is_err());
}

/// A file with these bytes.
fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A program compiled from C, whose `main` sorts.
fn program(folder: &Path, name: &str, flags: &[&str]) -> std::path::PathBuf {
    let source = folder.join("program.c");
    std::fs::write(
        &source,
        "#include <stdlib.h>\n\
         static int order(const void *a, const void *b) { return *(int *)a - *(int *)b; }\n\
         int main(int n, char **v) { int a[3] = {n, 2, 1}; qsort(a, 3, sizeof *a, order); return a[0]; }\n",
    )
    .unwrap();
    let path = folder.join(name);
    let status = Command::new("gcc")
        .args(["-O2", "-o"])
        .args([&path, &source])
        .args(flags)
        .status();
    assert!(
        status.unwrap().success(),
        "gcc {flags:?}; `cargo xtask setup` installs it"
    );
    path
}

fn tables_of(bytes: &[u8]) -> Tables {
    let read = FileSections::read(&file(bytes)).unwrap();
    cfi::tables(&read.borrow(), 0..0, PIECE).unwrap()
}

fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
    bytes[at..at + number.len()].copy_from_slice(number);
}

#[test]
fn without_section_headers_the_table_for_searching_leads_to_the_frames() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("dynamic", &[][..]),
        ("static-pie", &["-static-pie"]),
        ("no-pie", &["-no-pie"]),
    ] {
        let mut bytes = std::fs::read(program(folder.path(), name, flags)).unwrap();
        let whole = tables_of(&bytes);
        assert!(whole.rows > 5 && whole.broken == 0, "{name}: {whole:?}");
        // What a packer does: the section headers are gone, or point nowhere.
        for offset in [0, u64::MAX - 5] {
            put(&mut bytes, 40, &offset.to_le_bytes()); // e_shoff
            let found = tables_of(&bytes);
            // The stubs, which only sections tell of, may have no frames of their own.
            assert!(found.functions + 3 >= whole.functions, "{name}");
            assert_eq!(found.rows, whole.rows, "{name}");
        }
    }
}

#[test]
fn static_programs_need_no_table_for_searching() {
    let folder = tempfile::tempdir().unwrap();
    let path = program(folder.path(), "static", &["-static"]);
    let status = Command::new("objcopy")
        .args(["--remove-section=.eh_frame_hdr"])
        .arg(&path)
        .status();
    assert!(status.unwrap().success(), "objcopy");
    let tables = tables_of(&std::fs::read(path).unwrap());
    assert!(
        tables.functions > 500 && tables.broken == 0,
        "{}",
        tables.functions
    );
}

#[test]
fn headers_that_count_elsewhere_are_counted_there() {
    let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let whole = tables_of(&libc);
    let number = |at: usize| u16::from_le_bytes(libc[at..at + 2].try_into().unwrap());
    let (segments, sections, names) = (number(56), number(60), number(62));
    let headers = usize::try_from(u64::from_le_bytes(libc[40..48].try_into().unwrap())).unwrap();
    let mut bytes = libc.clone();
    put(&mut bytes, 60, &0_u16.to_le_bytes());
    put(&mut bytes, headers + 32, &u64::from(sections).to_le_bytes()); // sh_size of section 0
    put(&mut bytes, 62, &0xffff_u16.to_le_bytes());
    put(&mut bytes, headers + 40, &u32::from(names).to_le_bytes()); // sh_link
    assert_eq!(tables_of(&bytes).pieces, whole.pieces);
    // The same for program headers, which are asked when `.eh_frame` has another name.
    let at = bytes
        .windows(11)
        .position(|name| name == b"\0.eh_frame\0")
        .unwrap();
    put(&mut bytes, at + 1, b"x");
    put(&mut bytes, 56, &0xffff_u16.to_le_bytes());
    put(&mut bytes, headers + 44, &u32::from(segments).to_le_bytes()); // sh_info
    assert_eq!(tables_of(&bytes).pieces, whole.pieces);
}
