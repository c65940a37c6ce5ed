//! The walk of a user stack in user space, from where the kernel side came to, in a copy of the stack: the same steps with the same tables.

use profiler_common::{
    Outcome,
    arch::REGISTERS,
    record::{BY_FRAME_POINTER, INTERRUPTED, MAX_COPY, MAX_USER_FRAMES, PAGE, Unfinished, copy_start},
    row::Rule,
    unwind::{self, Frame, Origin, Thread},
};

/// What leads up from an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The rule of a table.
    Table(Rule),
    /// The frame pointer, as a table says.
    FramePointer,
    /// The frame pointer, since no table speaks of that address.
    Untold,
    /// There is no code.
    Nowhere,
    /// It is to be found out.
    Pending,
}

/// How a walk came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walked {
    /// It ended.
    To(Outcome),
    /// It ended where no code is.
    Astray(Outcome),
    /// It cannot go on until more is known.
    Pending,
}

/// This far from the copy begins another stack.
const OTHER_STACK: u64 = 1 << 20;

/// Walks on from `state`, adding to `frames`, which holds what was found before. `way` tells the way up from an address.
pub fn walk(
    state: &Unfinished,
    stack: &[u8],
    frames: &mut Vec<u64>,
    mut way: impl FnMut(u64) -> Way,
) -> Walked {
    let mut thread = Copy {
        start: copy_start(state.registers.sp),
        stack,
        holes: state.holes,
        leaf: &state.leaf,
        short: false,
    };
    let mut frame = Frame {
        registers: state.registers,
        origin: Origin::from_bits(state.origin),
    };
    loop {
        if frames.len() >= MAX_USER_FRAMES as usize {
            return Walked::To(Outcome::Truncated);
        }
        let is_leaf = frame.origin.is_leaf();
        let mut way = |address| {
            let found = way(address);
            if found == Way::Table(Rule::Frameless) && !is_leaf {
                Way::FramePointer
            } else {
                found
            }
        };
        let mut found = way(frame.address());
        if found == Way::Untold && frame.origin.may_begin_here() {
            // As the kernel side does.
            match way(frame.registers.ip) {
                Way::Table(rule) => {
                    let goes_on = rule == Rule::Signal || frame.origin.is_innermost();
                    found = Way::Table(if goes_on { rule } else { Rule::End });
                    frame.origin = frame.origin.at_its_address();
                }
                Way::Pending => return Walked::Pending,
                Way::FramePointer | Way::Untold | Way::Nowhere => {}
            }
        }
        let interrupted = if frame.origin.is_interrupted() {
            INTERRUPTED
        } else {
            0
        };
        let address = frame.registers.ip & !(BY_FRAME_POINTER | INTERRUPTED) | interrupted;
        let rule = match found {
            Way::Pending => return Walked::Pending,
            Way::Nowhere => {
                // What was interrupted is shown wherever it is; what a step led to outside all code is no frame.
                if frame.origin.is_leaf() {
                    frames.push(address);
                }
                return Walked::Astray(if frame.origin.is_chained() {
                    Outcome::BadFramePointer
                } else {
                    Outcome::NoMapping
                });
            }
            Way::Table(rule) => {
                frames.push(address);
                rule
            }
            Way::FramePointer | Way::Untold => {
                frames.push(address | BY_FRAME_POINTER);
                Rule::FramePointer
            }
        };
        match unwind::step(frame, rule, &mut thread) {
            Ok(caller) => frame = caller,
            Err(Outcome::Unreadable) if thread.short => return Walked::To(Outcome::ShortCopy),
            Err(outcome) => return Walked::To(outcome),
        }
    }
}

/// A thread as it was: the registers of its innermost frame, and a piece of its stack.
struct Copy<'a> {
    start: u64,
    stack: &'a [u8],
    /// Pages of it that are missing.
    holes: u32,
    leaf: &'a [u64; REGISTERS],
    /// Whether the walk wanted to go on behind the end of a copy that ends because it is long enough, or on another stack.
    short: bool,
}

impl Thread for Copy<'_> {
    fn word(&mut self, address: u64) -> Option<u64> {
        let Some(offset) = address
            .checked_sub(self.start)
            .filter(|&offset| offset < OTHER_STACK)
            .and_then(|offset| usize::try_from(offset).ok())
        else {
            self.short = true;
            return None;
        };
        let page = address / PAGE - self.start / PAGE;
        if u32::try_from(page)
            .is_ok_and(|page| self.holes.checked_shr(page).is_some_and(|holes| holes & 1 != 0))
        {
            return None;
        }
        let word = self.stack.get(offset..).and_then(|rest| rest.first_chunk());
        if word.is_none() {
            // Copies end with a page, so that the longest may lack up to a page of the most.
            self.short = self.stack.len() as u64 + 2 * PAGE > u64::from(MAX_COPY);
        }
        word.map(|&word| u64::from_ne_bytes(word))
    }

    fn register(&mut self, number: u8) -> Option<u64> {
        self.leaf.get(usize::from(number)).copied()
    }
}
