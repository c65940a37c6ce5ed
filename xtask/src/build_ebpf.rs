//! `build-ebpf`: the kernel object, from its Rust source into the tree.
//!
//! The object is kept in the tree so that the agent builds with stable Rust alone, without LLVM. Beside it
//! stands the record of what it came from, so that a kept object that is stale is found even where it
//! cannot be rebuilt.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::bytecode;
use crate::command;
use crate::setup;
use crate::sources::{self, Files, Record};
use crate::toolchain::{Action, Toolchain};
use crate::workspace::Workspace;

const REMEDY: &str =
    "run `cargo xtask build-ebpf` and commit profiler-agent/src/sampling/profiler.bpf.o with its .sources";

fn kept_object(workspace: &Workspace) -> PathBuf {
    workspace.join("profiler-agent/src/sampling/profiler.bpf.o")
}

fn kept_record(workspace: &Workspace) -> PathBuf {
    workspace.join("profiler-agent/src/sampling/profiler.bpf.o.sources")
}

/// Builds the object and keeps it.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let (object, record) = compile(workspace)?;
    let path = kept_object(workspace);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let changed = fs::read(&path).is_ok_and(|kept| kept == object);
    fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
    record.write(&kept_record(workspace))?;
    println!(
        "profiler.bpf.o: {} bytes, sha256 {}{}",
        object.len(),
        record.object,
        if changed { ", as it was" } else { "" }
    );
    Ok(())
}

/// Fails unless the kept object is the one that these sources give.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let Some(kept) = Record::read(&kept_record(workspace))? else {
        bail!("there is no kept kernel object; {REMEDY}");
    };
    if sources::digest_of(&kept_object(workspace))? != kept.object {
        bail!("profiler.bpf.o is not the file that its .sources describes; {REMEDY}");
    }
    let stale = kept.files.differing(&Files::now(workspace)?);
    if !stale.is_empty() {
        bail!(
            "the kept kernel object is stale: {} changed since it was built; {REMEDY}",
            stale.join(", ")
        );
    }
    if Toolchain::find(workspace)?.is_none() {
        println!(
            "profiler.bpf.o: its sources are unchanged; not rebuilt, as this machine has no compiler for BPF"
        );
        return Ok(());
    }
    let (_, built) = compile(workspace)?;
    if (&built.compiler, &built.linker) != (&kept.compiler, &kept.linker) {
        // Another compiler gives other bytes from the same sources; that it builds is all that can be checked.
        println!(
            "profiler.bpf.o: its sources are unchanged and build; bytes not compared, as it was built by {} and {}, and here are {} and {}",
            kept.compiler, kept.linker, built.compiler, built.linker
        );
        return Ok(());
    }
    if built.object != kept.object {
        bail!(
            "these sources and tools give another kernel object (sha256 {}) than the kept one ({}); {REMEDY}",
            built.object,
            kept.object
        );
    }
    println!(
        "profiler.bpf.o: rebuilt from source, byte for byte the kept one (sha256 {})",
        kept.object
    );
    Ok(())
}

/// Builds the programs that benchmarks compare with; where they are. Fails when the kept object, which is the one that the agent
/// carries, is not the one of these sources.
pub(crate) fn baseline(workspace: &Workspace) -> Result<PathBuf> {
    let (object, _) = compile(workspace)?;
    if fs::read(kept_object(workspace)).is_ok_and(|kept| kept == object) {
        return Ok(Toolchain::object(workspace).with_file_name("baseline"));
    }
    bail!(
        "the kept kernel object is not the one of these sources, and the agent would be measured with it; {REMEDY}"
    )
}

fn compile(workspace: &Workspace) -> Result<(Vec<u8>, Record)> {
    if Toolchain::find(workspace)?.is_none() {
        setup::install_compiler()?;
    }
    let toolchain = Toolchain::prepare(workspace)?;
    // Crates are unpacked before the build, so that their folders are known and can be cut from paths.
    let mut fetch = command::cargo();
    fetch
        .args(["fetch", "--quiet", "--locked"])
        .current_dir(workspace.ebpf());
    command::run(&mut fetch).context(
        "if profiler-ebpf/Cargo.lock is behind its Cargo.toml, run `cargo update --workspace --manifest-path profiler-ebpf/Cargo.toml`",
    )?;
    command::run(&mut toolchain.cargo(workspace, Action::Build)?)?;
    let path = Toolchain::object(workspace);
    let linked = fs::read(&path).with_context(|| format!("cargo left no object at {}", path.display()))?;
    let object = bytecode::strip(&linked)?;
    let record = Record {
        object: sources::digest(&object),
        compiler: toolchain.compiler_version()?,
        linker: toolchain.linker_version(),
        files: Files::now(workspace)?,
    };
    Ok((object, record))
}
