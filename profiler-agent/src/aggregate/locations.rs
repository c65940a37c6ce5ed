//! Locations: each address of each object once, and its names when they come.

use std::sync::Arc;

use hashbrown::HashMap;
use profiler_common::Outcome;
use slab::Slab;

use super::UserFrame;
use crate::{
    jit::{Function, Jits},
    process::{File, Key, Place, Segment, vdso},
    profile::{FrameKind, Language, LocationId, MappingKind, Runtime},
    symbols::{Object, Request, Response, Symbol, named},
};

/// Most addresses of one request: an answer comes within milliseconds.
const MAX_REQUEST: usize = 4096;

/// Most locations that are kept, some 100 bytes each with a name. Code is smaller than that; what makes more is a JIT, or wants to.
pub(super) const MAX_LOCATIONS: usize = 1_000_000;

/// Most bytes of names that are kept; 300,000 locations of a large C++ program. Beyond, locations are shown by file and offset.
const MAX_NAME_BYTES: usize = 96 << 20;

/// A frame that is none of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Marker {
    /// The stack ends early.
    Incomplete(Outcome),
    /// The budget of distinct stacks is used up.
    StackBudget,
    /// The budget of distinct locations is used up.
    LocationBudget,
    /// The budget of distinct samples of a slice is used up.
    SampleBudget,
}

/// What an address belongs to: the row of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ObjectKey {
    Kernel,
    Vdso,
    File(u32, Segment),
    Unreadable {
        path: Arc<str>,
        build_id: Vec<u8>,
        offsets: (u64, u64),
    },
    Anonymous(Key, u64, u64, Runtime),
    /// Outside every mapping of this process.
    Nowhere(Key),
    Marker(Marker),
}

/// An object with its addresses that have no answer yet.
#[derive(Debug)]
pub(super) struct ObjectEntry {
    /// Under which names are asked for; never used again, unlike its place here. The symbolizer knows files by it.
    number: u32,
    key: ObjectKey,
    file: Option<Arc<File>>,
    /// Not asked for yet.
    due: Vec<LocationId>,
    /// Asked for, in the order of the requests.
    asked: Vec<LocationId>,
    /// What is wrong with its names, once it has been told.
    remark: Option<Box<str>>,
    /// Locations in it.
    locations: u32,
}

/// One address of one object.
#[derive(Debug)]
pub(super) struct LocationEntry {
    pub(super) object: u32,
    pub(super) address: u64,
    /// Whether its caller was looked for by frame pointer.
    pub(super) by_frame_pointer: bool,
    /// Innermost inlined function first. Empty: no name, or none yet.
    pub(super) functions: Box<[Symbol]>,
    /// Of its functions.
    pub(super) language: Language,
    /// Where its function begins, as far as that is known of one without a name.
    pub(super) function_start: Option<u64>,
    /// Whether its names are to be asked for, or have been.
    is_awaited: bool,
    /// The slice in which it was met first.
    born: u32,
    /// The last slice in which it was part of a stack.
    used: u32,
}

/// What the cache of locations counts about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocationCounts {
    /// Addresses looked up.
    pub looked_up: u64,
    /// Those that were known, with their names or the question for them.
    pub known: u64,
    /// Locations whose names were beyond the budget.
    pub over_budget: u64,
}

/// What tells locations apart: the object, the address, whether its caller was looked for by frame pointer, and the number of the function that
/// was generated there, since others may be later; 0 for all other code.
type LocationKey = (u32, u64, bool, u32);

#[derive(Debug, Default)]
pub(super) struct Locations {
    objects: Slab<ObjectEntry>,
    object_ids: HashMap<ObjectKey, u32>,
    /// Places of the objects by their numbers.
    numbers: HashMap<u32, usize>,
    next_number: u32,
    locations: Slab<LocationEntry>,
    ids: HashMap<LocationKey, LocationId>,
    /// Bytes of names.
    name_bytes: usize,
    /// How it went so far.
    counts: LocationCounts,
    /// Locations in generated code that had no name when they were sampled.
    nameless: Vec<(Key, LocationId)>,
    /// Locations without an answer.
    unanswered: usize,
    /// Those among them that a closed slice waits for: they were met in it, or before.
    unanswered_before: usize,
    /// Number of the slice that is open.
    slice: u32,
}

/// A mapping row as outputs show it.
pub(super) struct ObjectView<'a> {
    pub(super) frame: FrameKind,
    /// `None` for what lies in no mapping.
    pub(super) mapping: Option<MappingView<'a>>,
}

pub(super) struct MappingView<'a> {
    pub(super) kind: MappingKind,
    pub(super) start: u64,
    pub(super) limit: u64,
    pub(super) file_offset: u64,
    pub(super) path: &'a str,
    pub(super) build_id: &'a [u8],
    pub(super) go_build_id: &'a str,
    pub(super) htlhash: Option<[u8; 16]>,
    pub(super) remark: &'a str,
}

/// What is known about code that was generated.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Generated<'a> {
    /// By what.
    pub(super) runtime: Runtime,
    /// The function at the address, at the time of the sample.
    pub(super) function: Option<&'a Function>,
}

/// Lowest address of the kernel's half on x86_64 and aarch64.
const KERNEL_START: u64 = 0xffff_0000_0000_0000;

impl Locations {
    pub(super) fn prepare_kernel(&mut self) -> Request {
        let object = self.object(ObjectKey::Kernel, None);
        let object = usize::try_from(object)
            .ok()
            .and_then(|object| self.objects.get(object));
        Request {
            id: object.map_or(u32::MAX, |object| object.number),
            object: Object::Kernel,
            addresses: Vec::new(),
        }
    }

    pub(super) fn kernel(&mut self, address: u64) -> LocationId {
        let object = self.object(ObjectKey::Kernel, None);
        self.location((object, address, false, 0), true)
    }

    /// `generated` is of places that are not in a file.
    pub(super) fn user(
        &mut self,
        process: Key,
        place: Place,
        generated: Generated<'_>,
        frame: UserFrame,
    ) -> LocationId {
        let UserFrame {
            address,
            by_frame_pointer,
        } = frame;
        match place {
            Place::File(file, segment, address) => {
                let object = self.object(ObjectKey::File(file.id, segment), Some(file));
                self.location((object, address, by_frame_pointer, 0), true)
            }
            Place::Unreadable {
                path,
                build_id,
                offsets,
                offset,
            } => {
                let object = self.object(
                    ObjectKey::Unreadable {
                        path,
                        build_id,
                        offsets,
                    },
                    None,
                );
                self.location((object, offset, by_frame_pointer, 0), false)
            }
            Place::Vdso(offset) => {
                let object = self.object(ObjectKey::Vdso, None);
                self.location((object, offset, by_frame_pointer, 0), true)
            }
            Place::Anonymous(start, end) => {
                let Generated { runtime, function } = generated;
                let object = self.object(ObjectKey::Anonymous(process, start, end, runtime), None);
                let serial = function.map_or(0, |function| function.serial);
                // Where a new one comes to stand: places of forgotten ones are used again.
                let next = self.locations.vacant_key();
                let id = self.location((object, address, by_frame_pointer, serial), false);
                // The budget may have answered with a row of its own.
                if let Some(entry) = self.locations.get_mut(id.index())
                    && id.index() == next
                    && entry.object == object
                {
                    match function {
                        Some(function) => keep(
                            entry,
                            vec![named(&function.name)],
                            &mut self.name_bytes,
                            &mut self.counts,
                        ),
                        None => self.nameless.push((process, id)),
                    }
                }
                id
            }
            Place::Nowhere => {
                let object = self.object(ObjectKey::Nowhere(process), None);
                self.location((object, address, by_frame_pointer, 0), false)
            }
        }
    }

    pub(super) fn marker(&mut self, marker: Marker) -> LocationId {
        let object = self.object(ObjectKey::Marker(marker), None);
        self.location((object, 0, false, 0), false)
    }

    /// Names what was generated and not written about before it was sampled.
    pub(super) fn name_late(&mut self, jits: &Jits) {
        let Self {
            locations,
            name_bytes,
            counts,
            ..
        } = self;
        self.nameless.retain(|&(process, id)| {
            let Some(entry) = locations.get_mut(id.index()) else {
                return false;
            };
            let function = jits.find_late(process, entry.address);
            if let Some(function) = function {
                keep(entry, vec![named(&function.name)], name_bytes, counts);
            }
            function.is_none()
        });
    }

    pub(super) const fn counts(&self) -> LocationCounts {
        self.counts
    }

    pub(super) fn get(&self, id: LocationId) -> Option<&LocationEntry> {
        self.locations.get(id.index())
    }

    pub(super) fn mostly_unanswered(&self) -> bool {
        self.unanswered > 0 && self.unanswered * 2 >= self.locations.len()
    }

    pub(super) fn waiting(&self) -> bool {
        self.unanswered > 0
    }

    pub(super) fn request_names(&mut self, mut send: impl FnMut(Request) -> Result<(), Request>) {
        if self.unanswered == 0 {
            return;
        }
        for (_, entry) in &mut self.objects {
            while !entry.due.is_empty() {
                let batch = entry.due.len().min(MAX_REQUEST);
                let locations = &self.locations;
                let addresses = entry
                    .due
                    .iter()
                    .take(batch)
                    .filter_map(|id| Some(locations.get(id.index())?.address))
                    .collect();
                let object = match (&entry.key, &entry.file) {
                    (ObjectKey::Kernel, _) => Some(Object::Kernel),
                    (ObjectKey::File(..), Some(file)) => Some(Object::Elf {
                        file: Arc::clone(&file.file),
                        path: file.path.clone(),
                        pid: file.pid,
                    }),
                    (ObjectKey::Vdso, _) => vdso().map(|vdso| Object::Elf {
                        file: Arc::clone(&vdso.file),
                        path: "[vdso]".into(),
                        pid: 0,
                    }),
                    _ => None,
                };
                let Some(object) = object else {
                    for id in std::mem::take(&mut entry.due) {
                        let location = self.locations.get_mut(id.index());
                        answered(
                            location,
                            self.slice,
                            &mut self.unanswered,
                            &mut self.unanswered_before,
                        );
                    }
                    break;
                };
                if send(Request {
                    id: entry.number,
                    object,
                    addresses,
                })
                .is_err()
                {
                    return;
                }
                entry.asked.extend(entry.due.drain(..batch));
            }
        }
    }

    pub(super) fn name(&mut self, response: Response) {
        let Response { id, symbols, error } = response;
        let place = self.numbers.get(&id);
        let Some(entry) = place.and_then(|&place| self.objects.get_mut(place)) else {
            return;
        };
        if let (Some(error), None) = (error, &entry.remark) {
            let path = entry.file.as_ref().map_or("[kernel]", |file| &file.path);
            tracing::warn!(path, error, "some names are missing");
            entry.remark = Some(error.into());
        }
        // Answers come in the order of the requests, one per address.
        let count = symbols.len().min(entry.asked.len());
        for (id, symbols) in entry.asked.drain(..count).zip(symbols) {
            let location = self.locations.get_mut(id.index());
            let location = answered(
                location,
                self.slice,
                &mut self.unanswered,
                &mut self.unanswered_before,
            );
            if let Some(location) = location {
                keep(
                    location,
                    symbols.functions,
                    &mut self.name_bytes,
                    &mut self.counts,
                );
                location.language = symbols.language;
                location.function_start = symbols.start;
            }
        }
    }

    /// Begins another slice; what has no name yet is waited for, as far as [`Self::is_named`] goes.
    pub(super) fn close_slice(&mut self) {
        self.slice = self.slice.wrapping_add(1);
        self.unanswered_before = self.unanswered;
    }

    /// Whether everything that was met before the open slice has its names, or will never have any.
    pub(super) const fn is_named(&self) -> bool {
        self.unanswered_before == 0
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.locations.len()
    }

    /// Takes note that a location was part of a stack in the open slice.
    pub(super) fn mark(&mut self, id: LocationId) {
        if let Some(location) = self.locations.get_mut(id.index()) {
            location.used = self.slice;
        }
    }

    /// Forgets what was part of no stack in the open slice nor in the `keep` before it, and then the objects without locations. What is
    /// asked for stays until the answer is there, which finds it by its number.
    pub(super) fn sweep(&mut self, keep: u32) {
        let Self {
            objects,
            object_ids,
            locations,
            ids,
            nameless,
            name_bytes,
            numbers,
            slice,
            ..
        } = self;
        locations.retain(|_, location| {
            let stays = location.is_awaited || slice.wrapping_sub(location.used) <= keep;
            if !stays {
                let bytes: usize = location.functions.iter().map(bytes).sum();
                *name_bytes = name_bytes.saturating_sub(bytes);
                let object = usize::try_from(location.object).ok();
                if let Some(object) = object.and_then(|object| objects.get_mut(object)) {
                    object.locations = object.locations.saturating_sub(1);
                }
            }
            stays
        });
        ids.retain(|_, id| locations.contains(id.index()));
        nameless.retain(|(_, id)| locations.contains(id.index()));
        objects.retain(|_, object| {
            let stays =
                object.locations > 0 || !object.asked.is_empty() || matches!(object.key, ObjectKey::Kernel);
            if !stays {
                object_ids.remove(&object.key);
                numbers.remove(&object.number);
            }
            stays
        });
    }

    pub(super) fn view(&self, location: &LocationEntry) -> Option<ObjectView<'_>> {
        let entry = self.objects.get(usize::try_from(location.object).ok()?)?;
        let native = FrameKind::Native(location.language);
        let remark = entry.remark.as_deref().unwrap_or_default();
        let plain = |kind, start, limit, file_offset, path, build_id| MappingView {
            kind,
            start,
            limit,
            file_offset,
            path,
            build_id,
            go_build_id: "",
            htlhash: None,
            remark,
        };
        let (frame, mapping) = match &entry.key {
            ObjectKey::Kernel => {
                let mapping = plain(MappingKind::Kernel, KERNEL_START, u64::MAX, 0, "[kernel]", &[]);
                (FrameKind::Kernel, Some(mapping))
            }
            ObjectKey::Vdso => {
                let (limit, build_id) = vdso().map_or((1, &[][..]), |vdso| (vdso.len, &vdso.build_id));
                let mapping = plain(MappingKind::Vdso, 0, limit, 0, "[vdso]", build_id);
                (native, Some(mapping))
            }
            ObjectKey::File(_, segment) => {
                let file = entry.file.as_deref()?;
                let Segment {
                    start,
                    limit,
                    file_offset,
                } = *segment;
                let mapping = MappingView {
                    go_build_id: &file.go_build_id,
                    htlhash: file.htlhash,
                    ..plain(
                        MappingKind::File,
                        start,
                        limit,
                        file_offset,
                        &file.path,
                        &file.build_id,
                    )
                };
                (native, Some(mapping))
            }
            ObjectKey::Unreadable {
                path,
                build_id,
                offsets: (start, limit),
            } => {
                let mapping = plain(MappingKind::File, *start, *limit, *start, path, build_id);
                (native, Some(mapping))
            }
            ObjectKey::Anonymous(_, start, limit, runtime) => {
                let mapping = plain(MappingKind::Anonymous, *start, *limit, 0, "[anon]", &[]);
                // Not all that a program generates is of its language: regular expressions have compilers of their own.
                let runtime = if location.functions.is_empty() {
                    Runtime::Unknown
                } else {
                    *runtime
                };
                (FrameKind::Jit(runtime), Some(mapping))
            }
            ObjectKey::Nowhere(_) => (native, None),
            ObjectKey::Marker(_) => (FrameKind::Marker, None),
        };
        Some(ObjectView { frame, mapping })
    }

    /// What to call a location that has no name: by its file, and the start of its function where that is known. One frame for each
    /// address would be a comb in a picture, and tell no more: pprof and OTLP have the address of each location beside its name. In brackets
    /// it is the address itself, or its place in the file where that cannot be read: nothing tells where the function begins.
    pub(super) fn fallback_name(&self, location: &LocationEntry) -> String {
        let entry = usize::try_from(location.object)
            .ok()
            .and_then(|object| self.objects.get(object));
        let Some(entry) = entry else {
            return "[unknown]".into();
        };
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        match (&entry.key, &entry.file) {
            (ObjectKey::Kernel, _) => "[kernel]".into(),
            (ObjectKey::Vdso, _) => "[vdso]".into(),
            (ObjectKey::File(..), Some(file)) => match location.function_start {
                Some(start) => format!("{}+{start:#x}", base(&file.path)),
                None => format!("[{}+{:#x}]", base(&file.path), location.address),
            },
            (ObjectKey::Unreadable { path, .. }, _) => format!("[{}+{:#x}]", base(path), location.address),
            (ObjectKey::Anonymous(..), _) => "[anon]".into(),
            (ObjectKey::File(..), None) | (ObjectKey::Nowhere(_), _) => "[unknown]".into(),
            (ObjectKey::Marker(Marker::Incomplete(outcome)), _) => {
                format!("[{}]", outcome.name().replace('_', " "))
            }
            (ObjectKey::Marker(Marker::StackBudget), _) => "[too many distinct stacks]".into(),
            (ObjectKey::Marker(Marker::LocationBudget), _) => "[too many distinct locations]".into(),
            (ObjectKey::Marker(Marker::SampleBudget), _) => "[too many distinct samples]".into(),
        }
    }

    fn object(&mut self, key: ObjectKey, file: Option<Arc<File>>) -> u32 {
        let Self {
            objects,
            numbers,
            next_number,
            ..
        } = self;
        *self.object_ids.entry(key).or_insert_with_key(|key| {
            let number = *next_number;
            *next_number = next_number.wrapping_add(1);
            let id = objects.insert(ObjectEntry {
                number,
                key: key.clone(),
                file,
                due: Vec::new(),
                asked: Vec::new(),
                remark: None,
                locations: 0,
            });
            numbers.insert(number, id);
            u32::try_from(id).unwrap_or(u32::MAX)
        })
    }

    fn location(&mut self, key: LocationKey, has_names: bool) -> LocationId {
        self.counts.looked_up += 1;
        if let Some(&id) = self.ids.get(&key) {
            self.counts.known += 1;
            return id;
        }
        let (key, has_names) = if self.locations.len() < MAX_LOCATIONS {
            (key, has_names)
        } else {
            let budget = self.object(ObjectKey::Marker(Marker::LocationBudget), None);
            ((budget, 0, false, 0), false)
        };
        *self.ids.entry(key).or_insert_with(|| {
            let (object, address, by_frame_pointer, _) = key;
            let id = self.locations.insert(LocationEntry {
                object,
                address,
                by_frame_pointer,
                functions: Box::default(),
                language: Language::Other,
                function_start: None,
                is_awaited: has_names,
                born: self.slice,
                used: self.slice,
            });
            let id = LocationId(u32::try_from(id).unwrap_or(u32::MAX));
            if let Some(entry) = usize::try_from(object).ok().and_then(|o| self.objects.get_mut(o)) {
                entry.locations += 1;
                if has_names {
                    entry.due.push(id);
                    self.unanswered += 1;
                }
            }
            id
        })
    }
}

/// Takes a location off the lists of those without an answer.
fn answered<'a>(
    location: Option<&'a mut LocationEntry>,
    slice: u32,
    unanswered: &mut usize,
    unanswered_before: &mut usize,
) -> Option<&'a mut LocationEntry> {
    *unanswered = unanswered.saturating_sub(1);
    let location = location?;
    location.is_awaited = false;
    if location.born != slice {
        *unanswered_before = unanswered_before.saturating_sub(1);
    }
    Some(location)
}

/// Gives a location its functions, if there is room for them.
fn keep(
    location: &mut LocationEntry,
    functions: Vec<Symbol>,
    name_bytes: &mut usize,
    counts: &mut LocationCounts,
) {
    let bytes: usize = functions.iter().map(bytes).sum();
    if *name_bytes + bytes <= MAX_NAME_BYTES {
        *name_bytes += bytes;
        location.functions = functions.into();
    } else {
        if counts.over_budget == 0 {
            tracing::warn!("the memory for names is used up; further code is shown by file and offset");
        }
        counts.over_budget += 1;
    }
}

/// What a function of a location takes.
fn bytes(function: &Symbol) -> usize {
    let Symbol {
        name,
        system_name,
        file,
        line: _,
        column: _,
    } = function;
    size_of::<Symbol>() + name.len() + system_name.len() + file.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Symbols;

    #[test]
    fn names_have_a_budget() {
        let mut locations = Locations::default();
        const LONG: usize = 4096;
        let count = MAX_NAME_BYTES / LONG + 100;
        for address in 0..count as u64 {
            locations.kernel(address);
            locations.kernel(address);
        }
        let mut requests = Vec::new();
        locations.request_names(|request| {
            requests.push(request);
            Ok(())
        });
        for Request { id, addresses, .. } in requests {
            let symbols = addresses.iter().map(|&address| Symbols {
                address,
                functions: vec![named(&"x".repeat(LONG).into())],
                language: Language::Other,
                start: None,
            });
            locations.name(Response {
                id,
                symbols: symbols.collect(),
                error: None,
            });
        }
        let counts = locations.counts();
        assert_eq!((counts.looked_up, counts.known), (2 * count as u64, count as u64));
        let named = locations
            .locations
            .iter()
            .filter(|(_, location)| !location.functions.is_empty())
            .count();
        assert_eq!(named + usize::try_from(counts.over_budget).unwrap(), count);
        assert!(named * LONG < MAX_NAME_BYTES && counts.over_budget > 100);
        assert!(!locations.waiting());

        // What is forgotten makes room; and a number that was used is not used again.
        let before = locations.prepare_kernel().id;
        for _ in 0..3 {
            locations.close_slice();
        }
        locations.sweep(1);
        assert_eq!((locations.len(), locations.name_bytes), (0, 0));
        assert_eq!(locations.prepare_kernel().id, before, "the kernel stays");
        let marker = |locations: &mut Locations| {
            locations.marker(Marker::StackBudget);
            locations
                .objects
                .iter()
                .map(|(_, object)| object.number)
                .max()
                .unwrap()
        };
        let first = marker(&mut locations);
        for _ in 0..3 {
            locations.close_slice();
        }
        locations.sweep(1);
        assert!(marker(&mut locations) > first);
    }

    #[test]
    fn names_of_generated_code_are_shared_and_have_the_same_budget() {
        let mut locations = Locations::default();
        const LONG: usize = 4096;
        let function = Function {
            serial: 1,
            name: "x".repeat(LONG).into(),
        };
        let count = MAX_NAME_BYTES / LONG + 100;
        for address in 0..count as u64 {
            let frame = UserFrame {
                address,
                by_frame_pointer: true,
            };
            let generated = Generated {
                runtime: Runtime::Unknown,
                function: Some(&function),
            };
            locations.user(Key(1), Place::Anonymous(0, 1 << 40), generated, frame);
        }
        let named: Vec<&LocationEntry> = locations
            .locations
            .iter()
            .map(|(_, location)| location)
            .filter(|location| !location.functions.is_empty())
            .collect();
        let over_budget = usize::try_from(locations.counts().over_budget).unwrap();
        assert_eq!(named.len() + over_budget, count);
        assert!(over_budget > 100);
        assert_eq!(Arc::strong_count(&function.name), named.len() + 1);
        // What is forgotten makes as much room as it took.
        for _ in 0..3 {
            locations.close_slice();
        }
        locations.sweep(1);
        assert_eq!((locations.len(), locations.name_bytes), (0, 0));
        assert_eq!(Arc::strong_count(&function.name), 1);
    }
}
