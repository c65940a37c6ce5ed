//! The file with the debug information of a stripped one.
//!
//! Found here and not by blazesym, which opens whatever the stripped file names: `..` is followed, a pipe blocks it
//! for ever, and a wrong checksum fails the whole request. Searched, as gdb does, below the root of the process first (a container brings its
//! own), then below that of the agent:
//!
//! ```text
//! /usr/lib/debug/.build-id/ab/cdef….debug     by build ID, which must be equal
//! DIR/NAME, DIR/.debug/NAME                   by .gnu_debuglink, whose CRC must be equal; DIR holds the file
//! /usr/lib/debug/DIR/NAME
//! ```
//! What dwz has moved to a file of its own is found likewise: by the build ID in `.gnu_debugaltlink`, or at the path there, with that build ID. A
//! package of split debug information lies beside the program, as `NAME.dwp`.
//!
//! No link leads out of the root that is searched, and only regular files are opened.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::elf::Image;
use crate::procfs;

const FOLDERS: [&str; 2] = ["usr/lib/debug", "lib/debug"];

/// Checksums are not computed over more than this: some 10 s of reading.
const MOST_BYTES: u64 = 8 << 30;

/// A file with debug information.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: File,
    pub(super) image: Image,
    /// Below its root.
    pub(super) path: String,
}

/// Finds and opens the debug file of `image`, which a process saw at `path`. `pid` is that of the process; 0 is the agent's own view.
pub(super) fn find(image: &Image, path: &str, pid: u32) -> Option<Found> {
    let roots = roots(pid);
    let by_id = roots.iter().find_map(|root| by_build_id(&image.build_id, root));
    by_id.or_else(|| roots.iter().find_map(|root| by_link(image, path, root)))
}

/// The path of the debug file of a file at such a path, as the agent sees both.
///
/// # Errors
/// When the file itself cannot be read.
pub fn debug_file_of(path: &str) -> io::Result<Option<String>> {
    let image = Image::of_stranger(&File::open(path)?).map_err(io::Error::other)?;
    Ok(find(&image, path, 0).map(|found| format!("/{}", found.path.trim_start_matches('/'))))
}

/// Finds and opens the supplement of `image`, which is at `path`.
pub(super) fn find_supplement(image: &Image, path: &str, pid: u32) -> Option<File> {
    let (name, build_id) = image.supplement.as_ref()?;
    let roots = roots(pid);
    let by_id = roots.iter().find_map(|root| by_build_id(build_id, root));
    let by_path = || {
        let path = match path.rsplit_once('/') {
            Some((folder, _)) if !name.starts_with('/') => format!("{folder}/{name}"),
            _ => name.clone(),
        };
        roots.iter().find_map(|root| opened(root, path.clone(), build_id))
    };
    by_id.or_else(by_path).map(|found| found.file)
}

/// Finds and opens the package of a program at `path`. That it belongs to the program is seen by the numbers of its units.
pub(super) fn find_package(path: &str, pid: u32) -> Option<File> {
    let path = format!("{}.dwp", path.strip_suffix(" (deleted)").unwrap_or(path));
    roots(pid).iter().find_map(|root| open_regular(root, &path))
}

fn roots(pid: u32) -> Vec<OwnedFd> {
    let of_process = (pid != 0).then(|| format!("/proc/{}/root", procfs::thread_with_memory(pid)));
    of_process
        .into_iter()
        .chain([String::from("/")])
        .filter_map(|root| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(root, flags, Mode::empty()).ok()
        })
        .collect()
}

fn by_build_id(build_id: &[u8], root: &OwnedFd) -> Option<Found> {
    let (first, rest) = build_id.split_first()?;
    // Short ones are no hashes and would make the folder itself the file's name.
    if rest.len() < 7 {
        return None;
    }
    let mut name = format!(".build-id/{first:02x}/");
    for byte in rest {
        write!(name, "{byte:02x}").ok()?;
    }
    name.push_str(".debug");
    FOLDERS
        .iter()
        .find_map(|folder| opened(root, format!("{folder}/{name}"), build_id))
}

/// The file at a path, if it has this build ID.
fn opened(root: &OwnedFd, path: String, build_id: &[u8]) -> Option<Found> {
    let file = open_regular(root, &path)?;
    let image = Image::of_stranger(&file).ok()?;
    (image.build_id == *build_id).then_some(Found { file, image, path })
}

fn by_link(image: &Image, path: &str, root: &OwnedFd) -> Option<Found> {
    let (name, crc) = image.debug_link.as_ref()?;
    // The format says a bare file name; anything else is an attempt to lead elsewhere.
    if name.is_empty() || name == ".." || name == "." || name.contains('/') {
        return None;
    }
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let (folder, itself) = path.strip_prefix('/')?.rsplit_once('/').unwrap_or(("", path));
    let mut candidates = vec![format!("{folder}/.debug/{name}")];
    if name != itself {
        candidates.push(format!("{folder}/{name}"));
    }
    candidates.extend(FOLDERS.iter().map(|debug| format!("{debug}/{folder}/{name}")));
    candidates.into_iter().find_map(|path| {
        let file = open_regular(root, &path)?;
        let debug = Image::of_stranger(&file).ok()?;
        let same = if debug.build_id.is_empty() || image.build_id.is_empty() {
            checksum(&file).ok()? == *crc
        } else {
            debug.build_id == image.build_id
        };
        same.then_some(Found {
            file,
            image: debug,
            path,
        })
    })
}

/// Opens a regular file below a root, and nothing else: a pipe would block, a device could have effects.
fn open_regular(root: &OwnedFd, path: &str) -> Option<File> {
    let handle = rustix::fs::openat2(
        root,
        path.trim_start_matches('/'),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let stat = rustix::fs::fstat(handle.as_fd()).ok()?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()
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
