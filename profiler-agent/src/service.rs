//! What a service manager is told, sd_notify(3): that sampling has begun, that it goes on, that it ends. Nothing where nobody asked.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Tells the service manager. The watchdog is fed by the thread that samples, so it means that samples are taken in.
#[derive(Debug)]
pub struct Service {
    /// A quarter of the time after which silence means death: it is fed when there is progress to tell, five seconds later at most.
    watchdog: Option<Duration>,
    is_ready: bool,
    fed: Instant,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 4),
            is_ready: false,
            fed: Instant::now(),
        }
    }
}

impl Service {
    /// Sampling has begun, or goes on. To be called each five seconds at least.
    pub fn samples(&mut self) {
        if !self.is_ready {
            self.is_ready = true;
            tell(&[NotifyState::Ready, NotifyState::Status("sampling")]);
        } else if self.watchdog.is_some_and(|quarter| self.fed.elapsed() >= quarter) {
            self.fed = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// The end has begun.
pub fn ends() {
    tell(&[NotifyState::Stopping, NotifyState::Status("sending what is left")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
