//! `miri`: the unwind step under an interpreter that finds undefined behaviour.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// Runs the tests of profiler-common, which hold the code that kernel programs and agent share.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let here = |toolchain: &str| {
        Command::new("cargo")
            .args([toolchain, "miri", "--version"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !here("+nightly") {
        bail!(
            "there is no miri; where rustup can reach it: `rustup toolchain install nightly --component miri`"
        );
    }
    // Isolation would keep proptest from its random numbers; a thousand cases would take an hour.
    let mut tests = Command::new("cargo");
    tests
        .args(["+nightly", "miri", "test", "--package", "profiler-common"])
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", "16")
        .current_dir(workspace.root());
    command::run(&mut tests)
}
