//! OTLP Profiles: `ProfilesData`, which is an export request as well, `v1development` of opentelemetry-proto 1.10 and 1.11.

use std::{borrow::Cow, collections::HashMap};

use profiler_common::Outcome;

use super::{
    Problem,
    builder::{Builder, frame_kind, mapping_kind, unmapped_kind},
    wire::Message,
};
use crate::profile::{
    Capture, FrameKind, Function, FunctionId, Kind, Language, Line, Location, LocationId, Mapping, MappingId,
    MappingKind, Process, ProcessId, Runtime, Sample, Stack, StackId, StringId, Unit,
};

/// Most rows of all tables together.
const MAX_ROWS: usize = 4 << 20;
/// How attributes of a resource begin that are of the process, and not of its host.
const OF_A_PROCESS: [&str; 4] = ["container.", "k8s.", "service.", "deployment."];

/// Whether the bytes begin as `ProfilesData` does, and are no text.
pub(super) fn is_otlp(bytes: &[u8]) -> bool {
    // The tags of its fields. Row 0 of each table is empty, which is a length of zero.
    matches!(bytes.first(), Some(0x0a | 0x12)) && bytes.contains(&0)
}

pub(super) fn parse(bytes: &[u8], builder: &mut Builder) -> Result<Capture, Problem> {
    let mut resources = Vec::new();
    let mut tables: [Vec<Message<'_>>; 8] = Default::default();
    let mut rows = 0_usize;
    for field in Message::new(bytes).fields() {
        match field? {
            (1, value) => resources.push(value.message()),
            (2, value) => {
                for field in value.message().fields() {
                    let (number, value) = field?;
                    rows += 1;
                    if rows > MAX_ROWS {
                        return Err(Problem::Limit("rows", MAX_ROWS as u64));
                    }
                    if let Some(table) = usize::try_from(number)
                        .ok()
                        .and_then(|number| tables.get_mut(number))
                    {
                        table.push(value.message());
                    }
                }
            }
            _ => {}
        }
    }
    let [_, mappings, locations, functions, _, strings, attributes, stacks] = tables;
    let mut reader = Reader {
        ids: vec![None; strings.len()],
        strings,
        attributes: Vec::new(),
        mappings: Vec::new(),
        functions: Vec::new(),
        locations: Vec::new(),
        stacks: Vec::new(),
        capture: Capture::default(),
        processes: HashMap::new(),
    };
    for message in attributes {
        let attribute = reader.attribute(message)?;
        reader.attributes.push(attribute);
    }
    for message in mappings {
        let mapping = reader.mapping(builder, message)?;
        reader.mappings.push(mapping);
    }
    for message in functions {
        let function = reader.function(builder, message)?;
        reader.functions.push(function);
    }
    for message in locations {
        let location = reader.location(builder, message)?;
        reader.locations.push(location);
    }
    for message in stacks {
        let stack = reader.stack(message)?;
        reader.stacks.push(stack);
    }
    for resource in resources {
        reader.resource(builder, resource)?;
    }
    Ok(reader.finish())
}

/// What an attribute says.
#[derive(Debug, Clone, Default)]
struct Attribute<'a> {
    key: Cow<'a, str>,
    text: Cow<'a, str>,
    number: u64,
}

struct Reader<'a> {
    strings: Vec<Message<'a>>,
    ids: Vec<Option<StringId>>,
    attributes: Vec<Attribute<'a>>,
    mappings: Vec<Option<(MappingId, MappingKind)>>,
    functions: Vec<Option<(FunctionId, StringId)>>,
    locations: Vec<LocationId>,
    stacks: Vec<Vec<u64>>,
    capture: Capture,
    processes: HashMap<ProcessId, u64>,
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

impl<'a> Reader<'a> {
    fn text(&self, row: u64) -> Cow<'a, str> {
        self.strings
            .get(index(row))
            .map_or(Cow::Borrowed(""), |text| text.text())
    }

    fn string(&mut self, builder: &mut Builder, row: u64) -> StringId {
        let text = self.text(row);
        match self.ids.get_mut(index(row)) {
            None => StringId(0),
            Some(slot) => *slot.get_or_insert_with(|| builder.string(&text)),
        }
    }

    /// `AnyValue { string_value = 1, bool_value = 2, int_value = 3, string_value_strindex = 8 }`.
    fn value(&self, message: Message<'a>, attribute: &mut Attribute<'a>) -> Result<(), Problem> {
        for field in message.fields() {
            match field? {
                (1, value) => attribute.text = value.message().text(),
                (2 | 3, value) => attribute.number = value.number(),
                (8, value) => attribute.text = self.text(value.number()),
                _ => {}
            }
        }
        Ok(())
    }

    /// `KeyValueAndUnit { key_strindex = 1, value = 2 }`.
    fn attribute(&self, message: Message<'a>) -> Result<Attribute<'a>, Problem> {
        let mut attribute = Attribute::default();
        for field in message.fields() {
            match field? {
                (1, value) => attribute.key = self.text(value.number()),
                (2, value) => self.value(value.message(), &mut attribute)?,
                _ => {}
            }
        }
        Ok(attribute)
    }

    /// The attributes of a list of their rows.
    fn list(&self, rows: &[u64]) -> impl Iterator<Item = &Attribute<'a>> {
        rows.iter().filter_map(|&row| self.attributes.get(index(row)))
    }

    /// `Mapping { memory_start = 1, memory_limit = 2, file_offset = 3, filename_strindex = 4, attribute_indices = 5 }`; the
    /// first row stands for none.
    fn mapping(
        &mut self,
        builder: &mut Builder,
        message: Message<'a>,
    ) -> Result<Option<(MappingId, MappingKind)>, Problem> {
        if message.bytes().is_empty() {
            return Ok(None);
        }
        let [mut start, mut limit, mut offset, mut path] = [0; 4];
        let mut attributes = Vec::new();
        for field in message.fields() {
            match field? {
                (1, value) => start = value.number(),
                (2, value) => limit = value.number(),
                (3, value) => offset = value.number(),
                (4, value) => path = value.number(),
                (5, value) => value.numbers(&mut attributes)?,
                _ => {}
            }
        }
        let [mut build_id, mut go_build_id, mut htlhash, mut remark] = [""; 4].map(Cow::Borrowed);
        for attribute in self.list(&attributes) {
            match &*attribute.key {
                "process.executable.build_id.gnu" => build_id = attribute.text.clone(),
                "process.executable.build_id.go" => go_build_id = attribute.text.clone(),
                "process.executable.build_id.htlhash" => htlhash = attribute.text.clone(),
                "profile.mapping.remark" => remark = attribute.text.clone(),
                _ => {}
            }
        }
        let path = self.string(builder, path);
        let kind = mapping_kind(builder.text(path));
        let mapping = Mapping {
            kind,
            start,
            limit,
            file_offset: offset,
            path,
            build_id: super::unhex(&build_id),
            go_build_id: builder.string(&go_build_id),
            htlhash: super::unhex(&htlhash).try_into().ok(),
            remark: builder.string(&remark),
        };
        Ok(Some((builder.mapping(mapping), kind)))
    }

    /// `Function { name_strindex = 1, system_name_strindex = 2, filename_strindex = 3, start_line = 4 }`.
    fn function(
        &mut self,
        builder: &mut Builder,
        message: Message<'a>,
    ) -> Result<Option<(FunctionId, StringId)>, Problem> {
        if message.bytes().is_empty() {
            return Ok(None);
        }
        let [mut name, mut system_name, mut file, mut start_line] = [0; 4];
        for field in message.fields() {
            let (number, value) = field?;
            let value = value.number();
            match number {
                1 => name = value,
                2 => system_name = value,
                3 => file = value,
                4 => start_line = value,
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
        Ok(Some((function, name)))
    }

    /// `Location { mapping_index = 1, address = 2, lines = 3, attribute_indices = 4 }`.
    fn location(&mut self, builder: &mut Builder, message: Message<'a>) -> Result<LocationId, Problem> {
        let [mut mapping, mut address] = [0; 2];
        let (mut lines, mut attributes, mut outermost) = (Vec::new(), Vec::new(), StringId(0));
        for field in message.fields() {
            match field? {
                (1, value) => mapping = value.number(),
                (2, value) => address = value.number(),
                (3, value) => {
                    // `Line { function_index = 1, line = 2, column = 3 }`
                    let [mut function, mut line, mut column] = [0; 3];
                    for field in value.message().fields() {
                        match field? {
                            (1, value) => function = value.number(),
                            (2, value) => line = value.number(),
                            (3, value) => column = value.number(),
                            _ => {}
                        }
                    }
                    if let Some(&Some((function, name))) = self.functions.get(index(function)) {
                        outermost = name;
                        lines.push(Line {
                            function,
                            line: small(line),
                            column: small(column),
                        });
                    }
                }
                (4, value) => value.numbers(&mut attributes)?,
                _ => {}
            }
        }
        let mapping = self.mappings.get(index(mapping)).copied().flatten();
        let mut kind = match mapping {
            Some((_, kind)) => frame_kind(kind),
            None => unmapped_kind(builder.text(outermost)),
        };
        let (mut by_frame_pointer, mut is_generated) = (false, false);
        for attribute in self.list(&attributes) {
            match (&*attribute.key, &*attribute.text) {
                ("profile.frame.type", word) => kind = frame_type(word).unwrap_or(kind),
                ("profile.frame.unwinding", "frame_pointer") => by_frame_pointer = true,
                ("profile.frame.code", "generated") => is_generated = true,
                _ => {}
            }
        }
        if is_generated && matches!(kind, FrameKind::Native(_)) {
            kind = FrameKind::Jit(Runtime::Unknown);
        }
        // The wire has no row for memory without a file.
        let mapping = match (mapping, kind) {
            (Some((mapping, _)), _) => Some(mapping),
            (None, FrameKind::Kernel) => Some(builder.plain_mapping(MappingKind::Kernel, "[kernel]")),
            (None, FrameKind::Jit(_)) => Some(builder.plain_mapping(MappingKind::Anonymous, "[anon]")),
            (None, FrameKind::Native(_) | FrameKind::Marker) => None,
        };
        Ok(builder.location(Location {
            kind,
            mapping,
            address,
            by_frame_pointer,
            is_named: true,
            lines,
        }))
    }

    /// `Stack { location_indices = 1 }`.
    fn stack(&self, message: Message<'a>) -> Result<Vec<u64>, Problem> {
        let mut frames = Vec::new();
        for field in message.fields() {
            if let (1, value) = field? {
                value.numbers(&mut frames)?;
            }
        }
        Ok(frames)
    }

    /// `ResourceProfiles { resource = 1, scope_profiles = 2 }`.
    fn resource(&mut self, builder: &mut Builder, message: Message<'a>) -> Result<(), Problem> {
        let mut process = Process {
            pid: 0,
            start: 0,
            name: StringId(0),
            executable: StringId(0),
            service: StringId(0),
            attributes: Vec::new(),
        };
        let (mut title, mut executable, mut service) =
            (Cow::Borrowed(""), Cow::Borrowed(""), Cow::Borrowed(""));
        let mut scopes = Vec::new();
        for field in message.fields() {
            match field? {
                (1, value) => {
                    for field in value.message().fields() {
                        let (1, value) = field? else { continue };
                        // `KeyValue { key = 1, value = 2, key_strindex = 3 }`
                        let mut attribute = Attribute::default();
                        for field in value.message().fields() {
                            match field? {
                                (1, value) => attribute.key = value.message().text(),
                                (2, value) => self.value(value.message(), &mut attribute)?,
                                (3, value) => attribute.key = self.text(value.number()),
                                _ => {}
                            }
                        }
                        let Attribute { key, text, number } = attribute;
                        match &*key {
                            "process.pid" => process.pid = small(number),
                            "process.title" => title = text,
                            "process.executable.name" => executable = text,
                            "process.executable.path" => process.executable = builder.string(&text),
                            "process.creation.time" => process.start = time(&text),
                            "service.name" => service = text,
                            "host.name" => self.capture.host = text.into_owned(),
                            _ if OF_A_PROCESS.iter().any(|begin| key.starts_with(begin)) => {
                                let attribute = (builder.string(&key), builder.string(&text));
                                if !process.attributes.iter().any(|(known, _)| *known == attribute.0) {
                                    process.attributes.push(attribute);
                                }
                            }
                            _ => {}
                        }
                    }
                }
                (2, value) => scopes.push(value.message()),
                _ => {}
            }
        }
        if !service.starts_with("unknown_service") {
            process.service = builder.string(&service);
        }
        // `unknown_service` says that nobody knows.
        let service = service
            .strip_prefix("unknown_service")
            .map_or(&*service, |rest| rest.trim_start_matches(':'));
        let name = [&*title, &*executable, service]
            .into_iter()
            .find(|name| !name.is_empty());
        process.name = builder.string(name.unwrap_or(""));
        let process = builder.process(process);
        for scope in scopes {
            // `ScopeProfiles { profiles = 2 }`
            for field in scope.fields() {
                if let (2, value) = field? {
                    self.profile(builder, process, value.message())?;
                }
            }
        }
        Ok(())
    }

    /// `Profile { sample_type = 1, samples = 2, time_unix_nano = 3, duration_nano = 4, period_type = 5, period = 6 }`.
    fn profile(
        &mut self,
        builder: &mut Builder,
        process: ProcessId,
        message: Message<'a>,
    ) -> Result<(), Problem> {
        let [mut start, mut duration, mut period] = [0_u64; 3];
        let (mut sample_type, mut period_type) = ((0, 0), (0, 0));
        let mut samples = Vec::new();
        for field in message.fields() {
            match field? {
                (1, value) => sample_type = value_type(value.message())?,
                (2, value) => samples.push(value.message()),
                (3, value) => start = value.number(),
                (4, value) => duration = value.number(),
                (5, value) => period_type = value_type(value.message())?,
                (6, value) => period = value.number(),
                _ => {}
            }
        }
        let pair = |(name, unit)| (self.text(name), self.text(unit));
        let (sampled, periodic) = (pair(sample_type), pair(period_type));
        let is =
            |pair: &(Cow<'_, str>, Cow<'_, str>), name: &str, unit: &str| pair.0 == name && pair.1 == unit;
        let kind = if is(&sampled, "samples", "count") && is(&periodic, "cpu", "nanoseconds") && period > 0 {
            Kind::Cpu
        } else {
            Kind::Other(match &*sampled.1 {
                "nanoseconds" | "ns" => Unit::Nanoseconds,
                "bytes" | "By" => Unit::Bytes,
                _ if sampled.0 == "samples" => Unit::Events,
                _ => Unit::Counts,
            })
        };
        let frequency = match kind {
            Kind::Cpu => small((1_000_000_000 + period / 2).checked_div(period).unwrap_or(0)),
            Kind::Other(_) => 0,
        };
        let capture = &mut self.capture;
        let is_first = self.processes.is_empty();
        let end = start.saturating_add(duration);
        let last = capture.start.saturating_add(capture.duration).max(end);
        capture.start = if is_first { start } else { capture.start.min(start) };
        capture.duration = last.saturating_sub(capture.start);
        capture.frequency = if is_first || capture.frequency == frequency {
            frequency
        } else {
            0
        };
        let mut total = 0_u64;
        for sample in samples {
            total = total.saturating_add(self.sample(builder, process, kind, period, sample)?);
        }
        let events = self.processes.entry(process).or_default();
        *events = events.saturating_add(total);
        if self.processes.len() == 1 {
            let pid = builder.pid(process);
            let name = builder.process_name(process);
            self.capture.target = if pid == 0 { name } else { format!("{name} ({pid})") };
        } else {
            self.capture.target.clear();
        }
        Ok(())
    }

    /// `Sample { stack_index = 1, attribute_indices = 2, values = 4, timestamps_unix_nano = 5 }`; returns its events.
    fn sample(
        &self,
        builder: &mut Builder,
        process: ProcessId,
        kind: Kind,
        period: u64,
        message: Message<'a>,
    ) -> Result<u64, Problem> {
        let mut stack = 0;
        let (mut attributes, mut values, mut timestamps) = (Vec::new(), Vec::new(), Vec::new());
        for field in message.fields() {
            match field? {
                (1, value) => stack = value.number(),
                (2, value) => value.numbers(&mut attributes)?,
                (4, value) => value.numbers(&mut values)?,
                (5, value) => value.fixed_numbers(&mut timestamps),
                _ => {}
            }
        }
        let mut count = 0_u64;
        for value in &values {
            let value = u64::try_from(value.cast_signed()).map_err(|_| Problem::Difference)?;
            count = count.saturating_add(value);
        }
        if values.is_empty() {
            count = u64::try_from(timestamps.len()).unwrap_or(u64::MAX);
        }
        if count == 0 {
            return Ok(0);
        }
        let (mut tid, mut thread_name, mut cpu, mut outcome) = (0, StringId(0), 0, Outcome::Complete);
        for attribute in self.list(&attributes) {
            match &*attribute.key {
                "thread.id" => tid = small(attribute.number),
                "thread.name" => thread_name = builder.string(&attribute.text),
                "cpu.logical_number" => cpu = small(attribute.number),
                "profile.stack.outcome" => {
                    let mut known = Outcome::ALL.into_iter();
                    outcome = known
                        .find(|outcome| outcome.name() == attribute.text)
                        .unwrap_or(outcome);
                }
                _ => {}
            }
        }
        let stack = self.stack_id(builder, stack, outcome)?;
        builder.sample(Sample {
            kind,
            process,
            tid,
            thread_name,
            cpu,
            stack,
            count,
            weight: match kind {
                Kind::Cpu => count.saturating_mul(period),
                Kind::Other(_) => count,
            },
            timestamps,
        })?;
        Ok(count)
    }

    fn stack_id(&self, builder: &mut Builder, row: u64, outcome: Outcome) -> Result<StackId, Problem> {
        let rows = self.stacks.get(index(row)).map_or(&[][..], Vec::as_slice);
        let frames = rows
            .iter()
            .filter_map(|&row| self.locations.get(index(row)).copied());
        builder.stack(Stack {
            frames: frames.collect(),
            outcome,
        })
    }

    fn finish(self) -> Capture {
        self.capture
    }
}

/// `ValueType { type_strindex = 1, unit_strindex = 2 }`.
fn value_type(message: Message<'_>) -> Result<(u64, u64), Problem> {
    let mut found = (0, 0);
    for field in message.fields() {
        match field? {
            (1, value) => found.0 = value.number(),
            (2, value) => found.1 = value.number(),
            _ => {}
        }
    }
    Ok(found)
}

/// The words of OpenTelemetry's conventions.
fn frame_type(word: &str) -> Option<FrameKind> {
    Some(match word {
        "native" | "rust" => FrameKind::Native(Language::Other),
        "go" => FrameKind::Native(Language::Go),
        "kernel" => FrameKind::Kernel,
        "abort-marker" => FrameKind::Marker,
        "beam" => FrameKind::Jit(Runtime::Beam),
        "cpython" => FrameKind::Jit(Runtime::Cpython),
        "dotnet" => FrameKind::Jit(Runtime::Dotnet),
        "jvm" => FrameKind::Jit(Runtime::Jvm),
        "php" | "phpjit" => FrameKind::Jit(Runtime::Php),
        "ruby" => FrameKind::Jit(Runtime::Ruby),
        "v8js" => FrameKind::Jit(Runtime::V8),
        _ => return None,
    })
}

/// Nanoseconds since the Unix epoch of an RFC 3339 time; 0 where it is none.
fn time(text: &str) -> u64 {
    let time = humantime::parse_rfc3339(text).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
