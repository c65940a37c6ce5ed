//! What this kernel offers and allows, found by asking it, never by its version.

pub mod btf;
pub mod capabilities;
pub mod paranoid;
pub mod registers;
pub mod seccomp;
