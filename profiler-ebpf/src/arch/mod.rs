//! What differs between architectures, under the same names in each file.

mod x86_64;
pub use x86_64::*;
