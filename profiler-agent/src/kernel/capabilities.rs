//! What this process may do, and what it needs to.

use crate::procfs;

/// A capability the agent has a use for, capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Name as `setcap` takes it.
    pub name: &'static str,
    /// Number in the kernel.
    number: u32,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether nothing works without it.
    pub required: bool,
}

/// Older than the capabilities it was divided into, and as good as any of them.
const SYS_ADMIN: u32 = 21;

/// Every capability the agent has a use for.
pub const CAPABILITIES: [Capability; 6] = [
    Capability {
        name: "cap_bpf",
        number: 39,
        purpose: "load the sampling programs",
        required: true,
    },
    Capability {
        name: "cap_perfmon",
        number: 38,
        purpose: "open perf events and read stacks",
        required: true,
    },
    Capability {
        name: "cap_sys_ptrace",
        number: 19,
        purpose: "see what other users' processes map",
        required: false,
    },
    Capability {
        name: "cap_syslog",
        number: 34,
        purpose: "name kernel functions",
        required: false,
    },
    Capability {
        name: "cap_dac_read_search",
        number: 2,
        purpose: "read programs that only root may",
        required: false,
    },
    Capability {
        name: "cap_checkpoint_restore",
        number: 40,
        purpose: "open mapped files that were deleted or replaced",
        required: false,
    },
];

/// A required capability is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "missing {}: run it with sudo, or let this program have them with `{}`",
    .0.iter().map(|c| format!("{} (to {})", c.name.to_uppercase(), c.purpose)).collect::<Vec<_>>().join(" and "),
    setcap()
)]
pub struct MissingCapabilities(pub Vec<Capability>);

/// Checks what this process has; missing ones that are not required are named in the log.
///
/// # Errors
///
/// When nothing would work.
pub fn check() -> Result<(), MissingCapabilities> {
    // Without /proc nothing can be said; the kernel will.
    let Some(effective) = effective() else {
        return Ok(());
    };
    let missing: Vec<Capability> = CAPABILITIES
        .into_iter()
        .filter(|c| !has(effective, c.number))
        .collect();
    for capability in missing.iter().filter(|c| !c.required) {
        tracing::warn!(
            "without {} the agent cannot {}",
            capability.name.to_uppercase(),
            capability.purpose
        );
    }
    let required: Vec<Capability> = missing.into_iter().filter(|c| c.required).collect();
    if required.is_empty() {
        Ok(())
    } else {
        Err(MissingCapabilities(required))
    }
}

/// Every capability that the agent has a use for, and whether this process has it; none is missing where /proc does not tell.
pub fn all() -> impl Iterator<Item = (Capability, bool)> {
    let effective = effective().unwrap_or(u64::MAX);
    CAPABILITIES
        .into_iter()
        .map(move |capability| (capability, has(effective, capability.number)))
}

/// The command that gives this program what it needs.
pub fn setcap() -> String {
    let program = std::env::current_exe();
    format!(
        "sudo setcap {}+ep {}",
        CAPABILITIES.map(|capability| capability.name).join(","),
        program.map_or("profiler-agent".into(), |path| path.display().to_string())
    )
}

/// Whether this process has `CAP_SYS_ADMIN`; it has where /proc does not tell.
pub fn has_sys_admin() -> bool {
    effective().is_none_or(|effective| has(effective, SYS_ADMIN))
}

fn effective() -> Option<u64> {
    u64::from_str_radix(&procfs::status(std::process::id(), "CapEff")?, 16).ok()
}

const fn has(effective: u64, number: u32) -> bool {
    effective & (1 << number) != 0 || (number >= 38 && effective & (1 << SYS_ADMIN) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_for_what_was_divided_from_it() {
        assert!(has(1 << 21, 39) && has(1 << 21, 38) && has(1 << 39, 39));
        assert!(!has(1 << 21, 2) && !has(0, 39));
    }

    #[test]
    fn the_message_names_the_remedy() {
        let text = MissingCapabilities(CAPABILITIES.into_iter().filter(|c| c.required).collect()).to_string();
        assert!(
            text.contains("CAP_BPF (to load the sampling programs) and CAP_PERFMON"),
            "{text}"
        );
        assert!(text.contains("sudo setcap cap_bpf,cap_perfmon,"), "{text}");
    }
}
