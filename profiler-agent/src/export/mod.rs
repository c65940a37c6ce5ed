//! What leaves the agent: one file per sink. Every sink reads a [`Profile`](crate::profile::Profile) and
//! nothing else, so that all of them tell the same story to the sample.
//!
//! ```text
//!            ┌▶ folded ─┬─▶ `.folded`, `-`
//!            │          └─▶ render::svg ─▶ `.svg`
//!            ├▶ render::html ─▶ `.html`
//! Profile ───┼▶ pprof ────▶ `.pb.gz`
//!            ├▶ speedscope ▶ `.json`
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
//! let output: Output = "out.svg".parse()?;    // or `.html`, `.folded`, `.pb.gz`, `.otlp`, `-`
//! let file = OutputFile::create(output, false)?; // fails before the capture, not after it
//! let profile = capture();
//! let written = file.write(&profile)?;        // complete under its name, or not there at all
//! println!("{written}");
//! # Ok(())
//! # }
//! ```
//!
//! The same profile on its way to a Collector; each request is whole in itself, and sent once:
//!
//! ```no_run
//! # use profiler_agent::{export::otlp::{client::{self, Client}, encode, endpoint::Endpoint, parcel::{Compression, Parcel}}, profile::Profile};
//! # async fn send(profile: &Profile) -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint::parse("http://collector:4317", None)?; // port 4318: HTTP, else gRPC
//! let client = Client::new(endpoint, &client::Options::default())?;
//! for request in encode::encode(profile, &encode::Options::default()) {
//!     let parcel = Parcel::pack(&request, Compression::Gzip);
//!     let accepted = client.export(parcel).await?; // an error says whether to try again
//!     assert_eq!(accepted.rejected, 0);
//! }
//! # Ok(())
//! # }
//! ```

pub mod file;
pub mod folded;
pub mod merged;
pub mod otlp;
pub mod pprof;
pub mod span;
pub mod speedscope;
pub mod text;
