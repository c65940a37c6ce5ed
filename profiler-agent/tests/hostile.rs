//! Files and programs made to hurt whoever reads them. The agent lives on, others keep their names, memory stays inside its budget.
//!
//! `PROFILER_HOSTILE_SECONDS` says how long files are rewritten while they are read; 60 in `cargo xtask prove hostile`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test that fails fails, and reads files of its own making"
)]

mod support;

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSegment as _};
use profiler_agent::symbols::{Object, Request, Response, Symbolizer};

use support::{
    agent::{Agent, PROGRAM, copy_to_run},
    machine::Witness,
    picture::{Otlp, Picture},
    tools,
    workload::{Workload, alone, compiled, wait_for},
};

/// What the child may allocate, and the pages that it maps beside that.
const CHILD_BUDGET: u64 = 600 << 20;

/// What the agent itself may grow by: copies of files are in nobody's resident memory.
const AGENT_BUDGET: u64 = 150 << 20;

fn seconds() -> u64 {
    std::env::var("PROFILER_HOSTILE_SECONDS").map_or(5, |seconds| seconds.parse().unwrap())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or(0, |line| {
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    })
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<u32>>()
        })
        .collect()
}

fn symbolizer() -> Symbolizer {
    Symbolizer::start(Path::new(PROGRAM), true, None).unwrap()
}

fn request(id: u32, path: &Path, addresses: &[u64]) -> Request {
    Request {
        id,
        object: Object::Elf {
            file: Arc::new(File::open(path).unwrap()),
            path: path.to_str().unwrap().to_owned(),
            pid: std::process::id(),
        },
        addresses: addresses.to_vec(),
    }
}

fn ask(symbolizer: &mut Symbolizer, request: Request) -> Response {
    symbolizer.try_request(request).unwrap();
    symbolizer
        .recv_timeout(Duration::from_secs(90))
        .expect("an answer")
}

fn name(response: &Response) -> &str {
    response.symbols[0]
        .functions
        .last()
        .map_or("", |function| &function.name)
}

/// A well-behaved program and the address of a function in it.
fn innocent() -> (PathBuf, u64, &'static str) {
    let program = compiled("split");
    let bytes = fs::read(&program).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let symbol = object::Object::symbols(&elf)
        .find(|symbol| object::ObjectSymbol::name(symbol) == Ok("main"))
        .unwrap();
    let address = object::ObjectSymbol::address(&symbol);
    (program, address, "main")
}

// ---- files that change while they are read ---------------------------------------------------------------------

/// A library with its debug information in a file beside it, and how much of it the running code needs.
struct Library {
    path: PathBuf,
    debug: PathBuf,
    keep: u64,
    function: u64,
}

impl Library {
    fn make(folder: &Path, name: &str, mode: u32) -> Self {
        let (path, debug) = (
            folder.join(format!("{name}.so")),
            folder.join(format!("{name}.debug")),
        );
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/spin.c");
        run(Command::new("cc")
            .args(["-g", "-O1", "-shared", "-fPIC", "-Wl,-soname"])
            .arg(format!("-Wl,{name}"))
            .arg("-o")
            .arg(&path)
            .arg(source));
        run(Command::new("objcopy")
            .arg("--only-keep-debug")
            .arg(&path)
            .arg(&debug));
        run(Command::new("objcopy")
            .arg("--strip-debug")
            .arg(format!("--add-gnu-debuglink={}", debug.display()))
            .arg(&path));
        for path in [&path, &debug] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let keep = elf.segments().map(|segment| {
            let (start, size) = segment.file_range();
            start + size
        });
        let function = elf.dynamic_symbols().find_map(|symbol| {
            let found = object::ObjectSymbol::name(&symbol) == Ok("spin_in_library");
            found.then(|| object::ObjectSymbol::address(&symbol))
        });
        Self {
            keep: keep.max().unwrap().next_multiple_of(4096),
            path,
            debug,
            function: function.unwrap(),
        }
    }

    fn rewrite(&self) -> Workload {
        let keep = self.keep.min(fs::metadata(&self.path).unwrap().len());
        Workload::start(
            &compiled("rewriter"),
            [
                self.path.as_os_str(),
                self.debug.as_os_str(),
                keep.to_string().as_ref(),
            ],
        )
    }
}

/// Of files that everybody can read the child gets the descriptor, and of others a copy: both are rewritten.
const MODES: [(&str, u32); 2] = [("open", 0o644), ("private", 0o600)];

fn have_tools(test: &str) -> bool {
    let have = tools::find("OBJCOPY", Some("objcopy")).is_some();
    if !have {
        tools::skip(test, "objcopy (Debian package binutils)");
    }
    have
}

#[test]
fn who_reads_a_file_that_changes_is_replaced_and_others_keep_their_names() {
    const TEST: &str = "who_reads_a_file_that_changes_is_replaced_and_others_keep_their_names";
    let Some(_alone) = alone(TEST) else { return };
    if !have_tools(TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let libraries = MODES.map(|(name, mode)| Library::make(folder.path(), name, mode));
    let _rewriters = libraries.each_ref().map(Library::rewrite);
    let (program, address, function) = innocent();
    let mut symbolizer = symbolizer();
    let before = resident(std::process::id());
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let (mut id, mut named, mut asked) = (1, 0, 0);
    while Instant::now() < deadline {
        for library in &libraries {
            // Another object each time, so that the file is read anew.
            id += 1;
            let response = ask(&mut symbolizer, request(id, &library.path, &[library.function]));
            asked += 1;
            named += u32::from(name(&response) == "spin_in_library");
        }
        id += 1;
        let response = ask(&mut symbolizer, request(id, &program, &[address]));
        assert_eq!(name(&response), function, "{response:?}");
        assert_eq!(response.error, None);
    }
    let cost = symbolizer.cost();
    eprintln!(
        "{asked} questions for files that were changing, {named} with a name; {} children failed; peak {} MB; the agent grew by {} kB",
        cost.failed,
        cost.peak_memory >> 20,
        (resident(std::process::id()).saturating_sub(before)) >> 10
    );
    assert!(named > 0 && asked > 20);
    assert!(cost.peak_memory < CHILD_BUDGET);
    assert!(resident(std::process::id()) < before + AGENT_BUDGET);
}

#[test]
fn a_file_that_shrinks_ends_the_child_and_not_the_agent() {
    let (program, address, function) = innocent();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    fs::copy(&program, &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o644)).unwrap();
    let mut symbolizer = symbolizer();
    let mut file_and_address = request(1, &copy, &[address]);
    assert_eq!(name(&ask(&mut symbolizer, file_and_address.clone())), function);
    let first = symbolizer.cost().pid;
    OpenOptions::new()
        .write(true)
        .open(&copy)
        .unwrap()
        .set_len(4096)
        .unwrap();
    // Not of the page that is read already.
    file_and_address.addresses = vec![address + 1];
    let response = ask(&mut symbolizer, file_and_address);
    let error = response.error.clone().unwrap();
    assert!(
        name(&response).is_empty() && error.contains("copy: not a valid ELF file"),
        "{error}"
    );
    assert_eq!(symbolizer.cost().failed, 1);
    assert_ne!(symbolizer.cost().pid, first);
    let response = ask(&mut symbolizer, request(2, &program, &[address]));
    assert_eq!(name(&response), function);
}

#[test]
fn a_capture_goes_on_while_its_target_rewrites_its_files() {
    const TEST: &str = "a_capture_goes_on_while_its_target_rewrites_its_files";
    let Some(_alone) = alone(TEST) else { return };
    if !have_tools(TEST) {
        return;
    }
    let agent = Agent::new();
    let folder = tempfile::tempdir().unwrap();
    let libraries = MODES.map(|(name, mode)| Library::make(folder.path(), name, mode));
    let rewriters = libraries.each_ref().map(Library::rewrite);
    let report = agent.path("report");
    let innocent = Workload::start(
        &compiled("split"),
        [report.as_os_str(), "3600000".as_ref(), "1".as_ref()],
    );
    let pids = rewriters
        .iter()
        .chain([&innocent])
        .map(|workload| workload.pid().to_string());
    let pids = pids.collect::<Vec<_>>().join(",");
    let time = format!("{}s", seconds());
    let witness = Witness::start();
    let running = agent.start([
        "-p", &pids, "-F", "499", "-d", &time, "-o", "x.folded", "-o", "x.otlp",
    ]);
    // Meanwhile: no file of a program is mapped into the agent, and neither process grows.
    let until = Instant::now() + Duration::from_secs(seconds()) - Duration::from_millis(500);
    while Instant::now() < until {
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).unwrap();
        for file in ["open.", "private.", "split", "rewriter"] {
            let mapped = maps.lines().find(|line| line.contains(&format!("/{file}")));
            assert!(mapped.is_none(), "{mapped:?}");
        }
        assert!(resident(running.pid()) < AGENT_BUDGET);
        assert!(
            children(running.pid())
                .into_iter()
                .all(|child| resident(child) < CHILD_BUDGET)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let run = running.finish();
    let stood_still = witness.longest();
    run.expect(0, &["lost: 0"]);
    // Sampling never stopped while the machine ran: each second has its samples.
    let otlp = Otlp::read(&agent.path("x.otlp"));
    let mut times: Vec<u64> = otlp
        .profiles()
        .flat_map(|(_, profile)| &profile.samples)
        .flat_map(|sample| sample.timestamps_unix_nano.iter().copied())
        .collect();
    times.sort_unstable();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(
        u128::from(gap) < 1_000_000_000 + stood_still.as_nanos(),
        "{gap} ns without a sample; the machine stood still for {stood_still:?}"
    );
    let picture = Picture::folded_file(&agent.path("x.folded"));
    let of_innocent = picture.of_process("split");
    let unnamed: u64 = picture
        .frames()
        .iter()
        .filter(|(frame, _)| frame.starts_with("split+"))
        .map(|(_, count)| count)
        .sum();
    eprintln!(
        "{of_innocent} samples of the innocent, {unnamed} without a name; {}",
        run.stderr
    );
    assert!(of_innocent > 50 && unnamed == 0, "{unnamed} of {of_innocent}");
}

// ---- files that lie --------------------------------------------------------------------------------------------

/// A section of a file made by hand.
struct Section {
    name: &'static str,
    kind: u32,
    flags: u64,
    address: u64,
    link: u32,
    entry: u64,
    bytes: Vec<u8>,
    /// What its header says, where that is not the truth.
    size: Option<u64>,
}

impl Section {
    fn new(name: &'static str, kind: u32, bytes: Vec<u8>) -> Self {
        Self {
            name,
            kind,
            flags: 0,
            address: 0,
            link: 0,
            entry: 0,
            bytes,
            size: None,
        }
    }
}

const TEXT: u64 = 0x1000;
const SHF_COMPRESSED: u64 = 1 << 11;

/// A file with one function of a name, and these sections beside its symbol table.
fn elf(name: &[u8], more: Vec<Section>) -> Vec<u8> {
    let mut strings = vec![0];
    strings.extend_from_slice(name);
    strings.push(0);
    let mut symbols = vec![0; 24];
    // st_name, st_info (global function), st_other, st_shndx (.text), st_value, st_size.
    symbols.extend(1_u32.to_le_bytes());
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend(TEXT.to_le_bytes());
    symbols.extend(0x100_u64.to_le_bytes());
    let mut sections = vec![
        Section::new("", 0, Vec::new()),
        Section {
            flags: 6,
            address: TEXT,
            ..Section::new(".text", 1, vec![0x90; 0x100])
        },
        Section {
            link: 3,
            entry: 24,
            ..Section::new(".symtab", 2, symbols)
        },
        Section::new(".strtab", 3, strings),
    ];
    sections.extend(more);
    let mut names = vec![0];
    let mut offsets = Vec::new();
    for section in &sections {
        offsets.push(names.len() as u32);
        names.extend(section.name.bytes());
        names.push(0);
    }
    offsets.push(names.len() as u32);
    names.extend(b".shstrtab\0");
    sections.push(Section::new(".shstrtab", 3, names));

    let mut file = vec![0; 64];
    let mut headers = Vec::new();
    for (section, name) in sections.iter().zip(offsets) {
        let offset = file.len() as u64;
        file.extend(&section.bytes);
        file.resize(file.len().next_multiple_of(16), 0);
        headers.extend(name.to_le_bytes());
        headers.extend(section.kind.to_le_bytes());
        headers.extend(section.flags.to_le_bytes());
        headers.extend(section.address.to_le_bytes());
        headers.extend(offset.to_le_bytes());
        headers.extend(section.size.unwrap_or(section.bytes.len() as u64).to_le_bytes());
        headers.extend(section.link.to_le_bytes());
        headers.extend(u32::from(section.kind == 2).to_le_bytes());
        headers.extend(16_u64.to_le_bytes());
        headers.extend(section.entry.to_le_bytes());
    }
    let at = file.len() as u64;
    file.extend(headers);
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_DYN, EM_X86_64, version.
    file[16..24].copy_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
    file[40..48].copy_from_slice(&at.to_le_bytes());
    let count = sections.len() as u16;
    for (place, half) in [(52, 64_u16), (54, 56), (58, 64), (60, count), (62, count - 1)] {
        file[place..place + 2].copy_from_slice(&half.to_le_bytes());
    }
    file
}

/// The header of a packed section, and what follows it.
fn packed(kind: u32, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(kind.to_le_bytes());
    section.extend(0_u32.to_le_bytes());
    section.extend(size.to_le_bytes());
    section.extend(1_u64.to_le_bytes());
    section.extend(bytes);
    section
}

/// Zeros, packed by the flate2 crate: a thousandth of their size.
fn zlib(size: u64) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn zstd(size: u64) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn debug_info(kind: u32, size: u64, bytes: &[u8]) -> Section {
    Section {
        flags: SHF_COMPRESSED,
        ..Section::new(".debug_info", 1, packed(kind, size, bytes))
    }
}

/// Debug information of one unit whose function says that its origin is itself.
fn cyclic() -> Vec<Section> {
    // Abbreviations: 1 a unit with children and addresses; 2 a function with a range and an origin.
    let abbreviations = vec![
        1, 0x11, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, // DW_TAG_compile_unit: low_pc addr, high_pc data4
        2, 0x2e, 0, 0x11, 0x01, 0x12, 0x06, 0x31, 0x13, 0,
        0, // DW_TAG_subprogram: the same, abstract_origin ref4
        0,
    ];
    let mut unit = Vec::new();
    unit.extend(4_u16.to_le_bytes());
    unit.extend(0_u32.to_le_bytes());
    unit.push(8);
    let header = unit.len() + 4;
    unit.push(1);
    unit.extend(TEXT.to_le_bytes());
    unit.extend(0x100_u32.to_le_bytes());
    let function = (header - 4 + 4 + unit.len() - header + 4) as u32;
    unit.push(2);
    unit.extend(TEXT.to_le_bytes());
    unit.extend(0x100_u32.to_le_bytes());
    unit.extend(function.to_le_bytes());
    unit.push(0);
    let mut info = (unit.len() as u32).to_le_bytes().to_vec();
    info.extend(unit);
    vec![
        Section::new(".debug_info", 1, info),
        Section::new(".debug_abbrev", 1, abbreviations),
    ]
}

#[test]
fn files_that_lie_cost_their_own_names_at_most() {
    const ZLIB: u32 = 1;
    const ZSTD: u32 = 2;
    let (program, address, function) = innocent();
    let folder = tempfile::tempdir().unwrap();
    let long: Vec<u8> = b"<script>\x1b[31m\n"
        .iter()
        .copied()
        .cycle()
        .take(1 << 20)
        .collect();
    let bomb = {
        // Each type argument is a pair of the one before it.
        let mut name = String::from("_Z1f1AIiiE");
        let mut last = String::from("S0_");
        for step in 1..30 {
            name.push_str(&format!("S_I{last}{last}E"));
            let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
            last = format!("S{}_", char::from(digits[step]));
        }
        name
    };
    let sized = |name: &'static str, kind, size| Section {
        size: Some(size),
        ..Section::new(name, kind, vec![0; 64])
    };
    // With what is left of the name when all goes as well as it can.
    let plain = "honest";
    let files: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing wrong", elf(b"honest", Vec::new()), plain),
        (
            "zlib, 900 MB of zeros",
            elf(b"honest", vec![debug_info(ZLIB, 900 << 20, &zlib(900 << 20))]),
            plain,
        ),
        (
            "zstd, 900 MB of zeros",
            elf(b"honest", vec![debug_info(ZSTD, 900 << 20, &zstd(900 << 20))]),
            plain,
        ),
        (
            "zlib that unpacks to more than it says",
            elf(b"honest", vec![debug_info(ZLIB, 100, &zlib(900 << 20))]),
            plain,
        ),
        (
            "2^40 bytes unpacked",
            elf(b"honest", vec![debug_info(ZLIB, 1 << 40, &zlib(1 << 20))]),
            "",
        ),
        (
            "2^63 bytes unpacked",
            elf(b"honest", vec![debug_info(ZSTD, 1 << 63, &zlib(1 << 20))]),
            "",
        ),
        (
            "a section of 2^40 bytes",
            elf(b"honest", vec![sized(".debug_info", 1, 1 << 40)]),
            plain,
        ),
        (
            "a symbol table of 2^64 - 1 bytes",
            elf(b"honest", vec![sized(".dynsym", 11, u64::MAX)]),
            plain,
        ),
        (
            "a function that is its own origin",
            elf(b"honest", cyclic()),
            plain,
        ),
        (
            "garbage as debug information",
            elf(
                b"honest",
                vec![
                    Section::new(".debug_info", 1, vec![0xff; 4096]),
                    Section::new(".debug_abbrev", 1, vec![0xff; 4096]),
                ],
            ),
            plain,
        ),
        ("a name of 1 MB", elf(&long, Vec::new()), "<script>\u{1b}[31m\n"),
        (
            "a name that demangles into half a gigabyte",
            elf(bomb.as_bytes(), Vec::new()),
            "f(A<int, int>",
        ),
    ];
    let mut symbolizer = symbolizer();
    let before = resident(std::process::id());
    for (id, (what, bytes, expected)) in (1000..).zip(files) {
        for (more, mode) in [(0, 0o644), (500, 0o600)] {
            let path = folder.path().join(format!("{id}-{mode:o}"));
            fs::write(&path, &bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let begun = Instant::now();
            let response = ask(&mut symbolizer, request(id + more, &path, &[TEXT + 4]));
            eprintln!(
                "{what}, {mode:o}: {:?} in {:?}, {:?}",
                name(&response).chars().take(60).collect::<String>(),
                begun.elapsed(),
                response.error
            );
            if expected.is_empty() {
                assert!(response.error.is_some(), "{what}");
            }
            assert!(
                name(&response).starts_with(expected),
                "{what}: {:?}",
                response.error
            );
            assert!(name(&response).len() <= 4096, "{what}");
            let response = ask(&mut symbolizer, request(1, &program, &[address]));
            assert_eq!(name(&response), function, "after {what}");
        }
    }
    let cost = symbolizer.cost();
    eprintln!("{cost:?}");
    assert!(cost.peak_memory < CHILD_BUDGET, "{cost:?}");
    assert!(resident(std::process::id()) < before + AGENT_BUDGET);
}

/// A file whose debug information is said to be in what `debug` makes of a path.
fn with_debug_link(folder: &Path, debug: impl FnOnce(&Path)) -> Response {
    let mut link = b"lib.debug\0\0\0".to_vec();
    link.extend(0_u32.to_le_bytes());
    let path = folder.join("lib.so");
    fs::write(
        &path,
        elf(b"honest", vec![Section::new(".gnu_debuglink", 1, link)]),
    )
    .unwrap();
    debug(&folder.join("lib.debug"));
    let begun = Instant::now();
    let response = ask(&mut symbolizer(), request(1, &path, &[TEXT]));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    response
}

#[test]
fn what_is_no_file_is_no_debug_file() {
    type Make = fn(&Path);
    let made: [(&str, Make); 4] = [
        ("a FIFO", |path| run(Command::new("mkfifo").arg(path))),
        ("a device", |path| symlink("/dev/zero", path).unwrap()),
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a link to itself", |path| symlink(path, path).unwrap()),
    ];
    for (what, make) in made {
        let folder = tempfile::tempdir().unwrap();
        let response = with_debug_link(folder.path(), make);
        assert_eq!(name(&response), "honest", "{what}: {response:?}");
    }
}

#[test]
fn no_link_leads_to_a_debug_file_outside_the_root_of_the_process() {
    const TEST: &str = "no_link_leads_to_a_debug_file_outside_the_root_of_the_process";
    if !have_tools(TEST) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let library = Library::make(&root, "lib", 0o644);
    let outside = folder.path().join("outside.debug");
    fs::rename(&library.debug, &outside).unwrap();
    let sleeper = root.join("sleeper");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/named.c");
    run(Command::new("cc")
        .args(["-static", "-DFUNCTION=sleeps", "-o"])
        .arg(&sleeper)
        .arg(source));
    let process = Workload::of(Command::new("chroot").arg(&root).arg("/sleeper"));
    wait_for("its root", || {
        fs::read_link(format!("/proc/{}/root", process.pid())).is_ok_and(|path| path == root)
    });
    let mut symbolizer = symbolizer();
    let mut line = |id| {
        let mut request = request(id, &library.path, &[library.function]);
        let Object::Elf { path, pid, .. } = &mut request.object else {
            panic!("no file")
        };
        "/lib.so".clone_into(path);
        *pid = process.pid();
        let response = ask(&mut symbolizer, request);
        assert_eq!(name(&response), "spin_in_library");
        response.symbols[0].functions.last().unwrap().line
    };
    let from_root = Path::new("../../../../../../..").join(outside.strip_prefix("/").unwrap());
    for (id, target) in (1..).zip([
        outside.clone(),
        from_root,
        format!("/proc/1/root{}", outside.display()).into(),
    ]) {
        symlink(&target, &library.debug).unwrap();
        assert_eq!(line(id), 0, "{}", target.display());
        fs::remove_file(&library.debug).unwrap();
    }
    // That it would be taken, if it were there.
    fs::copy(&outside, &library.debug).unwrap();
    assert_ne!(line(10), 0);
}

#[test]
fn a_pipe_in_place_of_a_program_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    run(Command::new("mkfifo").arg(&path));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(0o4000)
        .open(&path)
        .unwrap();
    let object = Object::Elf {
        file: Arc::new(file),
        path: "pipe".into(),
        pid: std::process::id(),
    };
    let request = Request {
        id: 1,
        object,
        addresses: vec![1],
    };
    let response = ask(&mut symbolizer(), request);
    assert_eq!(response.error.as_deref(), Some("pipe: not a regular file"));
}

#[test]
fn numbers_of_a_header_decide_nothing() {
    // Each field of the file header with the largest value: nothing is allocated for it, and nothing panics.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let whole = elf(b"honest", Vec::new());
    let mut symbolizer = symbolizer();
    for (id, (at, len)) in (1..).zip([
        (24, 8),
        (32, 8),
        (40, 8),
        (52, 2),
        (54, 2),
        (56, 2),
        (58, 2),
        (60, 2),
        (62, 2),
    ]) {
        let mut bytes = whole.clone();
        bytes[at..at + len].fill(0xff);
        fs::write(&path, &bytes).unwrap();
        ask(&mut symbolizer, request(id, &path, &[TEXT]));
    }
    // A file that says it has 2^42 bytes, and sections all over it.
    let file = File::create(&path).unwrap();
    (&file).write_all(&whole).unwrap();
    if file.set_len(1 << 42).is_ok() {
        let response = ask(&mut symbolizer, request(100, &path, &[TEXT]));
        assert_eq!(name(&response), "honest", "{response:?}");
    }
    assert_eq!(symbolizer.cost().failed, 0);
}

#[test]
fn what_cannot_be_read_is_shown_by_its_addresses_with_the_reason() {
    const TEST: &str = "what_cannot_be_read_is_shown_by_its_addresses_with_the_reason";
    let Some(_alone) = alone(TEST) else { return };
    let agent = Agent::new();
    // Section headers that are not there: the program runs all the same.
    let program = agent.path("headless");
    let mut bytes = fs::read(compiled("split")).unwrap();
    bytes[40..48].fill(0x7f);
    let preliminary = agent.path("bytes");
    fs::write(&preliminary, bytes).unwrap();
    fs::set_permissions(&preliminary, Permissions::from_mode(0o755)).unwrap();
    copy_to_run(&preliminary, &program);
    let report = agent.path("report");
    let workload = Workload::start(&program, [report.as_os_str(), "3600000".as_ref(), "1".as_ref()]);
    let pid = workload.pid().to_string();
    let run = agent.run([
        "-p", &pid, "-F", "499", "-d", "1s", "-o", "x.folded", "-o", "x.otlp",
    ]);
    run.expect(0, &["some names are missing", "not a valid ELF file"]);
    let picture = Picture::folded_file(&agent.path("x.folded"));
    let frames = picture.frames();
    let by_address = frames.iter().filter(|(frame, _)| {
        let offset = frame
            .strip_prefix("[headless+0x")
            .and_then(|rest| rest.strip_suffix(']'));
        offset.is_some_and(|offset| u64::from_str_radix(offset, 16).is_ok())
    });
    let by_address: u64 = by_address.map(|(_, count)| count).sum();
    assert!(by_address >= picture.total() / 2, "{:?}", picture.frames());
    let otlp = fs::read(agent.path("x.otlp")).unwrap();
    for text in ["profile.mapping.remark", "not a valid ELF file"] {
        assert!(
            otlp.windows(text.len()).any(|window| window == text.as_bytes()),
            "{text}"
        );
    }
}

// ---- names that are read by people -----------------------------------------------------------------------------

#[test]
fn no_name_is_markup_or_a_command_to_a_terminal() {
    const TEST: &str = "no_name_is_markup_or_a_command_to_a_terminal";
    let Some(_alone) = alone(TEST) else { return };
    let agent = Agent::new();
    let source = agent.path("evil.c");
    let name = format!("evil_{}", "A".repeat(1 << 20));
    fs::write(
        &source,
        format!("__attribute__((noinline)) void {name}(void) {{ for (volatile int i = 0; i < 100000; i++); }} int main(void) {{ for (;;) {name}(); }}"),
    )
    .unwrap();
    let program = agent.path("evil<b>\u{1b}[31m");
    run(Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source));
    let mut bytes = fs::read(&program).unwrap();
    let place = bytes
        .windows(64)
        .position(|window| window == &name.as_bytes()[5..69])
        .unwrap();
    let evil = "\"/><script>alert(1)</script>\x1b[31m\x07;\n\r\u{9b}";
    let text: Vec<u8> = evil.as_bytes().iter().copied().cycle().take(1 << 20).collect();
    bytes[place..place + text.len()].copy_from_slice(&text);
    let preliminary = agent.path("bytes");
    fs::write(&preliminary, bytes).unwrap();
    copy_to_run(&preliminary, &program);
    let workload = Workload::start(&program, [""; 0]);
    let pid = workload.pid().to_string();
    let run = agent.run([
        "-p", &pid, "-d", "2s", "-o", "x.svg", "-o", "x.html", "-o", "x.folded", "-o", "x.pb.gz", "-vv",
    ]);
    // It checks the terminal too.
    run.expect(0, &["x.svg"]);
    for file in ["x.svg", "x.html", "x.folded"] {
        let text = fs::read(agent.path(file)).unwrap();
        let has = |needle: &[u8]| text.windows(needle.len()).any(|window| window == needle);
        assert!(has(b"script"), "{file}: the name is there");
        assert!(
            !has(b"\x1b") && !has(b"\x07") && !has("\u{9b}".as_bytes()),
            "{file}"
        );
        assert!(text.len() < 1 << 20, "{file}: {} bytes", text.len());
        if file != "x.folded" {
            assert!(!has(b"<script>alert"), "{file}");
        }
    }
    let folded = Picture::folded_file(&agent.path("x.folded"));
    assert!(folded.total() > 10);
}
