//! Folded stacks: one line per distinct stack, for `flamegraph.pl`, inferno, speedscope and grep.
//!
//! ```text
//! redis-server;_start;main;aeMain;processCommand;lookupKey_[i];entry_SYSCALL_64_[k];do_sys_read_[k] 42
//! └ process    └ root                                                              └ leaf          └ events
//! ```
//!
//! The conventions are those of the stackcollapse programs: the name of the process first, frames from the root
//! to the leaf, `_[k]` behind kernel frames, `_[i]` behind inlined ones, `_[j]` behind code made at run time; a
//! kernel frame that is inlined too says `_[k]`. A profile that tells no processes apart has no names of them in its lines. An incomplete stack has its marker as its first frame.
//!
//! Names come from the profiled programs and may hold anything; the format has no escapes. So
//! - `;` becomes `:`, and what is [not plain](super::text::is_plain) becomes `?`;
//! - in names of processes white space becomes `_`, as `stackcollapse-perf.pl` does;
//! - in names of functions white space at an end becomes `_`, and so does the last space before something that
//!   reads as a number (`operator 5`): readers take a second number for a difference of two profiles;
//! - a name that ends in a mark that it did not get from us loses it: `evil_[k]` becomes `evil_[k)`;
//! - an empty name becomes `[unknown]`.
//!
//! Lines are sorted by their frames' names, root first, and no two have the same stack.

use std::{
    collections::HashMap,
    io::{self, Write},
    ops::Range,
    sync::OnceLock,
};

use super::text::is_plain;
use crate::profile::{FrameKind, Kind, Location, ProcessId, Profile, StackId, StringId};

/// What goes into the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Which samples; lines of two kinds would add up what has two units.
    pub kind: Kind,
}

impl Options {
    /// All samples of a profile.
    pub fn of(profile: &Profile) -> Self {
        Self { kind: profile.kind() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { kind: Kind::Cpu }
    }
}

/// What a label stands for; decides its mark here and its colour in a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LabelKind {
    /// Name of a process.
    Process,
    /// Compiled code.
    Native,
    /// Compiled code that was inlined into the next frame.
    Inlined,
    /// Compiled code without a name: it is called by its file.
    Unnamed,
    /// The kernel.
    Kernel,
    /// Code generated at run time.
    Jit,
    /// Says that a stack is incomplete, and why.
    Marker,
}

impl LabelKind {
    pub(crate) const fn of(location: &Location, inlined: bool) -> Self {
        match (location.kind, inlined, location.is_named) {
            (FrameKind::Kernel, ..) => Self::Kernel,
            (FrameKind::Jit(_), true, _) => Self::Inlined,
            (FrameKind::Jit(_), false, _) => Self::Jit,
            (FrameKind::Marker, ..) => Self::Marker,
            (FrameKind::Native(_), _, false) => Self::Unnamed,
            (FrameKind::Native(_), true, true) => Self::Inlined,
            (FrameKind::Native(_), false, true) => Self::Native,
        }
    }

    const fn mark(self) -> &'static str {
        match self {
            Self::Process | Self::Native | Self::Unnamed | Self::Marker => "",
            Self::Inlined => "_[i]",
            Self::Kernel => "_[k]",
            Self::Jit => "_[j]",
        }
    }
}

/// The folded stacks of a profile, merged and sorted; made once, written as often as wanted.
///
/// Costs 4 bytes per frame of a distinct stack, 16 per stack and one string per distinct name.
#[derive(Debug)]
pub struct Folded {
    kind: Kind,
    /// Every label once, sorted.
    labels: Vec<(String, LabelKind)>,
    /// Indices into `labels` of all lines, each root first.
    frames: Vec<u32>,
    /// Where each line begins in `frames`, sorted by what is there; and where the last one ends.
    begins: Vec<usize>,
    /// Events of all lines before each; and of all.
    sums: Vec<u64>,
    /// Of stacks that are not whole.
    incomplete: u64,
    /// The lines in another order; made when somebody asks for it.
    from_leaves: OnceLock<FromLeaves>,
}

/// Lines sorted by their frames' names, leaf first.
#[derive(Debug)]
struct FromLeaves {
    lines: Vec<u32>,
    sums: Vec<u64>,
}

/// Which frame of a line is its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    FromRoots,
    FromLeaves,
}

impl Folded {
    /// Folds a profile. Cannot fail: a row that refers to nothing reads as an empty one.
    pub fn new(profile: &Profile, options: &Options) -> Self {
        let samples = profile.samples.iter();
        let samples = samples.filter(|sample| sample.kind == options.kind);
        let counts = samples.map(|sample| (sample.process, sample.stack, sample.count));
        Self::of(profile, options.kind, counts)
    }

    /// Folds so many events of processes and stacks of a profile, whatever samples it has itself.
    pub(crate) fn of(
        profile: &Profile,
        kind: Kind,
        counts: impl Iterator<Item = (ProcessId, StackId, u64)>,
    ) -> Self {
        let mut interner = Labels::default();
        // Names are looked at once per row of a table, never once per sample.
        let processes: Vec<Option<u32>> = profile
            .processes
            .iter()
            .map(|process| (!process.is_unknown()).then(|| interner.id(process.name, LabelKind::Process)))
            .collect();
        let nameless = interner.id(StringId(0), LabelKind::Process);
        let locations: Vec<Vec<u32>> = profile
            .locations
            .iter()
            .map(|location| {
                let outermost = location.lines.len().saturating_sub(1);
                let lines = location.lines.iter().enumerate();
                lines
                    .map(|(depth, line)| {
                        let function = profile.functions.get(line.function.index());
                        let name = function.map_or(StringId(0), |function| function.name);
                        interner.id(name, LabelKind::of(location, depth < outermost))
                    })
                    .collect()
            })
            .collect();
        let (labels, ranks) = interner.rank(profile);
        let rank = |id: u32| ranks.get(id as usize).copied().unwrap_or_default();

        let mut incomplete = 0_u64;
        let mut rows: Vec<(Option<u32>, StackId, u64)> = counts
            .map(|(process, stack, count)| {
                let process = processes.get(process.index()).copied();
                (process.unwrap_or(Some(nameless)).map(rank), stack, count)
            })
            .collect();
        rows.sort_unstable();
        rows.dedup_by(|later, kept| {
            let equal = (later.0, later.1) == (kept.0, kept.1);
            if equal {
                kept.2 = kept.2.saturating_add(later.2);
            }
            equal
        });

        let mut all: Vec<u32> = Vec::new();
        let mut lines: Vec<(Range<usize>, u64)> = Vec::with_capacity(rows.len());
        for (process, stack, count) in rows {
            let start = all.len();
            all.extend(process);
            let stack = profile.stacks.get(stack.index());
            if stack.is_some_and(|stack| !stack.outcome.is_complete()) {
                incomplete = incomplete.saturating_add(count);
            }
            for location in stack.iter().flat_map(|stack| stack.frames.iter().rev()) {
                let location = locations.get(location.index());
                all.extend(
                    location
                        .iter()
                        .flat_map(|ids| ids.iter().rev())
                        .map(|&id| rank(id)),
                );
            }
            if all.len() == start {
                // A line of nothing would be none.
                all.push(rank(nameless));
            }
            lines.push((start..all.len(), count));
        }
        let of = |range: &Range<usize>| all.get(range.clone()).unwrap_or_default();
        lines.sort_unstable_by(|(a, _), (b, _)| of(a).cmp(of(b)));
        let (mut frames, mut begins, mut sums) = (Vec::with_capacity(all.len()), vec![0], vec![0]);
        let (mut last, mut sum): (&[u32], u64) = (&[], 0);
        for (range, count) in &lines {
            let line = of(range);
            // Different addresses of one function are one line; none is empty.
            if line == last {
                begins.pop();
                sums.pop();
            } else {
                frames.extend_from_slice(line);
            }
            (last, sum) = (line, sum.saturating_add(*count));
            begins.push(frames.len());
            sums.push(sum);
        }
        frames.shrink_to_fit();
        Self {
            kind,
            labels,
            frames,
            begins,
            sums,
            incomplete,
            from_leaves: OnceLock::new(),
        }
    }

    /// What is counted.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Events of all lines.
    pub fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or_default()
    }

    /// Events of stacks that are not whole.
    pub const fn incomplete(&self) -> u64 {
        self.incomplete
    }

    /// Bytes of it, about.
    pub fn bytes(&self) -> usize {
        let lines = self.begins.len();
        let from_leaves = self
            .from_leaves
            .get()
            .map_or(0, |_| size_of::<u32>() + size_of::<u64>());
        let names: usize = self.labels.iter().map(|(label, _)| label.len()).sum();
        names
            + size_of_val(self.labels.as_slice())
            + self.frames.len() * size_of::<u32>()
            + lines * (2 * size_of::<u64>() + from_leaves)
    }

    /// Every distinct label with what it stands for, as it appears in the lines, sorted.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = (&str, LabelKind)> {
        self.labels.iter().map(|(label, kind)| (label.as_str(), *kind))
    }

    /// Every line: places of its frames among [`Self::labels`], root first, and its number of events.
    pub fn lines(&self) -> impl Iterator<Item = (&[u32], u64)> {
        let counts = self.sums.array_windows().map(|[before, sum]| sum - before);
        (0..self.len()).map(|line| self.line(line)).zip(counts)
    }

    fn line(&self, line: usize) -> &[u32] {
        let begin = self.begins.get(line).copied().unwrap_or_default();
        let end = self.begins.get(line + 1).copied().unwrap_or(begin);
        self.frames.get(begin..end).unwrap_or_default()
    }

    /// The frame of a line at a depth, where lines are in an order and their first frames are what it says.
    pub(super) fn frame(&self, line: usize, depth: usize, order: Order) -> Option<u32> {
        match order {
            Order::FromRoots => self.line(line).get(depth).copied(),
            Order::FromLeaves => {
                let line = self.turned().lines.get(line).copied();
                self.line(line.unwrap_or(u32::MAX) as usize)
                    .iter()
                    .nth_back(depth)
                    .copied()
            }
        }
    }

    /// Events of neighbours in an order.
    pub(super) fn count(&self, lines: &Range<usize>, order: Order) -> u64 {
        let sums = match order {
            Order::FromRoots => &self.sums,
            Order::FromLeaves => &self.turned().sums,
        };
        let sum = |line: usize| sums.get(line).copied().unwrap_or_default();
        sum(lines.end).saturating_sub(sum(lines.start))
    }

    fn turned(&self) -> &FromLeaves {
        self.from_leaves.get_or_init(|| {
            let mut lines: Vec<u32> = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).collect();
            let leaf_first = |line: u32| self.line(line as usize).iter().rev();
            lines.sort_unstable_by(|&a, &b| leaf_first(a).cmp(leaf_first(b)));
            let mut sum = 0_u64;
            let mut sums = vec![0];
            sums.extend(lines.iter().map(|&line| {
                let line = line as usize;
                sum = sum.saturating_add(self.count(&(line..line + 1), Order::FromRoots));
                sum
            }));
            FromLeaves { lines, sums }
        })
    }

    /// The label at a place among [`Self::labels`].
    pub fn label(&self, place: u32) -> (&str, LabelKind) {
        self.labels
            .get(place as usize)
            .map_or(("", LabelKind::Native), |(label, kind)| (label, *kind))
    }

    /// Number of lines.
    pub const fn len(&self) -> usize {
        self.begins.len() - 1
    }

    /// Whether there is no line: no sample was of the asked kind.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the lines, each with its newline. Writes in small pieces: give it a buffered writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (frames, count) in self.lines() {
            for (place, &frame) in frames.iter().enumerate() {
                if place > 0 {
                    out.write_all(b";")?;
                }
                out.write_all(self.label(frame).0.as_bytes())?;
            }
            writeln!(out, " {count}")?;
        }
        Ok(())
    }
}

/// Folds a profile into lines, as [`Folded::new`] and [`Folded::write`] do.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    Folded::new(profile, options).write(out)
}

/// Distinct names with what they stand for.
#[derive(Default)]
struct Labels {
    ids: HashMap<(StringId, LabelKind), u32>,
    rows: Vec<(StringId, LabelKind)>,
}

impl Labels {
    fn id(&mut self, name: StringId, kind: LabelKind) -> u32 {
        *self.ids.entry((name, kind)).or_insert_with(|| {
            let id = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
            self.rows.push((name, kind));
            id
        })
    }

    /// Sorted labels, and for each id the place of its label among them. Names that are different can
    /// have the same label, since what is not plain is replaced.
    fn rank(self, profile: &Profile) -> (Vec<(String, LabelKind)>, Vec<u32>) {
        let mut order: Vec<(String, LabelKind, usize)> = self
            .rows
            .iter()
            .enumerate()
            .map(|(id, &(name, kind))| (label(profile.string(name), kind), kind, id))
            .collect();
        order.sort_unstable();
        let mut labels: Vec<(String, LabelKind)> = Vec::with_capacity(order.len());
        let mut ranks = vec![0; order.len()];
        for (label, kind, id) in order {
            match labels.last_mut() {
                // A function called as its process is: the colour of the function says more.
                Some((last, kept)) if *last == label => *kept = kind,
                _ => labels.push((label, kind)),
            }
            if let Some(rank) = ranks.get_mut(id) {
                *rank = u32::try_from(labels.len() - 1).unwrap_or(u32::MAX);
            }
        }
        (labels, ranks)
    }
}

/// The label of a name: see the module documentation for what is replaced.
fn label(name: &str, kind: LabelKind) -> String {
    let is_process = kind == LabelKind::Process;
    let mut label: String = name
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if is_process && c.is_whitespace() => '_',
            c if is_plain(c) => c,
            _ => '?',
        })
        .collect();
    if label.is_empty() {
        label.push_str("[unknown]");
    }
    if label.starts_with(char::is_whitespace) || label.ends_with(char::is_whitespace) {
        let body = label.trim();
        let start = label.len() - label.trim_start().len();
        let end = label.len() - label.trim_end().len();
        label = if body.is_empty() {
            "_".repeat(label.len())
        } else {
            format!("{}{body}{}", "_".repeat(start), "_".repeat(end))
        };
    }
    if let Some((front, back)) = label.rsplit_once(' ')
        && back.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        label = format!("{front}_{back}");
    }
    if ["_[k]", "_[i]", "_[j]", "_[w]"]
        .iter()
        .any(|mark| label.ends_with(mark))
    {
        label.pop();
        label.push(')');
    }
    label.push_str(kind.mark());
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count() {
        let of = |name: &str| {
            let folded = Folded {
                kind: Kind::Cpu,
                labels: vec![(name.to_owned(), LabelKind::Native)],
                frames: vec![0],
                begins: vec![0, 1],
                sums: vec![0, 1],
                incomplete: 0,
                from_leaves: OnceLock::new(),
            };
            folded.bytes()
        };
        assert_eq!(of("0123456789"), of("") + 10);
        assert!(of("") > size_of::<String>());
    }

    #[test]
    fn hostile_names_become_harmless() {
        for (name, expected) in [
            ("", "[unknown]"),
            ("a;b", "a:b"),
            ("a\nb\r\0\u{1b}", "a?b???"),
            ("std::vector<int, 3>", "std::vector<int, 3>"),
            ("operator 5", "operator_5"),
            ("x 1 2.5", "x 1_2.5"),
            ("x .", "x_."),
            (" x  ", "_x__"),
            ("  ", "__"),
            ("evil_[k]", "evil_[k)"),
            ("\u{2028}\u{202e}", "??"),
        ] {
            assert_eq!(label(name, LabelKind::Native), expected, "{name:?}");
        }
        assert_eq!(label("a b\t1", LabelKind::Process), "a_b_1");
        assert_eq!(label("f", LabelKind::Kernel), "f_[k]");
        assert_eq!(label("f", LabelKind::Inlined), "f_[i]");
        assert_eq!(label("f", LabelKind::Jit), "f_[j]");
        assert_eq!(label("[truncated]", LabelKind::Marker), "[truncated]");
    }
}
