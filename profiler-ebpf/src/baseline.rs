//! What sampling costs when the kernel's own helper walks the stack: programs that only `cargo xtask bench` loads.
//!
//! Each does one thing more than the one before, so that the differences are the price of each thing: the walk, and the
//! two ways to hand a record out.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_CURRENT_CPU, BPF_F_USER_STACK, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_stack, bpf_perf_event_output, bpf_ringbuf_output},
    },
    macros::{map, perf_event},
    maps::{PerCpuArray, PerfEventArray, RingBuf},
    programs::PerfEventContext,
};
use profiler_common::record::HEADER_LEN;

const FRAMES: usize = 128;

/// A record as large as one of the agent's with as many frames.
#[repr(C)]
pub struct Record {
    header: [u64; HEADER_LEN / 8],
    frames: [u64; FRAMES],
}

#[map]
static SCRATCH: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

#[map]
static SAMPLES: PerfEventArray<u8> = PerfEventArray::new(0);

/// One ring of a kind that could be had once per CPU; the benchmark's target stays on one.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Ticks that hit another process, so that the benchmark can take their price off.
#[map]
static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The process to sample.
#[unsafe(no_mangle)]
static TARGET: u32 = 0;

/// The stack of the target into scratch; the length of the record, or nothing.
#[inline(always)]
fn stack(ctx: &PerfEventContext) -> Option<(&'static mut Record, u64)> {
    // SAFETY: volatile, because the value is patched in at load time.
    if (bpf_get_current_pid_tgid() >> 32) as u32 != unsafe { core::ptr::from_ref(&TARGET).read_volatile() } {
        let dropped = DROPPED.get_ptr_mut(0)?;
        // SAFETY: a slot of this CPU's own array.
        unsafe { *dropped += 1 };
        return None;
    }
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let record = unsafe { &mut *SCRATCH.get_ptr_mut(0)? };
    let frames = record.frames.as_mut_ptr();
    // SAFETY: `frames` has room for one frame more than is asked for.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            frames.cast(),
            FRAMES as u32 * 8 - 8,
            u64::from(BPF_F_USER_STACK),
        )
    };
    (bytes > 0).then(|| (record, HEADER_LEN as u64 + (bytes as u64 & 0x3ff)))
}

/// The walk alone.
#[perf_event]
pub fn walk(ctx: PerfEventContext) -> u32 {
    let _ = stack(&ctx);
    0
}

/// The walk, and a perf ring.
#[perf_event]
pub fn perf_ring(ctx: PerfEventContext) -> u32 {
    if let Some((record, len)) = stack(&ctx) {
        // SAFETY: `len` is at most the size of the record.
        unsafe {
            bpf_perf_event_output(
                ctx.as_ptr(),
                (&raw const SAMPLES).cast_mut().cast(),
                u64::from(BPF_F_CURRENT_CPU as u32),
                (&raw mut *record).cast(),
                len,
            );
        }
    }
    0
}

/// The walk, and a BPF ring buffer, without a wake-up.
#[perf_event]
pub fn bpf_ring(ctx: PerfEventContext) -> u32 {
    if let Some((record, len)) = stack(&ctx) {
        // SAFETY: `len` is at most the size of the record.
        unsafe {
            bpf_ringbuf_output(
                (&raw const RING).cast_mut().cast(),
                (&raw mut *record).cast(),
                len,
                u64::from(BPF_RB_NO_WAKEUP),
            );
        }
    }
    0
}

/// The kernel gives GPL-only helpers to programs of this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing in here may panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
