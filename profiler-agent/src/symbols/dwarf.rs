//! DWARF that is spread over several files, of which blazesym reads one.
//!
//! ```text
//! program or debug file ── .gnu_debugaltlink ──▶ supplement       dwz has moved there what several files have in common
//! program ── units without contents ───────────▶ package (.dwp)   of -gsplit-dwarf
//! ```
//! Read into memory with `pread`, unpacked, and looked up by the addr2line crate, which stands on the same reader as blazesym.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use addr2line::{Context, LookupContinuation as _, LookupResult};
use gimli::{DwarfPackage, EndianArcSlice, LittleEndian, SectionId};
use object::{CompressionFormat, read::ReadCache};

use super::elf::{Elf, Pread};

/// Most bytes of all files together, unpacked.
const MOST_BYTES: u64 = 256 << 20;

/// Units whose contents are looked for in a package for one address.
const MOST_LOADS: usize = 64;

type Bytes = EndianArcSlice<LittleEndian>;

/// The debug information of a program.
pub(super) struct Dwarf {
    context: Context<Bytes>,
    package: Option<DwarfPackage<Bytes>>,
}

/// A function at an address.
#[derive(Debug)]
pub(super) struct Function {
    /// Mangled, if it is known so.
    pub(super) name: String,
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) column: u32,
}

impl std::fmt::Debug for Dwarf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dwarf").finish_non_exhaustive()
    }
}

impl Dwarf {
    /// Reads it all.
    pub(super) fn read(
        file: &File,
        supplement: Option<&File>,
        package: Option<&File>,
    ) -> Result<Self, String> {
        let mut left = MOST_BYTES;
        let text = |error: io::Error| error.to_string();
        let sections = Sections::new(file);
        let mut dwarf = gimli::Dwarf::load(|id| sections.read(id.name(), &mut left)).map_err(text)?;
        if let Some(supplement) = supplement {
            let sections = Sections::new(supplement);
            dwarf
                .load_sup(|id| sections.read(id.name(), &mut left))
                .map_err(text)?;
        }
        let package = package.map(|package| {
            let sections = Sections::new(package);
            let read = |id: SectionId| match id.dwo_name() {
                Some(name) => sections.read(name, &mut left).map_err(|_| gimli::Error::Io),
                None => Ok(empty()),
            };
            DwarfPackage::load(read, empty())
        });
        let context = Context::from_dwarf(dwarf).map_err(|error| error.to_string())?;
        Ok(Self {
            context,
            package: package.transpose().map_err(|error| error.to_string())?,
        })
    }

    /// The functions at an address, innermost first; `most` of them at most.
    pub(super) fn functions(&self, address: u64, most: usize) -> Vec<Function> {
        let mut lookup = self.context.find_frames(address);
        let mut loads = 0;
        let frames = loop {
            match lookup {
                LookupResult::Output(frames) => break frames,
                LookupResult::Load { load, continuation } => {
                    loads += 1;
                    let unit = match &self.package {
                        Some(package) if loads <= MOST_LOADS => package.find_cu(load.dwo_id, &load.parent),
                        Some(_) | None => Ok(None),
                    };
                    lookup = continuation.resume(unit.ok().flatten().map(Arc::new));
                }
            }
        };
        let mut functions = Vec::new();
        let Ok(mut frames) = frames else {
            return functions;
        };
        while let Ok(Some(frame)) = frames.next() {
            let name = frame
                .function
                .as_ref()
                .and_then(|function| function.raw_name().ok());
            let location = frame.location.as_ref();
            functions.push(Function {
                name: name.unwrap_or_default().into_owned(),
                file: location
                    .and_then(|location| location.file)
                    .unwrap_or_default()
                    .to_owned(),
                line: location.and_then(|location| location.line).unwrap_or_default(),
                column: location.and_then(|location| location.column).unwrap_or_default(),
            });
        }
        // The outermost is the one that was really called.
        let surplus = functions.len().saturating_sub(most);
        functions.drain(..surplus);
        functions
    }
}

/// The sections of a file.
struct Sections<'a> {
    file: &'a File,
    cache: ReadCache<Pread<'a>>,
}

impl<'a> Sections<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            file,
            cache: ReadCache::new(Pread::new(file)),
        }
    }

    /// Reads one, unpacked, and takes it from what is `left`; an absent one is empty.
    fn read(&self, name: &str, left: &mut u64) -> io::Result<Bytes> {
        let elf = Elf::parse(&self.cache).map_err(invalid)?;
        let Some(section) = elf.section(name) else {
            return Ok(empty());
        };
        let range = elf.range(section).map_err(invalid)?;
        let size = range.uncompressed_size;
        if size > *left || range.compressed_size > *left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        *left -= size;
        let mut bytes = vec![0; usize::try_from(range.compressed_size).map_err(invalid)?];
        self.file.read_exact_at(&mut bytes, range.offset)?;
        let bytes = match range.format {
            CompressionFormat::None => bytes,
            CompressionFormat::Zlib => {
                let mut unpacked = Vec::new();
                let unpacker = flate2::read::ZlibDecoder::new(bytes.as_slice());
                unpacker.take(size).read_to_end(&mut unpacked)?;
                unpacked
            }
            CompressionFormat::Zstandard => {
                zstd::bulk::decompress(&bytes, usize::try_from(size).map_err(invalid)?)?
            }
            CompressionFormat::Unknown | _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Bytes::new(bytes.into(), LittleEndian))
    }
}

fn empty() -> Bytes {
    Bytes::new(Arc::new([]), LittleEndian)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
