//! What the programs share with the agent, and why each is as large as it is.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, CgroupArray, RingBuf},
    macros::{btf_map, map},
    maps::{Array as PlainArray, HashMap, PerCpuArray, RingBuf as PlainRingBuf},
};
use profiler_common::{
    arch::{REGISTERS, Registers},
    arena::{MAX_SEGMENTS, Mapping, MappingList, News, Pages, SEGMENT_LEN},
    record::{
        Counter, MAX_COPY, MAX_KERNEL_FRAMES, MAX_PROCESSES, MAX_TARGETS, MAX_USER_FRAMES, SampleHeader,
        UNFINISHED_LEN,
    },
    unwind::{Frame, Origin},
};

use crate::{
    memory::UserMemory,
    tables::{RECENT, Recent, Trail},
};

/// One ring per CPU, made by the agent, which sets how many there can be, and how large each is. Its own CPU alone writes to it, so that nobody
/// else ever holds its lock: in NMI too, where a program does not wait for one.
#[btf_map]
pub static SAMPLES: ArrayOfMaps<RingBuf<u8, 4096>, 1> = ArrayOfMaps::new();

/// The processes to sample; unused when the whole host is. Pre-allocated, since perf event programs may not
/// use another kind before Linux 6.1: 0.66 MB for 8192.
#[map]
pub static TARGETS: HashMap<u32, u8> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// The control group to sample; unused when there is none.
#[btf_map]
pub static GROUP: CgroupArray<1> = CgroupArray::new();

/// Unwind tables and lists of mappings, see [`profiler_common::arena`]. Segments come as they are needed, each mapped into
/// the agent, which writes them; the programs leave a mark in tables that they use.
#[btf_map]
pub static SEGMENTS: ArrayOfMaps<Array<[u8; SEGMENT_LEN], 1, SEGMENT_FLAGS>, MAX_SEGMENTS> =
    ArrayOfMaps::new();

/// What has changed there, mapped into the agent as well.
#[btf_map]
pub static NEWS: Array<News, 1, SEGMENT_FLAGS> = Array::new();

/// `BPF_F_MMAPABLE`.
const SEGMENT_FLAGS: usize = 0x400;

/// Where each process's mappings are. Pre-allocated for the reason above: 0.72 MB for 8192.
#[map]
pub static PROCESSES: HashMap<u32, MappingList> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// [`Counter`]s.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Tells the agent that samples wait for it. Holds one word at a time: a process, or [`profiler_common::record::RING_FILLS`].
#[map]
pub static WAKE_UPS: PlainRingBuf = PlainRingBuf::with_byte_size(4096, 0);

/// Where a sample grows, by CPU: too large for the 512 bytes of a BPF stack and for the 32 KiB of a per-CPU map. The agent makes it as long as
/// there can be CPUs. Perf event programs do not interrupt each other on a CPU (`bpf_prog_active`), so one slot serves; programs of
/// other types need their own.
#[map]
pub static SCRATCH: PlainArray<Scratch> = PlainArray::with_max_entries(1, 0);

/// Frames of either kind in [`Scratch`]; a power of two, so that a mask bounds every index.
pub const FRAME_SLOTS: usize = 2048;

const _: () = assert!((MAX_USER_FRAMES + MAX_KERNEL_FRAMES) as usize <= FRAME_SLOTS);

/// Bytes behind the frames: what follows them there when they are few, and room for it when they are many.
const TAIL: usize = UNFINISHED_LEN + MAX_COPY as usize + 8192;

/// A sample under construction, laid out as it goes out.
#[repr(C)]
pub struct Record {
    /// Written last.
    pub header: SampleHeader,
    /// Kernel frames, then user frames.
    pub frames: [u64; FRAME_SLOTS],
    /// Behind the last frame, wherever that is, follows what user space needs to go on.
    tail: [u8; TAIL],
}

/// See [`SCRATCH`]. What each sample touches comes first and stands together: at 99 Hz each line of memory is a miss, and each page two.
#[repr(C)]
pub struct Scratch {
    /// Where the walk stands.
    pub registers: Registers,
    /// The [`Origin`] of that frame, by its bits.
    pub origin: u32,
    /// Number of frames written, kernel and user.
    pub frames: u32,
    /// Number of frames at which the walk stops.
    pub limit: u32,
    /// Bytes of samples since the agent was last woken for them.
    pub untold: u32,
    /// The step of the trail that the walk is likely to take next.
    pub next_step: u32,
    /// Where the next one is added, over the oldest.
    pub end_of_trail: u32,
    /// Whose mappings these are,
    pub process: u32,
    /// where they are, all zeros when the process is not known,
    pub mappings: MappingList,
    /// See [`profiler_common::arena::Segment::launder`].
    pub laundry: u32,
    /// and what there was to know when they were looked up; the epoch is that in which the walk began.
    pub news: News,
    /// The mapping found last,
    pub mapping: Mapping,
    /// the pages of its table,
    pub pages: Pages,
    /// and the entry of the row found last, if it has one.
    pub entry: [u32; 2],
    /// Every register of the innermost frame, by DWARF number.
    pub leaf: [u64; REGISTERS],
    /// What was copied of the stack.
    pub memory: UserMemory,
    /// Rules that were found before,
    pub trail: Trail,
    /// and mappings.
    pub recent: [Recent; RECENT],
    /// What goes out. Last, since it is the longest: an instruction reaches 32 KiB from the start.
    pub record: Record,
}

impl Scratch {
    /// The frame that the walk has come to.
    #[inline(always)]
    pub fn frame(&self) -> Frame {
        Frame {
            registers: self.registers,
            origin: Origin::from_bits(self.origin),
        }
    }
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
