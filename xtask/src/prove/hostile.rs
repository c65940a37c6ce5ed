//! `prove hostile`: the tests of hostile files, for a minute each.

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

/// How long files are rewritten while they are read.
const SECONDS: &str = "60";

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::of_agent(workspace.root(), "test", "hostile");
    cargo
        .args(["--", "--nocapture", "--test-threads", "1"])
        .env("PROFILER_HOSTILE_SECONDS", SECONDS)
        .env("PROFILER_TEST_STRICT", "1");
    command::run(&mut cargo)
}
