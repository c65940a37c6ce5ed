//! profiler-agent: a continuous profiler.

pub mod aggregate;
pub mod clock;
pub mod export;
pub mod kernel;
pub mod process;
pub mod procfs;
pub mod profile;
pub mod render;
pub mod sampling;
pub mod symbols;
pub mod telemetry;
