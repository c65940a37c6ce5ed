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

#[path = "outputs/client.rs"]
mod client;
#[path = "outputs/collector.rs"]
mod collector;
#[path = "outputs/conformance.rs"]
mod conformance;
#[path = "outputs/delivery.rs"]
mod delivery;
#[path = "outputs/files.rs"]
mod files;
#[path = "outputs/folded.rs"]
mod folded;
#[path = "outputs/otlp.rs"]
mod otlp;
#[path = "outputs/picture.rs"]
mod picture;
#[path = "outputs/pprof.rs"]
mod pprof;
#[path = "outputs/tls.rs"]
mod tls;
