//! OTLP Profiles, `v1development`: the wire layout of opentelemetry-proto 1.10 and 1.11, "development version 1".
//!
//! A breaking version 2 is announced, so everything that knows the layout is in this folder: the field numbers in
//! `dictionary` and `encode`, the transports' names and headers in `client`.
//!
//! ```text
//! Profile ──▶ prepare: rows that are equal on the wire become one ──▶ encode: split below a limit ──▶ Request
//!                                                                                         file ◀──┴──▶ parcel: packed
//!                                                            delivery: memory, spool, retry ──▶ client ◀──┘
//! ```
//!
//! What is sent follows what receivers take, where the specification leaves a choice:
//! - attributes of resources are inline: references to strings break Pyroscope, Parca and Collectors before 0.161;
//! - row 0 of the link table is empty, not 24 zero bytes: Parca and profcheck refuse those;
//! - on-CPU samples are timestamps only, each worth one; a profile without timestamps has one value a sample;
//! - a frame is `native`, `kernel` or `abort-marker` (where a walk ended early): devfiler refuses what it does not know,
//!   and code made at run time is not told apart by language yet;
//! - requests stay below 4 MiB, the default of gRPC servers in Go.

pub mod client;
pub mod connections;
pub mod delivery;
pub mod encode;
pub mod endpoint;
pub mod environment;
pub mod file;
pub mod headers;
pub mod metrics;
pub mod parcel;
pub mod tls;

mod answer;
mod dictionary;
mod prepare;
mod retry;
pub(crate) mod wire;
