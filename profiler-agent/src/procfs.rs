//! /proc and /sys, read with bounds. What stands there about a process was partly chosen by it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use rustix::process::{Resource, Rlimit};

/// Reads at most `limit` bytes of a file.
///
/// # Errors
///
/// Those of `open` and `read`: `NotFound` when the process is gone.
pub fn read(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A number that is alone in its file, such as a sysctl.
pub fn number(path: impl AsRef<Path>) -> Option<u64> {
    String::from_utf8(read(path, 64).ok()?).ok()?.trim().parse().ok()
}

/// Lets this process have as many files open as that, or as many as it is allowed to allow itself.
pub fn allow_open_files(count: u64) {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let most = limits.maximum.map_or(count, |maximum| maximum.min(count));
    if limits.current.is_some_and(|current| current < most) {
        let limits = Rlimit {
            current: Some(most),
            ..limits
        };
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limits) {
            tracing::debug!(%error, "no more files than before can be held open");
        }
    }
}

/// Inode of the pid namespace that the kernel itself is in; a constant of its ABI (`PROC_PID_INIT_INO`).
const INITIAL_PIDS: &str = "pid:[4026531836]";

/// Whether the pids that the kernel has are those in this /proc.
pub fn has_pids_of_the_host() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == INITIAL_PIDS)
}

/// The thread of a process in whose folder of /proc its memory and files can be seen: its main thread, or another one when that has ended
/// before the others.
pub fn thread_with_memory(pid: u32) -> u32 {
    let has_memory = |tid: &u32| std::fs::read_link(format!("/proc/{tid}/exe")).is_ok();
    if has_memory(&pid) {
        return pid;
    }
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(has_memory)
        .unwrap_or(pid)
}

/// The fields of /proc/PID/stat that are of use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Parent.
    pub parent: u32,
    /// Start, clock ticks since boot.
    pub start: u64,
    /// CPU time of its threads, those that ended included, in clock ticks.
    pub cpu: u64,
    /// The part of it in user mode.
    pub user: u64,
    /// CPU time of its children that ended and were waited for, in clock ticks.
    pub children_cpu: u64,
    /// Number of threads.
    pub threads: u64,
    /// State letter: `R`, `S`, `Z`…
    pub state: u8,
}

impl Stat {
    /// The fields of a living process or of a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&read(format!("/proc/{pid}/stat"), 4096).ok()?)
    }

    /// `PID (COMM) STATE PPID …`, proc(5). The name may hold spaces and parentheses: the last `)` ends it.
    fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // proc(5) counts fields from 1; the first one here is number 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            parent: u32::try_from(field(4)?).ok()?,
            cpu: field(14)?.checked_add(field(15)?)?,
            user: field(14)?,
            children_cpu: field(16)?.checked_add(field(17)?)?,
            threads: field(20)?,
            start: field(22)?,
        })
    }
}

/// A value of /proc/PID/status, e.g. `Tgid`.
pub fn status(pid: u32, key: &str) -> Option<String> {
    let status = read(format!("/proc/{pid}/status"), 64 << 10).ok()?;
    String::from_utf8_lossy(&status).lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == key).then(|| value.trim().to_owned())
    })
}

/// The command line of a process, its words joined by spaces; empty for a kernel thread.
pub fn command_line(pid: u32) -> String {
    let words = read(format!("/proc/{pid}/cmdline"), 4096).unwrap_or_default();
    String::from_utf8_lossy(&words)
        .trim_end_matches('\0')
        .replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = b"42 (a) b (c)) S 7 42 42 0 -1 0 0 0 0 0 10 5 3 1 20 0 9 0 1234 0 0";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat {
                state: b'S',
                parent: 7,
                cpu: 15,
                user: 10,
                children_cpu: 4,
                threads: 9,
                start: 1234
            })
        );
        assert_eq!(Stat::parse(b"42 (a"), None);
        assert_eq!(Stat::parse(b"42 (a) S"), None);
    }

    #[test]
    fn finds_this_process() {
        let pid = std::process::id();
        assert!(Stat::of(pid).unwrap().start > 0);
        assert_eq!(status(pid, "Tgid").unwrap(), pid.to_string());
    }
}
