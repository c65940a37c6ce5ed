//! What the kernel programs write and the agent reads.
//!
//! ```text
//! ┌──────────────┬──────────────────────────┬────────────────────────┐
//! │ SampleHeader │ kernel_frames × u64      │ user_frames × u64      │
//! │  40 bytes    │ leaf first               │ leaf first             │
//! └──────────────┴──────────────────────────┴────────────────────────┘
//! ```
//!
//! One such record is the raw part of one `PERF_RECORD_SAMPLE`; its time and CPU come from the ring around it.
//! Kernel and agent are built from one tree, so the layout carries no version.

/// Most user frames of a sample; a deeper stack is [`Outcome::Truncated`](crate::Outcome::Truncated).
pub const MAX_USER_FRAMES: u32 = 1024;

/// Most kernel frames of a sample: `PERF_MAX_STACK_DEPTH`, which the kernel does not exceed either.
pub const MAX_KERNEL_FRAMES: u32 = 127;

/// Length of a task's name with its NUL: `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;

/// Starts each sample.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleHeader {
    /// What was counted: an [`EventKind`] by number.
    pub kind: u8,
    /// How the walk of the user stack ended: an [`Outcome`](crate::Outcome) by number.
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
    /// Weight in the unit of the kind; CPU time: nanoseconds, one sampling period.
    pub weight: u64,
    /// Name of the thread, NUL padded.
    pub comm: [u8; COMM_LEN],
}

/// Size of [`SampleHeader`] in bytes.
pub const HEADER_LEN: usize = size_of::<SampleHeader>();

const _: () = assert!(HEADER_LEN == 40 && align_of::<SampleHeader>() == 8);

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
    /// Samples written to a ring.
    Written = 0,
    /// Samples refused by a full ring.
    RingFull = 1,
    /// Children that did not fit into the map of targets.
    TargetsFull = 2,
}

impl Counter {
    /// Every counter, in the order of its number.
    pub const ALL: [Self; 3] = [Self::Written, Self::RingFull, Self::TargetsFull];
}

/// Most processes whose mappings the kernel side knows at one time; the others are walked by frame pointer.
pub const MAX_PROCESSES: u32 = 8192;

/// Most processes that can be targets at one time.
pub const MAX_TARGETS: u32 = 8192;
