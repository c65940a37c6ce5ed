//! The entries of `.eh_frame` and `.debug_frame`: functions, and what many functions have in common.
//!
//! ```text
//! length u32, or ff ff ff ff and u64 │ 0 (-1 in .debug_frame): common part │ body
//!                                    │ else where the common part is       │ first address, length, program
//! ```

use gimli::constants as dw;

use super::{
    Section,
    cursor::Cursor,
    program::{Machine, State},
};

/// A length that says that the real one follows, in 64 bits.
const LONG: [u8; 4] = [0xff; 4];

/// A section of entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entries<'a> {
    pub(super) section: Section<'a>,
    /// Whether it is `.debug_frame`, which counts differently.
    pub(super) debug: bool,
    /// Addresses that some pointers count from.
    pub(super) text: u64,
    pub(super) got: u64,
}

/// What many functions have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common {
    pub(super) code_alignment: u64,
    pub(super) data_alignment: i64,
    /// Length of its program.
    pub(super) work: usize,
    /// How it leaves the registers; `None` when its program is broken.
    pub(super) initial: Option<State>,
    /// Whether its functions are a signal handler's way back.
    pub(super) signal: bool,
    /// How addresses are written.
    pointers: u8,
    /// Whether functions carry data of unknown kind, with its length in front.
    augmented: bool,
}

/// A function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function<'a> {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) program: &'a [u8],
}

/// What an entry begins with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Head<'a> {
    /// A common part, and what follows.
    Common(Cursor<'a>),
    /// A function with its common part at this offset, and what follows.
    Function(usize, Cursor<'a>),
}

impl<'a> Entries<'a> {
    /// The entry at an offset.
    #[inline]
    pub(super) fn head(&self, at: usize) -> Option<Head<'a>> {
        let rest = self.section.bytes.get(at..)?;
        let entry = rest.get(..entry_len(rest)?)?;
        let long = entry.starts_with(&LONG);
        let mut body = Cursor(entry.get(if long { 12 } else { 4 }..)?);
        let base = at.checked_add(entry.len() - body.0.len())?;
        // `.eh_frame` keeps to 4 bytes even where the length has 8.
        let (number, common) = if self.debug && long {
            (body.u64()?, u64::MAX)
        } else {
            let common = if self.debug { u32::MAX } else { 0 };
            (body.u32()?.into(), common.into())
        };
        if number == common {
            return Some(Head::Common(body));
        }
        let number = usize::try_from(number).ok()?;
        let common = if self.debug {
            number
        } else {
            base.checked_sub(number)?
        };
        Some(Head::Function(common, body))
    }

    /// The common part at an offset.
    pub(super) fn common(&self, at: usize, machine: &mut Machine) -> Option<Common> {
        let Head::Common(mut body) = self.head(at)? else {
            return None;
        };
        let version = body.u8()?;
        let augmentation = body.text()?;
        if !matches!(version, 1 | 3 | 4) {
            return None;
        }
        if self.debug && version == 4 && (body.u8()?, body.u8()?) != (8, 0) {
            return None; // the sizes of an address and of a segment's number
        }
        let code_alignment = body.unsigned()?;
        let data_alignment = body.signed()?;
        // The column of the return address is always the same on x86_64.
        if version == 1 {
            body.u8()?;
        } else {
            body.unsigned()?;
        }
        let mut pointers = dw::DW_EH_PE_absptr.0;
        let mut signal = false;
        let (augmented, letters) = match augmentation {
            [b'z', letters @ ..] => (true, letters),
            letters => (false, letters),
        };
        let mut data = Cursor(if augmented { body.block()? } else { &[] });
        for letter in letters {
            match (letter, augmented) {
                (b'S', _) => signal = true,
                (b'R', true) => pointers = data.u8()?,
                (b'L', true) => {
                    data.u8()?;
                }
                (b'P', true) => {
                    let pointers = data.u8()?;
                    number(&mut data, pointers)?;
                }
                _ => return None,
            }
        }
        Some(Common {
            code_alignment,
            data_alignment,
            work: body.0.len(),
            initial: machine.common(body.0, data_alignment),
            signal,
            pointers,
            augmented,
        })
    }

    /// A function, of what follows its head.
    #[inline]
    pub(super) fn function(&self, mut body: Cursor<'a>, common: &Common) -> Option<Function<'a>> {
        let Section { address, bytes } = self.section;
        let here = bytes.len().checked_sub(remaining(bytes, body.0)?)?;
        let offset = number(&mut body, common.pointers)?;
        // The upper half says what it counts from; "the address of the address" cannot be known here.
        let base = match dw::DwEhPe(common.pointers & 0xf0) {
            dw::DW_EH_PE_absptr => 0,
            dw::DW_EH_PE_pcrel => address.wrapping_add(here as u64),
            dw::DW_EH_PE_textrel => self.text,
            dw::DW_EH_PE_datarel => self.got,
            _ => return None,
        };
        let len = number(&mut body, common.pointers)?;
        if common.augmented {
            body.block()?;
        }
        Some(Function {
            start: base.wrapping_add(offset),
            len,
            program: body.0,
        })
    }
}

/// How many bytes of `whole` lie from the start of `part` to the end, if `part` is one.
fn remaining(whole: &[u8], part: &[u8]) -> Option<usize> {
    let end = whole.as_ptr_range().end.addr();
    end.checked_sub(part.as_ptr().addr())
}

/// A number as the lower half of a pointer's encoding has it.
#[inline]
fn number(data: &mut Cursor<'_>, pointers: u8) -> Option<u64> {
    match dw::DwEhPe(pointers & 0x0f) {
        dw::DW_EH_PE_sdata4 => data
            .u32()
            .map(|number| i64::from(number.cast_signed()).cast_unsigned()),
        dw::DW_EH_PE_udata4 => data.u32().map(u64::from),
        dw::DW_EH_PE_absptr | dw::DW_EH_PE_udata8 | dw::DW_EH_PE_sdata8 => data.u64(),
        dw::DW_EH_PE_udata2 => data.u16().map(u64::from),
        dw::DW_EH_PE_sdata2 => data
            .u16()
            .map(|number| i64::from(number.cast_signed()).cast_unsigned()),
        dw::DW_EH_PE_uleb128 => data.unsigned(),
        dw::DW_EH_PE_sleb128 => data.signed().map(i64::cast_unsigned),
        _ => None,
    }
}

/// The offsets of the entries of a section; a last `None` where one goes beyond its end.
///
/// A length of zero ends the contribution of one object file; what the linker put behind it is read too.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = Option<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            match entry_len(rest) {
                Some(0) => at += 4,
                Some(len) => {
                    let entry = at;
                    at += len;
                    return Some(Some(entry));
                }
                None => {
                    at = bytes.len();
                    return Some(None);
                }
            }
        }
    })
}

/// Bytes of the entry that `bytes` begin with; 0 for the mark of an end, `None` for one that is cut off.
#[inline]
fn entry_len(bytes: &[u8]) -> Option<usize> {
    let (head, len) = match *bytes.first_chunk()? {
        LONG => (12, u64::from_le_bytes(*bytes.get(4..)?.first_chunk()?)),
        len => (4, u64::from(u32::from_le_bytes(len))),
    };
    if (head, len) == (4, 0) {
        return Some(0);
    }
    usize::try_from(len)
        .ok()
        .and_then(|len| len.checked_add(head))
        .filter(|&len| len <= bytes.len())
}

/// How much of `bytes`, which begin with an `.eh_frame`, belongs to it: up to the first mark of an end, or what is no entry.
pub(in crate::unwind) fn eh_frame_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(len) = bytes.get(at..).and_then(entry_len).filter(|&len| len > 0) {
        at += len;
    }
    at
}
