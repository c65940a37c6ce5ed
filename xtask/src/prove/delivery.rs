//! `prove delivery`: the tests of delivery with an outage of three minutes. `prove soak`: the benchmark of that name for ten.

use anyhow::Result;

use crate::collector;
use crate::command;
use crate::workspace::Workspace;

/// How long the Collector is away.
const OUTAGE: &str = "180";
/// How long slices are made.
const SOAK: &str = "600";

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    collector::build(workspace)?;
    let mut cargo = command::of_agent(workspace.root(), "test", "delivery");
    cargo
        .args(["--", "--nocapture", "--test-threads", "1"])
        .env("PROFILER_OUTAGE_SECONDS", OUTAGE)
        .env("PROFILER_TEST_STRICT", "1")
        .env("PROFILER_TEST_COLLECTOR", collector::program(workspace));
    command::run(&mut cargo)
}

pub(super) fn soak(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::of_agent(workspace.root(), "bench", "soak");
    cargo.env("PROFILER_SOAK_SECONDS", SOAK);
    command::run(&mut cargo)
}
