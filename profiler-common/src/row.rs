//! Unwind tables as the kernel programs read them.
//!
//! A table covers a run of a file's virtual addresses in pages of 4 KiB. It is a block of 32-bit words:
//!
//! ```text
//! ┌─────────────────────┬───────────────────────────┬──────────────────────────────┐
//! │ page index          │ rows, by address          │ rules that fit into no row   │
//! │ one word a page,    │ address in page:12 rule:20│ two words each               │
//! │ and one for the end │                           │                              │
//! └─────────────────────┴───────────────────────────┴──────────────────────────────┘
//! ```
//!
//! The index says where the rows of a page begin, so that a search stays in one page: some fifty rows, two or three cache lines. A
//! row holds from its address up to the next one's; a rule that is in force at the start of a page has a row there. Nearly
//! every rule fits into its row (libLLVM has 57 that do not), so that no further line of memory is touched.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "bit fields: every cast is of a value that a mask or a comparison has just bounded"
)]

/// log2 of the size of a page of a table.
pub const PAGE_SHIFT: u32 = 12;

/// Bits of a row that hold its rule.
const RULE_BITS: u32 = 20;

/// Which value the canonical frame address, the stack pointer before the call, is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// The stack pointer.
    Sp,
    /// The frame pointer.
    Bp,
    /// Another register, by its DWARF number: known in the innermost frame only.
    Register(u8),
    /// The word that lies `0` bytes above the frame pointer: functions that align their stack keep it there.
    DerefBp(i16),
    /// The word that lies `0` bytes above the stack pointer: hand-written cryptography keeps it there.
    DerefSp(i16),
}

/// Where the caller's frame pointer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedBp {
    /// Still in its register.
    Same,
    /// This many bytes above the canonical frame address; usually below it.
    AtCfa(i16),
    /// This many bytes above the frame pointer: functions that align their stack.
    AtBp(i16),
}

/// Where the caller's `rbx` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedBx {
    /// Still in its register.
    Same,
    /// This many words below the canonical frame address: 2 to 7, where compilers put it.
    Below(u8),
    /// Elsewhere, or nowhere.
    Lost,
}

impl SavedBx {
    /// In 3 bits: 0 same, 1 to 6 for 2 to 7 words, 7 lost.
    const fn pack(self) -> u32 {
        match self {
            Self::Same => 0,
            Self::Below(words) if words >= 2 && words <= 7 => words as u32 - 1,
            Self::Below(_) | Self::Lost => 7,
        }
    }

    #[inline(always)]
    const fn unpack(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Same,
            7 => Self::Lost,
            number => Self::Below(number as u8 + 1),
        }
    }
}

/// How the caller's registers follow from a frame's. The return address is always the word below the canonical frame address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// From the tables of the compiler.
    Cfa {
        /// What the canonical frame address is computed from,
        base: Base,
        /// and how many bytes above that it lies.
        offset: i32,
        /// Where the caller's frame pointer is.
        bp: SavedBp,
        /// Where the caller's `rbx` is.
        bx: SavedBx,
    },
    /// By the frame pointer: code without tables.
    FramePointer,
    /// The thread began here.
    End,
    /// No code, or code that nothing is known of.
    None,
    /// Something that no variant here can say.
    Unsupported,
    /// The kernel called a signal handler here: the registers of the interrupted code lie on the stack.
    Signal,
    /// A stub of the procedure linkage table of 16 bytes: from this many bytes into it on, one more word is on the stack.
    Plt(u8),
    /// The return address is in the register of this DWARF number and no longer on the stack: `vfork`, whose child would overwrite it.
    /// Known in the innermost frame only.
    ReturnIn(u8),
    /// Code that goes by frame pointers and has no frame of its own here, or not yet, or no more: where it was interrupted, its return
    /// address is on top of the stack.
    Frameless,
}

/// Rules without operands, by number; the further numbers count entries of the table of rules.
const END: u32 = 0;
const NONE: u32 = 1;
const UNSUPPORTED: u32 = 2;
const SIGNAL: u32 = 3;
const FRAME_POINTER: u32 = 4;
const FRAMELESS: u32 = 5;
const PLT: u32 = 8; // up to 15 bytes: 8..24
const RETURN_IN: u32 = 24; // 16 registers: 24..40
const FIRST_ENTRY: u32 = 40;

/// Marks a rule that has no room in its row.
const ELSEWHERE: u32 = 1 << (RULE_BITS - 1);

/// Most entries of the table of rules of one table.
pub const MAX_ENTRIES: u32 = ELSEWHERE - FIRST_ENTRY;

/// A rule as it stands in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// The rule itself.
    Rule(Rule),
    /// The entry of this number in the table of rules.
    Entry(u32),
}

impl Rule {
    /// The rule as 20 bits of a row; `None` when it needs an entry of its own.
    ///
    /// ```text
    /// 0 │ base:1 (sp, bp) │ offset / 8: 10 │ saved rbx: 3 │ saved bp: 5 (0 same, n at cfa - 8n)
    /// 1 │ number: 19
    /// ```
    #[inline(always)]
    pub const fn pack(self) -> Option<u32> {
        match self {
            Self::Cfa { base, offset, bp, bx } => {
                let base = match base {
                    Base::Sp => 0,
                    Base::Bp => 1,
                    Base::Register(_) | Base::DerefBp(_) | Base::DerefSp(_) => return None,
                };
                let bp = match bp {
                    SavedBp::Same => 0,
                    SavedBp::AtCfa(at) if at < 0 && at % 8 == 0 && at >= -31 * 8 => (-at / 8) as u32,
                    SavedBp::AtCfa(_) | SavedBp::AtBp(_) => return None,
                };
                if offset < 0 || offset % 8 != 0 || offset >= 1024 * 8 {
                    return None;
                }
                Some(base << 18 | ((offset / 8) as u32) << 8 | bx.pack() << 5 | bp)
            }
            Self::End => Some(ELSEWHERE | END),
            Self::None => Some(ELSEWHERE | NONE),
            Self::Unsupported => Some(ELSEWHERE | UNSUPPORTED),
            Self::Signal => Some(ELSEWHERE | SIGNAL),
            Self::FramePointer => Some(ELSEWHERE | FRAME_POINTER),
            Self::Frameless => Some(ELSEWHERE | FRAMELESS),
            Self::Plt(from) if from < 16 => Some(ELSEWHERE | (PLT + from as u32)),
            Self::ReturnIn(number) if number < 16 => Some(ELSEWHERE | (RETURN_IN + number as u32)),
            Self::Plt(_) | Self::ReturnIn(_) => None,
        }
    }

    /// The rule of the lower 20 bits of a row.
    #[inline(always)]
    pub const fn unpack(bits: u32) -> Packed {
        if Self::fits_into_row(bits) {
            return Packed::Rule(Self::unpack_row(bits));
        }
        Packed::Rule(match bits & (ELSEWHERE - 1) {
            END => Self::End,
            NONE => Self::None,
            SIGNAL => Self::Signal,
            FRAME_POINTER => Self::FramePointer,
            FRAMELESS => Self::Frameless,
            number @ PLT..RETURN_IN => Self::Plt((number - PLT) as u8),
            number @ RETURN_IN..FIRST_ENTRY => Self::ReturnIn((number - RETURN_IN) as u8),
            number @ FIRST_ENTRY.. => return Packed::Entry(number - FIRST_ENTRY),
            _ => Self::Unsupported,
        })
    }

    /// Whether these are the bits of a [`Rule::Cfa`] without an entry of its own, as nearly all are.
    #[inline(always)]
    pub const fn fits_into_row(bits: u32) -> bool {
        bits < ELSEWHERE
    }

    /// The rule of bits that [fit into a row](Self::fits_into_row).
    #[inline(always)]
    pub const fn unpack_row(bits: u32) -> Self {
        Self::Cfa {
            base: if bits >> 18 & 1 == 0 { Base::Sp } else { Base::Bp },
            offset: ((bits >> 8 & 0x3ff) * 8) as i32,
            bp: match bits & 0x1f {
                0 => SavedBp::Same,
                words => SavedBp::AtCfa(-((words * 8) as i16)),
            },
            bx: SavedBx::unpack(bits >> 5),
        }
    }

    /// The bits of the same rule with another offset; `None` where either does not fit into a row.
    #[inline(always)]
    pub const fn with_offset(bits: u32, offset: i32) -> Option<u32> {
        if !Self::fits_into_row(bits) || offset < 0 || offset % 8 != 0 || offset >= 1024 * 8 {
            return None;
        }
        Some(bits & !(0x3ff << 8) | ((offset / 8) as u32) << 8)
    }

    /// The bits of a rule, or those of [`Self::FramePointer`] where that is the way up: there is no rule, or it is for a
    /// [leaf](crate::unwind::Origin::is_leaf) and this is none.
    #[inline(always)]
    pub const fn or_frame_pointer(bits: u32, is_leaf: bool) -> u32 {
        match bits {
            Self::NO_BITS | Self::UNSUPPORTED_BITS => Self::FRAME_POINTER_BITS,
            Self::FRAMELESS_BITS if !is_leaf => Self::FRAME_POINTER_BITS,
            bits => bits,
        }
    }

    /// Whether the rule is not here but an [entry](Self::entry) of its table.
    #[inline(always)]
    pub const fn is_entry(bits: u32) -> bool {
        !Self::fits_into_row(bits) && bits & (ELSEWHERE - 1) >= FIRST_ENTRY
    }

    /// [`Self::None`], packed.
    pub const NO_BITS: u32 = ELSEWHERE | NONE;
    /// [`Self::FramePointer`], packed.
    pub const FRAME_POINTER_BITS: u32 = ELSEWHERE | FRAME_POINTER;
    /// [`Self::End`], packed.
    pub const END_BITS: u32 = ELSEWHERE | END;
    /// [`Self::Signal`], packed.
    pub const SIGNAL_BITS: u32 = ELSEWHERE | SIGNAL;
    /// [`Self::Frameless`], packed.
    const FRAMELESS_BITS: u32 = ELSEWHERE | FRAMELESS;
    /// [`Self::Unsupported`], packed.
    const UNSUPPORTED_BITS: u32 = ELSEWHERE | UNSUPPORTED;

    /// The bits of a row whose rule is the entry of this number.
    pub const fn pack_entry(number: u32) -> u32 {
        ELSEWHERE | (FIRST_ENTRY + number)
    }

    /// The rule as an entry of two words; `None` for those that never need one, or have offsets beyond every stack frame.
    ///
    /// ```text
    /// word 0: offset, 32 bits
    /// word 1: base:3 │ bp:2 │ rbx:3 │ register or displacement of the base: 12 │ displacement of bp: 12 (in words of 8 bytes)
    /// ```
    pub const fn entry(self) -> Option<[u32; 2]> {
        let Self::Cfa { base, offset, bp, bx } = self else {
            return None;
        };
        let (base, operand) = match base {
            Base::Sp => (0, Some(0)),
            Base::Bp => (1, Some(0)),
            Base::Register(number) => (2, Some(number as u32)),
            Base::DerefBp(at) => (3, words(at)),
            Base::DerefSp(at) => (4, words(at)),
        };
        let (bp, at) = match bp {
            SavedBp::Same => (0, Some(0)),
            SavedBp::AtCfa(at) => (1, words(at)),
            SavedBp::AtBp(at) => (2, words(at)),
        };
        match (operand, at) {
            (Some(operand), Some(at)) => Some([
                offset as u32,
                base | bp << 3 | bx.pack() << 5 | operand << 8 | at << 20,
            ]),
            _ => None,
        }
    }

    /// The rule of an entry.
    #[inline(always)]
    pub const fn of_entry([offset, word]: [u32; 2]) -> Self {
        let operand = word >> 8 & 0xfff;
        let base = match word & 7 {
            0 => Base::Sp,
            1 => Base::Bp,
            2 => Base::Register(operand as u8),
            3 => Base::DerefBp(bytes(operand)),
            4 => Base::DerefSp(bytes(operand)),
            _ => return Self::Unsupported,
        };
        let bp = match word >> 3 & 3 {
            0 => SavedBp::Same,
            1 => SavedBp::AtCfa(bytes(word >> 20)),
            2 => SavedBp::AtBp(bytes(word >> 20)),
            _ => return Self::Unsupported,
        };
        Self::Cfa {
            base,
            offset: offset as i32,
            bp,
            bx: SavedBx::unpack(word >> 5),
        }
    }
}

/// A displacement of whole words in 12 bits.
const fn words(bytes: i16) -> Option<u32> {
    let words = bytes / 8;
    if bytes % 8 != 0 || words < -2048 || words > 2047 {
        None
    } else {
        Some(words as u32 & 0xfff)
    }
}

const fn bytes(words: u32) -> i16 {
    // The sign of 12 bits, moved to the top and back.
    ((words << 4) as i16) >> 4 << 3
}

/// A row: an address in its page, and the rule from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(pub u32);

impl Row {
    /// A row of a packed rule.
    pub const fn new(address_in_page: u32, rule_bits: u32) -> Self {
        Self(address_in_page << RULE_BITS | rule_bits & ((1 << RULE_BITS) - 1))
    }

    /// Where in its page it begins.
    #[inline(always)]
    pub const fn address_in_page(self) -> u32 {
        self.0 >> RULE_BITS
    }

    /// The bits of its rule.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0 & ((1 << RULE_BITS) - 1)
    }

    /// Its rule.
    #[inline(always)]
    pub const fn rule(self) -> Packed {
        Rule::unpack(self.bits())
    }
}
