//! profiler-agent: a continuous profiler.

pub mod agent;
pub mod aggregate;
pub mod clock;
pub mod cpu_time;
pub mod export;
pub mod kernel;
pub mod process;
pub mod procfs;
pub mod profile;
pub mod render;
pub mod sampling;
pub mod summary;
pub mod symbols;
pub mod target;
pub mod telemetry;
pub mod unwind;
