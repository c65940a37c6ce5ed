//! From the clocks of the kernel to the time on the wall.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// How the kernel's clocks relate to wall-clock time, as it was when this was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Unix time of `CLOCK_MONOTONIC` 0, nanoseconds.
    monotonic_epoch: u64,
    /// Unix time of the boot, nanoseconds.
    boot: u64,
    /// Nanoseconds of a clock tick, `sysconf(_SC_CLK_TCK)`.
    tick: u64,
}

impl Clock {
    /// Both clocks began at once, with the host.
    #[cfg(test)]
    pub const SAME: Self = Self {
        monotonic_epoch: 0,
        boot: 0,
        tick: 10_000_000,
    };

    /// Reads the clocks.
    pub fn now() -> Self {
        // A thread may lose its CPU between two readings: of some, those that lie closest together are right.
        let readings = (0..4).map(|_| {
            let before = monotonic();
            let wall = nanoseconds(clock_gettime(ClockId::Realtime));
            let after = monotonic();
            (after.saturating_sub(before), wall.saturating_sub(before))
        });
        let (_, monotonic_epoch) = readings.min().unwrap_or_default();
        let wall = nanoseconds(clock_gettime(ClockId::Realtime));
        Self {
            monotonic_epoch,
            boot: wall.saturating_sub(nanoseconds(clock_gettime(ClockId::Boottime))),
            tick: 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1),
        }
    }

    /// Follows the wall clock, which is set now and then and does not run as `CLOCK_MONOTONIC` does. The time of the boot stays as it was
    /// read first: what began at a time began at that time.
    pub fn follow(&mut self) {
        self.monotonic_epoch = Self::now().monotonic_epoch;
    }

    /// Unix time in nanoseconds of a time of `CLOCK_MONOTONIC`.
    pub const fn wall(&self, monotonic: u64) -> u64 {
        self.monotonic_epoch.saturating_add(monotonic)
    }

    /// Time of `CLOCK_MONOTONIC` of a Unix time in nanoseconds.
    pub const fn monotonic(&self, wall: u64) -> u64 {
        wall.saturating_sub(self.monotonic_epoch)
    }

    /// Unix time in nanoseconds of a number of clock ticks since boot.
    pub const fn wall_of_ticks(&self, ticks: u64) -> u64 {
        self.boot.saturating_add(self.nanoseconds(ticks))
    }

    /// Length of some clock ticks in nanoseconds.
    pub const fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(self.tick)
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or_default())
}
