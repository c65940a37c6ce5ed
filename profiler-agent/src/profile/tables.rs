//! Tables of a profile under construction: no row twice. What they are made of are rows of files, or of other profiles.

use std::{
    borrow::Borrow,
    hash::{BuildHasher as _, Hash},
};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    Capture, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId, Process, ProcessId,
    Profile, Stack, StackId, StringId,
};

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Tables {
    profile: Profile,
    strings: Rows,
    processes: Rows,
    mappings: Rows,
    functions: Rows,
    locations: Rows,
    stacks: Rows,
    bytes: usize,
}

impl Tables {
    /// Empty ones of a profile that was taken so; its samples are for the caller to add.
    pub fn new(capture: Capture) -> Self {
        let mut tables = Self {
            profile: Profile {
                capture,
                ..Profile::default()
            },
            strings: Rows::default(),
            processes: Rows::default(),
            mappings: Rows::default(),
            functions: Rows::default(),
            locations: Rows::default(),
            stacks: Rows::default(),
            bytes: 0,
        };
        // Row 0 is the empty one.
        tables.string("");
        tables
    }

    /// The profile; nothing can be added any more.
    pub fn finish(mut self) -> Profile {
        self.profile.strings.shrink_to_fit();
        self.profile.locations.shrink_to_fit();
        self.profile.stacks.shrink_to_fit();
        self.profile
    }

    /// The profile so far.
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Bytes of the rows, about: without the few that find them.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Row of a string.
    pub fn string(&mut self, text: &str) -> StringId {
        match self.strings.find(&self.profile.strings, text) {
            Ok(row) => StringId(row),
            Err(hash) => {
                self.count(size_of::<Box<str>>() + text.len(), true);
                StringId(self.strings.put(&mut self.profile.strings, hash, text.into()))
            }
        }
    }

    /// Row of a process.
    pub fn process(&mut self, process: Process) -> ProcessId {
        let (row, is_new) = self.processes.intern(&mut self.profile.processes, process);
        self.count(size_of::<Process>(), is_new);
        ProcessId(row)
    }

    /// Row of a mapping.
    pub fn mapping(&mut self, mapping: Mapping) -> MappingId {
        let bytes = size_of::<Mapping>() + mapping.build_id.len();
        let (row, is_new) = self.mappings.intern(&mut self.profile.mappings, mapping);
        self.count(bytes, is_new);
        MappingId(row)
    }

    /// Row of a location.
    pub fn location(&mut self, location: Location) -> LocationId {
        let bytes = size_of::<Location>() + location.lines.len() * size_of::<Line>();
        let (row, is_new) = self.locations.intern(&mut self.profile.locations, location);
        self.count(bytes, is_new);
        LocationId(row)
    }

    /// Row of a function.
    pub fn function(&mut self, function: Function) -> FunctionId {
        let (row, is_new) = self.functions.intern(&mut self.profile.functions, function);
        self.count(size_of::<Function>(), is_new);
        FunctionId(row)
    }

    /// Row of a stack.
    pub fn stack(&mut self, stack: Stack) -> StackId {
        let bytes = size_of::<Stack>() + stack.frames.len() * size_of::<LocationId>();
        let (row, is_new) = self.stacks.intern(&mut self.profile.stacks, stack);
        self.count(bytes, is_new);
        StackId(row)
    }

    /// Notes the bytes of a row, if it was not there before.
    const fn count(&mut self, bytes: usize, is_new: bool) {
        if is_new {
            self.bytes += bytes;
        }
    }
}

/// Finds the rows of a table by what is in them, of which no second copy is kept: by their hashes, each with the number of its row.
#[derive(Debug, Default)]
struct Rows {
    numbers: HashTable<(u64, u32)>,
    hasher: DefaultHashBuilder,
}

impl Rows {
    /// Row of a value, if it is in the table; else what it is to be put there with.
    fn find<K: Hash + Eq + ?Sized, T: Borrow<K>>(&self, table: &[T], key: &K) -> Result<u32, u64> {
        let hash = self.hasher.hash_one(key);
        let is_same = |&(known, row): &(u64, u32)| {
            known == hash && table.get(row as usize).is_some_and(|known| known.borrow() == key)
        };
        let found = self.numbers.find(hash, is_same);
        found.map(|&(_, row)| row).ok_or(hash)
    }

    /// Puts a value into the table, which is not there.
    fn put<T>(&mut self, table: &mut Vec<T>, hash: u64, value: T) -> u32 {
        let row = u32::try_from(table.len()).unwrap_or(u32::MAX);
        table.push(value);
        self.numbers.insert_unique(hash, (hash, row), |&(hash, _)| hash);
        row
    }

    /// Row of a value, put into the table if it is not there, and whether it was put there.
    fn intern<T: Hash + Eq>(&mut self, table: &mut Vec<T>, value: T) -> (u32, bool) {
        match self.find(table, &value) {
            Ok(row) => (row, false),
            Err(hash) => (self.put(table, hash, value), true),
        }
    }
}

/// Brings rows of one profile into tables; each once, and only those that are asked for.
#[derive(Debug)]
pub struct Translation<'a> {
    from: &'a Profile,
    strings: Vec<Option<StringId>>,
    processes: Vec<Option<ProcessId>>,
    mappings: Vec<Option<MappingId>>,
    functions: Vec<Option<FunctionId>>,
    locations: Vec<Option<LocationId>>,
    stacks: Vec<Option<StackId>>,
}

impl<'a> Translation<'a> {
    /// Nothing is brought over yet.
    pub fn new(from: &'a Profile) -> Self {
        Self {
            from,
            strings: vec![None; from.strings.len()],
            processes: vec![None; from.processes.len()],
            mappings: vec![None; from.mappings.len()],
            functions: vec![None; from.functions.len()],
            locations: vec![None; from.locations.len()],
            stacks: vec![None; from.stacks.len()],
        }
    }

    /// A string.
    pub fn string(&mut self, to: &mut Tables, id: StringId) -> StringId {
        if let Some(&Some(known)) = self.strings.get(id.index()) {
            return known;
        }
        let new = to.string(self.from.string(id));
        note(&mut self.strings, id.index(), new);
        new
    }

    /// A process; the first row when there is no such.
    pub fn process(&mut self, to: &mut Tables, id: ProcessId) -> ProcessId {
        if let Some(&Some(known)) = self.processes.get(id.index()) {
            return known;
        }
        let Some(process) = self.from.processes.get(id.index()) else {
            return ProcessId::default();
        };
        let attributes = process.attributes.iter();
        let row = Process {
            pid: process.pid,
            start: process.start,
            name: self.string(to, process.name),
            executable: self.string(to, process.executable),
            service: self.string(to, process.service),
            attributes: attributes
                .map(|&(key, value)| (self.string(to, key), self.string(to, value)))
                .collect(),
        };
        let new = to.process(row);
        note(&mut self.processes, id.index(), new);
        new
    }

    /// A stack with its locations; the first row when there is no such.
    pub fn stack(&mut self, to: &mut Tables, id: StackId) -> StackId {
        if let Some(&Some(known)) = self.stacks.get(id.index()) {
            return known;
        }
        let Some(stack) = self.from.stacks.get(id.index()) else {
            return StackId::default();
        };
        let row = Stack {
            frames: stack
                .frames
                .iter()
                .map(|&frame| self.location(to, frame))
                .collect(),
            outcome: stack.outcome,
        };
        let new = to.stack(row);
        note(&mut self.stacks, id.index(), new);
        new
    }

    fn location(&mut self, to: &mut Tables, id: LocationId) -> LocationId {
        if let Some(&Some(known)) = self.locations.get(id.index()) {
            return known;
        }
        let Some(location) = self.from.locations.get(id.index()) else {
            return LocationId::default();
        };
        let lines = location.lines.iter().map(|&line| Line {
            function: self.function(to, line.function),
            ..line
        });
        let lines = lines.collect();
        let row = Location {
            mapping: location.mapping.and_then(|mapping| self.mapping(to, mapping)),
            lines,
            ..*location
        };
        let new = to.location(row);
        note(&mut self.locations, id.index(), new);
        new
    }

    fn function(&mut self, to: &mut Tables, id: FunctionId) -> FunctionId {
        if let Some(&Some(known)) = self.functions.get(id.index()) {
            return known;
        }
        let Some(function) = self.from.functions.get(id.index()) else {
            return FunctionId::default();
        };
        let row = Function {
            name: self.string(to, function.name),
            system_name: self.string(to, function.system_name),
            file: self.string(to, function.file),
            start_line: function.start_line,
        };
        let new = to.function(row);
        note(&mut self.functions, id.index(), new);
        new
    }

    fn mapping(&mut self, to: &mut Tables, id: MappingId) -> Option<MappingId> {
        if let Some(&Some(known)) = self.mappings.get(id.index()) {
            return Some(known);
        }
        let mapping = self.from.mappings.get(id.index())?;
        let row = Mapping {
            path: self.string(to, mapping.path),
            go_build_id: self.string(to, mapping.go_build_id),
            remark: self.string(to, mapping.remark),
            ..mapping.clone()
        };
        let new = to.mapping(row);
        note(&mut self.mappings, id.index(), new);
        Some(new)
    }
}

/// Notes where a row has come to.
fn note<T>(rows: &mut [Option<T>], row: usize, new: T) {
    if let Some(place) = rows.get_mut(row) {
        *place = Some(new);
    }
}
