//! The walk up the user stack of the current thread.

use profiler_common::{
    Outcome,
    arch::REGISTERS,
    record::{BY_FRAME_POINTER, INTERRUPTED, MAX_USER_FRAMES, UNFINISHED},
    row::{Base, Packed, Rule, SavedBp, SavedBx},
    unwind::{self, Frame, Thread},
};

use crate::{
    bounded::masked,
    maps::{FRAME_SLOTS, SCRATCH, Scratch},
    memory,
    tables::{self, NOWHERE, Place, UNKNOWN},
};

/// What [`walk_some`] answers while there are more frames; beyond every [`Outcome`].
const MORE: u32 = u32::MAX;

/// Frames of one call of [`walk_some`]. Each call costs a map lookup, each frame more is one more that the verifier looks
/// through.
const FRAMES_PER_CALL: u32 = 8;

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
///
/// What nearly all frames have is here: a rule that fits into its row, or code that is walked by frame pointer. The rest is in
/// [`walk_special`]. Where the walk stands is in registers, and in scratch while another function is called: through memory each frame
/// takes 8 ns longer.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_some(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Outcome::Unreadable as u32;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone; no reference to it lives across a call.
    unsafe {
        let mut place = Place::load(scratch);
        for _ in 0..FRAMES_PER_CALL {
            if (*scratch).frames >= (*scratch).limit {
                return Outcome::Truncated as u32;
            }
            let bits = match tables::next_rule(scratch, &mut place) {
                Some(bits) => bits,
                None => {
                    place.store(scratch);
                    let bits = tables::find_rule(slot);
                    place = Place::load(scratch);
                    bits
                }
            };
            let Place { frame, .. } = place;
            let caller = if Rule::fits_into_row(bits) {
                push(scratch, frame, 0);
                unwind::step(frame, Rule::unpack_row(bits), &mut Current { scratch, slot })
            } else if bits == Rule::NO_BITS && !frame.origin.may_begin_here() {
                push(scratch, frame, BY_FRAME_POINTER);
                unwind::step(frame, Rule::FramePointer, &mut Current { scratch, slot })
            } else {
                place.store(scratch);
                let answer = walk_special(slot, bits);
                if answer != MORE {
                    return answer;
                }
                place = Place::load(scratch);
                continue;
            };
            match caller {
                Ok(caller) => place.frame = caller,
                Err(outcome) => return outcome as u32,
            }
        }
        place.store(scratch);
    }
    MORE
}

/// The same for the seldom frames, by the answer of [`tables::find_rule`]. A global function, so that the verifier goes through it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_special(slot: u32, mut bits: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Outcome::Unreadable as u32;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone; no reference to it lives across a call.
    unsafe {
        let origin = (*scratch).frame().origin;
        if bits == Rule::NO_BITS && origin.may_begin_here() {
            bits = rule_at_start(slot);
        }
        if bits == UNKNOWN {
            return u32::from(UNFINISHED);
        }
        if bits == NOWHERE {
            // What was interrupted is shown wherever it is; what a step led to outside all code is no frame.
            if origin.is_leaf() {
                push(scratch, (*scratch).frame(), 0);
            }
            return if origin.is_chained() {
                Outcome::BadFramePointer as u32
            } else {
                Outcome::NoMapping as u32
            };
        }
        let bits = Rule::or_frame_pointer(bits, (*scratch).frame().origin.is_leaf());
        let how = if bits == Rule::FRAME_POINTER_BITS {
            BY_FRAME_POINTER
        } else {
            0
        };
        push(scratch, (*scratch).frame(), how);
        // Right before the step: LLVM leaves parts of a rule that is carried further undefined, which the verifier refuses.
        match Rule::unpack(bits) {
            Packed::Rule(rule) => step(scratch, slot, rule),
            // Looking up the row has left the entry in scratch.
            Packed::Entry(_) => step_by_entry(slot),
        }
    }
}

/// The step of the frame in scratch by the entry there. A function of its own for the same reason as [`walk_special`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn step_by_entry(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Outcome::Unreadable as u32;
    };
    // SAFETY: as above.
    unsafe {
        let rule = Rule::of_entry((*scratch).entry);
        // One step for each kind, of which LLVM knows all parts: a part that a kind has not, it carries through the step undefined.
        match rule {
            Rule::Cfa {
                base,
                offset,
                bp: SavedBp::AtCfa(at),
                bx,
            } => step(scratch, slot, cfa(base, offset, SavedBp::AtCfa(at), bx)),
            Rule::Cfa {
                base,
                offset,
                bp: SavedBp::AtBp(at),
                bx,
            } => step(scratch, slot, cfa(base, offset, SavedBp::AtBp(at), bx)),
            Rule::Cfa { base, offset, bx, .. } => step(scratch, slot, cfa(base, offset, SavedBp::Same, bx)),
            _ => Outcome::UnsupportedRule as u32,
        }
    }
}

#[inline(always)]
fn cfa(base: Base, offset: i32, bp: SavedBp, bx: SavedBx) -> Rule {
    Rule::Cfa { base, offset, bp, bx }
}

/// The rule for a frame that [may begin](profiler_common::unwind::Origin::may_begin_here) where it is, since [`tables::find_rule`] has none for
/// the byte before.
#[inline(always)]
unsafe fn rule_at_start(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Rule::NO_BITS;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone; no reference to it lives across the call of `find_rule`.
    unsafe {
        let origin = (*scratch).frame().origin;
        (*scratch).origin = origin.at_its_address().bits();
        let bits = tables::find_rule(slot);
        // What has no rule there either is as it was; what is unknown there is for user space to look at in the same way.
        if bits >= UNKNOWN || Rule::or_frame_pointer(bits, origin.is_leaf()) == Rule::FRAME_POINTER_BITS {
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

/// Makes the caller of the frame in scratch the next frame.
#[inline(always)]
unsafe fn step(scratch: *mut Scratch, slot: u32, rule: Rule) -> u32 {
    // SAFETY: by contract of the caller.
    unsafe {
        match unwind::step((*scratch).frame(), rule, &mut Current { scratch, slot }) {
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
struct Current {
    scratch: *mut Scratch,
    slot: u32,
}

impl Thread for Current {
    #[inline(always)]
    fn word(&mut self, address: u64) -> Option<u64> {
        // SAFETY: the pointer is to this CPU's slot; nothing of it is borrowed across the call.
        unsafe { memory::word(&raw mut (*self.scratch).memory, address, self.slot) }
    }

    #[inline(always)]
    fn register(&mut self, number: u8) -> Option<u64> {
        const LAST: i32 = REGISTERS as i32 - 1;
        let index = masked::<LAST>(number.into()) as usize;
        // SAFETY: the mask keeps the index inside the array.
        Some(unsafe { *(&raw const (*self.scratch).leaf).cast::<u64>().add(index) })
    }
}

/// Writes the address of a frame into the record, and how it is walked.
#[inline(always)]
unsafe fn push(scratch: *mut Scratch, frame: Frame, how: u64) {
    const LAST: i32 = FRAME_SLOTS as i32 - 1;
    let here = if frame.origin.is_interrupted() {
        INTERRUPTED
    } else {
        0
    };
    // SAFETY: by contract of the caller; the mask keeps the index inside the array, where indexing would leave a panic that the
    // verifier refuses.
    unsafe {
        let index = masked::<LAST>(u64::from((*scratch).frames)) as usize;
        let address = frame.registers.ip & !(BY_FRAME_POINTER | INTERRUPTED);
        *(&raw mut (*scratch).record.frames).cast::<u64>().add(index) = address | here | how;
        (*scratch).frames += 1;
    }
}
