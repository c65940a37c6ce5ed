//! What is in deploy/: it means what the code means, other people's checkers take it, and it runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use profiler_agent::{export::otlp::endpoint::Protocol, kernel::capabilities::CAPABILITIES};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    agent::{Agent, PROGRAM, copy_to_run},
    collector::{Site, TO_FILE, events},
    tools,
    workload::{Workload, alone, children, compiled, send, text, wait_for},
};

const UNIT: &str = "systemd/profiler-agent.service";
const DAEMON_SET: &str = "kubernetes/profiler-agent.yaml";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The capabilities of the code, in capitals, without `CAP_`.
fn capabilities() -> BTreeSet<String> {
    CAPABILITIES
        .iter()
        .map(|capability| capability.name.trim_start_matches("cap_").to_uppercase())
        .collect()
}

#[test]
fn each_asks_for_the_capabilities_of_the_code() {
    let unit = fs::read_to_string(file(UNIT)).unwrap();
    for key in ["CapabilityBoundingSet=", "AmbientCapabilities="] {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let found: BTreeSet<String> = line
            .split(' ')
            .map(|name| name.trim_start_matches("CAP_").to_owned())
            .collect();
        assert_eq!(found, capabilities(), "{key}");
    }
    let set = fs::read_to_string(file(DAEMON_SET)).unwrap();
    let list = set.split("add: [").nth(1).unwrap().split(']').next().unwrap();
    let found: BTreeSet<String> = list
        .split(", ")
        .map(|name| name.trim_matches('"').to_owned())
        .collect();
    assert_eq!(found, capabilities());
    let podman = text(&file("../docs/deploy.md"));
    let list = podman.split("--cap-add=").nth(1).unwrap();
    let found: BTreeSet<String> = list
        .split([' ', '\n'])
        .next()
        .unwrap()
        .split(',')
        .map(str::to_owned)
        .collect();
    assert_eq!(found, capabilities(), "podman");
}

/// The value of a key of the unit.
fn of_unit(key: &str) -> String {
    let unit = text(&file(UNIT));
    let value = unit.lines().find_map(|line| line.strip_prefix(key));
    value.unwrap_or_else(|| panic!("{key}")).to_owned()
}

#[test]
fn each_gives_the_end_its_time() {
    // Tables, names, the shutdown timeout, metrics; and a request that is under way.
    let longest = 10 + 10 + 10 + 2 + 10;
    let of_set = text(&file(DAEMON_SET));
    let of_set = of_set.split("terminationGracePeriodSeconds: ").nth(1).unwrap();
    for seconds in [of_unit("TimeoutStopSec="), of_set.lines().next().unwrap().into()] {
        assert!(seconds.parse::<u32>().unwrap() > longest, "{seconds}");
    }
}

#[test]
fn the_unit_can_bind_the_socket_of_the_documents() {
    let asking = text(&file("../docs/asking.md"));
    let socket = asking.split("--serve unix:").nth(1).unwrap();
    let folder = format!("/run/{}/", of_unit("RuntimeDirectory="));
    assert!(socket.starts_with(&folder), "{folder}");
}

#[test]
fn no_label_hides_the_processes_of_the_host() {
    let set = text(&file(DAEMON_SET));
    assert!(set.contains("seLinuxOptions:\n              type: spc_t\n"));
    let podman = text(&file("../docs/deploy.md"));
    assert!(podman.contains("--security-opt label=disable"));
}

#[test]
fn an_image_is_built_of_the_sources_alone() {
    let [kept_out, ignored] = [".dockerignore", ".gitignore"].map(|name| text(&file("..").join(name)));
    let builds = ignored.lines().filter(|line| line.ends_with("/target/"));
    let names = builds.map(|line| line.trim_matches('/')).chain([".git"]);
    for name in names {
        assert!(kept_out.lines().any(|line| line == name), "{name}");
    }
}

#[test]
fn systemd_takes_the_unit_and_finds_it_closed() {
    let test = "systemd_takes_the_unit_and_finds_it_closed";
    let Some(analyze) = tools::find("SYSTEMD_ANALYZE", Some("systemd-analyze")) else {
        return tools::skip(test, "systemd-analyze (Debian package systemd)");
    };
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("profiler-agent.service");
    let text = fs::read_to_string(file(UNIT)).unwrap();
    // It looks whether the program is there.
    fs::write(&unit, text.replace("/usr/bin/profiler-agent", "/bin/true")).unwrap();
    let verified = Command::new(&analyze).arg("verify").arg(&unit).output().unwrap();
    let words = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && words.is_empty(), "{words}");
    // From 0, nothing is exposed, to 10, everything; in tenths.
    let secure = Command::new(&analyze)
        .args(["security", "--offline=true", "--threshold=35"])
        .arg(&unit)
        .output()
        .unwrap();
    assert!(
        secure.status.success(),
        "{}",
        String::from_utf8_lossy(&secure.stdout)
    );
}

#[test]
fn kubernetes_takes_every_object() {
    let test = "kubernetes_takes_every_object";
    let Some(python) = tools::find("PROFILER_TEST_PYTHON", None) else {
        return tools::skip(test, "PROFILER_TEST_PYTHON, a Python with kubernetes-validate");
    };
    let validate = |path: &Path, kubernetes: &str| {
        let output = Command::new(&python)
            .args(["-m", "kubernetes_validate", "--strict", "-k", kubernetes])
            .arg(path)
            .output()
            .unwrap();
        let words = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), words)
    };
    for kubernetes in ["1.30.0", "1.37.0"] {
        let (is_valid, words) = validate(&file(DAEMON_SET), kubernetes);
        assert!(is_valid, "{words}");
    }
    // It can fail.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    let text = fs::read_to_string(file(DAEMON_SET)).unwrap();
    fs::write(&wrong, text.replace("hostPID:", "hostPid:")).unwrap();
    assert!(!validate(&wrong, "1.37.0").0);
}

/// What is said to a service manager: READY=1, WATCHDOG=1, STOPPING=1.
fn said(manager: &UnixDatagram, word: &str) -> bool {
    let mut message = [0; 512];
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match manager.recv(&mut message) {
            Ok(length) => {
                let text = std::str::from_utf8(&message[..length]).unwrap();
                if text.lines().any(|line| line == word) {
                    return true;
                }
            }
            Err(error) => panic!("{word}: {error}"),
        }
    }
    false
}

/// Whether a text is in any of the requests.
fn has(requests: &[Vec<u8>], text: &str) -> bool {
    requests
        .iter()
        .any(|request| request.windows(text.len()).any(|bytes| bytes == text.as_bytes()))
}

/// Fails unless functions of the kernel and of `split` have names.
fn assert_named(requests: &[Vec<u8>]) {
    assert!(
        has(requests, "asm_sysvec_apic_timer_interrupt") || has(requests, "do_syscall_64"),
        "no kernel names"
    );
    assert!(has(requests, "split"), "no names of the program");
}

/// As the unit runs it, a user without privileges but for the six; as a container does, root without all others.
#[test]
fn the_six_capabilities_are_enough() {
    let test = "the_six_capabilities_are_enough";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    if tools::find("SETPRIV", Some("setpriv")).is_none() {
        return tools::skip(test, "setpriv (Debian package util-linux)");
    }
    let names: Vec<String> = capabilities()
        .iter()
        .map(|name| format!("+{}", name.to_lowercase()))
        .collect();
    let six = format!("-all,{}", names.join(","));
    let user: Vec<&str> = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps",
        &six,
        "--ambient-caps",
        &six,
        "--bounding-set",
        &six,
    ]
    .to_vec();
    let container = [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set",
        &six,
    ]
    .to_vec();
    for through in [user, container] {
        let collector = site.start(TO_FILE, "", "");
        let workload = Workload::start(&compiled("split"), ["/dev/null", "60000", "1"]);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        for path in [folder.path(), &socket, &state] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let agent = Agent::new()
            .for_every_user()
            .through(through)
            .variable("NOTIFY_SOCKET", socket.to_str().unwrap())
            .variable("WATCHDOG_USEC", "2000000")
            .variable("STATE_DIRECTORY", state.to_str().unwrap());
        let url = site.url(Protocol::Grpc);
        let mut running = agent.start(["--otlp-endpoint", &url, "--interval", "1s", "--serve", "off"]);
        running.samples();
        assert!(said(&manager, "READY=1"));
        let status = text(Path::new(&format!("/proc/{}/status", running.pid())));
        // capability.h: BPF, PERFMON, SYS_PTRACE, SYSLOG, DAC_READ_SEARCH, CHECKPOINT_RESTORE.
        let mask: u64 = [39, 38, 19, 34, 2, 40]
            .map(|number| 1 << number)
            .into_iter()
            .sum();
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert!(
                status.contains(&format!("{set}:\t{mask:016x}")),
                "{set} is not {mask:016x}:\n{status}"
            );
        }
        wait_for("a profile of another user's program", || {
            // Once a second: a socket that nobody reads is full after ten words.
            assert!(said(&manager, "WATCHDOG=1"));
            let requests = collector.written();
            let mut events = requests.iter().flat_map(|request| events(request));
            events.any(|event| event.pid == workload.pid())
        });
        // As who stops a whole container: every process of it is asked, its symbolizer first.
        let children = children(running.pid());
        assert!(!children.is_empty());
        for child in children {
            send(child, Signal::TERM);
        }
        running.send(Signal::TERM);
        assert!(said(&manager, "STOPPING=1"));
        let run = running.finish();
        run.expect(0, &["delivery: ", " 0 spooled"]);
        assert!(!run.stderr.contains("the symbolizer ended"), "{}", run.stderr);
        // Nothing is missing that it would warn of, and functions of the kernel and of the program have names.
        assert!(!run.stderr.contains("without CAP_"), "{}", run.stderr);
        assert!(!run.stderr.contains("cannot keep profiles"), "{}", run.stderr);
        assert!(state.join("spool").exists());
        let requests = collector.finish();
        assert_named(&requests);
    }
}

/// The objects of the DaemonSet's file.
fn objects(python: &Path) -> Vec<Value> {
    const TO_JSON: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let output = Command::new(python)
        .args(["-c", TO_JSON])
        .stdin(fs::File::open(file(DAEMON_SET)).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The agent's container as a runtime gets it: what the DaemonSet says, and for the rest what containerd adds. The programs and libraries of
/// this host stand for those of an image. It is in the network of the host, and under no seccomp filter: which one is the runtime's own.
fn bundle(daemon_set: &Value, args: &[&str], mounts: &[(&Path, &str, bool)]) -> Value {
    let pod = &daemon_set["spec"]["template"]["spec"];
    let security = &pod["containers"][0]["securityContext"];
    let added = security["capabilities"]["add"].as_array().unwrap().iter();
    let capabilities: Vec<String> = added
        .map(|name| format!("CAP_{}", name.as_str().unwrap()))
        .collect();
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
    ];
    if pod["hostPID"] != json!(true) {
        namespaces.push(json!({"type": "pid"}));
    }
    let file_system = |kind: &str, place: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": place, "options": options});
    let mut all = vec![
        file_system("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        file_system("tmpfs", "/dev", &["nosuid", "mode=755", "size=65536k"]),
        file_system("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    all.extend(mounts.iter().map(|(source, place, is_writable)| {
        let access = if *is_writable { "rw" } else { "ro" };
        json!({"type": "bind", "source": source, "destination": place, "options": ["rbind", access]})
    }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": security["runAsUser"], "gid": 0},
            "args": args,
            // As the Containerfile and the DaemonSet have them.
            "env": [
                "STATE_DIRECTORY=/var/lib/profiler-agent",
                "OTEL_RESOURCE_ATTRIBUTES=host.name=node-1,k8s.node.name=node-1",
            ],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": security["allowPrivilegeEscalation"] == json!(false),
        },
        "root": {"path": "root", "readonly": security["readOnlyRootFilesystem"]},
        "hostname": "pod",
        "mounts": all,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
                "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// A `runc run`, whose container ends with it.
struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            send(self.0.id(), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn the_daemon_sets_container_profiles_the_node() {
    let test = "the_daemon_sets_container_profiles_the_node";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let Some(runc) = tools::find("RUNC", Some("runc")) else {
        return tools::skip(test, "runc (Debian package runc)");
    };
    let Some(python) = tools::find("PROFILER_TEST_PYTHON", None) else {
        return tools::skip(test, "PROFILER_TEST_PYTHON, a Python with PyYAML");
    };
    let objects = objects(&python);
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let collector = site.start(TO_FILE, "", "");
    let workload = Workload::start(&compiled("split"), ["/dev/null", "60000", "1"]);
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for name in ["root", "state", "settings"] {
        fs::create_dir(place(name)).unwrap();
    }
    copy_to_run(Path::new(PROGRAM), &place("root/profiler-agent"));
    let settings = of_kind("ConfigMap")["data"]["agent.toml"].as_str().unwrap();
    let ours = settings
        .replace(
            "http://otel-collector.observability.svc:4317",
            &site.url(Protocol::Grpc),
        )
        .replace("\"10s\"", "\"1s\"");
    assert!(
        ours.contains(&site.url(Protocol::Grpc)) && ours.contains("\"1s\""),
        "{ours}"
    );
    fs::write(place("settings/agent.toml"), ours + "serve = \"off\"\n").unwrap();
    let daemon_set = of_kind("DaemonSet");
    let args = &daemon_set["spec"]["template"]["spec"]["containers"][0]["args"];
    let args = args.as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let args: Vec<&str> = ["/profiler-agent"].into_iter().chain(args).collect();
    let [settings, state] = ["settings", "state"].map(place);
    let mut mounts = vec![
        (settings.as_path(), "/etc/profiler-agent", false),
        (state.as_path(), "/var/lib/profiler-agent", true),
        (Path::new("/etc/machine-id"), "/etc/machine-id", false),
    ];
    let libraries = ["/usr", "/lib", "/lib64"].map(|name| (Path::new(name), name, false));
    mounts.extend(libraries.into_iter().filter(|(path, ..)| path.exists()));
    let bundle = bundle(daemon_set, &args, &mounts);
    fs::write(place("config.json"), bundle.to_string()).unwrap();

    let name = format!("profiler-agent-test-{}", std::process::id());
    let said = place("said");
    let mut container = Container(
        Command::new(runc)
            .args(["--root", place("runc").to_str().unwrap(), "run", "--bundle"])
            .arg(folder.path())
            .arg(&name)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&said).unwrap())
            .spawn()
            .unwrap(),
    );
    wait_for("the container to sample", || {
        text(&said).contains("Sampling ") || container.0.try_wait().unwrap().is_some()
    });
    assert!(container.0.try_wait().unwrap().is_none(), "{}", text(&said));
    wait_for("a profile of the node's program", || {
        let requests = collector.written();
        let mut events = requests.iter().flat_map(|request| events(request));
        events.any(|event| event.pid == workload.pid())
    });
    // Runc hands signals on.
    send(container.0.id(), Signal::TERM);
    let status = container.0.wait().unwrap();
    let said = text(&said);
    assert!(status.success(), "{said}");
    assert!(
        said.contains("delivery: ") && said.contains(" 0 spooled"),
        "{said}"
    );
    for complaint in ["without CAP_", "cannot keep profiles", "names are missing"] {
        assert!(!said.contains(complaint), "{said}");
    }
    assert!(state.join("spool").exists());
    let requests = collector.finish();
    assert!(has(&requests, "k8s.node.name"), "the node has no name");
    assert_named(&requests);
}

#[test]
fn the_collectors_configuration_passes_profiles_on() {
    let test = "the_collectors_configuration_passes_profiles_on";
    let Some(_alone) = alone(test) else { return };
    let (Some(mut backend), Some(gateway)) = (Site::find(test), Site::find(test)) else {
        return;
    };
    let behind = backend.start(
        "profiles: {receivers: [otlp], exporters: [file/proto]}\n    metrics: {receivers: [otlp], exporters: [nop]}",
        "",
        "",
    );
    let address = |site: &Site, protocol| site.url(protocol).trim_start_matches("http://").to_owned();
    let port = |protocol| address(&gateway, protocol).rsplit_once(':').unwrap().1.to_owned();
    let _before = gateway.start_file(
        &file("collector/config.yaml"),
        &[
            ("OTLP_GRPC_PORT", port(Protocol::Grpc)),
            ("OTLP_HTTP_PORT", port(Protocol::Http)),
            ("BACKEND", address(&backend, Protocol::Grpc)),
            ("BACKEND_INSECURE", "true".into()),
        ],
    );
    let workload = Workload::start(&compiled("split"), ["/dev/null", "60000", "1"]);
    let agent = Agent::new();
    let url = gateway.url(Protocol::Grpc);
    let mut running = agent.start([
        "--config",
        file("agent.toml").to_str().unwrap(),
        "--otlp-endpoint",
        &url,
        "--interval",
        "1s",
        "--metrics-interval",
        "1s",
        "--spool",
        agent.path("spool").to_str().unwrap(),
        "--serve",
        "off",
    ]);
    running.samples();
    wait_for("profiles behind it", || {
        let requests = behind.written();
        let mut events = requests.iter().flat_map(|request| events(request));
        events.any(|event| event.pid == workload.pid())
    });
    running.send(Signal::TERM);
    let run = running.finish();
    run.expect(0, &["delivery: ", " 0 spooled"]);
    assert!(!run.stderr.contains("takes no metrics"), "{}", run.stderr);
}

#[test]
fn the_settings_are_settings() {
    let output = Command::new(env!("CARGO_BIN_EXE_profiler-agent"))
        .args(["config", "check"])
        .arg(file("agent.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // Those of the cluster are in a map of texts.
    let set = fs::read_to_string(file(DAEMON_SET)).unwrap();
    let block = set
        .split("agent.toml: |\n")
        .nth(1)
        .unwrap()
        .split("---")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    fs::write(&path, block).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_profiler-agent"))
        .args(["config", "check"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
