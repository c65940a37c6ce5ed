//! Makes a profile of rows that come in any order, from one file or several. No two rows of a table are equal, as
//! [`Profile`] promises.

use hashbrown::HashMap;

use profiler_common::Outcome;

use super::Problem;
use crate::profile::{
    Capture, FrameKind, Function, FunctionId, Kind, Language, Line, Location, LocationId, Mapping, MappingId,
    MappingKind, Process, ProcessId, Profile, Runtime, Sample, Stack, StackId, StringId, Unit,
    tables::Tables,
};

/// Most frames of a stack.
pub const MAX_DEPTH: usize = 8192;
/// Most frames of all distinct stacks together.
pub const MAX_FRAMES: u64 = 16 << 20;
/// Longest string in bytes; what is beyond is cut, with a `…`.
pub const MAX_STRING: usize = 64 << 10;

/// Most of what all samples count together, so that no sum of them is too large for those who add.
const MAX_TOTAL: u64 = 1 << 62;

/// Which sample of the profile is another one's twin.
type Identity = (Kind, ProcessId, u32, StringId, u32, StackId);

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Builder {
    tables: Tables,
    /// What the files say about themselves, if any has said something.
    capture: Option<Capture>,
    samples: Vec<Sample>,
    /// Where in them each is.
    twins: HashMap<Identity, usize>,
    frames: u64,
    total: u64,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            tables: Tables::new(Capture::default()),
            capture: None,
            samples: Vec::new(),
            twins: HashMap::new(),
            frames: 0,
            total: 0,
        }
    }
}

impl Builder {
    pub(super) fn string(&mut self, text: &str) -> StringId {
        let cut;
        let text = if text.len() > MAX_STRING {
            cut = format!(
                "{}…",
                text.get(..text.floor_char_boundary(MAX_STRING)).unwrap_or("")
            );
            &cut
        } else {
            text
        };
        self.tables.string(text)
    }

    pub(super) fn text(&self, id: StringId) -> &str {
        self.tables.profile().string(id)
    }

    pub(super) fn process(&mut self, process: Process) -> ProcessId {
        self.tables.process(process)
    }

    /// The pid of a process.
    pub(super) fn pid(&self, process: ProcessId) -> u32 {
        let processes = &self.tables.profile().processes;
        processes.get(process.index()).map_or(0, |process| process.pid)
    }

    /// The name of a process.
    pub(super) fn process_name(&self, process: ProcessId) -> String {
        let process = self.tables.profile().processes.get(process.index());
        process.map_or("", |process| self.text(process.name)).to_owned()
    }

    /// A process of which there is a name at most.
    pub(super) fn named_process(&mut self, name: &str) -> ProcessId {
        let name = self.string(name);
        self.process(Process {
            pid: 0,
            start: 0,
            name,
            executable: StringId(0),
            service: StringId(0),
            attributes: Vec::new(),
        })
    }

    pub(super) fn mapping(&mut self, mut mapping: Mapping) -> MappingId {
        mapping.start = mapping.start.min(u64::MAX - 1);
        mapping.limit = mapping.limit.max(mapping.start + 1);
        self.tables.mapping(mapping)
    }

    pub(super) fn function(&mut self, function: Function) -> FunctionId {
        self.tables.function(function)
    }

    /// A function of which there is a name alone.
    pub(super) fn named_function(&mut self, name: &str) -> FunctionId {
        let name = self.string(name);
        self.function(Function {
            name,
            system_name: name,
            file: StringId(0),
            start_line: 0,
        })
    }

    /// A location; whether it has a name is found out here, and it gets one if it has no line.
    pub(super) fn location(&mut self, mut location: Location) -> LocationId {
        if location.lines.is_empty() {
            let profile = self.tables.profile();
            let path = location
                .mapping
                .and_then(|mapping| profile.mappings.get(mapping.index()))
                .map_or("", |mapping| profile.string(mapping.path));
            let name = match path.rsplit('/').next().unwrap_or(path) {
                "" => "[unknown]".to_owned(),
                special if special.starts_with('[') => special.to_owned(),
                file => format!("[{file}]"),
            };
            location.lines.push(Line {
                function: self.named_function(&name),
                line: 0,
                column: 0,
            });
        }
        if let (FrameKind::Native(_), [line]) = (location.kind, location.lines.as_slice()) {
            let function = self.tables.profile().functions.get(line.function.index());
            location.is_named = function.is_some_and(|function| is_name(self.text(function.name)));
        }
        self.tables.location(location)
    }

    /// A location of which there is nothing but the names of functions, innermost first.
    pub(super) fn named_location(&mut self, kind: FrameKind, names: &[&str]) -> LocationId {
        let mapping = match kind {
            FrameKind::Kernel => Some((MappingKind::Kernel, "[kernel]")),
            FrameKind::Jit(_) => Some((MappingKind::Anonymous, "[anon]")),
            FrameKind::Native(_) | FrameKind::Marker => None,
        };
        let mapping = mapping.map(|(kind, path)| self.plain_mapping(kind, path));
        let lines = names
            .iter()
            .map(|name| Line {
                function: self.named_function(name),
                line: 0,
                column: 0,
            })
            .collect();
        self.location(Location {
            kind,
            mapping,
            address: 0,
            by_frame_pointer: false,
            is_named: true,
            lines,
        })
    }

    /// A mapping of which there is nothing but its name.
    pub(super) fn plain_mapping(&mut self, kind: MappingKind, path: &str) -> MappingId {
        let path = self.string(path);
        self.mapping(Mapping {
            kind,
            start: 0,
            limit: u64::MAX,
            file_offset: 0,
            path,
            build_id: Vec::new(),
            go_build_id: StringId(0),
            htlhash: None,
            remark: StringId(0),
        })
    }

    /// A stack. How it ended is said by its marker, where the file does not say it otherwise.
    pub(super) fn stack(&mut self, mut stack: Stack) -> Result<StackId, Problem> {
        let profile = self.tables.profile();
        if stack.outcome.is_complete()
            && let Some(root) = stack.frames.last()
            && let Some(Location {
                kind: FrameKind::Marker,
                lines,
                ..
            }) = profile.locations.get(root.index())
            && let Some(function) = lines
                .first()
                .and_then(|line| profile.functions.get(line.function.index()))
            && let Some(outcome) = outcome_of_marker(self.text(function.name))
        {
            stack.outcome = outcome;
        }
        if stack.frames.len() > MAX_DEPTH {
            return Err(Problem::Limit("frames in one stack", MAX_DEPTH as u64));
        }
        let (stacks, frames) = (profile.stacks.len(), stack.frames.len() as u64);
        let row = self.tables.stack(stack);
        if self.tables.profile().stacks.len() > stacks {
            self.frames += frames;
        }
        if self.frames > MAX_FRAMES {
            return Err(Problem::Limit("frames in all distinct stacks", MAX_FRAMES));
        }
        Ok(row)
    }

    /// Adds a sample, to its twin if there is one.
    pub(super) fn sample(&mut self, sample: Sample) -> Result<(), Problem> {
        self.total = self.total.saturating_add(sample.count);
        if self.total > MAX_TOTAL {
            return Err(Problem::Limit("samples", MAX_TOTAL));
        }
        let identity = (
            sample.kind,
            sample.process,
            sample.tid,
            sample.thread_name,
            sample.cpu,
            sample.stack,
        );
        let next = self.samples.len();
        let row = *self.twins.entry(identity).or_insert(next);
        match self.samples.get_mut(row) {
            Some(twin) => {
                twin.count = twin.count.saturating_add(sample.count);
                twin.weight = twin.weight.saturating_add(sample.weight);
                twin.timestamps.extend(sample.timestamps);
            }
            None => self.samples.push(sample),
        }
        Ok(())
    }

    /// Adds what a file says about itself.
    pub(super) fn capture(&mut self, capture: Capture) {
        match &mut self.capture {
            Some(known) => known.add(capture),
            None => self.capture = Some(capture),
        }
    }

    /// What all samples so far count.
    pub(super) const fn sample_count(&self) -> u64 {
        self.total
    }

    /// The profile; fails when its samples do not count the same.
    pub(super) fn finish(self) -> Result<Profile, [Kind; 2]> {
        let mut profile = self.tables.finish();
        profile.capture = self.capture.unwrap_or_default();
        profile.samples = self.samples;
        let mut kinds: Vec<Kind> = profile.samples.iter().map(|sample| sample.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        match *kinds.as_slice() {
            [] | [_] => {}
            // Samples of a known rate and others: what they have in common is that they are samples.
            [Kind::Cpu, Kind::Other(Unit::Events)] => {
                for sample in &mut profile.samples {
                    sample.kind = Kind::Other(Unit::Events);
                    sample.weight = sample.count;
                }
                profile.capture.frequency = 0;
                profile.capture.clock = "";
            }
            [one, other, ..] => return Err([one, other]),
        }
        let timed = profile
            .samples
            .iter()
            .all(|sample| u64::try_from(sample.timestamps.len()) == Ok(sample.count));
        for sample in &mut profile.samples {
            if timed {
                sample.timestamps.sort_unstable();
            } else {
                sample.timestamps = Vec::new();
            }
        }
        Ok(profile)
    }
}

/// Whether a name is that of a function, and not of what is known instead: `[libc.so.6]`, `server+0x1f3a`.
fn is_name(name: &str) -> bool {
    let is_bracketed = name.starts_with('[') && name.ends_with(']');
    let is_offset = name
        .rsplit_once("+0x")
        .is_some_and(|(_, offset)| !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_hexdigit()));
    !is_bracketed && !is_offset
}

/// What runs in a mapping of a name, by the conventions of perf, pprof and this project.
pub(super) fn mapping_kind(path: &str) -> MappingKind {
    let file = path.rsplit('/').next().unwrap_or(path);
    let is_module = path.starts_with('[') && path.ends_with(']');
    match path {
        "[vdso]" | "[vsyscall]" | "linux-vdso.so.1" => MappingKind::Vdso,
        "[anon]" | "//anon" | "[heap]" | "[stack]" | "[unknown]" | "[jit]" => MappingKind::Anonymous,
        // perf shows modules of the kernel as `[nf_tables]`.
        _ if is_module || path.starts_with("[kernel") || path.starts_with("[guest.kernel") => {
            MappingKind::Kernel
        }
        _ if file == "vmlinux" || file.ends_with(".ko") => MappingKind::Kernel,
        _ if file
            .strip_prefix("perf-")
            .is_some_and(|rest| rest.ends_with(".map"))
            || file.starts_with("jitted-") =>
        {
            MappingKind::Anonymous
        }
        _ => MappingKind::File,
    }
}

/// What a frame is, by the mapping it lies in.
pub(super) const fn frame_kind(mapping: MappingKind) -> FrameKind {
    match mapping {
        MappingKind::File | MappingKind::Vdso => FrameKind::Native(Language::Other),
        MappingKind::Kernel => FrameKind::Kernel,
        MappingKind::Anonymous => FrameKind::Jit(Runtime::Unknown),
    }
}

/// What a frame without a mapping is, by its name: one of the markers of this project, or code.
pub(super) fn unmapped_kind(name: &str) -> FrameKind {
    if outcome_of_marker(name).is_some() || name.starts_with("[too many distinct ") {
        FrameKind::Marker
    } else {
        FrameKind::Native(Language::Other)
    }
}

/// How the stack ended whose marker this is.
fn outcome_of_marker(name: &str) -> Option<Outcome> {
    let words = name.strip_prefix('[')?.strip_suffix(']')?;
    let mut outcomes = Outcome::ALL.into_iter().filter(|outcome| !outcome.is_complete());
    outcomes.find(|outcome| outcome.name().replace('_', " ") == words)
}
