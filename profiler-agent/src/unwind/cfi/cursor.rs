//! Numbers one after the other in bytes that may end anywhere.

/// What is left to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The bytes before the next 0, which is read too.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|&byte| byte == 0)?;
        let text = self.bytes(len as u64)?;
        self.u8()?;
        Some(text)
    }

    /// Bytes with a length in front.
    pub(super) fn block(&mut self) -> Option<&'a [u8]> {
        let len = self.unsigned()?;
        self.bytes(len)
    }

    /// LEB128: 7 bits a byte, the lowest first; `None` for what does not fit into 64 bits.
    #[inline]
    pub(super) fn unsigned(&mut self) -> Option<u64> {
        let first = self.u8()?;
        if first < 0x80 {
            return Some(first.into()); // nearly all
        }
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
            shift += 7;
        }
    }

    /// The same with a sign.
    pub(super) fn signed(&mut self) -> Option<i64> {
        let mut value = 0;
        let mut shift = 0;
        loop {
            let byte = self.u8()?;
            if shift == 63 && byte != 0 && byte != 0x7f {
                return None;
            }
            value |= i64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                let negative = byte & 0x40 != 0 && shift < 64;
                return Some(if negative { value | -1 << shift } else { value });
            }
        }
    }

    /// The number of a register.
    #[inline]
    pub(super) fn register(&mut self) -> Option<u16> {
        u16::try_from(self.unsigned()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// gimli reads the same numbers of the same bytes, and refuses the same.
        #[test]
        fn reads_what_gimli_reads(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0x80), Just(0)], 0..12)) {
            use gimli::Reader as _;
            let input = gimli::EndianSlice::new(&bytes, gimli::LittleEndian);
            let (mut ours, mut theirs) = (Cursor(&bytes), input);
            prop_assert_eq!(ours.unsigned(), theirs.read_uleb128().ok());
            let (mut ours, mut theirs) = (Cursor(&bytes), input);
            prop_assert_eq!(ours.signed(), theirs.read_sleb128().ok());
            let (mut ours, mut theirs) = (Cursor(&bytes), input);
            prop_assert_eq!(ours.text(), theirs.read_null_terminated_slice().ok().map(|text| text.slice()));
        }
    }
}
