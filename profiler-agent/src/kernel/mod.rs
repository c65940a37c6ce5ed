//! What this kernel offers, found by asking it, never by its version.

pub mod btf;
