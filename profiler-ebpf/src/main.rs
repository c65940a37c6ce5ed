//! The kernel side.
#![no_std]
#![no_main]

use aya_ebpf::{macros::perf_event, programs::PerfEventContext};

/// Placeholder until the walk lands.
#[perf_event]
pub fn sample(_ctx: PerfEventContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
