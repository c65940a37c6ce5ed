//! `gallery`: the flamegraphs of flamegraphs/gallery made anew, each from a real program.
//!
//! ```text
//! flamegraphs/workloads ─▶ programs with frame pointers ─┐
//! programs of this machine (gofmt, dd, python3) ─────────┴▶ agent ─▶ gallery/NAME.folded, gallery/NAME.svg
//! ```
//!
//! Names do not change from run to run; what is in the files does, as every run is a measurement.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::run;
use crate::workspace::Workspace;

/// Frame pointers in C, in functions that call nobody too.
const C_FLAGS: &str = "-fno-omit-frame-pointer -mno-omit-leaf-frame-pointer";
/// The same in Rust; the standard library comes with them.
const RUST_FLAGS: &str = "-Cforce-frame-pointers=yes";

/// A picture, and how it comes about.
struct Picture {
    /// Of both files, without extension.
    name: &'static str,
    /// Samples per second.
    frequency: u32,
    program: Program,
    arguments: &'static [&'static str],
}

enum Program {
    /// A binary of flamegraphs/workloads.
    Workload(&'static str),
    /// One that the machine has, started in the folder of the pictures' scratch files.
    Installed(&'static str),
    /// One that comes with Go, started in the folder of Go's own sources.
    Go(&'static str),
}

const PICTURES: &[Picture] = &[
    Picture {
        name: "gofmt",
        frequency: 199,
        program: Program::Go("gofmt"),
        arguments: &["-l", "net", "crypto", "encoding", "runtime"],
    },
    Picture {
        name: "sqlite",
        frequency: 199,
        program: Program::Workload("sqlite"),
        arguments: &[],
    },
    Picture {
        name: "words",
        frequency: 199,
        program: Program::Workload("words"),
        arguments: &[],
    },
    Picture {
        name: "dd",
        frequency: 399,
        program: Program::Installed("dd"),
        arguments: &[
            "if=/dev/zero",
            "of=zeros",
            "bs=64k",
            "count=16k",
            "conv=fsync",
            "status=none",
        ],
    },
    Picture {
        name: "python",
        frequency: 399,
        program: Program::Installed("/usr/bin/python3"),
        arguments: &[
            "-m",
            "timeit",
            "-n",
            "40",
            "-s",
            "import json; d = [{'id': i, 'tags': [str(i)] * 5} for i in range(5000)]",
            "json.loads(json.dumps(d))",
        ],
    },
];

/// Makes the pictures called `names`, or all of them.
pub(crate) fn run(workspace: &Workspace, names: &[String]) -> Result<()> {
    for name in names {
        if !PICTURES.iter().any(|picture| picture.name == name) {
            let known: Vec<&str> = PICTURES.iter().map(|picture| picture.name).collect();
            bail!(
                "there is no picture called {name}; the gallery has {}",
                known.join(", ")
            );
        }
    }
    run::build(workspace)?;
    let workloads = build_workloads(workspace)?;
    let scratch = workspace.target().join("gallery");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    for picture in PICTURES {
        if names.is_empty() || names.iter().any(|name| name == picture.name) {
            make(workspace, picture, &workloads, &scratch)
                .with_context(|| format!("cannot make the picture {}", picture.name))?;
        }
    }
    let _ = fs::remove_file(scratch.join("zeros"));
    Ok(())
}

/// Builds flamegraphs/workloads; returns the folder of the programs.
fn build_workloads(workspace: &Workspace) -> Result<PathBuf> {
    let target = workspace.target().join("gallery");
    let mut cargo = command::cargo();
    cargo
        .args(["build", "--release", "--locked", "--bins"])
        .current_dir(workspace.join("flamegraphs/workloads"))
        .env("CFLAGS", C_FLAGS)
        .env("RUSTFLAGS", RUST_FLAGS)
        .env("CARGO_TARGET_DIR", &target);
    command::run(&mut cargo)?;
    Ok(target.join("release"))
}

fn make(workspace: &Workspace, picture: &Picture, workloads: &Path, scratch: &Path) -> Result<()> {
    let &Picture {
        name,
        frequency,
        ref program,
        arguments,
    } = picture;
    let mut path = env::var_os("PATH").unwrap_or_default();
    let (program, folder) = match program {
        // Found through PATH, so that its folder is not in the picture.
        Program::Workload(program) => {
            path = command::path_with(workloads)?;
            (*program, scratch.to_owned())
        }
        Program::Installed(program) => (*program, scratch.to_owned()),
        Program::Go(program) => {
            let root = command::output(Command::new("go").args(["env", "GOROOT"]))?;
            let root = PathBuf::from(root);
            path = command::path_with(&root.join("bin"))?;
            (*program, root.join("src"))
        }
    };
    let gallery = workspace.join("flamegraphs/gallery");
    // `env` and not our environment: sudo would put another PATH in its place.
    let mut command = command::privileged("env", &[])?;
    command
        .arg(path_assignment(path))
        .arg(workspace.agent())
        .args(["--force", "--frequency", &frequency.to_string()])
        .arg("--output")
        .arg(gallery.join(format!("{name}.svg")))
        .arg("--output")
        .arg(gallery.join(format!("{name}.folded")))
        .arg("--")
        .arg(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        // What the programs have to say is not asked for.
        .stdout(Stdio::null());
    command::run(&mut command)
}

fn path_assignment(path: OsString) -> OsString {
    let mut assignment = OsString::from("PATH=");
    assignment.push(path);
    assignment
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_picture_has_a_name_of_its_own_and_both_files() {
        let names: BTreeSet<&str> = PICTURES.iter().map(|picture| picture.name).collect();
        assert_eq!(names.len(), PICTURES.len());
        let gallery = Workspace::find().unwrap().join("flamegraphs/gallery");
        let files: BTreeSet<String> = fs::read_dir(gallery)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected: BTreeSet<String> = names
            .iter()
            .flat_map(|name| [format!("{name}.folded"), format!("{name}.svg")])
            .collect();
        assert_eq!(files, expected);
    }
}
