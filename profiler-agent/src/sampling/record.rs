//! The records of both kinds of ring: events as `perf_event_open(2)` lays them out for the attributes of
//! [`PerfEvent::ring_owner`](super::perf_event::PerfEvent::ring_owner), samples as the programs hand them to a BPF ring buffer.
//!
//! ```text
//! event    type u32 │ misc u16 │ size u16 │ body … │ time u64
//! sample   length u32 │ offset u32 │ what the program wrote, padded
//! ```
//!
//! A pure function of bytes, which are not trusted: names and paths in them were chosen by the sampled processes.

use std::mem::offset_of;

use profiler_common::{
    Outcome,
    record::{COMM_LEN, EventKind, SampleHeader, UNFINISHED, UNFINISHED_LEN, Unfinished},
};

/// Length of the header of a record.
pub const HEADER_LEN: usize = 8;

const LOST: u32 = 2;
const COMM: u32 = 3;
const EXIT: u32 = 4;
const FORK: u32 = 7;
const MMAP2: u32 = 10;

/// In the length of a sample's record: it is being written, `BPF_RINGBUF_BUSY_BIT`.
pub const BUSY: u32 = 1 << 31;
/// The same: it was given up, `BPF_RINGBUF_DISCARD_BIT`, which the programs never do.
const GIVEN_UP: u32 = 1 << 30;

/// `PERF_RECORD_MISC_COMM_EXEC`: the new name came with a new program.
const MISC_COMM_EXEC: u16 = 1 << 13;
/// `PERF_RECORD_MISC_MMAP_BUILD_ID`: a build ID stands in place of device and inode.
const MISC_MMAP_BUILD_ID: u16 = 1 << 14;

/// One record of a ring, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A sample.
    Sample(Sample<'a>),
    /// A sample whose user stack is to be walked on from where the kernel side came to.
    Unfinished(Sample<'a>, Rest<'a>),
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
    /// The ring of events was full for this many.
    Lost(u64),
    /// A type that is of no interest here.
    Other,
}

/// A sample as the kernel program wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// What was counted.
    pub kind: EventKind,
    /// How the walk of the user stack ended. Of an unfinished sample: how it ended if nobody went on.
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
    /// User stack, leaf first, with the marks of [`profiler_common::record`].
    pub user: Frames<'a>,
}

/// What it takes to walk on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest<'a> {
    /// Where the walk stands: an [`Unfinished`].
    pub state: &'a [u8; UNFINISHED_LEN],
    /// The stack from [`profiler_common::record::copy_start`] of its stack pointer on.
    pub stack: &'a [u8],
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
        /// Tells files apart that had this inode one after the other, where the file system does; else 0.
        generation: u32,
    },
}

/// The bytes are no record: the reader has lost its place in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ring buffer held bytes that are no record")]
pub struct Torn;

/// How the records of a ring are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in a perf ring.
    Events,
    /// As in a BPF ring buffer.
    Samples,
}

/// Bytes of the record of a sample of this length, which may carry marks, with its header and what makes them whole words.
pub const fn sample_record_len(length: u32) -> u64 {
    (HEADER_LEN as u64 + (length & !(BUSY | GIVEN_UP)) as u64).next_multiple_of(8)
}

impl Layout {
    /// Length of the record that begins with these bytes.
    ///
    /// # Errors
    ///
    /// [`Torn`] for a length that no record has.
    pub fn length(self, header: &[u8]) -> Result<usize, Torn> {
        let header = header.first_chunk::<HEADER_LEN>().ok_or(Torn)?;
        match self {
            Self::Events => {
                let &[_, _, _, _, _, _, low, high] = header;
                let len = usize::from(u16::from_ne_bytes([low, high]));
                if len < HEADER_LEN || len % 8 != 0 {
                    Err(Torn)
                } else {
                    Ok(len)
                }
            }
            Self::Samples => {
                let length = Reader(header).u32()?;
                if length & (BUSY | GIVEN_UP) != 0 {
                    return Err(Torn);
                }
                usize::try_from(sample_record_len(length)).map_err(|_| Torn)
            }
        }
    }

    /// Where the time stands in a record of this length.
    ///
    /// # Errors
    ///
    /// [`Torn`] when the record is too short for one.
    pub fn time_offset(self, len: usize) -> Result<usize, Torn> {
        let offset = match self {
            Self::Events => len.saturating_sub(size_of::<u64>()),
            Self::Samples => HEADER_LEN + offset_of!(SampleHeader, time),
        };
        if offset < HEADER_LEN || len < offset + size_of::<u64>() {
            return Err(Torn);
        }
        Ok(offset)
    }

    /// Reads one whole record; returns it with its time, nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// [`Torn`] when it does not hold what its type promises.
    pub fn parse(self, bytes: &[u8]) -> Result<(u64, Record<'_>), Torn> {
        match self {
            Self::Events => event(bytes),
            Self::Samples => {
                let mut reader = Reader(bytes);
                let length = reader.u32()?;
                let _offset = reader.u32()?;
                sample(reader.bytes(usize::try_from(length).map_err(|_| Torn)?)?)
            }
        }
    }
}

fn event(bytes: &[u8]) -> Result<(u64, Record<'_>), Torn> {
    let mut reader = Reader(bytes);
    let kind = reader.u32()?;
    let misc = reader.u16()?;
    let _size = reader.u16()?;
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
        _ => Record::Other,
    };
    Ok((u64::from_ne_bytes(time), record))
}

fn sample(raw: &[u8]) -> Result<(u64, Record<'_>), Torn> {
    let (header, frames) = SampleHeader::parse(raw).ok_or(Torn)?;
    let SampleHeader {
        kind,
        outcome,
        kernel_frames,
        user_frames,
        reserved: _,
        pid,
        tid,
        time,
        weight,
        comm,
    } = header;
    let (kernel, rest) = frames
        .split_at_checked(usize::from(kernel_frames) * 8)
        .ok_or(Torn)?;
    let (user, rest) = rest.split_at_checked(usize::from(user_frames) * 8).ok_or(Torn)?;
    let unfinished = outcome == UNFINISHED;
    let outcome = if unfinished {
        Outcome::NoMapping
    } else {
        Outcome::from_u8(outcome).ok_or(Torn)?
    };
    let sample = Sample {
        kind: EventKind::from_u8(kind).ok_or(Torn)?,
        outcome,
        pid,
        tid,
        weight,
        comm,
        kernel: Frames(kernel),
        user: Frames(user),
    };
    if !unfinished {
        return Ok((time, Record::Sample(sample)));
    }
    let (state, rest) = rest.split_first_chunk().ok_or(Torn)?;
    let copied = usize::try_from(Unfinished::from_bytes(state).copied).map_err(|_| Torn)?;
    let stack = rest.get(..copied).ok_or(Torn)?;
    Ok((time, Record::Unfinished(sample, Rest { state, stack })))
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
            generation: u32::try_from(identity.u64()?).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as the kernel writes it.
    fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let mut record = kind.to_ne_bytes().to_vec();
        record.extend(misc.to_ne_bytes());
        record.extend(u16::try_from(HEADER_LEN + body.len()).unwrap().to_ne_bytes());
        record.extend(body);
        record
    }

    fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
        words.into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// What the program writes of a sample with these stacks.
    fn raw_sample(time: u64, kernel: &[u64], user: &[u64]) -> Vec<u8> {
        let mut raw = vec![EventKind::Cpu as u8, Outcome::Truncated as u8];
        raw.extend(u16::try_from(kernel.len()).unwrap().to_ne_bytes());
        raw.extend(u16::try_from(user.len()).unwrap().to_ne_bytes());
        raw.extend([0, 0]);
        raw.extend(7_u32.to_ne_bytes());
        raw.extend(8_u32.to_ne_bytes());
        raw.extend(time.to_ne_bytes());
        raw.extend(10_101_010_u64.to_ne_bytes());
        raw.extend(b"worker\0\0\0\0\0\0\0\0\0\0");
        raw.extend(
            kernel
                .iter()
                .chain(user)
                .flat_map(|address| address.to_ne_bytes()),
        );
        raw
    }

    /// A record as it lies in the ring.
    fn sample_record(raw: &[u8]) -> Vec<u8> {
        let mut record = u32::try_from(raw.len()).unwrap().to_ne_bytes().to_vec();
        record.extend(7_u32.to_ne_bytes());
        record.extend(raw);
        record.resize(record.len().next_multiple_of(8), 0);
        record
    }

    #[test]
    fn reads_a_sample() {
        let bytes = sample_record(&raw_sample(99, &[1, 2], &[3, 4, 5]));
        assert_eq!(Layout::Samples.length(&bytes), Ok(bytes.len()));
        let at = Layout::Samples.time_offset(bytes.len()).unwrap();
        assert_eq!(bytes[at..at + 8], 99_u64.to_ne_bytes());
        let Ok((99, Record::Sample(sample))) = Layout::Samples.parse(&bytes) else {
            panic!("{:?}", Layout::Samples.parse(&bytes))
        };
        assert_eq!((sample.pid, sample.tid, sample.weight), (7, 8, 10_101_010));
        assert_eq!(
            (sample.kind, sample.outcome),
            (EventKind::Cpu, Outcome::Truncated)
        );
        assert_eq!(&sample.comm[..7], b"worker\0");
        assert_eq!(sample.kernel.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(sample.user.iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!((sample.user.len(), sample.user.is_empty()), (3, false));
    }

    #[test]
    fn reads_what_was_lost() {
        let bytes = record(LOST, 0, &words([1, 42, 77]));
        assert_eq!(event(&bytes), Ok((77, Record::Lost(42))));
    }

    #[test]
    fn reads_both_ways_to_name_a_file() {
        let body = |identity: &[u8; 24]| {
            let mut body = [7_u32, 8].map(u32::to_ne_bytes).concat();
            body.extend(words([0x1000, 0x2000, 0x3000]));
            body.extend(identity);
            body.extend([5_u32, 2].map(u32::to_ne_bytes).concat());
            body.extend(b"/bin/x\0\0");
            body.extend(words([55]));
            body
        };
        let mut build_id = [0; 24];
        build_id[0] = 3;
        build_id[4..7].copy_from_slice(b"\x01\x02\x03");
        let expected = |file| {
            let (start, len, file_offset) = (0x1000, 0x2000, 0x3000);
            Record::Mmap(Mmap {
                pid: 7,
                start,
                len,
                file_offset,
                file,
                protection: 5,
                path: b"/bin/x",
            })
        };
        assert_eq!(
            event(&record(MMAP2, MISC_MMAP_BUILD_ID, &body(&build_id))),
            Ok((55, expected(MappedFile::BuildId(&[1, 2, 3]))))
        );
        // A build ID that claims to be longer than its field is none.
        build_id[0] = 21;
        assert_eq!(
            event(&record(MMAP2, MISC_MMAP_BUILD_ID, &body(&build_id))),
            Err(Torn)
        );
        let mut inode = [0; 24];
        inode[0] = 8;
        inode[4] = 1;
        inode[8] = 9;
        inode[16] = 4;
        assert_eq!(
            event(&record(MMAP2, 0, &body(&inode))),
            Ok((
                55,
                expected(MappedFile::Inode {
                    major: 8,
                    minor: 1,
                    inode: 9,
                    generation: 4,
                })
            ))
        );
    }

    #[test]
    fn reads_the_life_of_tasks() {
        let ids = |ids: [u32; 4]| ids.map(u32::to_ne_bytes).concat();
        let body = [ids([9, 7, 10, 7]), words([55, 56])].concat();
        assert_eq!(
            event(&record(FORK, 0, &body)),
            Ok((
                56,
                Record::Fork {
                    pid: 9,
                    parent: 7,
                    tid: 10
                }
            ))
        );
        assert_eq!(
            event(&record(EXIT, 0, &body)),
            Ok((56, Record::Exit { pid: 9, tid: 10 }))
        );
        let mut body = [7_u32, 8].map(u32::to_ne_bytes).concat();
        body.extend(b"new\0\0\0\0\0");
        body.extend(words([57]));
        let comm = |exec| {
            Ok((
                57,
                Record::Comm {
                    pid: 7,
                    tid: 8,
                    name: &b"new"[..],
                    exec,
                },
            ))
        };
        assert_eq!(event(&record(COMM, 0, &body)), comm(false));
        assert_eq!(event(&record(COMM, MISC_COMM_EXEC, &body)), comm(true));
        assert_eq!(event(&record(99, 0, &words([58]))), Ok((58, Record::Other)));
    }

    #[test]
    fn what_promises_more_than_it_holds_is_torn() {
        let parse = |bytes: &[u8]| Layout::Samples.parse(bytes).map(drop);
        let whole = sample_record(&raw_sample(99, &[1, 2], &[3, 4, 5]));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Err(Torn), "{len} bytes");
        }
        for (at, value) in [(0, 200), (8, 200), (9, 200), (10, 200), (12, 200)] {
            let mut bytes = whole.clone();
            bytes[at] = value; // length, kind, outcome, number of kernel and of user frames
            assert_eq!(parse(&bytes), Err(Torn), "byte {at}");
        }
    }

    #[test]
    fn what_is_being_written_or_was_given_up_is_no_record() {
        let whole = sample_record(&raw_sample(99, &[1, 2], &[3, 4, 5]));
        for mark in [BUSY, GIVEN_UP] {
            let mut bytes = whole.clone();
            let length = u32::from_ne_bytes(*whole.first_chunk().unwrap()) | mark;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Layout::Samples.length(&bytes), Err(Torn));
            assert_eq!(Layout::Samples.parse(&bytes), Err(Torn));
            // Whoever looks for the end of what is written can step over it all the same.
            assert_eq!(sample_record_len(length), whole.len() as u64);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), kind in 0_u32..20) {
            for layout in [Layout::Events, Layout::Samples] {
                let _ = layout.length(&bytes);
                let _ = layout.parse(&bytes);
                let _ = layout.parse(&[&kind.to_ne_bytes()[..], &bytes].concat());
            }
        }

        #[test]
        fn every_stack_comes_out_as_it_went_in(
            kernel in prop::collection::vec(any::<u64>(), 0..127),
            user in prop::collection::vec(any::<u64>(), 0..1024),
        ) {
            let bytes = sample_record(&raw_sample(1, &kernel, &user));
            let parsed = Layout::Samples.parse(&bytes);
            let Ok((1, Record::Sample(sample))) = parsed else { panic!("{parsed:?}") };
            prop_assert_eq!(sample.kernel.iter().collect::<Vec<_>>(), kernel);
            prop_assert_eq!(sample.user.iter().collect::<Vec<_>>(), user);
        }
    }
}
