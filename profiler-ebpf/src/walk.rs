//! The walk up the user stack of the current thread.

use aya_ebpf::helpers::bpf_probe_read_user;
use profiler_common::{
    Outcome,
    record::MAX_USER_FRAMES,
    unwind::{self, Memory, Rule},
};

use crate::{
    bounded::masked,
    maps::{FRAME_SLOTS, SCRATCH, Scratch},
};

/// What [`walk_step`] answers while there are more frames; beyond every [`Outcome`].
const MORE: u32 = u32::MAX;

/// Walks from `scratch.registers` until there is no caller, writing each address into the record. Returns the [`Outcome`] as a number:
/// turning it into the enum and back would be a table lookup that the verifier cannot follow.
#[inline(always)]
pub fn user_stack() -> u8 {
    // One more than the limit: the last step says that the stack is deeper.
    for _ in 0..MAX_USER_FRAMES + 1 {
        let answer = walk_step(0);
        if answer != MORE {
            return answer as u8;
        }
    }
    Outcome::Truncated as u8
}

/// One frame. A global function, so that the verifier checks it once and not once a frame, and with a scalar as its argument,
/// since Linux 5.10 takes nothing else.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_step(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else { return Outcome::Unreadable as u32 };
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    if scratch.frames >= scratch.limit {
        return Outcome::Truncated as u32;
    }
    push(scratch, scratch.registers.ip);
    match unwind::step(scratch.registers, Rule::FramePointer, &mut UserMemory) {
        Ok(caller) => {
            scratch.registers = caller;
            MORE
        }
        Err(outcome) => outcome as u32,
    }
}

#[inline(always)]
fn push(scratch: &mut Scratch, address: u64) {
    const LAST: i32 = FRAME_SLOTS as i32 - 1;
    let index = masked::<LAST>(u64::from(scratch.frames));
    // SAFETY: the mask keeps the index inside the array; indexing would leave a panic the verifier refuses.
    unsafe { *scratch.record.frames.as_mut_ptr().add(index as usize) = address };
    scratch.frames += 1;
}

/// The memory of the current process. Never faults a page in: what is not there is unreadable.
struct UserMemory;

impl Memory for UserMemory {
    #[inline(always)]
    fn pair(&mut self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok()
    }
}
