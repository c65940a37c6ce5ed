//! Every chore of the project as `cargo xtask <verb>`; one file per verb, and no logic in shell.
//!
//! # Where things go
//! Tools that the chores need (bpf-linker, cargo-deny, a Python with an OTLP decoder, an OpenTelemetry
//! Collector, what checks the page, other kernels) live in `target/tools` of this workspace, whatever `CARGO_TARGET_DIR` says, so that they
//! are built once. Deleting that folder is always safe: `cargo xtask setup` brings it back.
//!
//! # What tests are given
//! `cargo xtask test` sets for every test:
//!
//! | variable | meaning |
//! |---|---|
//! | `PROFILER_TEST_COLLECTOR` | the OpenTelemetry Collector with a profiles pipeline (`--feature-gates=+service.profilesSupport`) |
//! | `PROFILER_TEST_PYTHON` | a Python that has `opentelemetry-proto`: an OTLP decoder that is not ours |
//! | `PROFILER_TEST_GO` | the `go` command: `go tool pprof` is a pprof reader that is not ours |
//! | `PROFILER_TEST_ZIG` | the `zig` command: a program of its making is profiled |
//! | `PROFILER_TEST_NODE` | Node.js: it runs the tests of the page's parts, and drives the browser |
//! | `PROFILER_TEST_BROWSER` | Chromium, in which the page is tested |
//! | `PROFILER_TEST_PAGE_TOOLS` | the folder whose `node_modules` has playwright-core |
//! | `PROFILER_TEST_AGENT` | the release build of `profiler-agent` |
//! | `PROFILER_TEST_SKIPS` | a file: a test that cannot run appends one line to it, `name: what is missing` |
//! | `PROFILER_TEST_STRICT` | `1` where `CI` is set: a test that cannot run fails instead |
//!
//! So a test that lacks a tool or a privilege does this, and the run counts it aloud at its end:
//! ```text
//! if PROFILER_TEST_STRICT is 1    -> panic with what is missing and the remedy
//! else if PROFILER_TEST_SKIPS set -> append "<test name>: <what is missing>\n" (O_APPEND, one write), return
//! else                            -> print the same to stderr, return
//! ```

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "stdout is where a chore reports, and the files read here are the project's own"
)]

mod bench;
mod build_ebpf;
mod bytecode;
mod ci;
mod collector;
mod command;
mod compare;
mod fuzz;
mod gallery;
mod lint;
mod miri;
mod otel;
mod page;
mod prove;
mod python;
mod run;
mod setup;
mod sources;
mod test;
mod toolchain;
mod verifier;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The chores of profiler-agent.
#[derive(Parser)]
#[command(name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what this machine lacks to build and test everything
    Setup {
        /// Only tell what is missing, and fail if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build the kernel object from its Rust source, into profiler-agent/src/sampling/
    BuildEbpf {
        /// Fail unless the kept object is the one that these sources give
        #[arg(long)]
        check: bool,
    },
    /// Build the agent for release and run it, as root
    Run {
        /// Arguments of profiler-agent, after `--`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run every test, as root, set-up included
    #[command(args_conflicts_with_subcommands = true)]
    Test {
        #[command(subcommand)]
        place: Option<Place>,
        /// Arguments of `cargo test`, such as the name of a test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Say how much of its limit the running kernel's verifier needs for each program, as root
    Verifier,
    /// Measure what the agent costs, as root; fails when it costs more than it may
    Bench {
        /// Which benchmarks; by default all but `otel` and `wire`, for which another profiler is built to compare with
        #[arg(value_parser = bench::NAMES.to_vec())]
        names: Vec<String>,
        /// Run those of this version too, in turn, and fail when ours are worse beyond the noise
        #[arg(long, value_name = "REF")]
        compare: Option<String>,
    },
    /// Format, clippy on both sides, licences, documentation, and the project's own rules
    Lint,
    /// Profile real programs under load: are their stacks whole and right? As root; writes docs/completeness.md
    Prove {
        proof: prove::Proof,
        /// Only these, e.g. `redis`; nothing is written then
        names: Vec<String>,
    },
    /// Run the code that kernel and agent share under miri, where that can be had
    Miri,
    /// Run the fuzz targets
    Fuzz(fuzz::Options),
    /// Make the flamegraphs of flamegraphs/gallery anew, from real programs, as root
    Gallery {
        /// Only these, e.g. `gofmt`
        names: Vec<String>,
    },
    /// What a change must pass: setup, build-ebpf --check, lint, test, fuzz, and test vm on two kernels
    Ci,
}

/// Where else tests can run.
#[derive(Subcommand)]
enum Place {
    /// In virtual machines with other kernels, under software emulation: are the stacks right there?
    Vm {
        /// Which kernels, e.g. `5.10`; all by default
        kernels: Vec<String>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = toolchain::run_as_rustc() {
        return code;
    }
    match chore(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(verb: Verb) -> Result<()> {
    let workspace = Workspace::find()?;
    match verb {
        Verb::Setup { check: true } => setup::check(&workspace),
        Verb::Setup { check: false } => setup::install(&workspace),
        Verb::BuildEbpf { check: true } => build_ebpf::check(&workspace),
        Verb::BuildEbpf { check: false } => build_ebpf::build(&workspace),
        Verb::Run { args } => run::run(&workspace, &args),
        Verb::Test {
            place: Some(Place::Vm { kernels }),
            ..
        } => vm::run(&workspace, &kernels),
        Verb::Test { place: None, args } => test::run(&workspace, &args),
        Verb::Verifier => verifier::run(&workspace),
        Verb::Bench {
            names,
            compare: Some(reference),
        } => compare::run(&workspace, &reference, &names),
        Verb::Bench { names, compare: None } => bench::run(&workspace, &names),
        Verb::Lint => lint::run(&workspace),
        Verb::Prove { proof, names } => prove::run(&workspace, proof, &names),
        Verb::Miri => miri::run(&workspace),
        Verb::Fuzz(options) => fuzz::run(&workspace, &options),
        Verb::Gallery { names } => gallery::run(&workspace, &names),
        Verb::Ci => ci::run(&workspace),
    }
}
