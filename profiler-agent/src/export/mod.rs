//! What leaves the agent: one file per sink.
