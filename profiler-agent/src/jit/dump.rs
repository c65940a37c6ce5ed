//! Records of a jitdump: what `perf inject --jit` reads.
//!
//! ```text
//! header   magic version size machine pad pid time:8 flags:8
//! record   kind size time:8 …                                kind and size have 4 bytes, as most fields
//!   load   pid tid address:8 code:8 length:8 number:8 name\0 code…
//!   move   pid tid address:8 old:8 new:8 length:8 number:8
//! ```
//! Lines in source code (kind 2) are passed over: programs disagree whether their addresses count from the function or from the file
//! that `perf inject` will make of it.

use super::perf_map::cut;

/// `JiTD`, as a program of this machine's byte order writes it.
const MAGIC: u32 = 0x4a69_5444;
/// Times are of the CPU's counter, which says nothing here.
const FLAG_ARCH_TIME: u64 = 1;

const LOAD: u32 = 0;
const MOVE: u32 = 1;

/// Bytes of a record up to its name, and of the longest name that is kept.
pub(super) const RECORD: usize = 56 + 4096 + 1;
/// Bytes of the head of a record.
pub(super) const HEAD: usize = 16;
/// Bytes of the header that are read.
pub(super) const HEADER: usize = 40;
/// Most that a header may have.
const MOST_HEADER: u32 = 4096;

/// The file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes up to the first record.
    pub(super) len: u64,
    /// Whether the times of records are of `CLOCK_MONOTONIC`.
    pub(super) is_timed: bool,
}

impl Header {
    /// Reads it; `None` when the file is no dump of this machine.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let len = u32_at(bytes, 8)?;
        let is_dump = u32_at(bytes, 0)? == MAGIC && (40..=MOST_HEADER).contains(&len);
        is_dump.then_some(Self {
            len: len.into(),
            is_timed: u64_at(bytes, 32)? & FLAG_ARCH_TIME == 0,
        })
    }
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    kind: u32,
    /// Bytes of the record with its head.
    pub(super) len: u64,
    /// When it happened.
    pub(super) time: u64,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// There is a new function.
    Load { start: u64, len: u64, name: &'a str },
    /// A function has moved.
    Move { from: u64, len: u64, to: u64 },
    /// Something else.
    Other,
}

impl Head {
    /// Reads it; `None` when no further record can be found, as this one does not say how long it is.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let len = u32_at(bytes, 4)?;
        (len as usize >= HEAD).then_some(Self {
            kind: u32_at(bytes, 0)?,
            len: len.into(),
            time: u64_at(bytes, 8)?,
        })
    }

    /// Reads the rest of the record, of which `bytes` has the first [`RECORD`]; `None` when it makes no sense.
    pub(super) fn event<'a>(&self, bytes: &'a [u8]) -> Option<Event<'a>> {
        let event = match self.kind {
            LOAD => {
                let text = bytes.get(56..)?;
                let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
                let name = text.get(..end)?;
                // A name that was cut may end within a character.
                let name = match str::from_utf8(name) {
                    Ok(name) => name,
                    Err(error) if error.error_len().is_none() => {
                        str::from_utf8(name.get(..error.valid_up_to())?).ok()?
                    }
                    Err(_) => return None,
                };
                Event::Load {
                    start: u64_at(bytes, 32)?,
                    len: u64_at(bytes, 40)?,
                    name: cut(name),
                }
            }
            MOVE => Event::Move {
                from: u64_at(bytes, 32)?,
                to: u64_at(bytes, 40)?,
                len: u64_at(bytes, 48)?,
            },
            _ => Event::Other,
        };
        let sane = |start: u64, len: u64| start.checked_add(len).is_some_and(|end| end < 1 << 63);
        let is_sane = match event {
            Event::Load { start, len, name } => sane(start, len) && !name.is_empty(),
            Event::Move { from, len, to } => sane(from, len) && sane(to, len),
            Event::Other => true,
        };
        is_sane.then_some(event)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|field| u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|field| u64::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn reads_a_header() {
        let bytes = words(&[1 << 32 | u64::from(MAGIC), 62 << 32 | 40, 7 << 32, 99, 0]);
        let header = Header {
            len: 40,
            is_timed: true,
        };
        assert_eq!(Header::parse(&bytes), Some(header));
        assert_eq!(Header::parse(&bytes[..39]), None);
        let swapped: Vec<u8> = bytes.iter().rev().copied().collect();
        assert_eq!(Header::parse(&swapped), None);
    }

    #[test]
    fn reads_records() {
        let load = words(&[100 << 32, 5, 7, 0x1000, 0x1000, 0x20, 1]);
        let head = Head::parse(&load).unwrap();
        assert_eq!((head.len, head.time), (100, 5));
        let named = [&load[..], b"f\0\xcc\xcc"].concat();
        let event = Event::Load {
            start: 0x1000,
            len: 0x20,
            name: "f",
        };
        assert_eq!(head.event(&named), Some(event));
        assert_eq!(head.event(&[&load[..], b"\0\xcc"].concat()), None, "no name");
        assert_eq!(head.event(&[&load[..], b"a\xffb\0"].concat()), None, "no text");
        assert_eq!(head.event(&load[..40]), None);

        let moved = words(&[64 << 32 | 1, 6, 7, 0x2000, 0x1000, 0x2000, 0x20, 1]);
        let event = Event::Move {
            from: 0x1000,
            to: 0x2000,
            len: 0x20,
        };
        assert_eq!(Head::parse(&moved).unwrap().event(&moved), Some(event));
        assert_eq!(Head::parse(&words(&[15 << 32, 0])), None, "shorter than its head");
        let unknown = words(&[16 << 32 | 99, 0]);
        assert_eq!(Head::parse(&unknown).unwrap().event(&unknown), Some(Event::Other));
    }
}
