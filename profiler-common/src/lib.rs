//! What the kernel programs and the agent share: records, limits, outcomes and the unwind step.
//!
//! - [`record`]: the layout of what crosses the boundary, with its limits;
//! - [`Filter`]: whose samples are taken;
//! - [`Outcome`]: how the walk of a stack ended;
//! - [`row`]: the unwind tables, and the rules they hold;
//! - [`unwind`]: one step of that walk, a pure function of registers, rule and memory. The kernel programs
//!   run it on the sampled thread; user space, tests and fuzzing run the very same code on anything else;
//! - [`arch`]: what differs between architectures, under the same names.
//!
//! No allocation, no unsafe, no dependencies; every integer is of a fixed width.
#![no_std]
#![forbid(unsafe_code)]

pub mod arch;
#[expect(
    clippy::cast_possible_truncation,
    reason = "pages and addresses in them, just compared or masked"
)]
pub mod arena;
mod filter;
mod outcome;
pub mod record;
pub mod row;
pub mod unwind;

pub use filter::Filter;
pub use outcome::Outcome;
