//! profiler-agent: a continuous profiler.

pub mod export;
pub mod profile;
pub mod render;
pub mod symbols;
pub mod telemetry;
