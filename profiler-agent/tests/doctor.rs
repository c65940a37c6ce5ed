//! What `doctor` finds, as root and with less; and that the symbolizer works with less too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test that fails fails"
)]

mod support;

use std::path::Path;

use profiler_agent::{
    doctor::{Section, Verdict, symbolizer},
    export::otlp::endpoint::Protocol,
    symbols::{Client, Layer},
};

use support::{
    agent::{Agent, PROGRAM, copy_to_run},
    collector::{Collector, TO_FILE},
    picture::Picture,
    tools,
    workload::{Workload, alone, compiled, root},
};

/// The layers that need no privilege.
const WITHOUT_PRIVILEGE: [Layer; 5] = [
    Layer::Limits,
    Layer::Capabilities,
    Layer::NoNewPrivileges,
    Layer::Parent,
    Layer::SystemCalls,
];

#[test]
fn root_confines_the_symbolizer_in_every_way() {
    if !root("root_confines_the_symbolizer_in_every_way") {
        return;
    }
    let client = Client::start(Path::new(PROGRAM)).unwrap();
    assert_eq!(client.confinement().missing, []);
    let status = support::workload::text(Path::new(&format!("/proc/{}/status", client.pid())));
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} is missing:\n{status}");
    }
    for namespace in ["pid", "mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&client.pid().to_string()), of("self"), "{namespace}");
    }
    let root: Vec<_> = std::fs::read_dir(format!("/proc/{}/root", client.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["proc"]);
}

#[test]
fn the_symbolizer_ends_with_its_agent() {
    let client = Client::start(Path::new(PROGRAM)).unwrap();
    let pid = client.pid();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(client);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    // An agent that is killed has no time for that.
    let agent = Agent::new();
    let Some(_alone) = alone("the_symbolizer_ends_with_its_agent") else {
        return;
    };
    let mut running = agent.start(["-d", "1m", "-o", "x.folded"]);
    running.samples();
    let pid = running.pid();
    support::workload::wait_for("the symbolizer", || !support::workload::children(pid).is_empty());
    let children = support::workload::children(pid);
    running.send(rustix::process::Signal::KILL);
    support::workload::wait_for("its end", || {
        // What the test harness has inherited may be a zombie until it is waited for.
        children.iter().all(|child| {
            std::fs::read_to_string(format!("/proc/{child}/stat"))
                .map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
        })
    });
}

#[test]
fn nothing_that_must_not_be_possible_is() {
    let Section { checks, .. } = symbolizer(Path::new(PROGRAM));
    assert!(checks.len() > 25, "{checks:?}");
    for check in &checks {
        assert_ne!(check.verdict, Verdict::Broken, "{check:?}");
    }
    let trials = checks.iter().filter(|check| check.name.starts_with("may not "));
    assert!(trials.clone().count() > 20);
    assert!(trials.clone().all(|check| check.verdict == Verdict::Fine));
    Agent::new().run(["doctor"]).expect(0, &[]);
}

/// Runs the agent without CAP_SYS_ADMIN, as in a container.
fn without_namespaces(test: &str) -> Option<Agent> {
    if !root(test) {
        return None;
    }
    if tools::find("SETPRIV", Some("setpriv")).is_none() {
        tools::skip(test, "setpriv (Debian package util-linux)");
        return None;
    }
    Some(Agent::new().through(["setpriv", "--bounding-set", "-sys_admin"]))
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let Some(agent) = without_namespaces("what_is_missing_is_named_with_its_remedy") else {
        return;
    };
    let run = agent.run(["doctor"]);
    run.expect(0, &[]);
    for words in [
        "missing  pid namespace",
        "missing  own root",
        "CAP_SYS_ADMIN whose seccomp profile",
        "ok       seccomp",
        "ok       may not read /etc/passwd",
        "the agent works, without what is missing",
    ] {
        assert!(
            run.stdout.contains(words),
            "`{words}` is missing:\n{}",
            run.stdout
        );
    }
    for layer in WITHOUT_PRIVILEGE {
        let line = format!("ok       {}", layer.describe().0);
        assert!(run.stdout.contains(&line), "{line}");
    }
}

#[test]
fn names_are_found_without_namespaces_too() {
    const TEST: &str = "names_are_found_without_namespaces_too";
    let Some(_alone) = alone(TEST) else { return };
    let Some(agent) = without_namespaces(TEST) else {
        return;
    };
    let report = agent.path("report");
    let workload = Workload::start(
        &compiled("split"),
        [report.as_os_str(), "3600000".as_ref(), "1".as_ref()],
    );
    let pid = workload.pid().to_string();
    agent
        .run(["-p", &pid, "-d", "2s", "-o", "x.folded"])
        .expect(0, &[]);
    let picture = Picture::folded_file(&agent.path("x.folded"));
    for part in support::picture::PARTS {
        assert!(
            picture.frames().contains_key(part),
            "{part}: {:?}",
            picture.frames()
        );
    }
}

#[test]
fn a_root_that_cannot_be_taken_leaves_the_old_one_and_closes_it() {
    const TEST: &str = "a_root_that_cannot_be_taken_leaves_the_old_one_and_closes_it";
    if !root(TEST) {
        return;
    }
    let may = std::process::Command::new("unshare")
        .args(["-m", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        tools::skip(TEST, "unshare -m (a container that allows it)");
        return;
    }
    // In a chroot that is no mount of its own, pivot_root is refused after the new root has been mounted over /proc.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("agent");
    copy_to_run(Path::new(PROGRAM), &program);
    let script = r#"
        cd "$1"; mkdir usr proc dev sys; ln -s usr/lib usr/lib64 usr/bin .
        mount --bind /usr usr && mount --rbind /proc proc && mount --rbind /sys sys && mount --bind /dev dev || exit 99
        chroot . /agent doctor"#;
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for words in [
        "missing  own root",
        "Landlock stands in for it",
        "ok       landlock",
        "ok       may not read /etc/passwd",
    ] {
        assert!(text.contains(words), "`{words}` is missing:\n{text}");
    }
}

#[test]
fn who_may_nothing_is_told_what_to_do() {
    const TEST: &str = "who_may_nothing_is_told_what_to_do";
    if !root(TEST) {
        return;
    }
    if tools::find("SETPRIV", Some("setpriv")).is_none() {
        tools::skip(TEST, "setpriv (Debian package util-linux)");
        return;
    }
    let agent = Agent::new().through(["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]);
    let run = agent.run(["doctor"]);
    run.expect(1, &[]);
    for words in [
        "BROKEN   CAP_BPF",
        "sudo setcap cap_bpf,cap_perfmon",
        "missing  CAP_SYSLOG",
        "BROKEN   clock",
        "BROKEN   programs and rings",
        "ok       BTF",
        "something is broken",
    ] {
        assert!(
            run.stdout.contains(words),
            "`{words}` is missing:\n{}",
            run.stdout
        );
    }

    // The same for programs.
    let run = agent.run(["doctor", "--json"]);
    run.expect(1, &[]);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found["verdict"], "broken");
    let checks = found["sections"][0]["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(check("CAP_PERFMON")["verdict"], "broken");
    assert!(check("CAP_PERFMON")["remedy"].as_str().unwrap().contains("sudo"));
    assert_eq!(check("BTF")["verdict"], "fine");
}

#[test]
fn in_a_pid_namespace_of_its_own_it_says_that_names_are_missing() {
    const TEST: &str = "in_a_pid_namespace_of_its_own_it_says_that_names_are_missing";
    if !root(TEST) {
        return;
    }
    let unshared = ["unshare", "--pid", "--fork", "--mount-proc"];
    let may = std::process::Command::new(unshared[0])
        .args(&unshared[1..])
        .arg("true")
        .status();
    if !may.is_ok_and(|status| status.success()) {
        tools::skip(TEST, "unshare --pid (a container that allows it)");
        return;
    }
    let run = Agent::new().through(unshared).run(["doctor"]);
    run.expect(1, &[]);
    for words in ["BROKEN   pid namespace", "hostPID: true"] {
        assert!(
            run.stdout.contains(words),
            "`{words}` is missing:\n{}",
            run.stdout
        );
    }
}

/// Answers every request over HTTP with a status, until the test ends.
fn answers(status: &'static str) -> String {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
    });
    format!("http://{address}")
}

#[test]
fn a_receiver_is_asked_whether_it_takes_profiles() {
    if !root("a_receiver_is_asked_whether_it_takes_profiles") {
        return;
    }
    for (endpoint, code, words) in [
        (answers("200 OK"), 0, "took an empty request"),
        (
            answers("404 Not Found"),
            1,
            "--feature-gates=+service.profilesSupport",
        ),
        (answers("401 Unauthorized"), 1, "--otlp-header"),
        ("http://127.0.0.1:1".into(), 1, "is a Collector listening there?"),
    ] {
        let protocol = ["--otlp-protocol", "http/protobuf"];
        let arguments = ["--otlp-endpoint", &endpoint, protocol[0], protocol[1], "doctor"];
        let run = Agent::new().run(arguments);
        run.expect(code, &[]);
        assert!(
            run.stdout.contains(words),
            "`{words}` is missing:\n{}",
            run.stdout
        );
    }
    // A real Collector, with a pipeline of profiles and without one.
    let traces = "traces: {receivers: [otlp], exporters: [nop]}";
    for (pipeline, code, words) in [
        (TO_FILE, 0, "took an empty request"),
        (traces, 1, "--feature-gates=+service.profilesSupport"),
    ] {
        let Some(collector) = Collector::start("a_receiver_is_asked_whether_it_takes_profiles", pipeline)
        else {
            return;
        };
        for protocol in [Protocol::Grpc, Protocol::Http] {
            let endpoint = String::from(collector.endpoint(protocol).url().as_str());
            let endpoint = endpoint.trim_end_matches("/v1development/profiles");
            let run = Agent::new().run([
                "--otlp-endpoint",
                endpoint,
                "--otlp-protocol",
                protocol.name(),
                "doctor",
            ]);
            assert!(
                run.stdout.contains(words),
                "`{words}` is missing:\n{}",
                run.stdout
            );
            assert_eq!(run.code, Some(code));
        }
    }
}
