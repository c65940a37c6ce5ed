//! Names for addresses. Whatever parses foreign files runs in a child process without privileges.
//!
//! A file can kill its reader: one that is truncated while it is mapped by SIGBUS, one that unpacks without end by memory. So the agent
//! opens files and reads no more of them than a few headers, with bounds; the child gets open descriptors, answers with names, and
//! is replaced when it dies.
//!
//! ```text
//!  agent                                                          │  child: no capabilities, no file system, no network
//!  Request ─▶ symbolizer ─▶ handover ─▶ client ── Question, files ─┼▶ server ─▶ resolver ─▶ elf, blazesym, kallsyms
//!             (a thread)    finds and    deadline,                │
//!  Response ◀────┘          copies files restarts ◀─ Answer ───────┼───┘
//! ```
//!
//! | file | |
//! |---|---|
//! | `symbolizer` | the handle that the rest of the agent has; queues, what waits, what is given up |
//! | `handover`, `debug_file`, `copy` | which files an object needs, and how the child gets each |
//! | `client`, `spawn` | the child as the agent sees it: start, ask, give up, end |
//! | `message`, `socket` | what crosses; neither side trusts the other's |
//! | `server`, `confine`, `trial` | the child, what it gives up before it reads anything, and the proof |
//! | `resolver`, `elf`, `dwarf`, `kallsyms`, `gopclntab`, `fde`, `demangle`, `texts` | the parsers |

mod client;
mod confine;
mod copy;
mod debug_file;
mod demangle;
mod dwarf;
mod elf;
mod fde;
mod gopclntab;
mod handover;
mod kallsyms;
mod message;
mod resolver;
mod server;
mod socket;
mod spawn;
mod symbolizer;
mod texts;
mod trial;

use std::{fs::File, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::profile::Language;

pub use client::{Client, Failure, StartError};
pub use confine::{Confinement, Layer};
pub use copy::{Copy, Error as CopyError, Parts, copy};
pub use debug_file::debug_file_of;
pub use elf::check_image;
pub use gopclntab::{Pclntab, Position};
pub use kallsyms::{Error as KallsymsError, Kallsyms};
pub use message::{Malformed, check_answer, check_question};
pub use resolver::Resolver;
pub use server::{ARGUMENT, serve};
pub use spawn::Ended;
pub use symbolizer::{Cost, NotTaken, QUEUE, SELF, Symbolizer};
pub use trial::Trial;

/// What an address belongs to, as those know it who ask.
#[derive(Debug, Clone)]
pub enum Object {
    /// The running kernel and its modules; addresses are kernel addresses.
    Kernel,
    /// An ELF image, open for reading; addresses are its own virtual addresses. The path is for messages
    /// and debug-file look-up only, never opened as such.
    Elf {
        /// The image.
        file: Arc<File>,
        /// Its path as the process saw it.
        path: String,
        /// A process that has it mapped, below whose root its debug file may be; 0 if there is none to ask.
        pid: u32,
    },
}

/// Asks for the names of some addresses of one object.
#[derive(Debug, Clone)]
pub struct Request {
    /// Chosen by the asker, handed back with the answer; equal numbers mean equal objects.
    pub id: u32,
    /// The object.
    pub object: Object,
    /// Addresses, in any order.
    pub addresses: Vec<u64>,
}

/// All that the parsers get of an object: its files, found and open. `F` is a file, or in a message the place of its descriptor among
/// those that come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source<F = Arc<File>> {
    /// The kernel.
    Kernel {
        /// What `/proc/kallsyms` said.
        symbols: F,
    },
    /// An ELF image.
    Elf {
        /// The image, or a copy of those of its sections that names are made from.
        file: F,
        /// Its path as the process saw it, for messages.
        path: String,
        /// The file with its debug information, where that is another one.
        debug: Option<F>,
        /// What dwz has moved out of its debug information.
        supplement: Option<F>,
        /// The contents of its split debug information, if it is split.
        package: Option<F>,
        /// Whether inlined functions are wanted, and lines: without them it is faster.
        inlines: bool,
    },
}

impl<F> Source<F> {
    /// The same with other handles on its files.
    ///
    /// # Errors
    /// The first one of `change`.
    pub fn try_map<G, E>(self, mut change: impl FnMut(F) -> Result<G, E>) -> Result<Source<G>, E> {
        Ok(match self {
            Self::Kernel { symbols } => Source::Kernel {
                symbols: change(symbols)?,
            },
            Self::Elf {
                file,
                path,
                debug,
                supplement,
                package,
                inlines,
            } => Source::Elf {
                file: change(file)?,
                path,
                debug: debug.map(&mut change).transpose()?,
                supplement: supplement.map(&mut change).transpose()?,
                package: package.map(change).transpose()?,
                inlines,
            },
        })
    }
}

/// The answer to one [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Of the request.
    pub id: u32,
    /// One per address of the request, in its order. Empty where there is no name.
    pub symbols: Vec<Symbols>,
    /// What went wrong with the object as a whole, for the log.
    pub error: Option<String>,
}

/// The address of a request with its functions: innermost inlined one first, the one really called last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Symbols {
    /// The address asked for.
    pub address: u64,
    /// Its functions.
    pub functions: Vec<Symbol>,
    /// What they are written in.
    pub language: Language,
    /// Without functions: where the one begins that it is in, as unwind information has it.
    pub start: Option<u64>,
}

/// One function at an address. Functions of one answer share their texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Symbol {
    /// Demangled name.
    pub name: Arc<str>,
    /// Name as the linker knows it; empty where it is the same.
    pub system_name: Arc<str>,
    /// Source file; empty where unknown.
    pub file: Arc<str>,
    /// Line of the address (or of the inlined call), from 1; 0 is unknown.
    pub line: u32,
    /// Column, from 1; 0 is unknown.
    pub column: u32,
}

/// A function by the name that its program gave it, demangled if it is mangled. A name that stays as it is is shared.
pub fn named(name: &Arc<str>) -> Symbol {
    match demangle::demangle(name) {
        Some(demangled) => Symbol {
            name: demangled.into(),
            system_name: Arc::clone(name),
            ..Symbol::default()
        },
        None => Symbol {
            name: Arc::clone(name),
            ..Symbol::default()
        },
    }
}
