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
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use super::text::is_plain;
use crate::profile::{FrameKind, Kind, Location, Profile, StringId};

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
/// Costs 4 bytes per frame of a distinct stack and one string per distinct name.
#[derive(Debug)]
pub struct Folded {
    /// Every label once, sorted.
    labels: Vec<(String, LabelKind)>,
    /// Indices into `labels` of all lines, each root first.
    frames: Vec<u32>,
    /// Range in `frames` and number of events of each line, sorted.
    lines: Vec<(std::ops::Range<usize>, u64)>,
}

impl Folded {
    /// Folds a profile. Cannot fail: a row that refers to nothing reads as an empty one.
    pub fn new(profile: &Profile, options: &Options) -> Self {
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

        let mut counts: BTreeMap<(Option<u32>, u32), u64> = BTreeMap::new();
        for sample in profile
            .samples
            .iter()
            .filter(|sample| sample.kind == options.kind)
        {
            let process = processes.get(sample.process.index()).copied();
            let process = process.unwrap_or(Some(nameless)).map(rank);
            let count = counts.entry((process, sample.stack.0)).or_default();
            *count = count.saturating_add(sample.count);
        }

        let mut frames = Vec::new();
        let mut lines = Vec::with_capacity(counts.len());
        for ((process, stack), count) in counts {
            let start = frames.len();
            frames.extend(process);
            let stack = profile.stacks.get(stack as usize);
            for location in stack.iter().flat_map(|stack| stack.frames.iter().rev()) {
                let location = locations.get(location.index());
                frames.extend(
                    location
                        .iter()
                        .flat_map(|ids| ids.iter().rev())
                        .map(|&id| rank(id)),
                );
            }
            if frames.len() == start {
                // A line of nothing would be none.
                frames.push(rank(nameless));
            }
            lines.push((start..frames.len(), count));
        }
        // Different addresses of one function are one line.
        lines.sort_by(|(a, _), (b, _)| frames.get(a.clone()).cmp(&frames.get(b.clone())));
        lines.dedup_by(|(later, more), (kept, count)| {
            let equal = frames.get(later.clone()) == frames.get(kept.clone());
            if equal {
                *count = count.saturating_add(*more);
            }
            equal
        });
        Self {
            labels,
            frames,
            lines,
        }
    }

    /// Every distinct label with what it stands for, as it appears in the lines, sorted.
    pub fn labels(&self) -> impl Iterator<Item = (&str, LabelKind)> {
        self.labels.iter().map(|(label, kind)| (label.as_str(), *kind))
    }

    /// Every line: places of its frames among [`Self::labels`], root first, and its number of events.
    pub fn lines(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.lines
            .iter()
            .map(|(range, count)| (self.frames.get(range.clone()).unwrap_or_default(), *count))
    }

    /// The label at a place among [`Self::labels`].
    pub fn label(&self, place: u32) -> (&str, LabelKind) {
        self.labels
            .get(place as usize)
            .map_or(("", LabelKind::Native), |(label, kind)| (label, *kind))
    }

    /// Number of lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no line: no sample was of the asked kind.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Writes the lines, each with its newline. Writes in small pieces: give it a buffered writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (range, count) in &self.lines {
            let frames = self.frames.get(range.clone()).unwrap_or_default();
            for (place, &frame) in frames.iter().enumerate() {
                if place > 0 {
                    out.write_all(b";")?;
                }
                let label = self.labels.get(frame as usize).map_or("", |(label, _)| label);
                out.write_all(label.as_bytes())?;
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
