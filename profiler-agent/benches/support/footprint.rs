//! What an agent holds: in its own process, in its symbolizer, and in the kernel.

use std::collections::BTreeSet;

use profiler_agent::procfs;

/// Bytes, each counted once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    /// Resident in the agent, but for what is the kernel's as well.
    pub(crate) agent: u64,
    /// Resident in its children.
    pub(crate) children: u64,
    /// Of BPF maps, programs and perf rings.
    pub(crate) kernel: u64,
}

impl Footprint {
    /// That of the agent of this pid, now.
    pub(crate) fn of(pid: u32) -> Self {
        Self {
            agent: status(pid, "VmRSS:").expect("the agent runs") - mapped(pid),
            // One may end between being listed and looked at.
            children: children(pid)
                .iter()
                .filter_map(|&pid| status(pid, "VmRSS:"))
                .sum(),
            kernel: kernel(pid).iter().map(|(_, bytes)| bytes).sum(),
        }
    }

    /// The sum.
    pub(crate) const fn total(&self) -> u64 {
        self.agent + self.children + self.kernel
    }
}

/// Bytes of BPF maps and perf rings that are resident because they are mapped.
fn mapped(pid: u32) -> u64 {
    let maps = procfs::read(format!("/proc/{pid}/smaps"), 4 << 20).expect("smaps");
    let mut is_shared = false;
    let mut kilobytes = 0;
    for line in String::from_utf8_lossy(&maps).lines() {
        if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            is_shared = line.contains("anon_inode:bpf-map") || line.contains("anon_inode:[perf_event]");
        } else if is_shared {
            kilobytes += number(line, "Rss:").unwrap_or(0);
        }
    }
    kilobytes * 1024
}

/// What the kernel holds for a process, by name: maps and programs by what it charges for them, rings by their size.
pub(crate) fn kernel(pid: u32) -> Vec<(String, u64)> {
    let mut held = Vec::new();
    let mut seen = BTreeSet::new();
    for facts in fdinfo(pid) {
        let id = |kind: &str| number(&facts, kind).map(|id| (kind.starts_with("map"), id));
        let (Some(bytes), Some(id)) = (
            number(&facts, "memlock:"),
            id("map_id:").or_else(|| id("prog_id:")),
        ) else {
            continue;
        };
        if seen.insert(id) && bytes > 0 {
            let kind = if id.0 { "map" } else { "program" };
            let entries = number(&facts, "max_entries:").map(|count| format!(", {count} entries"));
            held.push((format!("{kind} {}{}", id.1, entries.unwrap_or_default()), bytes));
        }
    }
    let maps = procfs::read(format!("/proc/{pid}/maps"), 1 << 20).expect("maps");
    for line in String::from_utf8_lossy(&maps)
        .lines()
        .filter(|line| line.contains("[perf_event]"))
    {
        let (range, _) = line.split_once(' ').expect("range");
        let (start, end) = range.split_once('-').expect("range");
        let address = |text| u64::from_str_radix(text, 16).expect("address");
        held.push(("perf ring".into(), address(end) - address(start)));
    }
    held
}

/// The processes that a process has started, from any of its threads, and that have not ended.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let children = tasks.filter_map(|task| procfs::read(task.ok()?.path().join("children"), 1 << 16).ok());
    children
        .flat_map(|pids| {
            String::from_utf8_lossy(&pids)
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// A size in /proc/PID/status, in bytes; `None` once the process has ended.
pub(crate) fn status(pid: u32, name: &str) -> Option<u64> {
    let status = procfs::read(format!("/proc/{pid}/status"), 1 << 16).ok()?;
    Some(number(&String::from_utf8_lossy(&status), name)? * 1024)
}

/// What the kernel says about each descriptor of a process.
pub(crate) fn fdinfo(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo");
    entries
        .filter_map(|entry| procfs::read(entry.ok()?.path(), 1 << 16).ok())
        .map(|facts| String::from_utf8_lossy(&facts).into_owned())
        .collect()
}

/// What stands behind a name at the start of a line.
pub(crate) fn number(facts: &str, name: &str) -> Option<u64> {
    let line = facts.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
