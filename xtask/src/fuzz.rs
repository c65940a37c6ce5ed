//! `fuzz`: the fuzz targets, on stable Rust.
//!
//! libFuzzer comes as a crate. The coverage counters that guide it are a pass of LLVM which stable rustc runs when it is asked; with
//! `--target`, so that build scripts and macros go without.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// The targets: the functions of fuzz/src/lib.rs.
pub(crate) const TARGETS: &[&str] = &[
    "cfi",
    "copy",
    "elf",
    "gopclntab",
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

/// Builds all targets and runs one or, without a name, each in turn. What fails is kept in fuzz/regressions.
pub(crate) fn run(workspace: &Workspace, target: Option<&str>, seconds: u32) -> Result<()> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let fuzz = workspace.fuzz();
    let mut cargo = command::cargo();
    cargo
        .args(["build", "--release", "--locked", "--target", &triple])
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_DIR", fuzz.join("target"))
        .current_dir(&fuzz);
    command::run(&mut cargo)?;
    let mut failed = Vec::new();
    for &name in TARGETS
        .iter()
        .filter(|name| target.is_none_or(|chosen| chosen == **name))
    {
        println!("fuzz: {name}, {seconds} s");
        let corpus = fuzz.join("target/corpus").join(name);
        let regressions = fuzz.join("regressions").join(name);
        for folder in [&corpus, &regressions] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut fuzzer = Command::new(fuzz.join("target").join(&triple).join("release").join(name));
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
            .args([corpus, regressions, fuzz.join("seeds").join(name)]);
        if command::run(&mut fuzzer).is_err() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} failed; the input is in fuzz/regressions, `cargo test --test fuzz` runs it again",
            failed.join(", ")
        );
    }
    Ok(())
}
