//! Folded stacks, read back by the rules of flamegraph.pl.

use std::{collections::BTreeMap, sync::Arc};

use profiler_agent::{
    export::{
        folded::{self, Folded},
        merged::Merged,
    },
    profile::{
        Profile, Sample,
        tables::{Tables, Translation},
    },
};
use proptest::prelude::*;

use crate::support::{golden, profiles};

/// The lines of a profile, as a reader splits them.
pub(crate) fn lines(profile: &Profile) -> BTreeMap<Vec<String>, u64> {
    let mut out = Vec::new();
    folded::write(profile, &folded::Options::default(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        // A reader takes a second number for a difference.
        if let Some((_, last)) = stack.rsplit_once(' ') {
            assert!(!last.bytes().all(|b| b.is_ascii_digit() || b == b'.'), "{line:?}");
        }
        assert_eq!(stack.trim(), stack);
        let frames = stack.split(';').map(str::to_owned).collect();
        let twice = lines.insert(frames, count.parse().unwrap());
        assert_eq!(twice, None, "{line:?} is there twice");
    }
    lines
}

#[test]
fn server() {
    let mut out = Vec::new();
    folded::write(&profiles::server(), &folded::Options::default(), &mut out).unwrap();
    golden::check("server.folded", &out);
}

proptest! {
    #[test]
    fn holds_every_sample(profile in profiles::arbitrary()) {
        let lines = lines(&profile);
        prop_assert_eq!(lines.values().sum::<u64>(), profile.sample_count());
        let deepest = profile.samples.iter().map(|s| profile.frames(s.stack).count()).max();
        prop_assert_eq!(lines.keys().map(|frames| frames.len() - 1).max(), deepest);
    }

    /// The order of rows is no part of what a profile says.
    #[test]
    fn order_of_samples_does_not_matter(profile in profiles::arbitrary()) {
        let mut reversed = profile.clone();
        reversed.samples.reverse();
        prop_assert_eq!(lines(&profile), lines(&reversed));
    }

    /// Cut into spans of which each has tables of its own, and read as one, it is the same; and no frame that is left out takes samples along.
    #[test]
    fn spans_are_read_as_one(profile in profiles::arbitrary(), spans in 1..5_usize, most in 0..20_usize) {
        let options = folded::Options::default();
        let parts: Vec<Arc<Folded>> = (0..spans)
            .map(|span| Arc::new(Folded::new(&every(&profile, spans, span), &options)))
            .collect();
        let merged = Merged::new(&parts);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        folded::write(&profile, &options, &mut one).unwrap();
        merged.write(&mut other).unwrap();
        prop_assert_eq!(String::from_utf8(one).unwrap(), String::from_utf8(other).unwrap());
        for from_leaves in [false, true] {
            let frames = merged.widest(from_leaves, most, 10_000);
            let own: u64 = frames.iter().map(|frame| frame.own[0]).sum();
            prop_assert_eq!(own, profile.sample_count());
            let first = frames.iter().filter(|frame| frame.caller.is_none()).count();
            prop_assert!(frames.len() <= most.max(first) + first);
        }
        // Of two sides each keeps its own.
        let (before, after) = parts.split_at(spans / 2);
        let totals = [before, after].map(|side| side.iter().map(|part| part.total()).sum::<u64>());
        let frames = Merged::compared(before, after).widest(false, most, 10_000);
        for (side, total) in totals.into_iter().enumerate() {
            prop_assert_eq!(frames.iter().map(|frame| frame.own[side]).sum::<u64>(), total);
        }
    }
}

/// A part of a profile's samples, one of so many, with those rows alone that it needs.
fn every(profile: &Profile, many: usize, from: usize) -> Profile {
    let mut to = Tables::new(profile.capture.clone());
    let mut translation = Translation::new(profile);
    let samples = profile.samples.iter().skip(from).step_by(many);
    let samples = samples
        .map(|sample| Sample {
            process: translation.process(&mut to, sample.process),
            thread_name: translation.string(&mut to, sample.thread_name),
            stack: translation.stack(&mut to, sample.stack),
            ..sample.clone()
        })
        .collect();
    Profile {
        samples,
        ..to.finish()
    }
}
