//! What must be known of an ELF file before its symbols are asked for. Read with pread, never mapped, so that a file
//! that shrinks meanwhile is an error and not a signal; a few dozen kB even of big files.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
};

use object::{
    CompressedFileRange, CompressionFormat, LittleEndian, elf as format,
    read::{
        ReadCache, ReadRef as _,
        elf::{FileHeader as _, NoteIterator, Rela as _, SectionHeader as _, SectionTable, Sym as _},
    },
};

use super::copy::{self, copy};

/// No single section that is read here may be larger; libLLVM's relocations have 12 MB.
const MOST_BYTES: u64 = 64 << 20;

/// All compressed sections together unpack to no more; a section may declare 2^50 bytes, and blazesym allocates
/// whatever it declares.
const MOST_UNPACKED: u64 = 1 << 30;

/// The sections that names are made from.
const PARSED: [&[u8]; 13] = [
    b".debug_info",
    b".debug_abbrev",
    b".debug_line",
    b".debug_str",
    b".debug_line_str",
    b".debug_str_offsets",
    b".debug_addr",
    b".debug_ranges",
    b".debug_rnglists",
    b".symtab",
    b".strtab",
    b".dynsym",
    b".dynstr",
];

/// Why a file is no source of symbols.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A pipe or device, whose reading could wait for ever or have effects.
    #[error("not a regular file")]
    NotRegular,
    /// Input or output failed.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not follow the format.
    #[error("not a valid ELF file: {0}")]
    Format(#[from] object::Error),
    /// A section is larger than any real one.
    #[error("a section of {0} bytes is larger than the limit of {MOST_BYTES}")]
    TooLarge(u64),
    /// Its compressed sections are a bomb.
    #[error("compressed sections that unpack to {0} bytes are more than the limit of {MOST_UNPACKED}")]
    Bomb(u64),
    /// It is not copied for reading.
    #[error(transparent)]
    Copy(#[from] copy::Error),
}

/// Facts of one ELF file.
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Executable sections.
    text: Vec<Section>,
    /// GNU build ID.
    pub(super) build_id: Vec<u8>,
    /// File name and CRC-32 of the file with its debug information.
    pub(super) debug_link: Option<(String, u32)>,
    /// It has DWARF of its own.
    pub(super) has_dwarf: bool,
    /// It has a full symbol table.
    pub(super) has_symbols: bool,
    /// Name and build ID of the file that dwz has moved part of its DWARF to.
    pub(super) supplement: Option<(String, Vec<u8>)>,
    /// Unpacked bytes of the sections that names are made from.
    pub(super) weight: u64,
    /// Of that, debug information.
    pub(super) debug_weight: u64,
}

#[derive(Debug)]
struct Section {
    range: Range<u64>,
    plt: bool,
}

impl Image {
    /// Reads the facts of a file that may be anybody's, in the agent itself: from a copy of what they are read from, with bounds on all of it.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub(super) fn of_stranger(file: &File) -> Result<Self, Error> {
        if !file.metadata()?.is_file() {
            return Err(Error::NotRegular);
        }
        Self::read(&copy(file, copy::Parts::Facts)?.file)
    }

    /// Reads the facts.
    ///
    /// # Errors
    /// Whatever is not a regular, well-formed ELF file.
    pub(super) fn read(file: &File) -> Result<Self, Error> {
        if !file.metadata()?.is_file() {
            return Err(Error::NotRegular);
        }
        let cache = ReadCache::new(Pread::new(file));
        let elf = Elf::parse(&cache)?;
        let mut image = Self::default();
        let mut unpacked = 0_u64;
        for section in elf.sections() {
            let name = elf.name(section);
            let range = elf.range(section)?;
            if range.format != CompressionFormat::None {
                unpacked = unpacked.saturating_add(range.uncompressed_size);
            }
            if PARSED.contains(&name) {
                image.weight = image.weight.saturating_add(range.uncompressed_size);
                if name.starts_with(b".debug") {
                    image.debug_weight = image.debug_weight.saturating_add(range.uncompressed_size);
                }
            }
            match name {
                b".debug_info" => image.has_dwarf = true,
                b".symtab" => image.has_symbols = true,
                b".note.gnu.build-id" | b".gnu_debuglink" if range.compressed_size > 4096 => {
                    return Err(Error::TooLarge(range.compressed_size));
                }
                _ => {}
            }
            if section.sh_flags(LE) & u64::from(format::SHF_EXECINSTR) != 0 {
                let start = section.sh_addr(LE);
                image.text.push(Section {
                    range: start..start.saturating_add(section.sh_size(LE)),
                    plt: name.starts_with(b".plt"),
                });
            }
        }
        if unpacked > MOST_UNPACKED {
            return Err(Error::Bomb(unpacked));
        }
        image.build_id = elf.build_id().unwrap_or_default().to_vec();
        image.debug_link = elf.debug_link();
        image.supplement = elf.supplement();
        Ok(image)
    }

    /// Whether two addresses are in one section: a symbol without a size does not reach into the next section.
    pub(super) fn together(&self, one: u64, other: u64) -> bool {
        let mut holding = self.text.iter().filter(|section| section.range.contains(&one));
        holding.any(|section| section.range.contains(&other))
    }

    /// Whether the address is in the procedure linkage table, whose stubs have no symbols.
    pub(super) fn in_plt(&self, address: u64) -> bool {
        self.text
            .iter()
            .any(|section| section.plt && section.range.contains(&address))
    }
}

/// Reads of a file what the agent itself reads for names: that of its build ID and of the names of other files. Their number of bytes.
///
/// # Errors
/// What is wrong with it.
pub fn check_image(file: &File) -> Result<usize, String> {
    let image = Image::of_stranger(file).map_err(|error| error.to_string())?;
    let names = image.debug_link.map(|(name, _)| name.len()).into_iter();
    let names = names.chain(image.supplement.map(|(name, id)| name.len() + id.len()));
    Ok(image.build_id.len() + names.sum::<usize>())
}

/// Whether nobody but root can have written what is in the file.
pub(super) fn only_root_writes(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}

/// A file by its headers. [`object::File`] reads the symbol tables too, whenever one is made: 8 ms of libLLVM's 28 MB.
pub(super) struct Elf<'a, 'f> {
    data: Data<'a, 'f>,
    header: &'a Header,
    sections: SectionTable<'a, Header, Data<'a, 'f>>,
}

/// What a file is read through.
type Data<'a, 'f> = &'a ReadCache<Pread<'f>>;
type Header = format::FileHeader64<LittleEndian>;
pub(super) type SectionHeader = format::SectionHeader64<LittleEndian>;

/// The only files that are copied or mapped for names are of 64 bits, in this order.
const LE: LittleEndian = LittleEndian;

impl<'a, 'f> Elf<'a, 'f> {
    pub(super) fn parse(data: Data<'a, 'f>) -> Result<Self, object::Error> {
        let header = Header::parse(data)?;
        let endian = header.endian()?;
        Ok(Self {
            data,
            header,
            sections: header.sections(endian, data)?,
        })
    }

    fn sections(&self) -> impl Iterator<Item = &'a SectionHeader> + use<'a, 'f> {
        // The first is none.
        self.sections.iter().skip(1)
    }

    /// The first section of a name.
    pub(super) fn section(&self, name: &str) -> Option<&'a SectionHeader> {
        self.sections()
            .find(|section| self.name(section) == name.as_bytes())
    }

    fn name(&self, section: &'a SectionHeader) -> &'a [u8] {
        self.sections.section_name(LE, section).unwrap_or_default()
    }

    pub(super) fn address(section: &SectionHeader) -> u64 {
        section.sh_addr(LE)
    }

    /// Where a section is in the file, and how it is packed.
    pub(super) fn range(&self, section: &'a SectionHeader) -> Result<CompressedFileRange, object::Error> {
        let Some((header, offset, compressed_size)) = section.compression(LE, self.data)? else {
            return Ok(CompressedFileRange::none(section.file_range(LE)));
        };
        let format = match header.ch_type.get(LE) {
            format::ELFCOMPRESS_ZLIB => CompressionFormat::Zlib,
            format::ELFCOMPRESS_ZSTD => CompressionFormat::Zstandard,
            _ => CompressionFormat::Unknown,
        };
        Ok(CompressedFileRange {
            format,
            offset,
            compressed_size,
            uncompressed_size: header.ch_size.get(LE),
        })
    }

    /// The bytes of a section that has been looked at for its size.
    fn bytes(&self, section: &'a SectionHeader) -> Option<&'a [u8]> {
        section.data(LE, self.data).ok()
    }

    /// The first bytes of a section: as many as notes and links ever have, however many it says.
    fn beginning(&self, section: &'a SectionHeader) -> Option<&'a [u8]> {
        let (offset, size) = section.file_range(LE)?;
        self.data.read_bytes_at(offset, size.min(copy::MAX_FACT)).ok()
    }

    fn build_id(&self) -> Option<&'a [u8]> {
        let build_id = |mut notes: NoteIterator<'a, Header>| {
            while let Some(note) = notes.next().ok()? {
                if note.name() == format::ELF_NOTE_GNU && note.n_type(LE) == format::NT_GNU_BUILD_ID {
                    return Some(note.desc());
                }
            }
            None
        };
        self.sections()
            .filter(|section| section.sh_type(LE) == format::SHT_NOTE)
            .find_map(|section| {
                let notes = NoteIterator::new(LE, section.sh_addralign(LE), self.beginning(section)?);
                build_id(notes.ok()?)
            })
    }

    /// File name and CRC-32.
    fn debug_link(&self) -> Option<(String, u32)> {
        let bytes = self.beginning(self.section(".gnu_debuglink")?)?;
        let (name, _) = bytes.split_at_checked(bytes.iter().position(|&byte| byte == 0)?)?;
        // Behind the zero, at a multiple of four.
        let crc = bytes.get((name.len() + 1).next_multiple_of(4)..)?.first_chunk()?;
        Some((str::from_utf8(name).ok()?.to_owned(), u32::from_le_bytes(*crc)))
    }

    /// File name and build ID.
    fn supplement(&self) -> Option<(String, Vec<u8>)> {
        let bytes = self.beginning(self.section(".gnu_debugaltlink")?)?;
        let (name, id) = bytes.split_at_checked(bytes.iter().position(|&byte| byte == 0)?)?;
        Some((str::from_utf8(name).ok()?.to_owned(), id.get(1..)?.to_vec()))
    }
}

/// Stubs of the procedure linkage table: `(first address, name of the function they jump to)`, ascending.
///
/// Each stub is decoded and its slot looked up among the relocations, which holds for every linker's layout
/// (`.plt`, `.plt.sec`, `.plt.got`). Stubs of local functions (IRELATIVE) have no name.
///
/// # Errors
/// As [`Image::read`], and for machines whose stubs are not known: an empty table.
pub(super) fn plt(file: &File) -> Result<Vec<(u64, String)>, Error> {
    let cache = ReadCache::new(Pread::new(file));
    let elf = Elf::parse(&cache)?;
    if elf.header.e_machine(LE) != format::EM_X86_64 {
        return Ok(Vec::new());
    }
    for section in elf.sections() {
        let (size, name) = (section.sh_size(LE), elf.name(section));
        let is_read = name.starts_with(b".rel") || name.starts_with(b".dyn");
        if size > MOST_BYTES && is_read && section.sh_type(LE) != format::SHT_NOBITS {
            return Err(Error::TooLarge(size));
        }
    }
    let symbols = elf.sections.symbols(LE, elf.data, format::SHT_DYNSYM)?;
    let mut targets = hashbrown::HashMap::new();
    for section in elf.sections() {
        // Those of the program that runs, not of an object file.
        if section.sh_link(LE) as usize != symbols.section().0 {
            continue;
        }
        if let Some((relocations, _)) = section.rela(LE, elf.data)? {
            let slots = relocations
                .iter()
                .filter_map(|relocation| Some((relocation.r_offset.get(LE), relocation.symbol(LE, false)?)));
            targets.extend(slots);
        }
    }
    let mut stubs = Vec::new();
    for section in elf.sections() {
        if !elf.name(section).starts_with(b".plt") || section.sh_size(LE) > MOST_BYTES {
            continue;
        }
        // The stubs of .plt.got have 8 bytes, with IBT 16 like all others.
        let step = if section.sh_addralign(LE) == 8 { 8 } else { 16 };
        let mut address = section.sh_addr(LE);
        for code in elf.bytes(section).unwrap_or_default().chunks(step) {
            let name = x86_64_slot(address, code)
                .and_then(|slot| targets.get(&slot))
                .and_then(|&index| symbols.symbol(index).ok())
                .and_then(|symbol| symbol.name(LE, symbols.strings()).ok())
                .map(|name| String::from_utf8_lossy(name).into_owned());
            stubs.push((address, name.unwrap_or_default()));
            address = address.saturating_add(step as u64);
        }
    }
    stubs.sort_by_key(|(address, _)| *address);
    Ok(stubs)
}

/// Address of the slot that a stub jumps through: `[endbr64] [bnd] jmp *disp32(%rip)`.
fn x86_64_slot(address: u64, code: &[u8]) -> Option<u64> {
    let rest = code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(code);
    let rest = rest.strip_prefix(&[0xf2]).unwrap_or(rest);
    let rest = rest.strip_prefix(&[0xff, 0x25])?;
    let distance = i32::from_le_bytes(*rest.first_chunk()?);
    let next = address.checked_add((code.len() - rest.len() + size_of::<i32>()) as u64)?;
    Some(next.wrapping_add_signed(distance.into()))
}

/// Reads at offsets, without the file's own position, which is shared with whoever else holds the file.
pub(super) struct Pread<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Pread<'a> {
    pub(super) const fn new(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl object::read::ReadCacheOps for Pread<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(drop)
    }

    fn seek(&mut self, to: u64) -> Result<u64, ()> {
        self.at = to;
        Ok(to)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let count = self.file.read_at(buffer, self.at).map_err(drop)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        self.file.read_exact_at(buffer, self.at).map_err(drop)?;
        self.at = self.at.saturating_add(buffer.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_forms() {
        let slot = Some(0x1000 + 6 + 0x2000);
        assert_eq!(
            x86_64_slot(0x1000, &[0xff, 0x25, 0, 0x20, 0, 0, 0x66, 0x90]),
            slot
        );
        let ibt = [
            0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 0x20, 0, 0, 0x66, 0x0f, 0x1f, 0x44, 0, 0,
        ];
        assert_eq!(x86_64_slot(0xffc, &ibt), slot);
        assert_eq!(
            x86_64_slot(0x1000, &[0xff, 0x35, 0, 0x20, 0, 0]),
            None,
            "push of the table's head"
        );
        assert_eq!(x86_64_slot(0x1000, &[0xff, 0x25, 0]), None);
        assert_eq!(x86_64_slot(u64::MAX, &ibt), None);
    }
}
