//! The sections of an ELF file that unwinding needs, read with `pread` and bounds. The file is a stranger's.
//!
//! ```text
//! section headers ─▶ .eh_frame, .debug_frame (unpacked), .text, .got, .plt …
//!   none, or broken: program headers ─▶ PT_GNU_EH_FRAME ─▶ .eh_frame_hdr ─▶ address of .eh_frame ─▶ its segment
//! ```
//!
//! Of several sections of one name the first that has bytes counts: linkers make one, and only object files, which nobody runs, have more.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use object::{
    Endianness,
    elf::{
        CompressionHeader64, ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD, FileHeader64, PF_X, PN_XNUM,
        PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64, SHF_COMPRESSED, SHF_EXECINSTR, SHN_XINDEX, SHT_NOBITS,
        SHT_NULL, SectionHeader64,
    },
    pod::{self, Pod},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

use super::cfi::{self, Instructions, Section, Sections};

/// Most section headers that are looked at; a large program has 50.
const MAX_SECTIONS: u64 = 4096;
/// Most program headers that are looked at; compilers make about 14.
const MAX_SEGMENTS: u64 = 256;
/// Most bytes of section names.
const MAX_NAMES: u64 = 1 << 20;
/// Most bytes of a section of call frame information, packed or not; librustc_driver has 9.4 MB.
pub(super) const MAX_CFI: u64 = 24 << 20;

/// Sections with their bytes.
#[derive(Debug, Default)]
pub struct FileSections {
    eh_frame: (u64, Vec<u8>),
    debug_frame: Vec<u8>,
    text: u64,
    got: u64,
    plt: Range<u64>,
    jumps: [Range<u64>; 2],
    entry: u64,
    /// The file again, and the addresses and offsets of what is executable there.
    file: Option<File>,
    executable: Vec<(Range<u64>, u64)>,
    /// Whether a section of call frame information was left out for its size.
    oversized: bool,
}

type Header = FileHeader64<Endianness>;
type SectionHeader = SectionHeader64<Endianness>;
type Segment = ProgramHeader64<Endianness>;

impl FileSections {
    /// Reads the sections of a file. One without any has none; that is no error.
    ///
    /// # Errors
    ///
    /// Those of `pread`, and `InvalidData` for what is no ELF file of 64 bits, or has sections of absurd sizes.
    pub fn read(file: &File) -> io::Result<Self> {
        let elf = Elf::read(file)?;
        let mut sections = elf.sections().unwrap_or_default();
        sections.entry = elf.header.e_entry(elf.endian);
        sections.file = Some(file.try_clone()?);
        if sections.executable.is_empty() {
            sections.executable = elf.executable_segments();
        }
        // What a packer left of the section headers may be wrong, the program headers are not: the program runs by them.
        if sections.eh_frame.1.is_empty()
            && let Some(eh_frame) = elf.eh_frame_by_segments()?
        {
            sections.eh_frame = eh_frame;
        }
        Ok(sections)
    }

    /// Whether there is call frame information that is too large to be read, and no other.
    pub fn is_oversized(&self) -> bool {
        self.oversized && self.eh_frame.1.is_empty() && self.debug_frame.is_empty()
    }

    /// The sections as the reader of call frame information takes them.
    pub fn borrow(&self) -> Sections<'_> {
        let Self {
            eh_frame: (address, bytes),
            debug_frame,
            text,
            got,
            plt,
            jumps,
            entry,
            file,
            executable,
            oversized: _,
        } = self;
        Sections {
            eh_frame: Section {
                address: *address,
                bytes,
            },
            debug_frame,
            text: *text,
            got: *got,
            plt: plt.clone(),
            jumps: jumps.clone(),
            entry: *entry,
            instructions: Instructions {
                file: file.as_ref(),
                executable,
            },
        }
    }
}

/// A file and its header.
struct Elf<'f> {
    file: &'f File,
    header: Header,
    endian: Endianness,
}

impl<'f> Elf<'f> {
    fn read(file: &'f File) -> io::Result<Self> {
        let mut bytes = [0; size_of::<Header>()];
        file.read_exact_at(&mut bytes, 0)?;
        let (header, _) = pod::from_bytes::<Header>(&bytes).map_err(|()| invalid())?;
        let endian = header.endian().map_err(|_| invalid())?;
        if !header.is_supported() || endian != Endianness::Little {
            return Err(invalid());
        }
        Ok(Self {
            file,
            header: *header,
            endian,
        })
    }

    /// What the section headers lead to.
    fn sections(&self) -> io::Result<FileSections> {
        let endian = self.endian;
        let headers = self.section_headers()?;
        let first = headers.first();
        let names = match (self.header.e_shstrndx(endian), first) {
            (SHN_XINDEX, Some(first)) => usize::try_from(first.sh_link(endian)).unwrap_or(usize::MAX),
            (index, _) => usize::from(index),
        };
        let Some(names) = headers.get(names) else {
            return Ok(FileSections::default());
        };
        let names = self.bytes(names.sh_offset(endian), names.sh_size(endian), MAX_NAMES)?;
        let names = names.as_slice();
        let named = |name: &'static [u8]| {
            headers.iter().filter(move |header| {
                let start = usize::try_from(header.sh_name(endian)).unwrap_or(usize::MAX);
                names
                    .get(start..)
                    .and_then(|rest| rest.strip_prefix(name))
                    .is_some_and(|rest| rest.first().is_none_or(|&byte| byte == 0))
            })
        };
        let range = |name| {
            named(name).next().map_or(0..0, |section| {
                let start = section.sh_addr(endian);
                start..start.saturating_add(section.sh_size(endian))
            })
        };
        // One that is broken is like one that is not there: the other may do.
        let contents = |name| {
            named(name)
                .filter_map(|section| Some((section.sh_addr(endian), self.contents(section).ok()?)))
                .find(|(_, bytes)| !bytes.is_empty())
                .unwrap_or_default()
        };
        Ok(FileSections {
            eh_frame: contents(b".eh_frame"),
            debug_frame: contents(b".debug_frame").1,
            text: range(b".text").start,
            got: range(b".got").start,
            plt: range(b".plt"),
            jumps: [range(b".plt.sec"), range(b".plt.got")],
            entry: 0,
            file: None,
            executable: executable(headers.iter().filter_map(|section| {
                let flags = section.sh_flags(endian);
                let in_file = section.sh_type(endian) != SHT_NOBITS;
                (in_file && flags & u64::from(SHF_EXECINSTR) != 0).then(|| {
                    (
                        section.sh_addr(endian),
                        section.sh_size(endian),
                        section.sh_offset(endian),
                    )
                })
            })),
            oversized: [&b".eh_frame"[..], b".debug_frame"]
                .into_iter()
                .any(|name| named(name).any(|section| section.sh_size(endian) > MAX_CFI)),
        })
    }

    fn section_headers(&self) -> io::Result<Vec<SectionHeader>> {
        let offset = self.header.e_shoff(self.endian);
        let count = match u64::from(self.header.e_shnum(self.endian)) {
            // More than fit there, or none at all.
            0 => self
                .first_section()?
                .map_or(0, |first| first.sh_size(self.endian)),
            count => count,
        };
        self.array(offset, count.min(MAX_SECTIONS))
    }

    /// The section of number 0, which holds numbers that have no room in the header of the file.
    fn first_section(&self) -> io::Result<Option<SectionHeader>> {
        match self.header.e_shoff(self.endian) {
            0 => Ok(None),
            offset => {
                let first = self.array::<SectionHeader>(offset, 1)?.pop();
                Ok(first.filter(|first| first.sh_type(self.endian) == SHT_NULL))
            }
        }
    }

    /// The bytes of a section, unpacked.
    fn contents(&self, section: &SectionHeader) -> io::Result<Vec<u8>> {
        let endian = self.endian;
        // In a file of debug information the sections of the program are there by name only.
        if section.sh_type(endian) == SHT_NOBITS {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(section.sh_offset(endian), section.sh_size(endian), MAX_CFI)?;
        if section.sh_flags(endian) & u64::from(SHF_COMPRESSED) == 0 {
            return Ok(bytes);
        }
        let (header, packed) =
            pod::from_bytes::<CompressionHeader64<Endianness>>(&bytes).map_err(|()| invalid())?;
        let size = header.ch_size.get(endian);
        if size > MAX_CFI {
            return Err(invalid());
        }
        match header.ch_type.get(endian) {
            ELFCOMPRESS_ZLIB => unpack_zlib(packed, size),
            ELFCOMPRESS_ZSTD => unpack_zstd(packed, size),
            _ => Err(invalid()),
        }
    }

    /// Address and bytes of `.eh_frame`, by the table that the C library finds it with at run time.
    fn eh_frame_by_segments(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let endian = self.endian;
        let segments = self.segments()?;
        let Some(index) = segments
            .iter()
            .find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)
        else {
            return Ok(None);
        };
        // Version, three encodings and two numbers; its table for searching is not needed.
        let len = index.p_filesz(endian).min(64);
        let bytes = self.bytes(index.p_offset(endian), len, len)?;
        let header = Section {
            address: index.p_vaddr(endian),
            bytes: &bytes,
        };
        let Some(address) = cfi::eh_frame_address(header) else {
            return Ok(None);
        };
        for segment in segments
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD)
        {
            let size = segment.p_filesz(endian);
            let Some(inside) = address
                .checked_sub(segment.p_vaddr(endian))
                .filter(|&inside| inside < size)
            else {
                continue;
            };
            let offset = segment.p_offset(endian).saturating_add(inside);
            let rest = self.file.metadata()?.len().saturating_sub(offset);
            let mut bytes = self.bytes(offset, (size - inside).min(rest).min(MAX_CFI), MAX_CFI)?;
            bytes.truncate(cfi::eh_frame_len(&bytes));
            bytes.shrink_to_fit();
            return Ok(Some((address, bytes)));
        }
        Ok(None)
    }

    /// Addresses of what is executable and in the file, and its offset there; none where the headers are broken.
    fn executable_segments(&self) -> Vec<(Range<u64>, u64)> {
        let endian = self.endian;
        let segments = self.segments().unwrap_or_default().into_iter();
        executable(
            segments
                .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0)
                .map(|segment| {
                    (
                        segment.p_vaddr(endian),
                        segment.p_filesz(endian),
                        segment.p_offset(endian),
                    )
                }),
        )
    }

    fn segments(&self) -> io::Result<Vec<Segment>> {
        let offset = self.header.e_phoff(self.endian);
        let count = match self.header.e_phnum(self.endian) {
            PN_XNUM => self
                .first_section()?
                .map_or(0, |first| u64::from(first.sh_info(self.endian))),
            count => u64::from(count),
        };
        self.array(offset, count.min(MAX_SEGMENTS))
    }

    /// `count`, which has been bounded, headers at an offset.
    fn array<T: Pod>(&self, offset: u64, count: u64) -> io::Result<Vec<T>> {
        let len = count * size_of::<T>() as u64;
        let bytes = self.bytes(offset, len, len)?;
        let count = usize::try_from(count).map_err(|_| invalid())?;
        let (headers, _) = pod::slice_from_bytes(&bytes, count).map_err(|()| invalid())?;
        Ok(headers.to_vec())
    }

    /// Reads `len` bytes at an offset, unless they are more than `most` or than the file has.
    fn bytes(&self, offset: u64, len: u64, most: u64) -> io::Result<Vec<u8>> {
        if len > most {
            return Err(invalid());
        }
        let size = self.file.metadata()?.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| invalid())?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// Addresses with their offsets in the file, in order, of addresses, lengths and offsets.
fn executable(parts: impl Iterator<Item = (u64, u64, u64)>) -> Vec<(Range<u64>, u64)> {
    let mut parts: Vec<(Range<u64>, u64)> = parts
        .map(|(start, len, offset)| (start..start.saturating_add(len), offset))
        .collect();
    parts.sort_unstable_by_key(|(addresses, _)| addresses.start);
    parts
}

/// Unpacks what must be `size` bytes, which have been bounded.
fn unpack_zlib(packed: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| invalid())?);
    flate2::read::ZlibDecoder::new(packed)
        .take(size.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(invalid())
    }
}

/// The same. All at once: a decoder of streams would hold a window as large as the file asks for.
fn unpack_zstd(packed: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let bytes = zstd::bulk::decompress(packed, usize::try_from(size).map_err(|_| invalid())?)?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(invalid())
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
