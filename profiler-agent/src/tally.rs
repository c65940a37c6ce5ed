//! Who has how much of a profile: functions by what they do themselves and by what they have done, and the path that most of it takes.
//!
//! A function that is inlined here and called there is one function.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    export::folded::{Folded, LabelKind, Options},
    profile::Profile,
};

/// What a function has of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Samples in it.
    pub own: u64,
    /// Samples in it and in what it called; one that called itself counts once.
    pub total: u64,
    /// Most that it has called one single function for.
    pub callee: u64,
}

impl Share {
    /// Whether it has nearly all of its samples from one function that it calls: the frames of a runtime and of wrappers, whose
    /// names say nothing.
    pub fn passes_on(&self) -> bool {
        u128::from(self.callee) * 20 >= u128::from(self.total) * 19
    }
}

/// A frame of the hottest path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Samples of the path up to it.
    pub count: u64,
}

/// A profile, added up. Names are those of [folded stacks](crate::export::folded), with their marks but that of inlined ones.
#[derive(Debug)]
pub struct Tally {
    folded: Folded,
    /// Samples of the profile.
    pub total: u64,
    /// Functions; processes are none.
    pub functions: BTreeMap<String, Share>,
    /// Samples by what ran.
    pub kinds: BTreeMap<LabelKind, u64>,
}

fn plain_name(label: &str) -> &str {
    label.strip_suffix("_[i]").unwrap_or(label)
}

/// For each label the place of the first that is of the same function.
fn functions(folded: &Folded) -> Vec<u32> {
    let mut first = BTreeMap::new();
    (0..)
        .zip(folded.labels())
        // A process may be called as a function of it.
        .map(|(place, (label, kind))| {
            if kind == LabelKind::Process {
                place
            } else {
                *first.entry(plain_name(label)).or_insert(place)
            }
        })
        .collect()
}

impl Tally {
    /// Adds a profile up.
    pub fn new(profile: &Profile) -> Self {
        let folded = Folded::new(profile, &Options::of(profile));
        let names = functions(&folded);
        let function = |place: u32| names.get(place as usize).copied().unwrap_or(place);
        let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
        let mut kinds: BTreeMap<LabelKind, u64> = BTreeMap::new();
        let mut total = 0_u64;
        let (mut seen, mut calls) = (Vec::new(), Vec::new());
        let mut called: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for (frames, count) in folded.lines() {
            total = total.saturating_add(count);
            seen.clear();
            seen.extend(frames.iter().map(|&frame| function(frame)));
            seen.sort_unstable();
            seen.dedup();
            for &frame in &seen {
                let share = shares.entry(frame).or_default();
                share.total = share.total.saturating_add(count);
            }
            calls.clear();
            calls.extend(
                frames
                    .array_windows::<2>()
                    .map(|&[caller, callee]| (caller, callee)),
            );
            calls.sort_unstable();
            calls.dedup();
            for &(caller, callee) in calls.iter().filter(|(caller, callee)| caller != callee) {
                let samples = called.entry((caller, callee)).or_default();
                *samples = samples.saturating_add(count);
            }
            if let Some(&leaf) = frames.last() {
                let share = shares.entry(function(leaf)).or_default();
                share.own = share.own.saturating_add(count);
                let (_, kind) = folded.label(leaf);
                let samples = kinds.entry(kind).or_default();
                *samples = samples.saturating_add(count);
            }
        }
        for ((caller, _), count) in called {
            let share = shares.entry(caller).or_default();
            share.callee = share.callee.max(count);
        }
        let functions = shares
            .into_iter()
            .map(|(place, share)| (folded.label(place), share))
            .filter(|((_, kind), _)| *kind != LabelKind::Process)
            .map(|((name, _), share)| (plain_name(name).to_owned(), share))
            .collect();
        Self {
            folded,
            total,
            functions,
            kinds,
        }
    }

    /// The way from the root on which at each frame most samples go on, until more end than go on anywhere.
    pub fn hottest_path(&self) -> Vec<Step> {
        let lines: Vec<(&[u32], u64)> = self.folded.lines().collect();
        let mut path = Vec::new();
        // Lines are sorted, so those that begin alike are neighbours.
        let mut range = 0..lines.len();
        loop {
            let depth = path.len();
            let (mut ends, mut children) = (0_u64, Vec::<(u32, Range<usize>, u64)>::new());
            for (place, (frames, count)) in lines.iter().enumerate().take(range.end).skip(range.start) {
                match (frames.get(depth), children.last_mut()) {
                    (None, _) => ends = ends.saturating_add(*count),
                    (Some(frame), Some((last, places, sum))) if last == frame => {
                        places.end = place + 1;
                        *sum = sum.saturating_add(*count);
                    }
                    (Some(&frame), _) => children.push((frame, place..place + 1, *count)),
                }
            }
            let hottest = children.into_iter().max_by_key(|(_, _, count)| *count);
            let Some((frame, places, count)) = hottest.filter(|(_, _, count)| *count > ends) else {
                return path;
            };
            path.push(Step {
                name: self.folded.label(frame).0.to_owned(),
                count,
            });
            range = places;
        }
    }
}
