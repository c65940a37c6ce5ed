//! The files behind mappings: the right one, opened once, its segments known.
//!
//! A path is only a hint: it counts from another root, may have been replaced, or be gone. /proc/PID/map_files leads to the mapped
//! file itself; where that is refused or the process is gone, the path is tried, and what it leads to must be the file that was
//! mapped. The files are a stranger's: they are read with bounds, and never mapped into this process.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use object::{
    Endianness,
    elf::{self, FileHeader64, ProgramHeader64},
    pod,
    read::elf::{FileHeader as _, ProgramHeader as _},
};
use rustix::fs::{Mode, OFlags};
use sha2::Digest as _;

use super::{Backing, Key, Mapping, Process};
use crate::procfs;

/// Most program headers that are looked at; compilers make about 14.
const MAX_SEGMENTS: usize = 256;
/// Most bytes of notes that are searched for a build ID.
const MAX_NOTES: u64 = 64 << 10;
/// Type of the note `Go` that holds a build ID.
const NT_GO_BUILD_ID: u32 = 4;
/// Most characters of Go's build ID; it has 83.
const MAX_GO_BUILD_ID: usize = 256;
/// Most files that are held open. Beyond, those that no process maps any more are forgotten; if that does not help, further ones are not read.
const MAX_FILES: usize = 4096;
/// Most identities that they are known by: besides its build ID a file has an inode in each container, where the kernel shows those of overlayfs. Beyond,
/// the inodes of files that have a build ID are forgotten.
const MAX_IDENTITIES: usize = 4 * MAX_FILES;

/// Most failures that are remembered; beyond, all are tried again.
const MAX_FAILURES: usize = 16_384;

/// Which file was mapped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The file with this build ID.
    BuildId(Arc<[u8]>),
    /// The file with this inode on this device.
    Inode {
        /// Device.
        device: u64,
        /// Inode,
        inode: u64,
        /// and which of the files that had it one after the other; 0 is not known, /proc does not say.
        generation: u32,
    },
}

impl Identity {
    pub(super) fn inode(major: u32, minor: u32, inode: u64, generation: u32) -> Self {
        Self::Inode {
            device: rustix::fs::makedev(major, minor),
            inode,
            generation,
        }
    }

    pub(super) fn build_id_of(id: &[u8]) -> Self {
        Self::BuildId(id.into())
    }

    /// The build ID, if that is what is known.
    pub fn build_id(&self) -> &[u8] {
        match self {
            Self::BuildId(id) => id,
            Self::Inode { .. } => &[],
        }
    }
}

/// An ELF file that is mapped somewhere.
#[derive(Debug)]
pub struct File {
    /// Number in this run, never used again.
    pub id: u32,
    /// Path as the process saw it that led here first.
    pub path: String,
    /// That process.
    pub pid: u32,
    /// GNU build ID; empty without one.
    pub build_id: Vec<u8>,
    /// Go's build ID; empty without one.
    pub go_build_id: String,
    /// See [`crate::profile::Mapping::htlhash`].
    pub htlhash: Option<[u8; 16]>,
    /// Open for reading.
    pub file: Arc<fs::File>,
    segments: Vec<Segment>,
}

/// An executable segment (`PT_LOAD` with `PF_X`), in pages as it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// First virtual address.
    pub start: u64,
    /// First virtual address behind it.
    pub limit: u64,
    /// Offset in the file of the first address.
    pub file_offset: u64,
}

impl File {
    /// The virtual addresses of its code, from the first executable segment to the last; empty without one.
    pub fn code(&self) -> std::ops::Range<u64> {
        let start = self
            .segments
            .iter()
            .map(|segment| segment.start)
            .min()
            .unwrap_or_default();
        let end = self
            .segments
            .iter()
            .map(|segment| segment.limit)
            .max()
            .unwrap_or_default();
        start..end
    }

    /// Whether no folder has it any more.
    fn is_deleted(&self) -> bool {
        rustix::fs::fstat(self.file.as_fd()).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// The segment that holds an offset of the file.
    pub fn segment(&self, offset: u64) -> Option<Segment> {
        self.segments.iter().copied().find(|segment| {
            offset
                .checked_sub(segment.file_offset)
                .is_some_and(|o| o < segment.limit - segment.start)
        })
    }
}

/// Every file met so far.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// What each identity led to.
    known: HashMap<Identity, Arc<File>>,
    /// Numbers of those files.
    held: HashSet<u32>,
    /// Whether nearly all were in use when room was made last.
    is_crowded: bool,
    /// Whether it has been told that there is no room.
    told: bool,
    /// What could not be read in the view of a process. That says nothing of others: it may have ended, in a root of its own.
    failures: HashSet<(Key, Identity)>,
    /// Numbers of deleted files that no process mapped at the last look.
    deleted: HashSet<u32>,
    /// Numbers of the files that were forgotten since somebody asked.
    forgotten: Vec<u32>,
    next_id: u32,
}

impl Files {
    /// The file of a mapping of a process.
    pub(super) fn open(
        &mut self,
        process: &Process,
        mapping: &Mapping,
        path: &str,
        identity: &Identity,
    ) -> Option<Arc<File>> {
        if let Some(known) = self.known.get(identity) {
            return Some(Arc::clone(known));
        }
        let failure = (process.key, identity.clone());
        if self.failures.contains(&failure) {
            return None;
        }
        let pid = process.pid;
        let file = candidates(pid, mapping, path).find_map(|(candidate, certain)| {
            let file = open_regular(&candidate)?;
            let image = Image::read(&file)?;
            // By the time of this look another program may run there. A build ID can always be compared.
            let certain = certain && matches!(identity, Identity::Inode { .. });
            let is_it = certain || is(&file, &image, identity);
            is_it.then(|| self.keep(file, image, path, pid)).flatten()
        });
        match &file {
            Some(file) => {
                self.known.insert(identity.clone(), Arc::clone(file));
            }
            None => {
                tracing::debug!(pid, path, "the mapped file cannot be read");
                if self.failures.len() >= MAX_FAILURES {
                    self.failures.clear();
                }
                self.failures.insert(failure);
            }
        }
        file
    }

    /// What could not be read, or found no room, is tried again. Tells which processes had such.
    pub(super) fn take_failures(&mut self) -> HashSet<Key> {
        self.is_crowded = false;
        self.failures.drain().map(|(key, _)| key).collect()
    }

    /// Whether there is no room for another, and room can be made.
    pub(super) fn are_full(&self) -> bool {
        self.held.len() >= MAX_FILES && !self.is_crowded || self.known.len() >= MAX_IDENTITIES
    }

    /// Makes room. Files that are kept keep their numbers, by which tables and names are known.
    pub(super) fn make_room<'a>(&mut self, in_use: impl Iterator<Item = &'a Identity>) {
        if self.known.len() >= MAX_IDENTITIES {
            // Opened again they lead to the file that has their build ID.
            self.retain(|identity, file| {
                matches!(identity, Identity::BuildId(_)) || file.build_id.is_empty()
            });
        }
        if self.held.len() >= MAX_FILES {
            let in_use = self.ids(in_use);
            self.retain(|_, file| in_use.contains(&file.id));
            // Not with every file from then on: that looks at each mapping of each process.
            self.is_crowded = self.held.len() > MAX_FILES / 4 * 3;
        }
    }

    /// Forgets the files that are deleted and that no process mapped at this look and the last. Nobody can run them again, and as long as they are
    /// open their blocks are not free.
    pub(super) fn forget_deleted<'a>(&mut self, in_use: impl Iterator<Item = &'a Identity>) {
        let in_use = self.ids(in_use);
        let known = self.known.values();
        let deleted: HashSet<u32> = known
            .filter(|file| !in_use.contains(&file.id) && file.is_deleted())
            .map(|file| file.id)
            .collect();
        let gone = &deleted & &self.deleted;
        self.retain(|_, file| !gone.contains(&file.id));
        self.deleted = &deleted - &gone;
    }

    /// Numbers of the files that were forgotten since the last call: they are never used again.
    pub(super) fn take_forgotten(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.forgotten)
    }

    /// Numbers of the files of these identities. A file may be known by two, its build ID and its inode.
    fn ids<'a>(&self, identities: impl Iterator<Item = &'a Identity>) -> HashSet<u32> {
        identities
            .filter_map(|identity| self.known.get(identity))
            .map(|file| file.id)
            .collect()
    }

    /// Forgets the other identities, and the files that no identity leads to then.
    fn retain(&mut self, is_kept: impl Fn(&Identity, &File) -> bool) {
        self.known.retain(|identity, file| is_kept(identity, file));
        let held = self.known.values().map(|file| file.id).collect();
        self.forgotten.extend(self.held.difference(&held));
        self.held = held;
    }

    /// Keeps a file, if there is room. One that is known by its build ID, from another mapping, is that one.
    fn keep(&mut self, file: fs::File, image: Image, path: &str, pid: u32) -> Option<Arc<File>> {
        let build_id = (!image.build_id.is_empty()).then(|| Identity::build_id_of(&image.build_id));
        let known = build_id.as_ref().and_then(|id| self.known.get(id));
        if let Some(known) = known {
            return Some(Arc::clone(known));
        }
        if self.held.len() >= MAX_FILES {
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(
                    path,
                    "{MAX_FILES} other files are mapped: this code has no names and is unwound by frame pointer, and so may be other code"
                );
            }
            return None;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.held.insert(id);
        let file = Arc::new(File {
            id,
            path: path.to_owned(),
            pid,
            build_id: image.build_id,
            go_build_id: image.go_build_id,
            htlhash: htlhash(&file).ok(),
            file: Arc::new(file),
            segments: image.segments,
        });
        if let Some(build_id) = build_id {
            self.known.insert(build_id, Arc::clone(&file));
        }
        Some(file)
    }
}

/// Opens the file of a mapping of a process, whatever it holds, if it can be told to be that.
pub(crate) fn open_mapped(pid: u32, mapping: &Mapping) -> Option<fs::File> {
    let Backing::File { path, identity } = &mapping.backing else {
        return None;
    };
    candidates(pid, mapping, path).find_map(|(candidate, certain)| {
        let file = open_regular(&candidate)?;
        let is_it = match identity {
            Identity::BuildId(_) => certain,
            Identity::Inode { device, inode, .. } => {
                certain
                    || rustix::fs::fstat(file.as_fd())
                        .is_ok_and(|stat| stat.st_dev == *device && stat.st_ino == *inode)
            }
        };
        is_it.then_some(file)
    })
}

/// Where the mapped file may be, and whether what is there is certainly it.
fn candidates(pid: u32, mapping: &Mapping, path: &str) -> impl Iterator<Item = (String, bool)> + use<> {
    let pid = procfs::thread_with_memory(pid);
    let in_map_files = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let in_its_root = format!("/proc/{pid}/root{path}");
    let here = path.to_owned();
    [(in_map_files, true), (in_its_root, false), (here, false)]
        .into_iter()
        .filter(|(path, _)| path.starts_with('/'))
}

/// Opens a regular file, and nothing else: opening a FIFO waits for its writer, opening a device may do anything.
fn open_regular(path: &str) -> Option<fs::File> {
    let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(handle.as_fd()).ok()?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    fs::File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()
}

/// Whether this is the file that was mapped.
fn is(file: &fs::File, image: &Image, identity: &Identity) -> bool {
    match identity {
        Identity::BuildId(id) => image.build_id == **id,
        Identity::Inode { device, inode, .. } => {
            rustix::fs::fstat(file.as_fd()).is_ok_and(|stat| stat.st_dev == *device && stat.st_ino == *inode)
        }
    }
}

/// What is needed of an ELF file, read with `pread`.
pub(super) struct Image {
    segments: Vec<Segment>,
    pub(super) build_id: Vec<u8>,
    go_build_id: String,
}

impl Image {
    pub(super) fn read(file: &fs::File) -> Option<Self> {
        let mut header = [0; size_of::<FileHeader64<Endianness>>()];
        file.read_exact_at(&mut header, 0).ok()?;
        let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(&header).ok()?;
        let endian = header.is_supported().then(|| header.endian().ok()).flatten()?;
        let count = usize::from(header.e_phnum(endian)).min(MAX_SEGMENTS);
        let mut headers = vec![0; count * size_of::<ProgramHeader64<Endianness>>()];
        file.read_exact_at(&mut headers, header.e_phoff(endian)).ok()?;
        let (headers, _) = pod::slice_from_bytes::<ProgramHeader64<Endianness>>(&headers, count).ok()?;

        let segments = headers
            .iter()
            .filter(|segment| {
                segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian) & elf::PF_X != 0
            })
            .filter_map(|segment| {
                pages(
                    segment.p_vaddr(endian),
                    segment.p_offset(endian),
                    segment.p_filesz(endian),
                )
            })
            .collect();
        let mut image = Self {
            segments,
            build_id: Vec::new(),
            go_build_id: String::new(),
        };
        for segment in headers
            .iter()
            .filter(|segment| segment.p_type(endian) == elf::PT_NOTE)
        {
            let Ok(len) = usize::try_from(segment.p_filesz(endian).min(MAX_NOTES)) else {
                continue;
            };
            let mut notes = vec![0; len];
            if file.read_exact_at(&mut notes, segment.p_offset(endian)).is_err() {
                continue;
            }
            image.take_notes(endian, segment.p_align(endian), &notes);
        }
        Some(image)
    }

    /// The first build ID of each kind.
    fn take_notes(&mut self, endian: Endianness, align: u64, notes: &[u8]) {
        let notes = object::read::elf::NoteIterator::<FileHeader64<Endianness>>::new(endian, align, notes);
        let Ok(mut notes) = notes else { return };
        while let Ok(Some(note)) = notes.next() {
            match (note.name(), note.n_type(endian)) {
                (elf::ELF_NOTE_GNU, elf::NT_GNU_BUILD_ID) if self.build_id.is_empty() => {
                    self.build_id = note.desc().to_vec();
                }
                (elf::ELF_NOTE_GO, NT_GO_BUILD_ID) if self.go_build_id.is_empty() => {
                    let id = str::from_utf8(note.desc()).unwrap_or_default();
                    let is_plain =
                        id.bytes().all(|byte| byte.is_ascii_graphic()) && id.len() <= MAX_GO_BUILD_ID;
                    if is_plain {
                        id.clone_into(&mut self.go_build_id);
                    }
                }
                _ => {}
            }
        }
    }
}

/// What tells which file it is: its executable segments, its build ID, and that of Go. `None` for what is no ELF file.
pub fn identify(file: &fs::File) -> Option<(Vec<Segment>, Vec<u8>, String)> {
    let Image {
        segments,
        build_id,
        go_build_id,
    } = Image::read(file)?;
    Some((segments, build_id, go_build_id))
}

/// The first 16 bytes of SHA-256 over the first 4,096 bytes, the last 4,096 bytes and the length.
fn htlhash(file: &fs::File) -> std::io::Result<[u8; 16]> {
    const PART: u64 = 4096;
    let len = file.metadata()?.len();
    let mut part = vec![0; usize::try_from(len.min(PART)).unwrap_or_default()];
    let mut hash = sha2::Sha256::new();
    for start in [0, len.saturating_sub(PART)] {
        file.read_exact_at(&mut part, start)?;
        hash.update(&part);
    }
    hash.update(len.to_be_bytes());
    let hash = hash.finalize();
    Ok(hash.first_chunk().copied().unwrap_or_default())
}

/// A segment in whole pages, as `mmap` maps it.
fn pages(address: u64, offset: u64, len: u64) -> Option<Segment> {
    let page = rustix::param::page_size() as u64;
    let inside = offset % page;
    let limit = address.checked_add(len)?.checked_next_multiple_of(page)?;
    let start = address.checked_sub(inside)?;
    (start < limit).then_some(Segment {
        start,
        limit,
        file_offset: offset - inside,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::process, *};

    #[test]
    fn reads_segments_and_build_id_as_readelf_does() {
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let image = Image::read(&open_regular(libc).unwrap()).unwrap();
        assert_eq!(image.segments.len(), 1);
        let notes = std::process::Command::new("readelf")
            .args(["-n", libc])
            .output()
            .unwrap();
        let notes = String::from_utf8_lossy(&notes.stdout).into_owned();
        let id: String = image.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(notes.contains(&format!("Build ID: {id}")), "{notes}");
    }

    /// Of a process that is not there: files are found by their paths.
    const MAPPING: Mapping = Mapping {
        start: 0,
        end: 0,
        file_offset: 0,
        backing: Backing::Anonymous,
    };

    fn build_id_of(path: &str) -> Identity {
        let image = Image::read(&open_regular(path).unwrap()).unwrap();
        Identity::build_id_of(&image.build_id)
    }

    /// As many files without a build ID as there is room for.
    fn fill(files: &mut Files) -> Vec<Identity> {
        let file = Arc::new(open_regular("/proc/self/exe").unwrap());
        let mut filled = Vec::new();
        while !files.are_full() {
            let id = files.next_id;
            files.next_id += 1;
            let other = File {
                id,
                path: String::new(),
                pid: 0,
                build_id: Vec::new(),
                go_build_id: String::new(),
                htlhash: None,
                file: Arc::clone(&file),
                segments: Vec::new(),
            };
            let identity = Identity::inode(0, 0, id.into(), 0);
            files.held.insert(id);
            files.known.insert(identity.clone(), Arc::new(other));
            filled.push(identity);
        }
        filled
    }

    #[test]
    fn what_processes_took_along_can_be_read_through_another() {
        let mut files = Files::default();
        let (libc, there) = ("/lib/x86_64-linux-gnu/libc.so.6", "/in/its/root/libc.so.6");
        let open = |files: &mut Files, key, path| {
            let process = Process {
                key: Key(key),
                ..process()
            };
            files.open(&process, &MAPPING, path, &build_id_of(libc)).is_some()
        };
        for key in 0..100 {
            assert!(!open(&mut files, key, there));
        }
        assert!(!open(&mut files, 0, libc), "nobody looks at each sample");
        assert!(open(&mut files, 100, libc));

        let mut files = Files::default();
        assert!(!open(&mut files, 0, there));
        files.take_failures();
        assert!(open(&mut files, 0, libc), "it is tried again later");
    }

    #[test]
    fn files_in_use_keep_their_numbers_when_others_are_forgotten() {
        let mut files = Files::default();
        let (libc, libm) = (
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib/x86_64-linux-gnu/libm.so.6",
        );
        let open = |files: &mut Files, path: &str| {
            let file = files.open(&process(), &MAPPING, path, &build_id_of(path));
            file.unwrap().id
        };
        let first = open(&mut files, libc);
        let second = open(&mut files, libm);
        assert_ne!(first, second);
        fill(&mut files);
        let in_use = build_id_of(libc);
        files.make_room([&in_use].into_iter());
        assert_eq!(files.known.len(), 1);
        assert_eq!(open(&mut files, libc), first);
        assert!(open(&mut files, libm) > second, "never used again");
    }

    #[test]
    fn when_all_files_are_in_use_further_ones_are_not_read() {
        let mut files = Files::default();
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let open = |files: &mut Files| files.open(&process(), &MAPPING, libc, &build_id_of(libc));
        let in_use = fill(&mut files);
        assert_eq!(in_use.len(), MAX_FILES);
        files.make_room(in_use.iter());
        assert!(open(&mut files).is_none());
        assert!(!files.are_full(), "nobody looks for room all the time");
        assert!(files.take_forgotten().is_empty());
        assert_eq!(files.known.len(), MAX_FILES);

        files.take_failures();
        assert!(files.are_full());
        files.make_room([].into_iter());
        assert_eq!(files.take_forgotten().len(), MAX_FILES, "their tables go too");
        assert!(open(&mut files).is_some());
    }

    #[test]
    fn a_file_in_many_containers_is_one() {
        let mut files = Files::default();
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let stat = rustix::fs::stat(libc).unwrap();
        let inode = Identity::Inode {
            device: stat.st_dev,
            inode: stat.st_ino,
            generation: 0,
        };
        let open = |files: &mut Files, identity: &Identity| {
            files.open(&process(), &MAPPING, libc, identity).unwrap()
        };
        let file = open(&mut files, &inode);
        for inode in 0..MAX_IDENTITIES as u64 {
            let identity = Identity::inode(0, 0, inode, 0);
            files.known.insert(identity, Arc::clone(&file));
        }
        assert!(files.are_full());
        // Nobody says that it is in use.
        files.make_room([].into_iter());
        assert!(!files.are_full());
        for identity in [build_id_of(libc), inode] {
            assert_eq!(open(&mut files, &identity).id, file.id);
        }
        assert!(files.take_forgotten().is_empty());
    }

    #[test]
    fn deleted_files_are_let_go_of_when_nobody_maps_them() {
        let mut files = Files::default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libm.so.6");
        fs::copy("/lib/x86_64-linux-gnu/libm.so.6", &path).unwrap();
        let identity = build_id_of(path.to_str().unwrap());
        let open = |files: &mut Files| {
            files.take_failures();
            files.open(&process(), &MAPPING, path.to_str().unwrap(), &identity)
        };
        let id = open(&mut files).unwrap().id;
        for _ in 0..3 {
            files.forget_deleted([].into_iter());
        }
        assert_eq!(
            open(&mut files).unwrap().id,
            id,
            "it is there and may be run again"
        );

        fs::remove_file(&path).unwrap();
        for _ in 0..3 {
            files.forget_deleted([&identity].into_iter());
        }
        assert_eq!(open(&mut files).unwrap().id, id, "it is mapped");
        files.forget_deleted([].into_iter());
        assert_eq!(
            open(&mut files).unwrap().id,
            id,
            "its last samples may be on their way"
        );
        assert!(files.take_forgotten().is_empty());
        files.forget_deleted([].into_iter());
        assert_eq!(files.take_forgotten(), [id]);
        assert!(open(&mut files).is_none());
    }

    #[test]
    fn another_file_with_the_inode_of_one_that_is_gone_is_another() {
        assert_ne!(Identity::inode(8, 1, 9, 4), Identity::inode(8, 1, 9, 5));
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        for path in ["/dev/zero", "/tmp", "/proc/self/fd/99999", "/no/such/file"] {
            assert!(open_regular(path).is_none(), "{path}");
        }
    }

    #[test]
    fn garbage_is_no_image() {
        let file = tempfile::tempfile().unwrap();
        assert!(Image::read(&file).is_none());
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        assert!(Image::read(&file).is_none());
        // A valid header that promises program headers behind the end.
        let mut header = vec![0; 64];
        open_regular("/proc/self/exe")
            .unwrap()
            .read_exact_at(&mut header, 0)
            .unwrap();
        header[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        file.write_all_at(&header, 0).unwrap();
        assert!(Image::read(&file).is_none());
    }
}
