//! The filter of system calls that whoever started this process may have put it under: a container runtime, systemd.

use crate::procfs;

/// What to do about a filter that refuses `bpf(2)` or `perf_event_open(2)`. Those of containerd (since 1.7) and Docker (since 23.0) let them pass for
/// `CAP_BPF` and `CAP_PERFMON`; those of podman and CRI-O asked for `CAP_SYS_ADMIN` until the end of 2025. Seen with podman 4.3.
const REMEDY: &str = "this process is under a seccomp filter, which must allow bpf and perf_event_open to who has CAP_BPF and CAP_PERFMON: in Kubernetes seccompProfile {type: Unconfined}, for podman and Docker --security-opt seccomp=unconfined";

/// What to do about a refused system call: what else it can be, and the filter if there is one. Who refused does not show.
pub fn remedy(otherwise: &str) -> String {
    if is_filtered() {
        format!("{otherwise}; {REMEDY}")
    } else {
        otherwise.into()
    }
}

/// Whether there is one: `SECCOMP_MODE_FILTER` of `linux/seccomp.h`, as /proc shows it.
fn is_filtered() -> bool {
    procfs::status(std::process::id(), "Seccomp").is_some_and(|mode| mode == "2")
}
