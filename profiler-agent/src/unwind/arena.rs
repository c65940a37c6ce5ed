//! The memory that the kernel programs unwind from, [`profiler_common::arena`], as its owner sees it.
//!
//! Segments are BPF arrays of one element, mapped here: a block is written with plain stores and becomes visible to the programs when something
//! that they look up points to it. A block that nothing points to any more may still be in use by a walk that has begun; its
//! place is used again after [`GRACE`].
#![expect(unsafe_code, reason = "the segments are memory shared with the kernel")]

use std::{
    collections::BTreeMap,
    io,
    mem::offset_of,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapError};
use profiler_common::arena::{self, MAX_SEGMENTS, News, SEGMENT_LEN, USED_AT};

use crate::sampling::bpf;

/// How long a block that was given back is left alone: a walk takes microseconds.
const GRACE: Duration = Duration::from_secs(1);

/// Blocks begin at multiples of this.
const ALIGN: u32 = 8;

/// Bytes at the start of each segment where no block begins: place 0 of segment 0 means "none".
const RESERVED: u32 = 64;

/// Bytes of the least that can be mapped.
const PAGE: usize = 4096;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// Segment.
    pub(super) segment: u32,
    /// Byte offset in it.
    pub(super) offset: u32,
    /// Bytes, rounded up.
    pub(super) len: u32,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Arena {
    /// The programs' array of segments.
    outer: MapData,
    segments: Vec<Segment>,
    /// Most segments.
    limit: usize,
    retired: Vec<(Instant, Block)>,
    /// [`News`].
    news: Shared,
    /// Counts the times that uses are told apart by.
    epoch: u32,
    /// Counts the lists that were pointed to.
    lists: u32,
}

/// One segment.
#[derive(Debug)]
pub(super) struct Segment {
    shared: Shared,
    /// Lengths of the free ranges by their offsets.
    free: BTreeMap<u32, u32>,
}

/// The only element of a BPF array, mapped here.
#[derive(Debug)]
struct Shared {
    memory: NonNull<u8>,
    len: usize,
    map: MapData,
}

// SAFETY: on this side the memory belongs to this value alone.
unsafe impl Send for Shared {}

/// Why a block could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArenaError {
    /// All of the budget is in use.
    #[error("the memory for unwinding is used up")]
    Full,
    /// Larger than a segment.
    #[error("a block of {0} bytes is larger than a segment")]
    TooLarge(usize),
    /// The kernel gave no further segment.
    #[error("no memory for unwinding could be had")]
    Map(#[from] MapError),
    /// The kernel gave no further segment.
    #[error("no memory for unwinding could be had")]
    Io(#[from] io::Error),
}

impl Arena {
    /// Takes over the programs' array of segments and their [`News`]; uses at most `bytes`, in whole segments, at least one.
    ///
    /// # Errors
    ///
    /// When the news cannot be mapped.
    pub(super) fn new(outer: MapData, news: MapData, bytes: usize) -> io::Result<Self> {
        let limit = (bytes / SEGMENT_LEN).clamp(1, MAX_SEGMENTS);
        let mut arena = Self {
            outer,
            segments: Vec::new(),
            limit,
            retired: Vec::new(),
            news: Shared::map(news, PAGE)?,
            epoch: 0,
            lists: 0,
        };
        arena.advance_epoch();
        Ok(arena)
    }

    /// Begins another epoch: tables that are used from now on can be told from those that were used before.
    pub(super) fn advance_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.news.write(offset_of!(News, epoch), self.epoch);
    }

    /// Tells the programs that a process points to another list now, or to none: from here on no walk begins with the old one.
    pub(super) fn tell_of_list(&mut self) {
        self.lists = self.lists.wrapping_add(1);
        self.news.write(offset_of!(News, lists), self.lists);
    }

    /// How many epochs ago the kernel programs used a table last; 0 is in this one.
    pub(super) fn idle(&self, table: Block) -> u32 {
        let used = self
            .segment(table.segment)
            .map_or(0, |segment| arena::Segment::u32(&segment, table.offset + USED_AT));
        self.epoch.wrapping_sub(used)
    }

    /// Notes that a table is used in this epoch, as the programs do.
    pub(super) fn mark_as_used(&self, table: Block) {
        if let Some(segment) = self.segments.get(table.segment as usize) {
            segment
                .shared
                .write((table.offset + USED_AT) as usize, self.epoch);
        }
    }

    /// A segment, to be read as the programs read it.
    pub(super) fn segment(&self, number: u32) -> Option<&Segment> {
        self.segments.get(number as usize)
    }

    /// Bytes that there can be at most.
    pub(super) const fn capacity(&self) -> usize {
        self.limit * SEGMENT_LEN
    }

    /// Bytes that are free, in pieces of any size.
    pub(super) fn free(&self) -> usize {
        let coming = (self.limit - self.segments.len()) * SEGMENT_LEN;
        let free = self.segments.iter().flat_map(|segment| segment.free.values());
        coming + free.map(|&len| len as usize).sum::<usize>()
    }

    /// Bytes that wait to be free again.
    pub(super) fn retired(&self) -> usize {
        self.retired.iter().map(|(_, block)| block.len as usize).sum()
    }

    /// Bytes of kernel memory in use.
    pub(super) fn memory(&self) -> usize {
        self.segments.len() * SEGMENT_LEN
    }

    /// Writes a block.
    ///
    /// # Errors
    ///
    /// [`ArenaError`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<Block, ArenaError> {
        let len = u32::try_from(bytes.len().max(1).next_multiple_of(ALIGN as usize))
            .ok()
            .filter(|&len| len as usize + RESERVED as usize <= SEGMENT_LEN)
            .ok_or(ArenaError::TooLarge(bytes.len()))?;
        self.reclaim();
        let block = match self.take(len) {
            Some(block) => block,
            None => {
                self.grow()?;
                self.take(len).ok_or(ArenaError::Full)?
            }
        };
        let segment = self.segment(block.segment).ok_or(ArenaError::Full)?;
        // SAFETY: the block lies inside the segment.
        let to = unsafe { segment.shared.memory.as_ptr().add(block.offset as usize) };
        // SAFETY: `to` has room for `len` bytes, at least as many as `bytes` has; nobody reads them yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(block)
    }

    /// Gives a block back, after everything that pointed to it points elsewhere.
    pub(super) fn retire(&mut self, block: Block) {
        self.retired.push((Instant::now(), block));
    }

    /// Takes a block back that nothing has pointed to yet.
    pub(super) fn take_back(&mut self, block: Block) {
        if let Some(segment) = self.segments.get_mut(block.segment as usize) {
            segment.give(block.offset, block.len);
        }
    }

    /// Frees what has been retired long enough ago.
    fn reclaim(&mut self) {
        let ripe = self
            .retired
            .partition_point(|(since, _)| since.elapsed() >= GRACE);
        let ripe: Vec<(Instant, Block)> = self.retired.drain(..ripe).collect();
        for (_, block) in ripe {
            self.take_back(block);
        }
    }

    fn take(&mut self, len: u32) -> Option<Block> {
        (0..).zip(&mut self.segments).find_map(|(number, segment)| {
            let offset = segment.take(len)?;
            Some(Block {
                segment: number,
                offset,
                len,
            })
        })
    }

    fn grow(&mut self) -> Result<(), ArenaError> {
        const ARRAY: u32 = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        const MMAPABLE: u32 = 1 << 10;
        let number = self.segments.len();
        if number >= self.limit {
            return Err(ArenaError::Full);
        }
        let len = u32::try_from(SEGMENT_LEN).unwrap_or(u32::MAX);
        let definition = aya_obj::Map::new_from_params(ARRAY, 4, len, 1, MMAPABLE);
        let map = MapData::create(definition, "segment", None)?;
        let shared = Shared::map(map, SEGMENT_LEN)?;
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        bpf::set_descriptor(self.outer.fd().as_fd(), number, shared.map.fd().as_fd())?;
        self.segments.push(Segment {
            shared,
            free: BTreeMap::from([(RESERVED, len - RESERVED)]),
        });
        Ok(())
    }
}

impl Shared {
    /// Maps `len` bytes of a map.
    fn map(map: MapData, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { memory, len, map })
    }

    /// Writes a word that the programs may read, or write, at the same time.
    fn write(&self, offset: usize, word: u32) {
        if let Some(at) = self.place(offset, size_of::<u32>()) {
            // SAFETY: `place` has checked that the word lies inside; it is shared memory, hence volatile.
            unsafe { at.cast::<u32>().write_volatile(word) };
        }
    }

    /// Where `len` bytes at an offset are, if they are inside and aligned to their length.
    fn place(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: the sum lies inside the memory.
        (offset.is_multiple_of(len) && offset <= self.len - len)
            .then(|| unsafe { self.memory.as_ptr().add(offset) })
    }
}

impl Segment {
    /// The first free range that is long enough gives its start.
    fn take(&mut self, len: u32) -> Option<u32> {
        let (&offset, &free) = self.free.iter().find(|(_, free)| **free >= len)?;
        self.free.remove(&offset);
        if free > len {
            self.free.insert(offset + len, free - len);
        }
        Some(offset)
    }

    /// A range is free again, and one with its neighbours.
    fn give(&mut self, mut offset: u32, mut len: u32) {
        if let Some((&before, &free)) = self.free.range(..offset).next_back()
            && before + free == offset
        {
            self.free.remove(&before);
            (offset, len) = (before, len + free);
        }
        if let Some(behind) = self.free.remove(&(offset + len)) {
            len += behind;
        }
        self.free.insert(offset, len);
    }
}

impl arena::Segment for &Segment {
    fn u32(&self, offset: u32) -> u32 {
        self.shared
            .place(offset as usize, size_of::<u32>())
            // SAFETY: `place` has checked it; the programs may write it, hence volatile.
            .map_or(0, |at| unsafe { at.cast::<u32>().read_volatile() })
    }

    fn u64(&self, offset: u32) -> u64 {
        self.shared
            .place(offset as usize, size_of::<u64>())
            // SAFETY: as above.
            .map_or(0, |at| unsafe { at.cast::<u64>().read_volatile() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of which no reference is left.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}
