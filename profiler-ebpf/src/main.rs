//! The kernel side of profiler-agent.
//!
//! ```text
//! perf event ──▶ filter ──▶ kernel stack ──▶ registers ──▶ user walk ──▶ ring of this CPU
//! fork, exec, exit, free ──▶ which processes are targets, and which are known
//! ```
//!
//! [`sample`](mod@sample) holds the first path, [`targets`] the second, [`maps`] what both share with the agent.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // `bounded` pins a bound where LLVM would move it; aya-ebpf itself needs it too

use aya_ebpf::{
    macros::{perf_event, raw_tracepoint},
    programs::{PerfEventContext, RawTracePointContext},
};

mod arch;
mod bounded;
mod maps;
mod memory;
mod patched;
mod sample;
mod tables;
mod targets;
mod task;
mod walk;

/// One tick of the sampling clock.
#[perf_event]
pub fn on_tick(ctx: PerfEventContext) -> u32 {
    sample::take(&ctx);
    0 // the perf event itself records nothing
}

/// A new task, before it can run.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn on_fork(ctx: RawTracePointContext) -> i32 {
    targets::follow(&ctx);
    0
}

/// A process has become another program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn on_exec(_ctx: RawTracePointContext) -> i32 {
    targets::replaced();
    0
}

/// A thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn on_exit(_ctx: RawTracePointContext) -> i32 {
    targets::ended();
    0
}

/// A thread that has ended is seen no more.
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn on_free(ctx: RawTracePointContext) -> i32 {
    targets::forget(&ctx);
    0
}

/// The kernel gives GPL-only helpers to programs of this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing in here may panic; the verifier refuses an object in which one is reachable.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
