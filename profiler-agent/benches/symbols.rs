//! What names cost: the child and its messages against the parsers called directly, a large library with and without debug information,
//! and what is answered from the cache.
//!
//! - `libLLVM`: that of rustc, 200 MB, with a symbol table alone;
//! - `program`: a library of 80 units of C++ (benches/programs/unit.cpp), each with its own types: 100 MB of .debug_info.
//!
//! 1,000 addresses each, spread over all functions. CPU time of both processes together, median of several runs, each with a child of its own;
//! what is called directly runs in a process of its own too. Files are in the page cache.
//!
//! Run by `cargo xtask bench symbols`.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use blazesym::symbolize::{
    Input, Symbolizer as Blazesym,
    source::{Elf, Source as ElfSource},
};
use object::{Object as _, ObjectSymbol as _};
use profiler_agent::{
    aggregate::{Aggregator, Limits},
    clock::Clock,
    process::Processes,
    sampling::record::{Frames, Sample},
    symbols::{Object, Request, Resolver, Source, Symbolizer},
};
use profiler_common::{Outcome, record::EventKind};
use rustix::time::{ClockId, clock_gettime};
use support::{Bars, figure, median};

/// Addresses asked for.
const ADDRESSES: usize = 1000;
/// Units of the program.
const UNITS: usize = 80;
/// Runs that begin with nothing.
const COLD: usize = 5;
/// Times that the same is asked again.
const WARM: usize = 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("direct") {
        let arguments: Vec<String> = arguments.collect();
        direct(&arguments[0], Path::new(&arguments[1]));
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut bars = Bars::default();
    let llvm = llvm();
    let program = program(folder.path());
    for (name, path, most_cold) in [
        ("libLLVM", &llvm, 0.3),
        ("C++ with debug information", &program, 2.0),
    ] {
        let addresses = addresses(path);
        println!(
            "{name}: {} MB, {} addresses",
            fs::metadata(path).unwrap().len() >> 20,
            addresses.len()
        );
        let list = folder.path().join("addresses");
        let text: String = addresses.iter().map(|address| format!("{address:x}\n")).collect();
        fs::write(&list, text).unwrap();
        let blazesym = measure_direct("blazesym", path, &list);
        let resolver = measure_direct("resolver", path, &list);
        let child = measure_child(path, &addresses, &mut bars, name);
        println!(
            "{name}: CPU ms cold, µs warm: blazesym {} {}, parsers {} {}, child {} {}",
            figure(blazesym.0 * 1e3),
            figure(blazesym.1 * 1e6),
            figure(resolver.0 * 1e3),
            figure(resolver.1 * 1e6),
            figure(child.0 * 1e3),
            figure(child.1 * 1e6),
        );
        bars.at_most(
            &format!("{name}: cold, CPU time with the child"),
            child.0,
            most_cold,
            "s",
        );
        bars.at_most(
            &format!("{name}: cold, beside blazesym in process"),
            child.0 / blazesym.0,
            1.2,
            "x",
        );
        bars.at_most(
            &format!("{name}: warm, beside blazesym in process"),
            child.1 / blazesym.1,
            1.2,
            "x",
        );
    }
    cache(&mut bars);
    bars.code()
}

/// rustc's own, which is wherever this is built.
fn llvm() -> PathBuf {
    let sysroot = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--print", "sysroot"])
        .output()
        .expect("rustc");
    let folder = Path::new(String::from_utf8_lossy(&sysroot.stdout).trim()).join("lib");
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let found = files
        .filter(|path| path.to_string_lossy().contains("LLVM"))
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    found.expect("rustc's libLLVM")
}

fn program(folder: &Path) -> PathBuf {
    let run = |command: &mut Command| {
        let status = command.status();
        assert!(status.expect("binutils and g++").success(), "{command:?}");
    };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/programs/unit.cpp");
    let (unit, program) = (folder.join("unit.o"), folder.join("program.so"));
    run(Command::new("g++")
        .args(["-std=c++17", "-g", "-O1", "-fPIC", "-c", source, "-o"])
        .arg(&unit));
    let mut link = Command::new("g++");
    link.args(["-shared", "-o"]).arg(&program);
    for number in 0..UNITS {
        let copy = folder.join(format!("unit{number}.o"));
        run(Command::new("objcopy")
            .arg(format!("--redefine-sym=unit_main=unit_main_{number}"))
            .args([&unit, &copy]));
        link.arg(copy);
    }
    run(&mut link);
    for number in 0..UNITS {
        fs::remove_file(folder.join(format!("unit{number}.o"))).unwrap();
    }
    program
}

/// Addresses in the middle of functions, evenly spread.
fn addresses(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let functions = elf
        .symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 16);
    let mut all: Vec<u64> = functions
        .map(|symbol| symbol.address() + symbol.size() / 2)
        .collect();
    all.sort_unstable();
    all.dedup();
    let step = (all.len() / ADDRESSES).max(1);
    all.into_iter().step_by(step).take(ADDRESSES).collect()
}

fn object(path: &Path) -> Object {
    Object::Elf {
        file: Arc::new(File::open(path).unwrap()),
        path: path.to_str().unwrap().to_owned(),
        pid: 0,
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// In a process of its own: prints the CPU seconds of 1,000 addresses cold, and of one warm.
fn direct(how: &str, path: &Path) {
    let list = fs::read_to_string(std::env::var("PROFILER_BENCH_ADDRESSES").unwrap()).unwrap();
    let addresses: Vec<u64> = list
        .lines()
        .map(|line| u64::from_str_radix(line, 16).unwrap())
        .collect();
    let mut ask: Box<dyn FnMut() -> usize> = if how == "blazesym" {
        let blazesym = Blazesym::builder().enable_auto_reload(false).build();
        let path = path.to_owned();
        let addresses = addresses.clone();
        Box::new(move || {
            let source = ElfSource::Elf(Elf::new(&path));
            let answers = blazesym
                .symbolize(&source, Input::VirtOffset(&addresses))
                .unwrap();
            answers.iter().filter(|answer| answer.as_sym().is_some()).count()
        })
    } else {
        let mut resolver = Resolver::new();
        let mut source = Some(Source::Elf {
            file: Arc::new(File::open(path).unwrap()),
            path: path.to_str().unwrap().to_owned(),
            debug: None,
            inlines: true,
            supplement: None,
            package: None,
        });
        let addresses = addresses.clone();
        Box::new(move || {
            let answer = resolver.resolve(1, source.take(), &addresses);
            answer
                .symbols
                .iter()
                .filter(|symbols| !symbols.functions.is_empty())
                .count()
        })
    };
    let begun = cpu();
    let named = ask();
    let cold = cpu() - begun;
    assert!(named * 100 >= addresses.len() * 98, "{named}");
    let begun = cpu();
    for _ in 0..WARM {
        ask();
    }
    let warm = (cpu() - begun).as_secs_f64() / (WARM * addresses.len()) as f64;
    println!("{} {warm}", cold.as_secs_f64());
}

fn measure_direct(how: &str, path: &Path, list: &Path) -> (f64, f64) {
    let runs = (0..COLD).map(|_| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["direct", how])
            .arg(path)
            .env("PROFILER_BENCH_ADDRESSES", list)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let (cold, warm) = text.trim().split_once(' ').unwrap();
        (cold.parse::<f64>().unwrap(), warm.parse::<f64>().unwrap())
    });
    let (cold, warm): (Vec<f64>, Vec<f64>) = runs.unzip();
    (median(&cold), median(&warm))
}

fn ask(symbolizer: &mut Symbolizer, request: Request) -> usize {
    symbolizer.try_request(request).unwrap();
    let answer = symbolizer.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(answer.error, None);
    let named = answer
        .symbols
        .iter()
        .filter(|symbols| !symbols.functions.is_empty());
    named.count()
}

fn status(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.map_or(0.0, |line| {
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    })
}

fn measure_child(path: &Path, addresses: &[u64], bars: &mut Bars, name: &str) -> (f64, f64) {
    let (mut cold, mut warm, mut peaks, mut after, mut walls) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..COLD {
        let mut symbolizer =
            Symbolizer::start(Path::new(env!("CARGO_BIN_EXE_profiler-agent")), true, None).unwrap();
        // A capture starts the child long before the first name is asked for.
        ask(
            &mut symbolizer,
            Request {
                id: 1,
                object: object(Path::new("/proc/self/exe")),
                addresses: Vec::new(),
            },
        );
        let request = |addresses: &[u64]| Request {
            id: 2,
            object: object(path),
            addresses: addresses.to_vec(),
        };
        let both = |symbolizer: &Symbolizer| cpu() + symbolizer.cost().cpu;
        let (begun, wall) = (both(&symbolizer), Instant::now());
        let named = ask(&mut symbolizer, request(addresses));
        walls.push(wall.elapsed().as_secs_f64());
        cold.push((both(&symbolizer) - begun).as_secs_f64());
        assert!(named * 100 >= addresses.len() * 98, "{named}");
        let begun = both(&symbolizer);
        for _ in 0..WARM {
            ask(&mut symbolizer, request(addresses));
        }
        warm.push((both(&symbolizer) - begun).as_secs_f64() / (WARM * addresses.len()) as f64);
        let child = symbolizer.cost().pid;
        let own = status(std::process::id(), "VmRSS:");
        peaks.push(own + status(child, "VmHWM:"));
        if round == 0 {
            // It lets the files go when it is not asked for a while.
            std::thread::sleep(Duration::from_secs(3));
            after.push(status(std::process::id(), "VmRSS:") + status(child, "VmRSS:"));
        }
    }
    println!("{name}: {} s on the clock, cold", figure(median(&walls)));
    bars.at_most(
        &format!("{name}: peak of both processes"),
        median(&peaks),
        300.0,
        "MB",
    );
    bars.at_most(&format!("{name}: both processes after 3 s"), after[0], 60.0, "MB");
    (median(&cold), median(&warm))
}

/// New stacks of known locations: each of their frames is found in the cache of locations.
fn cache(bars: &mut Bars) {
    const FRAMES: usize = 100;
    const STACKS: usize = 20_000;
    let clock = Clock::now();
    let mut aggregator = Aggregator::new(Limits::default(), clock);
    let mut processes = Processes::new(None);
    let process = Arc::clone(processes.find(std::process::id()));
    let base = main as *const () as u64;
    let mut random = 1_u64;
    let mut add = |count: usize| {
        for _ in 0..count {
            let addresses: Vec<u8> = (0..FRAMES)
                .flat_map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (base + (random >> 33) % 4096).to_ne_bytes()
                })
                .collect();
            let sample = Sample {
                kind: EventKind::Cpu,
                outcome: Outcome::Complete,
                pid: std::process::id(),
                tid: 1,
                weight: 1,
                comm: *b"bench\0\0\0\0\0\0\0\0\0\0\0",
                kernel: Frames(&[]),
                user: Frames(&addresses),
            };
            aggregator.add(&sample, 0, 0, &process, &mut processes);
        }
    };
    add(1000);
    let begun = cpu();
    add(STACKS);
    let taken = (cpu() - begun).as_secs_f64();
    let millions = (STACKS * FRAMES) as f64 / taken / 1e6;
    println!("cache: {} million look-ups a second", figure(millions));
    bars.at_most(
        "a look-up in the cache",
        taken * 1e9 / (STACKS * FRAMES) as f64,
        1000.0,
        "ns",
    );
}
