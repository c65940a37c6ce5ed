//! From the aggregator's tables to a profile that holds only what its samples refer to.

use std::hash::Hash;

use hashbrown::HashMap;
use profiler_common::record::COMM_LEN;
use slab::Slab;

use super::{
    Aggregator, Identity, Slice, StackEntry, Total,
    locations::{Locations, ObjectView},
};
use crate::{
    clock::Clock,
    process::Key,
    profile::{
        Capture, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId, Process, ProcessId,
        Profile, Sample, StackId, StringId,
    },
};

/// Makes a profile of a slice; the aggregator's tables of stacks and names stay for the next one.
pub(super) fn take(aggregator: &Aggregator, slice: Slice, mut capture: Capture, clock: &Clock) -> Profile {
    let with_timestamps = slice.timestamps < aggregator.limits.timestamps;
    // Samples that had to wait for unwind tables are older than the slice that they come in.
    if let Some((first, last)) = slice.span {
        let end = capture
            .start
            .saturating_add(capture.duration)
            .max(last.saturating_add(1));
        capture.start = capture.start.min(first);
        capture.duration = end.saturating_sub(capture.start);
    }
    let mut totals: Vec<(Identity, Total)> = slice.samples.into_iter().collect();
    // In the order in which things were first seen, whatever the hash table made of it.
    totals.sort_unstable_by_key(|(identity, total)| {
        (
            identity.process,
            identity.tid,
            identity.stack,
            identity.cpu,
            total.timestamps.first().copied(),
        )
    });

    let mut builder = Builder::new(aggregator, clock);
    let samples: Vec<Sample> = totals
        .into_iter()
        .map(|(identity, total)| {
            let Identity {
                kind,
                process,
                tid,
                thread_name,
                cpu,
                stack,
            } = identity;
            let Total {
                count,
                weight,
                mut timestamps,
            } = total;
            if !with_timestamps {
                timestamps.clear();
            }
            timestamps.sort_unstable();
            Sample {
                kind,
                process: builder.process(process),
                tid,
                thread_name: builder.comm(&thread_name),
                cpu,
                stack: builder.stack(stack),
                count,
                weight,
                timestamps,
            }
        })
        .collect();
    let samples = merged(samples);
    let Builder {
        strings,
        processes,
        mappings,
        functions,
        locations,
        stacks,
        ..
    } = builder;
    Profile {
        capture,
        strings: strings.rows,
        processes: processes.rows,
        mappings: mappings.rows,
        functions: functions.rows,
        locations: locations.rows,
        stacks: stacks.rows,
        samples,
    }
}

/// Samples of one identity as one. What was different while it was sampled can be the same in the end: generated code that got its name
/// in between.
fn merged(samples: Vec<Sample>) -> Vec<Sample> {
    let mut rows: Vec<Sample> = Vec::with_capacity(samples.len());
    let mut places = HashMap::new();
    for sample in samples {
        let identity = (
            sample.kind,
            sample.process,
            sample.tid,
            sample.thread_name,
            sample.cpu,
            sample.stack,
        );
        let place = *places.entry(identity).or_insert(rows.len());
        match rows.get_mut(place) {
            Some(row) => {
                row.count = row.count.saturating_add(sample.count);
                row.weight = row.weight.saturating_add(sample.weight);
                row.timestamps.extend(sample.timestamps);
                row.timestamps.sort_unstable();
            }
            None => rows.push(sample),
        }
    }
    rows
}

/// A table without equal rows.
#[derive(Debug)]
struct Table<T> {
    rows: Vec<T>,
    ids: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            ids: HashMap::new(),
        }
    }

    fn intern(&mut self, row: T) -> u32 {
        let rows = &mut self.rows;
        *self.ids.entry(row).or_insert_with_key(|row| {
            rows.push(row.clone());
            u32::try_from(rows.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

/// The tables of a profile under construction, and where the aggregator's rows went.
struct Builder<'a> {
    clock: &'a Clock,
    source: &'a Locations,
    source_stacks: &'a Slab<StackEntry>,
    source_processes: &'a HashMap<Key, super::ProcessInfo>,
    strings: Table<Box<str>>,
    processes: Table<Process>,
    mappings: Table<Mapping>,
    functions: Table<Function>,
    locations: Table<Location>,
    stacks: Table<crate::profile::Stack>,
    process_ids: HashMap<Key, ProcessId>,
    location_ids: HashMap<LocationId, LocationId>,
    stack_ids: HashMap<u32, StackId>,
}

impl<'a> Builder<'a> {
    fn new(aggregator: &'a Aggregator, clock: &'a Clock) -> Self {
        let mut strings = Table::new();
        strings.intern(Box::from(""));
        Self {
            clock,
            source: &aggregator.locations,
            source_stacks: &aggregator.stacks,
            source_processes: &aggregator.processes,
            strings,
            processes: Table::new(),
            mappings: Table::new(),
            functions: Table::new(),
            locations: Table::new(),
            stacks: Table::new(),
            process_ids: HashMap::new(),
            location_ids: HashMap::new(),
            stack_ids: HashMap::new(),
        }
    }

    fn string(&mut self, string: &str) -> StringId {
        StringId(match self.strings.ids.get(string) {
            Some(&id) => id,
            None => self.strings.intern(string.into()),
        })
    }

    fn comm(&mut self, comm: &[u8; COMM_LEN]) -> StringId {
        let name = comm.split(|&byte| byte == 0).next().unwrap_or_default();
        self.string(&String::from_utf8_lossy(name))
    }

    fn process(&mut self, key: Key) -> ProcessId {
        if let Some(&id) = self.process_ids.get(&key) {
            return id;
        }
        let process = match self.source_processes.get(&key) {
            Some(info) => {
                let start = if info.start_ticks == 0 {
                    0
                } else {
                    self.clock.wall_of_ticks(info.start_ticks)
                };
                let attributes = info.origin.attributes.iter();
                Process {
                    pid: info.pid,
                    start,
                    name: self.string(&info.name),
                    executable: self.string(&info.executable),
                    service: self.string(&info.origin.service),
                    attributes: attributes
                        .map(|(key, value)| (self.string(key), self.string(value)))
                        .collect(),
                }
            }
            None => Process {
                pid: 0,
                start: 0,
                name: StringId(0),
                executable: StringId(0),
                service: StringId(0),
                attributes: Vec::new(),
            },
        };
        let id = ProcessId(self.processes.intern(process));
        self.process_ids.insert(key, id);
        id
    }

    fn stack(&mut self, source: u32) -> StackId {
        if let Some(&id) = self.stack_ids.get(&source) {
            return id;
        }
        let Some(StackEntry { stack, .. }) = usize::try_from(source)
            .ok()
            .and_then(|source| self.source_stacks.get(source))
        else {
            return StackId(0);
        };
        let frames = stack.frames.iter().map(|&frame| self.location(frame)).collect();
        let id = StackId(self.stacks.intern(crate::profile::Stack {
            frames,
            outcome: stack.outcome,
        }));
        self.stack_ids.insert(source, id);
        id
    }

    fn location(&mut self, source: LocationId) -> LocationId {
        if let Some(&id) = self.location_ids.get(&source) {
            return id;
        }
        let Some(entry) = self.source.get(source) else {
            return LocationId(0);
        };
        let Some(ObjectView { frame, mapping }) = self.source.view(entry) else {
            return LocationId(0);
        };
        let mapping = mapping.map(|mapping| {
            let path = self.string(mapping.path);
            let go_build_id = self.string(mapping.go_build_id);
            let remark = self.string(mapping.remark);
            MappingId(self.mappings.intern(Mapping {
                kind: mapping.kind,
                start: mapping.start,
                limit: mapping.limit,
                file_offset: mapping.file_offset,
                path,
                build_id: mapping.build_id.to_vec(),
                go_build_id,
                htlhash: mapping.htlhash,
                remark,
            }))
        });
        let mut lines: Vec<Line> = entry
            .functions
            .iter()
            .map(|symbol| {
                let name = self.string(&symbol.name);
                let system_name = if symbol.system_name.is_empty() {
                    name
                } else {
                    self.string(&symbol.system_name)
                };
                let file = self.string(&symbol.file);
                let function = self.functions.intern(Function {
                    name,
                    system_name,
                    file,
                    start_line: 0,
                });
                Line {
                    function: FunctionId(function),
                    line: symbol.line,
                    column: symbol.column,
                }
            })
            .collect();
        if lines.is_empty() {
            let name = self.string(&self.source.fallback_name(entry));
            let function = self.functions.intern(Function {
                name,
                system_name: name,
                file: StringId(0),
                start_line: 0,
            });
            lines.push(Line {
                function: FunctionId(function),
                line: 0,
                column: 0,
            });
        }
        let id = LocationId(self.locations.intern(Location {
            kind: frame,
            mapping,
            address: entry.address,
            by_frame_pointer: entry.by_frame_pointer,
            is_named: !entry.functions.is_empty(),
            lines,
        }));
        self.location_ids.insert(source, id);
        id
    }
}
