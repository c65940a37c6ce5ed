//! Pictures for people. The only module that knows inferno.

pub mod svg;
