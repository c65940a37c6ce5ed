//! CPU time as the kernel accounts for it: how many samples there should be, and what the agent itself costs.

use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use crate::{
    clock::Clock,
    group::Group,
    process::{Process, Processes},
    procfs, symbols,
    target::{Comm, Wanted},
};

/// CPU time that the targets of a capture burn while it runs, from the accounting in /proc: in clock ticks of 10 ms, each process
/// with what it inherited from children that ended.
///
/// An independent witness of the number of samples: expected = CPU time × frequency. A process that started and ended
/// unseen by its parent is missing from it.
///
/// That of a control group is the group's own, to the microsecond.
#[derive(Debug)]
pub struct CpuTime {
    account: Account,
    /// Per process and start time; empty where another account has it all.
    processes: HashMap<(u32, u64), Seen>,
    /// Ticks of those that have ended.
    ended: u64,
    /// Whether one of those was gone before it could be looked at once more, with what it used since.
    missed_an_end: bool,
}

/// Whose account is read.
#[derive(Debug)]
enum Account {
    /// The host's: ticks at the start, and when it was looked at last.
    Host(u64, u64),
    /// A control group's, in the same way.
    Group(Group, Duration, Duration),
    /// Those of processes: of this name, or all that are followed.
    Processes(Option<Comm>),
}

/// The CPU time of a process, in clock ticks.
#[derive(Debug)]
struct Seen {
    /// At the start of the capture; zero for one that joined later.
    start: u64,
    /// When it was looked at last.
    last: u64,
    /// Whether its parent is counted too, and so inherits its time when it has waited for it.
    parent_counted: bool,
    /// Whether it had ended by then and was not yet waited for, so that there is no more to come.
    is_final: bool,
}

impl CpuTime {
    /// Starts to count what is wanted, of the processes that are known.
    pub fn start(wanted: &Wanted, known: &Processes) -> Self {
        let account = match wanted {
            Wanted::Everything => {
                let host = host_ticks().unwrap_or_default();
                Account::Host(host, host)
            }
            Wanted::Group(group) => {
                let time = group.cpu_time().unwrap_or_default();
                Account::Group(group.clone(), time, time)
            }
            Wanted::Named(name) => Account::Processes(Some(*name)),
            Wanted::Processes(_) => Account::Processes(None),
        };
        let mut this = Self {
            account,
            processes: HashMap::new(),
            ended: 0,
            missed_an_end: false,
        };
        for process in this.counted(known) {
            if let Some(stat) = procfs::Stat::of(process.pid) {
                let ticks = stat.cpu + stat.children_cpu;
                let seen = Seen {
                    start: ticks,
                    last: ticks,
                    parent_counted: false,
                    is_final: false,
                };
                this.processes.insert((process.pid, stat.start), seen);
            }
        }
        this
    }

    /// The processes whose own accounts are read.
    fn counted<'a>(&self, known: &'a Processes) -> impl Iterator<Item = &'a Process> + use<'a> {
        let name = match self.account {
            Account::Processes(name) => Some(name),
            Account::Host(..) | Account::Group(..) => None,
        };
        known
            .living()
            .filter(move |process| name.is_some_and(|name| name.is_none_or(|name| process.is_called(name))))
    }

    /// Looks again; to be called now and then, and when a target ends while its remains can still be seen.
    pub fn update(&mut self, known: &Processes) {
        match &mut self.account {
            Account::Host(_, last) => *last = host_ticks().unwrap_or(*last),
            Account::Group(group, _, last) => *last = group.cpu_time().unwrap_or(*last),
            Account::Processes(_) => self.update_processes(known),
        }
    }

    fn update_processes(&mut self, known: &Processes) {
        let counted: HashSet<u32> = self.processes.keys().map(|&(pid, _)| pid).collect();
        for process in self.counted(known) {
            if let Some(stat) = procfs::Stat::of(process.pid) {
                // A process that joined later has started since: all its time counts.
                let seen = self.processes.entry((process.pid, stat.start)).or_insert(Seen {
                    start: 0,
                    last: 0,
                    parent_counted: false,
                    is_final: false,
                });
                seen.last = stat.cpu + stat.children_cpu;
                seen.is_final = stat.state == b'Z';
                seen.parent_counted = counted.contains(&stat.parent);
            }
        }
        let Self {
            processes,
            ended,
            missed_an_end,
            ..
        } = self;
        processes.retain(|&(pid, start), seen| {
            let lives = procfs::Stat::of(pid).is_some_and(|stat| stat.start == start);
            // What was waited for is in its parent's time by now: it would count twice.
            if !lives && (seen.start > 0 || !seen.parent_counted) {
                *ended += seen.last.saturating_sub(seen.start);
                *missed_an_end |= !seen.is_final;
            }
            lives
        });
    }

    /// Whether [`Self::nanoseconds`] is all there was. It is not when a process was waited for between two looks by somebody who is
    /// not counted: its shell, say, which has the rest in its own account.
    pub fn is_whole(&self) -> bool {
        !self.missed_an_end
    }

    /// Nanoseconds of CPU time up to the last [`Self::update`]: the names that are looked up after a capture are none of its time.
    pub fn nanoseconds(&self, clock: &Clock) -> u64 {
        match &self.account {
            Account::Host(start, last) => clock.nanoseconds(last.saturating_sub(*start)),
            Account::Group(_, start, last) => {
                u64::try_from(last.saturating_sub(*start).as_nanos()).unwrap_or(u64::MAX)
            }
            Account::Processes(_) => {
                let living = self.processes.values();
                let ticks = living.fold(self.ended, |sum, seen| sum + seen.last.saturating_sub(seen.start));
                clock.nanoseconds(ticks)
            }
        }
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

/// What the agent itself has used, its child included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnCost {
    /// CPU time in nanoseconds, all threads.
    pub cpu: u64,
    /// Most memory it had at one time, bytes; of two processes the sum of both peaks, which may not have been at one time.
    pub peak_memory: u64,
}

impl OwnCost {
    /// So far, with what the [symbolizer](crate::symbols)'s children used.
    pub fn now(clock: &Clock, children: symbols::Cost) -> Self {
        let pid = std::process::id();
        let own = schedstat(pid)
            .unwrap_or_else(|| clock.nanoseconds(procfs::Stat::of(pid).map_or(0, |stat| stat.cpu)));
        let of_children = u64::try_from(children.cpu.as_nanos()).unwrap_or(u64::MAX);
        Self {
            cpu: own.saturating_add(of_children),
            peak_memory: peak_memory(pid) + children.peak_memory,
        }
    }
}

/// Most memory that a process that runs had at one time, bytes.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    let peak = procfs::status(pid, "VmHWM");
    let kilobytes = peak.and_then(|peak| peak.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// CPU time of the threads of a process that still run, to the nanosecond; /proc/PID/stat counts in steps of 10 ms. `None` once it has
/// ended, or one of its threads meanwhile.
pub fn schedstat(pid: u32) -> Option<u64> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
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
        let mut time = CpuTime::start(&Wanted::Processes(vec![pid]), &processes);
        let cpu = || OwnCost::now(&clock, symbols::Cost::default()).cpu;
        let most = cpu() + 2_000_000_000;
        let mut x = 1_u64;
        // In steps of 10 ms, and what other tests' threads burn counts too: seen at last, though not to the millisecond.
        while time.nanoseconds(&clock) < 80_000_000 {
            for _ in 0..1_000_000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
            time.update(&processes);
            assert!(cpu() < most, "{} ns of 2 s", time.nanoseconds(&clock));
        }
        assert!(OwnCost::now(&clock, symbols::Cost::default()).peak_memory > 1 << 20);
    }

    #[test]
    fn an_end_that_was_not_seen_is_told() {
        for seen in [true, false] {
            let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let mut processes = Processes::new(Some(&[sleeper.id()]));
            processes.find(sleeper.id());
            let mut time = CpuTime::start(&Wanted::Processes(vec![sleeper.id()]), &processes);
            time.update(&processes);
            assert!(time.is_whole());
            sleeper.kill().unwrap();
            while seen && procfs::Stat::of(sleeper.id()).unwrap().state != b'Z' {
                std::thread::sleep(Duration::from_millis(1));
            }
            if seen {
                time.update(&processes);
            }
            sleeper.wait().unwrap();
            time.update(&processes);
            assert_eq!(time.is_whole(), seen);
        }
    }

    #[test]
    fn a_child_that_ended_counts_once() {
        let clock = Clock::now();
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "read go; sh -c 'while :; do :; done' & child=$!; read stop; kill $child; wait $child; read end"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        let mut processes = Processes::new(Some(&[shell.id()]));
        processes.find(shell.id());
        let mut time = CpuTime::start(&Wanted::Processes(vec![shell.id()]), &processes);
        let mut say = |text: &[u8]| std::io::Write::write_all(&mut input, text).unwrap();
        say(b"go\n");
        let child = loop {
            let children = procfs::read(format!("/proc/{0}/task/{0}/children", shell.id()), 4096).unwrap();
            if let Ok(child) = String::from_utf8(children).unwrap().trim().parse::<u32>() {
                break child;
            }
        };
        processes.find(child);
        while procfs::Stat::of(child).unwrap().cpu < 30 {
            std::thread::sleep(Duration::from_millis(20));
            time.update(&processes);
        }
        say(b"stop\n");
        while procfs::Stat::of(child).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        time.update(&processes);
        let counted = time.nanoseconds(&clock);
        let inherited = procfs::Stat::of(shell.id()).unwrap();
        say(b"end\n");
        shell.wait().unwrap();
        assert!(inherited.children_cpu >= 30);
        assert_eq!(counted, clock.nanoseconds(inherited.cpu + inherited.children_cpu));
    }
}
