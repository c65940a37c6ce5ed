//! The memory that the kernel programs unwind from, [`profiler_common::arena`], as its owner sees it.
//!
//! Segments are BPF arrays of one element, mapped here: a block is written with plain stores and becomes visible to the programs when something
//! that they look up points to it. A block that nothing points to any more may still be in use by a walk that has begun; its
//! place is used again after [`GRACE`].
#![expect(unsafe_code, reason = "the segments are memory shared with the kernel")]

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapError};
use profiler_common::arena::{MAX_SEGMENTS, SEGMENT_LEN};

use crate::sampling::bpf;

/// How long a block that was given back is left alone: a walk takes microseconds.
const GRACE: Duration = Duration::from_secs(1);

/// Blocks begin at multiples of this.
const ALIGN: u32 = 8;

/// Place 0 of segment 0 means "none" to the programs, so nothing begins there.
const RESERVED: u32 = 64;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// Segment.
    pub(super) segment: u32,
    /// Byte offset in it.
    pub(super) offset: u32,
    /// Bytes, rounded up.
    len: u32,
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
}

/// One segment.
#[derive(Debug)]
struct Segment {
    memory: NonNull<u8>,
    /// Lengths of the free ranges by their offsets.
    free: BTreeMap<u32, u32>,
    /// Keeps the map alive.
    _map: MapData,
}

// SAFETY: the memory belongs to this value alone on this side.
unsafe impl Send for Segment {}

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
    /// Takes over the programs' array of segments; uses at most `bytes`, in whole segments, at least one.
    pub(super) fn new(outer: MapData, bytes: usize) -> Self {
        let limit = (bytes / SEGMENT_LEN).clamp(1, MAX_SEGMENTS);
        Self {
            outer,
            segments: Vec::new(),
            limit,
            retired: Vec::new(),
        }
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
        let segment = self
            .segments
            .get(block.segment as usize)
            .ok_or(ArenaError::Full)?;
        // SAFETY: the block lies inside the segment.
        let to = unsafe { segment.memory.as_ptr().add(block.offset as usize) };
        // SAFETY: `to` has room for `len` bytes, at least as many as `bytes` has; nobody reads them yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(block)
    }

    /// Gives a block back, after everything that pointed to it points elsewhere.
    pub(super) fn retire(&mut self, block: Block) {
        self.retired.push((Instant::now(), block));
    }

    /// Frees what has been retired long enough ago.
    fn reclaim(&mut self) {
        let ripe = self
            .retired
            .partition_point(|(since, _)| since.elapsed() >= GRACE);
        for (_, block) in self.retired.drain(..ripe) {
            if let Some(segment) = self.segments.get_mut(block.segment as usize) {
                segment.give(block.offset, block.len);
            }
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
        let fd = map.fd().as_fd();
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SEGMENT_LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        bpf::set_descriptor(
            self.outer.fd().as_fd(),
            u32::try_from(number).unwrap_or(u32::MAX),
            fd,
        )?;
        let free = BTreeMap::from([(RESERVED, len - RESERVED)]);
        self.segments.push(Segment {
            memory,
            free,
            _map: map,
        });
        Ok(())
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

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `grow`, of which no reference is left.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SEGMENT_LEN) };
    }
}
