//! `kernel.perf_event_paranoid`: who may open perf events.

use std::path::Path;

use super::capabilities;
use crate::procfs;

/// Up to this level `CAP_PERFMON` is enough, as Linux has it. Debian's kernels (3 unless it is set) and Ubuntu's (4) know higher ones, at which
/// `perf_event_open(2)` wants `CAP_SYS_ADMIN` itself. Seen on Debian's 6.1.
const OPEN_TO_PERFMON: i32 = 2;

/// What to do about a level that refuses this process.
pub const REMEDY: &str = "sudo sysctl kernel.perf_event_paranoid=2 (deploy/systemd/90-profiler-agent.conf keeps it so), or let the agent have CAP_SYS_ADMIN";

/// The level that is set; `None` where the kernel has no perf events, or `/proc/sys` is hidden.
pub fn level() -> Option<i32> {
    let text = procfs::read(Path::new("/proc/sys/kernel/perf_event_paranoid"), 64).ok()?;
    String::from_utf8_lossy(&text).trim().parse().ok()
}

/// The level, if it refuses this process for want of `CAP_SYS_ADMIN`.
pub fn refuses() -> Option<i32> {
    level().filter(|&level| is_refused(level, capabilities::has_sys_admin()))
}

const fn is_refused(level: i32, has_sys_admin: bool) -> bool {
    level > OPEN_TO_PERFMON && !has_sys_admin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_linux_does_not_know_want_more() {
        assert!(is_refused(3, false) && is_refused(4, false));
        assert!(!is_refused(4, true) && !is_refused(2, false) && !is_refused(-1, false));
    }
}
