//! How long to leave a receiver alone after a failure.

use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// At most, unless the receiver asks for more.
const LONGEST: Duration = Duration::from_secs(30);
/// What a receiver may ask for at most.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// Exponential backoff with jitter: each failure makes the wait half as long again, and each wait is drawn from half of it to one and a half of it, so that the
/// agents of a fleet do not come back all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The receiver has answered.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether the last try has failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Takes in a failure; answers how long to wait. What the receiver asks for is the least.
    pub(super) fn fail(&mut self, asked: Option<Duration>) -> Duration {
        let factor = 1.5_f64.powi(i32::try_from(self.failures.min(20)).unwrap_or(20));
        self.failures = self.failures.saturating_add(1);
        let wait = FIRST.mul_f64(factor).min(LONGEST).mul_f64(0.5 + fastrand::f64());
        // A tenth more at most: all were asked to come back at the same time.
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        wait.max(asked.mul_f64(1.0 + fastrand::f64() / 10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.fail(None)).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST * 3 / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST * 3 / 2));
        assert!(waits[30..].iter().all(|wait| *wait >= LONGEST / 2));
        assert!(waits[30..].windows(2).any(|pair| pair[0] != pair[1]));
        backoff.reset();
        assert!(!backoff.is_failing());
        assert!(backoff.fail(None) <= FIRST * 3 / 2);
    }

    #[test]
    fn what_a_receiver_asks_for_is_the_least_within_reason() {
        let mut backoff = Backoff::default();
        for asked in [3, 100, 600] {
            let wait = backoff.fail(Some(Duration::from_secs(asked)));
            assert!(wait >= Duration::from_secs(asked) && wait <= Duration::from_secs(asked * 11 / 10 + 1));
        }
        assert!(backoff.fail(Some(Duration::MAX)) <= LONGEST_ASKED * 11 / 10);
    }

    #[test]
    fn who_asks_for_little_is_left_alone_for_longer_and_longer_all_the_same() {
        for asked in [Duration::ZERO, Duration::from_millis(50)] {
            let mut backoff = Backoff::default();
            let waits: Vec<Duration> = (0..40).map(|_| backoff.fail(Some(asked))).collect();
            assert!(waits[0] >= FIRST / 2, "{waits:?}");
            assert!(
                waits[30..]
                    .iter()
                    .all(|wait| *wait >= LONGEST / 2 && *wait <= LONGEST * 3 / 2)
            );
        }
    }
}
