//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "shared by inclusion, not by crate")]

pub mod agent;
pub mod collector;
pub mod conformance;
pub mod golden;
pub mod machine;
pub mod picture;
pub mod profiles;
pub mod proxy;
pub mod receivers;
pub mod tools;
pub mod truth;
pub mod workload;
