//! What the machine does to the tests: the host of a virtual one takes its CPUs, and all of it may stand still.

use std::{
    path::Path,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::workload::text;

/// Seconds that the host has taken from all CPUs since boot.
///
/// The kernel leaves them out of CPU times, where it is told of them, but the clock that samples goes on: there may be more samples than CPU time
/// has periods, by one for each period taken.
pub fn steal() -> f64 {
    let stat = text(Path::new("/proc/stat"));
    let ticks = stat.lines().next().unwrap().split_whitespace().nth(8).unwrap();
    ticks.parse::<f64>().unwrap() / rustix::param::clock_ticks_per_second() as f64
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
