//! Pictures for people. The only module that knows inferno.

mod columns;
pub mod html;
pub mod svg;
