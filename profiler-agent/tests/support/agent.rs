//! The real binary, run as a person runs it, and never for ever.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::workload::{send, text, wait_for};

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_profiler-agent");

/// An agent that has not ended so long after it was expected to hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent about to run, in an empty folder of its own.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    streams: TempDir,
    /// What runs it, e.g. `unshare -m`.
    through: Vec<OsString>,
    program: PathBuf,
    variables: Vec<(OsString, OsString)>,
}

impl Agent {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            streams: tempfile::tempdir().unwrap(),
            through: Vec::new(),
            program: PROGRAM.into(),
            variables: Vec::new(),
        }
    }

    /// Runs it as the last arguments of this command.
    pub fn through<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.through = command.into_iter().map(|word| word.as_ref().into()).collect();
        self
    }

    /// Runs a copy that every user can reach, wherever the build lies.
    pub fn for_every_user(mut self) -> Self {
        self.program = self.path("profiler-agent");
        copy_to_run(Path::new(PROGRAM), &self.program);
        std::fs::set_permissions(self.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        self
    }

    /// Sets a variable of its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// A path in its folder, which is its working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Whether it has left a file of any name in its folder, hidden ones too.
    pub fn files(&self) -> Vec<String> {
        files(self.folder.path())
    }

    /// Its command, standard streams in files, for a test that has more to say about it.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut words = self.through.clone();
        words.push(self.program.clone().into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("PROFILER_AGENT_LOG")
            .env_remove("SUDO_UID")
            .env_remove("SUDO_GID")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(File::create(self.streams.path().join("stdout")).unwrap())
            .stderr(File::create(self.streams.path().join("stderr")).unwrap());
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        self.start(arguments).finish()
    }

    /// Starts it.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running<'_> {
        self.start_command(&mut self.command(arguments))
    }

    /// Starts what [`Self::command`] made.
    pub fn start_command(&self, command: &mut Command) -> Running<'_> {
        Running {
            agent: self,
            child: command.spawn().unwrap(),
        }
    }

    fn stream(&self, name: &str) -> String {
        text(&self.streams.path().join(name))
    }
}

/// Copies a program that is run afterwards. The kernel runs no file that is open for writing anywhere, and each child that another thread
/// of this process starts meanwhile has a copy of its descriptors until it becomes a program: so it is `cp` that writes.
pub fn copy_to_run(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}", from.display(), to.display());
}

/// Segments in a spool, or in a history.
pub fn segments(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder.join("v1")).into_iter().flatten();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".segment")).count()
}

/// Names in a folder.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An agent that runs; ended when dropped.
#[derive(Debug)]
pub struct Running<'a> {
    agent: &'a Agent,
    child: Child,
}

impl Running<'_> {
    /// Waits until it samples, as it says itself.
    pub fn samples(&mut self) {
        wait_for("the first word of the agent", || {
            self.agent.stream("stderr").contains("Sampling ") || self.child.try_wait().unwrap().is_some()
        });
    }

    /// What it has said so far.
    pub fn stderr(&self) -> String {
        self.agent.stream("stderr")
    }

    pub fn send(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, as nothing else can.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ends.
    pub fn finish(mut self) -> Run {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(since.elapsed() < PATIENCE, "the agent hangs:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(10));
        };
        Run {
            code: status.code(),
            stdout: self.agent.stream("stdout"),
            stderr: self.agent.stream("stderr"),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It takes its command with it, if it still can.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.send(Signal::TERM);
            std::thread::sleep(Duration::from_millis(500));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How an agent ended.
#[derive(Debug, Clone)]
pub struct Run {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Fails unless it ended with this code and said these words on its standard error.
    pub fn expect(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "`{word}` is missing:\n{}",
                self.stderr
            );
        }
        // Whatever happens, the terminal of a person or a log file gets text, and no news of a bug.
        assert!(!self.stderr.contains('\x1b'), "{:?}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Where an agent answers.
pub fn address(agent: &Running<'_>) -> String {
    let mut address = String::new();
    wait_for("the agent's address", || {
        let said = agent.stderr();
        let Some((_, rest)) = said.split_once("Asked at http://") else {
            return false;
        };
        address = rest
            .split_whitespace()
            .next()
            .unwrap()
            .trim_end_matches('.')
            .to_owned();
        true
    });
    address
}
