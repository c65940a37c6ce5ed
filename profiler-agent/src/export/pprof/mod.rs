//! pprof: `profile.proto`, gzipped, as `go tool pprof`, Pyroscope, Parca and speedscope read it.
//!
//! | ours | theirs |
//! |---|---|
//! | events and weight of each kind | two sample types: `samples/count`, `cpu/nanoseconds` (shown first) |
//! | pid, thread id | labels `pid`, `tid` (numbers) |
//! | names of thread and process | labels `comm`, `process` |
//! | how an incomplete walk ended | label `stack`, e.g. `no_rule`; absent where nothing is missing |
//! | CPU, timestamps | no place: samples that differ in these alone are added up |
//! | target, host, losses by reason, files whose names are missing | comments |
//! | numbers that are not ours ([`Kind::Other`]) | one sample type |
//!
//! Rows keep their index, plus one; a profile gives the same bytes each time.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::{self, Write},
};

use flate2::{Compression, GzBuilder};
use prost::Message as _;

use crate::profile::{Kind, MappingId, Profile, Sample, ValueType};

pub mod message;

/// Writes a profile as gzipped `profile.proto`.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    // No time of making in the header: equal profiles are equal files.
    let mut gzip = GzBuilder::new().mtime(0).write(out, Compression::default());
    gzip.write_all(&encode(profile).encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

/// A profile as pprof's message.
pub fn encode(profile: &Profile) -> message::Profile {
    let mut strings = Strings::new(profile);
    let mut kinds: Vec<Kind> = profile.samples.iter().map(|sample| sample.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() {
        kinds.push(Kind::Cpu);
    }
    let sample_type = kinds
        .iter()
        .flat_map(|&kind| value_types(kind))
        .map(|value_type| strings.value_type(value_type))
        .collect();
    let weight = kinds.first().map(|kind| kind.weight_type());
    let capture = &profile.capture;
    let mut comment = vec![
        strings.own(&format!("target: {}", capture.target)),
        strings.own(&format!("host: {}", capture.host)),
    ];
    if capture.frequency != 0 {
        comment.push(strings.own(&format!("rate: {} Hz, {}", capture.frequency, capture.clock)));
    }
    for (reason, count) in &capture.lost {
        comment.push(strings.own(&format!("lost {}: {count}", reason.name())));
    }
    for (path, remark) in profile.remarks() {
        comment.push(strings.own(&format!("names of {path}: {remark}")));
    }
    let (mapping, mapping_ids) = mappings(profile, &mut strings);
    message::Profile {
        sample_type,
        sample: samples(profile, &kinds, &mut strings),
        mapping,
        location: profile
            .locations
            .iter()
            .zip(1..)
            .map(|(location, id)| message::Location {
                id,
                mapping_id: location
                    .mapping
                    .and_then(|mapping| mapping_ids.get(mapping.index()).copied())
                    .unwrap_or(0),
                address: location.address,
                line: location
                    .lines
                    .iter()
                    .map(|line| message::Line {
                        function_id: u64::from(line.function.0) + 1,
                        line: line.line.into(),
                        column: line.column.into(),
                    })
                    .collect(),
            })
            .collect(),
        function: profile
            .functions
            .iter()
            .zip(1..)
            .map(|(function, id)| message::Function {
                id,
                name: function.name.0.into(),
                system_name: function.system_name.0.into(),
                filename: function.file.0.into(),
                start_line: function.start_line.into(),
            })
            .collect(),
        time_nanos: signed(capture.start),
        duration_nanos: signed(capture.duration),
        period_type: weight
            .filter(|_| capture.frequency != 0)
            .map(|weight| strings.value_type(weight)),
        period: signed(capture.period()),
        comment,
        default_sample_type: weight.map_or(0, |weight| strings.own(weight.name)),
        string_table: strings.table,
    }
}

/// What is told of each sample of a kind: its events, and their weight where that is something else.
fn value_types(kind: Kind) -> impl Iterator<Item = ValueType> {
    let (events, weight) = (kind.event_type(), kind.weight_type());
    std::iter::once(events).chain((weight != events).then_some(weight))
}

/// The mappings, and the id of each of the profile's.
///
/// pprof takes the first for the program itself and calls the profile by it; so that of the process with most
/// samples comes first.
fn mappings(profile: &Profile, strings: &mut Strings) -> (Vec<message::Mapping>, Vec<u64>) {
    let mut events: BTreeMap<u32, u64> = BTreeMap::new();
    for sample in &profile.samples {
        let count = events.entry(sample.process.0).or_default();
        *count = count.saturating_add(sample.count);
    }
    let busiest = events
        .iter()
        .max_by_key(|(_, count)| **count)
        .map(|(process, _)| *process);
    let executable = busiest
        .and_then(|process| profile.processes.get(process as usize))
        .map(|process| process.executable);
    let main = executable
        .and_then(|path| profile.mappings.iter().position(|mapping| mapping.path == path))
        .unwrap_or(0);
    // Stable: all others stay in their order.
    let mut order: Vec<usize> = (0..profile.mappings.len()).collect();
    order.sort_by_key(|&index| index != main);

    let known = known(profile);
    let mut ids = vec![0; order.len()];
    let mut hex = String::new();
    let mappings = order
        .into_iter()
        .zip(1..)
        .filter_map(|(index, id)| {
            let mapping = profile.mappings.get(index)?;
            if let Some(slot) = ids.get_mut(index) {
                *slot = id;
            }
            hex.clear();
            for byte in &mapping.build_id {
                // Writing to a string cannot fail.
                let _ = write!(hex, "{byte:02x}");
            }
            let known = known.get(index).copied().unwrap_or_default();
            Some(message::Mapping {
                id,
                memory_start: mapping.start,
                memory_limit: mapping.limit,
                file_offset: mapping.file_offset,
                filename: mapping.path.0.into(),
                build_id: strings.own(&hex),
                // Always: even a location without a symbol has a name, and pprof would look for a better one
                // in whatever file has that path on the machine it runs on.
                has_functions: true,
                has_filenames: known.files,
                has_line_numbers: known.lines,
                has_inline_frames: known.inlined,
            })
        })
        .collect();
    (mappings, ids)
}

/// What is known about the code of a mapping.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    files: bool,
    lines: bool,
    inlined: bool,
}

fn known(profile: &Profile) -> Vec<Known> {
    let mut known = vec![Known::default(); profile.mappings.len()];
    for location in &profile.locations {
        let Some(known) = location
            .mapping
            .and_then(|MappingId(index)| known.get_mut(index as usize))
        else {
            continue;
        };
        known.inlined |= location.lines.len() > 1;
        for line in &location.lines {
            known.lines |= line.line != 0;
            let function = profile.functions.get(line.function.index());
            known.files |= function.is_some_and(|function| function.file.0 != 0);
        }
    }
    known
}

fn samples(profile: &Profile, kinds: &[Kind], strings: &mut Strings) -> Vec<message::Sample> {
    let mut merged: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for sample in &profile.samples {
        let Sample {
            kind,
            process,
            tid,
            thread_name,
            cpu: _,
            stack,
            count,
            weight,
            timestamps: _,
        } = sample;
        let values = merged
            .entry((*process, *tid, *thread_name, *stack))
            .or_insert_with(|| vec![0; kinds.iter().flat_map(|&kind| value_types(kind)).count()]);
        let before = kinds.iter().take_while(|other| *other != kind);
        let place = before.flat_map(|&kind| value_types(kind)).count();
        let told = value_types(*kind).count();
        for (value, more) in values.iter_mut().skip(place).take(told).zip([*count, *weight]) {
            *value = value.saturating_add(signed(more));
        }
    }
    let keys = ["pid", "tid", "process", "comm", "stack", "unwinding"].map(|key| strings.own(key));
    let [pid_key, tid_key, process_key, comm_key, stack_key, unwinding_key] = keys;
    merged
        .into_iter()
        .map(|((process, tid, thread_name, stack), value)| {
            let process = profile.processes.get(process.index());
            let unwinding = profile.unwinding(stack);
            let stack = profile.stacks.get(stack.index());
            let number = |key, num: u32| message::Label {
                key,
                str: 0,
                num: num.into(),
            };
            let text = |key, str: i64| message::Label { key, str, num: 0 };
            let mut label = Vec::new();
            // Zero is the idle task's, unless nobody has told.
            if process.is_some_and(|process| process.pid != 0) || tid != 0 {
                label.push(number(pid_key, process.map_or(0, |process| process.pid)));
                label.push(number(tid_key, tid));
            }
            // A label without a value is an error to some readers; an empty name is none.
            let names = [
                (process_key, process.map_or(0, |process| process.name.0.into())),
                (comm_key, thread_name.0.into()),
            ];
            label.extend(
                names
                    .iter()
                    .filter(|(_, str)| *str != 0)
                    .map(|&(key, str)| text(key, str)),
            );
            if let Some(stack) = stack.filter(|stack| !stack.outcome.is_complete()) {
                label.push(text(stack_key, strings.own(stack.outcome.name())));
            }
            if let Some(unwinding) = unwinding {
                label.push(text(unwinding_key, strings.own(unwinding.name())));
            }
            message::Sample {
                location_id: stack
                    .iter()
                    .flat_map(|stack| &stack.frames)
                    .map(|location| u64::from(location.0) + 1)
                    .collect(),
                value,
                label,
            }
        })
        .collect()
}

/// The profile's strings under their own numbers, and those that the format wants besides.
struct Strings {
    table: Vec<String>,
    /// Of the few strings that are ours. Never those of the profile: a second copy of `cpu` costs five bytes,
    /// a hash of every string of a profile milliseconds.
    own: HashMap<String, i64>,
}

impl Strings {
    fn new(profile: &Profile) -> Self {
        let mut table: Vec<String> = profile.strings.iter().map(|s| String::from(&**s)).collect();
        if table.is_empty() {
            table.push(String::new());
        }
        Self {
            table,
            own: HashMap::from([(String::new(), 0)]),
        }
    }

    fn own(&mut self, string: &str) -> i64 {
        if let Some(&index) = self.own.get(string) {
            return index;
        }
        let index = i64::try_from(self.table.len()).unwrap_or(0);
        self.table.push(string.to_owned());
        self.own.insert(string.to_owned(), index);
        index
    }

    fn value_type(&mut self, value_type: ValueType) -> message::ValueType {
        message::ValueType {
            r#type: self.own(value_type.name),
            unit: self.own(value_type.unit),
        }
    }
}

/// The format has no unsigned numbers; 2^63 nanoseconds are in the year 2262.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
