//! Whose samples are taken: by name, by control group, by container, beside processes that nobody asked for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use support::{
    agent::{Agent, Run},
    picture::Picture,
    tools,
    workload::{Workload, alone, compiled, text, wait_for},
};

/// A shell that does nothing but count.
const BUSY: [&str; 2] = ["-c", "while :; do :; done"];

/// Starts a busy process of this name.
fn busy(agent: &Agent, name: &str) -> Workload {
    let program = agent.path(name);
    if !program.exists() {
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    }
    let workload = Workload::start(&program, BUSY);
    wait_for("the process to have its name", || {
        text(Path::new(&format!("/proc/{}/comm", workload.pid()))).trim() == name
    });
    workload
}

/// The processes in what was sampled.
fn seen(agent: &Agent, file: &str) -> BTreeSet<String> {
    let picture = Picture::folded_file(&agent.path(file));
    picture.processes().into_iter().map(str::to_owned).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn processes_of_a_name_are_sampled_and_no_others() {
    let Some(_alone) = alone("processes_of_a_name_are_sampled_and_no_others") else {
        return;
    };
    let agent = Agent::new();
    let (_asked, _other) = (busy(&agent, "asked"), busy(&agent, "other"));
    let run = agent.run(["--comm", "asked", "-d", "1s", "-o", "out.folded"]);
    run.expect(
        0,
        &[
            "Sampling processes called asked",
            "samples of processes called asked",
        ],
    );
    assert!(!run.stderr.contains("no process is called"), "{}", run.stderr);
    assert_eq!(seen(&agent, "out.folded"), names(["asked"]));
}

#[test]
fn a_process_that_gets_the_name_later_is_sampled_from_then_on() {
    let Some(_alone) = alone("a_process_that_gets_the_name_later_is_sampled_from_then_on") else {
        return;
    };
    let agent = Agent::new();
    // Longer than what the kernel keeps of a name, and what stood there before is longer than it.
    let wanted = "late-and-longer-than-that";
    let _other = busy(&agent, "other");
    let mut running = agent.start(["--comm", wanted, "-d", "2s", "-o", "out.folded"]);
    running.samples();
    let late = agent.path(&wanted[..15]);
    std::os::unix::fs::symlink("/bin/sh", &late).unwrap();
    let _late = Workload::start(&late, BUSY);
    let run = running.finish();
    run.expect(0, &["no process is called late-and-longer-than-that yet"]);
    assert_eq!(seen(&agent, "out.folded"), names(["late-and-longer"]));
}

/// From Linux 6.16 on the memory of a process is given back after the kernel has told of its end.
#[test]
fn a_target_is_sampled_to_its_very_end() {
    let Some(_alone) = alone("a_target_is_sampled_to_its_very_end") else {
        return;
    };
    let agent = Agent::new();
    let program = compiled("heavy");
    let run = agent.run(["-F", "997", "-o", "out.folded", "--", program.to_str().unwrap()]);
    run.expect(0, &["exited with code 0"]);
    let picture = Picture::folded_file(&agent.path("out.folded"));
    let end = picture.within(&["exit_mmap_[k]"]);
    assert!(end > 5, "{end} samples of {}", picture.total());
}

#[test]
fn pids_of_another_namespace_are_refused() {
    const TEST: &str = "pids_of_another_namespace_are_refused";
    let Some(_alone) = alone(TEST) else { return };
    let agent = Agent::new().through(["unshare", "--pid", "--fork", "--mount-proc"]);
    for target in [&["-p", "1"][..], &["--", "true"]] {
        let run = agent.run(["-d", "1s", "-o", "out.folded"].iter().chain(target));
        run.expect(1, &["is in a pid namespace of its own", "--pid=host"]);
    }
}

/// A control group of this test's own, with one inside; gone when dropped.
struct Groups {
    outer: PathBuf,
    inner: PathBuf,
}

impl Groups {
    /// `None` where there is no hierarchy of version 2, or none that lets itself be changed.
    fn make(name: &str) -> Option<Self> {
        let mounts = text(Path::new("/proc/self/mountinfo"));
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let outer = Path::new(mount.split(' ').nth(4)?).join(name);
        let inner = outer.join("inner");
        std::fs::create_dir_all(&inner).ok()?;
        Some(Self { outer, inner })
    }

    fn takes_in(&self, workload: &Workload) {
        std::fs::write(self.inner.join("cgroup.procs"), workload.pid().to_string()).unwrap();
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The last process may still be on its way out.
        let since = Instant::now();
        while std::fs::remove_dir(&self.inner).is_err() && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_dir(&self.outer);
    }
}

#[test]
fn a_control_group_is_sampled_as_long_as_somebody_is_in_it() {
    const TEST: &str = "a_control_group_is_sampled_as_long_as_somebody_is_in_it";
    let Some(_alone) = alone(TEST) else { return };
    let name = format!("profiler-test-{}", std::process::id());
    let Some(groups) = Groups::make(&name) else {
        return tools::skip(TEST, "control groups of version 2 that root may change");
    };
    let agent = Agent::new();
    let (_outside, mut inside, mut comer) = (
        busy(&agent, "outside"),
        busy(&agent, "inside"),
        busy(&agent, "comer"),
    );
    groups.takes_in(&inside);
    let mut running = agent.start(["--cgroup", &name, "-F", "997", "-d", "60s", "-o", "out.folded"]);
    running.samples();
    std::thread::sleep(Duration::from_millis(500));
    groups.takes_in(&comer);
    std::thread::sleep(Duration::from_millis(500));
    inside.terminate();
    comer.terminate();
    let run = running.finish();
    let said = format!("samples of control group /{name} in ");
    run.expect(0, &[&format!("Sampling control group {name} "), &said]);
    assert_eq!(seen(&agent, "out.folded"), names(["inside", "comer"]));
    assert_expected(&run);

    let run = agent.run([
        "--cgroup",
        groups.outer.to_str().unwrap(),
        "-d",
        "1s",
        "-o",
        "no.folded",
    ]);
    run.expect(1, &[&format!("no process runs in the control group /{name}")]);
    let run = agent.run(["--cgroup", "no/such.slice", "-d", "1s", "-o", "no.folded"]);
    run.expect(
        1,
        &["no control group no/such.slice is in ", "cat /proc/PID/cgroup"],
    );
}

/// The group's own account of its time tells how many samples there should be.
fn assert_expected(run: &Run) {
    let line = run
        .stderr
        .lines()
        .find(|line| line.contains("expected "))
        .unwrap();
    let number = |text: &str| -> f64 {
        let digits = text.split(' ').next().unwrap().replace(',', "");
        digits.parse().unwrap()
    };
    let samples = number(line);
    let expected = number(line.split_once("expected ").unwrap().1);
    // Until they were moved, `comer` in the middle of it, their time was another group's: the kernel's account and the filter agree on that.
    assert!((samples / expected - 1.0).abs() < 0.1, "{line}");
}

#[test]
fn a_container_is_found_by_the_start_of_its_id() {
    const TEST: &str = "a_container_is_found_by_the_start_of_its_id";
    let Some(_alone) = alone(TEST) else { return };
    // Of this process's own, so that it is no other container's.
    let id = |last: char| {
        format!(
            "{:08x}{}{last}",
            std::process::id(),
            "c0ffee5".repeat(7) + "deadbe"
        )
    };
    let name = |last| format!("docker-{}.scope", id(last));
    let (Some(first), Some(second)) = (Groups::make(&name('0')), Groups::make(&name('1'))) else {
        return tools::skip(TEST, "control groups of version 2 that root may change");
    };
    let agent = Agent::new();
    let (_outside, mut inside) = (busy(&agent, "outside"), busy(&agent, "inside"));
    first.takes_in(&inside);
    let whole = id('0');
    let run = agent.run(["--container", &whole, "-d", "1s", "-o", "out.folded"]);
    run.expect(0, &[&format!("Sampling container {whole}")]);
    assert_eq!(seen(&agent, "out.folded"), names(["inside"]));

    let run = agent.run(["--container", &whole[..12], "-d", "1s", "-o", "no.folded"]);
    run.expect(1, &["is the start of more than one name", &name('0'), &name('1')]);
    inside.terminate();
    drop((first, second));
    let run = agent.run([
        "--container",
        &format!("containerd://{whole}"),
        "-d",
        "1s",
        "-o",
        "no.folded",
    ]);
    run.expect(1, &["no container ", "it takes the ID or the start of it"]);
}
