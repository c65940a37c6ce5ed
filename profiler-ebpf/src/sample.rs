//! One sample: who ran, and where.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_F_CURRENT_CPU,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_stack, bpf_perf_event_output},
    },
    programs::PerfEventContext,
};
use profiler_common::{
    Outcome,
    record::{Counter, EventKind, HEADER_LEN, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleHeader},
};

use crate::{
    arch::{self, UserMode},
    bounded::masked,
    maps::{FRAME_SLOTS, SAMPLES, SCRATCH, Scratch, count},
    patched::Patched,
    tables, targets, walk,
};

/// Nanoseconds between two ticks; set by the agent.
#[unsafe(no_mangle)]
static PERIOD: Patched<u64> = Patched::wide(1);

/// Samples the current thread, if it is wanted.
#[inline(always)]
pub fn take(ctx: &PerfEventContext) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    // The filter first: `cpu-clock` ticks on idle CPUs at the full rate too.
    if pid == 0 || !targets::wanted(pid) {
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let scratch = unsafe { &mut *scratch };

    let in_kernel = arch::in_kernel(ctx);
    let kernel_frames = if in_kernel { kernel_stack(ctx, scratch) } else { 0 };
    scratch.frames = kernel_frames;
    scratch.limit = kernel_frames + MAX_USER_FRAMES;
    let outcome = match arch::user_mode(ctx, in_kernel, &mut scratch.leaf) {
        UserMode::None => Outcome::NoUserStack as u8,
        UserMode::Compat => Outcome::Compat as u8,
        UserMode::Native(registers) => {
            scratch.registers = registers;
            scratch.interrupted = 1;
            scratch.innermost = 1;
            scratch.memory.forget();
            tables::begin(scratch, pid);
            walk::user_stack()
        }
    };

    scratch.record.header = SampleHeader {
        kind: EventKind::Cpu as u8,
        outcome,
        kernel_frames: kernel_frames as u16,
        user_frames: (scratch.frames - kernel_frames) as u16,
        reserved: 0,
        pid,
        tid,
        weight: PERIOD.get(),
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    output(ctx, scratch);
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

/// Hands the record to the ring of this CPU.
#[inline(always)]
fn output(ctx: &PerfEventContext, scratch: &Scratch) {
    const MASK: i32 = FRAME_SLOTS as i32 * 8 - 1;
    let bytes = masked::<MASK>(HEADER_LEN as u64 + u64::from(scratch.frames) * 8);
    // SAFETY: the mask keeps `bytes` below the size of the record, which starts at the header.
    let result = unsafe {
        bpf_perf_event_output(
            ctx.as_ptr(),
            (&raw const SAMPLES).cast_mut().cast(),
            u64::from(BPF_F_CURRENT_CPU as u32),
            (&raw const scratch.record).cast_mut().cast(),
            bytes,
        )
    };
    count(if result == 0 {
        Counter::Written
    } else {
        Counter::RingFull
    });
}
