//! The kernel object is a function of its sources and tools: where they lie does not matter.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may panic, and the files read here are the project's own"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the object is built from, and what xtask itself looks at.
const COPIED: &[&str] = &[
    "Cargo.toml",
    "profiler-common",
    "profiler-ebpf/Cargo.toml",
    "profiler-ebpf/Cargo.lock",
    "profiler-ebpf/src",
];

const OBJECT: &str = "profiler-agent/src/sampling/profiler.bpf.o";
const RECORD: &str = "profiler-agent/src/sampling/profiler.bpf.o.sources";

#[test]
fn another_folder_gives_the_same_bytes() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if !workspace.join("target/tools/bin/bpf-linker").is_file() {
        return skip("bpf-linker is not built; run `cargo xtask setup`");
    }
    let folder = tempfile::tempdir().unwrap();
    let first = build_copy(workspace, &folder.path().join("a"));
    // What is kept was built where this workspace is, unless its sources or tools have changed since.
    let second = if from(&first) == from(workspace) {
        workspace.to_owned()
    } else {
        build_copy(workspace, &folder.path().join("somewhere/else and deeper"))
    };
    let (first, second) = (
        fs::read(first.join(OBJECT)).unwrap(),
        fs::read(second.join(OBJECT)).unwrap(),
    );
    assert!(
        first == second,
        "{} and {} bytes differ by folder",
        first.len(),
        second.len()
    );
}

/// Builds the kernel object from a copy of its sources in `folder`.
fn build_copy(workspace: &Path, folder: &Path) -> PathBuf {
    for part in COPIED {
        copy(&workspace.join(part), &folder.join(part));
    }
    // Members of the workspace must be there, if only by name.
    for part in ["profiler-agent", "xtask"] {
        fs::create_dir_all(folder.join(part).join("src")).unwrap();
        fs::copy(
            workspace.join(part).join("Cargo.toml"),
            folder.join(part).join("Cargo.toml"),
        )
        .unwrap();
        fs::write(folder.join(part).join("src/lib.rs"), "").unwrap();
    }
    fs::create_dir_all(folder.join("target")).unwrap();
    symlink(workspace.join("target/tools"), folder.join("target/tools")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("build-ebpf")
        .current_dir(folder)
        .env("CARGO_MANIFEST_DIR", folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.to_owned()
}

/// The record without the digest of the object: what it was made from.
fn from(workspace: &Path) -> Vec<String> {
    let record = fs::read_to_string(workspace.join(RECORD)).unwrap();
    record
        .lines()
        .filter(|line| !line.starts_with("object "))
        .map(str::to_owned)
        .collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

fn skip(lacking: &str) {
    assert!(
        std::env::var("PROFILER_TEST_STRICT").as_deref() != Ok("1"),
        "{lacking}"
    );
    eprintln!("another_folder_gives_the_same_bytes did not run: {lacking}");
    if let Some(file) = std::env::var_os("PROFILER_TEST_SKIPS") {
        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(format!("another_folder_gives_the_same_bytes: {lacking}\n").as_bytes())
            .unwrap();
    }
}
