//! `ci`: what a change must pass, in the order that fails soonest.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::build_ebpf;
use crate::fuzz;
use crate::lint;
use crate::setup;
use crate::test;
use crate::vm;
use crate::workspace::Workspace;

type Step = (&'static str, fn(&Workspace) -> Result<()>);

const STEPS: &[Step] = &[
    ("setup", setup::install),
    ("build-ebpf --check", build_ebpf::check),
    ("lint", lint::run),
    ("test", |workspace| test::run(workspace, &[])),
    ("fuzz", fuzz::all),
    ("test vm", vm::oldest_and_newest),
];

/// Runs every step, and stops at the first that fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let start = Instant::now();
    for (name, step) in STEPS {
        let began = Instant::now();
        println!("ci: {name}");
        let outcome = step(workspace);
        let word = if outcome.is_ok() { "done" } else { "FAILED" };
        println!("ci: {name} {word} in {:.1} s", began.elapsed().as_secs_f64());
        outcome.with_context(|| format!("the step `cargo xtask {name}` failed"))?;
    }
    println!("ci: all of it in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
