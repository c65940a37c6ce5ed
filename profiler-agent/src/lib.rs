//! profiler-agent: a continuous profiler.

pub mod export;
pub mod kernel;
pub mod procfs;
pub mod profile;
pub mod render;
pub mod sampling;
pub mod symbols;
pub mod telemetry;
