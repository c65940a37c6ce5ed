//! What the kernel and its settings allow: each thing tried as a capture would.

use std::{fs, path::Path};

use super::{Check, Section, Verdict};
use crate::{
    kernel::{btf::Btf, capabilities, paranoid, seccomp},
    procfs,
    sampling::{Clock, Config, Sampler, perf_event::PerfEvent},
    symbols,
    target::Wanted,
};

/// The rate that captures have when nobody says otherwise.
const FREQUENCY: u32 = 99;
/// Bytes of a line of /proc/kallsyms, and of any file in /proc/sys, with room.
const SHORT: u64 = 4096;

/// Looks at this host.
pub fn host() -> Section {
    let mut checks = vec![kernel(), types()];
    checks.extend(capabilities::all().map(|(capability, is_there)| {
        let name = capability.name.to_uppercase();
        if is_there {
            return Check::fine(&name, "there", &format!("the agent can {}", capability.purpose));
        }
        let verdict = if capability.required {
            Verdict::Broken
        } else {
            Verdict::Degraded
        };
        let meaning = format!("the agent cannot {}", capability.purpose);
        let remedy = format!(
            "run it with sudo, or let it have this: {}",
            capabilities::setcap()
        );
        Check::wrong(&name, "not there", &meaning, verdict, &remedy)
    }));
    checks.extend([
        perf_events(),
        paranoid(),
        rate(),
        sampler(),
        memory(),
        addresses(),
        pids(),
        proc(),
        mounts(),
        debug_files(),
    ]);
    Section {
        title: "host: what the kernel and its settings allow",
        checks,
    }
}

/// The text of a setting of the kernel.
fn setting(name: &str) -> Option<String> {
    let bytes = procfs::read(Path::new("/proc/sys").join(name), SHORT).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn kernel() -> Check {
    let name = rustix::system::uname();
    let found = format!(
        "{} {}, {}",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    );
    Check::fine("kernel", &found, "what it can is found by trying, below")
}

fn types() -> Check {
    match Btf::of_running_kernel() {
        Ok(_) => Check::fine(
            "BTF",
            "/sys/kernel/btf/vmlinux",
            "the programs find their way in the kernel's structures",
        ),
        Err(error) => Check::wrong(
            "BTF",
            &error.to_string(),
            "the programs cannot find their way in the kernel's structures",
            Verdict::Broken,
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as those of all large distributions are; in a container, mount /sys",
        ),
    }
}

fn perf_events() -> Check {
    let opened = |clock| PerfEvent::clock(clock, FREQUENCY, 0);
    match (opened(Clock::Cycles), opened(Clock::CpuClock)) {
        (Ok(_), _) => Check::fine(
            "clock",
            Clock::Cycles.name(),
            "the PMU interrupts everything, code with interrupts off too",
        ),
        (Err(error), Ok(_)) => Check::wrong(
            "clock",
            &format!("{}, as there is no cycles: {error}", Clock::CpuClock.name()),
            "a timer samples: code that runs with interrupts off is seen when they are on again",
            Verdict::Degraded,
            "in a virtual machine, have the hypervisor give it a PMU; there is no need to",
        ),
        (_, Err(error)) => Check::wrong(
            "clock",
            &format!("perf_event_open: {error}"),
            "nothing can be sampled",
            Verdict::Broken,
            &seccomp::remedy("run it with sudo; the kernel must be built with CONFIG_PERF_EVENTS=y"),
        ),
    }
}

fn paranoid() -> Check {
    const NAME: &str = "kernel.perf_event_paranoid";
    match (paranoid::level(), paranoid::refuses()) {
        (Some(_), Some(refusing)) => Check::wrong(
            NAME,
            &refusing.to_string(),
            "at this level the kernels of Debian and Ubuntu want CAP_SYS_ADMIN for perf events",
            Verdict::Broken,
            paranoid::REMEDY,
        ),
        (Some(level), None) => Check::fine(NAME, &level.to_string(), "of no account to this process"),
        (None, _) => Check::wrong(
            NAME,
            "not there",
            "the kernel has no perf events, or /proc/sys is hidden",
            Verdict::Degraded,
            "mount /proc",
        ),
    }
}

fn rate() -> Check {
    const NAME: &str = "kernel.perf_event_max_sample_rate";
    let found = setting("kernel/perf_event_max_sample_rate");
    let most = found.as_deref().and_then(|text| text.parse::<u32>().ok());
    match (found, most) {
        (Some(found), Some(most)) if most < FREQUENCY => Check::wrong(
            NAME,
            &found,
            &format!("{FREQUENCY} samples a second are refused"),
            Verdict::Broken,
            "sudo sysctl kernel.perf_cpu_time_max_percent=25 kernel.perf_event_max_sample_rate=100000",
        ),
        (Some(found), _) => Check::fine(NAME, &found, "samples a second, at most"),
        (None, _) => Check::fine(NAME, "not there", "the kernel has no limit to tell of"),
    }
}

/// Loads the programs and opens the rings: what a capture begins with.
fn sampler() -> Check {
    const NAME: &str = "programs and rings";
    match Sampler::new(Config {
        frequency: FREQUENCY,
        wanted: Wanted::Everything,
    }) {
        Ok(_) => Check::fine(
            NAME,
            "loaded and opened",
            "the kernel's verifier takes the programs",
        ),
        Err(error) => {
            let mut words = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                words = format!("{words}: {cause}");
                source = cause.source();
            }
            Check::wrong(
                NAME,
                crate::summary::one_line(&words).as_str(),
                "nothing can be sampled",
                Verdict::Broken,
                &seccomp::remedy(
                    "run it with sudo; the kernel must be built with CONFIG_BPF_SYSCALL=y; lockdown or a security module may refuse bpf",
                ),
            )
        }
    }
}

fn memory() -> Check {
    const NAME: &str = "locked memory";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        None => Check::fine(NAME, "unlimited", "rings and tables have room on every kernel"),
        Some(bytes) => Check::fine(
            NAME,
            &format!("{} KiB", bytes >> 10),
            "of account before Linux 5.11 only, where `ulimit -l unlimited` mends what is refused",
        ),
    }
}

fn addresses() -> Check {
    const NAME: &str = "kernel.kptr_restrict";
    let found = setting("kernel/kptr_restrict").unwrap_or_else(|| "not there".into());
    // The first line may be of a symbol at 0; a few hundred are not.
    let text = procfs::read("/proc/kallsyms", SHORT).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let is_told = text.lines().any(|line| {
        line.split(' ')
            .next()
            .is_some_and(|address| address.len() > 8 && address.bytes().any(|digit| digit != b'0'))
    });
    if is_told {
        return Check::fine(NAME, &found, "/proc/kallsyms tells where kernel functions are");
    }
    Check::wrong(
        NAME,
        &format!("{found}, and /proc/kallsyms tells no addresses"),
        "kernel functions have no names",
        Verdict::Degraded,
        "give the agent CAP_SYSLOG and `sudo sysctl kernel.kptr_restrict=1`",
    )
}

fn pids() -> Check {
    const NAME: &str = "pid namespace";
    match fs::read_link("/proc/self/ns/pid") {
        Ok(_) if procfs::has_pids_of_the_host() => {
            Check::fine(NAME, "that of the host", "pids in samples are those in /proc")
        }
        found => Check::wrong(
            NAME,
            &found.map_or_else(|error| error.to_string(), |link| link.display().to_string()),
            "the kernel reports pids of the host, which /proc here does not have: processes have no names and no mappings",
            Verdict::Broken,
            "run the container in the host's: `--pid=host`, `hostPID: true`",
        ),
    }
}

fn proc() -> Check {
    const NAME: &str = "/proc";
    let mounts = procfs::read("/proc/self/mounts", 1 << 20).unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let options = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next() == Some("/proc")).then(|| words.nth(1).unwrap_or_default().to_owned())
    });
    let hides = |options: &str| {
        options
            .split(',')
            .any(|word| word.starts_with("hidepid=") && word != "hidepid=0")
    };
    match options {
        Some(options) if hides(&options) && procfs::Stat::of(1).is_none() => Check::wrong(
            NAME,
            &options,
            "processes of other users are hidden: they have no names",
            Verdict::Degraded,
            "sudo mount -o remount,hidepid=0 /proc",
        ),
        Some(options) => Check::fine(NAME, &options, "processes can be looked at"),
        None => Check::wrong(
            NAME,
            "not mounted",
            "nothing is known of processes",
            Verdict::Broken,
            "mount -t proc proc /proc",
        ),
    }
}

fn mounts() -> Check {
    Check::fine(
        "other mounts",
        "none is needed",
        "tracefs, debugfs and bpffs are not used",
    )
}

fn debug_files() -> Check {
    const NAME: &str = "debug files";
    let maps = procfs::read("/proc/1/maps", 1 << 20)
        .or_else(|_| procfs::read("/proc/self/maps", 1 << 20))
        .unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let library = maps.lines().find_map(|line| {
        let (_, path) = line.split_once('/')?;
        let file = path.rsplit('/').next()?;
        (file.starts_with("libc.so") || file.starts_with("libc-")).then(|| format!("/{path}"))
    });
    let Some(library) = library else {
        return Check::fine(NAME, "no C library is mapped", "there is nothing to look for");
    };
    match symbols::debug_file_of(&library) {
        Ok(Some(path)) => Check::fine(
            NAME,
            &path,
            &format!("functions of {library} have all their names"),
        ),
        Ok(None) => Check::wrong(
            NAME,
            &format!("none of {library}"),
            "functions that it does not export are shown by file and offset; the same goes for other stripped programs",
            Verdict::Degraded,
            "apt install libc6-dbg, dnf debuginfo-install glibc, or the like; of other programs their -dbgsym or -debuginfo package",
        ),
        Err(error) => Check::wrong(
            NAME,
            &format!("{library}: {error}"),
            "its functions have no names",
            Verdict::Degraded,
            "let the agent read it",
        ),
    }
}
