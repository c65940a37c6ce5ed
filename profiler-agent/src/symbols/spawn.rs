//! The child as a process: created, watched, ended.
#![allow(
    unsafe_code,
    reason = "std creates no process in a pid namespace of its own, and tells nothing of what one has used"
)]

use std::{
    ffi::{CStr, CString},
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
    ptr,
    time::{Duration, Instant},
};

use super::{server::ARGUMENT, socket::Socket};
use crate::procfs;

/// Name of the child for `ps`.
const NAME: &CStr = c"profiler-agent";

/// A child of this process; ended and waited for when dropped.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    /// What it used, once it was waited for.
    ended: Option<Ended>,
}

/// How a process ended, and what it had used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// As `wait(2)` tells.
    status: libc::c_int,
    /// CPU time.
    pub(super) cpu: Duration,
    /// Most memory it had at one time, bytes; mapped pages of files included.
    pub(super) peak_memory: u64,
}

impl Ended {
    /// In words.
    pub(super) fn describe(&self) -> String {
        if libc::WIFSIGNALED(self.status) {
            let signal = libc::WTERMSIG(self.status);
            let name = match signal {
                libc::SIGBUS => "SIGBUS: a file shrank while it was read",
                // The first process of a pid namespace is not ended by its own abort, and falls over the instruction behind it.
                libc::SIGABRT | libc::SIGSEGV => {
                    "its memory or its stack was used up, or it contradicted itself"
                }
                libc::SIGXCPU => "SIGXCPU: its CPU time was used up",
                libc::SIGKILL => "SIGKILL",
                _ => return format!("signal {signal}"),
            };
            return name.into();
        }
        format!("exit code {}", libc::WEXITSTATUS(self.status))
    }
}

impl Process {
    /// Starts `program` as a child that finds its end of the line as descriptor 0 and no other open one, in a session and, where that
    /// is allowed, a pid namespace of its own.
    pub(super) fn start(program: &Path) -> io::Result<(Self, Socket)> {
        let (ours, theirs) = Socket::pair()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let program = CString::new(program.as_os_str().as_encoded_bytes())?;
        let arguments = [NAME.as_ptr(), ARGUMENT.as_ptr(), ptr::null()];
        // Everything that is allocated is allocated here: another thread may hold the allocator's lock when the process is copied.
        let prepared = Prepared {
            program: &program,
            arguments: &arguments,
            line: theirs.as_raw_fd(),
            null: null.as_raw_fd(),
        };
        // SAFETY: `become_child` does only what is safe after a fork of a process with threads.
        let pid = match unsafe { copy_process(libc::CLONE_NEWPID) } {
            0 => become_child(&prepared),
            pid if pid > 0 => pid,
            // Not allowed, or not known to this kernel: the child will say that this layer is missing.
            // SAFETY: as above.
            _ => match unsafe { copy_process(0) } {
                0 => become_child(&prepared),
                pid if pid > 0 => pid,
                _ => return Err(io::Error::last_os_error()),
            },
        };
        let process = Self { pid, ended: None };
        drop::<OwnedFd>(theirs);
        Ok((process, ours))
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// What it used so far: CPU time in clock ticks.
    pub(super) fn ticks(&self) -> u64 {
        procfs::Stat::of(self.pid()).map_or(0, |stat| stat.cpu)
    }

    /// Waits for it, which should be ending by itself; one that is not is ended after a second.
    pub(super) fn wait(&mut self) -> io::Result<Ended> {
        let patience = Instant::now() + Duration::from_secs(1);
        while Instant::now() < patience {
            if let Some(ended) = self.take_end(libc::WNOHANG)? {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.end()
    }

    /// Ends it at once, if it has not ended by itself, and says how it ended.
    pub(super) fn end(&mut self) -> io::Result<Ended> {
        if self.ended.is_none() {
            // It is not waited for yet, so its pid is its own; one that has ended is a zombie and takes no notice.
            // SAFETY: no pointer is passed.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        Ok(self.take_end(0)?.unwrap_or_default())
    }

    fn take_end(&mut self, options: libc::c_int) -> io::Result<Option<Ended>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        let mut status = 0;
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        loop {
            // SAFETY: both pointers are to places of their types that live through the call.
            let waited = unsafe { libc::wait4(self.pid, &raw mut status, options, usage.as_mut_ptr()) };
            if waited == self.pid {
                break;
            }
            let error = io::Error::last_os_error();
            if waited == 0 {
                return Ok(None);
            } else if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        // SAFETY: all zeros are a valid value, and the kernel wrote one.
        let usage = unsafe { usage.assume_init() };
        let time = |time: libc::timeval| {
            let micros = u64::try_from(time.tv_usec).unwrap_or_default();
            Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
                + Duration::from_micros(micros)
        };
        self.ended = Some(Ended {
            status,
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or_default() << 10,
        });
        Ok(self.ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, pid = self.pid, "the end of a child cannot be awaited");
        }
    }
}

/// What the copy of this process needs until it runs another program.
struct Prepared<'a> {
    program: &'a CStr,
    arguments: &'a [*const libc::c_char; 3],
    line: RawFd,
    null: RawFd,
}

/// `fork`, with namespaces. Returns 0 in the copy.
///
/// # Safety
///
/// In the copy only what is safe in a signal handler may be done: other threads are gone, and with them whatever held a lock.
unsafe fn copy_process(namespaces: libc::c_int) -> libc::pid_t {
    let flags = libc::c_long::from(libc::SIGCHLD | namespaces);
    // SAFETY: no stack is given, so that the copy goes on with a copy of this one, as after fork; the other arguments are unused.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
    libc::pid_t::try_from(pid).unwrap_or(-1)
}

/// The rest of the life of the copy as this program.
fn become_child(prepared: &Prepared<'_>) -> ! {
    let environment = [ptr::null::<libc::c_char>()];
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // A Ctrl-C at the terminal is for the agent, which then asks for the last names.
    // SAFETY: a system call without pointers.
    unsafe { libc::setsid() };
    // SAFETY: the set is a place of its own; the call initializes it.
    unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
    // Who stops a container or a unit may ask each process in it to end. The agent then wants its last names, and ends the child itself.
    // SAFETY: the set is initialized, and these are numbers of signals.
    unsafe { libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM) };
    // SAFETY: the set is initialized, and the former one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, signals.as_ptr(), ptr::null_mut()) };
    for (from, to) in [(prepared.line, 0), (prepared.null, 1), (prepared.null, 2)] {
        // SAFETY: a system call without pointers.
        if unsafe { libc::dup2(from, to) } < 0 {
            // SAFETY: it ends this process without running anything of it.
            unsafe { libc::_exit(2) };
        }
    }
    // What is not closed at exec, a caller of the agent has left open. Before Linux 5.9 that stays.
    // SAFETY: nothing in this copy uses a descriptor any more.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u64, u64::from(u32::MAX), 0_u64) };
    // SAFETY: strings that end in a zero, and lists of them that end in a null pointer.
    unsafe {
        libc::execve(
            prepared.program.as_ptr(),
            prepared.arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    // SAFETY: it ends this process without running anything of it.
    unsafe { libc::_exit(127) }
}
