//! CPU time as the kernel accounts for it: how many samples there should be, and what the agent itself costs.

use hashbrown::HashMap;

use crate::{clock::Clock, process::Processes, procfs};

/// CPU time that the targets of a capture burn while it runs, from the accounting in /proc: in clock ticks of 10 ms, each process
/// with what it inherited from children that ended.
///
/// An independent witness of the number of samples: expected = CPU time × frequency. A process that started and ended
/// unseen by its parent is missing from it.
#[derive(Debug)]
pub struct CpuTime {
    /// Everything on the host, or targets only.
    whole_host: bool,
    /// Ticks of the host at the start.
    host: u64,
    /// Per process and start: ticks at the start of the capture, and last seen.
    processes: HashMap<(u32, u64), (u64, u64)>,
}

impl CpuTime {
    /// Starts to count, for `targets` or the whole host.
    pub fn start(targets: Option<&[u32]>) -> Self {
        let mut this = Self {
            whole_host: targets.is_none(),
            host: host_ticks().unwrap_or_default(),
            processes: HashMap::new(),
        };
        for &pid in targets.unwrap_or_default() {
            if let Some(stat) = procfs::Stat::of(pid) {
                let ticks = stat.cpu + stat.children_cpu;
                this.processes.insert((pid, stat.start), (ticks, ticks));
            }
        }
        this
    }

    /// Looks again; to be called now and then, and when a target ends while its remains can still be seen.
    pub fn update(&mut self, living: &Processes) {
        if self.whole_host {
            return;
        }
        for process in living.living() {
            if let Some(stat) = procfs::Stat::of(process.pid) {
                let ticks = stat.cpu + stat.children_cpu;
                // A process that joined later is a child: all its time counts.
                self.processes
                    .entry((process.pid, stat.start))
                    .or_insert((0, 0))
                    .1 = ticks;
            }
        }
    }

    /// Nanoseconds of CPU time so far.
    pub fn nanoseconds(&self, clock: &Clock) -> u64 {
        clock.nanoseconds(if self.whole_host {
            host_ticks().unwrap_or_default().saturating_sub(self.host)
        } else {
            self.processes
                .values()
                .map(|(start, now)| now.saturating_sub(*start))
                .sum()
        })
    }
}

/// Ticks that all CPUs were busy since boot: user, nice, system, irq and softirq of the first line of /proc/stat.
fn host_ticks() -> Option<u64> {
    let stat = procfs::read("/proc/stat", 4096).ok()?;
    let line = stat.split(|&byte| byte == b'\n').next()?;
    let fields: Vec<u64> = std::str::from_utf8(line)
        .ok()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    match *fields.first_chunk()? {
        [user, nice, system, _idle, _iowait, irq, softirq] => Some(user + nice + system + irq + softirq),
    }
}

/// What the agent itself has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnCost {
    /// CPU time in nanoseconds, all threads.
    pub cpu: u64,
    /// Most memory it had at one time, bytes.
    pub peak_memory: u64,
}

impl OwnCost {
    /// So far.
    pub fn now(clock: &Clock) -> Self {
        let pid = std::process::id();
        let peak = procfs::status(pid, "VmHWM");
        let kilobytes = peak.and_then(|peak| peak.strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Self {
            cpu: schedstat()
                .unwrap_or_else(|| clock.nanoseconds(procfs::Stat::of(pid).map_or(0, |stat| stat.cpu))),
            peak_memory: kilobytes.unwrap_or_default() * 1024,
        }
    }
}

/// CPU time of this process's threads that still run, to the nanosecond; /proc/PID/stat counts in steps of 10 ms.
fn schedstat() -> Option<u64> {
    std::fs::read_dir("/proc/self/task")
        .ok()?
        .map(|task| {
            let schedstat = procfs::read(task.ok()?.path().join("schedstat"), 256).ok()?;
            String::from_utf8(schedstat)
                .ok()?
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_this_process_burns() {
        let clock = Clock::now();
        let pid = std::process::id();
        let mut processes = Processes::new(Some(&[pid]));
        processes.find(pid);
        let mut time = CpuTime::start(Some(&[pid]));
        let own = OwnCost::now(&clock);
        let mut x = 1_u64;
        while OwnCost::now(&clock).cpu < own.cpu + 100_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        time.update(&processes);
        assert!(
            time.nanoseconds(&clock) >= 80_000_000,
            "{} ns",
            time.nanoseconds(&clock)
        );
        assert!(OwnCost::now(&clock).peak_memory > 1 << 20);
    }
}
