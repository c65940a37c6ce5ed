//! Names of real binaries, built here from small sources, against binutils; and files made to hurt.
//!
//! A tool that is missing skips its test: aloud, and as a failure under `PROFILER_TEST_STRICT=1`.
//!
//! One long file, as all parts use the same helpers and a second test binary would cost another link.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests fail the test"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use profiler_agent::profile::Language;
use profiler_agent::symbols::{
    NotTaken, Object, Pclntab, Position, QUEUE, Request, Response, Symbol, Symbolizer, Symbols,
};

// ---- tools -----------------------------------------------------------------------------------------------------

/// Whether all tools are there.
fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| {
            let version = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            version.is_err()
        })
        .collect();
    if missing.is_empty() {
        return true;
    }
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let text = format!("symbols::{name}: skipped, missing: {missing:?}\n");
    assert!(
        std::env::var_os("PROFILER_TEST_STRICT").is_none_or(|strict| strict != "1"),
        "{text}"
    );
    eprint!("{text}");
    if let Some(path) = std::env::var_os("PROFILER_TEST_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    false
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/symbols")
        .join(name)
}

/// Builds a fixture in `folder`.
fn build(folder: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let compiler = match Path::new(source)
        .extension()
        .and_then(|extension| extension.to_str())
    {
        Some("c") => "gcc",
        Some("cpp") => "g++",
        _ => "rustc",
    };
    let output = folder.join(name);
    run(Command::new(compiler)
        .current_dir(folder)
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(fixture(source)));
    output
}

// ---- asking ----------------------------------------------------------------------------------------------------

fn object(path: &Path) -> Object {
    Object::Elf {
        file: Arc::new(File::open(path).unwrap()),
        path: path.to_str().unwrap().to_owned(),
        pid: 0,
    }
}

/// The stage as the agent runs it: its child is the agent's own program.
fn symbolizer() -> Symbolizer {
    Symbolizer::start(Path::new(env!("CARGO_BIN_EXE_profiler-agent")), true, None).unwrap()
}

/// Asks and waits for the answer.
fn resolve(symbolizer: &mut Symbolizer, request: Request) -> Response {
    symbolizer.try_request(request).unwrap();
    symbolizer.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// One that asks once.
fn answer(object: Object, addresses: &[u64]) -> Response {
    let request = Request {
        id: 7,
        object,
        addresses: addresses.to_vec(),
    };
    resolve(&mut symbolizer(), request)
}

fn ask(path: &Path, addresses: &[u64]) -> Response {
    let response = answer(object(path), addresses);
    assert_eq!(response.id, 7);
    let answered: Vec<u64> = response.symbols.iter().map(|symbols| symbols.address).collect();
    assert_eq!(answered, addresses);
    response
}

fn one(path: &Path, address: u64) -> Vec<Symbol> {
    ask(path, &[address]).symbols.remove(0).functions
}

/// Functions of the symbol table with their ranges, by name.
fn functions(path: &Path) -> BTreeMap<String, (u64, u64)> {
    let text = run(Command::new("nm").args(["-S", "--defined-only"]).arg(path));
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() == 4 && matches!(fields[2], "t" | "T" | "w" | "W"))
        .map(|fields| {
            let start = u64::from_str_radix(fields[0], 16).unwrap();
            (
                fields[3].to_owned(),
                (start, u64::from_str_radix(fields[1], 16).unwrap()),
            )
        })
        .collect()
}

/// Addresses in all functions, `step` bytes apart, at most `most`, spread evenly.
fn addresses(path: &Path, step: usize, most: usize) -> Vec<u64> {
    let all: Vec<u64> = functions(path)
        .values()
        .flat_map(|(start, size)| (*start..start + size).step_by(step))
        .collect();
    let every = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(every).collect()
}

/// `(function, file:line)` of each address, innermost first, as binutils says it, or LLVM's tool of the same manners.
fn addr2line(tool: &str, path: &Path, addresses: &[u64]) -> Vec<Vec<(String, String)>> {
    let mut child = Command::new(tool)
        .args(["-a", "-i", "-f", "-C", "-e"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address:#x}\n"))
        .collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    let mut answers: Vec<Vec<(String, String)>> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            answers.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap();
        let place = place.split(" (discriminator").next().unwrap();
        answers
            .last_mut()
            .unwrap()
            .push((line.to_owned(), place.to_owned()));
    }
    answers
}

/// What differs from binutils, each with its reason; the rest panics.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    /// Equal in every frame, name, file and line.
    equal: usize,
    /// We say more of the name: DWARF has `f` or `f<T>` where the symbol table has `ns::f(int)`.
    fuller_name: usize,
    /// Our demangler does not know the name's mangling, and gives it without its arguments.
    shorter_name: usize,
    /// Neither has a name.
    unknown: usize,
    /// Without line information binutils gives the compilation unit that the symbol table says.
    unit_only: usize,
    /// At the first address of a function binutils gives the innermost frame the function's name, although its
    /// place is that of the inlined one.
    first_address: usize,
    /// What is left, for the message.
    other: Vec<String>,
}

impl Differences {
    fn summary(&self) -> String {
        let Self {
            equal,
            fuller_name,
            shorter_name,
            unknown,
            unit_only,
            first_address,
            other,
        } = self;
        format!(
            "{equal} equal, {fuller_name} with a fuller name, {shorter_name} with a shorter one, {unknown} unknown to both, {unit_only} with a unit only, \
             {first_address} at first addresses, {} other",
            other.len()
        )
    }
}

fn compare(path: &Path, addresses: &[u64]) -> Differences {
    let ours = ask(path, addresses);
    assert_eq!(ours.error, None);
    compare_with(&ours, &["addr2line"], path, addresses)
}

/// What differs of an answer from what other tools say of the same program, whole; where they differ from each other, the one that is nearer.
fn compare_with(ours: &Response, tools: &[&str], truth: &Path, addresses: &[u64]) -> Differences {
    let theirs: Vec<_> = tools
        .iter()
        .map(|tool| {
            let answers = addr2line(tool, truth, addresses);
            assert_eq!(answers.len(), addresses.len(), "{tool}");
            answers
        })
        .collect();
    let mut differences = Differences::default();
    for (place, ours) in ours.symbols.iter().enumerate() {
        let mine: Vec<(String, String)> = ours
            .functions
            .iter()
            .map(|symbol| {
                let line = if symbol.line == 0 {
                    "?".to_owned()
                } else {
                    symbol.line.to_string()
                };
                let file = if symbol.file.is_empty() {
                    "??"
                } else {
                    &symbol.file
                };
                (symbol.name.to_string(), format!("{}:{line}", canonical(file)))
            })
            .collect();
        let nearest = theirs
            .iter()
            .map(|theirs| difference(&mine, &theirs[place]))
            .min();
        let count = match nearest.unwrap() {
            Difference::None => &mut differences.equal,
            Difference::FullerName => &mut differences.fuller_name,
            Difference::ShorterName => &mut differences.shorter_name,
            Difference::Unknown => &mut differences.unknown,
            Difference::UnitOnly => &mut differences.unit_only,
            Difference::FirstAddress => &mut differences.first_address,
            Difference::Other => {
                let theirs: Vec<_> = theirs.iter().map(|theirs| &theirs[place]).collect();
                differences.other.push(format!(
                    "{:#x}:\n  ours   {mine:?}\n  theirs {theirs:?}",
                    ours.address
                ));
                continue;
            }
        };
        *count += 1;
    }
    differences
}

/// How an answer differs; the fields of [`Differences`].
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    None,
    FullerName,
    ShorterName,
    Unknown,
    UnitOnly,
    FirstAddress,
    Other,
}

fn difference(mine: &[(String, String)], theirs: &[(String, String)]) -> Difference {
    let theirs: Vec<(String, String)> = theirs
        .iter()
        .map(|(name, place)| {
            let (file, line) = place.rsplit_once(':').unwrap();
            (
                name.clone(),
                format!("{}:{}", canonical(file), if line == "0" { "?" } else { line }),
            )
        })
        .collect();
    let same = |one: &str, other: &str| one == other || squeezed(one) == squeezed(other);
    let fuller = |one: &str, other: &str| {
        one.contains(other.split('<').next().unwrap()) || other.starts_with("{closure")
    };
    let pairs = || mine.iter().zip(&theirs);
    let places = mine.len() == theirs.len() && pairs().all(|(one, other)| same_place(&one.1, &other.1));
    if mine.is_empty() && theirs.iter().all(|(name, _)| name == "??") {
        Difference::Unknown
    } else if places && pairs().all(|(one, other)| same(&one.0, &other.0)) {
        Difference::None
    } else if places && pairs().all(|(one, other)| same(&one.0, &other.0) || fuller(&one.0, &other.0)) {
        Difference::FullerName
    } else if places
        && pairs().all(|(one, other)| {
            same(&one.0, &other.0) || fuller(&one.0, &other.0) || other.0.contains(&format!("{}<", one.0))
        })
    {
        Difference::ShorterName
    } else if mine.len() == 1 && theirs.len() == 1 && same(&mine[0].0, &theirs[0].0) && mine[0].1 == "??:?" {
        Difference::UnitOnly
    } else if places && same(&theirs[0].0, &mine.last().unwrap().0) {
        Difference::FirstAddress
    } else {
        Difference::Other
    }
}

/// Path without `.` and `..`: who joins folder and file writes them differently.
fn canonical(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." if parts.last().is_some_and(|last| !last.is_empty()) => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Where the compilation's folder has a relative name, as in Debian's C library, others put it before itself: `./libio/./libio/genops.c`.
fn same_place(ours: &str, theirs: &str) -> bool {
    let before = theirs.strip_suffix(ours);
    before.is_some_and(|folder| folder.is_empty() || (folder.ends_with('/') && ours.starts_with(folder)))
}

/// Demanglers agree on everything but spaces, and short names of streams that the mangling knows.
fn squeezed(name: &str) -> String {
    let name = name.replace(' ', "");
    ["istream", "ostream", "iostream"]
        .iter()
        .fold(name, |name, stream| {
            name.replace(&format!("basic_{stream}<char,std::char_traits<char>>"), stream)
        })
}

// ---- names -----------------------------------------------------------------------------------------------------

#[test]
fn c_with_inlines_is_as_addr2line_says() {
    if !have(&["gcc", "nm", "addr2line"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("dwarf5", &["-O2", "-g", "-gdwarf-5"][..]),
        ("dwarf4", &["-O2", "-g", "-gdwarf-4"]),
        ("zlib", &["-O2", "-g", "-gz=zlib"]),
        ("unoptimized", &["-O0", "-g", "-no-pie"]),
    ] {
        let program = build(folder.path(), "inlines.c", name, flags);
        let differences = compare(&program, &addresses(&program, 1, 1000));
        eprintln!("{name}: {}", differences.summary());
        assert!(
            differences.other.is_empty(),
            "{name}: {}",
            differences.other.join("\n")
        );
        assert!(differences.equal > 200, "{name}: {differences:?}");
    }
    let program = folder.path().join("dwarf5");
    let (start, size) = functions(&program)["plain_static"];
    let all: Vec<u64> = (start..start + size).collect();
    let names: Vec<Vec<String>> = ask(&program, &all)
        .symbols
        .iter()
        .map(|symbols| {
            symbols
                .functions
                .iter()
                .map(|symbol| symbol.name.to_string())
                .collect()
        })
        .collect();
    assert!(
        names
            .iter()
            .any(|names| names == &["innermost", "middle", "plain_static"]),
        "{names:?}"
    );
}

#[test]
fn cold_part_has_its_function_s_name() {
    if !have(&["gcc", "nm"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "split", &["-O2", "-g"]);
    let cold = functions(&program)["split.cold"].0;
    let functions = one(&program, cold + 1);
    assert_eq!(&*functions.last().unwrap().name, "split");
    assert!(functions.last().unwrap().file.ends_with("inlines.c"));
}

#[test]
fn cpp_is_demangled_and_keeps_its_mangled_name() {
    if !have(&["g++", "nm", "addr2line"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "names.cpp", "cpp", &["-O1", "-g"]);
    let differences = compare(&program, &addresses(&program, 3, 1000));
    eprintln!("cpp: {}", differences.summary());
    assert!(differences.other.is_empty(), "{}", differences.other.join("\n"));
    assert!(differences.equal > 200, "{differences:?}");

    let table = functions(&program);
    let (mangled, (start, _)) = table
        .iter()
        .find(|(name, _)| name.starts_with("_ZN5outer5inner5twiceIi"))
        .unwrap();
    let symbol = one(&program, *start).pop().unwrap();
    assert_eq!(
        (&*symbol.name, &*symbol.system_name),
        ("int outer::inner::twice<int>(int)", mangled.as_str())
    );
    let (_, (start, _)) = table
        .iter()
        .find(|(name, _)| name.contains("static_function"))
        .unwrap();
    let symbol = one(&program, *start).pop().unwrap();
    assert_eq!(
        (&*symbol.name, &*symbol.system_name),
        ("static_function(int)", "_ZL15static_functioni")
    );
}

#[test]
fn cpp_bomb_is_cut_in_no_time() {
    if !have(&["gcc", "nm"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for flags in [&["-O1"][..], &["-O1", "-g"]] {
        let program = build(folder.path(), "bomb.c", "bomb", flags);
        let (mangled, (start, _)) = functions(&program)
            .into_iter()
            .find(|(name, _)| name.starts_with("_Z1f1AIiiES_"))
            .unwrap();
        let begun = Instant::now();
        let symbol = one(&program, start).pop().unwrap();
        // Uncut it takes minutes: a debug build took 4 s for 2^20 parts. Five leave room for a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(
            symbol.name.len() <= 4096 && symbol.name.ends_with('…'),
            "{}",
            symbol.name.len()
        );
        assert_eq!(*symbol.system_name, *mangled);
    }
}

#[test]
fn rust_is_demangled_without_hash() {
    if !have(&["rustc", "nm", "addr2line"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The standard library is built with the legacy scheme or v0, by release; the program with both in any case.
    let v0 = ["-Csymbol-mangling-version=v0", "-Copt-level=2", "-g"];
    let program = build(folder.path(), "names.rs", "v0", &v0);
    let table = functions(&program);
    let area = table
        .iter()
        .find(|(name, _)| name.starts_with("_R") && name.contains("4Area4area"))
        .unwrap();
    let functions = one(&program, area.1.0 + 1);
    let outermost = functions.last().unwrap();
    assert_eq!(
        &*outermost.name,
        "<names::shapes::Square<u32> as names::shapes::Area>::area"
    );
    assert_eq!(*outermost.system_name, **area.0);
    let differences = compare(&program, &addresses(&program, 5, 600));
    eprintln!("v0: {}", differences.summary());
    assert!(
        differences.other.len() * 50 < differences.equal,
        "{}",
        differences.other.join("\n")
    );

    let legacy = table
        .iter()
        .find(|(name, _)| name.starts_with("_ZN") && name.contains("17h"));
    if let Some((mangled, (start, _))) = legacy {
        let symbol = one(&program, *start).pop().unwrap();
        assert_eq!(*symbol.system_name, **mangled);
        assert!(
            !symbol.name.contains("::h") && symbol.name.contains("::"),
            "{}",
            symbol.name
        );
    }
}

#[test]
fn this_test_is_as_addr2line_says() {
    if !have(&["nm", "addr2line"]) {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let differences = compare(&program, &addresses(&program, 16, 400));
    eprintln!("this test: {}", differences.summary());
    assert!(
        differences.other.len() * 50 < differences.equal,
        "{}",
        differences.other.join("\n")
    );
}

#[test]
fn stripped_files_say_what_is_left() {
    if !have(&["gcc", "nm", "strip", "readelf"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let library = build(
        folder.path(),
        "inlines.c",
        "dynamic",
        &["-O2", "-g", "-shared", "-fPIC"],
    );
    let table = functions(&library);
    run(Command::new("strip").arg(&library));
    let (exported, hidden) = (table["split"].0, table["plain_static"].0);
    let answer = ask(&library, &[exported, hidden]);
    assert_eq!(answer.error, None);
    assert_eq!(&*answer.symbols[0].functions[0].name, "split");
    assert_eq!(
        (
            answer.symbols[0].functions[0].line,
            answer.symbols[0].functions.len()
        ),
        (0, 1)
    );
    assert_eq!(answer.symbols[1].functions, []);

    let program = build(folder.path(), "inlines.c", "static", &["-O2", "-g"]);
    let main = functions(&program)["main"].0;
    run(Command::new("strip").arg(&program));
    let answer = ask(&program, &[main, 0, u64::MAX]);
    assert!(
        answer.symbols.iter().all(|symbols| symbols.functions.is_empty()),
        "{answer:?}"
    );
}

#[test]
fn plt_stubs_have_the_name_of_their_function() {
    if !have(&["gcc", "objdump", "strip"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("plain", &["-O2", "-g", "-fcf-protection=none"][..]),
        ("ibt", &["-O2", "-g", "-fcf-protection=full"]),
        ("lazy", &["-O2", "-g", "-Wl,-z,lazy"]),
    ] {
        let program = build(folder.path(), "inlines.c", name, flags);
        run(Command::new("strip").arg(&program));
        // `0000000000001030 <abort@plt>:`
        let text = run(Command::new("objdump")
            .args(["-d", "--section=.plt", "--section=.plt.sec"])
            .arg(&program));
        let stubs: Vec<(u64, String)> = text
            .lines()
            .filter_map(|line| line.strip_suffix(">:")?.split_once(" <"))
            .filter(|(_, name)| name.ends_with("@plt") && !name.starts_with('*'))
            .map(|(address, name)| (u64::from_str_radix(address, 16).unwrap(), name.to_owned()))
            .collect();
        assert!(stubs.len() >= 3, "{name}: {text}");
        for (address, stub) in stubs {
            assert_eq!(*one(&program, address + 4)[0].name, *stub, "{name}");
        }
    }
}

/// The `go` command.
fn go() -> Option<PathBuf> {
    match std::env::var_os("PROFILER_TEST_GO").filter(|go| !go.is_empty()) {
        Some(go) => Some(go.into()),
        // It knows no `--version`, but answers it.
        None => have(&["go"]).then(|| "go".into()),
    }
}

/// A program of Go, linked in different ways.
fn build_go(go: &Path, folder: &Path, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let output = folder.join(name);
    run(Command::new(go)
        .current_dir(folder)
        .env("GOTOOLCHAIN", "local")
        .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
        .env("GOFLAGS", "-mod=mod")
        .arg("build")
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(fixture(source)));
    output
}

#[test]
fn stripped_go_has_the_names_and_lines_of_go_itself() {
    let Some(go) = go() else { return };
    if !have(&["nm", "strip"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [("plain", &[][..]), ("pie", &["-buildmode=pie"])] {
        let whole = build_go(&go, folder.path(), "tree.go", name, flags);
        let stripped = folder.path().join("stripped");
        run(Command::new("strip").arg("-o").arg(&stripped).arg(&whole));
        let addresses = addresses(&whole, 5, 3000);
        let ours = ask(&stripped, &addresses);
        assert_eq!(ours.error, None);

        let mut theirs = Command::new(&go)
            .args(["tool", "addr2line"])
            .arg(&whole)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = theirs.stdin.take().unwrap();
        let lines: String = addresses.iter().map(|address| format!("{address:x}\n")).collect();
        let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
        let output = theirs.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs: Vec<&str> = text.lines().collect();
        assert_eq!(theirs.len(), 2 * addresses.len());
        let mut differ = Vec::new();
        for (symbols, theirs) in ours.symbols.iter().zip(theirs.chunks(2)) {
            let mine = match symbols.functions.as_slice() {
                [symbol] => (
                    symbol.name.to_string(),
                    format!("{}:{}", symbol.file, symbol.line),
                ),
                _ => ("?".to_owned(), "?:0".to_owned()),
            };
            // Old releases of the tool find no table in programs that can be loaded anywhere.
            let is_known = theirs[0] != "?" || name == "plain";
            if is_known && (mine.0.as_str(), mine.1.as_str()) != (theirs[0], theirs[1]) {
                differ.push(format!("{:#x}: {mine:?}, {theirs:?}", symbols.address));
            }
        }
        eprintln!("{name}: {} addresses, {} differ", addresses.len(), differ.len());
        assert!(
            addresses.len() > 1000 && differ.is_empty(),
            "{name}: {}",
            differ.join("\n")
        );
        assert!(
            ours.symbols
                .iter()
                .all(|symbols| symbols.language == Language::Go)
        );
    }
}

/// Go 1.2 to 1.15 had another layout. Go's own tests keep such a table.
#[test]
fn tables_of_old_go_are_read_as_go_reads_them() {
    let Some(go) = go() else { return };
    let root = run(Command::new(&go).args(["env", "GOROOT"]));
    let packed = Path::new(root.trim()).join("src/debug/gosym/testdata/pcln115.gz");
    let folder = tempfile::tempdir().unwrap();
    let gosym = build_go(&go, folder.path(), "gosym.go", "gosym", &[]);
    let theirs = run(Command::new(gosym).arg(&packed));

    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(File::open(&packed).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    let path = folder.path().join("table");
    // Not at the beginning of the file, where an offset that is left out does not show.
    fs::write(&path, [&[0; 100], bytes.as_slice()].concat()).unwrap();
    let file = File::open(&path).unwrap();
    let table = Pclntab::parse(&file, (100, bytes.len() as u64), 0).unwrap();
    let mut compared = 0;
    for line in theirs.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let address = fields[0].parse().unwrap();
        let expected = Position {
            name: fields[1].to_owned(),
            file: fields[2].to_owned(),
            // Of what is no function it makes up a negative one.
            line: fields[3].parse::<i64>().unwrap().try_into().unwrap_or_default(),
        };
        assert_eq!(table.position(&file, address), Some(expected), "{address:#x}");
        compared += 1;
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn without_any_name_there_is_the_start_of_the_function() {
    if !have(&["gcc", "nm", "strip"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "nameless", &["-O2", "-g"]);
    let table = functions(&program);
    run(Command::new("strip").arg(&program));
    for name in ["main", "plain_static", "split"] {
        let (start, size) = table[name];
        for address in [start, start + size / 2, start + size - 1] {
            let answer = ask(&program, &[address]).symbols.remove(0);
            assert_eq!((answer.functions.len(), answer.start), (0, Some(start)), "{name}");
        }
    }
    let answer = ask(&program, &[0, 16, u64::MAX]);
    assert!(
        answer.symbols.iter().all(|symbols| symbols.start.is_none()),
        "{answer:?}"
    );
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program of our own making")]
fn a_name_that_is_no_text_costs_that_name_alone() {
    if !have(&["gcc", "nm"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (number, flags) in [&["-O2"][..], &["-O2", "-g"]].into_iter().enumerate() {
        let program = build(folder.path(), "inlines.c", &format!("latin{number}"), flags);
        let table = functions(&program);
        let mut bytes = fs::read(&program).unwrap();
        let name = b"plain_static\0";
        for at in 0..bytes.len() - name.len() {
            if bytes[at..at + name.len()] == *name {
                bytes[at + 5] = 0xe9;
            }
        }
        fs::write(&program, bytes).unwrap();
        let (start, size) = table["plain_static"];
        let answer = ask(&program, &[start + size / 2, table["main"].0]);
        let [nameless, main] = &answer.symbols[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(&*main.functions.last().unwrap().name, "main", "{answer:?}");
        match nameless.functions.last() {
            // Where its function begins is known all the same.
            None => assert_eq!(nameless.start, Some(start), "{answer:?}"),
            Some(function) => assert!(function.name.starts_with("plain"), "{answer:?}"),
        }
    }
}

#[test]
fn debug_file_by_link_is_used_if_its_checksum_is_right() {
    if !have(&["gcc", "nm", "strip", "objcopy"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(
        folder.path(),
        "inlines.c",
        "linked",
        &["-O2", "-g", "-Wl,--build-id=none"],
    );
    let main = functions(&program)["main"].0;
    let debug = folder.path().join("linked.debug");
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(&program)
        .arg(&debug));
    run(Command::new("strip").arg(&program));
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    run(Command::new("objcopy").arg(link).arg(&program));
    assert!(one(&program, main).pop().unwrap().file.ends_with("inlines.c"));

    let hidden = folder.path().join(".debug");
    fs::create_dir(&hidden).unwrap();
    fs::rename(&debug, hidden.join("linked.debug")).unwrap();
    assert!(one(&program, main).pop().unwrap().file.ends_with("inlines.c"));

    // Another version of the file is no source, and no failure.
    let mut changed = OpenOptions::new()
        .append(true)
        .open(hidden.join("linked.debug"))
        .unwrap();
    changed.write_all(b"x").unwrap();
    let answer = ask(&program, &[main]);
    assert_eq!((answer.symbols[0].functions.len(), answer.error), (0, None));

    // A pipe at its place is not opened, so nothing waits for its other end.
    let program = folder.path().join("linked");
    run(Command::new("mkfifo").arg(&debug));
    assert_eq!(ask(&program, &[main]).symbols[0].functions, []);
}

#[test]
fn debug_information_in_several_files_is_put_together() {
    if !have(&["gcc", "nm", "addr2line", "dwz", "dwp"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = build(folder.path(), "inlines.c", "whole", &["-O2", "-g", "-gdwarf-4"]);
    let addresses = addresses(&whole, 1, 1000);
    // What two files have in common moves to a third.
    let other = folder.path().join("other");
    let packed = folder.path().join("packed");
    fs::copy(&whole, &packed).unwrap();
    fs::copy(&whole, &other).unwrap();
    run(Command::new("dwz")
        .current_dir(folder.path())
        .args(["-m", "common", "packed", "other"]));
    // Contents that are not linked, but packed beside the program.
    let split = build(
        folder.path(),
        "inlines.c",
        "split",
        &["-O2", "-g", "-gdwarf-4", "-gsplit-dwarf"],
    );
    run(Command::new("dwp")
        .current_dir(folder.path())
        .args(["-e", "split", "-o", "split.dwp"]));
    for program in [packed, split] {
        let ours = ask(&program, &addresses);
        let differences = compare_with(&ours, &["addr2line"], &whole, &addresses);
        assert!(
            differences.other.is_empty() && differences.equal > 200,
            "{}: {}\n{}",
            program.display(),
            differences.summary(),
            differences.other.join("\n")
        );
        assert!(ours.symbols.iter().any(|symbols| symbols.functions.len() == 3));
    }
    // Another file at that place, and none, cost what was inlined and nothing else.
    fs::write(folder.path().join("split.dwp"), b"\x7fELF").unwrap();
    fs::remove_file(folder.path().join("common")).unwrap();
    for program in ["packed", "split"] {
        let start = functions(&folder.path().join(program))["plain_static"].0;
        assert_eq!(
            &*one(&folder.path().join(program), start).last().unwrap().name,
            "plain_static"
        );
    }
}

/// Separates a program from its debug information, which goes to where it is looked for by build ID, below `root`.
fn separate(program: &Path, root: &Path) {
    let notes = run(Command::new("readelf").arg("-n").arg(program));
    let id = notes
        .split("Build ID: ")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    let folder = root.join(".build-id").join(&id[..2]);
    fs::create_dir_all(&folder).unwrap();
    let debug = folder.join(format!("{}.debug", &id[2..]));
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(program)
        .arg(&debug));
    run(Command::new("strip").arg(program));
}

#[test]
fn debug_file_below_the_root_of_the_process_is_found() {
    if !have(&["gcc", "nm", "strip", "objcopy", "readelf", "unshare"])
        || !rustix::process::geteuid().is_root()
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(
        folder.path(),
        "inlines.c",
        "inside",
        &["-O2", "-g", "-Wl,--build-id=sha1"],
    );
    let main = functions(&program)["main"].0;
    let root = folder.path().join("debug");
    separate(&program, &root);
    assert_eq!(one(&program, main), [], "the agent does not see it");
    // A process that has that folder where debug files are.
    let script = "mkdir -p /usr/lib/debug && mount --bind $0 /usr/lib/debug && echo ready && exec sleep 60";
    let mut process = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(&root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let Object::Elf { file, path, .. } = object(&program) else {
        panic!("no ELF file")
    };
    let inside = Object::Elf {
        file,
        path,
        pid: process.id(),
    };
    let mut functions = answer(inside, &[main]).symbols.remove(0).functions;
    process.kill().unwrap();
    process.wait().unwrap();
    let function = functions.pop().unwrap();
    assert!(
        &*function.name == "main" && function.file.ends_with("inlines.c"),
        "{function:?}"
    );
}

#[test]
fn debug_file_that_has_symbols_alone_gives_names() {
    if !have(&["gcc", "nm", "strip", "objcopy"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "bare", &["-O2"]);
    let table = functions(&program);
    let debug = folder.path().join("bare.debug");
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(&program)
        .arg(&debug));
    run(Command::new("strip").arg(&program));
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    run(Command::new("objcopy").arg(link).arg(&program));
    for name in ["main", "plain_static"] {
        assert_eq!(&*one(&program, table[name].0 + 1)[0].name, name);
    }
}

#[test]
fn without_inlines_there_are_names_alone() {
    if !have(&["gcc", "nm", "strip"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "fast", &["-O2", "-g"]);
    let (start, size) = functions(&program)["plain_static"];
    let addresses: Vec<u64> = (start..start + size).collect();
    let path = Path::new(env!("CARGO_BIN_EXE_profiler-agent"));
    let mut symbolizer = Symbolizer::start(path, false, None).unwrap();
    let mut ask = |id, program: &Path| {
        let request = Request {
            id,
            object: object(program),
            addresses: addresses.clone(),
        };
        resolve(&mut symbolizer, request).symbols
    };
    for symbols in ask(1, &program) {
        let names: Vec<_> = symbols.functions.iter().map(|f| (&*f.name, f.line)).collect();
        assert_eq!(names, [("plain_static", 0)]);
    }
    // Where debug information is all there is, it is used for that.
    run(Command::new("objcopy")
        .args(["--remove-section=.symtab", "--remove-section=.strtab"])
        .arg(&program));
    for symbols in ask(2, &program) {
        let names: Vec<_> = symbols.functions.iter().map(|f| &*f.name).collect();
        assert_eq!(names, ["plain_static"]);
    }
}

#[test]
fn where_it_goes_on_for_ever_debug_information_is_read_when_it_is_worth_it() {
    if !have(&["nm"]) {
        return;
    }
    // Some 40 MiB of debug information, which are worth as many addresses.
    let program = Path::new(env!("CARGO_BIN_EXE_profiler-agent"));
    let (name, (start, _)) = functions(program)
        .into_iter()
        .find(|(name, (_, size))| name.contains("14profiler_agent") && *size > 400)
        .unwrap();
    let every = Duration::from_secs(1);
    let mut symbolizer = Symbolizer::start(program, true, Some(every)).unwrap();
    let mut lines = |count: u64| {
        let request = Request {
            id: 1,
            object: object(program),
            addresses: (start..start + count).collect(),
        };
        let response = resolve(&mut symbolizer, request);
        assert_eq!(response.error, None);
        let symbols = response.symbols.first().unwrap();
        let function = symbols.functions.last().unwrap();
        assert_eq!(&*function.system_name, name);
        function.line > 0
    };
    assert!(!lines(1), "one address");
    assert!(lines(400), "many");
    assert!(lines(1), "it is held");
    // One address now and then is not worth that.
    let released = (0..10).any(|_| {
        std::thread::sleep(Duration::from_secs(3));
        !lines(1)
    });
    assert!(released, "it is held for ever");
}

#[test]
fn kernel_symbols_are_those_of_kallsyms() {
    let mut text = String::new();
    File::open("/proc/kallsyms")
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let known: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let address = u64::from_str_radix(fields.next()?, 16).ok()?;
            Some((fields.nth(1)?, address))
        })
        .collect();
    let names = ["vfs_read", "do_nanosleep", "schedule"];
    let addresses: Vec<u64> = names.iter().map(|name| known[name] + 4).collect();
    let answer = answer(Object::Kernel, &addresses);
    if addresses[0] == 4 {
        assert!(answer.error.unwrap().contains("CAP_SYSLOG"));
        return;
    }
    assert_eq!(answer.error, None);
    for (symbols, name) in answer.symbols.iter().zip(names) {
        assert_eq!(&*symbols.functions[0].name, name);
    }
}

/// `cargo xtask prove names`: each line of the list that `PROFILER_PROVE_NAMES` names is a program, the same one with all its debug information,
/// and what is compared. What came of it is appended to the line.
#[test]
#[ignore = "part of `cargo xtask prove names`, which makes what it needs"]
fn names_are_those_of_binutils() {
    let list = PathBuf::from(std::env::var_os("PROFILER_PROVE_NAMES").unwrap());
    let mut text = String::new();
    File::open(&list).unwrap().read_to_string(&mut text).unwrap();
    let mut results = String::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [label, program, truth, tools, most] = fields[..] else {
            panic!("{line}")
        };
        let truth = Path::new(truth);
        let addresses = addresses(truth, 7, most.parse().unwrap());
        let begun = Instant::now();
        let ours = ask(Path::new(program), &addresses);
        let time = begun.elapsed().as_millis();
        let result = match tools {
            tools if tools.contains("addr2line") => {
                let tools: Vec<&str> = tools.split(' ').collect();
                let differences = compare_with(&ours, &tools, truth, &addresses);
                for other in differences.other.iter().take(40) {
                    eprintln!("{label}: {other}");
                }
                let Differences {
                    equal,
                    fuller_name,
                    shorter_name,
                    unknown,
                    unit_only,
                    first_address,
                    other,
                } = differences;
                format!(
                    "{equal}\t{fuller_name}\t{shorter_name}\t{unknown}\t{unit_only}\t{first_address}\t{}",
                    other.len()
                )
            }
            // Names alone: without debug information there is no more.
            _ => {
                let table = functions(truth);
                let mut at: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
                for (name, (start, _)) in &table {
                    at.entry(*start).or_default().push(name);
                }
                let is_right = |symbols: &&Symbols| {
                    let outermost = symbols.functions.last();
                    let name = outermost.map(|f| {
                        if f.system_name.is_empty() {
                            &f.name
                        } else {
                            &f.system_name
                        }
                    });
                    let (_, names) = at.range(..=symbols.address).next_back().unwrap();
                    name.is_some_and(|name| names.contains(&&**name))
                };
                let right = ours.symbols.iter().filter(is_right).count();
                for symbols in ours.symbols.iter().filter(|symbols| !is_right(symbols)).take(20) {
                    eprintln!("{label}: {:#x} {:?}", symbols.address, symbols.functions.last());
                }
                format!("{right}\t0\t0\t0\t0\t0\t{}", ours.symbols.len() - right)
            }
        };
        eprintln!(
            "{label}: {} addresses in {time} ms, {result}, {:?}",
            addresses.len(),
            ours.error
        );
        results.push_str(&format!("{label}\t{}\t{result}\t{time}\n", addresses.len()));
    }
    fs::write(list.with_extension("results"), results).unwrap();
}

// ---- files made to hurt ----------------------------------------------------------------------------------------

#[test]
fn broken_files_are_answered() {
    if !have(&["gcc", "nm"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "whole", &["-O2", "-g"]);
    let main = functions(&program)["main"].0;
    let mut whole = Vec::new();
    File::open(&program).unwrap().read_to_end(&mut whole).unwrap();
    let broken = folder.path().join("broken");
    for size in (0..whole.len()).step_by(whole.len() / 60) {
        fs::write(&broken, &whole[..size]).unwrap();
        let answer = ask(&broken, &[main, main + 1]);
        // What is left of a truncated file is no ELF file, or has no sections to read.
        assert!(
            answer.error.is_some() || answer.symbols.iter().all(|symbols| symbols.functions.is_empty()),
            "{size}"
        );
    }
    let mut state = 1_u64;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..40 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 25) as u8;
        }
        fs::write(&broken, &bytes).unwrap();
        ask(&broken, &addresses(&program, 16, 50));
    }
    fs::write(&broken, b"#!/bin/sh\nexit\n").unwrap();
    let answer = ask(&broken, &[1]);
    assert!(answer.error.unwrap().contains("not a valid ELF file"));
}

#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    run(Command::new("mkfifo").arg(&fifo));
    for path in [fifo.as_path(), Path::new("/dev/zero"), folder.path()] {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(0o4000)
            .open(path)
            .unwrap();
        let object = Object::Elf {
            file: Arc::new(file),
            path: "pipe".into(),
            pid: 0,
        };
        let answer = answer(object, &[1]);
        assert_eq!(answer.error.as_deref(), Some("pipe: not a regular file"));
    }
}

/// `(offset, size)` of a section in the file.
fn section(program: &Path, name: &str) -> (usize, usize) {
    let text = run(Command::new("readelf").args(["-SW"]).arg(program));
    let line = text
        .lines()
        .find(|line| line.contains(&format!(" {name} ")))
        .unwrap();
    let fields: Vec<&str> = line.split(']').nth(1).unwrap().split_whitespace().collect();
    let number = |field: &str| usize::from_str_radix(field, 16).unwrap();
    (number(fields[3]), number(fields[4]))
}

#[test]
fn bombs_are_not_unpacked() {
    if !have(&["gcc", "nm", "readelf", "objcopy"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path(), "inlines.c", "bomb", &["-O2", "-g", "-gz=zlib"]);
    let main = functions(&program)["main"].0;
    let (start, _) = section(&program, ".debug_info");
    let mut bytes = Vec::new();
    File::open(&program).unwrap().read_to_end(&mut bytes).unwrap();
    for declared in [1_u64 << 31, 1 << 40, 1 << 63, u64::MAX] {
        // Elf64_Chdr: type, reserved, size, alignment.
        bytes[start + 8..start + 16].copy_from_slice(&declared.to_le_bytes());
        fs::write(&program, &bytes).unwrap();
        let answer = ask(&program, &[main]);
        assert!(answer.error.unwrap().contains("unpack to"), "{declared:#x}");
    }
}

/// The line table of the program with every file number out of range, on which blazesym 0.2.7 panics.
fn with_bad_line_table(program: &Path) {
    let (start, size) = section(program, ".debug_line");
    let mut bytes = Vec::new();
    File::open(program).unwrap().read_to_end(&mut bytes).unwrap();
    let table = &mut bytes[start..start + size];
    // Each sequence starts with DW_LNE_set_address (00 09 02); the column set before it (05 nn) becomes a file.
    let starts: Vec<usize> = (2..table.len() - 2)
        .filter(|&at| table[at..].starts_with(&[0, 9, 2]))
        .collect();
    assert!(!starts.is_empty());
    for at in starts {
        assert_eq!(table[at - 2], 5, "DW_LNS_set_column");
        table[at - 2..at].copy_from_slice(&[4, 0x7f]);
    }
    fs::write(program, bytes).unwrap();
}

#[test]
fn panicking_parser_costs_the_lines_not_the_thread() {
    if !have(&["gcc", "nm", "readelf"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sound = build(folder.path(), "inlines.c", "sound", &["-O2", "-g"]);
    let bad = build(folder.path(), "inlines.c", "bad", &["-O2", "-g"]);
    with_bad_line_table(&bad);
    let main = functions(&sound)["main"].0;
    let mut symbolizer = symbolizer();
    for (id, path) in [(1, &sound), (2, &bad), (1, &sound), (2, &bad)] {
        symbolizer
            .try_request(Request {
                id,
                object: object(path),
                addresses: vec![main],
            })
            .unwrap();
    }
    for id in [1, 2, 1, 2] {
        let response = symbolizer.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(response.id, id);
        let function = response.symbols[0].functions.last().unwrap();
        assert_eq!(&*function.name, "main");
        assert_eq!(function.line > 0, id == 1);
        assert_eq!(
            response.error.is_some_and(|error| error.contains("panicked")),
            id == 2
        );
    }
    assert_eq!(symbolizer.pending(), 0);
}

#[test]
fn used_again_descriptor_numbers_do_not_mix_files_up() {
    if !have(&["gcc", "nm"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let programs = [
        (
            build(folder.path(), "inlines.c", "one", &["-O2", "-g", "-Dsplit=first"]),
            "first",
        ),
        (
            build(
                folder.path(),
                "inlines.c",
                "two",
                &["-O2", "-g", "-Dsplit=second"],
            ),
            "second",
        ),
    ];
    let starts = programs.clone().map(|(path, name)| functions(&path)[name].0);
    let mut symbolizer = symbolizer();
    // More than are held at once; a file of its own each, so that every one is evicted in its turn.
    for id in 0..400_u32 {
        let (path, name) = &programs[id as usize % 2];
        let copy = folder.path().join("copy");
        fs::copy(path, &copy).unwrap();
        let request = Request {
            id,
            object: object(&copy),
            addresses: vec![starts[id as usize % 2]],
        };
        let answer = resolve(&mut symbolizer, request);
        fs::remove_file(&copy).unwrap();
        assert_eq!(&*answer.symbols[0].functions.last().unwrap().name, *name, "{id}");
    }
    for pid in [std::process::id(), symbolizer.cost().pid] {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!((1..400).contains(&open), "{open} descriptors");
    }
    assert_eq!(symbolizer.cost().failed, 0);
}

// ---- the thread ------------------------------------------------------------------------------------------------

#[test]
fn full_queue_hands_the_request_back() {
    let mut symbolizer = symbolizer();
    let kernel = |address| Request {
        id: 1,
        object: Object::Kernel,
        addresses: vec![address],
    };
    let mut taken = 0;
    let refused = loop {
        match symbolizer.try_request(kernel(taken)) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        // The thread itself may hold one.
        assert!((taken as usize) < 100 * QUEUE);
        std::thread::sleep(Duration::from_micros(if taken as usize > QUEUE {
            100
        } else {
            0
        }));
    };
    assert!(
        matches!(&refused, NotTaken::Full(request) if request.addresses == [taken]),
        "{refused}"
    );
    assert_eq!(symbolizer.pending(), taken as usize);
    for address in 0..taken {
        let response = symbolizer.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(response.symbols[0].address, address);
    }
    assert_eq!(
        symbolizer.recv_timeout(Duration::from_secs(20)),
        None,
        "at once, as nothing is pending"
    );
    symbolizer.try_request(refused.into_request()).unwrap();
    assert!(symbolizer.recv_timeout(Duration::from_secs(20)).is_some());
    assert_eq!(symbolizer.try_recv(), None);
}
