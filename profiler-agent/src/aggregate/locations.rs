//! Locations: each address of each object once, and its names when they come.

use std::sync::Arc;

use hashbrown::HashMap;
use profiler_common::Outcome;

use super::UserFrame;
use crate::{
    process::{File, Key, Place, Segment, vdso_image},
    profile::{FrameKind, LocationId, MappingKind},
    symbols::{Object, Request, Response, Symbol},
};

/// Most addresses of one request: an answer comes within milliseconds.
const MAX_REQUEST: usize = 4096;

/// Most locations that are kept, some 100 bytes each with a name. Code is smaller than that; what makes more is a JIT, or wants to.
const MAX_LOCATIONS: usize = 1_000_000;

/// A frame that is none of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Marker {
    /// The stack ends early.
    Incomplete(Outcome),
    /// The budget of distinct stacks is used up.
    StackBudget,
    /// The budget of distinct locations is used up.
    LocationBudget,
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
}

#[derive(Debug, Default)]
pub(super) struct Locations {
    objects: Vec<ObjectEntry>,
    object_ids: HashMap<ObjectKey, u32>,
    locations: Vec<LocationEntry>,
    ids: HashMap<(u32, u64, bool), LocationId>,
    /// Locations without an answer.
    unanswered: usize,
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
        for (id, entry) in (0..).zip(&mut self.objects) {
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
                    self.unanswered = self.unanswered.saturating_sub(entry.due.len());
                    entry.due.clear();
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
        let answered = symbols.len().min(entry.asked.len());
        self.unanswered = self.unanswered.saturating_sub(answered);
        for (location, symbols) in entry.asked.drain(..answered).zip(symbols) {
            if let Some(location) = self.locations.get_mut(location.index()) {
                location.functions = symbols.functions.into();
            }
        }
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
        }
    }

    fn object(&mut self, key: ObjectKey, file: Option<Arc<File>>) -> u32 {
        let objects = &mut self.objects;
        *self.object_ids.entry(key).or_insert_with_key(|key| {
            objects.push(ObjectEntry {
                key: key.clone(),
                file,
                due: Vec::new(),
                asked: Vec::new(),
                told: false,
            });
            u32::try_from(objects.len() - 1).unwrap_or(u32::MAX)
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
                let id = LocationId(u32::try_from(self.locations.len()).unwrap_or(u32::MAX));
                self.locations.push(LocationEntry {
                    object,
                    address,
                    by_frame_pointer,
                    functions: Box::default(),
                });
                if has_names
                    && let Some(entry) = usize::try_from(object).ok().and_then(|o| self.objects.get_mut(o))
                {
                    entry.due.push(id);
                    self.unanswered += 1;
                }
                id
            })
    }
}
