//! What the kernel programs and the agent share.
#![no_std]

mod outcome;

pub use outcome::Outcome;
