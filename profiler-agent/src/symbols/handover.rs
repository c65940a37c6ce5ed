//! Which files the child gets for an object, and how: as a descriptor, or as a copy in memory.
//!
//! | file | handed over as |
//! |---|---|
//! | only root can write it, everybody can read it: programs and libraries of packages | its descriptor |
//! | any other, its symbol tables and debug information up to 128 MiB | a copy |
//! | larger, and everybody can read it | its descriptor |
//! | larger | a copy without debug information |
//!
//! The child may not open what only some can read: it has no rights. What is copied cannot be changed under it; what is not can, and
//! then ends the child at worst.
//!
//! Reading debug information takes 2 to 4 ms of CPU time a MiB, however few addresses are asked for, and 8 µs an address after that. Once,
//! for a profile, that is no matter. An agent that runs for ever has a few new addresses in each slice: it reads as much debug information
//! as they are worth, holds it as long as enough more are asked for, and names the others by the symbol table, which knows their
//! functions but not what was inlined.

use std::{fs::File, os::unix::fs::MetadataExt as _, sync::Arc};

use super::{
    Object, Source,
    copy::{self, Parts, copy, copy_all},
    debug_file,
    elf::{self, Image, only_root_writes},
};

/// Most bytes that are copied of one file.
const MOST_COPIED: u64 = 128 << 20;
/// Longest file that the child maps; a sparse one may be longer than all memory there is to address.
const MOST_MAPPED: u64 = 8 << 30;
/// Most bytes of kernel symbols; a kernel with all its modules has 20 MB.
const MOST_KERNEL: u64 = 128 << 20;

/// Bytes of symbols and debug information that are worth reading for one address, where that goes on for ever.
const WORTH: u64 = 1 << 20;

/// An object's files, ready for the child.
#[derive(Debug)]
pub(super) struct Handover {
    /// Its files.
    pub(super) source: Source,
    /// Bytes that were copied for it, and take memory as long as the child holds them.
    pub(super) copied: u64,
    /// What of it the child does not get, and why.
    pub(super) remark: Option<String>,
    /// So many addresses are worth reading all that there is of it, where that goes on for ever.
    pub(super) worth: usize,
    /// Whether it comes without the debug information that there is, which is not worth it.
    pub(super) is_bare: bool,
}

/// What is wanted of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Inlined functions and lines too.
    pub(super) inlines: bool,
    /// How many addresses are asked for, where debug information has to be worth it.
    pub(super) addresses: Option<usize>,
}

/// How the child may get files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As the module says.
    Usual,
    /// As copies only: it cannot open files by their descriptors.
    Copies,
    /// As a copy of the symbol tables: one has failed over more.
    Cautious,
}

/// Finds and opens what names of an object are made from.
///
/// # Errors
/// Why the object has no names.
pub(super) fn hand_over(object: &Object, manner: Manner, wish: Wish) -> Result<Handover, String> {
    match object {
        Object::Kernel => {
            let symbols = File::open("/proc/kallsyms").and_then(|file| copy_all(file, MOST_KERNEL));
            let symbols =
                symbols.map_err(|error| format!("kernel symbols: reading /proc/kallsyms: {error}"))?;
            Ok(Handover {
                // It is read at once, then let go.
                copied: 0,
                source: Source::Kernel {
                    symbols: Arc::new(symbols),
                },
                remark: None,
                worth: 0,
                is_bare: false,
            })
        }
        Object::Elf { file, path, pid } => {
            image((file, path, *pid), manner, wish).map_err(|error| format!("{path}: {error}"))
        }
    }
}

fn image(
    (file, path, pid): (&Arc<File>, &str, u32),
    manner: Manner,
    wish: Wish,
) -> Result<Handover, elf::Error> {
    let image = Image::of_stranger(file)?;
    if manner == Manner::Cautious {
        let copy = copy(file, Parts::Symbols)?;
        return Ok(Handover {
            source: Source::Elf {
                file: Arc::new(copy.file),
                path: path.to_owned(),
                debug: None,
                supplement: None,
                package: None,
                inlines: false,
            },
            copied: copy.bytes,
            remark: None,
            worth: 0,
            is_bare: false,
        });
    }
    let found = if image.has_dwarf {
        None
    } else {
        debug_file::find(&image, path, pid)
    };
    let others = found.as_ref().map(|found| &found.image);
    let weight = image
        .weight
        .saturating_add(others.map_or(0, |image| image.weight));
    let worth = usize::try_from(weight / WORTH).unwrap_or(usize::MAX);
    let has_symbols = image.has_symbols || others.is_some_and(|image| image.has_symbols);
    let is_bare = wish.inlines && has_symbols && wish.addresses.is_some_and(|addresses| addresses < worth);
    let parts = if is_bare {
        Parts::Symbols
    } else {
        Parts::Names { most: MOST_COPIED }
    };

    let mut copied = 0;
    let mut remark = None;
    let mut give = |file: &Arc<File>| {
        let (file, bytes, cut) = give(file, manner, parts)?;
        copied += bytes;
        if cut {
            remark = Some(format!(
                "{path}: debug information not used: there are more than {MOST_COPIED} bytes of it, and not everybody may read the file"
            ));
        }
        Ok::<_, copy::Error>(file)
    };
    let main = give(file)?;
    let (mut debug, mut supplement, mut package) = (None, None, None);
    if image.has_dwarf && !is_bare {
        supplement = debug_file::find_supplement(&image, path, pid);
        package = debug_file::find_package(path, pid);
    } else if let Some(found) = found {
        if !is_bare {
            supplement = debug_file::find_supplement(&found.image, &found.path, pid);
        }
        debug = Some(found.file);
    }
    // One that cannot be had leaves what the others say.
    let mut give = |file: Option<File>| file.and_then(|file| give(&Arc::new(file)).ok());
    let [debug, supplement, package] = [give(debug), give(supplement), give(package)];
    Ok(Handover {
        source: Source::Elf {
            file: main,
            path: path.to_owned(),
            debug,
            supplement,
            package,
            inlines: wish.inlines && !is_bare,
        },
        copied,
        remark,
        worth,
        is_bare,
    })
}

/// A handle for the child; how many bytes were copied for it, and whether debug information was left out.
fn give(file: &Arc<File>, manner: Manner, parts: Parts) -> Result<(Arc<File>, u64, bool), copy::Error> {
    let metadata = file.metadata()?;
    let readable = manner == Manner::Usual && metadata.mode() & 0o004 != 0 && metadata.len() <= MOST_MAPPED;
    if readable && only_root_writes(file) {
        return Ok((Arc::clone(file), 0, false));
    }
    match copy(file, parts) {
        Ok(copy) if copy.cut && readable => Ok((Arc::clone(file), 0, false)),
        Err(copy::Error::TooLarge(..)) if readable => Ok((Arc::clone(file), 0, false)),
        Ok(copy) => Ok((Arc::new(copy.file), copy.bytes, copy.cut)),
        Err(error) => Err(error),
    }
}

/// Whether an object is of those that are served first: an own file can be made to cost as much as its owner likes.
pub(super) fn is_trusted(object: &Object) -> bool {
    match object {
        Object::Kernel => true,
        Object::Elf { file, .. } => only_root_writes(file),
    }
}
