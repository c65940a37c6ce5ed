//! The walk up the user stack of the current thread.

use profiler_common::{
    Outcome,
    record::MAX_USER_FRAMES,
    unwind::{self, Rule},
};

use crate::{
    bounded::masked,
    maps::{FRAME_SLOTS, SCRATCH, Scratch},
};

/// What [`walk_some`] answers while there are more frames; beyond every [`Outcome`].
const MORE: u32 = u32::MAX;

/// Frames of one call of [`walk_some`]. Each call costs a map lookup and the way of the registers through memory (5 ns a frame less with
/// 16 than with 8), each frame more is one more that the verifier looks through.
const FRAMES_PER_CALL: u32 = 16;

/// Walks from `scratch.registers` until there is no caller, writing each address into the record. Returns the [`Outcome`] as a number:
/// turning it into the enum and back would be a table lookup that the verifier cannot follow.
#[inline(always)]
pub fn user_stack() -> u8 {
    // One more than the limit: the last step says that the stack is deeper.
    for _ in 0..MAX_USER_FRAMES / FRAMES_PER_CALL + 1 {
        let answer = walk_some(0);
        if answer != MORE {
            return answer as u8;
        }
    }
    Outcome::Truncated as u8
}

/// Some frames. A global function, so that the verifier checks it once and not once a call, and with a scalar as its argument,
/// since Linux 5.10 takes nothing else.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_some(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Outcome::Unreadable as u32;
    };
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    // In registers while it goes: the scratch is written once a call, not once a frame.
    let (mut registers, mut frames) = (scratch.registers, scratch.frames);
    let mut answer = MORE;
    for _ in 0..FRAMES_PER_CALL {
        if frames >= scratch.limit {
            answer = Outcome::Truncated as u32;
            break;
        }
        push(scratch, frames, registers.ip);
        frames += 1;
        match unwind::step(registers, Rule::FramePointer, &mut scratch.memory) {
            Ok(caller) => registers = caller,
            Err(outcome) => {
                answer = outcome as u32;
                break;
            }
        }
    }
    (scratch.registers, scratch.frames) = (registers, frames);
    answer
}

#[inline(always)]
fn push(scratch: &mut Scratch, frame: u32, address: u64) {
    const LAST: i32 = FRAME_SLOTS as i32 - 1;
    let index = masked::<LAST>(u64::from(frame));
    // SAFETY: the mask keeps the index inside the array; indexing would leave a panic the verifier refuses.
    unsafe { *scratch.record.frames.as_mut_ptr().add(index as usize) = address };
}
