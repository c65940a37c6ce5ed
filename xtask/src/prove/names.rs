//! Names: programs of several compilers, with their debug information in all the places where it is found in the wild. Are functions, inlined
//! ones, files and lines those that binutils or LLVM tell?
//!
//! The programs are built here; the comparison is a test of the agent (`tests/symbols.rs`), which is given a list of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::collector;
use crate::command;
use crate::setup;
use crate::workspace::Workspace;

/// Debian packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", ""),
    ("g++", ""),
    ("clang", ""),
    ("llvm", ""),
    ("binutils", ""),
    ("libc6-dbg", ""),
    ("dwz", ""),
    ("xz-utils", ""),
];

/// At most so many addresses of a program.
const MOST: usize = 3000;

/// A program to ask for names, and what is compared.
struct Case {
    label: &'static str,
    /// Commands for `sh` in an empty folder of all cases, which make `$OUT`. They find the workspace at `$ROOT`, SQLite's source at `$SQLITE`,
    /// and the compilers `$GO` and `$ZIG`.
    make: &'static str,
    /// What is asked for names, and the same with all that is known of it.
    program: &'static str,
    truth: &'static str,
    tools: &'static str,
    /// Least share of addresses that are equal or differ for a known reason, per cent.
    bar: f64,
}

const BOTH: &str = "addr2line llvm-addr2line";

const CASES: &[Case] = &[
    Case {
        label: "C, SQLite: gcc, DWARF 5",
        make: "gcc -O2 -g -gdwarf-5 -shared -fPIC $SQLITE -o c5.so",
        program: "c5.so",
        truth: "c5.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "the same, DWARF 4",
        make: "gcc -O2 -g -gdwarf-4 -shared -fPIC $SQLITE -o c4.so",
        program: "c4.so",
        truth: "c4.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "sections packed with zlib",
        make: "objcopy --compress-debug-sections=zlib c5.so zlib.so",
        program: "zlib.so",
        truth: "c5.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "sections packed with zstd",
        make: "objcopy --compress-debug-sections=zstd c5.so zstd.so",
        program: "zstd.so",
        truth: "c5.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "stripped, .gnu_debuglink",
        make: "objcopy --only-keep-debug c5.so link.debug; strip -o link.so c5.so; objcopy --add-gnu-debuglink=link.debug link.so",
        program: "link.so",
        truth: "c5.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "stripped, debug file by build ID",
        make: "gcc -O2 -g -Wl,--build-id=sha1 -shared -fPIC $SQLITE -o whole.so; strip -o id.so whole.so; \
               id=$(readelf -n whole.so | sed -n 's/.*Build ID: //p'); folder=/usr/lib/debug/.build-id/$(echo $id | cut -c1-2); \
               mkdir -p $folder; debug=$folder/$(echo $id | cut -c3-).debug; objcopy --only-keep-debug whole.so $debug; echo $debug > left",
        program: "id.so",
        truth: "whole.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "stripped, .gnu_debugdata: names alone",
        make: "nm -D --format=posix --defined-only c5.so | cut -d' ' -f1 | sort > dynamic; \
               nm --format=posix --defined-only c5.so | awk '$2 ~ /[Tt]/ { print $1 }' | sort > all; comm -13 dynamic all > kept; \
               objcopy --only-keep-debug c5.so full.debug; objcopy -S --keep-symbols=kept full.debug mini.debug; xz -kf mini.debug; \
               strip -o mini.so c5.so; objcopy --add-section .gnu_debugdata=mini.debug.xz mini.so",
        program: "mini.so",
        truth: "c5.so",
        tools: "nm",
        bar: 100.0,
    },
    Case {
        label: "packed by dwz, in one file",
        make: "cp c4.so dwz.so; dwz dwz.so",
        program: "dwz.so",
        truth: "c4.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "packed by dwz, with a file of what is common",
        make: "gcc -O1 -g -gdwarf-4 -shared -fPIC $SQLITE -o c41.so; cp c4.so common1.so; cp c41.so common2.so; \
               dwz -m common.debug common1.so common2.so",
        program: "common1.so",
        truth: "c4.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "-gsplit-dwarf, with its .dwp",
        make: "gcc -O2 -g -gdwarf-5 -gsplit-dwarf -c -fPIC $SQLITE -o split.o; gcc -shared -o split.so split.o; llvm-dwp -e split.so -o split.so.dwp",
        program: "split.so",
        truth: "c5.so",
        tools: BOTH,
        bar: 100.0,
    },
    Case {
        label: "C, Debian's C library and its debug file",
        make: "",
        program: "/lib/x86_64-linux-gnu/libc.so.6",
        truth: "libc",
        tools: BOTH,
        bar: 98.0,
    },
    Case {
        label: "C++: g++, DWARF 5",
        make: "g++ -std=c++17 -O2 -g $ROOT/xtask/loads/load.cpp -o cpp5",
        program: "cpp5",
        truth: "cpp5",
        tools: BOTH,
        bar: 99.0,
    },
    Case {
        label: "C++: clang++, DWARF 4",
        make: "clang++ -std=c++17 -O2 -g -gdwarf-4 $ROOT/xtask/loads/load.cpp -o cpp4",
        program: "cpp4",
        truth: "cpp4",
        tools: BOTH,
        bar: 99.0,
    },
    Case {
        label: "Rust: rustc -O",
        make: "rustc -O -g --edition 2024 $ROOT/flamegraphs/workloads/src/bin/words.rs -o rust",
        program: "rust",
        truth: "rust",
        tools: BOTH,
        bar: 98.0,
    },
    Case {
        label: "Go: gofmt",
        make: "$GO build -o gofmt cmd/gofmt",
        program: "gofmt",
        truth: "gofmt",
        tools: BOTH,
        bar: 98.0,
    },
    Case {
        label: "Zig",
        make: "$ZIG build-exe -OReleaseFast -fno-strip -femit-bin=zig $ROOT/profiler-agent/workloads/truth/zig.zig",
        program: "zig",
        truth: "zig",
        tools: BOTH,
        bar: 99.0,
    },
];

/// What came of a case.
pub(super) struct Figure {
    case: &'static Case,
    fields: Vec<String>,
}

/// Builds all of it, and has it compared.
pub(super) fn measure(workspace: &Workspace) -> Result<Vec<Figure>> {
    setup::install_packages(PACKAGES)?;
    let go = collector::find_go(workspace)?.context("there is no Go; run `cargo xtask setup`")?;
    let zig = setup::find_zig(workspace)?.context("there is no Zig; run `cargo xtask setup`")?;
    let folder = workspace.target().join("prove/names");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let sqlite = sqlite(workspace)?;
    let mut list = String::new();
    for case in CASES {
        eprintln!("{}", case.label);
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", case.make])
            .current_dir(&folder)
            .env("ROOT", workspace.root())
            .env("SQLITE", &sqlite)
            .env("GO", &go)
            .env("GOTOOLCHAIN", "local")
            .env("ZIG", &zig);
        command::run_quiet(&mut shell)?;
        let truth = match case.truth {
            "libc" => debug_file(Path::new(case.program))?,
            truth => folder.join(truth),
        };
        list.push_str(&format!(
            "{}\t{}\t{}\t{}\t{MOST}\n",
            case.label,
            folder.join(case.program).display(),
            truth.display(),
            case.tools
        ));
    }
    let path = folder.join("list");
    fs::write(&path, list)?;
    let mut test = command::of_agent(workspace.root(), "test", "symbols");
    test.args([
        "--",
        "names_are_those_of_binutils",
        "--ignored",
        "--exact",
        "--nocapture",
    ])
    .env("PROFILER_PROVE_NAMES", &path);
    command::run(&mut test)?;
    let left = fs::read_to_string(folder.join("left"))?;
    fs::remove_file(left.trim()).context("cannot remove the debug file that was put into /usr/lib/debug")?;
    let results = fs::read_to_string(path.with_extension("results"))?;
    let figures = CASES.iter().zip(results.lines()).map(|(case, line)| Figure {
        case,
        fields: line.split('\t').skip(1).map(str::to_owned).collect(),
    });
    Ok(figures.collect())
}

impl Figure {
    fn number(&self, place: usize) -> u32 {
        self.fields
            .get(place)
            .and_then(|field| field.parse().ok())
            .unwrap_or_default()
    }

    /// Share of addresses without a difference that has no reason, per cent.
    fn share(&self) -> f64 {
        let all = self.number(0).max(1);
        100.0 - 100.0 * f64::from(self.number(7)) / f64::from(all)
    }

    /// Its label, if it is below its bar.
    pub(super) fn name_if_unequal(&self) -> Option<&'static str> {
        (self.share() < self.case.bar || self.number(0) == 0).then_some(self.case.label)
    }
}

/// The table of the document.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut table = String::from(
        "| program | addresses | equal | fuller name | shorter name | unknown to both | no unit | first address | other | bar |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for figure in figures {
        let numbers: Vec<String> = (0..8).map(|place| figure.number(place).to_string()).collect();
        table.push_str(&format!(
            "| {} | {} | {} % |\n",
            figure.case.label,
            numbers.join(" | "),
            figure.case.bar
        ));
    }
    table
}

/// The source of SQLite that the gallery's workloads are built with.
fn sqlite(workspace: &Workspace) -> Result<PathBuf> {
    let mut metadata = command::cargo();
    metadata
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(workspace.join("flamegraphs/workloads"));
    let metadata = command::output(&mut metadata)?;
    let manifest = metadata
        .split('"')
        .find(|text| text.contains("/libsqlite3-sys-") && text.ends_with("Cargo.toml"))
        .context("the workloads are built without libsqlite3-sys")?;
    let source = Path::new(manifest).with_file_name("sqlite3/sqlite3.c");
    if !source.is_file() {
        bail!("{} is not there", source.display());
    }
    Ok(source)
}

/// The debug file of a program by its build ID.
fn debug_file(program: &Path) -> Result<PathBuf> {
    let notes = command::output(Command::new("readelf").arg("-n").arg(program))?;
    let id = notes
        .split("Build ID: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let (first, rest) = id
        .and_then(|id| id.split_at_checked(2))
        .with_context(|| format!("{} has no build ID", program.display()))?;
    Ok(Path::new("/usr/lib/debug/.build-id")
        .join(first)
        .join(format!("{rest}.debug")))
}
