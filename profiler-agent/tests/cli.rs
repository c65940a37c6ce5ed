//! The command line as a person meets it: what it explains, refuses and names.
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
    os::unix::fs::{MetadataExt as _, symlink},
    process::{Command, Stdio},
    sync::mpsc,
};

use support::{
    agent::Agent,
    golden, tools,
    workload::{Workload, alone, compiled, root, text, wait_for},
};

/// What every refusal leaves behind.
const NOTHING: [&str; 0] = [];

#[test]
fn help_is_what_was_last_agreed_on() {
    for (argument, file) in [("-h", "cli/short.txt"), ("--help", "cli/long.txt")] {
        let run = Agent::new().variable("COLUMNS", "100").run([argument]);
        run.expect(0, &[]);
        golden::check(file, run.stdout.as_bytes());
        assert_eq!(run.stderr, "");
    }
}

#[test]
fn version_is_that_of_the_package() {
    let run = Agent::new().run(["--version"]);
    run.expect(0, &[]);
    assert_eq!(
        run.stdout,
        format!("profiler-agent {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_is_told_before_anything_is_done() {
    for (arguments, words) in [
        (&["-F", "0"][..], &["--frequency", "0 is not in 1.."][..]),
        (&["-F", "often"], &["--frequency"]),
        (&["-p", "0"], &["--pid"]),
        (&["-p", "nginx"], &["--pid"]),
        (&["-d", "30"], &["30s"]),
        (
            &["-o", "x.png"],
            &["x.png", ".svg", ".folded", ".pb.gz", ".otlp", "`-`"],
        ),
        (&["-o", "x.svg", "-o", "x.svg"], &["x.svg is given twice"]),
        (
            &["--otlp-endpoint", "collector"],
            &[
                "--otlp-endpoint",
                "\"collector\" is not a URL",
                "http://localhost:4317",
            ],
        ),
        (
            &["--otlp-endpoint", "ftp://collector:4317"],
            &["--otlp-endpoint", "http://localhost:4317"],
        ),
        (
            &["--otlp-endpoint", "http://collector:4317", "--interval", "1ms"],
            &["--interval", "1s or longer"],
        ),
        (&["-o", "x"], &[".svg", ".folded"]),
        (
            &["-o", "x.svg", "-p", "1", "--", "true"],
            &["cannot be used with"],
        ),
        (&["--no-such-flag"], &["--no-such-flag", "--help"]),
    ] {
        let agent = Agent::new();
        let run = agent.run(arguments);
        run.expect(2, words);
        assert_eq!(run.stdout, "", "{arguments:?}");
        assert_eq!(agent.files(), NOTHING, "{arguments:?}");
    }
}

#[test]
fn a_rate_above_the_kernels_limit_names_the_limit_and_its_switch() {
    if !root("a_rate_above_the_kernels_limit_names_the_limit_and_its_switch") {
        return;
    }
    let limit = text("/proc/sys/kernel/perf_event_max_sample_rate".as_ref());
    let asked = (limit.trim().parse::<u64>().unwrap() + 1).to_string();
    let agent = Agent::new();
    let run = agent.run(["-F", &asked, "-d", "1s", "-o", "x.svg"]);
    let remedy = format!("sysctl kernel.perf_event_max_sample_rate={asked}");
    run.expect(2, &["-F", limit.trim(), &remedy]);
    assert!(!run.stderr.contains("Sampling"), "{}", run.stderr);
    assert_eq!(agent.files(), NOTHING);
}

#[test]
fn a_missing_privilege_names_itself_and_the_command_that_gives_it() {
    const TEST: &str = "a_missing_privilege_names_itself_and_the_command_that_gives_it";
    if !root(TEST) {
        return;
    }
    let Some(setpriv) = tools::find("SETPRIV", Some("setpriv")) else {
        tools::skip(TEST, "setpriv (Debian package util-linux)");
        return;
    };
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"].map(Into::into);
    let through = [setpriv.into_os_string()].into_iter().chain(nobody);
    let run = Agent::new().for_every_user().through(through).run(["-d", "1s"]);
    run.expect(
        3,
        &[
            "CAP_BPF",
            "CAP_PERFMON",
            "sudo setcap cap_bpf,cap_perfmon",
            "+ep /",
        ],
    );
    assert_eq!(run.stdout, "");
}

#[test]
fn a_pid_that_is_no_process_says_what_it_is() {
    if !root("a_pid_that_is_no_process_says_what_it_is") {
        return;
    }
    let check = |pid: u32, words: &[&str]| {
        let agent = Agent::new();
        let run = agent.run(["-p", &pid.to_string(), "-d", "10s", "-o", "x.svg", "-o", "-"]);
        run.expect(1, words);
        assert!(run.stderr.contains(&pid.to_string()), "{}", run.stderr);
        assert_eq!(run.stdout, "");
        assert_eq!(agent.files(), NOTHING);
    };
    // Above the limit of every kernel.
    check(4_194_305, &["no process", "pgrep"]);
    // One that has ended, and one whose parent has not yet taken note.
    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id();
    wait_for("the end of `true`", || {
        text(format!("/proc/{pid}/stat").as_ref()).contains(") Z ")
    });
    check(pid, &["has ended"]);
    ended.wait().unwrap();
    check(pid, &["no process"]);
    // A thread of this process.
    let (tid_sender, tid) = mpsc::sync_channel(1);
    let (end, ended) = mpsc::sync_channel::<()>(0);
    let thread = std::thread::spawn(move || {
        tid_sender
            .send(rustix::thread::gettid().as_raw_nonzero().get())
            .unwrap();
        let _ = ended.recv();
    });
    let tid = u32::try_from(tid.recv().unwrap()).unwrap();
    check(tid, &["is a thread", &format!("-p {}", std::process::id())]);
    drop(end);
    thread.join().unwrap();
}

#[test]
fn a_command_that_cannot_run_is_named() {
    let Some(_alone) = alone("a_command_that_cannot_run_is_named") else {
        return;
    };
    let agent = Agent::new();
    let run = agent.run(["-o", "x.svg", "--", "/no/such/program", "-x"]);
    run.expect(1, &["cannot run `/no/such/program`", "No such file"]);
    assert_eq!(agent.files(), NOTHING);
}

#[test]
fn what_is_in_the_way_of_a_file_is_told_before_the_capture() {
    if !root("what_is_in_the_way_of_a_file_is_told_before_the_capture") {
        return;
    }
    let agent = Agent::new();
    fs::write(agent.path("old.svg"), "old").unwrap();
    fs::create_dir(agent.path("folder.svg")).unwrap();
    symlink("nowhere", agent.path("link.folded")).unwrap();
    for (output, words) in [
        ("old.svg", &["old.svg exists already", "--force"][..]),
        ("folder.svg", &["folder.svg is not a regular file"]),
        ("link.folded", &["link.folded exists already"]),
        ("missing/x.svg", &["does not exist", "mkdir -p missing"]),
        ("old.svg/x.svg", &["old.svg"]),
    ] {
        let run = agent.run(["-d", "1h", "-o", "fine.folded", "-o", output]);
        run.expect(1, words);
        assert!(!run.stderr.contains("Sampling"), "{}", run.stderr);
        assert_eq!(agent.files(), ["folder.svg", "link.folded", "old.svg"]);
        assert_eq!(text(&agent.path("old.svg")), "old");
    }
}

#[test]
fn force_replaces_a_file_and_sudo_gives_it_to_its_caller() {
    let Some(_alone) = alone("force_replaces_a_file_and_sudo_gives_it_to_its_caller") else {
        return;
    };
    let agent = Agent::new()
        .variable("SUDO_UID", "4242")
        .variable("SUDO_GID", "4243");
    fs::write(agent.path("old.svg"), "old").unwrap();
    let program = compiled("family");
    let run = agent.run([
        "--force",
        "-o",
        "old.svg",
        "--",
        program.to_str().unwrap(),
        "100",
        "1",
    ]);
    run.expect(0, &["old.svg"]);
    assert!(text(&agent.path("old.svg")).contains("<svg"));
    let owner = |name: &str| {
        let metadata = fs::metadata(agent.path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(owner("old.svg"), (4242, 4243));

    // Without a name the picture goes to a folder of its own, which is the caller's too.
    let run = agent.run(["--", program.to_str().unwrap(), "100", "1"]);
    run.expect(0, &["flamegraphs/family-"]);
    let pictures = support::agent::files(&agent.path("flamegraphs"));
    let [picture] = &pictures[..] else {
        panic!("{pictures:?}")
    };
    let (name, time) = picture.rsplit_once('-').unwrap();
    assert!(
        name.strip_prefix("family-").unwrap().parse::<u32>().is_ok(),
        "{picture}"
    );
    assert_eq!(
        (time.len(), &time[8..9], &time[15..]),
        ("20261121T041153Z.svg".len(), "T", "Z.svg"),
        "{picture}"
    );
    assert_eq!(owner("flamegraphs"), (4242, 4243));
    assert_eq!(owner(&format!("flamegraphs/{picture}")), (4242, 4243));
}

#[test]
fn an_idle_target_is_no_success_and_leaves_no_file() {
    let Some(_alone) = alone("an_idle_target_is_no_success_and_leaves_no_file") else {
        return;
    };
    let agent = Agent::new();
    let idle = Workload::of(Command::new("sleep").arg("60").stdin(Stdio::null()));
    // Past the start of `sleep`, which is no sleep.
    std::thread::sleep(std::time::Duration::from_millis(300));
    for outputs in [&["-o", "x.svg", "-o", "-"][..], &[]] {
        let pid = idle.pid().to_string();
        let run = agent.run([&["-p", &pid, "-d", "300ms"], outputs].concat());
        run.expect(1, &["no samples of sleep", "slept", "-d"]);
        assert_eq!(run.stdout, "");
        assert_eq!(agent.files(), NOTHING);
    }
}
