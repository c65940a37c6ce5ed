//! `prove traffic`: the benchmark of a whole host for half an hour.

use anyhow::Result;

use crate::command;
use crate::run;
use crate::workspace::Workspace;

const SECONDS: &str = "1800";

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    run::build(workspace)?;
    let mut cargo = command::of_agent(workspace.root(), "bench", "host");
    cargo
        .args(["--", "traffic"])
        .env("PROFILER_HOST_SECONDS", SECONDS)
        .env("PROFILER_BENCH_AGENT", workspace.agent());
    command::run(&mut cargo)
}
