//! profiler-agent
