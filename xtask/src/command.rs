//! Starting other programs, with messages that name them.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` tells this program about itself. Build scripts depend on these (ring's does): with them, all that is built on ring
    // would be built anew whenever `cargo xtask` comes after `cargo build`.
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(own) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// `cargo test` or `cargo bench`, as `verb` says, of one of the agent's targets in the workspace at `root`.
pub(crate) fn of_agent(root: &Path, verb: &str, name: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .args([verb, "--locked", "--package", "profiler-agent"])
        .args([&format!("--{verb}"), name])
        .current_dir(root);
    cargo
}

/// Runs `command` with our output, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!(
            "{} failed ({status}); what it wrote above says why",
            describe(command)
        );
    }
    Ok(())
}

/// Runs `command` quietly; its output is shown only when it fails.
pub(crate) fn run_quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// What `command` wrote to stdout, trimmed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}):\n{text}\n{}",
            describe(command),
            output.status,
            errors.trim()
        );
    }
    Ok(text)
}

/// The first file called `name` in `PATH`.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// `PATH` with `folder` in front.
pub(crate) fn path_with(folder: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(folder.to_owned()).chain(env::split_paths(&path)))
        .with_context(|| format!("{} has a colon in its name; move the workspace", folder.display()))
}

/// True when this process may do everything.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata("/proc/self")
        .context("/proc is not mounted; mount it first")?
        .uid()
        == 0)
}

/// `program`, through sudo when this process is not root. The environment is kept for `kept` variables.
pub(crate) fn privileged(program: impl AsRef<OsStr>, kept: &[&str]) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    if find_in_path("sudo").is_none() {
        bail!(
            "{} needs root and there is no sudo; run the same as root",
            program.as_ref().display()
        );
    }
    let mut command = Command::new("sudo");
    if !kept.is_empty() {
        command.arg(format!("--preserve-env={}", kept.join(",")));
    }
    command.arg("--").arg(program);
    Ok(command)
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start {}; `cargo xtask setup` installs what is missing",
        command.get_program().display()
    )
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .display()
        .to_string();
    for argument in command.get_args().take(4) {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
