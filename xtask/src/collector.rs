//! A real OpenTelemetry Collector for the tests, built with Go from `profiler-agent/tests/collector`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::python::Python;
use crate::sources;
use crate::workspace::Workspace;

/// What its modules ask for.
const OLDEST_GO: (u32, u32) = (1, 26);

/// The command that tests start.
pub(crate) fn program(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("otelcol-profiles")
}

pub(crate) fn is_ready(workspace: &Workspace) -> Result<bool> {
    Ok(program(workspace).is_file()
        && fs::read_to_string(stamp(workspace))
            .is_ok_and(|built| source_digest(workspace).is_ok_and(|now| now == built)))
}

/// Builds it, unless it is the one that its sources give.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    if is_ready(workspace)? {
        return Ok(());
    }
    let Some(go) = find_go(workspace)? else {
        bail!(
            "the Collector of the tests is built with Go {}.{} or newer; `cargo xtask setup` installs it",
            OLDEST_GO.0,
            OLDEST_GO.1
        );
    };
    eprintln!("building the OpenTelemetry Collector of the tests (once, two to five minutes)");
    let mut build = Command::new(go);
    build
        .args([
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags=-s -w",
            "-o",
        ])
        .arg(program(workspace))
        .arg(".")
        .current_dir(folder(workspace))
        .env("CGO_ENABLED", "0")
        .env_remove("GOFLAGS");
    command::run(&mut build)?;
    fs::write(stamp(workspace), source_digest(workspace)?).context("cannot note which Collector was built")
}

/// A `go` that is new enough: of this machine, or from its wheel.
pub(crate) fn find_go(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let usual = Path::new("/usr/local/go/bin/go");
    let candidates = [
        command::find_in_path("go"),
        usual.is_file().then(|| usual.to_owned()),
        Python::of(workspace).go()?,
    ];
    Ok(candidates
        .into_iter()
        .flatten()
        .find(|go| version(go).is_some_and(|version| version >= OLDEST_GO)))
}

fn version(go: &Path) -> Option<(u32, u32)> {
    // Asked outside any module, so that it tells its own version.
    let text = command::output(
        Command::new(go)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .current_dir("/"),
    )
    .ok()?;
    parse_version(&text)
}

/// `go1.26.8` is (1, 26).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.join("profiler-agent/tests/collector")
}

fn stamp(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("otelcol-profiles.sources")
}

fn source_digest(workspace: &Workspace) -> Result<String> {
    ["main.go", "go.mod", "go.sum"]
        .iter()
        .map(|file| {
            Ok(format!(
                "{}  {file}\n",
                sources::digest_of(&folder(workspace).join(file))?
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_by_number() {
        assert_eq!(parse_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_version("go1.27rc1"), Some((1, 27)));
        assert!(parse_version("go1.9").unwrap() < OLDEST_GO);
        assert_eq!(parse_version("devel +1234"), None);
    }
}
