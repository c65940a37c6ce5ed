//! One sample: who ran, and where.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        generated::{
            bpf_get_current_comm, bpf_get_stack, bpf_ktime_get_ns, bpf_probe_read_user, bpf_ringbuf_output,
        },
    },
    programs::PerfEventContext,
};
use profiler_common::{
    Outcome,
    record::{
        COMM_LEN, Counter, EventKind, HEADER_LEN, MAX_COPY, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, PAGE,
        RING_FILLS, UNFINISHED, UNFINISHED_LEN, Unfinished, WAKE_AFTER, copy_start,
    },
};

use crate::{
    arch::{self, UserMode},
    bounded::masked,
    maps::{FRAME_SLOTS, SAMPLES, SCRATCH, Scratch, WAKE_UPS, count},
    patched::Patched,
    tables, targets,
    task::Task,
    walk,
};

/// Nanoseconds between two ticks; set by the agent.
#[unsafe(no_mangle)]
static PERIOD: Patched<u64> = Patched::wide(1);

/// Samples the current thread, if it is wanted.
#[inline(always)]
pub fn take(ctx: &PerfEventContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // `cpu-clock` ticks on idle CPUs at the full rate too.
    if pid == 0 {
        return;
    }
    // SAFETY: a helper without preconditions.
    let slot = unsafe { bpf_get_smp_processor_id() };
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    let news = tables::news();
    let is_known = targets::are_for_life() && tables::is_as_before(scratch, pid, news);
    if !is_known && !targets::wanted(pid) {
        return;
    }

    // SAFETY: a helper without preconditions.
    let time = unsafe { bpf_ktime_get_ns() };
    let in_kernel = arch::in_kernel(ctx);
    let kernel_frames = if in_kernel { kernel_stack(ctx, scratch) } else { 0 };
    scratch.frames = kernel_frames;
    scratch.limit = kernel_frames + MAX_USER_FRAMES;
    let mut outcome = match arch::user_mode(ctx, in_kernel, slot, scratch) {
        UserMode::None => Outcome::NoUserStack as u8,
        UserMode::Compat => Outcome::Compat as u8,
        UserMode::Native => {
            scratch.memory.forget();
            tables::begin(scratch, pid, news);
            walk::user_stack(slot)
        }
    };
    let mut rest = 0;
    let readable = if outcome == UNFINISHED {
        let copied = leave_rest(scratch, slot);
        rest = UNFINISHED_LEN as u64 + copied;
        copied > 0
    } else {
        outcome == Outcome::Complete as u8
    };
    // Between two programs, and on its way out, a thread has registers of a stack that is gone.
    if in_kernel && !readable && Task::current().has_no_stack() {
        scratch.frames = kernel_frames;
        rest = 0;
        outcome = Outcome::NoUserStack as u8;
    }
    let user_frames = scratch.frames - kernel_frames;

    let header = &mut scratch.record.header;
    header.kind = EventKind::Cpu as u8;
    header.outcome = outcome;
    header.kernel_frames = kernel_frames as u16;
    header.user_frames = user_frames as u16;
    header.reserved = 0;
    header.pid = pid;
    header.tid = tid;
    header.time = time;
    header.weight = PERIOD.get();
    // Right into its place: aya's function has it on the stack, from where it is copied byte by byte, some six lines of machine code.
    // SAFETY: the length is that of the array.
    unsafe { bpf_get_current_comm(header.comm.as_mut_ptr().cast(), COMM_LEN as u32) };
    let bytes = output(slot, scratch, rest);
    scratch.untold = scratch.untold.wrapping_add(bytes);
    if outcome == UNFINISHED {
        wake(pid);
    } else if scratch.untold >= WAKE_AFTER && wake(RING_FILLS) {
        scratch.untold = 0;
    }
}

/// Bytes of the frames in scratch, as the verifier sees them.
#[inline(always)]
fn frame_bytes(scratch: &Scratch) -> u64 {
    const MASK: i32 = FRAME_SLOTS as i32 * 8 - 1;
    masked::<MASK>(u64::from(scratch.frames) * 8)
}

/// Leaves behind the frames what user space needs to go on: registers, and a copy of the stack. Returns how many bytes of it.
#[inline(always)]
fn leave_rest(scratch: &mut Scratch, slot: u32) -> u64 {
    const LAST: i32 = MAX_COPY as i32 - 1;
    let unfinished = rest(scratch);
    // SAFETY: behind the frames there is room for it, see `maps::Record`; they are words, so that it is aligned.
    unsafe {
        (*unfinished).registers = scratch.registers;
        (*unfinished).origin = scratch.origin;
        (*unfinished).leaf = scratch.leaf;
    }
    masked::<LAST>(copy_stack(slot).into())
}

/// What follows the frames in scratch.
#[inline(always)]
fn rest(scratch: &mut Scratch) -> *mut Unfinished {
    let start = frame_bytes(scratch) as usize;
    scratch.record.frames.as_mut_ptr().wrapping_byte_add(start).cast()
}

/// Copies the stack of the frame in scratch behind what [`leave_rest`] left, less than [`MAX_COPY`] bytes, up to the last page that is there.
/// Returns how many bytes, and notes which pages of them are missing. Each read ends with a page, since one that fails gives nothing.
///
/// A global function, and what it found so far passes through memory: the verifier of Linux 5.10 follows each way through the pages
/// else, there or not, and each of them from every end of the walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy_stack(slot: u32) -> u32 {
    const LAST: i32 = MAX_COPY as i32 - 1;
    const MOST: i32 = 2 * PAGE as i32 - 1;
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    let start = copy_start(scratch.registers.sp);
    let unfinished = rest(scratch);
    let mut done = 0;
    // SAFETY: behind the frames there is room for it, for `MAX_COPY` bytes and for two pages more, see `maps::Record`; the helper
    // fails instead of faulting.
    unsafe {
        let copied = &raw mut (*unfinished).copied;
        let holes = &raw mut (*unfinished).holes;
        let missing = &raw mut (*unfinished).reserved;
        copied.write_volatile(0);
        holes.write_volatile(0);
        missing.write_volatile(0);
        for page in 0..MAX_COPY / PAGE as u32 {
            let from = start + done;
            let bytes = masked::<MOST>(PAGE - from % PAGE);
            if done + bytes >= u64::from(MAX_COPY) {
                break;
            }
            let to = unfinished.add(1).byte_add(masked::<LAST>(done) as usize);
            let failed = bpf_probe_read_user(to.cast::<c_void>(), bytes as u32, from as *const c_void) != 0;
            done += bytes;
            if failed {
                missing.write_volatile(missing.read_volatile() | 1 << page);
            } else {
                copied.write_volatile(done as u32);
                holes.write_volatile(missing.read_volatile());
            }
        }
        missing.write_volatile(0);
        copied.read_volatile()
    }
}

/// Tells the agent that there is something for it to do, unless it has been told and not yet looked. Whether it knows: beside another CPU
/// that does the same it may not; it looks by itself before long.
#[inline(always)]
fn wake(why: u32) -> bool {
    WAKE_UPS.query(u64::from(BPF_RB_AVAIL_DATA)) != 0
        || WAKE_UPS
            .output::<u32>(&why, u64::from(BPF_RB_FORCE_WAKEUP))
            .is_ok()
}

/// Writes the kernel stack to the start of the record; returns its depth.
#[inline(always)]
fn kernel_stack(ctx: &PerfEventContext, scratch: &mut Scratch) -> u32 {
    const BYTES: u32 = MAX_KERNEL_FRAMES * 8;
    let frames = scratch.record.frames.as_mut_ptr();
    // SAFETY: `frames` has room for more than `BYTES`.
    let written = unsafe { bpf_get_stack(ctx.as_ptr(), frames.cast(), BYTES, 0) };
    if written < 0 {
        0
    } else {
        (written as u32 & 0x3ff) / 8
    }
}

/// Hands the record to the ring of this CPU, with what follows the frames. Returns how long it is. The ring itself wakes nobody, which would cost
/// about as much as the walk.
#[inline(always)]
fn output(slot: u32, scratch: &Scratch, rest: u64) -> u32 {
    let bytes = HEADER_LEN as u64 + frame_bytes(scratch) + rest;
    // A clock ticks on a CPU only when its ring is there.
    let refused = SAMPLES.get(slot).is_none_or(|ring| {
        // SAFETY: masks keep `bytes` below the size of the record, which starts at the header.
        let result = unsafe {
            bpf_ringbuf_output(
                core::ptr::from_ref(ring).cast_mut().cast(),
                (&raw const scratch.record).cast_mut().cast(),
                bytes,
                u64::from(BPF_RB_NO_WAKEUP),
            )
        };
        result != 0
    });
    if refused {
        count(Counter::RingFull);
    }
    bytes as u32
}
