//! The compiler and the linker of the kernel side.
//!
//! Debian's `rustc-web` comes with a ready-made `core` for BPF and with the LLVM that bpf-linker needs,
//! so on Debian two packages and one `cargo install` are the whole toolchain. Elsewhere rustup's nightly
//! with `rust-src` builds `core` itself.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// Newer ones are taken on purpose only: the kept object is a function of the linker too.
const LINKER_VERSION: &str = "0.13.0";
/// What the kept object is for; bindings of another machine would change it.
const KERNEL_ARCH: &str = "x86_64";
const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's linter for Debian's compiler.
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
/// Set for the compiler processes that cargo starts through this program.
const AS_RUSTC: &str = "XTASK_AS_RUSTC";

/// A compiler that has `core` for BPF, and a linker that reads its bitcode.
pub(crate) struct Toolchain {
    compiler: Compiler,
    tools: PathBuf,
}

enum Compiler {
    /// `rustc-web` with `libstd-rust-web-dev-bpf`.
    Debian,
    /// rustup's nightly, whose rustc is here, building `core` from `rust-src`.
    Nightly(PathBuf),
}

/// What cargo is asked to do with the kernel side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Build,
    Clippy,
}

impl Toolchain {
    /// The toolchain of this machine, with the linker built if need be; the error says what to install.
    pub(crate) fn prepare(workspace: &Workspace) -> Result<Self> {
        let Some(toolchain) = Self::find(workspace)? else {
            bail!("{}", missing())
        };
        toolchain.refuse_library_source()?;
        toolchain.build_linker()?;
        Ok(toolchain)
    }

    /// LLVM puts the lines of every source file it can open into BTF, and `core`'s debug information names its
    /// source by an absolute path that no flag changes: with the source there, the object would be another one.
    fn refuse_library_source(&self) -> Result<()> {
        if let Compiler::Debian = self.compiler {
            let source = format!("/usr/src/rustc-{}", self.verbose("release: ")?);
            if Path::new(&source).exists() {
                bail!(
                    "{source} would get into the kernel object; remove the package it is from: apt-get remove rust-web-src"
                );
            }
        }
        Ok(())
    }

    /// The compiler of this machine, if it has one; the linker may still have to be built.
    pub(crate) fn find(workspace: &Workspace) -> Result<Option<Self>> {
        let compiler = if has_core_for_bpf(Path::new(DEBIAN_RUSTC)) {
            Compiler::Debian
        } else if let Some(rustc) = nightly_with_source() {
            Compiler::Nightly(rustc)
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            compiler,
            tools: workspace.tools(),
        }))
    }

    pub(crate) fn linker(&self) -> PathBuf {
        self.tools.join("bin/bpf-linker")
    }

    pub(crate) fn has_linker(&self) -> bool {
        self.linker_stamp()
            .is_ok_and(|stamp| self.read_stamp().as_deref() == Some(stamp.as_str()))
            && self.linker().is_file()
    }

    /// How the compiler names itself.
    pub(crate) fn compiler_version(&self) -> Result<String> {
        command::output(Command::new(self.rustc()).arg("--version"))
    }

    /// How the linker is named in the record.
    pub(crate) fn linker_version(&self) -> String {
        format!("bpf-linker {LINKER_VERSION}")
    }

    pub(crate) fn has_clippy(&self) -> bool {
        match self.compiler {
            Compiler::Debian => Path::new(DEBIAN_CLIPPY).is_file(),
            Compiler::Nightly(ref rustc) => rustc.with_file_name("clippy-driver").is_file(),
        }
    }

    /// The linked object in the target folder of the kernel side, DWARF and all.
    pub(crate) fn object(workspace: &Workspace) -> PathBuf {
        workspace
            .ebpf()
            .join("target")
            .join(TARGET)
            .join("release/profiler")
    }

    /// Builds bpf-linker into the tools folder, once per version and LLVM.
    fn build_linker(&self) -> Result<()> {
        if self.has_linker() {
            return Ok(());
        }
        eprintln!("building bpf-linker {LINKER_VERSION} (once, about a minute)");
        let mut cargo = command::cargo();
        forget_flags(&mut cargo);
        cargo
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
                "--force",
                "--root",
            ])
            .arg(&self.tools)
            // It runs for a second a build: compiling it fast beats fast code.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("CARGO_TARGET_DIR", self.tools.join("build"));
        let llvm = self.llvm()?;
        cargo.args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", llvm.major),
        ]);
        if let Some(library) = llvm.library {
            // llvm-sys asks for the link name, which Debian keeps in a package of 300 MB.
            let folder = self.tools.join("llvm/lib");
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let link = folder.join("libLLVM.so");
            if link.symlink_metadata().is_ok() {
                fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
            }
            symlink(&library, &link).with_context(|| format!("cannot create {}", link.display()))?;
            cargo.env("LLVM_PREFIX", self.tools.join("llvm"));
        }
        command::run(&mut cargo)?;
        fs::remove_dir_all(self.tools.join("build")).ok();
        fs::write(self.stamp_path(), self.linker_stamp()?).context("cannot note which bpf-linker was built")
    }

    fn stamp_path(&self) -> PathBuf {
        self.tools.join("bin/bpf-linker.version")
    }

    fn read_stamp(&self) -> Option<String> {
        fs::read_to_string(self.stamp_path()).ok()
    }

    /// The linker is bound to the LLVM it was built for.
    fn linker_stamp(&self) -> Result<String> {
        Ok(format!(
            "bpf-linker {LINKER_VERSION} for LLVM {}\n",
            self.llvm()?.version
        ))
    }

    fn llvm(&self) -> Result<Llvm> {
        let version = self.verbose("LLVM version: ")?;
        let mut parts = version.split('.');
        let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or("0"));
        let name = format!("libLLVM.so.{major}.{minor}");
        let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
            .iter()
            .map(|folder| Path::new(folder).join(&name))
            .find(|file| file.is_file());
        if library.is_none() && matches!(self.compiler, Compiler::Debian) {
            bail!("{name} is not installed; install the package libllvm{major}, which rustc-web depends on");
        }
        Ok(Llvm {
            version: version.to_owned(),
            major: major.to_owned(),
            library,
        })
    }

    /// A line of what `rustc -vV` writes.
    fn verbose(&self, start: &str) -> Result<String> {
        let text = command::output(Command::new(self.rustc()).arg("-vV"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(start));
        Ok(line
            .with_context(|| format!("`rustc -vV` has no line `{start}`; install the compiler again"))?
            .to_owned())
    }

    fn rustc(&self) -> &Path {
        match &self.compiler {
            Compiler::Debian => Path::new(DEBIAN_RUSTC),
            Compiler::Nightly(rustc) => rustc,
        }
    }

    /// cargo at work on the kernel side.
    ///
    /// Our own call and not aya-build's, which removes `RUSTC`. The result depends on the sources and the tools
    /// alone: paths are cut off, flags of the user's environment are forgotten.
    pub(crate) fn cargo(&self, workspace: &Workspace, action: Action) -> Result<Command> {
        let mut cargo = command::cargo();
        forget_flags(&mut cargo);
        cargo
            .arg(if action == Action::Build { "build" } else { "check" })
            .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(workspace.ebpf().join("target"))
            .current_dir(workspace.ebpf())
            .env("PATH", command::path_with(&self.tools.join("bin"))?)
            .env("RUSTC", self.rustc())
            .env(
                "RUSTC_WRAPPER",
                env::current_exe().context("cannot find this program's own file")?,
            )
            .env(AS_RUSTC, "1")
            // aya-ebpf itself is written with asm! for BPF, which stable compilers keep behind a feature.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("AYA_BPF_TARGET_ARCH", KERNEL_ARCH)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(workspace)?.join("\u{1f}"));
        if let Compiler::Nightly(_) = self.compiler {
            cargo.arg("-Zbuild-std=core");
        }
        if action == Action::Clippy {
            let driver = match &self.compiler {
                Compiler::Debian => PathBuf::from(DEBIAN_CLIPPY),
                Compiler::Nightly(rustc) => rustc.with_file_name("clippy-driver"),
            };
            cargo
                .env("RUSTC_WORKSPACE_WRAPPER", driver)
                .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        }
        Ok(cargo)
    }

    fn flags(&self, workspace: &Workspace) -> Result<Vec<String>> {
        let mut flags: Vec<String> = [
            "-Cdebuginfo=2",
            "-Clinker=bpf-linker",
            "-Clink-arg=--btf",
            "-Ctarget-cpu=v3",
        ]
        .map(String::from)
        .to_vec();
        let sysroot = command::output(Command::new(self.rustc()).args(["--print", "sysroot"]))?;
        // The linker runs in the crate's folder and finds our own sources there by these names, so that
        // the verifier's messages quote them. Later prefixes win.
        let mut cut =
            |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        cut(workspace.root(), "..");
        cut(&workspace.ebpf(), ".");
        for registry in registries()? {
            cut(&registry, "registry");
        }
        cut(&Path::new(&sysroot).join("lib/rustlib/src/rust"), "rust");
        Ok(flags)
    }
}

struct Llvm {
    version: String,
    major: String,
    library: Option<PathBuf>,
}

/// Acts as the compiler when cargo started this program as one, and does not return then.
///
/// cargo names a crate outside the workspace (profiler-common, seen from the kernel side) by its absolute
/// path, and the name reaches every symbol: two clones would give two objects. So its name is fixed here.
pub(crate) fn run_as_rustc() -> Option<ExitCode> {
    env::var_os(AS_RUSTC)?;
    let mut arguments = env::args_os().skip(1);
    let Some(rustc) = arguments.next() else {
        eprintln!("error: {AS_RUSTC} is set, which is for cargo alone; unset it");
        return Some(ExitCode::FAILURE);
    };
    let mut arguments: Vec<OsString> = arguments.collect();
    fix_crate_name(&mut arguments);
    let error = Command::new(&rustc).args(arguments).env_remove(AS_RUSTC).exec();
    eprintln!("error: cannot start {}: {error}", rustc.display());
    Some(ExitCode::FAILURE)
}

fn fix_crate_name(arguments: &mut [OsString]) {
    let ours = arguments
        .windows(2)
        .any(|pair| pair == ["--crate-name", "profiler_common"]);
    for argument in arguments.iter_mut().filter(|_| ours) {
        if argument.to_string_lossy().starts_with("metadata=") {
            *argument = "metadata=profiler-common".into();
        }
    }
}

/// Flags of the surroundings that would change what is built.
fn forget_flags(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let steers = ["CARGO_PROFILE_", "CARGO_BUILD_", "CARGO_TARGET_", "RUSTUP_"]
            .iter()
            .any(|start| text.starts_with(start));
        let flags = [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
        ];
        // The rustup that chose this cargo stays chosen.
        if (steers && text != "RUSTUP_HOME" && text != "RUSTUP_TOOLCHAIN") || flags.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
}

/// Folders under which cargo unpacks crates; their names depend on where the crates came from.
fn registries() -> Result<Vec<PathBuf>> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set; set it or CARGO_HOME")?)
            .join(".cargo"),
    };
    let sources = home.join("registry/src");
    let Ok(entries) = fs::read_dir(&sources) else {
        return Ok(Vec::new());
    };
    let mut folders = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    folders.sort();
    Ok(folders)
}

/// Whether a compiler has a `core` for BPF that is its own. Debian's `rustc` takes the place of `rustc-web` when it is installed and leaves the
/// other's `core` behind, so only a try tells.
fn has_core_for_bpf(rustc: &Path) -> bool {
    let mut compiler = Command::new(rustc);
    // Everything up to code goes to the standard output: a compiler that runs as root replaces the file that it is told to write.
    compiler.args([
        "--target",
        TARGET,
        "--crate-type",
        "lib",
        "--emit",
        "metadata=-",
        "-",
    ]);
    let child = compiler
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let written = child
        .stdin
        .take()
        .is_some_and(|mut source| source.write_all(b"#![no_std]").is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}

fn nightly_with_source() -> Option<PathBuf> {
    let sysroot =
        command::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
            .ok()?;
    let sysroot = PathBuf::from(sysroot);
    let rustc = sysroot.join("bin/rustc");
    (sysroot.join("lib/rustlib/src/rust/library/core").is_dir() && rustc.is_file()).then_some(rustc)
}

/// What to do on a machine without a compiler for BPF.
pub(crate) fn missing() -> String {
    "no compiler for the kernel side. On Debian and Ubuntu `cargo xtask setup` installs it \
     (packages rustc-web and libstd-rust-web-dev-bpf). Elsewhere:\n  \
     rustup toolchain install nightly --component rust-src,clippy\n  \
     and the development files of the LLVM that `rustup run nightly rustc -vV` names"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_outside_crate_is_renamed() {
        let mut ours: Vec<OsString> = [
            "--crate-name",
            "profiler_common",
            "-C",
            "metadata=0123",
            "-C",
            "extra-filename=-45",
        ]
        .map(Into::into)
        .to_vec();
        fix_crate_name(&mut ours);
        assert_eq!(ours[3], "metadata=profiler-common");
        assert_eq!(ours[5], "extra-filename=-45");
        let mut other: Vec<OsString> = ["--crate-name", "aya_ebpf", "-C", "metadata=0123"]
            .map(Into::into)
            .to_vec();
        fix_crate_name(&mut other);
        assert_eq!(other[3], "metadata=0123");
    }
}
