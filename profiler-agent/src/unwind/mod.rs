//! Unwind tables: from a file's call frame information to what the kernel programs look up.
//!
//! ```text
//! process ──▶ which files run where ──▶ builder: sections ▶ cfi ▶ table ──▶ arena ──▶ kernel programs
//!                                       (a thread of its own)              mappings ──▲
//! ```
//!
//! A table belongs to a file and is shared by all processes that run it. Until it is there, the file's code is walked by frame
//! pointer. The sections are a stranger's bytes: what they may cost in time and memory is bounded before they are read.

mod arena;
mod builder;
pub mod cfi;
mod sections;
pub mod table;

use std::{collections::VecDeque, ops::Range, sync::Arc};

use aya::maps::{MapData, MapError};
use hashbrown::{HashMap, HashSet};
use profiler_common::arena::{MAPPING_LEN, MAX_MAPPINGS, MappingList};

use self::{
    arena::{Arena, Block},
    builder::{Builder, Built, Request},
};
use crate::process::{Code, CodeBacking, Key, Processes, vdso_image};

pub use self::builder::BuildError;

/// The maps of the kernel programs that this stage fills.
#[derive(Debug)]
pub struct Maps {
    /// The array of segments.
    pub segments: MapData,
    /// Where each process's mappings are.
    pub processes: aya::maps::HashMap<MapData, u32, List>,
}

/// [`MappingList`], as aya wants the values of maps.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct List(MappingList);

#[expect(unsafe_code, reason = "aya asks for the promise that a type is plain bytes")]
// SAFETY: four integers without padding.
unsafe impl aya::Pod for List {}

/// The id of the vDSO's table; files count from 0.
const VDSO: u32 = u32::MAX;

/// What is known of a file.
#[derive(Debug)]
enum State {
    /// Asked for.
    Building,
    /// In the arena, by ranges of the file's addresses. Empty: the file has no call frame information.
    Ready(Vec<(Range<u64>, Block)>),
}

/// What a process was published as.
#[derive(Debug)]
struct Published {
    pid: u32,
    generation: u32,
    block: Block,
    /// Files whose tables were not there yet.
    missing: HashSet<u32>,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Unwinder {
    builder: Builder,
    arena: Arena,
    maps: aya::maps::HashMap<MapData, u32, List>,
    tables: HashMap<u32, State>,
    /// Requests that the builder's queue had no room for.
    waiting: VecDeque<Request>,
    building: usize,
    published: HashMap<Key, Published>,
    /// Whether it has been told that the memory is used up.
    told: bool,
}

impl Unwinder {
    /// Begins with the maps empty; fills at most `bytes` of the kernel's memory with tables.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub fn new(maps: Maps, bytes: usize) -> std::io::Result<Self> {
        let Maps { segments, processes } = maps;
        Ok(Self {
            builder: Builder::start()?,
            arena: Arena::new(segments, bytes),
            maps: processes,
            tables: HashMap::new(),
            waiting: VecDeque::new(),
            building: 0,
            published: HashMap::new(),
            told: false,
        })
    }

    /// Whether tables are still being built.
    pub const fn is_building(&self) -> bool {
        self.building > 0
    }

    /// Bytes of the kernel's memory that hold tables and mappings.
    pub fn memory(&self) -> usize {
        self.arena.memory()
    }

    /// Brings the kernel's picture up to date: tables that were built, processes that are new, changed or gone.
    pub fn update(&mut self, processes: &mut Processes) {
        let mut fresh = HashSet::new();
        while let Some(built) = self.builder.answer() {
            self.building -= 1;
            fresh.insert(built.id);
            self.store(built);
        }
        let mut living = HashSet::new();
        let stale: Vec<(u32, Key, u32)> = processes
            .living()
            .filter_map(|process| {
                living.insert(process.key);
                let current = self.published.get(&process.key).is_some_and(|published| {
                    published.generation == process.generation() && published.missing.is_disjoint(&fresh)
                });
                (!current).then_some((process.pid, process.key, process.generation()))
            })
            .collect();
        let gone: Vec<Key> = self
            .published
            .keys()
            .filter(|key| !living.contains(*key))
            .copied()
            .collect();
        for key in gone {
            self.forget(key, processes);
        }
        for (pid, key, generation) in stale {
            let code = processes.code(pid);
            self.publish(pid, key, generation, &code);
        }
        while let Some(request) = self.waiting.pop_front() {
            if let Err(request) = self.builder.ask(request) {
                self.waiting.push_front(request);
                break;
            }
        }
    }

    /// Puts the tables of a file into the arena.
    fn store(&mut self, built: Built) {
        let Built { id, pieces, path } = built;
        let mut blocks = Vec::new();
        match pieces {
            Ok(pieces) => {
                for (range, table) in pieces {
                    match self.arena.write(&table.block()) {
                        Ok(block) => blocks.push((range, block)),
                        Err(error) => {
                            if !std::mem::replace(&mut self.told, true) {
                                tracing::warn!(path, %error, "this code, and what comes later, is unwound by frame pointer");
                            }
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(path, %error, "its code is unwound by frame pointer"),
        }
        self.tables.insert(id, State::Ready(blocks));
    }

    /// Tells the kernel where the code of a process is, and asks for what tables it lacks.
    fn publish(&mut self, pid: u32, key: Key, generation: u32, code: &[Code]) {
        let mut missing = HashSet::new();
        let mut list = Vec::new();
        for Code { start, end, backing } in code {
            let (id, address) = match backing {
                CodeBacking::File { file, address } => {
                    self.want(file.id, || Request {
                        id: file.id,
                        file: Arc::clone(&file.file),
                        path: file.path.clone(),
                        code: file.code(),
                    });
                    (file.id, *address)
                }
                CodeBacking::Vdso => {
                    if let Ok(image) = vdso_image() {
                        let len = end - start;
                        self.want(VDSO, || Request {
                            id: VDSO,
                            file: Arc::new(image),
                            path: "[vdso]".into(),
                            code: 0..len,
                        });
                    }
                    (VDSO, 0)
                }
                CodeBacking::Unknown => {
                    entry(&mut list, *start, *end, 0, None);
                    continue;
                }
            };
            let bias = start.wrapping_sub(address);
            match self.tables.get(&id) {
                Some(State::Ready(pieces)) => {
                    let (mut at, last) = (address, address.saturating_add(end - start));
                    for (range, block) in pieces {
                        let (from, to) = (range.start.max(at), range.end.min(last));
                        if from < to {
                            if at < from {
                                entry(
                                    &mut list,
                                    bias.wrapping_add(at),
                                    bias.wrapping_add(from),
                                    bias,
                                    None,
                                );
                            }
                            entry(
                                &mut list,
                                bias.wrapping_add(from),
                                bias.wrapping_add(to),
                                bias,
                                Some(*block),
                            );
                            at = to;
                        }
                    }
                    if at < last {
                        entry(
                            &mut list,
                            bias.wrapping_add(at),
                            bias.wrapping_add(last),
                            bias,
                            None,
                        );
                    }
                }
                Some(State::Building) | None => {
                    missing.insert(id);
                    entry(&mut list, *start, *end, bias, None);
                }
            }
        }
        list.truncate(MAX_MAPPINGS as usize * MAPPING_LEN as usize);
        let Ok(block) = self.arena.write(&list) else {
            return;
        };
        let mappings = MappingList {
            segment: block.segment,
            offset: block.offset,
            count: u32::try_from(list.len()).unwrap_or_default() / MAPPING_LEN,
            reserved: 0,
        };
        if let Err(error) = self.maps.insert(pid, List(mappings), 0) {
            tracing::debug!(pid, %error, "the kernel side knows no more processes");
            self.arena.retire(block);
            return;
        }
        if let Some(old) = self.published.insert(
            key,
            Published {
                pid,
                generation,
                block,
                missing,
            },
        ) {
            self.arena.retire(old.block);
        }
    }

    /// Asks for the table of a file once.
    fn want(&mut self, id: u32, request: impl FnOnce() -> Request) {
        if self.tables.contains_key(&id) {
            return;
        }
        self.tables.insert(id, State::Building);
        self.building += 1;
        self.waiting.push_back(request());
    }

    fn forget(&mut self, key: Key, processes: &Processes) {
        let Some(Published { pid, block, .. }) = self.published.remove(&key) else {
            return;
        };
        // The pid may be another process's by now; its own entry replaces this one.
        if !processes.living().any(|process| process.pid == pid) {
            let _: Result<(), MapError> = self.maps.remove(&pid);
        }
        self.arena.retire(block);
    }
}

/// Adds a mapping to a list in the layout of [`profiler_common::arena::Mapping`].
fn entry(list: &mut Vec<u8>, start: u64, end: u64, bias: u64, table: Option<Block>) {
    let table = table.map_or(0, |block| {
        u64::from(block.segment) << 32 | u64::from(block.offset)
    });
    list.extend(
        [start, end, bias, table]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
}
