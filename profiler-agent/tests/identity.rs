//! Which file is it? Programs whose path leads elsewhere from outside, whose file was replaced or deleted, or who are gone before
//! anyone looks.
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
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use support::{
    agent::Agent,
    picture::Picture,
    tools,
    workload::{Workload, alone, compiled, wait_for},
};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads").join(name)
}

/// A program that needs no other file, and burns in a function of this name.
fn program(path: &Path, function: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    run(Command::new("cc")
        .args(["-O1", "-static", "-Wl,--build-id", "-fno-omit-frame-pointer"])
        .arg(format!("-DFUNCTION={function}"))
        .arg("-o")
        .arg(path)
        .arg(source("named.c")));
}

/// One that is not the agent itself has to be started, and to burn.
fn runs(workload: &Workload, name: &str) {
    wait_for("the program", || {
        let stat = support::workload::text(Path::new(&format!("/proc/{}/stat", workload.pid())));
        stat.contains(&format!("({name}) R"))
    });
}

/// Samples of a process, its functions and their counts.
fn capture(agent: &Agent, pid: u32) -> Picture {
    let file = agent.path("x.folded");
    let pid = pid.to_string();
    let run = agent.run(["-p", &pid, "-F", "499", "-d", "1s", "--force", "-o", "x.folded"]);
    run.expect(0, &[]);
    Picture::folded_file(&file)
}

fn samples(picture: &Picture, frame: &str) -> u64 {
    picture.frames().get(frame).copied().unwrap_or_default()
}

/// Nearly all samples are in this function, and none in that one.
fn assert_only(picture: &Picture, function: &str, other: &str) {
    let total = picture.total();
    assert!(total > 20, "{total} samples");
    assert!(
        samples(picture, function) * 100 >= total * 95,
        "{function}: {:?}",
        picture.frames()
    );
    assert_eq!(samples(picture, other), 0, "{:?}", picture.frames());
}

/// The agent with all rights, and without those to open mapped files that are gone: then the path is tried.
fn agents(test: &str) -> Vec<(Agent, bool)> {
    let mut agents = vec![(Agent::new(), true)];
    if tools::find("SETPRIV", Some("setpriv")).is_some() {
        let bounds = ["setpriv", "--bounding-set", "-sys_admin,-checkpoint_restore"];
        agents.push((Agent::new().through(bounds), false));
    } else {
        tools::skip(test, "setpriv (Debian package util-linux)");
    }
    agents
}

#[test]
fn a_path_counts_from_the_root_of_its_process() {
    const TEST: &str = "a_path_counts_from_the_root_of_its_process";
    let Some(_alone) = alone(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    // Another program stands at the same path outside.
    let path = folder.path().join("prog");
    program(&path, "outside");
    let root = folder.path().join("root");
    program(&root.join(path.strip_prefix("/").unwrap()), "inside");
    let workload = Workload::of(Command::new("chroot").arg(&root).arg(&path));
    runs(&workload, "prog");
    for (agent, _) in agents(TEST) {
        assert_only(&capture(&agent, workload.pid()), "inside", "outside");
    }
}

#[test]
fn a_program_in_namespaces_of_its_own_has_its_names() {
    const TEST: &str = "a_program_in_namespaces_of_its_own_has_its_names";
    let Some(_alone) = alone(TEST) else { return };
    let may = Command::new("unshare").args(["-mpf", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        tools::skip(TEST, "unshare -mpf (a container that allows it)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The folder that the program lies in is another one outside.
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    program(&here.join("prog"), "outside");
    program(&there.join("prog"), "inside");
    let script = format!(
        "mount --bind {there} {here} && exec {here}/prog",
        there = there.display(),
        here = here.display()
    );
    // It does not end on SIGTERM, and takes the program along when it is killed.
    let shell = Workload::of(Command::new("unshare").args(["-mpf", "--kill-child", "sh", "-c", &script]));
    let children = format!("/proc/{0}/task/{0}/children", shell.pid());
    let child = || {
        support::workload::text(Path::new(&children))
            .trim()
            .parse::<u32>()
            .ok()
    };
    wait_for("the program", || {
        child().is_some_and(|pid| {
            support::workload::text(Path::new(&format!("/proc/{pid}/stat"))).contains("(prog) R")
        })
    });
    let pid = child().unwrap();
    for (agent, _) in agents(TEST) {
        assert_only(&capture(&agent, pid), "inside", "outside");
    }
}

#[test]
fn a_program_on_an_overlay_and_one_in_memory_have_their_names() {
    const TEST: &str = "a_program_on_an_overlay_and_one_in_memory_have_their_names";
    let Some(_alone) = alone(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["upper", "work", "merged"] {
        fs::create_dir(path(name)).unwrap();
    }
    program(&path("lower/prog"), "below");
    let overlay = format!(
        "cd {} && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && exec merged/prog",
        folder.path().display()
    );
    let may = Command::new("unshare")
        .args(["-m", "sh", "-c", &overlay.replace("exec merged/prog", "true")])
        .status();
    if may.is_ok_and(|status| status.success()) {
        let on_overlay = Workload::of(Command::new("unshare").args(["-m", "sh", "-c", &overlay]));
        runs(&on_overlay, "prog");
        assert_only(&capture(&Agent::new(), on_overlay.pid()), "below", "in_memory");
    } else {
        tools::skip(TEST, "mount -t overlay in unshare -m (a kernel with overlayfs)");
    }

    program(&path("prog"), "in_memory");
    let python = format!(
        "import os; fd = os.memfd_create('hidden'); os.write(fd, open('{}', 'rb').read()); os.execve(fd, ['prog'], {{}})",
        path("prog").display()
    );
    let in_memory = Workload::of(Command::new("python3").args(["-c", &python]));
    wait_for("the program", || {
        fs::read_link(format!("/proc/{}/exe", in_memory.pid()))
            .is_ok_and(|exe| exe.to_string_lossy().contains("memfd:hidden"))
    });
    assert_only(&capture(&Agent::new(), in_memory.pid()), "in_memory", "below");
}

#[test]
fn a_program_that_was_replaced_keeps_its_names_and_gets_no_others() {
    const TEST: &str = "a_program_that_was_replaced_keeps_its_names_and_gets_no_others";
    let Some(_alone) = alone(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, new) = (folder.path().join("prog"), folder.path().join("new"));
    for (agent, may_open_gone) in agents(TEST) {
        program(&path, "before");
        program(&new, "after_");
        let workload = Workload::start(&path, [""; 0]);
        runs(&workload, "prog");
        // In the middle of a capture, as packages are upgraded: by another file under the old name.
        let pid = workload.pid().to_string();
        let mut running = agent.start(["-p", &pid, "-F", "499", "-d", "2s", "-o", "y.folded"]);
        running.samples();
        std::thread::sleep(std::time::Duration::from_millis(500));
        fs::rename(&new, &path).unwrap();
        running.finish().expect(0, &[]);
        assert_only(&Picture::folded_file(&agent.path("y.folded")), "before", "after_");
        // And before one begins.
        let picture = capture(&agent, workload.pid());
        if may_open_gone {
            assert_only(&picture, "before", "after_");
        } else {
            assert_eq!(samples(&picture, "after_"), 0, "{:?}", picture.frames());
            let named_by_file = picture.frames().keys().any(|frame| frame.contains("prog"));
            assert!(named_by_file, "{:?}", picture.frames());
        }
    }
}

#[test]
fn a_library_that_was_deleted_has_its_names() {
    const TEST: &str = "a_library_that_was_deleted_has_its_names";
    let Some(_alone) = alone(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("spin.so");
    run(Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source("spin.c")));
    let workload = Workload::start(&compiled("loader"), [&library]);
    wait_for("the library", || {
        support::workload::text(Path::new(&format!("/proc/{}/maps", workload.pid()))).contains("spin.so")
    });
    fs::remove_file(&library).unwrap();
    let picture = capture(&Agent::new(), workload.pid());
    assert_only(&picture, "deeper", "nothing");
}

#[test]
fn processes_of_20_ms_have_names() {
    const TEST: &str = "processes_of_20_ms_have_names";
    let Some(_alone) = alone(TEST) else { return };
    let agent = Agent::new();
    program(&agent.path("brief"), "brief_work");
    // The same file each time, and one that is gone with its process.
    for start in ["./brief 20", "cp brief brief$i && ./brief$i 20; rm brief$i"] {
        let script = format!("i=0; while [ $i -lt 50 ]; do {start}; i=$((i+1)); done");
        let run = agent.run([
            "-F", "997", "--force", "-o", "x.folded", "--", "sh", "-c", &script,
        ]);
        run.expect(0, &[]);
        let picture = Picture::folded_file(&agent.path("x.folded"));
        let briefs = picture
            .processes()
            .into_iter()
            .filter(|name| name.starts_with("brief"));
        let all: u64 = briefs.map(|name| picture.of_process(name)).sum();
        let nameless =
            |frame: &str| frame == "[unknown]" || (frame.starts_with("brief") && frame != "brief_work");
        let unnamed: u64 = picture
            .frames()
            .iter()
            .filter(|(frame, _)| nameless(frame))
            .map(|(_, count)| count)
            .sum();
        eprintln!("{start}: {unnamed} of {all} samples have a frame without a name");
        assert!(
            samples(&picture, "brief_work") * 10 >= all * 9 && all > 200,
            "{all}"
        );
        assert!(
            unnamed * 100 <= all * 3,
            "{unnamed} of {all}: {:?}",
            picture.frames()
        );
    }
}
