//! The OpenTelemetry eBPF profiler that `bench otel` and `bench wire` compare with, built with Go from `profiler-agent/benches/otel`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::collector;
use crate::command;
use crate::sources;
use crate::workspace::Workspace;

const PACKAGE: &str = "go.opentelemetry.io/ebpf-profiler";

/// In place of its own: it ends where it may not raise the limit on locked memory, which BPF does not count against since Linux 5.11.
const RLIMIT: &str = "// Package rlimit leaves the limit on locked memory alone.
package rlimit

// MaximizeMemlock does nothing.
func MaximizeMemlock() (func(), error) {
\treturn func() {}, nil
}
";

/// Builds it, unless it is there; where it is.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let program = workspace.tools().join("otel-ebpf-profiler");
    let stamp = workspace.tools().join("otel-ebpf-profiler.sources");
    let from = workspace.join("profiler-agent/benches/otel");
    let mut digests = format!("{}  rlimit.go\n", sources::digest(RLIMIT.as_bytes()));
    for file in ["go.mod", "go.sum"] {
        digests += &format!("{}  {file}\n", sources::digest_of(&from.join(file))?);
    }
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|built| built == digests) {
        return Ok(program);
    }
    let Some(go) = collector::find_go(workspace)? else {
        bail!("the OpenTelemetry eBPF profiler is built with Go; `cargo xtask setup` installs it");
    };
    eprintln!("building the OpenTelemetry eBPF profiler (once, two to five minutes)");
    // A copy of the sources that one of them can be replaced in.
    let folder = workspace.tools().join("otel-ebpf-profiler-build");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for file in ["go.mod", "go.sum"] {
        fs::copy(from.join(file), folder.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    let go = || {
        let mut command = Command::new(&go);
        command
            .current_dir(&folder)
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS");
        command
    };
    command::run(go().args(["mod", "vendor"]))?;
    let rlimit = folder.join("vendor").join(PACKAGE).join("rlimit/rlimit.go");
    fs::write(&rlimit, RLIMIT).with_context(|| format!("cannot write {}", rlimit.display()))?;
    command::run(
        go().args([
            "build",
            "-mod=vendor",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags=-s -w",
            "-o",
        ])
        .arg(&program)
        .arg(PACKAGE),
    )?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    fs::write(&stamp, digests).context("cannot note what was built")?;
    Ok(program)
}
