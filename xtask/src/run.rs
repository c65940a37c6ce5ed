//! `run`: the agent, built for release, as root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::command;
use crate::workspace::Workspace;

/// What sudo would take from the agent: where to send profiles, and how to log.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
    "TERM",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROFILES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROFILES_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
];

/// Builds the agent and becomes it.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    build(workspace)?;
    let agent = workspace.agent();
    // Everything that follows is the agent's: its output, its signals, its exit code.
    let error = command::privileged(&agent, KEPT)?.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", agent.display()))
}

/// The release build of the agent.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--package",
        "profiler-agent",
        "--bin",
        "profiler-agent",
    ]);
    command::run(cargo.current_dir(workspace.root()))
}
