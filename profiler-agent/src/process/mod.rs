//! Processes and what they have mapped, kept current by the kernel's events.
//!
//! A process is a pid in one life as one program, numbered here by [`Key`] in the order of discovery: a pid is used again, and
//! `exec` makes another program of it. Events come in order with the samples, so that a sample finds the mappings of
//! its own time. /proc answers for whatever began before the events did.

mod file;
mod maps;
mod origin;
mod vdso;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::{HashMap, HashSet, hash_map::Entry};
use rustix::fs::{AtFlags, StatxFlags};

use self::{file::Identity, maps::MapsLine};
pub(crate) use self::{file::open_mapped, origin::container_in};
pub use self::{
    file::{File, Segment, identify},
    maps::executable,
    origin::Origin,
    vdso::{Vdso, vdso},
};
use crate::{
    procfs,
    sampling::record::{MappedFile, Mmap, Record},
    target::Comm,
};

/// Most executable mappings that are kept of one process; beyond, they are read again, and the further ones have no names.
const MAX_MAPPINGS: usize = 16_384;

/// Least time between two such readings: so many mappings take some 10 ms.
const REREAD: Duration = Duration::from_secs(60);

/// Protection bit of executable memory.
const PROT_EXEC: u32 = 4;

/// A process in this run of the agent. Never used again, unlike a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u32);

/// One process. Those who need it as it was at a time hold it; it changes by being copied then.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its key.
    pub key: Key,
    /// Its pid.
    pub pid: u32,
    /// Start in clock ticks since boot, 0 when it ended before it could be asked.
    pub start_ticks: u64,
    /// Name of its main thread.
    pub name: String,
    /// Path of its program as it sees it.
    pub executable: String,
    /// Device and inode of its program, if they could be read while it was certainly that which ran: the file may be moved or deleted meanwhile.
    program: Option<(u64, u64)>,
    /// Executable mappings by their first address.
    mappings: BTreeMap<u64, Mapping>,
    /// Counts changes of `mappings`: addresses resolved under another number must be resolved again.
    generation: u32,
    /// [`Processes::doubts`] when its mappings were known for certain.
    doubts: u32,
    /// Whether it has more mappings than are kept.
    is_partial: bool,
    /// When they were read again because of that.
    reread: Option<Instant>,
}

/// Executable memory of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset in the file of the first address.
    pub file_offset: u64,
    /// What is mapped.
    pub backing: Backing,
}

/// What lies behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A file; opened when a sample falls into the mapping.
    File {
        /// Path below the process's root.
        path: Arc<str>,
        /// Which file that must be.
        identity: Identity,
    },
    /// The vDSO.
    Vdso,
    /// No file: generated code.
    Anonymous,
}

/// Where an address of a process lies.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a segment of a file, at this virtual address of the file.
    File(Arc<File>, Segment, u64),
    /// In a file that cannot be read any more, at this offset of it; with the mapping's range of offsets.
    Unreadable {
        /// Its path.
        path: Arc<str>,
        /// Its build ID, if the kernel told.
        build_id: Vec<u8>,
        /// First offset of the mapping in the file, and the first behind it.
        offsets: (u64, u64),
        /// Offset of the address in the file.
        offset: u64,
    },
    /// In the vDSO, this far from its start.
    Vdso(u64),
    /// In generated code, in the mapping of this range.
    Anonymous(u64, u64),
    /// In no known mapping.
    Nowhere,
}

/// Executable memory of a process, as unwinding sees it.
#[derive(Debug, Clone)]
pub struct Code {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What runs there.
    pub backing: CodeBacking,
}

/// What runs in executable memory.
#[derive(Debug, Clone)]
pub enum CodeBacking {
    /// A file; `address` is the file's own virtual address of the first byte.
    File {
        /// The file.
        file: Arc<File>,
        /// Its address of what is mapped first.
        address: u64,
    },
    /// The vDSO, from this address of its image on.
    Vdso(u64),
    /// Generated code, or a file that cannot be read.
    Unknown,
}

/// Every process seen.
#[derive(Debug, Default)]
pub struct Processes {
    /// Only these pids and their descendants are kept; `None` keeps all.
    targets: Option<HashSet<u32>>,
    living: HashMap<u32, Arc<Process>>,
    /// Those of which a thread has ended since the last look, which may have been the last,
    exits: HashSet<u32>,
    /// and those that were still there at that look: some are on their way out for a while.
    exiting: HashSet<u32>,
    /// Those that have ended, and when that was read: their last samples may be younger than the news of their end.
    ended: VecDeque<(Instant, u32, Key)>,
    /// Processes whose mappings have changed, or that are gone, since somebody asked.
    changed: Vec<u32>,
    files: file::Files,
    next_key: u32,
    /// How many times events were lost.
    doubts: u32,
}

/// The files that these processes map.
fn identities(processes: &HashMap<u32, Arc<Process>>) -> impl Iterator<Item = &Identity> {
    let mappings = processes.values().flat_map(|process| process.mappings.values());
    mappings.filter_map(|mapping| match &mapping.backing {
        Backing::File { identity, .. } => Some(identity),
        Backing::Vdso | Backing::Anonymous => None,
    })
}

/// How long a process that has ended is remembered.
const MEMORY_OF_ENDED: Duration = Duration::from_secs(1);

impl Processes {
    /// Knows nothing yet. With `targets`, events of other processes are passed over.
    pub fn new(targets: Option<&[u32]>) -> Self {
        Self {
            targets: targets.map(|pids| pids.iter().copied().collect()),
            ..Self::default()
        }
    }

    /// Learns about the processes that run already: the targets, or all. Call it after events are recorded, so that nothing falls
    /// between the two.
    pub fn scan(&mut self) {
        let pids: Vec<u32> = match &self.targets {
            Some(targets) => targets.iter().copied().collect(),
            None => std::fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect(),
        };
        for pid in pids {
            self.find(pid);
        }
    }

    /// A target that joins later: the command that the agent starts.
    pub fn add_target(&mut self, pid: u32) {
        if let Some(targets) = &mut self.targets {
            targets.insert(pid);
        }
    }

    /// Whether somebody chose them: then there is no end of interest in them.
    pub const fn are_chosen(&self) -> bool {
        self.targets.is_some()
    }

    /// The living processes, in no order.
    pub fn living(&self) -> impl Iterator<Item = &Process> {
        self.living.values().map(Arc::as_ref)
    }

    /// The process that has a pid now, if it is known.
    pub fn get(&self, pid: u32) -> Option<&Arc<Process>> {
        self.living.get(&pid)
    }

    /// The pids of processes whose mappings have changed since the last call, some of them gone or another process's by now; some twice.
    pub fn take_changed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Numbers of the files that were forgotten since the last call: whatever is known by them is of no use any more.
    pub fn take_forgotten_files(&mut self) -> Vec<u32> {
        self.files.take_forgotten()
    }

    /// Looks which of the processes that have lost threads are over. Call it when a batch of events has been taken in: a look at each end of a thread
    /// would cost more than all else.
    pub fn look_at_exits(&mut self) {
        for pid in std::mem::take(&mut self.exits) {
            if !self.note_end(pid) {
                self.exiting.insert(pid);
            }
        }
    }

    /// Forgets the processes that ended a while ago.
    pub fn forget_ended(&mut self) {
        for pid in std::mem::take(&mut self.exiting) {
            self.note_end(pid);
        }
        while let Some((_, pid, key)) = self
            .ended
            .pop_front_if(|(since, ..)| since.elapsed() >= MEMORY_OF_ENDED)
        {
            if self.living.get(&pid).is_some_and(|process| process.key == key) {
                self.living.remove(&pid);
                self.changed.push(pid);
            }
        }
    }

    /// Looks for processes whose end was missed, since its news was lost or came before they were met: they go as the others do. And for deleted
    /// files that nobody maps, at this look and the last. Called now and then, it is also when files that could not be read are tried again.
    pub fn look_for_gone(&mut self) {
        self.files.forget_deleted(identities(&self.living));
        let lacking = self.files.take_failures();
        for process in self.living.values_mut() {
            if lacking.contains(&process.key) {
                // What was made without the file is made again: names of stacks, and the list for the kernel side.
                let process = Arc::make_mut(process);
                process.generation = process.generation.wrapping_add(1);
                self.changed.push(process.pid);
            }
        }
        let pids: Vec<u32> = self.living.keys().copied().collect();
        for pid in pids {
            self.note_end(pid);
        }
    }

    /// Notes that a process is over, if that can be seen.
    fn note_end(&mut self, pid: u32) -> bool {
        let Some(process) = self.living.get(&pid).filter(|process| process.has_ended()) else {
            return false;
        };
        self.ended.push_back((Instant::now(), pid, process.key));
        if let Some(targets) = &mut self.targets {
            targets.remove(&pid);
        }
        true
    }

    /// Takes in an event; a sample is none.
    pub fn apply(&mut self, record: &Record<'_>) {
        match *record {
            Record::Fork { pid, parent, tid: _ } if pid != parent => self.fork(pid, parent),
            Record::Comm { pid, tid, name, exec } => {
                if exec && self.wants(pid) {
                    self.exec(pid, name);
                } else if pid == tid
                    && let Some(process) = self.living.get_mut(&pid)
                {
                    Arc::make_mut(process).name = String::from_utf8_lossy(name).into_owned();
                }
            }
            Record::Mmap(mmap) if self.wants(mmap.pid) => self.mmap(&mmap),
            Record::Exit { pid, .. } if self.living.contains_key(&pid) => {
                self.exits.insert(pid);
            }
            Record::Sample(_)
            | Record::Unfinished(..)
            | Record::Fork { .. }
            | Record::Mmap(_)
            | Record::Exit { .. }
            | Record::Lost(_)
            | Record::Other => {}
        }
    }

    /// The process of a sample; one that is not known yet is looked up in /proc. Samples are of targets alone, if there are any: a child that has
    /// one is a target, even if the news of its fork was lost.
    pub fn find(&mut self, pid: u32) -> &Arc<Process> {
        match self.living.entry(pid) {
            Entry::Occupied(process) => {
                let process = process.into_mut();
                let is_to_reread = process.is_to_reread();
                if process.doubts != self.doubts || is_to_reread {
                    // An exec may have been among what was lost: what runs now is what /proc says, under a name of its own if it is another.
                    let mut now = Process::from_proc(pid, process.key);
                    if !process.is_of(now.program, &now.executable) {
                        now.key = next(&mut self.next_key);
                    }
                    now.doubts = self.doubts;
                    now.generation = process.generation.wrapping_add(1);
                    now.reread = if is_to_reread {
                        Some(Instant::now())
                    } else {
                        process.reread
                    };
                    // Of one that has ended what was known is all there will be.
                    if !now.mappings.is_empty() {
                        *process = Arc::new(now);
                        self.changed.push(pid);
                    } else {
                        let process = Arc::make_mut(process);
                        process.doubts = self.doubts;
                        process.reread = now.reread;
                    }
                }
                process
            }
            Entry::Vacant(place) => {
                let mut process = Process::from_proc(pid, next(&mut self.next_key));
                process.doubts = self.doubts;
                if let Some(targets) = &mut self.targets {
                    targets.insert(pid);
                }
                place.insert(Arc::new(process))
            }
        }
    }

    /// Events were lost, and nothing tells which: the mappings of each process are read again when it is looked at next.
    pub fn doubt(&mut self) {
        self.doubts = self.doubts.wrapping_add(1);
    }

    /// Where an address of a process lies.
    pub fn place(&mut self, process: &Process, address: u64) -> Place {
        let Some(mapping) = process.mapping(address) else {
            return Place::Nowhere;
        };
        let from_start = address - mapping.start;
        match &mapping.backing {
            Backing::Vdso => Place::Vdso(from_start),
            Backing::Anonymous => Place::Anonymous(mapping.start, mapping.end),
            Backing::File { path, identity } => {
                let offset = mapping.file_offset.wrapping_add(from_start);
                let found = self.open(process, mapping, path, identity);
                match found.and_then(|file| Some((file.segment(offset)?, file))) {
                    Some((segment, file)) => {
                        let address = offset
                            .wrapping_sub(segment.file_offset)
                            .wrapping_add(segment.start);
                        Place::File(file, segment, address)
                    }
                    // Memory that is mapped twice, writable and executable: .NET and some others generate their code so.
                    None if path.starts_with("/memfd:") => Place::Anonymous(mapping.start, mapping.end),
                    None => Place::Unreadable {
                        path: path.clone(),
                        build_id: identity.build_id().to_vec(),
                        offsets: (
                            mapping.file_offset,
                            mapping.file_offset.saturating_add(mapping.end - mapping.start),
                        ),
                        offset,
                    },
                }
            }
        }
    }

    /// The executable memory of a process, for unwinding: every mapping with what lies behind it.
    pub fn code(&mut self, process: &Process) -> Vec<Code> {
        let mappings = process.mappings.values();
        mappings.map(|mapping| self.code_of(process, mapping)).collect()
    }

    /// The same of the one mapping that holds an address.
    pub fn code_at(&mut self, process: &Process, address: u64) -> Option<Code> {
        let mapping = process.mapping(address)?;
        Some(self.code_of(process, mapping))
    }

    fn code_of(&mut self, process: &Process, mapping: &Mapping) -> Code {
        let backing = match &mapping.backing {
            Backing::Vdso => CodeBacking::Vdso(mapping.file_offset),
            Backing::Anonymous => CodeBacking::Unknown,
            Backing::File { path, identity } => {
                let file = self.open(process, mapping, path, identity);
                file.and_then(|file| {
                    let segment = file.segment(mapping.file_offset)?;
                    let address = mapping
                        .file_offset
                        .wrapping_sub(segment.file_offset)
                        .wrapping_add(segment.start);
                    Some(CodeBacking::File { file, address })
                })
                .unwrap_or(CodeBacking::Unknown)
            }
        };
        Code {
            start: mapping.start,
            end: mapping.end,
            backing,
        }
    }

    fn open(
        &mut self,
        process: &Process,
        mapping: &Mapping,
        path: &str,
        identity: &Identity,
    ) -> Option<Arc<File>> {
        if self.files.are_full() {
            self.files.make_room(identities(&self.living));
        }
        self.files.open(process, mapping, path, identity)
    }

    fn wants(&self, pid: u32) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.contains(&pid))
    }

    fn fork(&mut self, pid: u32, parent: u32) {
        if !self.wants(parent) {
            return;
        }
        if let Some(targets) = &mut self.targets {
            targets.insert(pid);
        }
        // An unknown parent has unknown mappings; /proc knows the child at its first sample.
        let Some(parent) = self.living.get(&parent) else {
            return;
        };
        let child = Process {
            key: next(&mut self.next_key),
            pid,
            start_ticks: procfs::Stat::of(pid).map_or(0, |stat| stat.start),
            name: parent.name.clone(),
            executable: parent.executable.clone(),
            program: parent.program,
            mappings: parent.mappings.clone(),
            generation: 0,
            doubts: parent.doubts,
            is_partial: parent.is_partial,
            reread: parent.reread,
        };
        self.living.insert(pid, Arc::new(child));
        self.changed.push(pid);
    }

    /// The pid goes on as another program: another process as far as profiles go, with nothing mapped yet.
    fn exec(&mut self, pid: u32, name: &[u8]) {
        let image = Process {
            key: next(&mut self.next_key),
            pid,
            start_ticks: procfs::Stat::of(pid).map_or(0, |stat| stat.start),
            name: String::from_utf8_lossy(name).into_owned(),
            executable: String::new(),
            program: None,
            mappings: BTreeMap::new(),
            generation: 0,
            doubts: self.doubts,
            is_partial: false,
            reread: None,
        };
        self.living.insert(pid, Arc::new(image));
        self.changed.push(pid);
    }

    fn mmap(&mut self, mmap: &Mmap<'_>) {
        if mmap.protection & PROT_EXEC == 0 {
            return;
        }
        self.find(mmap.pid);
        let Some(process) = self.living.get_mut(&mmap.pid).map(Arc::make_mut) else {
            return;
        };
        let path = String::from_utf8_lossy(mmap.path);
        let backing = match (&*path, mmap.file) {
            ("[vdso]", _) => Backing::Vdso,
            // What has an inode or a build ID is a file, whatever it is called.
            (_, MappedFile::Inode { inode: 0, .. }) => Backing::Anonymous,
            (
                path,
                MappedFile::Inode {
                    major,
                    minor,
                    inode,
                    generation,
                },
            ) => Backing::File {
                path: path.into(),
                identity: Identity::inode(major, minor, inode, generation),
            },
            (path, MappedFile::BuildId(id)) => Backing::File {
                path: path.into(),
                identity: Identity::build_id_of(id),
            },
        };
        if process.executable.is_empty() && matches!(backing, Backing::File { .. }) {
            // The program itself is the first file that exec maps.
            process.executable = path.into_owned();
            // By now another may run there.
            process.program = program_of(mmap.pid)
                .filter(|(_, path)| process.is_of(None, path))
                .map(|(program, _)| program);
        }
        process.insert(Mapping {
            start: mmap.start,
            end: mmap.start.saturating_add(mmap.len),
            file_offset: mmap.file_offset,
            backing,
        });
        if self.changed.last() != Some(&mmap.pid) {
            self.changed.push(mmap.pid);
        }
    }
}

/// Device and inode of the program that a pid runs, and its path. In this order: a path that is the expected one came with the inode, or after it.
fn program_of(pid: u32) -> Option<((u64, u64), String)> {
    let link = format!("/proc/{}/exe", procfs::thread_with_memory(pid));
    // Without asking a server that may be away.
    let stat = rustix::fs::statx(rustix::fs::CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let path = std::fs::read_link(link).ok()?;
    Some(((device, stat.stx_ino), path.to_string_lossy().into_owned()))
}

/// The last part of a program's path, as exec and /proc both have it.
fn base_name(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

fn next(key: &mut u32) -> Key {
    let this = *key;
    *key = key.wrapping_add(1);
    Key(this)
}

impl Process {
    fn from_proc(pid: u32, key: Key) -> Self {
        let name = procfs::read(format!("/proc/{pid}/comm"), 64).unwrap_or_default();
        let (program, executable) = program_of(pid).unzip();
        let mut process = Self {
            key,
            pid,
            start_ticks: procfs::Stat::of(pid).map_or(0, |stat| stat.start),
            name: String::from_utf8_lossy(name.trim_ascii_end()).into_owned(),
            executable: executable.unwrap_or_default(),
            program,
            mappings: BTreeMap::new(),
            generation: 0,
            doubts: 0,
            is_partial: false,
            reread: None,
        };
        process.rescan();
        process
    }

    /// Whether this is its name, as far as the kernel keeps names.
    pub fn is_called(&self, name: Comm) -> bool {
        Comm::from(self.name.as_str()) == name
    }

    /// Whether its pid still runs its program, as far as /proc can tell: the news of an exec, or of another process under its pid, comes
    /// some milliseconds late.
    pub fn is_current(&self) -> bool {
        program_of(self.pid).is_some_and(|(program, path)| self.is_of(Some(program), &path))
    }

    /// Whether this is its program. By name only while there is nothing better: a program that was moved is the same.
    fn is_of(&self, program: Option<(u64, u64)>, path: &str) -> bool {
        match (self.program, program) {
            (Some(own), Some(other)) => own == other,
            _ => base_name(&self.executable) == base_name(path),
        }
    }

    /// Whether it is over, as far as /proc can tell. The main thread may end before others.
    fn has_ended(&self) -> bool {
        procfs::Stat::of(self.pid).is_none_or(|stat| {
            let is_another = self.start_ticks != 0 && self.start_ticks != stat.start;
            is_another || matches!(stat.state, b'Z' | b'X') && stat.threads <= 1
        })
    }

    /// Its executable mappings, by address.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// Number of its mappings.
    pub fn mapping_count(&self) -> usize {
        self.mappings.len()
    }

    /// Whether it has more mappings than are kept.
    pub const fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Number of changes of its mappings.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether /proc may tell of more than is kept: no event tells of memory that is unmapped, which takes the place of what is mapped.
    fn is_to_reread(&self) -> bool {
        self.is_partial && self.reread.is_none_or(|since| since.elapsed() >= REREAD)
    }

    fn rescan(&mut self) {
        for mapping in maps::read(procfs::thread_with_memory(self.pid))
            .into_iter()
            .filter_map(|line: MapsLine| line.into_mapping())
        {
            self.insert(mapping);
        }
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=address).next_back()?;
        (address < mapping.end).then_some(mapping)
    }

    /// Adds a mapping; what it covers of older ones is gone, as `mmap` with `MAP_FIXED` does it. A file of the same name at the same place may be
    /// another: a library that was built and loaded again.
    fn insert(&mut self, new: Mapping) {
        if new.start >= new.end || self.mapping(new.start) == Some(&new) {
            return;
        }
        let covered: Vec<u64> = self
            .mappings
            .range(..new.end)
            .rev()
            .take_while(|(_, old)| old.end > new.start)
            .map(|(&start, _)| start)
            .collect();
        for start in covered {
            let Some(old) = self.mappings.remove(&start) else {
                continue;
            };
            if old.end > new.end {
                let cut = new.end - old.start;
                let rest = Mapping {
                    start: new.end,
                    file_offset: old.file_offset.wrapping_add(cut),
                    ..old.clone()
                };
                self.mappings.insert(rest.start, rest);
            }
            if old.start < new.start {
                self.mappings.insert(
                    old.start,
                    Mapping {
                        end: new.start,
                        ..old
                    },
                );
            }
        }
        self.generation = self.generation.wrapping_add(1);
        if self.mappings.len() < MAX_MAPPINGS {
            self.mappings.insert(new.start, new);
        } else {
            self.is_partial = true;
            tracing::debug!(self.pid, "more executable mappings than are kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64) -> Mapping {
        Mapping {
            start,
            end,
            file_offset: start,
            backing: Backing::Anonymous,
        }
    }

    pub(super) fn process() -> Process {
        Process {
            key: Key(0),
            pid: 0,
            start_ticks: 0,
            name: String::new(),
            executable: String::new(),
            program: None,
            mappings: BTreeMap::new(),
            generation: 0,
            doubts: 0,
            is_partial: false,
            reread: None,
        }
    }

    fn ranges(process: &Process) -> Vec<(u64, u64, u64)> {
        process
            .mappings
            .values()
            .map(|m| (m.start, m.end, m.file_offset))
            .collect()
    }

    #[test]
    fn a_new_mapping_replaces_what_it_covers() {
        let mut process = process();
        process.insert(mapping(10, 20));
        process.insert(mapping(20, 30));
        process.insert(mapping(15, 25));
        assert_eq!(ranges(&process), [(10, 15, 10), (15, 25, 15), (25, 30, 25)]);
        process.insert(mapping(17, 19));
        assert_eq!(
            ranges(&process),
            [
                (10, 15, 10),
                (15, 17, 15),
                (17, 19, 17),
                (19, 25, 19),
                (25, 30, 25)
            ]
        );
        process.insert(mapping(0, 100));
        assert_eq!(ranges(&process), [(0, 100, 0)]);
        assert!(process.mapping(99).is_some() && process.mapping(100).is_none());
    }

    #[test]
    fn a_library_that_was_built_and_loaded_again_is_another() {
        let mut process = process();
        let library = |identity| Mapping {
            backing: Backing::File {
                path: "/plugin.so".into(),
                identity,
            },
            ..mapping(10, 20)
        };
        // As /proc tells, then the kernel's events.
        let seen = [
            Identity::inode(8, 1, 5, 0),
            Identity::build_id_of(b"first"),
            Identity::build_id_of(b"second"),
            Identity::inode(8, 1, 6, 1),
            Identity::inode(8, 1, 6, 2),
        ];
        for (generation, identity) in (1..).zip(seen) {
            for _ in 0..2 {
                process.insert(library(identity.clone()));
                assert_eq!(process.mapping(15), Some(&library(identity.clone())));
                assert_eq!(process.generation(), generation, "the same again is nothing new");
            }
        }
    }

    #[test]
    fn a_program_is_known_by_its_file_and_not_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("prog"), folder.path().join("prog.old"));
        let start = || {
            // Not by this process: while it holds the file open for writing, a child of another test does too.
            let copied = std::process::Command::new("cp")
                .arg("/bin/sleep")
                .arg(&path)
                .status();
            assert!(copied.unwrap().success());
            std::process::Command::new(&path).arg("60").spawn().unwrap()
        };
        let mut first = start();
        let pid = first.id();
        let scanned = Process::from_proc(pid, Key(0));
        let mut processes = Processes::new(None);
        processes.exec(pid, b"prog");
        processes.mmap(&Mmap {
            pid,
            start: 4096,
            len: 4096,
            file_offset: 0,
            file: MappedFile::BuildId(b"id"),
            protection: PROT_EXEC,
            path: path.to_str().unwrap().as_bytes(),
        });
        let told = Arc::clone(processes.find(pid));
        let are_current = || [scanned.is_current(), told.is_current()];
        assert_eq!(are_current(), [true; 2]);
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(are_current(), [true; 2], "moved");
        let mut second = start();
        assert_eq!(are_current(), [true; 2], "replaced");
        std::fs::remove_file(&moved).unwrap();
        assert_eq!(are_current(), [true; 2], "deleted");

        let other = Process {
            pid: second.id(),
            ..told.as_ref().clone()
        };
        assert!(!other.is_current(), "another file of that name");
        // Lost events are no reason to take it for another.
        processes.doubt();
        assert_eq!(processes.find(pid).key, told.key);
        for child in [&mut first, &mut second] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(are_current(), [false; 2]);
    }

    #[test]
    fn a_file_that_can_be_read_later_is_found_then() {
        let folder = tempfile::tempdir().unwrap();
        let (libc, path) = ("/lib/x86_64-linux-gnu/libc.so.6", folder.path().join("lib.so"));
        let (segments, build_id, _) = identify(&std::fs::File::open(libc).unwrap()).unwrap();
        let pid = std::process::id();
        let mut processes = Processes::new(None);
        processes.mmap(&Mmap {
            pid,
            start: 4096,
            len: 4096,
            file_offset: segments[0].file_offset,
            file: MappedFile::BuildId(&build_id),
            protection: PROT_EXEC,
            path: path.to_str().unwrap().as_bytes(),
        });
        let look = |processes: &mut Processes| {
            let process = Arc::clone(processes.find(pid));
            let is_found = matches!(processes.place(&process, 5000), Place::File(..));
            (is_found, process.generation())
        };
        let (is_found, generation) = look(&mut processes);
        assert!(!is_found);
        std::fs::copy(libc, &path).unwrap();
        assert_eq!(look(&mut processes), (false, generation), "not at each sample");
        processes.take_changed();
        processes.look_for_gone();
        assert_eq!(look(&mut processes), (true, generation + 1));
        assert_eq!(processes.take_changed(), [pid]);
        processes.look_for_gone();
        assert_eq!(look(&mut processes), (true, generation + 1));
    }

    #[test]
    fn what_is_unmapped_takes_no_room_for_ever() {
        let mut processes = Processes::new(None);
        let pid = std::process::id();
        let map = |processes: &mut Processes, count: u64| {
            for start in (0..count).map(|page| page * 4096) {
                processes.mmap(&Mmap {
                    pid,
                    start,
                    len: 4096,
                    file_offset: start,
                    file: MappedFile::BuildId(b"id"),
                    protection: PROT_EXEC,
                    path: b"/gone",
                });
            }
        };
        let most = MAX_MAPPINGS as u64;
        map(&mut processes, most);
        let full = Arc::clone(processes.find(pid));
        assert!(full.mapping_count() < MAX_MAPPINGS / 2, "read again");
        assert!(!full.is_partial() && full.generation() > 0);

        // Not all the time.
        map(&mut processes, most);
        assert!(processes.find(pid).is_partial());
        let process = Arc::make_mut(processes.living.get_mut(&pid).unwrap());
        process.reread = process.reread.and_then(|since| since.checked_sub(REREAD));
        assert!(!processes.find(pid).is_partial());
    }

    #[test]
    fn finds_the_code_of_this_process() {
        let mut processes = Processes::new(None);
        let pid = std::process::id();
        let process = Arc::clone(processes.find(pid));
        let address = finds_the_code_of_this_process as *const () as u64;
        let Place::File(file, segment, address) = processes.place(&process, address) else {
            panic!("not found")
        };
        assert!(file.path.contains("profiler_agent"), "{}", file.path);
        assert!((segment.start..segment.limit).contains(&address));
        assert!(matches!(processes.place(&process, 16), Place::Nowhere));
    }

    #[test]
    fn a_process_whose_end_was_missed_is_forgotten() {
        let mut processes = Processes::new(None);
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        processes.find(own);
        processes.find(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        processes.look_for_gone();
        std::thread::sleep(MEMORY_OF_ENDED);
        processes.forget_ended();
        assert!(processes.get(own).is_some());
        assert!(processes.get(child.id()).is_none());
    }

    #[test]
    fn an_end_is_looked_for_once_after_all_events_and_once_more_later() {
        let mut processes = Processes::new(None);
        let sleeper = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mut early, mut late, own) = (sleeper(), sleeper(), std::process::id());
        let pids = [early.id(), late.id(), own];
        for pid in pids {
            processes.find(pid);
            for tid in 0..1000 {
                processes.apply(&Record::Exit { pid, tid });
            }
        }
        assert_eq!(processes.exits.len(), 3);
        let end = |child: &mut std::process::Child| {
            child.kill().unwrap();
            child.wait().unwrap();
        };
        end(&mut early);
        processes.look_at_exits();
        // Linux tells of the end before a large address space is taken down.
        end(&mut late);
        std::thread::sleep(MEMORY_OF_ENDED);
        let are_known = |processes: &Processes| pids.map(|pid| processes.get(pid).is_some());
        processes.forget_ended();
        assert_eq!(
            are_known(&processes),
            [false, true, true],
            "last samples are on their way"
        );
        std::thread::sleep(MEMORY_OF_ENDED);
        processes.forget_ended();
        assert_eq!(are_known(&processes), [false, false, true]);
    }

    #[test]
    fn exec_begins_a_new_image_and_fork_copies_one() {
        let mut processes = Processes::new(Some(&[7]));
        processes.apply(&Record::Comm {
            pid: 7,
            tid: 7,
            name: b"one",
            exec: true,
        });
        let mmap = |pid| {
            Record::Mmap(Mmap {
                pid,
                start: 4096,
                len: 4096,
                file_offset: 0,
                file: MappedFile::Inode {
                    major: 0,
                    minor: 0,
                    inode: 0,
                    generation: 0,
                },
                protection: 5,
                path: b"//anon",
            })
        };
        processes.apply(&mmap(7));
        processes.apply(&mmap(8)); // a stranger
        processes.apply(&Record::Fork {
            pid: 9,
            parent: 7,
            tid: 9,
        });
        let place = |processes: &mut Processes, pid| {
            let process = Arc::clone(processes.find(pid));
            processes.place(&process, 5000)
        };
        assert!(matches!(place(&mut processes, 9), Place::Anonymous(4096, 8192)));
        assert!(matches!(place(&mut processes, 8), Place::Nowhere));
        processes.apply(&Record::Comm {
            pid: 9,
            tid: 9,
            name: b"two",
            exec: true,
        });
        assert!(matches!(place(&mut processes, 9), Place::Nowhere));
        assert_eq!(processes.find(9).name, "two");
        assert_eq!(processes.find(7).name, "one");
    }

    #[test]
    fn a_child_whose_fork_was_lost_is_a_target_from_its_first_sample_on() {
        let mut processes = Processes::new(Some(&[std::process::id()]));
        let child = u32::MAX - 1;
        processes.find(child);
        processes.apply(&Record::Fork {
            pid: u32::MAX - 2,
            parent: child,
            tid: u32::MAX - 2,
        });
        for (pid, name) in [(child, &b"another"[..]), (u32::MAX - 2, b"its child")] {
            processes.apply(&Record::Comm {
                pid,
                tid: pid,
                name,
                exec: true,
            });
        }
        assert_eq!(processes.find(child).name, "another");
        assert_eq!(processes.find(u32::MAX - 2).name, "its child");
    }
}
