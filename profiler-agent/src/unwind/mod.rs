//! Unwind tables: from a file's call frame information to what the kernel programs look up.
//!
//! ```text
//! .eh_frame, .debug_frame, .plt ──▶ cfi: rules by address ──▶ table: rows of four bytes
//! ```
//!
//! The sections are a stranger's bytes: what they may cost in time and memory is bounded before they are read.

pub mod cfi;
pub mod table;
