//! The sections of an ELF file that unwinding needs, read with `pread` and bounds. The file is a stranger's.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use object::{
    Endianness,
    elf::{FileHeader64, SHF_COMPRESSED, SHT_NOBITS, SectionHeader64},
    pod,
    read::elf::{FileHeader as _, SectionHeader as _},
};

use super::cfi::{Section, Sections};

/// Most section headers that are looked at; a large program has 50.
const MAX_SECTIONS: usize = 4096;
/// Most bytes of their names.
const MAX_NAMES: u64 = 1 << 20;
/// Most bytes of call frame information; librustc_driver has 9.4 MB.
const MAX_CFI: u64 = 128 << 20;

/// Sections with their bytes.
#[derive(Debug, Default)]
pub(super) struct OwnedSections {
    eh_frame: (u64, Vec<u8>),
    debug_frame: Vec<u8>,
    text: u64,
    got: u64,
    plt: Range<u64>,
    jumps: [Range<u64>; 2],
}

impl OwnedSections {
    /// Reads the sections of a file. One without any has none; that is no error.
    ///
    /// # Errors
    ///
    /// Those of `pread`, and `InvalidData` for what is no ELF file or has sections of absurd sizes.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
        let mut bytes = [0; size_of::<FileHeader64<Endianness>>()];
        file.read_exact_at(&mut bytes, 0)?;
        let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(&bytes).map_err(invalid)?;
        let endian = header.endian().map_err(|_| io::ErrorKind::InvalidData)?;
        let count = usize::from(header.e_shnum(endian)).min(MAX_SECTIONS);
        let headers = read(
            file,
            header.e_shoff(endian),
            count * size_of::<SectionHeader64<Endianness>>(),
        )?;
        let (headers, _) =
            pod::slice_from_bytes::<SectionHeader64<Endianness>>(&headers, count).map_err(invalid)?;
        let names = headers.get(usize::from(header.e_shstrndx(endian)));
        let names = match names {
            Some(names) if names.sh_size(endian) <= MAX_NAMES => read(
                file,
                names.sh_offset(endian),
                usize::try_from(names.sh_size(endian)).unwrap_or_default(),
            )?,
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None => return Ok(Self::default()),
        };
        let find = |name: &[u8]| {
            headers.iter().find(|header| {
                let start = usize::try_from(header.sh_name(endian)).unwrap_or(usize::MAX);
                names
                    .get(start..)
                    .is_some_and(|rest| rest.split(|&byte| byte == 0).next() == Some(name))
            })
        };
        let range = |name: &[u8]| {
            find(name).map_or(0..0, |section| {
                let start = section.sh_addr(endian);
                start..start.saturating_add(section.sh_size(endian))
            })
        };
        let contents = |name: &[u8]| match find(name) {
            None => Ok((0, Vec::new())),
            // In a file of debug information the sections of the program are there by name only.
            Some(section) if section.sh_type(endian) == SHT_NOBITS => Ok((0, Vec::new())),
            Some(section) if section.sh_flags(endian) & u64::from(SHF_COMPRESSED) != 0 => Ok((0, Vec::new())),
            Some(section) if section.sh_size(endian) > MAX_CFI => {
                Err(io::Error::from(io::ErrorKind::InvalidData))
            }
            Some(section) => {
                let len = usize::try_from(section.sh_size(endian)).unwrap_or_default();
                Ok((
                    section.sh_addr(endian),
                    read(file, section.sh_offset(endian), len)?,
                ))
            }
        };
        let eh_frame = contents(b".eh_frame")?;
        Ok(Self {
            debug_frame: if eh_frame.1.is_empty() {
                contents(b".debug_frame")?.1
            } else {
                Vec::new()
            },
            eh_frame,
            text: range(b".text").start,
            got: range(b".got").start,
            plt: range(b".plt"),
            jumps: [range(b".plt.sec"), range(b".plt.got")],
        })
    }

    /// The sections as the reader of call frame information takes them.
    pub(super) fn borrow(&self) -> Sections<'_> {
        let Self {
            eh_frame: (address, bytes),
            debug_frame,
            text,
            got,
            plt,
            jumps,
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
        }
    }
}

/// Reads `len` bytes at an offset, which both have been bounded; but not more than the file has, whatever it claims.
fn read(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    if offset.checked_add(len as u64).is_none_or(|end| end > size) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}
