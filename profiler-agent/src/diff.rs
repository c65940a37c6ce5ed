//! What is different between two profiles, in shares of each, and whether it is more than chance.
//!
//! A sample hits a function or not, so that the share of one that has not changed differs between two profiles by chance alone, with a
//! standard deviation of √(p (1 − p) (1/a + 1/b)) for a share p of both and a and b samples. A difference of no more than three of these
//! is told to be chance: of 370 functions that have not changed, one goes beyond.

use std::{collections::BTreeSet, fmt};

use crate::{
    export::text::{Thousands, fit},
    profile::Profile,
    render::{Amount, subtitle, title},
    report::Percent,
    tally::{Share, Tally},
};

/// The differences of two profiles as text. Names are cleaned for a terminal.
#[derive(Debug)]
pub struct Difference<'a> {
    /// The one before.
    pub before: &'a Profile,
    /// The one after.
    pub after: &'a Profile,
    /// Most rows of a table.
    pub rows: usize,
    /// Columns of the terminal.
    pub columns: usize,
}

/// How a share has changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Of the profile before, 0 to 1.
    pub before: f64,
    /// Of the one after.
    pub after: f64,
    /// Three standard deviations of what chance does to the difference; `None` where the numbers are no samples.
    pub noise: Option<f64>,
}

impl Change {
    /// Of a function with so many of so many samples before and after.
    pub fn of(before: (u64, u64), after: (u64, u64), is_sampled: bool) -> Self {
        let share = |(part, whole): (u64, u64)| part as f64 / whole.max(1) as f64;
        let whole = before.1 as f64 + after.1 as f64;
        let both = (before.0 as f64 + after.0 as f64) / whole.max(1.0);
        let variance = both * (1.0 - both) * (1.0 / before.1.max(1) as f64 + 1.0 / after.1.max(1) as f64);
        Self {
            before: share(before),
            after: share(after),
            noise: is_sampled.then(|| 3.0 * variance.max(0.0).sqrt()),
        }
    }

    /// After less before.
    pub fn difference(&self) -> f64 {
        self.after - self.before
    }

    /// Whether chance is enough to explain it.
    pub fn is_chance(&self) -> bool {
        self.noise.is_some_and(|noise| self.difference().abs() <= noise)
    }
}

/// What a table tells of a share; `None` leaves it out.
type Part = fn(&Share) -> Option<u64>;

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            before,
            after,
            rows: _,
            columns,
        } = *self;
        for (name, profile) in [("before", before), ("after", after)] {
            let samples = Thousands(profile.sample_count());
            let counted = profile.kind().counted();
            let line = format!("{name:<7} {samples} {counted} of {}", title(&profile.capture));
            writeln!(f, "{}", fit(&line, columns))?;
            let line = format!("        {}", subtitle(&profile.capture, Amount::of(profile)));
            writeln!(f, "{}", fit(&line, columns))?;
        }
        let is_sampled = before.kind().is_sampled() && after.kind().is_sampled();
        let tallies = (Tally::new(before), Tally::new(after));
        if !is_sampled {
            writeln!(
                f,
                "These are no samples, so that nothing is known of what chance does to them."
            )?;
        }
        let tables: [(&str, Part); 2] = [
            ("by themselves", |share| Some(share.own)),
            ("with callees, without wrappers", |share| {
                (!share.passes_on()).then_some(share.total)
            }),
        ];
        for (words, part) in tables {
            table(f, self, &tallies, is_sampled, words, part)?;
        }
        Ok(())
    }
}

/// The functions whose share has changed most.
fn table(
    f: &mut fmt::Formatter<'_>,
    difference: &Difference<'_>,
    (before, after): &(Tally, Tally),
    is_sampled: bool,
    words: &str,
    part: Part,
) -> fmt::Result {
    let names: BTreeSet<&String> = before.functions.keys().chain(after.functions.keys()).collect();
    let share = |tally: &Tally, name: &String| tally.functions.get(name).copied();
    let of = |tally: &Tally, name: &String| {
        // One that is no wrapper in the other profile counts with all it has.
        let share = share(tally, name).map(|share| part(&share).unwrap_or(share.total));
        (share.unwrap_or(0), tally.total)
    };
    let is_told = |tally, name| share(tally, name).is_some_and(|share| part(&share).is_some());
    let mut changes: Vec<(&String, Change)> = names
        .into_iter()
        .filter(|name| is_told(before, name) || is_told(after, name))
        .map(|name| {
            let change = Change::of(of(before, name), of(after, name), is_sampled);
            (name, change)
        })
        .filter(|(_, change)| change.difference() != 0.0)
        .collect();
    let beyond = changes.iter().filter(|(_, change)| !change.is_chance()).count();
    // What is certain comes first.
    changes.sort_by(|(a, one), (b, other)| {
        let key = |change: &Change| (!change.is_chance(), change.difference().abs());
        let ((certain, size), (other_certain, other_size)) = (key(one), key(other));
        other_certain
            .cmp(&certain)
            .then(other_size.total_cmp(&size))
            .then(a.cmp(b))
    });
    writeln!(f, "\n before    after   change  3 sigma  functions {words}")?;
    for (name, change) in changes.iter().take(difference.rows) {
        let points = |share: f64| format!("{:+.1}", share * 100.0);
        let noise = change
            .noise
            .map_or("-".to_owned(), |noise| format!("{:.1}", noise * 100.0));
        let mark = if change.is_chance() { "  (chance) " } else { "  " };
        let room = difference.columns.saturating_sub(34 + mark.len()).max(1);
        writeln!(
            f,
            "{:>7}  {:>7}  {:>6}  {noise:>7}{mark}{}",
            Percent(of(before, name).0, before.total),
            Percent(of(after, name).0, after.total),
            points(change.difference()),
            fit(name, room)
        )?;
    }
    let all = u64::try_from(changes.len()).unwrap_or(u64::MAX);
    match (is_sampled, beyond) {
        (false, _) => Ok(()),
        (true, 0) => writeln!(f, "  none of {} differences is more than chance", Thousands(all)),
        (true, beyond) => {
            let beyond = u64::try_from(beyond).unwrap_or(u64::MAX);
            writeln!(
                f,
                "  {} of {} differences are more than chance",
                Thousands(beyond),
                Thousands(all)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_told_from_change() {
        // 10 % of 1,000 against 12 %: the deviation is 1.4 points.
        let change = Change::of((100, 1000), (120, 1000), true);
        assert!(
            (change.noise.unwrap() - 3.0 * 0.013_993).abs() < 1e-5,
            "{change:?}"
        );
        assert!(change.is_chance());
        assert!(!Change::of((100, 1000), (200, 1000), true).is_chance());
        assert!(
            !Change::of((100, 1000), (101, 1000), false).is_chance(),
            "nothing is known"
        );
        assert_eq!(Change::of((0, 0), (0, 0), true).difference(), 0.0);
    }
}
