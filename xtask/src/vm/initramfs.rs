//! What a virtual machine finds in its memory when it starts: a shell, the agent, the programs to be profiled.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::kernels;
use crate::command;
use crate::workspace::Workspace;

/// The first process.
const INIT: &str = include_str!("init");
/// Without frame pointers, as distributions build; with a frame for each call.
const FLAGS: [&str; 8] = [
    "-O2",
    "-pthread",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fasynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Werror",
];
/// Where file systems are mounted.
const FOLDERS: [&str; 5] = ["bin", "proc", "sys", "dev", "tmp"];

/// Builds the agent, compiles the programs, and packs them.
pub(crate) fn make(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--package", "profiler-agent"]);
    cargo.args(["--bin", "profiler-agent", "--example", "verifier"]);
    // Of the debug build, which is at hand, with the agent's own code optimised: an emulated CPU is slow enough.
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2");
    command::run(cargo.current_dir(workspace.root()))?;
    let built = workspace.target().join("debug");
    let mut programs = vec![
        stripped(&built.join("profiler-agent"), &folder)?,
        stripped(&built.join("examples/verifier"), &folder)?,
    ];
    for (name, more) in [("chains", None), ("chains-static", Some("-static"))] {
        let program = folder.join(name);
        let mut compiler = Command::new("gcc");
        compiler.args(FLAGS).args(more).arg("-o").arg(&program);
        command::run(compiler.arg(workspace.join("profiler-agent/workloads/chains.c")))?;
        programs.push(program);
    }
    let libraries = libraries(&programs)?;
    programs.push(kernels::busybox(workspace)?);

    let mut archive = Archive::create(folder.join("initramfs.cpio"))?;
    for name in FOLDERS {
        archive.folder(Path::new(name))?;
    }
    archive.program(Path::new("init"), INIT.as_bytes())?;
    for program in &programs {
        let name = program.file_name().unwrap_or_default();
        archive.copy(&Path::new("bin").join(name), program)?;
    }
    for library in &libraries {
        archive.copy(library.strip_prefix("/").unwrap_or(library), library)?;
    }
    archive.finish()
}

/// A copy without debug information, which is most of the file.
pub(super) fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(program.file_name().unwrap_or_default());
    let mut strip = Command::new("strip");
    command::run(strip.arg("--strip-debug").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// The loader and the libraries of programs that are linked at run time, by the names that they are looked for under.
pub(super) fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let elf = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        if !elf.windows(LOADER.len()).any(|bytes| bytes == LOADER) {
            continue;
        }
        // Lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`, and of the loader without an arrow.
        let list = command::output(Command::new("ldd").arg(program))?;
        libraries.extend(
            list.split_whitespace()
                .filter(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    Ok(libraries)
}

/// What programs that are linked at run time name as their loader.
const LOADER: &[u8] = b"/ld-linux-x86-64.so.2";

/// An archive in the format that the kernel unpacks, folders first.
pub(super) struct Archive {
    path: PathBuf,
    file: BufWriter<File>,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    /// An empty one.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            path,
            file: BufWriter::new(file),
            folders: BTreeSet::new(),
        })
    }

    /// Writes its end, and says where it is.
    pub(super) fn finish(self) -> Result<PathBuf> {
        trailer(self.file)
            .and_then(|mut file| file.flush())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self.path)
    }

    pub(super) fn folder(&mut self, path: &Path) -> Result<()> {
        if path == Path::new("") || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        self.add(path, ModeFileType::Directory, &[])
    }

    pub(super) fn program(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        self.add(path, ModeFileType::Regular, contents)
    }

    pub(super) fn copy(&mut self, path: &Path, file: &Path) -> Result<()> {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.program(path, &contents)
    }

    fn add(&mut self, path: &Path, kind: ModeFileType, contents: &[u8]) -> Result<()> {
        let entry = Builder::new(&path.to_string_lossy())
            .mode(0o755)
            .set_mode_file_type(kind);
        let length = u32::try_from(contents.len())
            .with_context(|| format!("{} is too large for an archive", path.display()))?;
        let mut writer = entry.write(&mut self.file, length);
        writer
            .write_all(contents)
            .and_then(|()| writer.finish().map(drop))
            .with_context(|| format!("cannot pack {}", path.display()))
    }
}
