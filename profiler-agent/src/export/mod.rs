//! What leaves the agent: one file per sink. Every sink reads a [`Profile`](crate::profile::Profile) and
//! nothing else, so that all of them tell the same story to the sample.
//!
//! ```text
//!            ┌▶ folded ─┬─▶ `.folded`, `-`
//!            │          └─▶ render::svg ─▶ `.svg`
//! Profile ───┼▶ pprof ────▶ `.pb.gz`
//!            └▶ otlp::encode ─┬─▶ `.otlp`
//!                             └─▶ otlp::client ─▶ gRPC, HTTP
//! ```
//!
//! A file on the way of a capture:
//!
//! ```no_run
//! # use profiler_agent::{export::file::{Output, OutputFile}, profile::Profile};
//! # fn capture() -> Profile { unimplemented!() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let output: Output = "out.svg".parse()?;    // or `.folded`, `.pb.gz`, `.otlp`, `-`
//! let file = OutputFile::create(output, false)?; // fails before the capture, not after it
//! let profile = capture();
//! let written = file.write(&profile)?;        // complete under its name, or not there at all
//! println!("{written}");
//! # Ok(())
//! # }
//! ```

pub mod file;
pub mod folded;
pub mod text;
