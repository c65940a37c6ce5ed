//! Folded stacks, read back by the rules of flamegraph.pl.

use std::collections::BTreeMap;

use profiler_agent::{export::folded, profile::Profile};
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
}
