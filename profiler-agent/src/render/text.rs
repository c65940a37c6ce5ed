//! A flamegraph as lines of text: its root at the top, a column of the terminal the smallest width.
//!
//! ```text
//! all 1,204 samples
//! redis-server                                   │kworker/0:1
//! main                                           │…
//! aeMain                                         │
//! aeProcessEvents            │beforeSleep        │
//! ```

use std::ops::Range;

use crate::{
    export::folded::{Folded, LabelKind},
    profile::Profile,
};

/// A frame on its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// First column, and first behind it.
    pub columns: Range<usize>,
    /// Its name.
    pub name: String,
    /// What runs there.
    pub kind: LabelKind,
    /// Samples of it and what it called.
    pub count: u64,
}

/// Lines of a flamegraph below its root, callers first; of a line, frames from left to right, those with most samples first among the callees
/// of one. Frames narrower than a column are left out.
pub fn flamegraph(profile: &Profile, columns: usize, most_lines: usize) -> Vec<Vec<Frame>> {
    let folded = Folded::new(profile, &crate::export::folded::Options::of(profile));
    let lines: Vec<(&[u32], u64)> = folded.lines().collect();
    let total = lines
        .iter()
        .fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
    let mut rows: Vec<Vec<Frame>> = Vec::new();
    if total == 0 {
        return rows;
    }
    let column = |samples: u64| -> usize {
        let place = u128::from(samples) * columns as u128 / u128::from(total);
        usize::try_from(place).unwrap_or(columns)
    };
    // Lines that begin alike are neighbours: each group, how deep, and where it begins.
    let mut groups = vec![(0..lines.len(), 0_usize, 0_u64)];
    while let Some((range, depth, begin)) = groups.pop() {
        if depth >= most_lines {
            continue;
        }
        let mut children: Vec<(u32, Range<usize>, u64)> = Vec::new();
        for (place, (frames, count)) in lines.iter().enumerate().take(range.end).skip(range.start) {
            let Some(&frame) = frames.get(depth) else { continue };
            match children.last_mut() {
                Some((last, range, sum)) if *last == frame => {
                    range.end = place + 1;
                    *sum = sum.saturating_add(*count);
                }
                _ => children.push((frame, place..place + 1, *count)),
            }
        }
        children.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        let mut begin = begin;
        for (frame, range, count) in children {
            let columns = column(begin)..column(begin + count);
            if !columns.is_empty() {
                let (name, kind) = folded.label(frame);
                if rows.len() <= depth {
                    rows.push(Vec::new());
                }
                if let Some(row) = rows.get_mut(depth) {
                    row.push(Frame {
                        columns,
                        name: name.to_owned(),
                        kind,
                        count,
                    });
                }
                groups.push((range, depth + 1, begin));
            }
            begin += count;
        }
    }
    for row in &mut rows {
        row.sort_by_key(|frame| frame.columns.start);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn drawn(folded: &str, columns: usize) -> Vec<Vec<(usize, usize, String)>> {
        let profile = read::bytes(folded.as_bytes(), &read::Options::default()).unwrap();
        let rows = flamegraph(&profile, columns, 100);
        let frame = |frame: Frame| (frame.columns.start, frame.columns.end, frame.name);
        rows.into_iter()
            .map(|row| row.into_iter().map(frame).collect())
            .collect()
    }

    #[test]
    fn widths_are_shares_and_callees_stand_below_their_callers() {
        let rows = drawn("a;b;c 5\na;b 10\na;d;e 60\nf 25\n", 100);
        let frame = |from, to, name: &str| (from, to, name.to_owned());
        assert_eq!(rows[0], [frame(0, 75, "a"), frame(75, 100, "f")]);
        assert_eq!(rows[1], [frame(0, 60, "d"), frame(60, 75, "b")]);
        assert_eq!(rows[2], [frame(0, 60, "e"), frame(60, 65, "c")]);
        assert_eq!(rows.len(), 3);
        // What is too narrow is left out, and what it calls too.
        assert_eq!(drawn("a;b 99\nc;d 1\n", 10).len(), 2);
        assert!(drawn("a;b 1\n", 0).is_empty());
    }
}
