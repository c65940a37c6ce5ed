//! What the kernel programs write and the agent reads.
//!
//! ```text
//! ┌──────────────┬──────────────────────────┬────────────────────────┬╌╌╌╌╌╌╌╌╌╌╌╌┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┐
//! │ SampleHeader │ kernel_frames × u64      │ user_frames × u64      ╎ Unfinished ╎ copy of stack ╎
//! │  48 bytes    │ leaf first               │ leaf first             ╎ 176 bytes  ╎ u64 …         ╎
//! └──────────────┴──────────────────────────┴────────────────────────┴╌╌╌╌╌╌╌╌╌╌╌╌┴╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘
//! ```
//!
//! What is dashed is there when the outcome is [`UNFINISHED`]: the walk came to code that the kernel side does not know yet, and
//! user space goes on from there. Each is one record of a BPF ring buffer; its CPU is that of the ring.
//! Kernel and agent are built from one tree, so the layout carries no version.

use crate::arch::{RED_ZONE, REGISTERS, Registers, WORD};

/// Most user frames of a sample; a deeper stack is [`Outcome::Truncated`](crate::Outcome::Truncated).
pub const MAX_USER_FRAMES: u32 = 1024;

/// Most kernel frames of a sample: `PERF_MAX_STACK_DEPTH`, which the kernel does not exceed either.
pub const MAX_KERNEL_FRAMES: u32 = 127;

/// Length of a task's name with its NUL: `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;

/// Outcome of a walk that user space has to finish; beyond every [`Outcome`](crate::Outcome).
pub const UNFINISHED: u8 = 0xff;

/// Marks the address of a user frame whose caller was looked for by frame pointer and not by a table. No user address has this bit.
pub const BY_FRAME_POINTER: u64 = 1 << 63;

/// Marks the address of a user frame that was interrupted right there: the innermost one, and the one that a signal hit. Any other is
/// known by where its call returns to. No user address has this bit.
pub const INTERRUPTED: u64 = 1 << 62;

/// Most bytes of a stack that are copied for user space. Measured at the first samples of compilers and interpreters, stacks
/// have 2 to 20 KiB.
pub const MAX_COPY: u32 = 32 << 10;

/// Bytes of samples on a CPU after which the agent is woken to read them: half of the smallest ring.
pub const WAKE_AFTER: u32 = 128 << 10;

/// What wakes the agent is a word: the process of an [`UNFINISHED`] sample, or this for [`WAKE_AFTER`] bytes.
pub const RING_FILLS: u32 = 0;

/// Bytes of a page: memory is there or not in whole ones.
pub const PAGE: u64 = 4096;

/// Where a walk stands that user space has to finish. The copy of the stack begins at [`copy_start`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// The frame that the walk has come to; it is not among the user frames yet.
    pub registers: Registers,
    /// What led to it: an [`Origin`](crate::unwind::Origin) by its bits.
    pub origin: u32,
    /// Bytes of the stack that follow, a multiple of 8.
    pub copied: u32,
    /// Which pages of them could not be read, the first one in the lowest bit: a function may have made room that it has not used yet.
    pub holes: u32,
    /// Zero.
    pub reserved: u32,
    /// Every register of the innermost frame, by DWARF number.
    pub leaf: [u64; REGISTERS],
}

/// Size of [`Unfinished`] in bytes.
pub const UNFINISHED_LEN: usize = size_of::<Unfinished>();

/// Where the copy of a stack begins for this stack pointer: at a word, below its red zone.
#[inline(always)]
pub const fn copy_start(sp: u64) -> u64 {
    (sp & !(WORD - 1)).wrapping_sub(RED_ZONE)
}

impl Unfinished {
    /// The state in these bytes.
    pub fn from_bytes(bytes: &[u8; UNFINISHED_LEN]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|&word| u64::from_ne_bytes(word));
        // The chunks are as many as there are words.
        let mut word = || words.next().unwrap_or_default();
        let registers = Registers {
            ip: word(),
            sp: word(),
            bp: word(),
            bx: word(),
        };
        let [o0, o1, o2, o3, c0, c1, c2, c3] = word().to_ne_bytes();
        let [h0, h1, h2, h3, ..] = word().to_ne_bytes();
        Self {
            registers,
            origin: u32::from_ne_bytes([o0, o1, o2, o3]),
            copied: u32::from_ne_bytes([c0, c1, c2, c3]),
            holes: u32::from_ne_bytes([h0, h1, h2, h3]),
            reserved: 0,
            leaf: core::array::from_fn(|_| word()),
        }
    }
}

/// Starts each sample.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleHeader {
    /// What was counted: an [`EventKind`] by number.
    pub kind: u8,
    /// How the walk of the user stack ended: an [`Outcome`](crate::Outcome) by number, or [`UNFINISHED`].
    pub outcome: u8,
    /// Number of kernel frames that follow.
    pub kernel_frames: u16,
    /// Number of user frames that follow those.
    pub user_frames: u16,
    /// Zero.
    pub reserved: u16,
    /// Process (thread group) id in the initial pid namespace.
    pub pid: u32,
    /// Thread id there.
    pub tid: u32,
    /// When the tick was: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Weight in the unit of the kind; CPU time: nanoseconds, one sampling period.
    pub weight: u64,
    /// Name of the thread, NUL padded.
    pub comm: [u8; COMM_LEN],
}

/// Size of [`SampleHeader`] in bytes.
pub const HEADER_LEN: usize = size_of::<SampleHeader>();

const _: () = assert!(HEADER_LEN == 48 && align_of::<SampleHeader>() == 8);

/// What a sample counts. Crosses the boundary as a `u8`.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A tick of the sampling clock on a CPU.
    Cpu = 0,
}

impl EventKind {
    /// The kind of a number that came over the boundary.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Cpu),
            _ => None,
        }
    }
}

impl SampleHeader {
    /// The header at the start of `bytes`, and what follows it; `None` when they are too short for one.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&[kind, outcome, k0, k1, u0, u1, r0, r1], rest) = bytes.split_first_chunk()?;
        let (&pid, rest) = rest.split_first_chunk()?;
        let (&tid, rest) = rest.split_first_chunk()?;
        let (&time, rest) = rest.split_first_chunk()?;
        let (&weight, rest) = rest.split_first_chunk()?;
        let (&comm, rest) = rest.split_first_chunk()?;
        let header = Self {
            kind,
            outcome,
            kernel_frames: u16::from_ne_bytes([k0, k1]),
            user_frames: u16::from_ne_bytes([u0, u1]),
            reserved: u16::from_ne_bytes([r0, r1]),
            pid: u32::from_ne_bytes(pid),
            tid: u32::from_ne_bytes(tid),
            time: u64::from_ne_bytes(time),
            weight: u64::from_ne_bytes(weight),
            comm,
        };
        Some((header, rest))
    }
}

/// Counters of the kernel programs: indices into the per-CPU map `COUNTERS`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Samples refused by a full ring.
    RingFull = 0,
    /// Children that did not fit into the map of targets.
    TargetsFull = 1,
}

impl Counter {
    /// Every counter, in the order of its number.
    pub const ALL: [Self; 2] = [Self::RingFull, Self::TargetsFull];
}

/// Most processes whose mappings the kernel side knows at one time; the stacks of others are unwound in user space.
pub const MAX_PROCESSES: u32 = 8192;

/// Most processes that can be targets at one time.
pub const MAX_TARGETS: u32 = 8192;
