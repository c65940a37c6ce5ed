//! What leaves the agent, read back by others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

#[path = "outputs/files.rs"]
mod files;
#[path = "outputs/folded.rs"]
mod folded;
#[path = "outputs/picture.rs"]
mod picture;
