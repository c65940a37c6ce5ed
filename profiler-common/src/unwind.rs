//! One step up a user stack, as a pure function.

use crate::{
    Outcome,
    arch::{FRAME_RECORD, Registers, SIGNAL_BP, SIGNAL_IP, SIGNAL_SP, USER_LIMIT, WORD},
    row::{Base, Rule, SavedBp},
};

/// Memory and registers of the thread whose stack is walked.
pub trait Thread {
    /// The word at `address`, a multiple of 8; `None` where it cannot be read.
    fn word(&mut self, address: u64) -> Option<u64>;

    /// The register of a DWARF number, in the innermost frame; `None` further up, where nobody knows.
    fn register(&mut self, number: u8) -> Option<u64>;
}

/// A frame found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its registers.
    pub registers: Registers,
    /// Whether it was interrupted right where it is, by a signal. Any other is known by the address its call returns to, and is looked up
    /// one byte before that: a call that never returns may be the last instruction of its function.
    pub interrupted: bool,
}

/// The caller of a frame, or why there is none to be found.
///
/// [`Outcome::Complete`] is the ordinary end: the thread began here. Never panics, whatever the memory holds. Each step moves the
/// stack pointer up, but for those out of a signal handler, which may have run on a stack of its own.
///
/// # Errors
///
/// The [`Outcome`] of the whole walk.
#[inline(always)]
pub fn step(frame: Registers, rule: Rule, thread: &mut impl Thread) -> Result<Caller, Outcome> {
    match rule {
        Rule::Cfa { base, offset, bp } => {
            let cfa = cfa(frame, base, thread)?.wrapping_add_signed(i64::from(offset));
            above(frame, cfa, bp, thread)
        }
        Rule::Plt(from) => {
            let pushed = frame.ip & 15 >= u64::from(from);
            above(
                frame,
                frame.sp.wrapping_add(WORD + WORD * u64::from(pushed)),
                SavedBp::Same,
                thread,
            )
        }
        Rule::FramePointer => frame_pointer(frame, thread),
        Rule::Signal => signal(frame, thread),
        Rule::End => Err(Outcome::Complete),
        Rule::None => Err(Outcome::NoRule),
        Rule::Unsupported => Err(Outcome::UnsupportedRule),
    }
}

/// What the canonical frame address is computed from.
#[inline(always)]
fn cfa(frame: Registers, base: Base, thread: &mut impl Thread) -> Result<u64, Outcome> {
    let at = match base {
        Base::Sp => return Ok(frame.sp),
        Base::Bp => return Ok(frame.bp),
        Base::Register(number) => return thread.register(number).ok_or(Outcome::UnsupportedRule),
        Base::DerefBp(at) => frame.bp.wrapping_add_signed(i64::from(at)),
        Base::DerefSp(at) => frame.sp.wrapping_add_signed(i64::from(at)),
    };
    word(at, thread)
}

/// The caller whose frame begins at the canonical frame address.
///
/// ```text
///            │ caller's frame │  cfa        caller's sp = cfa
///            │ return address │  cfa - 8
///            │ saved bp ?     │
///  sp ─────▶ │ …              │
/// ```
#[inline(always)]
fn above(frame: Registers, cfa: u64, bp: SavedBp, thread: &mut impl Thread) -> Result<Caller, Outcome> {
    // The return address lies between the two.
    if cfa <= frame.sp || !cfa.is_multiple_of(WORD) || cfa >= USER_LIMIT {
        return Err(Outcome::BadRule);
    }
    let bp = match bp {
        SavedBp::Same => frame.bp,
        SavedBp::AtCfa(at) => word(cfa.wrapping_add_signed(i64::from(at)), thread)?,
        SavedBp::AtBp(at) => word(frame.bp.wrapping_add_signed(i64::from(at)), thread)?,
    };
    let return_address = word(cfa.wrapping_sub(WORD), thread)?;
    returned(return_address, cfa, bp)
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
fn frame_pointer(frame: Registers, thread: &mut impl Thread) -> Result<Caller, Outcome> {
    let Registers { ip: _, sp, bp } = frame;
    if bp == 0 {
        return Err(Outcome::Complete);
    }
    if bp < sp || !bp.is_multiple_of(WORD) || bp >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    let saved_bp = thread.word(bp).ok_or(Outcome::Unreadable)?;
    let return_address = thread.word(bp.wrapping_add(WORD)).ok_or(Outcome::Unreadable)?;
    if return_address >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    returned(return_address, bp.wrapping_add(FRAME_RECORD), saved_bp)
}

/// Linux puts a `struct rt_sigframe` on the stack, arch/x86/include/asm/sigframe.h: a `ucontext` begins where the handler's return
/// address has been popped from.
#[inline(always)]
fn signal(frame: Registers, thread: &mut impl Thread) -> Result<Caller, Outcome> {
    let bp = word(frame.sp.wrapping_add(SIGNAL_BP), thread)?;
    let sp = word(frame.sp.wrapping_add(SIGNAL_SP), thread)?;
    let ip = word(frame.sp.wrapping_add(SIGNAL_IP), thread)?;
    Ok(Caller {
        registers: Registers { ip, sp, bp },
        interrupted: true,
    })
}

#[inline(always)]
fn returned(return_address: u64, sp: u64, bp: u64) -> Result<Caller, Outcome> {
    if return_address == 0 {
        return Err(Outcome::Complete);
    }
    Ok(Caller {
        registers: Registers {
            ip: return_address,
            sp,
            bp,
        },
        interrupted: false,
    })
}

#[inline(always)]
fn word(address: u64, thread: &mut impl Thread) -> Result<u64, Outcome> {
    if !address.is_multiple_of(WORD) || address >= USER_LIMIT {
        return Err(Outcome::BadRule);
    }
    thread.word(address).ok_or(Outcome::Unreadable)
}
