//! A machine that refuses: what fails is told with its remedy, and nothing else is lost.
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
    fs::{self, File},
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use support::{
    agent::Agent,
    picture::{Otlp, Picture},
    receivers::{HttpReceiver, grpc_without_profiles},
    tools,
    workload::{alone, compiled, wait_for},
};

/// An agent in a mount namespace of its own, in which this shell script runs before it and may mount what it likes; the
/// folder `mounted` is there for it. After the agent it tells what is in that folder.
fn where_mounted(test: &str, script: &str) -> Option<Agent> {
    let may = Command::new("unshare").args(["-m", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        tools::skip(
            test,
            "unshare -m (Debian package util-linux, and a container that allows it)",
        );
        return None;
    }
    let script = format!("{script} || exit 99; \"$@\"; code=$?; ls -A mounted; exit $code");
    let agent = Agent::new().through(["unshare", "-m", "sh", "-c", &script, "sh"]);
    fs::create_dir(agent.path("mounted")).unwrap();
    Some(agent)
}

#[test]
fn a_read_only_folder_is_told_before_the_capture() {
    const TEST: &str = "a_read_only_folder_is_told_before_the_capture";
    let Some(_alone) = alone(TEST) else { return };
    let Some(agent) = where_mounted(TEST, "mount -t tmpfs -o ro none mounted") else {
        return;
    };
    let run = agent.run(["-d", "1h", "-o", "fine.folded", "-o", "mounted/x.svg"]);
    run.expect(1, &["mounted/x.svg", "read-only", "choose another folder"]);
    assert!(!run.stderr.contains("Sampling"), "{}", run.stderr);
    assert_eq!(agent.files(), ["mounted"]);
}

#[test]
fn a_full_disk_costs_the_file_on_it_and_no_other() {
    const TEST: &str = "a_full_disk_costs_the_file_on_it_and_no_other";
    let Some(_alone) = alone(TEST) else { return };
    let program = compiled("family");
    let command = ["--", program.to_str().unwrap(), "100", "1"];
    // Room for the beginning of a file.
    let Some(agent) = where_mounted(TEST, "mount -t tmpfs -o size=4k none mounted") else {
        return;
    };
    let run = agent.run([&["-o", "mounted/x.svg", "-o", "fine.folded"][..], &command].concat());
    run.expect(
        1,
        &[
            "no space left for mounted/x.svg",
            "nothing was written",
            "fine.folded",
            "samples of",
        ],
    );
    assert_eq!(run.stdout, "", "nothing is left on it");
    assert!(Picture::folded_file(&agent.path("fine.folded")).total() > 0);

    // No room for a file at all: the capture need not begin.
    let agent = where_mounted(TEST, "mount -t tmpfs -o nr_inodes=1 none mounted").unwrap();
    let run = agent.run([&["-o", "fine.folded", "-o", "mounted/x.svg"][..], &command].concat());
    run.expect(1, &["no space left for mounted/x.svg", "another disk"]);
    assert!(!run.stderr.contains("Sampling"), "{}", run.stderr);
    assert_eq!(agent.files(), ["mounted"]);

    // A full standard output, unlike a closed one, is a failure.
    let agent = Agent::new();
    let mut process = agent.command([&["-o", "-", "-o", "fine.folded"][..], &command].concat());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let run = agent.start_command(process.stdout(full)).finish();
    run.expect(1, &["no space left for standard output", "fine.folded"]);
    assert!(Picture::folded_file(&agent.path("fine.folded")).total() > 0);
}

#[test]
fn a_kernel_without_type_information_is_named() {
    const TEST: &str = "a_kernel_without_type_information_is_named";
    let Some(_alone) = alone(TEST) else { return };
    let Some(agent) = where_mounted(TEST, "mount -t tmpfs none /sys/kernel/btf") else {
        return;
    };
    let run = agent.run(["-d", "1h", "-o", "x.svg"]);
    run.expect(4, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"]);
    assert_eq!(agent.files(), ["mounted"]);
}

/// Has a system call fail with an error in what this command runs.
#[expect(
    unsafe_code,
    reason = "std offers no other way to run code between fork and exec"
)]
fn forbid(command: &mut Command, system_call: libc::c_long, errno: i32) {
    use std::os::unix::process::CommandExt as _;

    let instruction = |code: u32, k: u32, jt: u8| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf: 0,
        k,
    };
    let mut filter = [
        // The number of the call, then: this one?
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            u32::try_from(system_call).unwrap(),
            1,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap(),
            0,
        ),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: `program` and the filter that it points to live until the call has copied both.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe.
    unsafe { command.pre_exec(install) };
}

#[test]
fn a_kernel_without_perf_events_is_named() {
    let Some(_alone) = alone("a_kernel_without_perf_events_is_named") else {
        return;
    };
    // The second is what the default filters of containers say.
    for (errno, code, words) in [
        (libc::ENOSYS, 4, &["CONFIG_PERF_EVENTS=y", "seccomp"][..]),
        (libc::EPERM, 3, &["perf_event_open", "seccomp"]),
    ] {
        let agent = Agent::new();
        let mut command = agent.command(["-d", "1h", "-o", "x.svg", "--", "true"]);
        forbid(&mut command, libc::SYS_perf_event_open, errno);
        let run = agent.start_command(&mut command).finish();
        run.expect(code, words);
        assert!(!run.stderr.contains("Sampling"), "{}", run.stderr);
        assert_eq!(agent.files(), [""; 0]);
    }
}

#[test]
fn a_container_without_bpf_is_named() {
    let Some(_alone) = alone("a_container_without_bpf_is_named") else {
        return;
    };
    for (errno, code) in [(libc::ENOSYS, 4), (libc::EPERM, 3)] {
        let agent = Agent::new();
        let mut command = agent.command(["-d", "1h", "-o", "x.svg", "--", "true"]);
        forbid(&mut command, libc::SYS_bpf, errno);
        let run = agent.start_command(&mut command).finish();
        run.expect(code, &["bpf", "seccomp"]);
        assert_eq!(agent.files(), [""; 0]);
    }
}

/// Runs a capture that is to be sent to `endpoint` and is to fail at that; the files are there all the same.
fn sent_in_vain(endpoint: &str, words: &[&str]) {
    let agent = Agent::new();
    let program = compiled("family");
    let command = ["--", program.to_str().unwrap(), "100", "1"];
    let run = agent.run(
        [
            &["--otlp-endpoint", endpoint, "-o", "out.folded", "-o", "out.svg"][..],
            &command,
        ]
        .concat(),
    );
    run.expect(1, words);
    // The summary is no less complete.
    run.expect(1, &[endpoint, "out.folded", "out.svg", "\nlost: 0\n"]);
    assert!(Picture::folded_file(&agent.path("out.folded")).total() > 0);
    assert_eq!(agent.files(), ["out.folded", "out.svg"]);
}

#[test]
fn a_receiver_that_is_not_there_costs_no_file() {
    let Some(_alone) = alone("a_receiver_that_is_not_there_costs_no_file") else {
        return;
    };
    // A port that was free a moment ago, and refuses.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let words = ["cannot reach", "is a Collector listening there?", "not exported"];
    sent_in_vain(&format!("http://{address}"), &words);
}

#[test]
fn a_receiver_that_takes_no_profiles_costs_no_file() {
    let Some(_alone) = alone("a_receiver_that_takes_no_profiles_costs_no_file") else {
        return;
    };
    let words = [
        "takes no profiles",
        "--feature-gates=+service.profilesSupport",
        "service.pipelines.profiles",
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(async { grpc_without_profiles() });
    sent_in_vain(&format!("http://{address}"), &words);

    let receiver = HttpReceiver::start("404 Not Found", Vec::new());
    let agent = Agent::new();
    let program = compiled("family");
    let run = agent.run([
        "--otlp-endpoint",
        &format!("http://{}", receiver.address),
        "--otlp-protocol",
        "http/protobuf",
        "-o",
        "out.folded",
        "--",
        program.to_str().unwrap(),
        "100",
        "1",
    ]);
    run.expect(1, &words);
    assert_eq!(agent.files(), ["out.folded"]);
}

#[test]
fn a_receiver_that_never_answers_is_not_waited_for_against_ones_will() {
    let Some(_alone) = alone("a_receiver_that_never_answers_is_not_waited_for_against_ones_will") else {
        return;
    };
    let receiver = HttpReceiver::start("", Vec::new());
    let agent = Agent::new();
    let program = compiled("family");
    let started = Instant::now();
    let running = agent.start([
        "--otlp-endpoint",
        &format!("http://{}", receiver.address),
        "--otlp-protocol",
        "http/protobuf",
        "-o",
        "out.otlp",
        "--",
        program.to_str().unwrap(),
        "100",
        "1",
    ]);
    wait_for("the request", || !receiver.requests.lock().unwrap().is_empty());
    running.send(Signal::INT);
    running.finish().expect(130, &["stopped sending to http://"]);
    assert!(started.elapsed() < Duration::from_secs(60));
    // What was sent is what was written, which came first.
    let sent = Otlp::decode(&receiver.requests.lock().unwrap()[0].body);
    assert_eq!(
        Picture::otlp(&sent),
        Picture::otlp(&Otlp::read(&agent.path("out.otlp")))
    );
}
