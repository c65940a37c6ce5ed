//! `fuzz`: the fuzz targets, on stable Rust.
//!
//! libFuzzer comes as a crate. The coverage counters that guide it are a pass of LLVM which stable rustc runs when it is asked; with
//! `--target`, so that build scripts and macros go without.
//!
//! ```text
//! fuzz/seeds/TARGET          kept: what was written to begin with
//! fuzz/corpus.tar.gz         kept: the fewest inputs that reach all code that was ever reached; `--keep` makes it anew
//! fuzz/regressions/TARGET    kept: what once failed
//! fuzz/target/corpus/TARGET  the kept ones, and what was found here since
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// The targets: the functions of fuzz/src/lib.rs.
pub(crate) const TARGETS: &[&str] = &[
    "cfi",
    "copy",
    "elf",
    "gopclntab",
    "identity",
    "jitdump",
    "kallsyms",
    "maps",
    "message",
    "perf_map",
    "profile",
    "question",
    "record",
    "segment",
    "step",
];

const RUSTFLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What is fuzzed, and how.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which one; all by default, as many at a time as there are processors
    #[arg(value_parser = TARGETS.to_vec())]
    target: Option<String>,
    /// How long, each
    #[arg(default_value_t = SECONDS)]
    seconds: u32,
    /// Afterwards keep the fewest inputs that reach all code that was reached
    #[arg(long)]
    keep: bool,
}

/// How long in `ci`, and by default.
const SECONDS: u32 = 60;

/// Inputs that are kept are no longer than this: those of real files would fill the repository.
const LONGEST_KEPT: &str = "-max_len=4096";

/// All of them, as `ci` does.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    let options = Options {
        target: None,
        seconds: SECONDS,
        keep: false,
    };
    run(workspace, &options)
}

/// Builds all targets and runs them. What fails is kept in fuzz/regressions.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let fuzz = Fuzz::build(workspace)?;
    let targets = TARGETS
        .iter()
        .copied()
        .filter(|name| options.target.as_deref().is_none_or(|chosen| chosen == *name));
    let waiting = Mutex::new(targets);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let failed = Mutex::new(Vec::new());
    let fail = |name, error: anyhow::Error| {
        println!("fuzz: {name}: {error:#}");
        failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    };
    let at_a_time = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(name) = next() {
                    if let Err(error) = fuzz.run(name, options.seconds) {
                        fail(name, error);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!(
            "{} failed; the input is in fuzz/regressions, `cargo test --test fuzz` runs it again",
            failed.join(", ")
        );
    }
    if options.keep { fuzz.keep() } else { Ok(()) }
}

/// The folder of the targets.
struct Fuzz {
    root: PathBuf,
    programs: PathBuf,
}

impl Fuzz {
    fn build(workspace: &Workspace) -> Result<Self> {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let root = workspace.fuzz();
        let mut cargo = command::cargo();
        cargo
            .args(["build", "--release", "--locked", "--target", &triple])
            .env("RUSTFLAGS", RUSTFLAGS)
            .env("CARGO_TARGET_DIR", root.join("target"))
            .current_dir(&root);
        command::run(&mut cargo)?;
        let programs = root.join("target").join(triple).join("release");
        let fuzz = Self { root, programs };
        create(&fuzz.corpus(""))?;
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(fuzz.kept()).arg("-C").arg(fuzz.corpus(""));
        command::run(&mut tar)?;
        Ok(fuzz)
    }

    fn corpus(&self, name: &str) -> PathBuf {
        self.root.join("target/corpus").join(name)
    }

    fn kept(&self) -> PathBuf {
        self.root.join("corpus.tar.gz")
    }

    fn seeds(&self, name: &str) -> PathBuf {
        self.root.join("seeds").join(name)
    }

    /// Runs a target, and says how it went.
    fn run(&self, name: &str, seconds: u32) -> Result<()> {
        let regressions = self.root.join("regressions").join(name);
        let corpus = self.corpus(name);
        for folder in [&corpus, &regressions] {
            create(folder)?;
        }
        let mut fuzzer = Command::new(self.programs.join(name));
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            // Slower than that, or larger, is a finding too: what hostile input may cost is bounded.
            .args([
                "-timeout=10",
                "-rss_limit_mb=512",
                "-max_len=65536",
                "-print_final_stats=1",
            ])
            .arg(format!("-artifact_prefix={}/", regressions.display()))
            .args([corpus, regressions, self.seeds(name)]);
        let log = self.logged(name, &mut fuzzer)?;
        println!("fuzz: {name}: {}", described(&log));
        Ok(())
    }

    /// Packs, of all targets, the fewest inputs that reach all that was reached.
    fn keep(&self) -> Result<()> {
        let fewest = self.root.join("target/fewest");
        if fewest.exists() {
            fs::remove_dir_all(&fewest)?;
        }
        for &name in TARGETS {
            let folder = fewest.join(name);
            create(&folder)?;
            create(&self.corpus(name))?;
            let mut fuzzer = Command::new(self.programs.join(name));
            fuzzer
                .args(["-set_cover_merge=1", LONGEST_KEPT])
                .args([folder, self.corpus(name)]);
            self.logged(name, &mut fuzzer)?;
        }
        let mut tar = Command::new("tar");
        // The same files make the same archive.
        tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-czf"])
            .arg(self.kept())
            .arg("-C")
            .arg(fewest)
            .arg(".");
        command::run(&mut tar)
    }

    /// Runs a fuzzer, whose words go into a file of their own, as several run at a time.
    fn logged(&self, name: &str, fuzzer: &mut Command) -> Result<String> {
        let folder = self.root.join("target/logs");
        create(&folder)?;
        let path = folder.join(format!("{name}.log"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let status = fuzzer
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .status()
            .with_context(|| format!("cannot start {name}"))?;
        let log = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let log = String::from_utf8_lossy(&log).into_owned();
        if !status.success() {
            println!("{log}");
            bail!("failed ({status}), see above");
        }
        Ok(log)
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// What a fuzzer says at its end, in a line.
fn described(log: &str) -> String {
    let number = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    let covered = log
        .lines()
        .rev()
        .find_map(|line| line.split_once("cov: ")?.1.split_whitespace().next());
    format!(
        "{} runs, {} edges, {} new inputs, {} MB at most",
        number("stat::number_of_executed_units:"),
        covered.unwrap_or("?"),
        number("stat::new_units_added:"),
        number("stat::peak_rss_mb:"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_a_line() {
        let log = "#2 INITED cov: 10 ft: 11\n#9 DONE   cov: 14 ft: 20 corp: 3/6b\nstat::number_of_executed_units: 9\n\
                   stat::new_units_added:          3\nstat::peak_rss_mb:              36\n";
        assert_eq!(described(log), "9 runs, 14 edges, 3 new inputs, 36 MB at most");
        assert_eq!(described(""), "? runs, ? edges, ? new inputs, ? MB at most");
    }
}
