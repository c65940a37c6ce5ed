//! Where every sample is: waiting, on the disk, exported, or dropped for a reason. To the sample, at every moment.
//!
//! ```text
//! inherited + captured = exported + spooled + waiting + dropped(reason)
//! ```
//! Inherited is what an earlier run has left on the disk; the counts stand in the records there. Waiting is what is in memory and not yet
//! anywhere else. Samples move from one place to another and never change in number, so the equation holds by construction; a move of more
//! than there is would be a bug, and is counted as one.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{profile::Profile, telemetry::Loss};

/// Where samples can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Waiting,
    /// On the disk.
    Spooled,
    /// With the receiver.
    Exported,
    /// Nowhere any more.
    Dropped(Loss),
}

/// The samples in each place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// On the disk when this run began.
    pub inherited: u64,
    /// Captured by this run, those that were lost at once too.
    pub captured: u64,
    /// In memory.
    pub waiting: u64,
    /// On the disk.
    pub spooled: u64,
    /// With the receiver.
    pub exported: u64,
    /// Dropped, by reason.
    pub dropped: BTreeMap<Loss, u64>,
    /// Samples that were to be moved from where they were not: 0, or there is a bug.
    pub unaccounted: u64,
}

impl Counts {
    /// All that were dropped.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Those dropped on their way to the receiver; the others were lost before there was a profile.
    pub fn dropped_in_delivery(&self) -> u64 {
        let dropped = self.dropped.iter();
        dropped
            .filter(|(reason, _)| reason.on_the_way().is_some())
            .map(|(_, count)| count)
            .sum()
    }

    /// Why samples were dropped on their way, and what helps, each reason with its name: `queue_full: the receiver …`.
    pub fn why_dropped(&self) -> Vec<String> {
        let dropped = self.dropped.iter().filter(|(_, count)| **count > 0);
        dropped
            .filter_map(|(reason, _)| Some(format!("{}: {}", reason.name(), reason.on_the_way()?)))
            .collect()
    }

    /// Whether every sample is somewhere.
    pub fn is_balanced(&self) -> bool {
        let all = self.inherited + self.captured;
        self.unaccounted == 0 && all == self.waiting + self.spooled + self.exported + self.dropped_total()
    }

    fn place(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Waiting => &mut self.waiting,
            Place::Spooled => &mut self.spooled,
            Place::Exported => &mut self.exported,
            Place::Dropped(reason) => self.dropped.entry(reason).or_default(),
        }
    }
}

/// In one line: `1,234 captured = 1,000 exported + 234 spooled + 0 waiting + 0 dropped`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            inherited,
            captured,
            waiting,
            spooled,
            exported,
            dropped,
            unaccounted,
        } = self;
        if *inherited > 0 {
            write!(f, "{inherited} from before + ")?;
        }
        write!(
            f,
            "{captured} captured = {exported} exported + {spooled} spooled + {waiting} waiting + {} dropped",
            self.dropped_total()
        )?;
        if !dropped.is_empty() {
            let reasons = dropped
                .iter()
                .map(|(reason, count)| format!("{count} {}", reason.name().replace('_', " ")));
            write!(f, " ({})", reasons.collect::<Vec<_>>().join(", "))?;
        }
        if *unaccounted > 0 {
            write!(f, "; {unaccounted} are not accounted for, which is a bug")?;
        }
        Ok(())
    }
}

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Counts>);

impl Ledger {
    /// As it stands.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// What an earlier run has left on the disk.
    pub fn inherit(&self, samples: u64) {
        let mut counts = self.lock();
        counts.inherited += samples;
        counts.spooled += samples;
    }

    /// A slice was finished: its samples wait, what it says was lost is dropped.
    pub fn capture(&self, slice: &Profile) {
        let mut counts = self.lock();
        let samples = slice.sample_count();
        counts.captured += samples + slice.capture.lost_total();
        counts.waiting += samples;
        for (&reason, &count) in &slice.capture.lost {
            *counts.place(Place::Dropped(reason)) += count;
        }
    }

    /// Samples go from one place to another.
    pub fn shift(&self, samples: u64, from: Place, to: Place) {
        if samples == 0 {
            return;
        }
        let mut counts = self.lock();
        let source = counts.place(from);
        let there = samples.min(*source);
        *source -= there;
        counts.unaccounted += samples - there;
        *counts.place(to) += there;
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
