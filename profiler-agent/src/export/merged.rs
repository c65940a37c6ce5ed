//! Folded stacks of many spans of time read as those of one: nothing is added up but what is looked at.
//!
//! ```text
//! span 1   a;b 3   a;b;c 2 │ d 1          a ─┬─ 5 + 4 = 9, of two groups of neighbours
//! span 2   a;c 4           │ d;e 2        d ─┴─ 1 + 2 = 3
//! ```
//! Lines that begin alike are neighbours in each span, and the sums before them say how many events they have together. So a frame costs a
//! search for where its neighbours end, however many they are: of 100,000 stacks a picture needs some thousands of frames.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use super::folded::{Folded, LabelKind, Order};

/// Spans on one side of a comparison, or all there are.
type Spans = [Arc<Folded>];

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Merged<'a> {
    /// With the side it is of, and the places of its labels among all.
    parts: Vec<(usize, &'a Folded, Vec<u32>)>,
    labels: Vec<(&'a str, LabelKind)>,
}

/// A frame with what it is called from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its caller among the frames; of a first frame, none.
    pub caller: Option<usize>,
    /// What [`Merged::label`] knows its label by.
    pub label: u32,
    /// Events in it and in what it calls that is no frame of its own, of each side.
    pub own: [u64; 2],
}

/// Neighbours that begin alike, of every part that has some.
type Groups = Vec<(usize, Range<usize>)>;

/// What is called from one frame.
struct Callee {
    label: u32,
    events: [u64; 2],
    groups: Groups,
}

/// One that waits for its turn, the widest first; of those as wide as each other, the one that was found first.
struct Waiting {
    turn: (u64, Reverse<usize>),
    caller: Option<usize>,
    depth: usize,
    callee: Callee,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn.cmp(&other.turn)
    }
}

impl<'a> Merged<'a> {
    /// All spans as one.
    pub fn new(spans: &'a Spans) -> Self {
        Self::compared(spans, &[])
    }

    /// All spans of two sides, each of which keeps its own numbers.
    pub fn compared(one: &'a Spans, other: &'a Spans) -> Self {
        let sides = [one, other].into_iter().enumerate();
        let parts = sides.flat_map(|(side, spans)| spans.iter().map(move |span| (side, &**span)));
        let parts: Vec<(usize, &Folded)> = parts.collect();
        let mut ranks: Vec<Vec<u32>> = parts
            .iter()
            .map(|(_, part)| vec![0; part.labels().len()])
            .collect();
        let all = parts.iter().enumerate();
        let all = all.flat_map(|(part, (_, folded))| {
            let labels = folded.labels().enumerate();
            labels.map(move |(place, (label, kind))| (label, kind, part, place))
        });
        let mut all: Vec<_> = all.collect();
        // Stable, for it makes use of what is sorted already: the labels of each part.
        all.sort();
        let mut labels: Vec<(&str, LabelKind)> = Vec::new();
        for (label, kind, part, place) in all {
            match labels.last_mut() {
                // As in one profile: the last kind says more.
                Some((last, kept)) if *last == label => *kept = kind,
                _ => labels.push((label, kind)),
            }
            if let Some(rank) = ranks.get_mut(part).and_then(|ranks| ranks.get_mut(place)) {
                *rank = u32::try_from(labels.len() - 1).unwrap_or(u32::MAX);
            }
        }
        let parts = parts
            .into_iter()
            .zip(ranks)
            .map(|((side, part), ranks)| (side, part, ranks))
            .collect();
        Self { parts, labels }
    }

    /// The label of a [`Frame`], with what it stands for.
    pub fn label(&self, place: u32) -> (&'a str, LabelKind) {
        let label = self.labels.get(place as usize).copied();
        label.unwrap_or(("", LabelKind::Native))
    }

    /// Events of each side.
    pub fn totals(&self) -> [u64; 2] {
        self.events(&self.all(), Order::FromRoots)
    }

    /// Writes the lines as if they were of one span. Writes in small pieces: give it a buffered writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut path: Vec<u32> = Vec::new();
        let mut waiting = vec![(0, None, self.all())];
        while let Some((depth, label, groups)) = waiting.pop() {
            path.truncate(usize::saturating_sub(depth, 1));
            path.extend(label);
            if let [(part, lines)] = groups.as_slice()
                && lines.len() == 1
            {
                // Nothing is like it: the rest of its line.
                let rest =
                    (depth..).map_while(|depth| self.frame(*part, lines.start, depth, Order::FromRoots));
                path.extend(rest);
                self.write_line(&path, self.events(&groups, Order::FromRoots), out)?;
                continue;
            }
            let (own, callees) = self.callees(groups, depth, Order::FromRoots);
            if own != [0, 0] {
                self.write_line(&path, own, out)?;
            }
            let callees = callees.into_iter().rev();
            waiting.extend(callees.map(|callee| (depth + 1, Some(callee.label), callee.groups)));
        }
        Ok(())
    }

    fn write_line(&self, path: &[u32], [one, other]: [u64; 2], out: &mut impl Write) -> io::Result<()> {
        for (place, &label) in path.iter().enumerate() {
            if place > 0 {
                out.write_all(b";")?;
            }
            out.write_all(self.label(label).0.as_bytes())?;
        }
        writeln!(out, " {}", one.saturating_add(other))
    }

    /// The widest frames, callers before what they call: no more than `most`, and none that is not wider than the part `1 / narrowest` of the
    /// whole. A side counts as much as the other one, whatever its events. What is left out is counted for its caller, so that widths stay
    /// what they are; first frames have none and are all there. From the leaves on, if that is wanted.
    pub fn widest(&self, from_leaves: bool, most: usize, narrowest: u64) -> Vec<Frame> {
        let order = if from_leaves {
            Order::FromLeaves
        } else {
            Order::FromRoots
        };
        let totals = self.totals();
        // In millionths of the narrowest that can be seen.
        let width = |events: [u64; 2]| -> u64 {
            let of = |events: u64, total: u64| {
                let unit = u128::from(events) * u128::from(narrowest) * 1_000_000;
                unit.checked_div(u128::from(total)).unwrap_or_default()
            };
            let [one, other] = [of(events[0], totals[0]), of(events[1], totals[1])];
            u64::try_from(one + other).unwrap_or(u64::MAX)
        };
        let mut frames: Vec<Frame> = Vec::new();
        let mut found = 0;
        let mut waiting = BinaryHeap::new();
        let mut wait = |waiting: &mut BinaryHeap<Waiting>, caller, depth, callees: Vec<Callee>| {
            for callee in callees {
                found += 1;
                waiting.push(Waiting {
                    turn: (width(callee.events), Reverse(found)),
                    caller,
                    depth,
                    callee,
                });
            }
        };
        // No line is empty, so that nothing is the root's own.
        let (_, callees) = self.callees(self.all(), 0, order);
        wait(&mut waiting, None, 1, callees);
        while let Some(Waiting {
            turn: (width, _),
            caller,
            depth,
            callee,
        }) = waiting.pop()
        {
            let is_drawn = width > 1_000_000 && frames.len() < most;
            if let (false, Some(caller)) = (is_drawn, caller.and_then(|caller| frames.get_mut(caller))) {
                caller.own = added(caller.own, callee.events);
                continue;
            }
            let place = frames.len();
            let (own, callees) = self.callees(callee.groups, depth, order);
            frames.push(Frame {
                caller,
                label: callee.label,
                own,
            });
            wait(&mut waiting, Some(place), depth + 1, callees);
        }
        frames
    }

    fn all(&self) -> Groups {
        let parts = self.parts.iter().enumerate();
        parts
            .map(|(place, (_, part, _))| (place, 0..part.len()))
            .collect()
    }

    /// The frame of a line, as a place among all labels.
    fn frame(&self, part: usize, line: usize, depth: usize, order: Order) -> Option<u32> {
        let (_, folded, ranks) = self.parts.get(part)?;
        let frame = folded.frame(line, depth, order)?;
        ranks.get(frame as usize).copied()
    }

    fn events(&self, groups: &[(usize, Range<usize>)], order: Order) -> [u64; 2] {
        groups.iter().fold([0; 2], |events, (part, lines)| {
            let Some((side, folded, _)) = self.parts.get(*part) else {
                return events;
            };
            let count = folded.count(lines, order);
            added(events, if *side == 0 { [count, 0] } else { [0, count] })
        })
    }

    /// Of lines that are alike up to a depth: the events of those that end there, and those that go on, by the frame they go on with.
    fn callees(&self, mut groups: Groups, depth: usize, order: Order) -> ([u64; 2], Vec<Callee>) {
        let mut own = [0; 2];
        for (part, lines) in &mut groups {
            // What ends here stands before what goes on, and no two lines are alike.
            if lines.start < lines.end && self.frame(*part, lines.start, depth, order).is_none() {
                let line = lines.start..lines.start + 1;
                own = added(own, self.events(&[(*part, line)], order));
                lines.start += 1;
            }
        }
        let mut callees = Vec::new();
        loop {
            groups.retain(|(_, lines)| lines.start < lines.end);
            let next = groups
                .iter()
                .filter_map(|(part, lines)| self.frame(*part, lines.start, depth, order))
                .min();
            let Some(label) = next else {
                return (own, callees);
            };
            let mut same = Vec::new();
            for (part, lines) in &mut groups {
                let end = self.end(*part, lines, depth, label, order);
                if end > lines.start {
                    same.push((*part, lines.start..end));
                    lines.start = end;
                }
            }
            callees.push(Callee {
                label,
                events: self.events(&same, order),
                groups: same,
            });
        }
    }

    /// Where the lines end whose frame at a depth is this one, if there are some at the start of these: looked for in steps that double, since
    /// most are few.
    fn end(&self, part: usize, lines: &Range<usize>, depth: usize, label: u32, order: Order) -> usize {
        let is_same = |line: usize| self.frame(part, line, depth, order) == Some(label);
        let (mut same, mut step) = (lines.start, 1);
        if !is_same(same) {
            return same;
        }
        while same + step < lines.end && is_same(same + step) {
            same += step;
            step *= 2;
        }
        // The last one that is known to be the same, and the first that is known not to be.
        let mut other = lines.end.min(same + step);
        while other - same > 1 {
            let middle = same + (other - same) / 2;
            if is_same(middle) {
                same = middle;
            } else {
                other = middle;
            }
        }
        other
    }
}

const fn added([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 2] {
    [a.saturating_add(c), b.saturating_add(d)]
}
