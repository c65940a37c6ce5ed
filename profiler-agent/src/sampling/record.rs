//! The records of a perf ring, as `perf_event_open(2)` lays them out for the attributes of
//! [`PerfEvent::ring_owner`](super::perf_event::PerfEvent::ring_owner).
//!
//! ```text
//! header   type u32 │ misc u16 │ size u16
//! SAMPLE   time u64 │ size u32 │ raw: what the program wrote, padded │
//! others   body … │ time u64
//! ```
//!
//! A pure function of bytes, which are not trusted: names and paths in them were chosen by the sampled processes.

use profiler_common::{
    Outcome,
    record::{COMM_LEN, EventKind, SampleHeader},
};

/// Length of the header of a record.
pub const HEADER_LEN: usize = 8;

const LOST: u32 = 2;
const COMM: u32 = 3;
const EXIT: u32 = 4;
const FORK: u32 = 7;
const SAMPLE: u32 = 9;
const MMAP2: u32 = 10;
const LOST_SAMPLES: u32 = 13;

/// `PERF_RECORD_MISC_COMM_EXEC`: the new name came with a new program.
const MISC_COMM_EXEC: u16 = 1 << 13;
/// `PERF_RECORD_MISC_MMAP_BUILD_ID`: a build ID stands in place of device and inode.
const MISC_MMAP_BUILD_ID: u16 = 1 << 14;

/// One record of a ring, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A sample.
    Sample(Sample<'a>),
    /// A process mapped executable memory.
    Mmap(Mmap<'a>),
    /// A thread changed its name.
    Comm {
        /// Process.
        pid: u32,
        /// Thread.
        tid: u32,
        /// New name.
        name: &'a [u8],
        /// Whether it came by `exec`: the process is another program from here on.
        exec: bool,
    },
    /// A task was created: a process if `pid != parent`, else a thread.
    Fork {
        /// Process of the new task.
        pid: u32,
        /// Process that created it.
        parent: u32,
        /// The new thread.
        tid: u32,
    },
    /// A thread ended.
    Exit {
        /// Process.
        pid: u32,
        /// Thread.
        tid: u32,
    },
    /// The ring was full for this many records, of any type.
    Lost(u64),
    /// A type that is of no interest here.
    Other,
}

/// A sample as the kernel program wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// What was counted.
    pub kind: EventKind,
    /// How the walk of the user stack ended.
    pub outcome: Outcome,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Weight in the kind's unit.
    pub weight: u64,
    /// Name of the thread, NUL padded.
    pub comm: [u8; COMM_LEN],
    /// Kernel stack, leaf first.
    pub kernel: Frames<'a>,
    /// User stack, leaf first.
    pub user: Frames<'a>,
}

/// Addresses as they lie in the ring: 8 bytes each, at any alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frames<'a>(pub &'a [u8]);

impl<'a> Frames<'a> {
    /// Number of frames.
    pub const fn len(self) -> usize {
        self.0.len() / 8
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The addresses.
    pub fn iter(self) -> impl Iterator<Item = u64> + use<'a> {
        self.0
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&bytes| u64::from_ne_bytes(bytes))
    }
}

/// An executable mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mmap<'a> {
    /// Process.
    pub pid: u32,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Which file.
    pub file: MappedFile<'a>,
    /// `PROT_*` bits.
    pub protection: u32,
    /// Path below the process's root, `//anon`, or a name in brackets.
    pub path: &'a [u8],
}

/// How the kernel names the file of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappedFile<'a> {
    /// By its build ID.
    BuildId(&'a [u8]),
    /// By device and inode.
    Inode {
        /// Major number of the device.
        major: u32,
        /// Minor number of the device.
        minor: u32,
        /// Inode; 0 without a file.
        inode: u64,
    },
}

/// The bytes are no record: the reader has lost its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ring buffer held bytes that are no record")]
pub struct Torn;

/// Length of the record that begins with these bytes.
///
/// # Errors
///
/// [`Torn`] for a length that no record has.
pub fn length(header: &[u8]) -> Result<usize, Torn> {
    let &[_, _, _, _, _, _, low, high] = header.first_chunk::<HEADER_LEN>().ok_or(Torn)?;
    let len = usize::from(u16::from_ne_bytes([low, high]));
    if len < HEADER_LEN || len % 8 != 0 {
        Err(Torn)
    } else {
        Ok(len)
    }
}

/// Where the time stands in a record of this length.
///
/// # Errors
///
/// [`Torn`] when the record is too short for one.
pub fn time_offset(header: &[u8], len: usize) -> Result<usize, Torn> {
    let kind = Reader(header).u32()?;
    if len < 2 * HEADER_LEN {
        return Err(Torn);
    }
    Ok(if kind == SAMPLE { HEADER_LEN } else { len - 8 })
}

/// Reads one whole record; returns it with its time, nanoseconds of `CLOCK_MONOTONIC`.
///
/// # Errors
///
/// [`Torn`] when it does not hold what its type promises.
pub fn parse(bytes: &[u8]) -> Result<(u64, Record<'_>), Torn> {
    let mut reader = Reader(bytes);
    let kind = reader.u32()?;
    let misc = reader.u16()?;
    let _size = reader.u16()?;
    if kind == SAMPLE {
        let time = reader.u64()?;
        let raw_len = reader.u32()?;
        let raw = reader.bytes(usize::try_from(raw_len).map_err(|_| Torn)?)?;
        return Ok((time, Record::Sample(sample(raw)?)));
    }
    let (body, &time) = reader.0.split_last_chunk().ok_or(Torn)?;
    let mut body = Reader(body);
    let record = match kind {
        MMAP2 => mmap(&mut body, misc)?,
        COMM => {
            let (pid, tid) = (body.u32()?, body.u32()?);
            Record::Comm {
                pid,
                tid,
                name: body.name(),
                exec: misc & MISC_COMM_EXEC != 0,
            }
        }
        FORK | EXIT => {
            let (pid, parent, tid) = (body.u32()?, body.u32()?, body.u32()?);
            if kind == FORK {
                Record::Fork { pid, parent, tid }
            } else {
                Record::Exit { pid, tid }
            }
        }
        LOST => {
            let _id = body.u64()?;
            Record::Lost(body.u64()?)
        }
        LOST_SAMPLES => Record::Lost(body.u64()?),
        _ => Record::Other,
    };
    Ok((u64::from_ne_bytes(time), record))
}

fn sample(raw: &[u8]) -> Result<Sample<'_>, Torn> {
    let (header, frames) = SampleHeader::parse(raw).ok_or(Torn)?;
    let SampleHeader {
        kind,
        outcome,
        kernel_frames,
        user_frames,
        reserved: _,
        pid,
        tid,
        weight,
        comm,
    } = header;
    let (kernel, rest) = frames
        .split_at_checked(usize::from(kernel_frames) * 8)
        .ok_or(Torn)?;
    // What follows the user frames is padding.
    let user = rest.get(..usize::from(user_frames) * 8).ok_or(Torn)?;
    Ok(Sample {
        kind: EventKind::from_u8(kind).ok_or(Torn)?,
        outcome: Outcome::from_u8(outcome).ok_or(Torn)?,
        pid,
        tid,
        weight,
        comm,
        kernel: Frames(kernel),
        user: Frames(user),
    })
}

fn mmap<'a>(body: &mut Reader<'a>, misc: u16) -> Result<Record<'a>, Torn> {
    let (pid, _tid) = (body.u32()?, body.u32()?);
    let (start, len, file_offset) = (body.u64()?, body.u64()?, body.u64()?);
    let mut identity = Reader(body.bytes(24)?);
    let file = if misc & MISC_MMAP_BUILD_ID != 0 {
        let len = identity.bytes(4)?.first().copied().ok_or(Torn)?;
        MappedFile::BuildId(identity.bytes(usize::from(len))?)
    } else {
        MappedFile::Inode {
            major: identity.u32()?,
            minor: identity.u32()?,
            inode: identity.u64()?,
        }
    };
    let (protection, _flags) = (body.u32()?, body.u32()?);
    Ok(Record::Mmap(Mmap {
        pid,
        start,
        len,
        file_offset,
        file,
        protection,
        path: body.name(),
    }))
}

/// Takes integers of the machine's byte order off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
        let (&array, rest) = self.0.split_first_chunk().ok_or(Torn)?;
        self.0 = rest;
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, Torn> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Torn> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Torn> {
        self.array().map(u64::from_ne_bytes)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Torn> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Torn)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// What is left, up to the NUL that ends a name.
    fn name(&self) -> &'a [u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}
