//! The filter of system calls that a container runtime may have put this process under.

use crate::procfs;

/// What to do about a filter that refuses `bpf(2)` or `perf_event_open(2)`. Those of containerd (since 1.7) and Docker (since 23.0) let them pass for
/// `CAP_BPF` and `CAP_PERFMON`; those of podman and CRI-O asked for `CAP_SYS_ADMIN` until the end of 2025. Seen with podman 4.3.
pub const REMEDY: &str = "this process is under a seccomp filter, as container runtimes set it, which must allow bpf and perf_event_open to who has CAP_BPF and CAP_PERFMON: in Kubernetes seccompProfile {type: Unconfined}, for podman and Docker --security-opt seccomp=unconfined";

/// Whether there is one: `SECCOMP_MODE_FILTER` of `linux/seccomp.h`, as /proc shows it.
pub fn is_filtered() -> bool {
    procfs::status(std::process::id(), "Seccomp").is_some_and(|mode| mode == "2")
}
