//! A copy of what names are made from, in memory: sealed, so that nobody can change or shrink it under its reader.
//!
//! ```text
//! file      │ELF│ segments │ .text  │ .rodata │ .symtab │ .strtab │ .debug_info … │ section headers │
//! copy      │ELF│ segments │        hole      │ .symtab │ .strtab │ .debug_info … │ section headers │
//! ```
//! Everything stays at its own offset, so that nothing has to be rewritten: of libLLVM 28 MB of 200 are copied, in 42 ms. The file is read
//! with `pread`, and whatever it says of sizes is compared with limits and with what is there.

use std::{
    fs::File,
    io::{self, Seek as _},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use object::{
    Endianness,
    elf::{
        FileHeader64, ProgramHeader64, SHF_ALLOC, SHF_COMPRESSED, SHN_XINDEX, SHT_DYNAMIC, SHT_DYNSYM,
        SHT_NOBITS, SHT_NOTE, SHT_NULL, SHT_REL, SHT_RELA, SHT_STRTAB, SHT_SYMTAB, SHT_SYMTAB_SHNDX,
        SectionHeader64,
    },
    pod,
    read::elf::{FileHeader as _, SectionHeader as _},
};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
};

type Header = FileHeader64<Endianness>;
type SectionHeader = SectionHeader64<Endianness>;

/// Most section headers that are copied; a large program has 50, one with a section for each function is an object file.
const MAX_SECTIONS: usize = 4096;
/// Most bytes of section names.
const MAX_NAMES: u64 = 1 << 20;
/// Bytes from the start of notes and links, when only facts are wanted.
pub(super) const MAX_FACT: u64 = 64 << 10;
/// Most bytes of symbol tables alone; those of libLLVM have 28 MB.
const MAX_SYMBOLS: u64 = 128 << 20;
/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;

/// Debug information that no name or line comes from.
const UNUSED: [&[u8]; 9] = [
    b".debug_loc",
    b".debug_loclists",
    b".debug_frame",
    b".debug_pubnames",
    b".debug_pubtypes",
    b".debug_gnu_pubnames",
    b".debug_gnu_pubtypes",
    b".debug_macro",
    b".debug_macinfo",
];

/// Why a file cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input or output failed; a file that shrank meanwhile ends early.
    #[error("cannot be copied: {0}")]
    Io(#[from] io::Error),
    /// It does not follow the format.
    #[error("not a valid ELF file of 64 bits")]
    Format,
    /// Its symbol tables are larger than any real ones.
    #[error("{0} bytes of symbol tables are more than the limit of {1}")]
    TooLarge(u64, u64),
}

/// How much of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// What tells where other files are: notes and links.
    Facts,
    /// What names are made from, but no debug information.
    Symbols,
    /// All that names are made from. Debug information is left out when it would be more than this many bytes.
    Names {
        /// Most bytes.
        most: u64,
    },
}

/// A copy.
#[derive(Debug)]
pub struct Copy {
    /// In memory, sealed.
    pub file: File,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Whether debug information was left out for its size.
    pub cut: bool,
}

/// Copies parts of an ELF file.
///
/// # Errors
/// When it is none, has larger symbol tables than are copied, or cannot be read.
pub fn copy(file: &File, parts: Parts) -> Result<Copy, Error> {
    let mut headers = Headers::read(file)?;
    let (mut wanted, mut cut) = (Vec::new(), false);
    let mut bytes = 0;
    let endian = headers.endian;
    for debug in [false, true] {
        let sections = headers.sections.iter().enumerate().filter(|(place, section)| {
            let name = headers.name(*place);
            is_debug(name) == debug
                && section.sh_type(endian) != SHT_NOBITS
                && section.sh_size(endian) > 0
                && is_wanted(name, section, endian, parts)
        });
        // One that reaches beyond the end of the file is as good as none.
        let ranges: Vec<(usize, Range<u64>)> = sections
            .filter_map(|(place, section)| {
                let start = section.sh_offset(endian);
                let size = match parts {
                    Parts::Facts => section.sh_size(endian).min(MAX_FACT),
                    Parts::Symbols | Parts::Names { .. } => section.sh_size(endian),
                };
                let end = start.checked_add(size).filter(|&end| end <= headers.len);
                Some((place, start..end?))
            })
            .collect();
        // A sparse file may be so long that the sum of a few sections has no room in 64 bits.
        let size = ranges
            .iter()
            .map(|(_, range)| range.end - range.start)
            .fold(0, u64::saturating_add);
        let most = match parts {
            Parts::Names { most } => most,
            Parts::Symbols | Parts::Facts => MAX_SYMBOLS,
        };
        let total = size.saturating_add(bytes);
        if total > most {
            if !debug {
                return Err(Error::TooLarge(size, most));
            }
            cut = true;
        } else {
            bytes = total;
            wanted.extend(ranges);
        }
    }
    if parts != Parts::Facts {
        // What has not come along is not there: a section of zeros would be read as one.
        let kept: Vec<usize> = wanted.iter().map(|(place, _)| *place).collect();
        let len = headers.len;
        headers.forget(|place, name, range| {
            !kept.contains(&place) && (is_debug(name) || range.is_none_or(|range| range.end > len))
        });
    }

    let copy = memory_file()?;
    let len = headers.write(&copy)?;
    let end = wanted
        .iter()
        .map(|(_, range)| range.end)
        .max()
        .unwrap_or_default();
    copy.set_len(len.max(end))?;
    let mut buffer = vec![0; CHUNK];
    for (_, range) in wanted {
        copy_range(file, &copy, range, &mut buffer)?;
    }
    // What a section covers twice must not undo what was forgotten.
    headers.write(&copy)?;
    seal(&copy)?;
    Ok(Copy {
        file: copy,
        bytes: bytes + headers.bytes(),
        cut,
    })
}

/// Copies all of a file that cannot be mapped or has no size, such as one of /proc; at most `most` bytes.
pub(super) fn copy_all(input: impl io::Read, most: u64) -> io::Result<File> {
    let mut copy = memory_file()?;
    io::copy(&mut input.take(most), &mut copy)?;
    copy.rewind()?;
    seal(&copy)?;
    Ok(copy)
}

fn is_debug(name: &[u8]) -> bool {
    name.starts_with(b".debug_") || name.starts_with(b".zdebug_")
}

fn is_wanted(name: &[u8], section: &SectionHeader, endian: Endianness, parts: Parts) -> bool {
    let kind = section.sh_type(endian);
    if parts == Parts::Facts {
        // Of what is packed, the size that it has unpacked comes first.
        let packed = section.sh_flags(endian) & u64::from(SHF_COMPRESSED) != 0;
        return packed || kind == SHT_NOTE || name.starts_with(b".gnu_debug") || name == b".debug_sup";
    }
    let relocations =
        [SHT_REL, SHT_RELA].contains(&kind) && section.sh_flags(endian) & u64::from(SHF_ALLOC) != 0;
    let tables = [
        SHT_SYMTAB,
        SHT_DYNSYM,
        SHT_STRTAB,
        SHT_SYMTAB_SHNDX,
        SHT_DYNAMIC,
        SHT_NOTE,
    ]
    .contains(&kind);
    let debug = is_debug(name) && !UNUSED.contains(&name) && parts != Parts::Symbols;
    // The index of functions is in call frame information.
    let others: [&[u8]; 5] = [
        b".gnu_debug",
        b".plt",
        b".eh_frame",
        b".gopclntab",
        b".data.rel.ro.gopclntab",
    ];
    tables || relocations || debug || others.iter().any(|other| name.starts_with(other))
}

/// The headers of a file, with their bounds checked.
struct Headers {
    endian: Endianness,
    /// The file header, as it is.
    header: Vec<u8>,
    /// Offset and bytes of the program headers.
    segments: (u64, Vec<u8>),
    /// Offset of the section headers.
    at: u64,
    sections: Vec<SectionHeader>,
    /// Offset and bytes of the section names.
    names: (u64, Vec<u8>),
    /// Length of the file.
    len: u64,
}

impl Headers {
    fn read(file: &File) -> Result<Self, Error> {
        let len = file.metadata()?.len();
        let header = bytes(file, 0..size_of::<Header>() as u64, len)?;
        let (parsed, _) = pod::from_bytes::<Header>(&header).map_err(|()| Error::Format)?;
        let endian = parsed.endian().map_err(|_| Error::Format)?;
        let at = parsed.e_shoff(endian);
        if !parsed.is_supported()
            || endian != Endianness::Little
            || usize::from(parsed.e_phentsize(endian)) != size_of::<ProgramHeader64<Endianness>>()
            || (at != 0 && usize::from(parsed.e_shentsize(endian)) != size_of::<SectionHeader>())
        {
            return Err(Error::Format);
        }
        let table = |at: u64, count: usize, size: usize| -> Result<Range<u64>, Error> {
            let end = at.checked_add((count * size) as u64);
            Ok(at..end.ok_or(Error::Format)?)
        };
        // Numbers that do not fit into the header are for object files: refused with it.
        let count = usize::from(parsed.e_phnum(endian));
        let segments = table(
            parsed.e_phoff(endian),
            count,
            size_of::<ProgramHeader64<Endianness>>(),
        )?;
        let segments = (segments.start, bytes(file, segments, len)?);
        let count = usize::from(parsed.e_shnum(endian));
        if count > MAX_SECTIONS || (count == 0 && at != 0) {
            return Err(Error::Format);
        }
        let raw = bytes(file, table(at, count, size_of::<SectionHeader>())?, len)?;
        let (sections, _) =
            pod::slice_from_bytes::<SectionHeader>(&raw, count).map_err(|()| Error::Format)?;
        let sections = sections.to_vec();
        let names = match parsed.e_shstrndx(endian) {
            SHN_XINDEX => return Err(Error::Format),
            index => sections.get(usize::from(index)),
        };
        let names = match names {
            Some(section) if section.sh_type(endian) != SHT_NOBITS => {
                let start = section.sh_offset(endian);
                let end = start.checked_add(section.sh_size(endian)).ok_or(Error::Format)?;
                if end - start > MAX_NAMES || section.sh_flags(endian) & u64::from(SHF_COMPRESSED) != 0 {
                    return Err(Error::Format);
                }
                (start, bytes(file, start..end, len)?)
            }
            _ => (0, Vec::new()),
        };
        Ok(Self {
            endian,
            header: header.clone(),
            segments,
            at,
            sections,
            names,
            len,
        })
    }

    fn name(&self, place: usize) -> &[u8] {
        let start = self
            .sections
            .get(place)
            .map(|section| section.sh_name(self.endian));
        let start = start
            .and_then(|start| usize::try_from(start).ok())
            .unwrap_or(usize::MAX);
        let rest = self.names.1.get(start..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Takes sections out, by their place, name and range in the file.
    fn forget(&mut self, which: impl Fn(usize, &[u8], Option<Range<u64>>) -> bool) {
        let endian = self.endian;
        let sections = self.sections.iter().enumerate().filter(|(place, section)| {
            let start = section.sh_offset(endian);
            let size = match section.sh_type(endian) {
                SHT_NOBITS => 0,
                _ => section.sh_size(endian),
            };
            let end = start.checked_add(size);
            which(*place, self.name(*place), end.map(|end| start..end))
        });
        let places: Vec<usize> = sections.map(|(place, _)| place).collect();
        for place in places {
            if let Some(section) = self.sections.get_mut(place) {
                section.sh_type.set(self.endian, SHT_NULL);
                section.sh_name.set(self.endian, 0);
                section.sh_flags.set(self.endian, 0);
                section.sh_size.set(self.endian, 0);
            }
        }
    }

    /// Writes them where they were; says where the last one ends.
    fn write(&self, copy: &File) -> io::Result<u64> {
        let sections = pod::bytes_of_slice(&self.sections);
        let mut end = 0;
        for (at, bytes) in [
            (self.names.0, &self.names.1[..]),
            (self.segments.0, &self.segments.1),
            (self.at, sections),
            (0, &self.header),
        ] {
            copy.write_all_at(bytes, at)?;
            end = end.max(at.saturating_add(bytes.len() as u64));
        }
        Ok(end)
    }

    fn bytes(&self) -> u64 {
        let sections = size_of_val(self.sections.as_slice());
        (self.header.len() + self.segments.1.len() + self.names.1.len() + sections) as u64
    }
}

/// Bytes of a file that has `len` of them.
fn bytes(file: &File, range: Range<u64>, len: u64) -> Result<Vec<u8>, Error> {
    if range.end > len {
        return Err(Error::Format);
    }
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(|_| Error::Format)?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

fn copy_range(from: &File, to: &File, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let chunk = left.min(buffer.len());
        let Some(chunk) = buffer.get_mut(..chunk) else {
            break;
        };
        from.read_exact_at(chunk, at)?;
        to.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

fn memory_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux warns of memory files that could be run; from 6.3 on one can say that it cannot.
    let file = match rustix::fs::memfd_create("symbols", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("symbols", flags)?,
        file => file?,
    };
    Ok(file.into())
}

fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_add_seals(file, seals)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::elf::Image;

    /// Where the sections of [`sparse`] begin.
    const BODY: u64 = 4096;

    /// A file with sections of these types and sizes, one over the other, which is as long as they say but has few blocks.
    fn sparse(sections: &[(u32, u64)]) -> File {
        let file = memory_file().unwrap();
        let longest = sections.iter().map(|&(_, size)| size).max().unwrap();
        file.set_len(BODY + longest).unwrap();
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        put(0, b"\x7fELF\x02\x01\x01");
        put(20, &1_u32.to_le_bytes());
        put(40, &64_u64.to_le_bytes());
        // The second section has the names, of one byte, which is a zero.
        let count = u16::try_from(sections.len() + 2).unwrap();
        for (at, value) in [(54, 56), (58, 64), (60, count), (62, 1)] {
            put(at, &u16::to_le_bytes(value));
        }
        let names = [(SHT_STRTAB, BODY - 1, 1)];
        let sections = sections.iter().map(|&(kind, size)| (kind, BODY, size));
        for (place, (kind, offset, size)) in (2..).zip(names.into_iter().chain(sections)) {
            put(place * 64 + 4, &kind.to_le_bytes());
            put(place * 64 + 24, &offset.to_le_bytes());
            put(place * 64 + 32, &size.to_le_bytes());
        }
        file
    }

    #[test]
    fn sections_are_refused_whose_sizes_add_up_to_nothing() {
        let file = sparse(&[(SHT_STRTAB, 1 << 62); 4]);
        for parts in [Parts::Symbols, Parts::Names { most: MAX_SYMBOLS }] {
            let error = copy(&file, parts).unwrap_err();
            assert!(
                matches!(error, Error::TooLarge(u64::MAX, MAX_SYMBOLS)),
                "{parts:?}: {error}"
            );
        }
    }

    #[test]
    fn of_long_notes_the_beginning_is_read() {
        let file = sparse(&[(SHT_NOTE, 1 << 50)]);
        let note = b"\x04\0\0\0\x08\0\0\0\x03\0\0\0GNU\0build ID";
        file.write_all_at(note, BODY).unwrap();
        assert_eq!(Image::of_stranger(&file).unwrap().build_id, b"build ID");
    }
}
