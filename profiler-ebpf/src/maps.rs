//! What the programs share with the agent, and why each is as large as it is.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, PerCpuArray, PerfEventArray},
};
use profiler_common::{
    arch::Registers,
    record::{Counter, MAX_KERNEL_FRAMES, MAX_TARGETS, MAX_USER_FRAMES, SampleHeader},
};

use crate::memory::UserMemory;

/// One ring per CPU, opened and mapped by the agent. A perf ring is written by its own CPU alone and without a lock, in
/// NMI too.
#[map]
pub static SAMPLES: PerfEventArray<u8> = PerfEventArray::new(0);

/// The processes to sample; unused when the whole host is. Pre-allocated, since perf event programs may not
/// use another kind before Linux 6.1: 8192 × 64 bytes = 0.5 MB.
#[map]
pub static TARGETS: HashMap<u32, u8> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// [`Counter`]s.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Where a sample grows: too large for the 512 bytes of a BPF stack. Perf event programs do not interrupt each
/// other on a CPU (`bpf_prog_active`), so one slot serves; programs of other types need their own.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Frames of either kind in [`Scratch`]; a power of two, so that a mask bounds every index.
pub const FRAME_SLOTS: usize = 2048;

const _: () = assert!((MAX_USER_FRAMES + MAX_KERNEL_FRAMES) as usize <= FRAME_SLOTS);
// What goes out starts at the header and is masked to the size of `Scratch::record`.
const _: () = assert!(size_of::<Record>() == 16384 + size_of::<SampleHeader>());

/// A sample under construction, laid out as it goes out.
#[repr(C)]
pub struct Record {
    /// Written last.
    pub header: SampleHeader,
    /// Kernel frames, then user frames.
    pub frames: [u64; FRAME_SLOTS],
}

/// See [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// What goes out.
    pub record: Record,
    /// What was copied of the stack.
    pub memory: UserMemory,
    /// Where the walk stands.
    pub registers: Registers,
    /// Number of frames written, kernel and user.
    pub frames: u32,
    /// Number of frames at which the walk stops.
    pub limit: u32,
}

/// Adds one to a counter of this CPU; returns what it was.
#[inline(always)]
pub fn count(counter: Counter) -> u64 {
    let Some(value) = COUNTERS.get_ptr_mut(counter as u32) else {
        return 0;
    };
    // SAFETY: a slot of this CPU's own array; a nested program can at worst lose an increment.
    let before = unsafe { *value };
    // SAFETY: as above.
    unsafe { *value = before + 1 };
    before
}
