//! What all stages count, brought together when somebody wants to know.

use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use crate::{agent, export::otlp::delivery, procfs};

/// What all stages count, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Of the capture; `None` before it has begun.
    pub capture: Option<agent::Figures>,
    /// Of the delivery, where there is one.
    pub delivery: Option<delivery::Figures>,
    /// Of the history, where there is one.
    pub history: Option<HistoryFigures>,
    /// What the agent itself uses.
    pub own: Own,
}

/// What the history counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryFigures {
    /// Samples in it.
    pub samples: u64,
    /// Samples that were too old for it, or beyond its bytes.
    pub forgotten: u64,
    /// Slices that came faster than it took them in.
    pub skipped: u64,
    /// Its bytes, about.
    pub bytes: u64,
    /// Nanoseconds from its first to its last slice.
    pub span: u64,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Own {
    /// Seconds of CPU time in user mode.
    pub user: f64,
    /// Seconds of CPU time in the kernel.
    pub system: f64,
    /// Bytes of memory that are resident.
    pub resident: u64,
    /// Threads.
    pub threads: u64,
    /// Open files.
    pub files: u64,
    /// Seconds since its start.
    pub uptime: f64,
}

/// Where the stages leave what they count. Shared by all that ask.
pub struct Telemetry {
    started: Instant,
    capture: Mutex<Option<agent::Figures>>,
    delivery: OnceLock<delivery::Watch>,
    history: OnceLock<Box<dyn Fn() -> HistoryFigures + Send + Sync>>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            capture: Mutex::default(),
            delivery: OnceLock::new(),
            history: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Takes in what the capture counts.
    pub fn note(&self, figures: agent::Figures) {
        *self.capture.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
    }

    /// Asks this delivery from now on.
    pub fn watch_delivery(&self, delivery: delivery::Watch) {
        // There is but one.
        let _ = self.delivery.set(delivery);
    }

    /// Asks this history from now on.
    pub fn watch_history(&self, history: impl Fn() -> HistoryFigures + Send + Sync + 'static) {
        // There is but one.
        let _ = self.history.set(Box::new(history));
    }

    /// The delivery that is asked.
    pub fn delivery(&self) -> Option<&delivery::Watch> {
        self.delivery.get()
    }

    /// As it stands.
    pub fn figures(&self) -> Figures {
        Figures {
            capture: self
                .capture
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            delivery: self.delivery.get().map(delivery::Watch::figures),
            history: self.history.get().map(|history| history()),
            own: Own::now(self.started),
        }
    }
}

impl Own {
    fn now(started: Instant) -> Self {
        let pid = std::process::id();
        let stat = procfs::Stat::of(pid);
        let resident = procfs::status(pid, "VmRSS");
        let kilobytes = resident.and_then(|size| size.strip_suffix(" kB")?.trim().parse::<u64>().ok());
        #[expect(clippy::cast_precision_loss, reason = "in 2^53 ticks this host is no more")]
        let seconds = |ticks: u64| ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64;
        Self {
            user: seconds(stat.map_or(0, |stat| stat.user)),
            system: seconds(stat.map_or(0, |stat| stat.cpu - stat.user)),
            resident: kilobytes.unwrap_or_default() * 1024,
            threads: stat.map_or(0, |stat| stat.threads),
            files: std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            uptime: started.elapsed().as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_seen() {
        let own = Telemetry::default().figures().own;
        assert!(
            own.resident > 1 << 20 && own.threads > 0 && own.files > 2,
            "{own:?}"
        );
    }
}
