//! `prove service`: the unit of deploy/, as systemd runs it.
//!
//! Debian's kernel boots with Debian's systemd as its first process, the agent, and the files of deploy/ as they are. A service that comes
//! after the agent tries it and says what it sees. Nobody listens at the endpoint, so profiles go to the spool.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::boot;
use super::checks::{Outcome, no_complaint};
use super::initramfs::{Archive, libraries, stripped};
use super::kernels::{self, Kernel};
use super::serial::{Part, Transcript};
use crate::run;
use crate::setup;
use crate::workspace::Workspace;

/// The one that Debian has with the systemd of the same release.
const KERNEL: &str = "6.1";

/// What is run in there.
const PROGRAMS: [&str; 5] = [
    "/usr/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-journald",
    "/usr/lib/systemd/systemd-sysctl",
    "/usr/bin/systemctl",
    "/usr/bin/journalctl",
];

/// Systemd's own units. Of the others there the machine has no use.
const UNITS: &str = "/usr/lib/systemd/system";

/// Files that are written for it.
const FILES: [(&str, &str); 8] = [
    (
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nsystemd-journal:x:1:\nnogroup:x:65534:\n"),
    ("etc/hostname", "virtual\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    // A minute is long; all else is as it is installed.
    (
        "etc/systemd/system/profiler-agent.service.d/short.conf",
        "[Service]\nWatchdogSec=20\nRestartSec=1\n",
    ),
    (
        "etc/systemd/system/check.service",
        "[Unit]\nAfter=profiler-agent.service\n[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sh -c '/bin/sh /usr/check >/dev/ttyS0 2>&1'\n",
    ),
    ("usr/check", include_str!("service/check")),
];

/// Of deploy/, and where docs/deploy.md has them installed.
const DEPLOYED: [(&str, &str); 3] = [
    ("deploy/agent.toml", "etc/profiler-agent/agent.toml"),
    (
        "deploy/systemd/profiler-agent.service",
        "etc/systemd/system/profiler-agent.service",
    ),
    (
        "deploy/systemd/90-profiler-agent.conf",
        "etc/sysctl.d/90-profiler-agent.conf",
    ),
];

/// The capabilities of the unit, as the kernel says them: 39, 38, 19, 34, 2 and 40 of capability.h.
const CAPABILITIES: &str = "000001c400080004";

/// Boots it, and judges what it said.
pub(crate) fn prove(workspace: &Workspace) -> Result<()> {
    setup::install_emulator()?;
    setup::install_packages(&[("systemd", "what is to run the unit")])?;
    run::build(workspace)?;
    let archive = make(workspace)?;
    let image = Kernel::named(KERNEL)?.image(workspace)?;
    let log = workspace.target().join("vm/service.log");
    boot(&image, &archive, &log)?;
    let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let transcript = Transcript::parse(&String::from_utf8_lossy(&text));
    let outcomes = judge(&transcript);
    for outcome in &outcomes {
        println!("service: {outcome}");
    }
    let bad = outcomes.iter().filter(|outcome| outcome.failed()).count();
    println!(
        "service: {} checks, {bad} failed; all it said is in {}",
        outcomes.len(),
        log.display()
    );
    if bad > 0 {
        bail!("the unit does not do what it promises");
    }
    Ok(())
}

/// Packs the machine's files: those of its root under `new`.
fn make(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let agent = stripped(&workspace.agent(), &folder)?;
    let mut programs: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
    programs.push(agent.clone());
    let mut archive = Archive::create(folder.join("service.cpio"))?;
    for name in ["bin", "dev", "root"] {
        archive.folder(Path::new(name))?;
    }
    archive.program(Path::new("init"), include_bytes!("service/init"))?;
    archive.copy(Path::new("bin/busybox"), &kernels::busybox(workspace)?)?;
    for file in PROGRAMS.map(PathBuf::from).iter().chain(&libraries(&programs)?) {
        archive.copy(&place(file), file)?;
    }
    archive.copy(&place(Path::new("/usr/bin/profiler-agent")), &agent)?;
    for unit in units()? {
        archive.copy(&place(&unit), &unit)?;
    }
    let new = Path::new("new");
    for (from, to) in DEPLOYED {
        archive.copy(&new.join(to), &workspace.join(from))?;
    }
    for (to, contents) in FILES {
        archive.program(&new.join(to), contents.as_bytes())?;
    }
    archive.finish()
}

/// Where a file of this machine lies in the archive: `/lib` and its like are links to folders of `/usr`.
fn place(file: &Path) -> PathBuf {
    let file = file.strip_prefix("/").unwrap_or(file);
    let usr = if file.starts_with("usr") { "" } else { "usr" };
    Path::new("new").join(usr).join(file)
}

/// Systemd's targets, and the units of its journal.
fn units() -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(UNITS).with_context(|| format!("cannot read {UNITS}"))?;
    let files = list.filter_map(|entry| {
        let entry = entry.ok()?;
        let is_file = entry.file_type().ok()?.is_file();
        is_file.then(|| entry.path())
    });
    Ok(files
        .filter(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".target") || name.starts_with("systemd-journald")
        })
        .collect())
}

/// What each part has to have said.
const SAID: [(&str, &[&str]); 10] = [
    // Before the setting of sysctl.d: Debian's kernel is at level 3.
    (
        "is refused",
        &["ActiveState=failed", "ExecMainStatus=3", "NRestarts=0"],
    ),
    (
        "starts",
        &["ActiveState=active", "StatusText=sampling", "NRestarts=0"],
    ),
    // Its own root is read-only, its state is not.
    ("sees", &[" / / ro,", " /var/lib/private/profiler-agent rw,"]),
    ("spools", &["/spool/"]),
    ("reloads", &["read the settings again"]),
    (
        "hangs",
        &["ActiveState=active", "StatusText=sampling", "NRestarts=1"],
    ),
    (
        "is killed",
        &["ActiveState=active", "StatusText=sampling", "NRestarts=2"],
    ),
    ("spools again", &["/spool/"]),
    (
        "stopped",
        &["ActiveState=inactive", "Result=success", "ExecMainStatus=0"],
    ),
    (
        "has wrong settings",
        &["ActiveState=failed", "Result=exit-code", "NRestarts=0"],
    ),
];

fn judge(transcript: &Transcript) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = SAID
        .iter()
        .map(|(name, words)| Outcome::of(transcript, name, &|part| has(part, words)))
        .collect();
    outcomes.push(Outcome::of(transcript, "confined", &is_confined));
    outcomes.push(Outcome::of(transcript, "journal", &has_reasons));
    outcomes.push(Outcome::of(transcript, "dmesg", &no_complaint));
    outcomes.push(Outcome::end(transcript));
    outcomes
}

/// All these words were said.
fn has(part: &Part, words: &[&str]) -> Result<String, String> {
    match words.iter().find(|words| !part.stdout.contains(*words)) {
        Some(missing) => Err(format!("there is no {missing:?} in\n{}", part.stdout)),
        None => Ok(words.join(", ")),
    }
}

/// Why it did not start, hung, ended, and was not started any more, in the words of systemd and of the agent; and nothing that the sandbox took
/// from it.
fn has_reasons(part: &Part) -> Result<String, String> {
    const REASONS: [&str; 5] = [
        "kernel.perf_event_paranoid is 3",
        "Watchdog timeout",
        "status=9/KILL",
        "there is no key \"intervall\"",
        "delivery: ",
    ];
    const LACKS: [&str; 2] = ["without CAP_", "some names are missing"];
    match part
        .stdout
        .lines()
        .find(|line| LACKS.iter().any(|words| line.contains(words)))
    {
        Some(line) => Err(format!("it lacks something: {line}")),
        None => has(part, &REASONS),
    }
}

/// `/proc/PID/status` of the agent.
fn is_confined(part: &Part) -> Result<String, String> {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        has(part, &[&format!("{set}:\t{CAPABILITIES}")])?;
    }
    has(part, &["NoNewPrivs:\t1", "Seccomp:\t2"])?;
    let user = part.stdout.lines().find_map(|line| line.strip_prefix("Uid:\t"));
    let user = user
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or("0");
    if user == "0" {
        return Err("it is root".to_owned());
    }
    Ok(format!(
        "user {user}, the six capabilities and no others, a system call filter"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_not_confined() {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let sets: String = sets
            .iter()
            .map(|set| format!("{set}:\t{CAPABILITIES}\n"))
            .collect();
        let part = |user: &str, seccomp: u32| Part {
            stdout: format!("Uid:\t{user}\t{user}\n{sets}NoNewPrivs:\t1\nSeccomp:\t{seccomp}\n"),
            ..Part::default()
        };
        assert!(is_confined(&part("61184", 2)).is_ok());
        assert!(is_confined(&part("0", 2)).is_err());
        assert!(is_confined(&part("61184", 0)).is_err());
    }

    #[test]
    fn files_lie_below_usr() {
        for (file, place_of_it) in [
            (
                "/lib64/ld-linux-x86-64.so.2",
                "new/usr/lib64/ld-linux-x86-64.so.2",
            ),
            ("/usr/bin/systemctl", "new/usr/bin/systemctl"),
        ] {
            assert_eq!(place(Path::new(file)), Path::new(place_of_it));
        }
    }
}
