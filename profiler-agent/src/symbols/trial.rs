//! The child tries what it must not be able to do; `doctor` asks for it.
//!
//! Each trial is harmless should it succeed.
#![allow(unsafe_code, reason = "system calls that no library would make here")]

use std::{io, ptr};

use serde::{Deserialize, Serialize};

use super::confine::MOST_MEMORY;

/// A trial and how it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Place in [`ATTEMPTS`].
    attempt: u8,
    /// What the system said; 0 when it let it happen.
    errno: i32,
}

impl Trial {
    /// What was tried.
    pub fn attempt(&self) -> &'static str {
        ATTEMPTS
            .get(usize::from(self.attempt))
            .map_or("?", |(name, _)| name)
    }

    /// What refused it; `None` when nothing did.
    pub fn refusal(&self) -> Option<io::Error> {
        (self.errno != 0).then(|| io::Error::from_raw_os_error(self.errno))
    }
}

/// What is tried: a name, and a system call, which says what it returned.
type Attempt = (&'static str, fn() -> libc::c_long);

/// All of it.
const ATTEMPTS: &[Attempt] = &[
    ("read /etc/passwd", || open(c"/etc/passwd", libc::O_RDONLY)),
    ("list the folders", || {
        open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)
    }),
    ("write a file", || open(c"/proc/self/comm", libc::O_WRONLY)),
    ("create a file", || open(c"/file", libc::O_WRONLY | libc::O_CREAT)),
    ("create a file in memory", || {
        // SAFETY: the name is a string.
        unsafe { libc::syscall(libc::SYS_memfd_create, c"x".as_ptr(), 0) }
    }),
    ("open a network connection", || socket(libc::AF_INET)),
    ("talk to services of the host", || socket(libc::AF_UNIX)),
    ("ask the kernel by netlink", || socket(libc::AF_NETLINK)),
    ("start a process", || {
        let flags = libc::c_long::from(libc::SIGCHLD);
        // SAFETY: no stack is given: the copy goes on here, and ends in the next line.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
        if pid == 0 {
            // SAFETY: it ends this process without running anything of it.
            unsafe { libc::_exit(0) };
        }
        pid
    }),
    ("run another program", || {
        let none = [ptr::null::<libc::c_char>()];
        // SAFETY: a string, and two lists that end in null.
        unsafe {
            libc::syscall(
                libc::SYS_execve,
                c"/proc/self/fd/0".as_ptr(),
                none.as_ptr(),
                none.as_ptr(),
            )
        }
    }),
    ("trace a process", || {
        call(
            libc::SYS_ptrace,
            [libc::c_long::from(libc::PTRACE_SEIZE), 1, 0, 0],
        )
    }),
    ("send a signal", || call(libc::SYS_kill, [-1, 0, 0, 0])),
    ("become root", || call(libc::SYS_setuid, [0; 4])),
    ("take a capability", || {
        let header = [0x2008_0522_u32, 0];
        let data = [u32::MAX; 6];
        // SAFETY: a header of version 3 and the two structures of three numbers that belong to it.
        unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }
    }),
    ("get a user namespace", || {
        call(
            libc::SYS_unshare,
            [libc::c_long::from(libc::CLONE_NEWUSER), 0, 0, 0],
        )
    }),
    ("mount a file system", || {
        // SAFETY: three strings.
        unsafe {
            libc::syscall(
                libc::SYS_mount,
                c"none".as_ptr(),
                c"/proc".as_ptr(),
                c"tmpfs".as_ptr(),
                0_u64,
                0_u64,
            )
        }
    }),
    ("load a kernel program", || call(libc::SYS_bpf, [0; 4])),
    ("sample another process", || {
        call(libc::SYS_perf_event_open, [0; 4])
    }),
    ("use io_uring", || call(libc::SYS_io_uring_setup, [1, 0, 0, 0])),
    ("make memory executable", || {
        map(4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE)
    }),
    ("share memory without a file", || {
        map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }),
    ("take more than 512 MiB of memory", || {
        map(MOST_MEMORY, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }),
    ("lift its limits", || {
        let limit = libc::rlimit64 {
            rlim_cur: libc::RLIM64_INFINITY,
            rlim_max: libc::RLIM64_INFINITY,
        };
        let none = ptr::null_mut::<libc::rlimit64>();
        // SAFETY: a limit to be read, and none to be written.
        unsafe { libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_DATA, &raw const limit, none) }
    }),
];

/// Tries everything.
pub(super) fn try_all() -> Vec<Trial> {
    let trials = (0_u8..).zip(ATTEMPTS).map(|(attempt, (_, call))| {
        let errno = if call() < 0 {
            io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM)
        } else {
            0
        };
        Trial { attempt, errno }
    });
    trials.collect()
}

fn open(path: &std::ffi::CStr, flags: libc::c_int) -> libc::c_long {
    // SAFETY: the path is a string. The descriptor is left to the end of the process.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }
}

fn socket(family: libc::c_int) -> libc::c_long {
    call(libc::SYS_socket, [family.into(), libc::SOCK_DGRAM.into(), 0, 0])
}

fn map(len: u64, protection: libc::c_int, flags: libc::c_int) -> libc::c_long {
    // SAFETY: a new mapping, which nothing refers to.
    unsafe {
        libc::syscall(
            libc::SYS_mmap,
            0_u64,
            len,
            protection,
            flags | libc::MAP_ANONYMOUS,
            -1,
            0_u64,
        )
    }
}

/// A system call whose arguments are numbers.
fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> libc::c_long {
    let [a, b, c, d] = arguments;
    // SAFETY: those that are called here take no pointers, or take 0 for none.
    unsafe { libc::syscall(number, a, b, c, d, 0_u64) }
}
