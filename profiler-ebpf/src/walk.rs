//! The walk up the user stack of the current thread.

use profiler_common::{
    Outcome,
    arch::REGISTERS,
    record::{BY_FRAME_POINTER, INTERRUPTED, MAX_USER_FRAMES, UNFINISHED},
    row::{Packed, Rule},
    unwind::{self, Frame, Thread},
};

use crate::{
    bounded::masked,
    maps::{FRAME_SLOTS, SCRATCH, Scratch},
    memory::UserMemory,
    tables::{self, NOWHERE, UNKNOWN},
};

/// What [`walk_some`] answers while there are more frames; beyond every [`Outcome`].
const MORE: u32 = u32::MAX;

/// Frames of one call of [`walk_some`]. Each call costs a map lookup, each frame more is one more that the verifier looks
/// through.
const FRAMES_PER_CALL: u32 = 4;

/// Walks from the frame in scratch until there is no caller, writing each address into the record. Returns the [`Outcome`] as a number, or
/// [`UNFINISHED`]: turning it into the enum and back would be a table lookup that the verifier cannot follow.
#[inline(always)]
pub fn user_stack(slot: u32) -> u8 {
    // One more than the limit: the last step says that the stack is deeper.
    for _ in 0..MAX_USER_FRAMES / FRAMES_PER_CALL + 1 {
        let answer = walk_some(slot);
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
    for _ in 0..FRAMES_PER_CALL {
        // SAFETY: a slot of this CPU's own, in use by this program alone; no reference to it lives across the call of `way`.
        match unsafe { walk_one(scratch, slot) } {
            MORE => {}
            outcome => return outcome,
        }
    }
    MORE
}

/// The rule for a frame that [may begin](profiler_common::unwind::Origin::may_begin_here) where it is, since [`tables::rule`] has none for
/// the byte before. A global function, since it is seldom needed, and a second look-up in each frame is what the verifier of Linux 5.10
/// takes longest over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rule_at_start(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Rule::NO_BITS;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone; no reference to it lives across the call of `rule`.
    unsafe {
        let origin = (*scratch).frame().origin;
        (*scratch).origin = origin.at_its_address().bits();
        let bits = tables::rule(scratch, slot);
        // What has no rule there either is as it was; what is unknown there is for user space to look at in the same way.
        if bits >= UNKNOWN || Rule::or_frame_pointer(bits) == Rule::FRAME_POINTER_BITS {
            (*scratch).origin = origin.bits();
            return if bits == UNKNOWN { UNKNOWN } else { Rule::NO_BITS };
        }
        if bits == Rule::SIGNAL_BITS || origin.is_innermost() {
            bits
        } else {
            Rule::END_BITS
        }
    }
}

/// One frame: it is written into the record, and its caller becomes the next.
#[inline(always)]
unsafe fn walk_one(scratch: *mut Scratch, slot: u32) -> u32 {
    // SAFETY: by contract of the caller.
    unsafe {
        if (*scratch).frames >= (*scratch).limit {
            return Outcome::Truncated as u32;
        }
        let mut bits = tables::rule(scratch, slot);
        if bits == Rule::NO_BITS && (*scratch).frame().origin.may_begin_here() {
            bits = rule_at_start(slot);
        }
        if bits == UNKNOWN {
            return u32::from(UNFINISHED);
        }
        let frame = (*scratch).frame();
        let here = if frame.origin.is_interrupted() {
            INTERRUPTED
        } else {
            0
        };
        if bits == NOWHERE {
            // What was interrupted is shown wherever it is; what a step led to outside all code is no frame.
            if here != 0 || frame.origin.is_innermost() {
                push(scratch, here);
            }
            return if frame.origin.is_chained() {
                Outcome::BadFramePointer as u32
            } else {
                Outcome::NoMapping as u32
            };
        }
        let bits = Rule::or_frame_pointer(bits);
        let how = if bits == Rule::FRAME_POINTER_BITS {
            BY_FRAME_POINTER
        } else {
            0
        };
        push(scratch, here | how);
        // Right before the step: LLVM leaves parts of a rule that is carried further undefined, which the verifier refuses.
        let rule = match Rule::unpack(bits) {
            Packed::Rule(rule) => rule,
            // Looking up the row has left the entry in scratch.
            Packed::Entry(_) => Rule::of_entry((*scratch).entry),
        };
        let mut thread = Current {
            memory: &mut (*scratch).memory,
            leaf: &(*scratch).leaf,
        };
        match unwind::step(frame, rule, &mut thread) {
            Ok(Frame { registers, origin }) => {
                (*scratch).registers = registers;
                (*scratch).origin = origin.bits();
                MORE
            }
            Err(outcome) => outcome as u32,
        }
    }
}

/// The current thread.
struct Current<'a> {
    memory: &'a mut UserMemory,
    leaf: &'a [u64; REGISTERS],
}

impl Thread for Current<'_> {
    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        self.memory.word(address)
    }

    #[inline(always)]
    fn register(&mut self, number: u8) -> Option<u64> {
        const LAST: i32 = REGISTERS as i32 - 1;
        let index = masked::<LAST>(number.into()) as usize;
        // SAFETY: the mask keeps the index inside the array.
        Some(unsafe { *self.leaf.as_ptr().add(index) })
    }
}

/// Writes the address of the frame in scratch into the record, with marks.
#[inline(always)]
unsafe fn push(scratch: *mut Scratch, marks: u64) {
    const LAST: i32 = FRAME_SLOTS as i32 - 1;
    // SAFETY: by contract of the caller; the mask keeps the index inside the array, where indexing would leave a panic that the
    // verifier refuses.
    unsafe {
        let index = masked::<LAST>(u64::from((*scratch).frames)) as usize;
        let address = (*scratch).registers.ip & !(BY_FRAME_POINTER | INTERRUPTED);
        *(&raw mut (*scratch).record.frames).cast::<u64>().add(index) = address | marks;
        (*scratch).frames += 1;
    }
}
