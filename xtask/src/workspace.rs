//! Where this workspace is, and where its chores put things.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The folder that holds the top-level `Cargo.toml`, and the places in it.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace that this was started in.
    ///
    /// Asked at run time: a binary in a shared target folder may have been built from another clone.
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => env::current_dir().context("the current folder is gone; change to the workspace")?,
        };
        let root = start
            .ancestors()
            .find(|folder| folder.join("profiler-ebpf/Cargo.toml").is_file())
            .with_context(|| {
                format!(
                    "{} is not inside the profiler-agent workspace; change to it",
                    start.display()
                )
            })?;
        Ok(Self {
            root: root
                .canonicalize()
                .with_context(|| format!("cannot resolve {}", root.display()))?,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The kernel side: a workspace of its own.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.root.join("profiler-ebpf")
    }

    /// The fuzz targets: a workspace of its own.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.root.join("fuzz")
    }

    /// Tools built or fetched by `setup`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// The target folder of the user side, which the environment may move.
    pub(crate) fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), |folder| self.root.join(folder))
    }

    /// The release build of the agent.
    pub(crate) fn agent(&self) -> PathBuf {
        self.target().join("release/profiler-agent")
    }
}
