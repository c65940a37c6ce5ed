//! Fields of `task_struct`, at the offsets that the agent read from the running kernel's BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
};
use profiler_common::record::COMM_LEN;

use crate::patched::Patched;

/// Offset of `task_struct.tgid`.
#[unsafe(no_mangle)]
static TASK_TGID: Patched<u32> = Patched::new(1);
/// Offset of `task_struct.pid`.
#[unsafe(no_mangle)]
static TASK_PID: Patched<u32> = Patched::new(2);
/// Offset of `task_struct.signal`.
#[unsafe(no_mangle)]
static TASK_SIGNAL: Patched<u32> = Patched::new(3);
/// Offset of `signal_struct.live`, the number of threads that have not ended.
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Patched<u32> = Patched::new(4);

/// Offset of `task_struct.group_leader`.
#[unsafe(no_mangle)]
static TASK_LEADER: Patched<u32> = Patched::new(12);
/// Offset of `task_struct.comm`.
#[unsafe(no_mangle)]
static TASK_COMM: Patched<u32> = Patched::new(13);
/// Offset of `task_struct.mm`.
#[unsafe(no_mangle)]
static TASK_MM: Patched<u32> = Patched::new(6);
/// Offset of the byte that holds `task_struct.in_execve`,
#[unsafe(no_mangle)]
static TASK_IN_EXECVE: Patched<u32> = Patched::new(7);
/// and the bit in it; 0 where the kernel has no such field.
#[unsafe(no_mangle)]
static IN_EXECVE_BIT: Patched<u32> = Patched::new(8);
/// Offset of `task_struct.stack`.
#[unsafe(no_mangle)]
static TASK_STACK: Patched<u32> = Patched::new(11);

/// A name of a task, in words.
pub type Comm = [u64; COMM_LEN / 8];

/// A `task_struct` of the kernel.
#[derive(Clone, Copy)]
pub struct Task(pub *const c_void);

impl Task {
    /// The one that runs.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: a helper without preconditions.
        Self(unsafe { bpf_get_current_task() } as *const c_void)
    }

    /// Whether its user stack may be gone while its registers are still there: it has given its memory back, or is getting another
    /// program's.
    #[inline(always)]
    pub fn has_no_stack(self) -> bool {
        let mm: u64 = read(self.0, &TASK_MM);
        let flags: u8 = read(self.0, &TASK_IN_EXECVE);
        mm == 0 || u32::from(flags) & IN_EXECVE_BIT.get() != 0
    }

    /// Process id; 0 when unreadable.
    #[inline(always)]
    pub fn tgid(self) -> u32 {
        read(self.0, &TASK_TGID)
    }

    /// Thread id; 0 when unreadable.
    #[inline(always)]
    pub fn pid(self) -> u32 {
        read(self.0, &TASK_PID)
    }

    /// The main thread of its process.
    #[inline(always)]
    pub fn leader(self) -> Self {
        Self(read::<u64>(self.0, &TASK_LEADER) as *const c_void)
    }

    /// Its name with zeros behind it, where older kernels have the end of a longer one that it had before; no name when unreadable.
    #[inline(always)]
    pub fn comm(self) -> Comm {
        let mut comm = Comm::default();
        let from = self.0.wrapping_byte_add(TASK_COMM.get() as usize);
        // SAFETY: the helper writes no more than the length of the array, and fails instead of faulting.
        unsafe { bpf_probe_read_kernel_str(comm.as_mut_ptr().cast(), COMM_LEN as u32, from) };
        comm
    }

    /// The lowest address of its kernel stack; 0 when unreadable.
    #[inline(always)]
    pub fn stack(self) -> *const c_void {
        read::<u64>(self.0, &TASK_STACK) as *const c_void
    }

    /// Number of threads of its process that have not ended.
    #[inline(always)]
    pub fn live_threads(self) -> u32 {
        let signal: u64 = read(self.0, &TASK_SIGNAL);
        read(signal as *const c_void, &SIGNAL_LIVE)
    }
}

/// The field at a patched-in offset; zero when it cannot be read.
#[inline(always)]
fn read<T: Default>(base: *const c_void, offset: &Patched<u32>) -> T {
    let offset = offset.get();
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(base.wrapping_byte_add(offset as usize).cast::<T>()) }.unwrap_or_default()
}
