//! Where functions begin and end, for code without names: the index that every program carries for its exceptions.
//!
//! ```text
//! .eh_frame_hdr   version=1 1b 03 3b │ address of .eh_frame │ count │ (function, its entry) …, ascending; relative to here
//! .eh_frame       … length │ to its CIE │ function, relative to here │ its length │ …
//! ```
//! Looked up with a few dozen `pread`s of some bytes. Only the encodings above are known; every linker writes these.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::read::ReadCache;

use super::elf::{Elf, Pread};

/// Version, and the encodings of the three fields behind: relative or absolute, 4 bytes.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// Up to the first entry.
const HEADER_LEN: u64 = 12;

/// The index of a file.
#[derive(Debug)]
pub(super) struct Functions {
    /// Address and offset in the file.
    index: (u64, u64),
    entries: (u64, u64),
    count: u64,
}

impl Functions {
    /// Finds it; `None` where there is none, or one of another kind.
    pub(super) fn read(file: &File) -> Option<Self> {
        let cache = ReadCache::new(Pread::new(file));
        let elf = Elf::parse(&cache).ok()?;
        let section = |name| {
            let section = elf.section(name)?;
            let range = elf.range(section).ok()?;
            Some((Elf::address(section), range.offset, range.compressed_size))
        };
        let (address, offset, len) = section(".eh_frame_hdr")?;
        let (entries, entries_offset, _) = section(".eh_frame")?;
        let mut header = [0; 12];
        file.read_exact_at(&mut header, offset).ok()?;
        let (encodings, rest) = header.split_first_chunk()?;
        let count = u32::from_le_bytes(*rest.last_chunk()?);
        let room = len.checked_sub(HEADER_LEN)? / 8;
        (*encodings == HEADER).then(|| Self {
            index: (address, offset),
            entries: (entries, entries_offset),
            count: u64::from(count).min(room),
        })
    }

    /// The first address of the function that an address is in.
    pub(super) fn start(&self, file: &File, address: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (start, _) = self.row(file, middle)?;
            if start <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (start, entry) = self.row(file, low.checked_sub(1)?)?;
        let offset = entry.checked_sub(self.entries.0)?.checked_add(self.entries.1)?;
        let mut fields = [0; 16];
        file.read_exact_at(&mut fields, offset).ok()?;
        let [_, _, begin, len] = words(&fields)?;
        // That the two agree says that the entry is of the one kind that is known.
        let begin = entry
            .checked_add(8)?
            .wrapping_add_signed(i64::from(begin.cast_signed()));
        let is_inside = start <= address && address - start < u64::from(len);
        (begin == start && is_inside).then_some(start)
    }

    /// A function and its entry.
    fn row(&self, file: &File, number: u64) -> Option<(u64, u64)> {
        let mut row = [0; 8];
        let at = number.checked_mul(8)?.checked_add(self.index.1 + HEADER_LEN)?;
        file.read_exact_at(&mut row, at).ok()?;
        let [start, entry] = words(&row)?;
        let from_here = |word: u32| self.index.0.wrapping_add_signed(i64::from(word.cast_signed()));
        Some((from_here(start), from_here(entry)))
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = bytes.chunks_exact(4).filter_map(|word| word.first_chunk());
    let words: [Option<u32>; N] = std::array::from_fn(|_| words.next().map(|word| u32::from_le_bytes(*word)));
    let mut all = [0; N];
    for (slot, word) in all.iter_mut().zip(words) {
        *slot = word?;
    }
    Some(all)
}
