//! A capture without an end, cut into slices: each a finished profile, handed out while sampling goes on.
//!
//! ```text
//! time ──────┬────────────────┬──────────────▶
//!   slice 1  │    slice 2     │   slice 3
//!            └▶ names ─▶ out  └▶ names ─▶ out
//! ```
//! A closed slice waits for its names until it has them, for [`NAMES_PATIENCE`], or until the next one is closed. Samples that wait for an
//! unwind table are in the slice that is open when they are done, whose span begins with them then.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use profiler_common::{Outcome, record::Counter};

use super::{CaptureError, Run};
use crate::{
    profile::{Capture, Profile, Unwinding},
    telemetry::Loss,
};

/// How long a closed slice waits for names while sampling goes on.
const NAMES_PATIENCE: Duration = Duration::from_secs(5);
/// Shortest time between two slices.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Where the cutting stands.
#[derive(Debug)]
pub(super) struct Slices {
    /// Time between two cuts; `None` makes one slice of the whole capture.
    interval: Option<Duration>,
    next: Instant,
    /// `CLOCK_MONOTONIC` of the last cut.
    start: u64,
    closed: Option<Closed>,
    /// What was lost up to the last cut.
    lost: BTreeMap<Loss, u64>,
    totals: Totals,
    /// Without time, lost and duration: the same for all slices.
    capture: Capture,
}

/// A slice that waits for its names.
#[derive(Debug)]
struct Closed {
    capture: Capture,
    until: Instant,
}

/// What all slices of a capture hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Samples.
    pub samples: u64,
    /// Samples by how the walks of their stacks ended, complete ones too.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Samples with user frames by how those were found.
    pub unwound: BTreeMap<Unwinding, u64>,
}

impl Totals {
    fn add(&mut self, profile: &Profile) {
        let Self {
            samples,
            outcomes,
            unwound,
        } = self;
        for sample in &profile.samples {
            *samples += sample.count;
            if let Some(stack) = profile.stacks.get(sample.stack.index()) {
                *outcomes.entry(stack.outcome).or_default() += sample.count;
            }
            if let Some(unwinding) = profile.unwinding(sample.stack) {
                *unwound.entry(unwinding).or_default() += sample.count;
            }
        }
    }
}

impl Slices {
    pub(super) fn new(interval: Option<Duration>, capture: Capture) -> Self {
        let interval = interval.map(|interval| interval.max(MIN_INTERVAL));
        Self {
            interval,
            next: Instant::now() + interval.unwrap_or_default(),
            start: 0,
            closed: None,
            lost: BTreeMap::new(),
            totals: Totals::default(),
            capture,
        }
    }

    /// Sampling begins at this time of `CLOCK_MONOTONIC`.
    pub(super) fn begin(&mut self, start: u64) {
        self.start = start;
        self.next = Instant::now() + self.interval.unwrap_or_default();
    }

    /// The whole capture, with what was lost of it.
    pub(super) fn whole(&self, start: u64, duration: u64) -> Capture {
        Capture {
            start,
            duration,
            lost: self.lost.clone(),
            ..self.capture.clone()
        }
    }

    /// Time between two cuts.
    pub(super) const fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// When the open slice is to be closed, if ever before the end.
    pub(super) fn next_cut(&self) -> Option<Instant> {
        self.interval.map(|_| self.next)
    }

    /// Whether a closed slice is held back until its names are there.
    pub(super) const fn wait_for_names(&self) -> bool {
        self.closed.is_some()
    }

    pub(super) const fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn take_totals(&mut self) -> Totals {
        std::mem::take(&mut self.totals)
    }
}

impl Run {
    /// Cuts if it is time to, and hands out the slice that has its names. What was sampled up to `drained` has been taken in.
    pub(super) fn cut_slices(
        &mut self,
        drained: u64,
        hand_out: &mut impl FnMut(Profile),
    ) -> Result<(), CaptureError> {
        let Some(interval) = self.slices.interval else {
            return Ok(());
        };
        let now = Instant::now();
        if now >= self.slices.next {
            // After a time of being stopped, one long slice and no row of empty ones.
            let next = self.slices.next + interval;
            self.slices.next = if next > now { next } else { now + interval };
            self.hand_out_closed(hand_out);
            self.close_slice(drained)?;
            self.request_names();
        }
        let is_due = |closed: &Closed| self.aggregator.is_named() || now >= closed.until;
        if self.slices.closed.as_ref().is_some_and(is_due) {
            self.hand_out_closed(hand_out);
        }
        Ok(())
    }

    /// Hands out the closed slice, if there is one, with the names that it has.
    pub(super) fn hand_out_closed(&mut self, hand_out: &mut impl FnMut(Profile)) {
        if let Some(profile) = self.take_closed() {
            hand_out(profile);
        }
    }

    /// The slice from the last cut up to a time of `CLOCK_MONOTONIC`, without waiting.
    pub(super) fn last_slice(&mut self, end: u64) -> Result<Profile, CaptureError> {
        self.close_slice(end)?;
        let capture = self.slices.capture.clone();
        Ok(self
            .take_closed()
            .unwrap_or_else(|| self.aggregator.take(capture, &self.clock)))
    }

    fn close_slice(&mut self, end: u64) -> Result<(), CaptureError> {
        let lost = BTreeMap::from([
            (Loss::RingFull, self.sampler.counter(Counter::RingFull)?),
            (Loss::TornRecord, self.torn),
        ]);
        let slices = &mut self.slices;
        let news = lost
            .iter()
            .map(|(&reason, &count)| {
                let before = slices.lost.get(&reason).copied().unwrap_or_default();
                (reason, count.saturating_sub(before))
            })
            .filter(|&(_, count)| count > 0)
            .collect();
        slices.lost = lost.into_iter().filter(|&(_, count)| count > 0).collect();
        let capture = Capture {
            start: self.clock.wall(slices.start),
            duration: end.saturating_sub(slices.start),
            lost: news,
            ..slices.capture.clone()
        };
        slices.start = end.max(slices.start);
        slices.closed = Some(Closed {
            capture,
            until: Instant::now() + NAMES_PATIENCE,
        });
        self.aggregator.close();
        self.clock.follow();
        self.aggregator.follow(self.clock);
        Ok(())
    }

    fn take_closed(&mut self) -> Option<Profile> {
        let Closed { capture, until: _ } = self.slices.closed.take()?;
        let profile = self.aggregator.take(capture, &self.clock);
        self.slices.totals.add(&profile);
        Some(profile)
    }
}
