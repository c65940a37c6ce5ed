//! Bounds that the verifier can see.

use core::arch::asm;

/// `value & MASK`, in assembly that LLVM cannot look into. Written in Rust, LLVM proves the mask away where it believes
/// the bound, or keeps it on another register than the one that indexes, and the verifier then says "unbounded".
#[inline(always)]
pub fn masked<const MASK: i32>(mut value: u64) -> u64 {
    // SAFETY: one arithmetic instruction on one register.
    unsafe {
        asm!("{0} &= {1}", inout(reg) value, const MASK, options(pure, nomem, nostack, preserves_flags));
    }
    value
}
