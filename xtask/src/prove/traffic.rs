//! `prove traffic`: the benchmark of a whole host for half an hour.

use anyhow::Result;

use crate::command;
use crate::run;
use crate::workspace::Workspace;

const SECONDS: &str = "1800";

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    run::build(workspace)?;
    let mut cargo = command::cargo();
    cargo
        .args([
            "bench",
            "--locked",
            "--package",
            "profiler-agent",
            "--bench",
            "host",
        ])
        .args(["--", "traffic"])
        .env("PROFILER_HOST_SECONDS", SECONDS)
        .env("PROFILER_BENCH_AGENT", workspace.agent())
        .current_dir(workspace.root());
    command::run(&mut cargo)
}
