//! A profile as JSON in columns: what the page reads, packed into the file or fetched from whoever serves the page.
//!
//! ```text
//! strings ◀── frames ◀── nodes ◀── samples ──▶ threads ──▶ processes
//! ```
//!
//! - A frame is a name and what kind of thing it is; frames are sorted by name, and row 0 is the root of all.
//! - Nodes are the stacks as one tree, root first, a node before its children and siblings in the order of their
//!   frames. A node is its depth and its frame: its parent is the last node before it that is one less deep.
//! - Samples are rows of one thread and node, with how many there are. `time` has the times of all rows one after the other, in
//!   milliseconds from the start, each as the difference to the one before it in its row; it is empty where the profile has no times.
//!
//! Numbers that change little from row to row pack well: packed, a sample takes 1 to 4 bytes beside its names and its stack.
//! Characters that are not [plain](crate::export::text::is_plain) become `?` in all strings.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use serde::Serialize;

use crate::{
    export::{
        folded::{LabelKind, Options},
        text::is_plain,
    },
    profile::{Profile, Sample, StringId},
};

/// Changes when a page that is older could not read what is written.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    agent: &'static str,
    title: String,
    subtitle: String,
    /// Milliseconds since the Unix epoch.
    start: u64,
    /// Milliseconds, rounded up.
    duration: u64,
    /// Nanoseconds of CPU time that a sample stands for.
    period: u64,
    /// What counts are of: `count`, or a unit.
    unit: &'static str,
    lost: BTreeMap<&'static str, u64>,
    strings: Vec<String>,
    frames: Frames,
    nodes: Nodes,
    processes: Processes,
    threads: &'a Threads,
    samples: Samples,
}

#[derive(Default, Serialize)]
struct Frames {
    name: Vec<u32>,
    kind: Vec<u8>,
    /// String of the file that the code is in; 0 where there is none, or several.
    module: Vec<u32>,
}

#[derive(Serialize)]
struct Nodes {
    depth: Vec<u32>,
    frame: Vec<u32>,
}

#[derive(Default, Serialize)]
struct Processes {
    pid: Vec<u32>,
    name: Vec<u32>,
}

#[derive(Default, Serialize)]
struct Threads {
    tid: Vec<u32>,
    name: Vec<u32>,
    process: Vec<u32>,
}

#[derive(Default, Serialize)]
struct Samples {
    thread: Vec<u32>,
    node: Vec<u32>,
    count: Vec<u64>,
    time: Vec<u64>,
}

/// Writes the samples of the asked kind, root first and merged by name. An empty profile is a document without samples.
/// Writes in small pieces: give it a buffered writer.
///
/// # Errors
/// Those of the writer.
pub(super) fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let mut strings = Strings::default();
    strings.id(String::new());
    let frames = FrameTable::new(profile, &mut strings);
    let rows: Vec<&Sample> = profile
        .samples
        .iter()
        .filter(|sample| sample.kind == options.kind)
        .collect();
    let (nodes, node_of) = tree(profile, &frames, &rows);
    let processes = Processes {
        pid: profile.processes.iter().map(|process| process.pid).collect(),
        name: profile
            .processes
            .iter()
            .map(|process| strings.of(profile, process.name))
            .collect(),
    };
    let mut threads = ThreadTable::default();
    let samples = samples(profile, &rows, &node_of, &mut threads, &mut strings);
    let capture = &profile.capture;
    let document = Document {
        version: VERSION,
        agent: env!("CARGO_PKG_VERSION"),
        title: super::title(&profile.capture),
        subtitle: super::subtitle(&profile.capture, super::Amount::of(profile)),
        start: capture.start / 1_000_000,
        duration: capture.duration.div_ceil(1_000_000),
        period: capture.period(),
        unit: options.kind.event_type().unit,
        lost: capture
            .lost
            .iter()
            .map(|(reason, &count)| (reason.name(), count))
            .collect(),
        frames: frames.columns,
        nodes,
        processes,
        threads: &threads.columns,
        samples,
        strings: strings.rows,
    };
    serde_json::to_writer(out, &document).map_err(io::Error::from)
}

/// An index as JSON has it; a profile's tables are far below four billion rows.
fn index(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// Every string once.
#[derive(Default)]
struct Strings {
    ids: HashMap<String, u32>,
    rows: Vec<String>,
}

impl Strings {
    fn id(&mut self, text: String) -> u32 {
        if let Some(&id) = self.ids.get(&text) {
            return id;
        }
        let id = index(self.rows.len());
        self.rows.push(text.clone());
        self.ids.insert(text, id);
        id
    }

    fn of(&mut self, profile: &Profile, id: StringId) -> u32 {
        self.id(clean(profile.string(id)))
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { '?' }).collect()
}

/// The number of a kind in the document.
const fn number(kind: LabelKind) -> u8 {
    match kind {
        LabelKind::Process => 0,
        LabelKind::Native => 1,
        LabelKind::Inlined => 2,
        LabelKind::Unnamed => 3,
        LabelKind::Kernel => 4,
        LabelKind::Jit => 5,
        LabelKind::Marker => 6,
    }
}

/// Frames sorted by name, and which of them each row of the profile's tables is.
struct FrameTable {
    columns: Frames,
    /// By process.
    processes: Vec<u32>,
    /// By location, innermost first.
    locations: Vec<Vec<u32>>,
}

impl FrameTable {
    fn new(profile: &Profile, strings: &mut Strings) -> Self {
        // Names and what is known of their files: no mapping yet, one, or several.
        let mut modules: BTreeMap<(String, u8), Option<StringId>> = BTreeMap::new();
        let mut seen = |name: &str, kind: LabelKind, module: StringId| {
            let mut name = clean(name);
            if name.trim().is_empty() {
                "[unknown]".clone_into(&mut name);
            }
            let key = (name, number(kind));
            modules
                .entry(key.clone())
                .and_modify(|known| {
                    if *known != Some(module) {
                        *known = None;
                    }
                })
                .or_insert(Some(module));
            key
        };
        let processes: Vec<_> = profile
            .processes
            .iter()
            .map(|process| {
                seen(
                    profile.string(process.name),
                    LabelKind::Process,
                    process.executable,
                )
            })
            .collect();
        let locations: Vec<Vec<_>> = profile
            .locations
            .iter()
            .map(|location| {
                let outermost = location.lines.len().saturating_sub(1);
                let mapping = location.mapping.and_then(|id| profile.mappings.get(id.index()));
                let module = mapping.map_or(StringId(0), |mapping| mapping.path);
                let lines = location.lines.iter().enumerate();
                lines
                    .map(|(depth, line)| {
                        let function = profile.functions.get(line.function.index());
                        let name = function.map_or("", |function| profile.string(function.name));
                        seen(name, LabelKind::of(location, depth < outermost), module)
                    })
                    .collect()
            })
            .collect();
        let mut columns = Frames {
            name: vec![0],
            kind: vec![0],
            module: vec![0],
        };
        let mut rows: HashMap<(&str, u8), u32> = HashMap::new();
        for ((name, kind), module) in &modules {
            rows.insert((name, *kind), index(columns.name.len()));
            columns.name.push(strings.id(name.clone()));
            columns.kind.push(*kind);
            columns
                .module
                .push(module.map_or(0, |module| strings.of(profile, module)));
        }
        let row = |(name, kind): &(String, u8)| rows.get(&(name.as_str(), *kind)).copied().unwrap_or(0);
        Self {
            processes: processes.iter().map(row).collect(),
            locations: locations
                .iter()
                .map(|lines| lines.iter().map(row).collect())
                .collect(),
            columns,
        }
    }

    /// The frames of a sample, root first: its process, then its stack.
    fn path(&self, profile: &Profile, sample: &Sample) -> Vec<u32> {
        let mut path = vec![self.processes.get(sample.process.index()).copied().unwrap_or(0)];
        let stack = profile.stacks.get(sample.stack.index());
        for location in stack.iter().flat_map(|stack| stack.frames.iter().rev()) {
            let frames = self.locations.get(location.index());
            path.extend(frames.iter().flat_map(|frames| frames.iter().rev()));
        }
        path
    }
}

/// The tree of all stacks, and the node of each row of samples.
fn tree(profile: &Profile, frames: &FrameTable, rows: &[&Sample]) -> (Nodes, Vec<u32>) {
    // Processes of one name share their frame, so that the path tells stacks apart and not the process.
    let mut places: BTreeMap<Vec<u32>, Vec<usize>> = BTreeMap::new();
    let mut known: HashMap<(u32, u32), usize> = HashMap::new();
    let mut same: Vec<Vec<usize>> = Vec::new();
    for (row, sample) in rows.iter().enumerate() {
        // A stack is written out once for each process, not once for each thread.
        match known.entry((sample.process.0, sample.stack.0)) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                if let Some(rows) = same.get_mut(*entry.get()) {
                    rows.push(row);
                }
            }
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(same.len());
                places
                    .entry(frames.path(profile, sample))
                    .or_default()
                    .push(same.len());
                same.push(vec![row]);
            }
        }
    }
    let mut nodes = Nodes {
        depth: vec![0],
        frame: vec![0],
    };
    let mut node_of = vec![0; rows.len()];
    let mut before: &[u32] = &[];
    for (path, groups) in &places {
        let shared = before.iter().zip(path).take_while(|(a, b)| a == b).count();
        for (depth, &frame) in path.iter().enumerate().skip(shared) {
            nodes.depth.push(index(depth + 1));
            nodes.frame.push(frame);
        }
        // The path is the longest that begins so, so far: its last frame is the last node.
        let node = index(nodes.frame.len() - 1);
        for &row in groups.iter().filter_map(|&group| same.get(group)).flatten() {
            if let Some(of) = node_of.get_mut(row) {
                *of = node;
            }
        }
        before = path;
    }
    (nodes, node_of)
}

#[derive(Default)]
struct ThreadTable {
    ids: HashMap<(u32, u32, StringId), u32>,
    columns: Threads,
}

impl ThreadTable {
    fn id(&mut self, profile: &Profile, sample: &Sample, strings: &mut Strings) -> u32 {
        let key = (sample.process.0, sample.tid, sample.thread_name);
        *self.ids.entry(key).or_insert_with(|| {
            let columns = &mut self.columns;
            columns.tid.push(sample.tid);
            columns.name.push(strings.of(profile, sample.thread_name));
            columns.process.push(sample.process.0);
            index(columns.tid.len() - 1)
        })
    }
}

fn samples(
    profile: &Profile,
    rows: &[&Sample],
    node_of: &[u32],
    threads: &mut ThreadTable,
    strings: &mut Strings,
) -> Samples {
    // Rows that differ in CPU or in addresses alone are one.
    let mut merged: BTreeMap<(u32, u32), (u64, Vec<u64>)> = BTreeMap::new();
    for (&sample, &node) in rows.iter().zip(node_of) {
        let thread = threads.id(profile, sample, strings);
        let (count, times) = merged.entry((thread, node)).or_default();
        *count = count.saturating_add(sample.count);
        let start = profile.capture.start;
        times.extend(
            sample
                .timestamps
                .iter()
                .map(|time| time.saturating_sub(start) / 1_000_000),
        );
    }
    // All samples have times, or none has.
    let has_times = merged
        .values()
        .all(|(count, times)| u64::try_from(times.len()) == Ok(*count));
    let mut columns = Samples::default();
    for ((thread, node), (count, mut times)) in merged {
        columns.thread.push(thread);
        columns.node.push(node);
        columns.count.push(count);
        if has_times {
            times.sort_unstable();
            let mut before = 0;
            for time in times {
                columns.time.push(time - before);
                before = time;
            }
        }
    }
    columns
}
