//! Names for addresses, behind an interface that only passes messages.
//!
//! The stage on the other side holds every parser of foreign files. Today it is a thread; since nothing but
//! [`Request`]s and [`Response`]s crosses, it can move into a process of its own without a change here.

//!
//! ```text
//! Request ──▶ symbolizer ──▶ resolver ──▶ kallsyms                          kernel
//!                               ├──▶ elf, debug_file ──▶ blazesym          DWARF, symbol tables
//!                               ├──▶ gopclntab                             Go's own table
//!                               ├──▶ elf::plt                              stubs
//! Response ◀────────────────────┴──▶ fde                                   functions without a name
//! ```

mod debug_file;
mod demangle;
mod elf;
mod fde;
mod gopclntab;
mod kallsyms;
mod resolver;
mod symbolizer;

use std::{fs::File, sync::Arc};

use crate::profile::Language;

pub use gopclntab::{Pclntab, Position};
pub use resolver::Resolver;
pub use symbolizer::{NotTaken, QUEUE, Symbolizer};

/// What an address belongs to.
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// One function at an address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Symbol {
    /// Demangled name.
    pub name: String,
    /// Name as the linker knows it; empty where it is the same.
    pub system_name: String,
    /// Source file; empty where unknown.
    pub file: String,
    /// Line of the address (or of the inlined call), from 1; 0 is unknown.
    pub line: u32,
    /// Column, from 1; 0 is unknown.
    pub column: u32,
}

/// A function by the name that its program gave it, demangled if it is mangled.
pub fn named(name: &str) -> Symbol {
    match demangle::demangle(name) {
        Some(demangled) => Symbol {
            name: demangled,
            system_name: name.to_owned(),
            ..Symbol::default()
        },
        None => Symbol {
            name: name.to_owned(),
            ..Symbol::default()
        },
    }
}
