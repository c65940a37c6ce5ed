//! Go's own table of functions and lines, which stays when a program is stripped: `.gopclntab`.
//!
//! ```text
//! header     magic, quantum, size of a pointer, counts, offsets of the parts
//! functions  (first address, offset of its entry) …, ascending, one more at the end
//! entry      address, name, …, tables of files and lines, …, its unit
//! names, files, units, tables of (value, addresses) as differences in variable length
//! ```
//! The layouts of Go 1.2, 1.16, 1.18 and 1.20; later releases kept the last, but for the address that functions count from. It is looked
//! up with `pread`s of some bytes, so that its size (a tenth of the program) costs nothing.
//!
//! Functions that were inlined are in another table, which only the running program can find. Their file and line are told as
//! those of the function that they were inlined into, as `go tool addr2line` does.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::read::ReadCache;

use super::elf::{Elf, Pread};

/// Functions of the largest programs: some 500,000.
const MOST_FUNCTIONS: u64 = 1 << 24;

/// Longest name or path that is read.
const LONGEST_TEXT: usize = 4096;

/// Steps of a table of lines; a function of 100,000 lines has fewer.
const MOST_STEPS: usize = 1 << 20;

/// A table that is read piece by piece, this much at a time.
const PIECE: usize = 64;

/// The table of a file.
#[derive(Debug)]
pub struct Pclntab {
    /// Where it lies in the file.
    section: (u64, u64),
    layout: Layout,
    quantum: u64,
    pointer: u64,
    count: u64,
    /// The address that functions count from.
    text: u64,
    names: u64,
    units: u64,
    files: u64,
    tables: u64,
    functions: u64,
}

/// What Go calls a function, and where an address of it is in its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The function.
    pub name: String,
    /// Its source file; empty where the table does not tell.
    pub file: String,
    /// The line in it; 0 where the table does not tell.
    pub line: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layout {
    Go12,
    Go116,
    Go118,
}

impl Pclntab {
    /// Finds it; `None` where there is none, or one of a layout that is not known.
    pub(super) fn read(file: &File) -> Option<Self> {
        let cache = ReadCache::new(Pread::new(file));
        let elf = Elf::parse(&cache).ok()?;
        let section = [".gopclntab", ".data.rel.ro.gopclntab"]
            .iter()
            .find_map(|name| elf.section(name))?;
        let text = elf.section(".text").map_or(0, Elf::address);
        let range = elf.range(section).ok()?;
        Self::parse(file, (range.offset, range.compressed_size), text)
    }

    /// Reads the header of a table at `(offset, length)` in the file; `text` is the address of the first function, where the table does
    /// not say it.
    pub fn parse(file: &File, section: (u64, u64), text: u64) -> Option<Self> {
        let mut table = Self {
            section,
            layout: Layout::Go12,
            quantum: 1,
            pointer: 8,
            count: 0,
            text: 0,
            names: 0,
            units: 0,
            files: 0,
            tables: 0,
            functions: 0,
        };
        let [a, b, c, d, _, _, quantum, pointer] = table.bytes(file, 0)?;
        table.layout = match u32::from_le_bytes([a, b, c, d]) {
            0xffff_fffb => Layout::Go12,
            0xffff_fffa => Layout::Go116,
            0xffff_fff0 | 0xffff_fff1 => Layout::Go118,
            _ => return None,
        };
        if !matches!(quantum, 1 | 2 | 4) || !matches!(pointer, 4 | 8) {
            return None;
        }
        table.quantum = quantum.into();
        table.pointer = pointer.into();
        let word = |number: u64| table.word(file, 8 + number * table.pointer);
        let count = word(0)?;
        let parts = match table.layout {
            Layout::Go12 => {
                let functions = 8 + table.pointer;
                let end =
                    functions.checked_add(count.min(MOST_FUNCTIONS) * 2 * table.pointer + table.pointer)?;
                [0, 0, 0, u64::from(table.u32(file, end)?), 0, functions]
            }
            Layout::Go116 => [0, word(2)?, word(3)?, word(4)?, word(5)?, word(6)?],
            Layout::Go118 => [word(2)?, word(3)?, word(4)?, word(5)?, word(6)?, word(7)?],
        };
        if count > MOST_FUNCTIONS {
            return None;
        }
        table.count = count;
        [
            table.text,
            table.names,
            table.units,
            table.files,
            table.tables,
            table.functions,
        ] = parts;
        // From Go 1.26 on it is 0: the linker would have to correct it when the program is loaded.
        if table.layout == Layout::Go118 && table.text == 0 {
            table.text = text;
        }
        Some(table)
    }

    /// The function at an address, with file and line.
    pub fn position(&self, file: &File, address: u64) -> Option<Position> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.function(file, middle)?.0 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (start, entry) = self.function(file, low.checked_sub(1)?)?;
        // The row behind the last function says where that ends.
        let (end, _) = self.function(file, low)?;
        if address >= end {
            return None;
        }
        let entry = match self.layout {
            Layout::Go12 => entry,
            Layout::Go116 | Layout::Go118 => self.functions.checked_add(entry)?,
        };
        let first = if self.layout == Layout::Go118 {
            4
        } else {
            self.pointer
        };
        let field = |number: u64| self.u32(file, entry.checked_add(first + number * 4)?);
        let name = self.text(file, self.names.checked_add(field(0)?.into())?)?;
        let source = || {
            let line = self.value(file, field(5)?, start, address)?;
            let number = self.value(file, field(4)?, start, address)?;
            let path = match self.layout {
                Layout::Go12 => self
                    .u32(file, self.files.checked_add(u64::from(number) * 4)?)?
                    .into(),
                Layout::Go116 | Layout::Go118 => {
                    let row = u64::from(field(7)?).checked_add(number.into())?;
                    let offset = self.u32(file, self.units.checked_add(row.checked_mul(4)?)?)?;
                    self.files.checked_add(offset.into())?
                }
            };
            Some((self.text(file, path)?, line))
        };
        let (file, line) = source().unwrap_or_default();
        Some(Position { name, file, line })
    }

    /// First address of a function, and the offset of its entry.
    fn function(&self, file: &File, number: u64) -> Option<(u64, u64)> {
        if self.layout == Layout::Go118 {
            let at = self.functions.checked_add(number.checked_mul(8)?)?;
            let [start, entry] = [self.u32(file, at)?, self.u32(file, at.checked_add(4)?)?];
            return Some((self.text.checked_add(start.into())?, entry.into()));
        }
        let at = self
            .functions
            .checked_add(number.checked_mul(2 * self.pointer)?)?;
        let start = self.word(file, at)?;
        // Behind the last address there is no entry.
        let entry = self.word(file, at.checked_add(self.pointer)?).unwrap_or_default();
        Some((start, entry))
    }

    /// What a table says of an address of the function that begins at `start`.
    fn value(&self, file: &File, table: u32, start: u64, address: u64) -> Option<u32> {
        let mut bytes = Bytes {
            table: self,
            file,
            at: self.tables.checked_add(table.into())?,
            piece: Vec::new().into_iter(),
        };
        let (mut value, mut behind) = (-1_i64, start);
        for step in 0..MOST_STEPS {
            let difference = bytes.number()?;
            if difference == 0 && step > 0 {
                return None;
            }
            let magnitude = i64::from(difference >> 1);
            value += if difference & 1 == 0 {
                magnitude
            } else {
                !magnitude
            };
            behind = behind.checked_add(u64::from(bytes.number()?) * self.quantum)?;
            if address < behind {
                return u32::try_from(value).ok();
            }
        }
        None
    }

    /// A text that ends with a zero.
    fn text(&self, file: &File, at: u64) -> Option<String> {
        let mut text = Vec::new();
        loop {
            let piece = self.piece(file, at.checked_add(text.len() as u64)?)?;
            let end = piece.iter().position(|&byte| byte == 0);
            text.extend_from_slice(piece.get(..end.unwrap_or(piece.len()))?);
            if end.is_some() || text.len() >= LONGEST_TEXT {
                break;
            }
        }
        let text = String::from_utf8(text).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// Some bytes, fewer at the end of the table; `None` behind it.
    fn piece(&self, file: &File, at: u64) -> Option<Vec<u8>> {
        let (offset, len) = self.section;
        let rest = len.checked_sub(at).filter(|rest| *rest > 0)?;
        let mut piece = vec![0; usize::try_from(rest).map_or(PIECE, |rest| rest.min(PIECE))];
        file.read_exact_at(&mut piece, offset.checked_add(at)?).ok()?;
        Some(piece)
    }

    fn bytes<const N: usize>(&self, file: &File, at: u64) -> Option<[u8; N]> {
        let (offset, len) = self.section;
        let mut bytes = [0; N];
        if at.checked_add(N as u64)? > len {
            return None;
        }
        file.read_exact_at(&mut bytes, offset.checked_add(at)?).ok()?;
        Some(bytes)
    }

    fn u32(&self, file: &File, at: u64) -> Option<u32> {
        self.bytes(file, at).map(u32::from_le_bytes)
    }

    /// As wide as a pointer.
    fn word(&self, file: &File, at: u64) -> Option<u64> {
        if self.pointer == 4 {
            return self.u32(file, at).map(u64::from);
        }
        self.bytes(file, at).map(u64::from_le_bytes)
    }
}

/// Numbers of variable length.
struct Bytes<'a> {
    table: &'a Pclntab,
    file: &'a File,
    at: u64,
    piece: std::vec::IntoIter<u8>,
}

impl Bytes<'_> {
    fn number(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = match self.piece.next() {
                Some(byte) => byte,
                None => {
                    let piece = self.table.piece(self.file, self.at)?;
                    self.at = self.at.checked_add(piece.len() as u64)?;
                    self.piece = piece.into_iter();
                    self.piece.next()?
                }
            };
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}
