//! Protocol buffers, as much as a reader of them needs. Fields are handed out one by one where they lie: a decoder that
//! makes a whole message of them would let two bytes of a file take a hundred of memory.

use super::Problem;

/// Most numbers of one list: packed, a byte of the file becomes eight.
const MAX_NUMBERS: usize = 1 << 16;

/// A message, and where in its file it begins.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    offset: usize,
}

/// What a field holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// A varint, or a number of fixed size.
    Number(u64),
    /// A message, a string, bytes, or packed numbers.
    Bytes(Message<'a>),
}

impl<'a> Message<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Its bytes.
    pub(super) const fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Its bytes as text; what is not UTF-8 is replaced.
    pub(super) fn text(self) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(self.bytes)
    }

    /// Its fields, in the order of the file. Ends at the first that is malformed.
    pub(super) const fn fields(self) -> Fields<'a> {
        Fields { rest: self }
    }

    fn take(&mut self, len: usize) -> Option<Self> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        let offset = self.offset;
        *self = Self {
            bytes: rest,
            offset: offset + len,
        };
        Some(Self { bytes: taken, offset })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (place, &byte) in self.bytes.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * place).min(63);
            if byte < 0x80 {
                self.take(place + 1)?;
                return Some(value);
            }
        }
        None
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.bytes.first_chunk().copied()
    }
}

/// See [`Message::fields`].
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: Message<'a>,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.bytes.is_empty() {
            return None;
        }
        let offset = self.rest.offset;
        let field = field(&mut self.rest);
        if field.is_none() {
            self.rest.bytes = &[];
        }
        Some(field.ok_or(Problem::Malformed {
            place: format!("offset {offset}"),
            what: "is no field of a protocol buffer: the file is cut short, damaged, or something else",
        }))
    }
}

fn field<'a>(rest: &mut Message<'a>) -> Option<(u32, Value<'a>)> {
    let tag = rest.varint()?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
    let value = match tag & 7 {
        0 => Value::Number(rest.varint()?),
        1 => Value::Number(u64::from_le_bytes(rest.fixed()?)),
        2 => {
            let len = usize::try_from(rest.varint()?).ok()?;
            Value::Bytes(rest.take(len)?)
        }
        5 => Value::Number(u32::from_le_bytes(rest.fixed()?).into()),
        _ => return None,
    };
    Some((number, value))
}

impl<'a> Value<'a> {
    /// The number; 0 for what is none.
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// The message; an empty one for a number.
    pub(super) fn message(self) -> Message<'a> {
        match self {
            Self::Number(_) => Message::default(),
            Self::Bytes(message) => message,
        }
    }

    /// Appends the numbers of a repeated field, packed or not.
    pub(super) fn numbers(self, out: &mut Vec<u64>) -> Result<(), Problem> {
        match self {
            Self::Number(number) => out.push(number),
            Self::Bytes(mut packed) => {
                while !packed.bytes.is_empty() {
                    let offset = packed.offset;
                    if out.len() > MAX_NUMBERS {
                        return Err(Problem::Limit("numbers in one list", MAX_NUMBERS as u64));
                    }
                    out.push(packed.varint().ok_or_else(|| Problem::Malformed {
                        place: format!("offset {offset}"),
                        what: "is no number: the file is damaged",
                    })?);
                }
            }
        }
        Ok(())
    }

    /// Appends the numbers of a repeated field of eight bytes each.
    pub(super) fn fixed_numbers(self, out: &mut Vec<u64>) {
        match self {
            Self::Number(number) => out.push(number),
            Self::Bytes(packed) => out.extend(
                packed
                    .bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|chunk| u64::from_le_bytes(*chunk)),
            ),
        }
    }
}
