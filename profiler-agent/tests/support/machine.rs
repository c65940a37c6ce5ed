//! What the machine does to the tests: the host of a virtual one takes its CPUs, and all of it may stand still.

use std::{
    path::Path,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::workload::text;

/// What all CPUs have done since boot, in seconds.
///
/// The kernel leaves what the host takes out of CPU times, where it is told of it, but the clock that samples goes on: there may be more samples
/// than CPU time has periods, by one for each period taken.
#[derive(Debug, Clone, Copy)]
pub struct Cpus {
    busy: f64,
    stolen: f64,
}

impl Cpus {
    pub fn now() -> Self {
        let stat = text(Path::new("/proc/stat"));
        let line = stat.lines().next().unwrap();
        let second = rustix::param::clock_ticks_per_second() as f64;
        let ticks = line.split_whitespace().skip(1);
        let seconds: Vec<f64> = ticks
            .map(|ticks| ticks.parse::<f64>().unwrap() / second)
            .collect();
        Self {
            // But for what is idle, and waits for a disk.
            busy: seconds[..7].iter().sum::<f64>() - seconds[3] - seconds[4],
            stolen: seconds[7],
        }
    }

    /// What the host has taken since then.
    pub fn stolen_since(self, then: Self) -> f64 {
        self.stolen - then.stolen
    }

    /// The part of it that was taken from who had so many seconds of the CPU time.
    pub fn stolen_from(self, cpu_seconds: f64, then: Self) -> f64 {
        self.stolen_since(then) * (cpu_seconds / (self.busy - then.busy)).min(1.0)
    }
}

/// Sees how long the machine stands still: what is late by less is not late by its own fault.
#[derive(Debug)]
pub struct Witness {
    stop: SyncSender<()>,
    thread: JoinHandle<Duration>,
}

impl Witness {
    pub fn start() -> Self {
        const NAP: Duration = Duration::from_millis(20);
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            loop {
                let asleep = Instant::now();
                let has_stopped = stopped.recv_timeout(NAP) != Err(RecvTimeoutError::Timeout);
                longest = longest.max(asleep.elapsed().saturating_sub(NAP));
                if has_stopped {
                    return longest;
                }
            }
        });
        Self { stop, thread }
    }

    /// By how much it was woken too late at most.
    pub fn longest(self) -> Duration {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}
