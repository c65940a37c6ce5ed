//! A program under its load: started, and ended with all that it has started.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::programs::{Program, Run};
use crate::command;
use crate::workspace::Workspace;

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The folder of a load, and what its commands are given.
pub(crate) struct Place {
    folder: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Place {
    /// Prepares the load of a program.
    pub(crate) fn prepare(workspace: &Workspace, program: &Program) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder; is TMPDIR full?")?;
        // Servers change to a user of their own.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))
            .with_context(|| format!("cannot open {} to others", folder.path().display()))?;
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .context("no TCP port is free")?
            .port();
        let mut path = OsString::new();
        if let Some(postgres) = newest(Path::new("/usr/lib/postgresql")) {
            path.push(postgres.join("bin"));
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let place = Self {
            variables: vec![
                ("ROOT", workspace.root().into()),
                ("LOADS", workspace.join("xtask/loads").into()),
                ("PORT", port.to_string().into()),
                ("PATH", path),
                // Of other projects' making.
                ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
                ("GOFLAGS", "-mod=mod".into()),
            ],
            folder,
        };
        command::run_quiet(&mut place.shell(program.prepare))
            .with_context(|| format!("cannot prepare {}", program.name))?;
        Ok(place)
    }

    /// Whether a command that was to succeed has not.
    pub(crate) fn has_failed(&self) -> bool {
        self.folder().join("failed").exists()
    }

    /// The folder, which goes with this.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command in the folder.
    fn shell(&self, script: &str) -> Command {
        self.through(Command::new("sh"), script)
    }

    /// The program's own command, as the last words of another.
    pub(crate) fn command(&self, mut through: Command, program: &Program) -> Command {
        through.arg("sh");
        let (Run::Endless(script) | Run::Served { server: script, .. } | Run::Again(script)) = program.run;
        match program.run {
            // A command that fails is no load.
            Run::Again(_) => self.through(through, &format!("while ({script}); do :; done; echo > failed")),
            Run::Endless(_) | Run::Served { .. } => self.through(through, script),
        }
    }

    fn through(&self, mut shell: Command, script: &str) -> Command {
        shell
            .args(["-uc", script])
            .current_dir(self.folder())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        shell
    }

    /// What a program is asked for its version.
    pub(crate) fn version(&self, program: &Program) -> Result<String> {
        let output = command::output(&mut self.shell_with_output(program.version))?;
        Ok(output.lines().next().unwrap_or_default().to_owned())
    }

    fn shell_with_output(&self, script: &str) -> Command {
        let mut shell = self.shell(script);
        shell.stdout(Stdio::piped());
        shell
    }

    /// Starts the client of a server, once that is up; nothing for what is no server.
    pub(crate) fn client(&self, program: &Program) -> Result<Option<Group>> {
        let Run::Served { ready, client, .. } = program.run else {
            return Ok(None);
        };
        let deadline = Instant::now() + PATIENCE;
        while command::run_quiet(&mut self.shell(ready)).is_err() {
            if Instant::now() > deadline {
                bail!(
                    "{} was not up within {} s; `{ready}` in its folder fails",
                    program.name,
                    PATIENCE.as_secs()
                );
            }
            sleep(Duration::from_millis(50));
        }
        Group::start(&mut quiet(self.shell(&again(client)))).map(Some)
    }
}

fn quiet(mut command: Command) -> Command {
    command.stderr(Stdio::null());
    command
}

/// A command again and again, in a shell of its own each time, since it may change the folder.
fn again(script: &str) -> String {
    format!("while :; do ({script}) || sleep 0.1; done")
}

/// The entry of a folder that comes last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).max()
}

/// A process and what it has started, in a group of their own; they are ended when this is dropped.
pub(crate) struct Group(pub(crate) Child);

impl Group {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).spawn();
        child
            .map(Self)
            .with_context(|| format!("cannot start {}", command.get_program().display()))
    }

    /// Waits until the process has ended by itself; whether it did, in time.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if self.0.try_wait().context("cannot wait for a process")?.is_some() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group can outlive its first process.
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
