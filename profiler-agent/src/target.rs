//! What is profiled: processes that run, a command that is started for it, or the whole host.

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Command, ExitStatus},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags};

use profiler_common::record::COMM_LEN;

use crate::{
    group::{Group, GroupError},
    procfs,
};

/// What to profile, as a person says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every process.
    Host,
    /// These, their threads, and the children they start.
    Processes(Vec<u32>),
    /// Those of this name, whenever they start.
    Named(String),
    /// What runs in this control group, or in one below it; see [`Group::open`].
    Group(PathBuf),
    /// What runs in the container that has this ID, or one that starts so.
    Container(String),
    /// This command and its children, from its first instruction to its end.
    Command(Vec<OsString>),
}

/// The same, found: whose samples are taken. The kernel programs look before they do anything else.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Everybody's.
    Everything,
    /// Those of these processes, and of the children that they start from now on.
    Processes(Vec<u32>),
    /// Those of processes of this name.
    Named(Comm),
    /// Those of threads in this control group, or in one below it.
    Group(Group),
}

impl Wanted {
    /// The processes that were chosen, if any were.
    pub fn pids(&self) -> Option<&[u32]> {
        match self {
            Self::Processes(pids) => Some(pids),
            Self::Everything | Self::Named(_) | Self::Group(_) => None,
        }
    }
}

/// A name as the kernel keeps it: 15 bytes, and zeros behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comm(pub [u8; COMM_LEN]);

impl From<&str> for Comm {
    fn from(name: &str) -> Self {
        let mut comm = [0; COMM_LEN];
        let bytes = name.bytes().take(COMM_LEN - 1);
        comm.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        Self(comm)
    }
}

/// Why a target cannot be profiled.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such pid.
    #[error("no process has pid {0}; `pgrep -a NAME` finds one by its name")]
    NoSuchProcess(u32),
    /// A thread id.
    #[error("{tid} is a thread of process {pid}; profile all its threads with -p {pid}")]
    Thread {
        /// The id given.
        tid: u32,
        /// Its process.
        pid: String,
    },
    /// A zombie.
    #[error("process {0} has ended; its parent has yet to take note")]
    Ended(u32),
    /// The system would not let it be watched.
    #[error("process {pid} cannot be watched")]
    Watch {
        /// The process.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Pids here are not the kernel's.
    #[error(
        "this process is in a pid namespace of its own: the pids that it knows are not those that the kernel samples by; run the container with `--pid=host`, or `hostPID: true`"
    )]
    PidNamespace,
    /// Its control group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The command could not be started.
    #[error("cannot run `{command}`")]
    Start {
        /// Its name.
        command: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A process to be profiled. Holds on to its life: a pid that is used again is not followed.
#[derive(Debug)]
pub struct Target {
    /// Its pid.
    pub pid: u32,
    fd: OwnedFd,
}

impl Target {
    /// Takes hold of a running process.
    ///
    /// # Errors
    ///
    /// [`TargetError`] when it does not run, or is a thread.
    pub fn attach(pid: u32) -> Result<Self, TargetError> {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(TargetError::NoSuchProcess(pid))?;
        let fd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|error| {
            // The kernel says EINVAL, or ENOENT from 6.15 on, for the id of a thread.
            match procfs::status(pid, "Tgid") {
                Some(tgid) if tgid != pid.to_string() => TargetError::Thread { tid: pid, pid: tgid },
                Some(_) => TargetError::Watch {
                    pid,
                    source: error.into(),
                },
                None => TargetError::NoSuchProcess(pid),
            }
        })?;
        match procfs::Stat::of(pid) {
            None => Err(TargetError::NoSuchProcess(pid)),
            Some(stat) if stat.state == b'Z' && stat.threads <= 1 => Err(TargetError::Ended(pid)),
            Some(_) => Ok(Self { pid, fd }),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        rustix::event::poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Name of the thread that starts a command, and so of the command's process until it runs a program of its own.
pub const LAUNCHER: &str = "command";

/// A command that has been created but runs no instruction of its own yet.
#[derive(Debug)]
pub struct Waiting {
    /// Its pid, already final.
    pub pid: u32,
    name: String,
    gate: io::PipeWriter,
    thread: JoinHandle<io::Result<std::process::Child>>,
}

impl Waiting {
    /// Creates the process of a command; it waits until [`Self::release`]. Dropped instead, it ends without having run.
    ///
    /// # Errors
    ///
    /// [`TargetError::Start`].
    pub fn create(command: &[OsString]) -> Result<Self, TargetError> {
        let name = command
            .first()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self::spawn(command, &name).map_err(|source| TargetError::Start {
            command: name,
            source,
        })
    }

    #[expect(
        unsafe_code,
        reason = "std offers no other way to run code between fork and exec"
    )]
    fn spawn(command: &[OsString], name: &str) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let (mut pid_reader, mut pid_writer) = io::pipe()?;
        let (mut gate_reader, gate) = io::pipe()?;
        let mut command = Command::new(program);
        command.args(arguments);
        let gate_fd = gate.as_raw_fd();
        let wait_at_gate = move || {
            // The new process holds a writer of the gate too; as long as it does, the gate would never close.
            // SAFETY: its own copy of the descriptor, which nothing in it uses.
            let _ = unsafe { libc::close(gate_fd) };
            pid_writer.write_all(&std::process::id().to_ne_bytes())?;
            // One byte opens the gate; its end means that the agent gave up.
            gate_reader.read_exact(&mut [0])
        };
        // SAFETY: between fork and exec the closure only closes, writes and reads descriptors, which is async-signal-safe; it does not
        // allocate.
        unsafe { command.pre_exec(wait_at_gate) };
        // `spawn` returns after exec only, hence the thread.
        let thread = std::thread::Builder::new()
            .name(LAUNCHER.into())
            .spawn(move || command.spawn())?;
        let mut pid = [0; 4];
        if let Err(error) = pid_reader.read_exact(&mut pid) {
            // Without a pid there was no fork; the thread knows why.
            return Err(join(thread).err().unwrap_or(error));
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            name: name.to_owned(),
            gate,
            thread,
        })
    }

    /// Lets it run.
    ///
    /// # Errors
    ///
    /// [`TargetError::Start`] when there is no such program, or it cannot be executed.
    pub fn release(mut self) -> Result<Running, TargetError> {
        let child = self.gate.write_all(&[1]).and_then(|()| join(self.thread));
        let child = child.map_err(|source| TargetError::Start {
            command: self.name,
            source,
        })?;
        Ok(Running(child))
    }
}

fn join(thread: JoinHandle<io::Result<std::process::Child>>) -> io::Result<std::process::Child> {
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the starting thread died")))
}

/// How long a command may take to end when asked to.
const PATIENCE: Duration = Duration::from_secs(3);

/// A command that runs.
#[derive(Debug)]
pub struct Running(std::process::Child);

impl Running {
    /// How it ended. One that still runs is asked to end, and is left alone when it does not within [`PATIENCE`].
    ///
    /// # Errors
    ///
    /// Those of `waitpid(2)`.
    pub fn end(mut self) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.0.try_wait()? {
            return Ok(Some(status));
        }
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!(
            pid = self.0.id(),
            "the command did not end on SIGTERM; it goes on"
        );
        Ok(None)
    }
}

/// How a command ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_waits_until_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("made");
        let waiting = Waiting::create(&["touch".into(), made.clone().into()]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!made.exists());
        let target = Target::attach(waiting.pid).unwrap();
        assert!(!target.has_ended());
        let mut running = waiting.release().unwrap();
        assert!(running.0.wait().unwrap().success());
        assert!(made.exists());
        assert!(target.has_ended());
    }

    #[test]
    fn a_command_that_is_given_up_never_runs() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("made");
        let waiting = Waiting::create(&["touch".into(), made.clone().into()]).unwrap();
        let Waiting { gate, thread, .. } = waiting;
        drop(gate);
        assert!(join(thread).is_err());
        assert!(!made.exists());
    }

    #[test]
    fn what_cannot_be_profiled_says_why() {
        assert!(matches!(
            Target::attach(u32::MAX),
            Err(TargetError::NoSuchProcess(_))
        ));
        assert!(matches!(
            Target::attach(4_194_305),
            Err(TargetError::NoSuchProcess(_))
        ));
        let tid = std::thread::spawn(|| {
            let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            Target::attach(tid).unwrap_err().to_string()
        });
        let text = tid.join().unwrap();
        assert!(text.contains(&format!("-p {}", std::process::id())), "{text}");
        let missing = Waiting::create(&["/no/such/program".into()])
            .unwrap()
            .release()
            .unwrap_err();
        assert!(missing.to_string().contains("/no/such/program"));
    }
}
