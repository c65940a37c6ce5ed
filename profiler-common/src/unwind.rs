//! One step up a user stack, as a pure function.

use crate::{
    Outcome,
    arch::{FRAME_RECORD, RBX, Registers, SIGNAL_BP, SIGNAL_BX, SIGNAL_IP, SIGNAL_SP, USER_LIMIT, WORD},
    row::{Base, Rule, SavedBp, SavedBx},
};

/// A frame pointer this far below the stack pointer may point into another stack; nearer it is a leftover.
const OTHER_STACK: u64 = 64 << 10;

/// Memory and registers of the thread whose stack is walked.
pub trait Thread {
    /// The word at `address`, a multiple of 8; `None` where it cannot be read.
    fn word(&mut self, address: u64) -> Option<u64>;

    /// The register of a DWARF number, as it was in the innermost frame.
    fn register(&mut self, number: u8) -> Option<u64>;
}

/// How a frame was come to.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin(u32);

impl Origin {
    /// The innermost frame in a system call: all its registers are known, and it is where the call returns to, which may be the end
    /// of its function.
    pub const IN_CALL: Self = Self(INNERMOST);
    /// The innermost frame: all its registers are known, and it is right where it was interrupted.
    pub const INNERMOST: Self = Self(INNERMOST | INTERRUPTED);
    /// It was interrupted right where it is by a signal, whose handler is below it.
    pub const INTERRUPTED: Self = Self(INTERRUPTED | SIGNALLED);
    /// A function below it was called.
    pub const CALLED: Self = Self(0);
    /// The same, found by frame pointer.
    pub const CHAINED: Self = Self(CHAINED);

    /// The origin of these bits; unknown ones are passed over.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & (INNERMOST | INTERRUPTED | CHAINED | SIGNALLED))
    }

    /// Its bits, to be stored.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether this is the innermost frame.
    pub const fn is_innermost(self) -> bool {
        self.0 & INNERMOST != 0
    }

    /// Whether nothing was called by it: the innermost frame, or one that a signal interrupted.
    pub const fn is_leaf(self) -> bool {
        self.0 & (INNERMOST | INTERRUPTED) != 0
    }

    /// Whether it is right where it was interrupted. Any other is known by the address its call returns to.
    pub const fn is_interrupted(self) -> bool {
        self.0 & INTERRUPTED != 0
    }

    /// Whether the frame may be at the first instruction of a function, which the byte before does not tell. No call returns there: a caller
    /// there was laid out to begin there, as coroutines are, and has no caller of its own whatever its table says; a system call returns there
    /// when it has made another program of its process.
    pub const fn may_begin_here(self) -> bool {
        self.0 & (INTERRUPTED | CHAINED) == 0
    }

    /// The same, but right where it is.
    #[must_use]
    pub const fn at_its_address(self) -> Self {
        Self(self.0 | INTERRUPTED)
    }

    /// That of the frame above, which called this one.
    #[inline(always)]
    const fn caller(self) -> Self {
        Self(Self::CALLED.0 | self.0 & SIGNALLED)
    }

    /// The same, found by frame pointer.
    #[inline(always)]
    const fn chained(self) -> Self {
        Self(Self::CHAINED.0 | self.0 & SIGNALLED)
    }

    /// Whether a signal handler is below it.
    #[inline(always)]
    const fn is_signalled(self) -> bool {
        self.0 & SIGNALLED != 0
    }

    /// Whether a frame pointer led to it.
    pub const fn is_chained(self) -> bool {
        self.0 & CHAINED != 0
    }
}

const INNERMOST: u32 = 1;
const INTERRUPTED: u32 = 2;
const CHAINED: u32 = 4;
const SIGNALLED: u32 = 8;

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its registers.
    pub registers: Registers,
    /// How it was come to.
    pub origin: Origin,
}

impl Frame {
    /// The frame that was interrupted with these registers.
    pub const fn innermost(registers: Registers) -> Self {
        Self {
            registers,
            origin: Origin::INNERMOST,
        }
    }

    /// Where it is, for a look-up: one byte before where its call returns to, since a call that never returns may be the last
    /// instruction of its function, and the next byte belongs to another.
    #[inline(always)]
    pub const fn address(&self) -> u64 {
        self.registers
            .ip
            .wrapping_sub(!self.origin.is_interrupted() as u64)
    }
}

/// The caller of a frame, or why there is none to be found.
///
/// [`Outcome::Complete`] is the ordinary end: the thread began here. Never panics, whatever the memory holds. Each step moves the
/// stack pointer up, but for those out of a signal handler, which may have run on a stack of its own, those along frame pointers
/// that lead to another stack, and that from an innermost frame whose return address is in a register.
///
/// # Errors
///
/// The [`Outcome`] of the whole walk.
#[inline(always)]
pub fn step(frame: Frame, rule: Rule, thread: &mut impl Thread) -> Result<Frame, Outcome> {
    let Frame { registers, origin } = frame;
    match rule {
        Rule::Cfa { base, offset, bp, bx } => {
            let cfa = cfa(frame, base, thread)?.wrapping_add_signed(i64::from(offset));
            above(frame, cfa, bp, bx, thread)
        }
        Rule::Plt(from) => {
            let pushed = registers.ip & 15 >= u64::from(from);
            let cfa = registers.sp.wrapping_add(WORD + WORD * u64::from(pushed));
            above(frame, cfa, SavedBp::Same, SavedBx::Same, thread)
        }
        Rule::ReturnIn(number) => {
            let return_address = register(frame, number, thread)?;
            returned(
                Registers {
                    ip: return_address,
                    ..registers
                },
                origin.caller(),
            )
        }
        Rule::Frameless if origin.is_leaf() => {
            let cfa = registers.sp.wrapping_add(WORD);
            above(frame, cfa, SavedBp::Same, SavedBx::Lost, thread)
        }
        Rule::FramePointer | Rule::Frameless => frame_pointer(registers, origin, thread),
        Rule::Signal => signal(registers, thread),
        Rule::End => Err(Outcome::Complete),
        Rule::None => Err(Outcome::NoRule),
        Rule::Unsupported => Err(Outcome::UnsupportedRule),
    }
}

/// What the canonical frame address is computed from.
#[inline(always)]
fn cfa(frame: Frame, base: Base, thread: &mut impl Thread) -> Result<u64, Outcome> {
    let Registers { sp, bp, .. } = frame.registers;
    let at = match base {
        Base::Sp => return Ok(sp),
        Base::Bp => return Ok(bp),
        Base::Register(number) => return register(frame, number, thread),
        Base::DerefBp(at) => bp.wrapping_add_signed(i64::from(at)),
        Base::DerefSp(at) => sp.wrapping_add_signed(i64::from(at)),
    };
    word(at, thread)
}

/// A register: any one of the innermost frame; `rbx` of the others, or what the innermost frame has in it. A rule by such a register says that
/// the functions called here leave it alone, and between two of one hand-written routine that is so: OpenSSL's `aesni_gcm_encrypt` keeps
/// the stack pointer of its caller in `rax` while `_aesni_ctr32_ghash_6x` runs. A signal handler keeps to nothing.
#[inline(always)]
fn register(frame: Frame, number: u8, thread: &mut impl Thread) -> Result<u64, Outcome> {
    if number == RBX && !frame.origin.is_innermost() {
        return match frame.registers.bx {
            0 => Err(Outcome::UnsupportedRule),
            bx => Ok(bx),
        };
    }
    if frame.origin.is_signalled() {
        return Err(Outcome::UnsupportedRule);
    }
    thread.register(number).ok_or(Outcome::UnsupportedRule)
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
fn above(
    Frame { registers, origin }: Frame,
    cfa: u64,
    bp: SavedBp,
    bx: SavedBx,
    thread: &mut impl Thread,
) -> Result<Frame, Outcome> {
    // The return address lies between the two.
    if cfa <= registers.sp || !cfa.is_multiple_of(WORD) || cfa >= USER_LIMIT {
        return Err(Outcome::BadRule);
    }
    let bp = match bp {
        SavedBp::Same => registers.bp,
        SavedBp::AtCfa(at) => word(cfa.wrapping_add_signed(i64::from(at)), thread)?,
        SavedBp::AtBp(at) => word(registers.bp.wrapping_add_signed(i64::from(at)), thread)?,
    };
    let bx = match bx {
        SavedBx::Same => registers.bx,
        SavedBx::Below(words) => word(cfa.wrapping_sub(u64::from(words) * WORD), thread)?,
        SavedBx::Lost => 0,
    };
    let ip = word(cfa.wrapping_sub(WORD), thread)?;
    returned(Registers { ip, sp: cfa, bp, bx }, origin.caller())
}

/// ```text
///            │ …              │
///            │ return address │  bp + 8
///  rbp ────▶ │ saved rbp      │  bp         caller's sp = bp + 16
///            │ locals …       │
///  rsp ────▶ │                │
/// ```
///
/// The ABI asks for `rbp = 0` in the outermost frame. In the innermost one a zero says nothing: code without frame pointers keeps
/// other things there. What is unaligned, lies just below the stack pointer or outside user space cannot be a frame. Far below it may be
/// another stack: Go runs parts of its runtime on the thread's own one and chains its frames to those of the goroutine.
#[inline(always)]
fn frame_pointer(frame: Registers, origin: Origin, thread: &mut impl Thread) -> Result<Frame, Outcome> {
    let Registers { sp, bp, .. } = frame;
    if bp == 0 {
        return Err(if origin.is_innermost() {
            Outcome::NoRule
        } else {
            Outcome::Complete
        });
    }
    let below = sp.wrapping_sub(bp);
    if bp < sp && below < OTHER_STACK || !bp.is_multiple_of(WORD) || bp >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    let saved_bp = thread.word(bp).ok_or(Outcome::Unreadable)?;
    let ip = thread.word(bp.wrapping_add(WORD)).ok_or(Outcome::Unreadable)?;
    if ip >= USER_LIMIT {
        return Err(Outcome::BadFramePointer);
    }
    let caller = Registers {
        ip,
        sp: bp.wrapping_add(FRAME_RECORD),
        bp: saved_bp,
        bx: 0, // nobody says what this code did with it
    };
    returned(caller, origin.chained())
}

/// Linux puts a `struct rt_sigframe` on the stack, arch/x86/include/asm/sigframe.h: a `ucontext` begins where the handler's return
/// address has been popped from.
#[inline(always)]
fn signal(frame: Registers, thread: &mut impl Thread) -> Result<Frame, Outcome> {
    let bp = word(frame.sp.wrapping_add(SIGNAL_BP), thread)?;
    let bx = word(frame.sp.wrapping_add(SIGNAL_BX), thread)?;
    let sp = word(frame.sp.wrapping_add(SIGNAL_SP), thread)?;
    let ip = word(frame.sp.wrapping_add(SIGNAL_IP), thread)?;
    Ok(Frame {
        registers: Registers { ip, sp, bp, bx },
        origin: Origin::INTERRUPTED,
    })
}

#[inline(always)]
fn returned(registers: Registers, origin: Origin) -> Result<Frame, Outcome> {
    if registers.ip == 0 {
        return Err(Outcome::Complete);
    }
    Ok(Frame { registers, origin })
}

#[inline(always)]
fn word(address: u64, thread: &mut impl Thread) -> Result<u64, Outcome> {
    if !address.is_multiple_of(WORD) || address >= USER_LIMIT {
        return Err(Outcome::BadRule);
    }
    thread.word(address).ok_or(Outcome::Unreadable)
}
