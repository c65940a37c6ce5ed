//! The file with the debug information of a stripped one.
//!
//! Found here and not by blazesym, which opens whatever the stripped file names: `..` is followed, a pipe blocks it
//! for ever, and a wrong checksum fails the whole request. Searched, as gdb does:
//!
//! ```text
//! /usr/lib/debug/.build-id/ab/cdef….debug     by build ID, which must be equal
//! DIR/NAME, DIR/.debug/NAME                   by .gnu_debuglink, whose CRC must be equal; DIR holds the file
//! /usr/lib/debug/DIR/NAME
//! ```

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::elf::Image;

const FOLDERS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// Checksums are not computed over more than this: some 10 s of reading.
const MOST_BYTES: u64 = 8 << 30;

/// Finds and opens the debug file of `image`, which its process saw at `path`.
pub(super) fn find(image: &Image, path: &str) -> Option<(File, Image)> {
    by_build_id(image).or_else(|| by_link(image, Path::new(path)))
}

fn by_build_id(image: &Image) -> Option<(File, Image)> {
    let (first, rest) = image.build_id.split_first()?;
    // Short ones are no hashes and would make the folder itself the file's name.
    if rest.len() < 7 {
        return None;
    }
    let mut name = format!(".build-id/{first:02x}/");
    for byte in rest {
        write!(name, "{byte:02x}").ok()?;
    }
    name.push_str(".debug");
    FOLDERS.iter().find_map(|folder| {
        let file = open_regular(&Path::new(folder).join(&name)).ok()?;
        let debug = Image::of_stranger(&file).ok()?;
        (debug.build_id == image.build_id).then_some((file, debug))
    })
}

fn by_link(image: &Image, path: &Path) -> Option<(File, Image)> {
    let (name, crc) = image.debug_link.as_ref()?;
    // The format says a bare file name; anything else is an attempt to lead elsewhere.
    if name.is_empty() || name == ".." || name == "." || name.contains('/') {
        return None;
    }
    let folder = path.parent()?;
    let beneath = folder.strip_prefix("/").ok()?;
    let mut candidates: Vec<PathBuf> = vec![folder.join(name), folder.join(".debug").join(name)];
    candidates.extend(
        FOLDERS
            .iter()
            .map(|debug| Path::new(debug).join(beneath).join(name)),
    );
    candidates
        .iter()
        .filter(|candidate| candidate.as_path() != path)
        .find_map(|candidate| {
            let file = open_regular(candidate).ok()?;
            let debug = Image::of_stranger(&file).ok()?;
            let same = if debug.build_id.is_empty() || image.build_id.is_empty() {
                checksum(&file).ok()? == *crc
            } else {
                debug.build_id == image.build_id
            };
            same.then_some((file, debug))
        })
}

/// Opens a regular file, and nothing else: a pipe would block, a device could have effects.
fn open_regular(path: &Path) -> io::Result<File> {
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if !handle.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

fn checksum(mut file: &File) -> io::Result<u32> {
    if file.metadata()?.len() > MOST_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(bytes @ [_, ..]) = buffer.get(..count) else {
            return Ok(crc.sum());
        };
        crc.update(bytes);
    }
}
