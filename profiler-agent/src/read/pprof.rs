//! pprof's `profile.proto`, of this project, Go, jemalloc, perf_data_converter, Pyroscope and others.

use std::{borrow::Cow, collections::HashMap};

use profiler_common::Outcome;

use super::{
    Problem,
    builder::{Builder, frame_kind, mapping_kind, unmapped_kind},
    wire::{Message, Value},
};
use crate::{
    profile::{
        Capture, Function, FunctionId, Kind, Line, Location, LocationId, Mapping, MappingId, MappingKind,
        Process, Sample, Stack, StringId, Unit,
    },
    telemetry::Loss,
};

/// Most rows of all tables together.
const MAX_ROWS: usize = 4 << 20;

/// Whether every field is one of pprof's, and there are strings.
pub(super) fn is_pprof(bytes: &[u8]) -> bool {
    let mut has_strings = false;
    for field in Message::new(bytes).fields() {
        match field {
            Ok((6, Value::Bytes(_))) => has_strings = true,
            Ok((1..=5 | 11 | 13, Value::Bytes(_)) | (7..=10 | 12..=15, Value::Number(_))) => {}
            Ok(_) | Err(_) => return false,
        }
    }
    has_strings
}

/// The tables as they lie in the file.
#[derive(Default)]
struct Tables<'a> {
    types: Vec<(usize, usize)>,
    strings: Vec<Message<'a>>,
    mappings: Vec<Message<'a>>,
    functions: Vec<Message<'a>>,
    locations: Vec<Message<'a>>,
    samples: Vec<Message<'a>>,
    comments: Vec<u64>,
    period_type: (usize, usize),
    period: u64,
    default_type: usize,
    start: u64,
    duration: u64,
}

impl<'a> Tables<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Problem> {
        let mut tables = Self::default();
        let mut rows = 0_usize;
        for field in Message::new(bytes).fields() {
            let (number, value) = field?;
            match number {
                1 => tables.types.push(value_type(value.message())?),
                2 => tables.samples.push(value.message()),
                3 => tables.mappings.push(value.message()),
                4 => tables.locations.push(value.message()),
                5 => tables.functions.push(value.message()),
                6 => tables.strings.push(value.message()),
                9 => tables.start = value.number(),
                10 => tables.duration = value.number(),
                11 => tables.period_type = value_type(value.message())?,
                12 => tables.period = value.number(),
                13 => value.numbers(&mut tables.comments)?,
                14 => tables.default_type = index(value.number()),
                _ => {}
            }
            rows += 1;
            if rows > MAX_ROWS {
                return Err(Problem::Limit("rows", MAX_ROWS as u64));
            }
        }
        Ok(tables)
    }

    fn text(&self, row: usize) -> Cow<'a, str> {
        self.strings
            .get(row)
            .map_or(Cow::Borrowed(""), |text| text.text())
    }

    /// Which number of a sample is wanted: its kind, its place, and that of the weight.
    fn kind(&self, asked: Option<&str>) -> Result<(Kind, usize, usize), Problem> {
        let names: Vec<_> = self.types.iter().map(|(name, _)| self.text(*name)).collect();
        let place = match asked {
            Some(asked) => {
                names
                    .iter()
                    .position(|name| name == asked)
                    .ok_or_else(|| Problem::NoSampleType {
                        asked: asked.to_owned(),
                        known: names.iter().map(ToString::to_string).collect(),
                    })?
            }
            None => {
                let default = self.text(self.default_type);
                let default = names.iter().position(|name| !name.is_empty() && *name == default);
                default.unwrap_or(names.len().saturating_sub(1))
            }
        };
        let unit = |place: usize| {
            self.types
                .get(place)
                .map_or("".into(), |(_, unit)| self.text(*unit))
        };
        let find = |name: &str, of: &str| {
            (0..names.len()).find(|&place| names.get(place).is_some_and(|n| n == name) && unit(place) == of)
        };
        // Go's and ours: samples, and the time that they stand for.
        if let (Some(samples), Some(cpu)) = (find("samples", "count"), find("cpu", "nanoseconds"))
            && (place == samples || place == cpu)
        {
            return Ok((Kind::Cpu, samples, cpu));
        }
        let unit = match &*unit(place) {
            "nanoseconds" => Unit::Nanoseconds,
            "bytes" => Unit::Bytes,
            _ if names.get(place).is_some_and(|name| name == "samples") => Unit::Events,
            _ => Unit::Counts,
        };
        Ok((Kind::Other(unit), place, place))
    }
}

/// `ValueType { type = 1, unit = 2 }`.
fn value_type(message: Message<'_>) -> Result<(usize, usize), Problem> {
    let mut found = (0, 0);
    for field in message.fields() {
        match field? {
            (1, value) => found.0 = index(value.number()),
            (2, value) => found.1 = index(value.number()),
            _ => {}
        }
    }
    Ok(found)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

pub(super) fn parse(bytes: &[u8], builder: &mut Builder, asked: Option<&str>) -> Result<Capture, Problem> {
    let tables = Tables::read(bytes)?;
    let (kind, count, weight) = tables.kind(asked)?;
    let mut rows = Rows {
        strings: vec![None; tables.strings.len()],
        tables: &tables,
        mappings: HashMap::new(),
        functions: HashMap::new(),
        locations: HashMap::new(),
        program: String::new(),
    };
    for message in &tables.mappings {
        rows.mapping(builder, *message)?;
    }
    for message in &tables.functions {
        rows.function(builder, *message)?;
    }
    for message in &tables.locations {
        rows.location(builder, *message)?;
    }
    for message in &tables.samples {
        rows.sample(builder, *message, kind, (count, weight))?;
    }
    Ok(rows.capture())
}

struct Rows<'t, 'a> {
    tables: &'t Tables<'a>,
    strings: Vec<Option<StringId>>,
    mappings: HashMap<u64, (MappingId, MappingKind)>,
    functions: HashMap<u64, (FunctionId, StringId)>,
    locations: HashMap<u64, LocationId>,
    /// The file of the first mapping: that of the program.
    program: String,
}

impl Rows<'_, '_> {
    fn string(&mut self, builder: &mut Builder, row: u64) -> StringId {
        let row = index(row);
        match self.strings.get_mut(row) {
            None => StringId(0),
            Some(slot) => *slot.get_or_insert_with(|| builder.string(&self.tables.text(row))),
        }
    }

    fn mapping(&mut self, builder: &mut Builder, message: Message<'_>) -> Result<(), Problem> {
        let [mut id, mut start, mut limit, mut offset, mut path, mut build_id] = [0; 6];
        for field in message.fields() {
            let (number, value) = field?;
            let value = value.number();
            match number {
                1 => id = value,
                2 => start = value,
                3 => limit = value,
                4 => offset = value,
                5 => path = value,
                6 => build_id = value,
                _ => {}
            }
        }
        let build_id = super::unhex(&self.tables.text(index(build_id)));
        let path = self.string(builder, path);
        let name = builder.text(path).to_owned();
        if self.program.is_empty() && !name.starts_with('[') {
            name.rsplit('/')
                .next()
                .unwrap_or(&name)
                .clone_into(&mut self.program);
        }
        let kind = mapping_kind(&name);
        let mapping = builder.mapping(Mapping {
            kind,
            start,
            limit,
            file_offset: offset,
            path,
            build_id,
            go_build_id: StringId(0),
            htlhash: None,
            remark: StringId(0),
        });
        self.mappings.insert(id, (mapping, kind));
        Ok(())
    }

    fn function(&mut self, builder: &mut Builder, message: Message<'_>) -> Result<(), Problem> {
        let [mut id, mut name, mut system_name, mut file, mut start_line] = [0; 5];
        for field in message.fields() {
            let (number, value) = field?;
            let value = value.number();
            match number {
                1 => id = value,
                2 => name = value,
                3 => system_name = value,
                4 => file = value,
                5 => start_line = value,
                _ => {}
            }
        }
        let [name, system_name, file] = [name, system_name, file].map(|row| self.string(builder, row));
        let name = if name == StringId(0) { system_name } else { name };
        let function = builder.function(Function {
            name,
            system_name,
            file,
            start_line: small(start_line),
        });
        self.functions.insert(id, (function, name));
        Ok(())
    }

    fn location(&mut self, builder: &mut Builder, message: Message<'_>) -> Result<(), Problem> {
        let [mut id, mut mapping, mut address] = [0; 3];
        let (mut lines, mut outermost) = (Vec::new(), StringId(0));
        for field in message.fields() {
            match field? {
                (1, value) => id = value.number(),
                (2, value) => mapping = value.number(),
                (3, value) => address = value.number(),
                (4, value) => {
                    let [mut function, mut line, mut column] = [0; 3];
                    for field in value.message().fields() {
                        match field? {
                            (1, value) => function = value.number(),
                            (2, value) => line = value.number(),
                            (3, value) => column = value.number(),
                            _ => {}
                        }
                    }
                    let Some(&(function, name)) = self.functions.get(&function) else {
                        continue;
                    };
                    outermost = name;
                    lines.push(Line {
                        function,
                        line: small(line),
                        column: small(column),
                    });
                }
                _ => {}
            }
        }
        let mapping = self.mappings.get(&mapping).copied();
        let kind = match mapping {
            Some((_, kind)) => frame_kind(kind),
            None => unmapped_kind(builder.text(outermost)),
        };
        let location = builder.location(Location {
            kind,
            mapping: mapping.map(|(mapping, _)| mapping),
            address,
            by_frame_pointer: false,
            is_named: true,
            lines,
        });
        self.locations.insert(id, location);
        Ok(())
    }

    fn sample(
        &mut self,
        builder: &mut Builder,
        message: Message<'_>,
        kind: Kind,
        (count, weight): (usize, usize),
    ) -> Result<(), Problem> {
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        let mut process = Process {
            pid: 0,
            start: 0,
            name: StringId(0),
            executable: StringId(0),
            service: StringId(0),
            attributes: Vec::new(),
        };
        let (mut tid, mut thread_name, mut outcome) = (0, StringId(0), Outcome::Complete);
        for field in message.fields() {
            match field? {
                (1, value) => value.numbers(&mut ids)?,
                (2, value) => value.numbers(&mut values)?,
                (3, value) => {
                    let [mut key, mut text, mut number] = [0; 3];
                    for field in value.message().fields() {
                        match field? {
                            (1, value) => key = value.number(),
                            (2, value) => text = value.number(),
                            (3, value) => number = value.number(),
                            _ => {}
                        }
                    }
                    match &*self.tables.text(index(key)) {
                        "pid" => process.pid = small(number),
                        "tid" => tid = small(number),
                        "process" => process.name = self.string(builder, text),
                        "comm" | "thread" => thread_name = self.string(builder, text),
                        "stack" => {
                            let name = self.tables.text(index(text));
                            let mut known = Outcome::ALL.into_iter();
                            outcome = known.find(|outcome| outcome.name() == name).unwrap_or(outcome);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        let number = |place: usize| values.get(place).map_or(0, |value| value.cast_signed());
        let (count, weight) = (number(count), number(weight));
        let (Ok(count), Ok(weight)) = (u64::try_from(count), u64::try_from(weight)) else {
            return Err(Problem::Difference);
        };
        if count == 0 {
            return Ok(());
        }
        if process.is_unknown() && !self.program.is_empty() {
            process.name = builder.string(&self.program);
        }
        let frames = ids
            .iter()
            .filter_map(|id| self.locations.get(id).copied())
            .collect();
        let stack = builder.stack(Stack { frames, outcome })?;
        let process = builder.process(process);
        builder.sample(Sample {
            kind,
            process,
            tid,
            thread_name,
            cpu: 0,
            stack,
            count,
            weight,
            timestamps: Vec::new(),
        })
    }

    /// What the file says about itself; our own files say more, in comments.
    fn capture(&self) -> Capture {
        let tables = self.tables;
        let mut capture = Capture {
            target: self.program.clone(),
            start: tables.start,
            duration: tables.duration,
            ..Capture::default()
        };
        let (name, unit) = tables.period_type;
        if tables.text(name) == "cpu" && tables.text(unit) == "nanoseconds" {
            // To the nearest.
            let rate = (1_000_000_000 + tables.period / 2).checked_div(tables.period);
            capture.frequency = small(rate.unwrap_or(0));
        }
        for &comment in tables.comments.iter().take(100) {
            let comment = tables.text(index(comment));
            if let Some(target) = comment.strip_prefix("target: ") {
                target.clone_into(&mut capture.target);
            } else if let Some(host) = comment.strip_prefix("host: ") {
                host.clone_into(&mut capture.host);
            } else if let Some(rate) = comment.strip_prefix("rate: ") {
                capture.clock = ["cycles", "cpu-clock"]
                    .into_iter()
                    .find(|clock| rate.ends_with(clock))
                    .unwrap_or("");
            } else if let Some((reason, count)) = comment
                .strip_prefix("lost ")
                .and_then(|rest| rest.split_once(": "))
                && let Some(reason) = Loss::ALL.into_iter().find(|loss| loss.name() == reason)
            {
                capture.lost.insert(reason, count.parse().unwrap_or(0));
            }
        }
        capture
    }
}
