//! What the child gives up before it reads a byte of a foreign file.
//!
//! ```text
//! namespaces: pid (when it is created), mounts, network, IPC, names
//! root        an empty file system with nothing but its own part of /proc, read-only      else Landlock: no file at all
//! user        65534, no supplementary groups
//! privileges  no capability, none to be had: bounding set, no_new_privs
//! limits      memory, CPU time, descriptors, no files, no processes, no core dumps
//! system calls  the 40 that reading files and memory takes (seccomp)
//! ```
//! A layer that this kernel or this container does not allow is missing, which is said; the others stand. Those that need no
//! right at all must stand.

use std::{fmt, io};

use landlock::{ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetStatus};
use rustix::{
    fs::Mode,
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

/// Memory that it may allocate: twice what the largest debug information of the benchmarks takes. A file that unpacks to more, or a
/// name that does, ends the child.
pub(super) const MOST_MEMORY: u64 = 512 << 20;
/// Address space with the files that it maps, which may be several GB long.
const MOST_ADDRESSES: u64 = 32 << 30;
/// CPU time of one life, seconds. A single request gets much less; this is for a child whose agent does not look.
const MOST_SECONDS: u64 = 600;
/// Open descriptors: 128 objects with a debug file each, and those that a parser opens anew.
const MOST_DESCRIPTORS: u64 = 1024;
/// Its stack; deep recursion ends there.
const MOST_STACK: u64 = 8 << 20;
/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// A part of the confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Layer {
    /// It sees no other process.
    Processes,
    /// It sees no file of the host.
    Root,
    /// Instead of [`Self::Root`]: it sees files but may open none.
    Landlock,
    /// It has no network.
    Network,
    /// It shares no memory or queues with others.
    Ipc,
    /// It cannot rename the host.
    Names,
    /// It runs as a user that owns nothing.
    User,
    /// Memory, CPU time, descriptors, stack.
    Limits,
    /// It has no capability.
    Capabilities,
    /// It can get none.
    NoNewPrivileges,
    /// It ends with the agent.
    Parent,
    /// It may make the system calls that it needs, and no other.
    SystemCalls,
}

impl Layer {
    /// What it is called, and what it means.
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Processes => ("pid namespace", "sees no other process"),
            Self::Root => ("own root", "sees no file of the host"),
            Self::Landlock => ("landlock", "opens no file of the host"),
            Self::Network => ("network namespace", "has no network"),
            Self::Ipc => ("IPC namespace", "shares no memory or queues"),
            Self::Names => ("UTS namespace", "cannot rename the host"),
            Self::User => ("user 65534", "owns no file and no process"),
            Self::Limits => (
                "limits",
                "has 512 MiB of memory, 600 s of CPU time, 1,024 descriptors, no new files or processes",
            ),
            Self::Capabilities => ("no capabilities", "has no privilege"),
            Self::NoNewPrivileges => ("no_new_privs", "gets no privilege"),
            Self::Parent => ("parent death signal", "ends with the agent"),
            Self::SystemCalls => ("seccomp", "makes no system call but those that reading takes"),
        }
    }
}

/// What stands and what does not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// Layers that stand.
    pub standing: Vec<Layer>,
    /// Layers that do not, with what the kernel said.
    pub missing: Vec<(Layer, String)>,
}

impl Confinement {
    /// Whether the child can open anew what it has as a descriptor of a file on a disk; under Landlock it can do so with copies in
    /// memory only.
    pub fn reopens_files(&self) -> bool {
        !self.standing.contains(&Layer::Landlock)
    }

    fn note(&mut self, layer: Layer, result: Result<(), impl fmt::Display>) -> bool {
        match result {
            Ok(()) => self.standing.push(layer),
            Err(error) => self.missing.push((layer, error.to_string())),
        }
        self.standing.contains(&layer)
    }
}

/// Gives up everything that can be given up. To be called once, by a process with a single thread that needs nothing any more but the
/// descriptors that it has.
///
/// # Errors
///
/// When something that needs no right cannot be given up.
pub(super) fn confine() -> io::Result<Confinement> {
    let mut confinement = Confinement::default();
    let alone = rustix::process::getpid().is_init();
    confinement.note(
        Layer::Processes,
        alone
            .then_some(())
            .ok_or("a pid namespace of its own was refused (CAP_SYS_ADMIN)"),
    );
    for (layer, namespace) in [
        (Layer::Network, UnshareFlags::NEWNET),
        (Layer::Ipc, UnshareFlags::NEWIPC),
        (Layer::Names, UnshareFlags::NEWUTS),
    ] {
        confinement.note(layer, unshare(namespace));
    }
    let own_root = unshare(UnshareFlags::NEWNS).and_then(|()| take_root(alone));
    let own_root = confinement.note(Layer::Root, own_root);
    drop_bounding_set();
    confinement.note(Layer::User, become_nobody());

    // From here on nothing needs a right.
    set_limits()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    let _ = rustix::thread::clear_ambient_capability_set();
    rustix::thread::set_no_new_privs(true)?;
    // No core dump, and nobody of the same user looks into it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // A change of user forgets it, hence so late. An agent that ended before has closed its end of the line.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    confinement.standing.extend([
        Layer::Limits,
        Layer::Capabilities,
        Layer::NoNewPrivileges,
        Layer::Parent,
    ]);
    if !own_root {
        confinement.note(Layer::Landlock, open_no_files());
    }
    confinement.note(Layer::SystemCalls, restrict_system_calls());
    Ok(confinement)
}

#[expect(
    unsafe_code,
    reason = "unsharing descriptors would be unsafe, which rustix cannot tell apart"
)]
fn unshare(namespace: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!namespace.contains(UnshareFlags::FILES));
    // SAFETY: the table of descriptors stays shared with nobody: there is one thread.
    unsafe { rustix::thread::unshare_unsafe(namespace) }
}

/// Puts an empty, read-only file system in the place of everything. Only /proc is there, by which a descriptor has a path.
fn take_root(alone: bool) -> rustix::io::Result<()> {
    use rustix::mount;
    mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    if let Err(error) = enter_root(alone) {
        // Without the old /proc no descriptor would have a path.
        let _ = mount::unmount("/proc", UnmountFlags::DETACH);
        return Err(error);
    }
    mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    mount::mount_remount("/", CLOSED | MountFlags::RDONLY, c"")
}

/// What nothing is run from, and no device opened.
const CLOSED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Makes the new root, with the old one over it.
fn enter_root(alone: bool) -> rustix::io::Result<()> {
    use rustix::{fs, mount, process};
    // On a folder that is there for certain: this program was started by it.
    mount::mount(
        "none",
        "/proc",
        "tmpfs",
        CLOSED,
        c"size=64k,nr_inodes=16,mode=755",
    )?;
    fs::mkdir("/proc/proc", Mode::from_raw_mode(0o555))?;
    let read_only = CLOSED | MountFlags::RDONLY;
    match mount::mount("none", "/proc/proc", "proc", read_only, c"subset=pid,hidepid=2") {
        // Before Linux 5.8 options are of the whole pid namespace.
        Err(Errno::INVAL) if alone => mount::mount("none", "/proc/proc", "proc", read_only, None)?,
        result => result?,
    }
    process::chdir("/proc")?;
    process::pivot_root(".", ".")
}

/// Without CAP_SETPCAP this is refused; then `no_new_privs` alone stands between the child and privileges of files.
fn drop_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

fn become_nobody() -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)
}

fn set_limits() -> rustix::io::Result<()> {
    for (resource, most) in [
        (Resource::Data, MOST_MEMORY),
        (Resource::As, MOST_ADDRESSES),
        (Resource::Cpu, MOST_SECONDS),
        (Resource::Nofile, MOST_DESCRIPTORS),
        (Resource::Stack, MOST_STACK),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ] {
        // An agent that is limited itself hands its limits on.
        let allowed = rustix::process::getrlimit(resource).maximum;
        let most = Some(allowed.map_or(most, |allowed| allowed.min(most)));
        rustix::process::setrlimit(
            resource,
            Rlimit {
                current: most,
                maximum: most,
            },
        )?;
    }
    Ok(())
}

/// Landlock, where there is no root of its own: no path leads to a file any more. Descriptors can be read, and copies in memory, which are in
/// no file system, can be opened.
fn open_no_files() -> Result<(), String> {
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(|error| error.to_string())?;
    match restricted.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock".into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// The filter of system calls; from its end on all others are refused with EPERM.
fn restrict_system_calls() -> Result<(), String> {
    let filter = filter().map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let bits = |argument, mask: libc::c_int, value: libc::c_int| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs())),
            u64::from(value.unsigned_abs()),
        )
    };
    let equal = |argument, value: libc::c_int| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value.unsigned_abs()),
        )
    };
    let rule = SeccompRule::new;
    let free = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_readlinkat,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_sched_yield,
        libc::SYS_ppoll,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    #[cfg(target_arch = "x86_64")]
    let of_machine = [libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat];
    #[cfg(not(target_arch = "x86_64"))]
    let of_machine: [libc::c_long; 0] = [];
    let no_code = || bits(2, libc::PROT_EXEC, 0);
    // Private memory counts against the limit, files are read only; what is neither would be memory without a bound.
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let reading = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_DIRECTORY;
    let me = rustix::process::getpid().as_raw_pid();
    let limited = [
        (
            libc::SYS_mmap,
            vec![
                rule(vec![no_code()?, bits(3, shared, 0)?])?,
                rule(vec![no_code()?, bits(3, shared, libc::MAP_SHARED)?])?,
                rule(vec![no_code()?, bits(3, shared, libc::MAP_ANONYMOUS)?])?,
            ],
        ),
        (libc::SYS_mprotect, vec![rule(vec![no_code()?])?]),
        (
            libc::SYS_openat,
            vec![rule(vec![bits(2, reading, libc::O_RDONLY)?])?],
        ),
        (
            libc::SYS_fcntl,
            vec![
                rule(vec![equal(1, libc::F_GETFD)?])?,
                rule(vec![equal(1, libc::F_SETFD)?])?,
                rule(vec![equal(1, libc::F_GETFL)?])?,
                rule(vec![equal(1, libc::F_DUPFD_CLOEXEC)?])?,
            ],
        ),
        // It may abort.
        (libc::SYS_tgkill, vec![rule(vec![equal(0, me)?])?]),
    ];
    let rules = free.into_iter().chain(of_machine).map(|call| (call, Vec::new()));
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(
        rules.chain(limited).collect(),
        refuse,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_a_program() {
        assert!(filter().unwrap().len() > 40);
    }
}
