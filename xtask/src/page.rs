//! What checks and tests the page (`profiler-agent/page`): Node.js, the packages of its lock file, a browser. Nothing of
//! these is needed to build the agent: the page ships as it is in the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::python::Python;
use crate::setup;
use crate::sources;
use crate::workspace::Workspace;

/// What playwright-core and the tests ask for.
const OLDEST_NODE: u32 = 20;

/// The browsers that will do, best first. Debian's shell has no window and so needs half as many packages.
const BROWSERS: [&str; 4] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
];

/// Debian's packages of the first of them.
const PACKAGES: &[(&str, &str)] = &[
    (
        "chromium-headless-shell",
        "the browser that tests open the page in",
    ),
    ("fonts-dejavu-core", "its letters"),
];

/// Node.js with its package manager.
pub(crate) struct Node {
    pub(crate) program: PathBuf,
    /// npm's script, which `program` runs.
    npm: PathBuf,
}

/// Node.js of this machine, or of its wheel.
pub(crate) fn find_node(workspace: &Workspace) -> Result<Option<Node>> {
    let here = command::find_in_path("node").zip(command::find_in_path("npm"));
    let wheel = Python::of(workspace).node()?;
    let wheel = wheel.map(|folder| {
        (
            folder.join("bin/node"),
            folder.join("lib/node_modules/npm/bin/npm-cli.js"),
        )
    });
    for (program, npm) in [here, wheel].into_iter().flatten() {
        // In PATH npm is a link to its script.
        let Ok(npm) = npm.canonicalize() else { continue };
        if version(&program).is_some_and(|version| version >= OLDEST_NODE) {
            return Ok(Some(Node { program, npm }));
        }
    }
    Ok(None)
}

fn version(node: &Path) -> Option<u32> {
    let text = command::output(Command::new(node).arg("--version")).ok()?;
    text.strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// The browser of this machine.
pub(crate) fn find_browser() -> Option<PathBuf> {
    BROWSERS.into_iter().find_map(command::find_in_path)
}

/// Where the packages of the lock file are.
pub(crate) fn tools(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("page")
}

pub(crate) fn is_ready(workspace: &Workspace) -> Result<bool> {
    let lock = sources::digest_of(&folder(workspace).join("package-lock.json"))?;
    let stamp = fs::read_to_string(tools(workspace).join("installed"));
    Ok(stamp.is_ok_and(|stamp| stamp == lock))
}

/// Installs what is missing.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    if find_node(workspace)?.is_none() {
        Python::of(workspace).install_node().with_context(|| {
            format!("there is no Node.js {OLDEST_NODE} or newer here; install it from https://nodejs.org")
        })?;
    }
    install_packages(workspace)?;
    if find_browser().is_none() {
        let remedy = || {
            format!(
                "there is no browser to test the page in; install one of {}",
                BROWSERS.join(", ")
            )
        };
        setup::install_packages(PACKAGES).with_context(remedy)?;
        if find_browser().is_none() {
            bail!(remedy());
        }
    }
    Ok(())
}

fn install_packages(workspace: &Workspace) -> Result<()> {
    if is_ready(workspace)? {
        return Ok(());
    }
    let Some(node) = find_node(workspace)? else {
        bail!("npm is missing; `cargo xtask setup` installs it");
    };
    let tools = tools(workspace);
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(folder(workspace).join(file), tools.join(file))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    // As in the lock file, each with its hash, and without running anything that they bring along.
    let mut npm = Command::new(&node.program);
    npm.arg(&node.npm).args([
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]);
    command::run_quiet(npm.current_dir(&tools))
        .context("cannot install the packages of the page's lock file; is the npm registry within reach?")?;
    let lock = sources::digest_of(&folder(workspace).join("package-lock.json"))?;
    fs::write(tools.join("installed"), lock).context("cannot note what was installed")
}

/// Types, style and format of the page's sources.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    install_packages(workspace)?;
    let packages = tools(workspace).join("node_modules");
    let mut types = Command::new(packages.join("@typescript/typescript-linux-x64/lib/tsc"));
    command::run(types.args(["--project", "."]).current_dir(folder(workspace)))?;
    let biome = packages.join("@biomejs/cli-linux-x64/biome");
    let mut style = Command::new(&biome);
    style.args(["check", "--error-on-warnings"]);
    command::run(style.current_dir(folder(workspace))).with_context(|| {
        format!(
            "`{} check --write` in profiler-agent/page mends what can be mended so",
            biome.display()
        )
    })
}

/// The sources of the page.
fn folder(workspace: &Workspace) -> PathBuf {
    workspace.join("profiler-agent/page")
}
