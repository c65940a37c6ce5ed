//! Locations: each address of each object once, and its names when they come.

use std::sync::Arc;

use hashbrown::HashMap;
use profiler_common::Outcome;
use slab::Slab;

use super::UserFrame;
use crate::{
    process::{File, Key, Place, Segment, vdso_image},
    profile::{FrameKind, LocationId, MappingKind},
    symbols::{Object, Request, Response, Symbol},
};

/// Most addresses of one request: an answer comes within milliseconds.
const MAX_REQUEST: usize = 4096;

/// Most locations that are kept, some 100 bytes each with a name. Code is smaller than that; what makes more is a JIT, or wants to.
pub(super) const MAX_LOCATIONS: usize = 1_000_000;

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
    Anonymous(Key, u64, u64),
    /// Outside every mapping of this process.
    Nowhere(Key),
    Marker(Marker),
}

/// An object with its addresses that have no answer yet.
#[derive(Debug)]
pub(super) struct ObjectEntry {
    key: ObjectKey,
    file: Option<Arc<File>>,
    /// Not asked for yet.
    due: Vec<LocationId>,
    /// Asked for, in the order of the requests.
    asked: Vec<LocationId>,
    /// Whether what is wrong with it has been told.
    told: bool,
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
    /// Whether its names are to be asked for, or have been.
    is_awaited: bool,
    /// The slice in which it was met first.
    born: u32,
    /// The last slice in which it was part of a stack.
    used: u32,
}

#[derive(Debug, Default)]
pub(super) struct Locations {
    objects: Slab<ObjectEntry>,
    object_ids: HashMap<ObjectKey, u32>,
    locations: Slab<LocationEntry>,
    ids: HashMap<(u32, u64, bool), LocationId>,
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
}

/// Lowest address of the kernel's half on x86_64 and aarch64.
const KERNEL_START: u64 = 0xffff_0000_0000_0000;
/// The vDSO's image is shorter than this everywhere.
const VDSO_LIMIT: u64 = 1 << 16;

impl Locations {
    pub(super) fn prepare_kernel(&mut self) -> Request {
        let id = self.object(ObjectKey::Kernel, None);
        Request {
            id,
            object: Object::Kernel,
            addresses: Vec::new(),
        }
    }

    pub(super) fn kernel(&mut self, address: u64) -> LocationId {
        let object = self.object(ObjectKey::Kernel, None);
        self.location(object, address, false, true)
    }

    pub(super) fn user(&mut self, process: Key, place: Place, frame: UserFrame) -> LocationId {
        let UserFrame {
            address,
            by_frame_pointer,
        } = frame;
        match place {
            Place::File(file, segment, address) => {
                let object = self.object(ObjectKey::File(file.id, segment), Some(file));
                self.location(object, address, by_frame_pointer, true)
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
                self.location(object, offset, by_frame_pointer, false)
            }
            Place::Vdso(offset) => {
                let object = self.object(ObjectKey::Vdso, None);
                self.location(object, offset, by_frame_pointer, true)
            }
            Place::Anonymous(start, end) => {
                let object = self.object(ObjectKey::Anonymous(process, start, end), None);
                self.location(object, address, by_frame_pointer, false)
            }
            Place::Nowhere => {
                let object = self.object(ObjectKey::Nowhere(process), None);
                self.location(object, address, by_frame_pointer, false)
            }
        }
    }

    pub(super) fn marker(&mut self, marker: Marker) -> LocationId {
        let object = self.object(ObjectKey::Marker(marker), None);
        self.location(object, 0, false, false)
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
        for (id, entry) in &mut self.objects {
            let Ok(id) = u32::try_from(id) else { continue };
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
                    }),
                    (ObjectKey::Vdso, _) => vdso_image().ok().map(|image| Object::Elf {
                        file: Arc::new(image),
                        path: "[vdso]".into(),
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
                    id,
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
        let Some(entry) = usize::try_from(id).ok().and_then(|id| self.objects.get_mut(id)) else {
            return;
        };
        if let Some(error) = error
            && !std::mem::replace(&mut entry.told, true)
        {
            let path = entry.file.as_ref().map_or("[kernel]", |file| &file.path);
            tracing::warn!(path, error, "some names are missing");
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
                location.functions = symbols.functions.into();
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
            slice,
            ..
        } = self;
        locations.retain(|_, location| {
            let stays = location.is_awaited || slice.wrapping_sub(location.used) <= keep;
            if !stays {
                ids.remove(&(location.object, location.address, location.by_frame_pointer));
                let object = usize::try_from(location.object).ok();
                if let Some(object) = object.and_then(|object| objects.get_mut(object)) {
                    object.locations = object.locations.saturating_sub(1);
                }
            }
            stays
        });
        objects.retain(|_, object| {
            let stays =
                object.locations > 0 || !object.asked.is_empty() || matches!(object.key, ObjectKey::Kernel);
            if !stays {
                object_ids.remove(&object.key);
            }
            stays
        });
    }

    pub(super) fn view(&self, object: u32) -> Option<ObjectView<'_>> {
        let entry = self.objects.get(usize::try_from(object).ok()?)?;
        let mapping = |kind, start, limit, file_offset, path, build_id| {
            Some(MappingView {
                kind,
                start,
                limit,
                file_offset,
                path,
                build_id,
            })
        };
        let (frame, mapping) = match &entry.key {
            ObjectKey::Kernel => (
                FrameKind::Kernel,
                mapping(MappingKind::Kernel, KERNEL_START, u64::MAX, 0, "[kernel]", &[]),
            ),
            ObjectKey::Vdso => (
                FrameKind::Native,
                mapping(MappingKind::Vdso, 0, VDSO_LIMIT, 0, "[vdso]", &[]),
            ),
            ObjectKey::File(_, segment) => {
                let file = entry.file.as_deref()?;
                let Segment {
                    start,
                    limit,
                    file_offset,
                } = *segment;
                (
                    FrameKind::Native,
                    mapping(
                        MappingKind::File,
                        start,
                        limit,
                        file_offset,
                        &file.path,
                        &file.build_id,
                    ),
                )
            }
            ObjectKey::Unreadable {
                path,
                build_id,
                offsets: (start, limit),
            } => (
                FrameKind::Native,
                mapping(MappingKind::File, *start, *limit, *start, path, build_id),
            ),
            ObjectKey::Anonymous(_, start, limit) => (
                FrameKind::Jit,
                mapping(MappingKind::Anonymous, *start, *limit, 0, "[anon]", &[]),
            ),
            ObjectKey::Nowhere(_) => (FrameKind::Native, None),
            ObjectKey::Marker(_) => (FrameKind::Marker, None),
        };
        Some(ObjectView { frame, mapping })
    }

    /// What to call a location that has no name.
    pub(super) fn fallback_name(&self, location: &LocationEntry) -> String {
        let entry = usize::try_from(location.object)
            .ok()
            .and_then(|object| self.objects.get(object));
        let Some(entry) = entry else {
            return "[unknown]".into();
        };
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let address = location.address;
        match &entry.key {
            ObjectKey::Kernel => format!("[kernel]+{address:#x}"),
            ObjectKey::Vdso => format!("[vdso]+{address:#x}"),
            ObjectKey::File(..) => {
                format!(
                    "{}+{address:#x}",
                    entry
                        .file
                        .as_ref()
                        .map_or("[unknown]".into(), |file| base(&file.path))
                )
            }
            ObjectKey::Unreadable { path, .. } => format!("{}+{address:#x}", base(path)),
            ObjectKey::Anonymous(_, start, _) => format!("[anon]+{:#x}", address.wrapping_sub(*start)),
            ObjectKey::Nowhere(_) => "[unknown]".into(),
            ObjectKey::Marker(Marker::Incomplete(outcome)) => {
                format!("[{}]", outcome.name().replace('_', " "))
            }
            ObjectKey::Marker(Marker::StackBudget) => "[too many distinct stacks]".into(),
            ObjectKey::Marker(Marker::LocationBudget) => "[too many distinct locations]".into(),
            ObjectKey::Marker(Marker::SampleBudget) => "[too many distinct samples]".into(),
        }
    }

    fn object(&mut self, key: ObjectKey, file: Option<Arc<File>>) -> u32 {
        let objects = &mut self.objects;
        *self.object_ids.entry(key).or_insert_with_key(|key| {
            let id = objects.insert(ObjectEntry {
                key: key.clone(),
                file,
                due: Vec::new(),
                asked: Vec::new(),
                told: false,
                locations: 0,
            });
            u32::try_from(id).unwrap_or(u32::MAX)
        })
    }

    fn location(&mut self, object: u32, address: u64, by_frame_pointer: bool, has_names: bool) -> LocationId {
        if let Some(&id) = self.ids.get(&(object, address, by_frame_pointer)) {
            return id;
        }
        let (object, address, by_frame_pointer, has_names) = if self.locations.len() < MAX_LOCATIONS {
            (object, address, by_frame_pointer, has_names)
        } else {
            let budget = self.object(ObjectKey::Marker(Marker::LocationBudget), None);
            (budget, 0, false, false)
        };
        *self
            .ids
            .entry((object, address, by_frame_pointer))
            .or_insert_with(|| {
                let id = self.locations.insert(LocationEntry {
                    object,
                    address,
                    by_frame_pointer,
                    functions: Box::default(),
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
