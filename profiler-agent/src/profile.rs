//! A profile: what was measured in one span of time, every name resolved. The one input of every output.
//!
//! ```text
//! Sample ──▶ Stack ──▶ Location ──▶ Line ──▶ Function ──▶ strings
//!    │                    └──────▶ Mapping ──────────────────▲
//!    └──▶ Process ───────────────────────────────────────────┘
//! ```
//!
//! Tables refer to each other by index. A table holds no two equal rows: the aggregator interns
//! them, and every output (pprof, OTLP) relies on it. Indices come from [`Profile`]'s own tables only, so
//! a lookup that misses is a bug of the aggregator; the accessors answer with an empty value then, never
//! with a panic.

use std::collections::BTreeMap;

pub mod tables;

/// What a sample counts, and in which unit. One run may carry several kinds on one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// Time on a CPU, sampled at a fixed rate: each sample stands for one period.
    Cpu,
    /// Of a file that says no more than the unit of its numbers: count and weight are the same.
    Other(Unit),
}

/// What numbers of a [`Kind`] that is not ours count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Samples, each of which came by chance.
    Events,
    /// Anything else that is counted: objects, contentions.
    Counts,
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
}

/// How a [`Kind`] is called in outputs: pprof's and OTLP's `ValueType`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueType {
    /// What is counted, e.g. `samples` or `cpu`.
    pub name: &'static str,
    /// Its unit, e.g. `count` or `nanoseconds`.
    pub unit: &'static str,
}

impl From<profiler_common::record::EventKind> for Kind {
    fn from(kind: profiler_common::record::EventKind) -> Self {
        match kind {
            profiler_common::record::EventKind::Cpu => Self::Cpu,
        }
    }
}

impl Kind {
    /// Type of the number of events: one per sample.
    pub const fn event_type(self) -> ValueType {
        match self {
            Self::Cpu | Self::Other(Unit::Events) => ValueType {
                name: "samples",
                unit: "count",
            },
            Self::Other(Unit::Counts) => ValueType {
                name: "events",
                unit: "count",
            },
            Self::Other(Unit::Nanoseconds) => ValueType {
                name: "time",
                unit: "nanoseconds",
            },
            Self::Other(Unit::Bytes) => ValueType {
                name: "space",
                unit: "bytes",
            },
        }
    }

    /// Type of the weight of the events: what a flamegraph's width means.
    pub const fn weight_type(self) -> ValueType {
        match self {
            Self::Cpu => ValueType {
                name: "cpu",
                unit: "nanoseconds",
            },
            Self::Other(_) => self.event_type(),
        }
    }

    /// What [`Sample::count`] counts, for people.
    pub const fn counted(self) -> &'static str {
        match self {
            Self::Cpu | Self::Other(Unit::Events) => "samples",
            Self::Other(Unit::Counts) => "events",
            Self::Other(Unit::Nanoseconds) => "nanoseconds",
            Self::Other(Unit::Bytes) => "bytes",
        }
    }

    /// Whether [`Sample::count`] counts events of chance, whose noise is known.
    pub const fn is_sampled(self) -> bool {
        matches!(self, Self::Cpu | Self::Other(Unit::Events))
    }
}

/// When, where and how a profile was taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capture {
    /// What was profiled, for people: `redis-server (1234)`, `whole host`, or a command line.
    pub target: String,
    /// Its command line, where it is one process that `target` does not name by it; else empty.
    pub command: String,
    /// Host name.
    pub host: String,
    /// Start, nanoseconds since the Unix epoch; 0 where a file does not tell.
    pub start: u64,
    /// Length in nanoseconds; every timestamp lies in `start .. start + duration`.
    pub duration: u64,
    /// Samples per second and CPU that were asked for; 0 where a file does not tell.
    pub frequency: u32,
    /// Clock of the samples: `cycles` or `cpu-clock`; empty where a file does not tell.
    pub clock: &'static str,
    /// What was not captured, by reason; a reason that did not occur is absent.
    pub lost: BTreeMap<crate::telemetry::Loss, u64>,
}

impl Capture {
    /// Nanoseconds between two samples of one CPU: 1e9 / frequency, rounded down; 0 where that is not known.
    pub fn period(&self) -> u64 {
        1_000_000_000_u64.checked_div(self.frequency.into()).unwrap_or(0)
    }

    /// Adds what another file says about itself; what the two do not agree on becomes unknown.
    pub fn add(&mut self, capture: Self) {
        let end = |capture: &Self| capture.start.saturating_add(capture.duration);
        let last = end(self).max(end(&capture));
        if self.start == 0 || capture.start == 0 {
            self.start = 0;
            self.duration = self.duration.saturating_add(capture.duration);
        } else {
            self.start = self.start.min(capture.start);
            self.duration = last.saturating_sub(self.start);
        }
        for (one, other) in [(&mut self.target, capture.target), (&mut self.host, capture.host)] {
            if *one != other && !other.is_empty() {
                *one = if one.is_empty() {
                    other
                } else {
                    format!("{one}, {other}")
                };
            }
        }
        self.command.clear();
        if self.frequency != capture.frequency {
            self.frequency = 0;
        }
        if self.clock != capture.clock {
            self.clock = "";
        }
        for (loss, count) in capture.lost {
            let sum = self.lost.entry(loss).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// Number of lost samples, all reasons together.
    pub fn lost_total(&self) -> u64 {
        self.lost
            .values()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The index as `usize`.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// Row of [`Profile::strings`]; row 0 is the empty string.
    StringId
);
index!(
    /// Row of [`Profile::processes`].
    ProcessId
);
index!(
    /// Row of [`Profile::mappings`].
    MappingId
);
index!(
    /// Row of [`Profile::functions`].
    FunctionId
);
index!(
    /// Row of [`Profile::locations`].
    LocationId
);
index!(
    /// Row of [`Profile::stacks`].
    StackId
);

/// One process: a pid in one life. `pid` alone is no identity, since pids are used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process id (thread group id) in the initial pid namespace; 0 where a file does not tell.
    pub pid: u32,
    /// Start, nanoseconds since the Unix epoch; 0 where it could not be learned.
    pub start: u64,
    /// Name of the process: the `comm` of its main thread.
    pub name: StringId,
    /// Path of its executable as it sees it; empty for kernel threads.
    pub executable: StringId,
    /// Name of the service that it says it is; empty where it says none.
    pub service: StringId,
    /// What else is known of where it belongs: its container, and what it says of itself. No key twice.
    pub attributes: Vec<(StringId, StringId)>,
}

impl Process {
    /// Whether nothing is known of it, as in files that do not tell processes apart.
    pub const fn is_unknown(&self) -> bool {
        self.pid == 0 && self.name.0 == 0 && self.executable.0 == 0
    }
}

/// What kind of memory a [`Mapping`] covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MappingKind {
    /// A file's executable segment; addresses are the file's own virtual addresses.
    File,
    /// The vDSO; addresses count from the start of its image.
    Vdso,
    /// The kernel's own text and its modules; addresses are kernel addresses.
    Kernel,
    /// Executable memory without a file (a JIT); addresses are those of the process.
    Anonymous,
}

/// One executable segment of one file. Addresses are file-virtual (without load bias), so
/// processes that share a library share its rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// What it is.
    pub kind: MappingKind,
    /// First address.
    pub start: u64,
    /// First address behind it; always greater than `start`.
    pub limit: u64,
    /// Offset in the file that corresponds to `start`.
    pub file_offset: u64,
    /// Path as the process sees it, or `[kernel]`, `[vdso]`, `[anon]`.
    pub path: StringId,
    /// GNU build ID, raw bytes; empty where the file has none.
    pub build_id: Vec<u8>,
    /// Go's build ID; empty where the file has none.
    pub go_build_id: StringId,
    /// What OpenTelemetry knows files by that have no build ID: a hash of their head, tail and length. `None` for what is no file.
    pub htlhash: Option<[u8; 16]>,
    /// Why names of its code are missing or poorer than they could be; empty where nothing is wrong.
    pub remark: StringId,
}

/// What ran in a frame; it decides the mark in folded stacks and the colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// Compiled code of a file.
    Native(Language),
    /// The kernel.
    Kernel,
    /// Code generated at run time.
    Jit(Runtime),
    /// Not a frame of the program: says that and why a stack is incomplete.
    Marker,
}

/// What compiled code was written in, where a format asks for it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub enum Language {
    /// Not known, or one that no format has a word for that all readers know.
    #[default]
    Other,
    /// Go.
    Go,
}

/// What generates code at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Runtime {
    /// Not known.
    #[default]
    Unknown,
    /// Erlang's.
    Beam,
    /// Python's, with its trampolines for perf.
    Cpython,
    /// .NET's.
    Dotnet,
    /// Java's.
    Jvm,
    /// PHP's.
    Php,
    /// Ruby's.
    Ruby,
    /// JavaScript's in node and others.
    V8,
}

/// One address, and the functions it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// What ran there.
    pub kind: FrameKind,
    /// Where it lies; `None` when no mapping covered the address.
    pub mapping: Option<MappingId>,
    /// Address inside the mapping's range. For a caller it is the return address minus one, so that it lies inside the call.
    pub address: u64,
    /// Whether its caller was looked for by frame pointer, for want of unwind information about this address.
    pub by_frame_pointer: bool,
    /// Whether a name was found. Without one its line is called by what is known, its function's start or its file.
    pub is_named: bool,
    /// Innermost inlined function first, the function that was really called last. Never empty: a location
    /// without a name has one line.
    pub lines: Vec<Line>,
}

/// A position in source code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// Line in the function's file, from 1; 0 is unknown.
    pub line: u32,
    /// Column, from 1; 0 is unknown.
    pub column: u32,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Function {
    /// Demangled name.
    pub name: StringId,
    /// Name as the linker knows it; equal to `name` where nothing was mangled.
    pub system_name: StringId,
    /// Source file; empty where unknown.
    pub file: StringId,
    /// Line of the definition; 0 is unknown.
    pub start_line: u32,
}

/// A stack, and how the walk that found it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Leaf first: kernel frames, then user frames. An incomplete stack ends in a [`FrameKind::Marker`].
    pub frames: Vec<LocationId>,
    /// How the walk of the user stack ended.
    pub outcome: profiler_common::Outcome,
}

/// How the frames of a user stack were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unwinding {
    /// All by the compiler's unwind information.
    Tables,
    /// All by frame pointer.
    FramePointers,
    /// Some by the one, some by the other.
    Mixed,
}

impl Unwinding {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tables, Self::FramePointers, Self::Mixed];

    /// Name in outputs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::FramePointers => "frame_pointers",
            Self::Mixed => "mixed",
        }
    }
}

/// All samples of one identity: kind, process, thread, CPU and stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What was counted.
    pub kind: Kind,
    /// Process.
    pub process: ProcessId,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Name of the thread when it was sampled.
    pub thread_name: StringId,
    /// CPU it ran on.
    pub cpu: u32,
    /// Where it was.
    pub stack: StackId,
    /// Number of events, at least 1.
    pub count: u64,
    /// Sum of the events' weights in the unit of [`Kind::weight_type`]; on-CPU: `count * period`.
    pub weight: u64,
    /// When, nanoseconds since the Unix epoch, ascending: `count` of them, or none in a whole
    /// profile whose timestamps outgrew their budget.
    pub timestamps: Vec<u64>,
}

/// See the [module documentation](self).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// When, where and how.
    pub capture: Capture,
    /// Every string once; row 0 is empty.
    pub strings: Vec<Box<str>>,
    /// Processes.
    pub processes: Vec<Process>,
    /// Mappings.
    pub mappings: Vec<Mapping>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Locations.
    pub locations: Vec<Location>,
    /// Stacks.
    pub stacks: Vec<Stack>,
    /// Samples, no two of one identity.
    pub samples: Vec<Sample>,
}

impl Profile {
    /// The string of an id.
    pub fn string(&self, id: StringId) -> &str {
        self.strings.get(id.index()).map_or("", |s| s)
    }

    /// The paths of files whose names are missing or poorer than they could be, and why.
    pub fn remarks(&self) -> std::collections::BTreeSet<(&str, &str)> {
        let mappings = self
            .mappings
            .iter()
            .filter(|mapping| mapping.remark != StringId(0));
        mappings
            .map(|mapping| (self.string(mapping.path), self.string(mapping.remark)))
            .collect()
    }

    /// What its samples count. All of them count the same.
    pub fn kind(&self) -> Kind {
        self.samples.first().map_or(Kind::Cpu, |sample| sample.kind)
    }

    /// Number of events of all samples.
    pub fn sample_count(&self) -> u64 {
        self.samples
            .iter()
            .fold(0, |sum, sample| sum.saturating_add(sample.count))
    }

    /// How the user frames of a stack were found; `None` when it has none.
    pub fn unwinding(&self, stack: StackId) -> Option<Unwinding> {
        let frames = self
            .stacks
            .get(stack.index())
            .map_or(&[][..], |stack| &stack.frames);
        frames
            .iter()
            .filter_map(|id| self.locations.get(id.index()))
            .filter(|location| matches!(location.kind, FrameKind::Native(_) | FrameKind::Jit(_)))
            .map(|location| {
                if location.by_frame_pointer {
                    Unwinding::FramePointers
                } else {
                    Unwinding::Tables
                }
            })
            .reduce(|a, b| if a == b { a } else { Unwinding::Mixed })
    }

    /// The frames of a stack leaf first, inlined functions as frames of their own.
    pub fn frames(&self, stack: StackId) -> impl DoubleEndedIterator<Item = Frame<'_>> {
        let locations = self
            .stacks
            .get(stack.index())
            .map_or(&[][..], |stack| &stack.frames);
        locations
            .iter()
            .filter_map(|id| self.locations.get(id.index()))
            .flat_map(move |location| {
                let outermost = location.lines.len().saturating_sub(1);
                location.lines.iter().enumerate().map(move |(depth, line)| Frame {
                    name: self
                        .functions
                        .get(line.function.index())
                        .map_or("", |f| self.string(f.name)),
                    kind: location.kind,
                    inlined: depth < outermost,
                    location,
                    line,
                })
            })
    }
}

/// One frame as a person sees it.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Demangled name of the function.
    pub name: &'a str,
    /// What ran.
    pub kind: FrameKind,
    /// Whether the compiler had inlined it into the next frame.
    pub inlined: bool,
    /// Where.
    pub location: &'a Location,
    /// Position in the source.
    pub line: &'a Line,
}
