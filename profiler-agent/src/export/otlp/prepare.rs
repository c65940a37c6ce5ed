//! What is done once for a whole profile, before any request: rows that the wire cannot tell apart become one,
//! attributes get numbers, samples an order.
//!
//! [`Profile`] promises tables without equal rows, but knows more than the wire does: a location of a JIT and one of a
//! file may differ in that alone, a stack in how its walk ended. OTLP wants no two equal rows, and no two samples of one
//! identity. Nothing here hashes a name or copies a row; rows are compared by index. How often memory is asked for does not depend on how
//! much there is.

use std::{
    cmp::Ordering,
    hash::{BuildHasher as _, Hash as _, Hasher as _},
};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable, hash_table::Entry};
use profiler_common::Outcome;

use super::encode::{Names, Options, Times};
use crate::profile::{
    FrameKind, Function, Kind, Language, Line, Location, Mapping, MappingId, MappingKind, Profile, Runtime,
    Sample, StackId, StringId, Unit, Unwinding,
};

/// An attribute of the dictionary's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Attribute<'a> {
    /// `profile.frame.type` of a location.
    FrameType(&'static str),
    /// `process.executable.build_id.gnu` of a mapping, raw.
    BuildId(&'a [u8]),
    /// `process.executable.build_id.go` of a mapping.
    GoBuildId(StringId),
    /// `process.executable.build_id.htlhash` of a mapping, raw.
    Htlhash([u8; 16]),
    /// `thread.id` of a sample.
    ThreadId(u32),
    /// `thread.name` of a sample.
    ThreadName(StringId),
    /// `cpu.logical_number` of a sample.
    Cpu(u32),
    /// How the walk of an incomplete stack ended.
    Outcome(Outcome),
    /// How the frames of a sample's stack were found.
    Unwinding(Unwinding),
    /// Of a location whose caller was looked for by frame pointer.
    ByFramePointer,
    /// Of a location of code that was generated at run time, where the frame type does not say so.
    Generated,
    /// What is wrong with the names of a mapping.
    Remark(StringId),
}

/// Keys of attributes, and the types of values: the strings that are not the profile's own.
pub(super) const CONSTANTS: [&str; 23] = [
    "profile.frame.type",
    "process.executable.build_id.gnu",
    "process.executable.build_id.go",
    "process.executable.build_id.htlhash",
    "thread.id",
    "thread.name",
    "cpu.logical_number",
    "profile.stack.outcome",
    "profile.stack.unwinding",
    "profile.frame.unwinding",
    BY_FRAME_POINTER,
    "samples",
    "count",
    "cpu",
    "nanoseconds",
    UNKNOWN,
    "profile.frame.code",
    GENERATED,
    "events",
    "time",
    "space",
    "bytes",
    "profile.mapping.remark",
];

/// The value of `profile.frame.unwinding`; frames that a table was there for have no such attribute.
pub(super) const BY_FRAME_POINTER: &str = "frame_pointer";

/// The value of `profile.frame.code`; frames whose type says what they are have no such attribute.
pub(super) const GENERATED: &str = "generated";

/// Name of a function that has none: the wire wants one.
pub(super) const UNKNOWN: &str = "[unknown]";

impl Attribute<'_> {
    /// The key's place in [`CONSTANTS`].
    pub(super) const fn key(self) -> usize {
        match self {
            Self::FrameType(_) => 0,
            Self::BuildId(_) => 1,
            Self::GoBuildId(_) => 2,
            Self::Htlhash(_) => 3,
            Self::ThreadId(_) => 4,
            Self::ThreadName(_) => 5,
            Self::Cpu(_) => 6,
            Self::Outcome(_) => 7,
            Self::Unwinding(_) => 8,
            Self::ByFramePointer => 9,
            Self::Generated => 16,
            Self::Remark(_) => 22,
        }
    }
}

/// Most attributes of a sample.
pub(super) const ATTRIBUTES: usize = 5;
/// Most attributes of a mapping.
const MAPPING_ATTRIBUTES: usize = 4;

/// One sample of the wire: those of the profile that have its identity stand next to each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) process: u32,
    pub(super) kind: Kind,
    pub(super) stack: u32,
    /// Numbers of attributes; `None` where there is nothing to say. All of them, and nothing else, with
    /// process, kind and stack are the identity.
    pub(super) attributes: [Option<u32>; ATTRIBUTES],
    /// Row of [`Profile::samples`].
    pub(super) sample: u32,
}

impl Item {
    /// Whether two items are one sample on the wire.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let identity = |item: &Self| (item.process, item.kind, item.stack, item.attributes);
        identity(self) == identity(other)
    }
}

/// A profile made ready; tables are indexed as the profile's.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    pub(super) profile: &'a Profile,
    /// Number of the attribute rows, by what they say.
    pub(super) attributes: Vec<Attribute<'a>>,
    /// For each mapping the one that stands for it on the wire; `None` is row 0.
    pub(super) mappings: Vec<Option<u32>>,
    /// For each mapping its attributes; `None` where there is nothing to say.
    pub(super) mapping_attributes: Vec<[Option<u32>; MAPPING_ATTRIBUTES]>,
    /// For each function the one that stands for it.
    pub(super) functions: Vec<u32>,
    /// For each location the one that stands for it.
    pub(super) locations: Vec<u32>,
    /// Those that stand for themselves, by mapping and address.
    by_address: Vec<u32>,
    /// Which names are wanted.
    pub(super) names: Names,
    /// For each location its frame type's attribute.
    pub(super) frame_types: Vec<u32>,
    /// The attribute of locations whose caller was looked for by frame pointer, if there are such.
    pub(super) by_frame_pointer: Option<u32>,
    /// The attribute of locations of generated code that is nobody's, if there are such.
    pub(super) generated: Option<u32>,
    /// Samples in the order of the wire.
    pub(super) items: Vec<Item>,
    /// Row of each of [`CONSTANTS`]: in the profile's strings, or behind them.
    pub(super) constants: [u32; CONSTANTS.len()],
    /// Whether all samples have their timestamps.
    pub(super) timed: bool,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(profile: &'a Profile, options: &Options) -> Self {
        let Options { names, times, .. } = *options;
        let mut attributes = Attributes::new(profile);
        let mapping_attributes = profile
            .mappings
            .iter()
            .map(|mapping| mapping_attributes(mapping).map(|attribute| attribute.map(|it| attributes.id(it))))
            .collect();
        let mappings = mappings(profile);
        let frame_types = frame_types(profile, &mut attributes);
        let by_frame_pointer = profile
            .locations
            .iter()
            .any(|location| location.by_frame_pointer)
            .then(|| attributes.id(Attribute::ByFramePointer));
        let generated = profile
            .locations
            .iter()
            .any(is_generated)
            .then(|| attributes.id(Attribute::Generated));
        let functions = functions(profile, names);
        let by_address = by_address(profile, &mappings);
        let (locations, by_address) = locations(profile, by_address, &frame_types, &functions, names);
        let stacks = stacks(profile, &locations);
        let has_times = |sample: &Sample| u64::try_from(sample.timestamps.len()) == Ok(sample.count);
        let timed = times != Times::None && profile.samples.iter().all(has_times);
        let items = items(profile, &stacks, times, &mut attributes);
        Self {
            profile,
            attributes: attributes.rows,
            mappings,
            mapping_attributes,
            functions,
            locations,
            by_address,
            names,
            frame_types,
            by_frame_pointer,
            generated,
            items,
            constants: constants(profile),
            timed,
        }
    }

    /// The locations of all samples, by mapping and address: neighbours in a file have names, lines and addresses alike, which compresses by a
    /// tenth better than the order in which they were met.
    pub(super) fn locations_by_address(&self) -> impl Iterator<Item = u32> {
        let mut is_used = vec![false; self.profile.locations.len()];
        let mut last = u32::MAX;
        for item in &self.items {
            // Samples of one stack stand next to each other.
            if std::mem::replace(&mut last, item.stack) == item.stack {
                continue;
            }
            let stack = self.profile.stacks.get(item.stack as usize);
            for frame in stack.map_or(&[][..], |stack| &stack.frames) {
                let stands_for_it = self.locations.get(frame.index());
                if let Some(slot) = stands_for_it.and_then(|&id| is_used.get_mut(id as usize)) {
                    *slot = true;
                }
            }
        }
        let by_address = self.by_address.iter().copied();
        by_address.filter(move |&id| is_used.get(id as usize).copied().unwrap_or(false))
    }

    /// The sample of an item.
    pub(super) fn sample(&self, item: &Item) -> Option<&'a Sample> {
        self.profile.samples.get(item.sample as usize)
    }

    /// The string of a row of the extended table: the profile's, then [`CONSTANTS`].
    pub(super) fn string(&self, row: u32) -> &'a str {
        let row = row as usize;
        if let Some(string) = self.profile.strings.get(row) {
            return string;
        }
        let place = row.checked_sub(self.profile.strings.len());
        place
            .and_then(|place| CONSTANTS.get(place))
            .copied()
            .unwrap_or("")
    }
}

/// The words of OpenTelemetry's conventions, where there is one; `abort-marker` is that of its own profiler. Its `rust` is not used: devfiler
/// refuses a whole request for a word that it does not know.
const fn frame_type(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Native(Language::Go) => "go",
        FrameKind::Native(Language::Other) | FrameKind::Jit(Runtime::Unknown) => "native",
        FrameKind::Jit(Runtime::Beam) => "beam",
        FrameKind::Jit(Runtime::Cpython) => "cpython",
        FrameKind::Jit(Runtime::Dotnet) => "dotnet",
        FrameKind::Jit(Runtime::Jvm) => "jvm",
        FrameKind::Jit(Runtime::Php) => "php",
        FrameKind::Jit(Runtime::Ruby) => "ruby",
        FrameKind::Jit(Runtime::V8) => "v8js",
        FrameKind::Kernel => "kernel",
        FrameKind::Marker => "abort-marker",
    }
}

/// Whether it is of code that was generated by nobody knows what.
pub(super) fn is_generated(location: &Location) -> bool {
    location.kind == FrameKind::Jit(Runtime::Unknown)
}

/// For each location its frame type's attribute.
fn frame_types(profile: &Profile, attributes: &mut Attributes<'_>) -> Vec<u32> {
    let mut last = None;
    let ids = profile.locations.iter().map(|location| match last {
        Some((kind, id)) if kind == location.kind => id,
        _ => {
            let id = attributes.id(Attribute::FrameType(frame_type(location.kind)));
            last = Some((location.kind, id));
            id
        }
    });
    ids.collect()
}

/// Whatever the file of a mapping can be known by, and what is wrong with its names.
fn mapping_attributes(mapping: &Mapping) -> [Option<Attribute<'_>>; MAPPING_ATTRIBUTES] {
    let gnu = (!mapping.build_id.is_empty()).then_some(Attribute::BuildId(&mapping.build_id));
    let go = (mapping.go_build_id != StringId(0)).then_some(Attribute::GoBuildId(mapping.go_build_id));
    let htlhash = mapping.htlhash.map(Attribute::Htlhash);
    let remark = (mapping.remark != StringId(0)).then_some(Attribute::Remark(mapping.remark));
    [gnu, go, htlhash, remark]
}

fn mappings(profile: &Profile) -> Vec<Option<u32>> {
    let mut first = HashMap::with_capacity(profile.mappings.len());
    (0..)
        .zip(&profile.mappings)
        .map(|(index, mapping)| {
            // A mapping must be identified by a build ID. One of code without a file has none; a file without one keeps
            // its row, for its name.
            let has_row = mapping.kind == MappingKind::File || !mapping.build_id.is_empty();
            let key = (
                mapping.start,
                mapping.limit,
                mapping.file_offset,
                mapping.path,
                &mapping.build_id,
                mapping.go_build_id,
                mapping.htlhash,
                mapping.remark,
            );
            has_row.then(|| *first.entry(key).or_insert(index))
        })
        .collect()
}

/// For each function the one that stands for it: without their mangled names, some are equal.
fn functions(profile: &Profile, names: Names) -> Vec<u32> {
    if names == Names::All {
        return (0..).zip(&profile.functions).map(|(index, _)| index).collect();
    }
    let mut first = HashMap::with_capacity(profile.functions.len());
    (0..)
        .zip(&profile.functions)
        .map(|(index, function)| {
            let key = (
                function.name,
                mangled_name(profile, function, names),
                function.file,
                function.start_line,
            );
            *first.entry(key).or_insert(index)
        })
        .collect()
}

/// The mangled name that is sent: none beside one that can be read, unless all are wanted.
pub(super) fn mangled_name(profile: &Profile, function: &Function, names: Names) -> StringId {
    if names == Names::All || profile.string(function.name).is_empty() {
        function.system_name
    } else {
        StringId::default()
    }
}

/// The lines of a location that are sent: none of code that a receiver can name by its file's build ID or hash, if no names are wanted.
pub(super) fn lines<'a>(profile: &'a Profile, location: &'a Location, names: Names) -> &'a [Line] {
    let mapping = location.mapping.and_then(|id| profile.mappings.get(id.index()));
    let is_known = mapping.is_some_and(|mapping| !mapping.build_id.is_empty() || mapping.htlhash.is_some());
    if names == Names::None && is_known && matches!(location.kind, FrameKind::Native(_)) {
        &[]
    } else {
        &location.lines
    }
}

/// A location's place in the order of addresses: its mapping's row, its address, its own row.
fn by_address(profile: &Profile, mappings: &[Option<u32>]) -> Vec<u128> {
    let mapping = |id: MappingId| mappings.get(id.index()).copied().flatten();
    // Where the wire has no mapping: in the place of the first that it does not have.
    let without = mappings.iter().position(Option::is_none);
    let without = without.unwrap_or(mappings.len()) as u128;
    (0_u32..)
        .zip(&profile.locations)
        .map(|(id, location)| {
            let mapping = location.mapping.and_then(mapping);
            let mapping = mapping.map_or(without, u128::from);
            mapping << 96 | u128::from(location.address) << 32 | u128::from(id)
        })
        .collect()
}

/// For each location the one that stands for it, and those that stand for themselves in the order of their addresses.
fn locations(
    profile: &Profile,
    mut by_address: Vec<u128>,
    frame_types: &[u32],
    functions: &[u32],
    names: Names,
) -> (Vec<u32>, Vec<u32>) {
    let row = |place: u128| u32::try_from(place & u128::from(u32::MAX)).unwrap_or(u32::MAX);
    // What else the wire tells of two locations of one address.
    let compare = |one: u128, other: u128| {
        let [one, other] = [one, other].map(|place| row(place) as usize);
        let of = |id: usize| profile.locations.get(id);
        let (Some(location), Some(another)) = (of(one), of(other)) else {
            return Ordering::Equal;
        };
        let rest = |location: &Location, id: usize| {
            let frame_type = frame_types.get(id).copied();
            (frame_type, location.by_frame_pointer, is_generated(location))
        };
        let line = |line: &Line| {
            let function = functions.get(line.function.index()).copied();
            (function.unwrap_or(line.function.0), line.line, line.column)
        };
        let lines = |location| lines(profile, location, names).iter().map(line);
        rest(location, one)
            .cmp(&rest(another, other))
            .then_with(|| lines(location).cmp(lines(another)))
    };
    by_address.sort_unstable();
    let mut stands_for = vec![0; profile.locations.len()];
    let mut themselves = Vec::with_capacity(by_address.len());
    // Few addresses have more than one location.
    for of_address in by_address.chunk_by_mut(|one, other| one >> 32 == other >> 32) {
        if of_address.len() > 1 {
            of_address.sort_unstable_by(|&one, &other| compare(one, other).then(one.cmp(&other)));
        }
        for equal in of_address.chunk_by(|&one, &other| compare(one, other).is_eq()) {
            let Some(first) = equal.first().copied().map(row) else {
                continue;
            };
            themselves.push(first);
            for &place in equal {
                if let Some(slot) = stands_for.get_mut(row(place) as usize) {
                    *slot = first;
                }
            }
        }
    }
    (stands_for, themselves)
}

/// For each stack the one that stands for it; `None` is row 0, the stack without frames.
fn stacks(profile: &Profile, locations: &[u32]) -> Vec<Option<u32>> {
    let frames = |id: u32| {
        let stack = profile.stacks.get(id as usize);
        let frames = stack.map_or(&[][..], |stack| &stack.frames);
        frames
            .iter()
            .filter_map(|frame| locations.get(frame.index()).copied())
    };
    let state = DefaultHashBuilder::default();
    let hash = |id: u32| {
        let mut hasher = state.build_hasher();
        frames(id).for_each(|frame| frame.hash(&mut hasher));
        hasher.finish()
    };
    let mut first = HashTable::with_capacity(profile.stacks.len());
    (0..)
        .zip(&profile.stacks)
        .map(|(id, _): (u32, _)| {
            frames(id).next()?;
            Some(
                *match first.entry(hash(id), |&other| frames(id).eq(frames(other)), |&id| hash(id)) {
                    Entry::Occupied(entry) => entry,
                    Entry::Vacant(entry) => entry.insert(id),
                }
                .get(),
            )
        })
        .collect()
}

fn items<'a>(
    profile: &'a Profile,
    stacks: &[Option<u32>],
    times: Times,
    attributes: &mut Attributes<'a>,
) -> Vec<Item> {
    // Processes of one program stand next to each other: they resemble each other.
    let mut processes: Vec<u32> = (0..).zip(&profile.processes).map(|(id, _)| id).collect();
    let executable = |id: u32| {
        let process = profile.processes.get(id as usize);
        process.map(|process| profile.string(process.executable))
    };
    processes.sort_by_key(|&id| (executable(id), id));
    let mut ranks = vec![u32::MAX; processes.len()];
    for (rank, &id) in (0..).zip(&processes) {
        if let Some(slot) = ranks.get_mut(id as usize) {
            *slot = rank;
        }
    }
    let unwinding: Vec<Option<Unwinding>> = (0..)
        .zip(&profile.stacks)
        .map(|(id, _)| profile.unwinding(StackId(id)))
        .collect();
    // Sorted before attributes get their numbers, so that the order of the profile's samples changes nothing. What a stack decides by itself
    // is no part of the order.
    let mut order: Vec<(u128, u128)> = (0_u32..)
        .zip(&profile.samples)
        .map(|(index, sample)| {
            let Sample {
                kind,
                process,
                tid,
                thread_name,
                cpu,
                stack,
                count: _,
                weight: _,
                timestamps: _,
            } = *sample;
            let rank = ranks.get(process.index()).copied().unwrap_or(u32::MAX);
            let outcome = outcome(profile, stack).map_or(0, |outcome| outcome as u32 + 1);
            // The highest number stands for no frames at all.
            let stack = stacks.get(stack.index()).copied().flatten().unwrap_or(u32::MAX);
            (
                together([rank, kind_number(kind), stack, tid]),
                // Of counts, the CPU would make more rows and say little.
                together([
                    thread_name.0,
                    if times == Times::None { 0 } else { cpu },
                    outcome,
                    index,
                ]),
            )
        })
        .collect();
    order.sort_unstable();
    let mut items = Vec::with_capacity(order.len());
    let [mut tid, mut name, mut cpu, mut ending, mut manner] = [Last::default(); ATTRIBUTES];
    for (_, rest) in order {
        let index = u32::try_from(rest & u128::from(u32::MAX)).unwrap_or(u32::MAX);
        let Some(sample) = profile.samples.get(index as usize) else {
            continue;
        };
        let unwinding = unwinding.get(sample.stack.index()).copied().flatten();
        items.push(Item {
            process: sample.process.0,
            kind: sample.kind,
            stack: stacks
                .get(sample.stack.index())
                .copied()
                .flatten()
                .unwrap_or(u32::MAX),
            attributes: [
                tid.id(attributes, Some(Attribute::ThreadId(sample.tid))),
                name.id(
                    attributes,
                    (!profile.string(sample.thread_name).is_empty())
                        .then_some(Attribute::ThreadName(sample.thread_name)),
                ),
                cpu.id(
                    attributes,
                    (times != Times::None).then_some(Attribute::Cpu(sample.cpu)),
                ),
                ending.id(attributes, outcome(profile, sample.stack).map(Attribute::Outcome)),
                manner.id(attributes, unwinding.map(Attribute::Unwinding)),
            ],
            sample: index,
        });
    }
    items
}

/// How the walk of a stack ended, if something is missing from it.
fn outcome(profile: &Profile, stack: StackId) -> Option<Outcome> {
    let outcome = profile.stacks.get(stack.index()).map(|stack| stack.outcome);
    outcome.filter(|outcome| !outcome.is_complete())
}

const fn kind_number(kind: Kind) -> u32 {
    match kind {
        Kind::Cpu => 0,
        Kind::Other(Unit::Events) => 1,
        Kind::Other(Unit::Counts) => 2,
        Kind::Other(Unit::Nanoseconds) => 3,
        Kind::Other(Unit::Bytes) => 4,
    }
}

/// Four numbers as one, which compares as they do one after the other.
fn together(numbers: [u32; 4]) -> u128 {
    numbers
        .into_iter()
        .fold(0, |all, number| all << 32 | u128::from(number))
}

/// Where each constant is among the profile's strings, or else behind them.
fn constants(profile: &Profile) -> [u32; CONSTANTS.len()] {
    let mut behind = u32::try_from(profile.strings.len()).unwrap_or(u32::MAX);
    let mut rows = CONSTANTS.map(|_| {
        let row = behind;
        behind = behind.saturating_add(1);
        row
    });
    // Bit N: one of them is N bytes long.
    let lengths = CONSTANTS
        .iter()
        .fold(0_u64, |lengths, constant| lengths | 1 << constant.len());
    for (row, string) in (0..).zip(&profile.strings) {
        if string.len() < 64
            && lengths >> string.len() & 1 == 1
            && let Some(place) = CONSTANTS.iter().position(|constant| **constant == **string)
            && let Some(slot) = rows.get_mut(place)
        {
            *slot = row;
        }
    }
    rows
}

/// The last attribute of a kind: samples that stand next to each other have it in common, mostly.
#[derive(Debug, Clone, Copy, Default)]
struct Last<'a> {
    attribute: Option<Attribute<'a>>,
    id: Option<u32>,
}

impl<'a> Last<'a> {
    fn id(&mut self, attributes: &mut Attributes<'a>, attribute: Option<Attribute<'a>>) -> Option<u32> {
        if self.attribute != attribute {
            *self = Self {
                attribute,
                id: attribute.map(|attribute| attributes.id(attribute)),
            };
        }
        self.id
    }
}

/// Numbers the attributes.
struct Attributes<'a> {
    ids: HashMap<Attribute<'a>, u32>,
    rows: Vec<Attribute<'a>>,
}

impl<'a> Attributes<'a> {
    /// None yet; room for those of most profiles.
    fn new(profile: &Profile) -> Self {
        let room = profile.mappings.len() * 2 + profile.processes.len() * 2 + 256;
        Self {
            ids: HashMap::with_capacity(room),
            rows: Vec::with_capacity(room),
        }
    }

    fn id(&mut self, attribute: Attribute<'a>) -> u32 {
        *self.ids.entry(attribute).or_insert_with(|| {
            self.rows.push(attribute);
            u32::try_from(self.rows.len() - 1).unwrap_or(u32::MAX)
        })
    }
}
