//! One step up a user stack, as a pure function.

use crate::{
    Outcome,
    arch::{FRAME_RECORD, Registers, USER_LIMIT},
};

/// Memory of the thread whose stack is walked.
pub trait Memory {
    /// The two words at `address`, a multiple of 8, and above it; `None` where they cannot be read.
    fn pair(&mut self, address: u64) -> Option<[u64; 2]>;
}

/// How the caller's registers follow from a frame's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// `rbp` points at the saved `rbp`, with the return address above it.
    FramePointer,
}

/// The registers of the caller, or why there is none to be found.
///
/// [`Outcome::Complete`] is the ordinary end: the thread began here. Never panics, whatever the memory holds, and
/// each step moves the stack pointer up, so that a walk ends.
///
/// # Errors
///
/// The [`Outcome`] of the whole walk.
#[inline(always)]
pub fn step(registers: Registers, rule: Rule, memory: &mut impl Memory) -> Result<Registers, Outcome> {
    match rule {
        Rule::FramePointer => frame_pointer(registers, memory),
    }
}

/// ```text
///            │ …              │
///            │ return address │  bp + 8
///  rbp ────▶ │ saved rbp      │  bp         caller's sp = bp + 16
///            │ locals …       │
///  rsp ────▶ │                │
/// ```
///
/// The ABI asks for `rbp = 0` in the outermost frame. Code without frame pointers keeps other things in `rbp`:
/// what is unaligned, lies below the stack pointer or outside user space cannot be a frame.
#[inline(always)]
fn frame_pointer(registers: Registers, memory: &mut impl Memory) -> Result<Registers, Outcome> {
    let Registers { ip: _, sp, bp } = registers;
    if bp == 0 {
        return Err(Outcome::Complete);
    }
    if bp < sp || bp % 8 != 0 || bp >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    let [saved_bp, return_address] = memory.pair(bp).ok_or(Outcome::Unreadable)?;
    if return_address == 0 {
        return Err(Outcome::Complete);
    }
    if return_address >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    Ok(Registers {
        ip: return_address,
        sp: bp.wrapping_add(FRAME_RECORD),
        bp: saved_bp,
    })
}
