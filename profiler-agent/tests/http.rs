//! A running agent is asked, over a real socket, about a real program that does one thing after the other.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may fail loudly"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use profiler_agent::diff::Change;
use rustix::process::Signal;
use support::{
    agent::{Agent, address, segments},
    machine::Cpus,
    profiles,
    workload::{Workload, alone, compiled, root, text, wait_for, wait_within},
};

/// One answer.
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Samples of stacks with such a function.
    fn samples(&self, function: &str) -> u64 {
        self.text()
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(stack, _)| stack.split(';').any(|frame| frame == function))
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum()
    }
}

fn send(mut stream: impl std::io::Read + std::io::Write, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    }
}

fn request(path: &str, headers: &str) -> String {
    // By HTTP/1.0 the answer ends with the connection and is in one piece.
    format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n")
}

fn get(address: &str, path: &str) -> Answer {
    send(TcpStream::connect(address).unwrap(), &request(path, ""))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Part of a phase of the program, and what it did in it.
struct Phase {
    own: &'static str,
    /// Unix time.
    since: f64,
    until: f64,
    cpu_seconds: f64,
    /// What the host took from it meanwhile, in seconds.
    steal: f64,
    folded: Answer,
}

impl Phase {
    fn total(&self) -> u64 {
        let counts = self
            .folded
            .text()
            .lines()
            .filter_map(|line| line.rsplit_once(' '));
        counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
    }

    /// Functions of the program itself; the first name is that of its process.
    fn functions(&self) -> BTreeSet<&str> {
        let lines = self.folded.text().lines();
        let stacks = lines.filter_map(|line| line.rsplit_once(' '));
        stacks
            .flat_map(|(stack, _)| stack.split(';').skip(1))
            .filter(|name| !name.ends_with("_[k]"))
            .collect()
    }

    /// Functions of which another phase has another share than chance would give it.
    fn changed<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        let all: BTreeSet<&str> = self.functions().union(&other.functions()).copied().collect();
        let of = |phase: &Self, name: &str| (phase.folded.samples(name), phase.total());
        all.into_iter()
            .filter(|name| !Change::of(of(self, name), of(other, name), true).is_chance())
            .collect()
    }
}

/// The time, the CPU time that a process has had by then, and what all CPUs have done.
fn cpu_time(pid: u32) -> (f64, f64, Cpus) {
    loop {
        let before = SystemTime::now();
        let stat = text(Path::new(&format!("/proc/{pid}/stat")));
        let now = SystemTime::now();
        // Else the two are of different times.
        if now.duration_since(before).unwrap() < Duration::from_millis(2) {
            // The third field and all that follow.
            let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            let ticks: u32 = [11, 12]
                .into_iter()
                .map(|place| fields[place].parse::<u32>().unwrap())
                .sum();
            return (
                seconds(now),
                f64::from(ticks) / rustix::param::clock_ticks_per_second() as f64,
                Cpus::now(),
            );
        }
    }
}

fn sleep_until(time: f64) {
    thread::sleep(Duration::try_from_secs_f64(time - seconds(SystemTime::now())).unwrap_or_default());
}

#[test]
fn the_past_is_shown_as_it_was() {
    const PHASE: f64 = 10.0;
    let test = "the_past_is_shown_as_it_was";
    let Some(_alone) = alone(test) else { return };
    let program = Workload::start(&compiled("cycle"), ["10000"]);
    let agent = Agent::new();
    let running = agent.start(["--serve", "127.0.0.1:0", "-F", "199"]);
    let address = address(&running);
    let pid = program.pid();
    // On a busy host the first slices may be finished before their names are there.
    wait_within(Duration::from_secs(90), "names of all phases", || {
        let answer = get(&address, &format!("/profile.folded?pid={pid}"));
        let names = ["phase_a", "phase_b", "phase_c"];
        thread::sleep(Duration::from_millis(500));
        answer.status == 200 && names.iter().all(|name| answer.samples(name) > 0)
    });
    // A whole cycle from here on, and some more for the last slice.
    let begin = (seconds(SystemTime::now()) / PHASE).ceil() as u64;
    let mut parts = BTreeMap::new();
    for phase in begin..begin + 12 {
        if parts.len() == 4 || parts.contains_key(&(phase % 4)) {
            continue;
        }
        // A phase ends when its loop does.
        let start = phase as f64 * PHASE;
        sleep_until(start + 0.2);
        let from = cpu_time(pid);
        sleep_until(start + PHASE - 0.4);
        let to = cpu_time(pid);
        // Where the machine stood still when it ended, the one of the next cycle has to do.
        if to.0 < start + PHASE - 0.1 {
            parts.insert(phase % 4, (from, to));
        }
    }
    assert_eq!(
        parts.len(),
        4,
        "it stood still at the end of one phase in each cycle"
    );
    thread::sleep(Duration::from_secs(9));
    let mut phases: BTreeMap<u64, Phase> = BTreeMap::new();
    for (phase, ((since, before, cpus_before), (until, after, cpus_after))) in parts {
        let own = ["phase_a", "phase_b", "phase_a", "phase_c"][phase as usize];
        let path = format!("/profile.folded?pid={pid}&since={since}&until={until}");
        let folded = get(&address, &path);
        assert_eq!(folded.status, 200, "{}", folded.text());
        for name in ["phase_a", "phase_b", "phase_c"] {
            let samples = folded.samples(name);
            // One of another phase may be of a loop that was stopped in the middle, and goes on after its time.
            assert_eq!(samples > 1, name == own, "phase {own}: {samples} of {name}");
        }
        // Slices end when they do; what is covered is what was asked for.
        for (header, time) in [("profile-from", since), ("profile-until", until)] {
            let covered = humantime::parse_rfc3339(&folded.headers[header]).unwrap();
            assert!(
                (seconds(covered) - time).abs() < 1.001,
                "{covered:?} and not {time}"
            );
        }
        phases.insert(
            phase,
            Phase {
                own,
                since,
                until,
                cpu_seconds: after - before,
                steal: cpus_after.stolen_from(after - before, cpus_before),
                folded,
            },
        );
    }
    // A phase has the share of all samples that it has of the CPU time, within three standard deviations of what chance does to it, and what
    // the kernel's clock of 10 ms does not tell. What the host takes is no CPU time, and is sampled all the same: of this phase, or of all.
    let samples: u64 = phases.values().map(Phase::total).sum();
    let cpu_seconds: f64 = phases.values().map(|phase| phase.cpu_seconds).sum();
    let steal: f64 = phases.values().map(|phase| phase.steal).sum();
    for phase in phases.values() {
        let share = phase.cpu_seconds / cpu_seconds;
        let expected = share * samples as f64;
        let more = 199.0 * phase.steal.max(share * steal);
        let most = 3.0 * (expected * (1.0 - share)).sqrt() + 0.02 * 199.0 + more;
        let difference = phase.total() as f64 - expected;
        println!(
            "{}: {difference:+.1} of {expected:.1} samples, {most:.1} at most, of which {more:.1} for the host",
            phase.own
        );
        assert!(
            difference.abs() <= most,
            "{} samples of {}, expected {expected}",
            phase.total(),
            phase.own
        );
    }
    // What has changed from one phase to another one is what they do, and nothing has where they do the same.
    assert_eq!(
        phases[&1].changed(&phases[&3]),
        BTreeSet::from(["phase_b", "phase_c"])
    );
    assert_eq!(
        phases[&0].changed(&phases[&1]),
        BTreeSet::from(["phase_a", "phase_b"])
    );
    assert_eq!(phases[&0].changed(&phases[&2]), BTreeSet::new());
    // By CPU, by thread, filtered, turned around.
    let by_cpu = get(&address, &format!("/profile.folded?pid={pid}&by=cpu"));
    assert!(
        by_cpu.text().lines().all(|line| line.starts_with("cycle;CPU_")),
        "{}",
        by_cpu.text()
    );
    let filtered = get(&address, &format!("/profile.folded?pid={pid}&filter=^phase_b$"));
    assert!(filtered.samples("phase_b") > 0 && filtered.samples("phase_a") == 0);
    let picture = get(&address, &format!("/flamegraph.svg?pid={pid}&icicle&reverse"));
    assert!(picture.text().contains("<svg") && picture.text().contains("phase_c"));
    assert!(picture.text().contains(&format!("cycle ({pid})")));
    let page = get(&address, &format!("/flamegraph.html?pid={pid}"));
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.text().contains("id=\"profile\""));
    // Who burns what.
    let shares = get(&address, &format!("/processes.json?pid={pid}&last=5s"));
    let shares: serde_json::Value = serde_json::from_slice(&shares.body).unwrap();
    assert_eq!(shares["processes"][0]["name"], "cycle");
    assert!(shares["processes"][0]["cpu_seconds"].as_f64().unwrap() > 0.1);
    // The same as a picture: from the phase of b to that of c.
    let span = |phase: u64| format!("{}..{}", phases[&phase].since, phases[&phase].until);
    let path = format!("/diff.svg?pid={pid}&a={}&b={}", span(1), span(3));
    let difference = get(&address, &path);
    assert_eq!(difference.status, 200, "{}", difference.text());
    // The picture is that of b, with the one sample of another phase that may be there.
    let stray = phases[&1].folded.samples("phase_a") + phases[&3].folded.samples("phase_a");
    assert!(difference.text().contains("phase_c"));
    assert!(stray > 0 || !difference.text().contains("phase_a"));
    // From now on, as `go tool pprof` asks.
    let from_now = get(&address, "/debug/pprof/profile?seconds=2");
    assert_eq!(from_now.status, 200);
    assert_eq!(from_now.body[..2], [0x1f, 0x8b]);
    running.send(Signal::INT);
    running.finish().expect(0, &[]);
    assert!(agent.files().is_empty(), "{:?}", agent.files());
}

#[test]
fn the_past_is_still_there_after_a_kill() {
    let test = "the_past_is_still_there_after_a_kill";
    let Some(_alone) = alone(test) else { return };
    let agent = Agent::new();
    let folder = agent.path("history").display().to_string();
    let flags = ["--serve", "127.0.0.1:0", "-F", "199", "--history-folder", &folder];
    let program = Workload::start(&compiled("cycle"), ["3000"]);
    let pid = program.pid();
    let path = |until: &str| format!("/profile.folded?pid={pid}&until={until}");
    let (before, until) = {
        let running = agent.start(flags);
        let address = address(&running);
        // On a busy host the first slices may be finished before their names are there.
        wait_within(Duration::from_secs(90), "samples with names", || {
            let answer = get(&address, &path("0s"));
            answer.status == 200 && answer.samples("main") > 50
        });
        // What comes from now on may not be on the disk yet when it dies.
        let until = seconds(SystemTime::now());
        // The slice of that moment is taken in first and written then, before the next one.
        wait_within(Duration::from_secs(60), "the slice", || {
            let covered = &get(&address, &path("0s")).headers["profile-until"];
            seconds(humantime::parse_rfc3339(covered).unwrap()) > until
        });
        let written = segments(&agent.path("history"));
        wait_within(Duration::from_secs(60), "one more segment", || {
            segments(&agent.path("history")) > written
        });
        let until = until.to_string();
        let before = get(&address, &path(&until));
        assert_eq!(before.status, 200, "{}", before.text());
        running.kill();
        (before, until)
    };
    drop(program);
    let again = agent.start(flags);
    let address = address(&again);
    wait_for("the past", || get(&address, &path(&until)).status == 200);
    // The same question has the same answer, to the last sample.
    let after = get(&address, &path(&until));
    let lines = |answer: &Answer| -> BTreeSet<String> { answer.text().lines().map(str::to_owned).collect() };
    let (one, other) = (lines(&before), lines(&after));
    let changed = (
        one.difference(&other).collect::<Vec<_>>(),
        other.difference(&one).collect::<Vec<_>>(),
    );
    assert!(one == other, "{changed:#?}");
    for header in ["profile-from", "profile-until", "profile-samples", "profile-lost"] {
        assert_eq!(before.headers[header], after.headers[header], "{header}");
    }
    // Nobody else may have the folder meanwhile.
    let second = Agent::new().run(["--serve", "127.0.0.1:0", "--history-folder", &folder]);
    second.expect(1, &["another profiler-agent", "--history-folder"]);
    drop(again);
}

#[test]
fn who_asks_wrongly_is_told_how_to_ask() {
    if !root("who_asks_wrongly_is_told_how_to_ask") {
        return;
    }
    let agent = Agent::new();
    let running = agent.start(["--serve", "127.0.0.1:0"]);
    let address = address(&running);
    for (path, status, says) in [
        ("/nowhere", 404, "/flamegraph.svg"),
        ("/profile.folded?pdi=1", 400, "did you mean pid?"),
        ("/profile.folded?last=soon", 400, "5m"),
        (
            "/profile.folded?since=2000-01-01&until=2000-01-02T00:00:00Z",
            400,
            "give a time like",
        ),
        ("/flamegraph.svg?pid=0", 404, "there are"),
    ] {
        let answer = get(&address, path);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.text().contains(says), "{path}: {}", answer.text());
    }
    let foreign = send(
        TcpStream::connect(&address).unwrap(),
        "GET /flamegraph.svg HTTP/1.0\r\nHost: evil.example\r\n\r\n",
    );
    assert_eq!(foreign.status, 403, "{}", foreign.text());
    let written = send(
        TcpStream::connect(&address).unwrap(),
        "POST /flamegraph.svg HTTP/1.0\r\nHost: localhost\r\n\r\n",
    );
    assert_eq!(written.status, 405, "{}", written.text());
    let page = get(&address, "/");
    assert!(page.headers["content-security-policy"].contains("default-src 'none'"));
    assert!(!page.headers.contains_key("access-control-allow-origin"));
}

#[test]
fn strangers_need_a_token() {
    if !root("strangers_need_a_token") {
        return;
    }
    let agent = Agent::new();
    agent
        .run(["--serve", "0.0.0.0:0"])
        .expect(2, &["PROFILER_AGENT_SERVE_TOKEN", "--insecure"]);
    let agent = Agent::new().variable("PROFILER_AGENT_SERVE_TOKEN", "secret");
    let running = agent.start(["--serve", "0.0.0.0:0"]);
    let address = address(&running).replace("0.0.0.0", "127.0.0.1");
    assert_eq!(get(&address, "/healthz").status, 401);
    for (token, status) in [("wrong", 401), ("secret", 200)] {
        let header = format!("Authorization: Bearer {token}\r\n");
        let answer = send(
            TcpStream::connect(&address).unwrap(),
            &request("/healthz", &header),
        );
        assert_eq!(answer.status, status);
    }
    assert!(!running.stderr().contains("secret"));
}

#[test]
fn a_socket_in_the_file_system_is_of_root_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    if !root("a_socket_in_the_file_system_is_of_root_alone") {
        return;
    }
    let agent = Agent::new();
    let path = agent.path("socket");
    // One that is left behind is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let serve = format!("unix:{}", path.display());
    let running = agent.start(["--serve", &serve]);
    wait_for("the socket", || UnixStream::connect(&path).is_ok());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let answer = send(UnixStream::connect(&path).unwrap(), &request("/healthz", ""));
    assert_eq!((answer.status, answer.text()), (200, "sampling\n"));
    drop(running);
}

/// The description names every path and every parameter, and nothing else.
#[test]
fn the_description_is_of_this_server() {
    use profiler_agent::http::{PARAMETERS, PATHS};
    let text = include_str!("../src/http/openapi.json");
    let description: serde_json::Value = serde_json::from_str(text).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let mut described: Vec<&str> = paths.keys().map(String::as_str).collect();
    let mut known = PATHS.to_vec();
    described.sort_unstable();
    known.sort_unstable();
    assert_eq!(described, known);
    let parameters = paths["/flamegraph.svg"]["get"]["parameters"].as_array().unwrap();
    // The ranges of a difference are its own.
    assert_eq!(paths["/diff.svg"]["get"]["parameters"][0]["name"], "a");
    let mut described: Vec<&str> = parameters
        .iter()
        .map(|parameter| parameter["name"].as_str().unwrap())
        .collect();
    let mut known = PARAMETERS.to_vec();
    described.sort_unstable();
    known.sort_unstable();
    assert_eq!(described, known);
}

/// Names that mean harm, through every answer: none becomes markup, a line of its own, or a sign that steers a terminal.
#[test]
fn names_that_mean_harm_are_text_in_every_answer() {
    use profiler_agent::{
        export::text::is_plain,
        http::{Options, Server},
        read,
    };
    let mut profile = profiles::hostile();
    profile.capture.duration = 2_000_000_000;
    let options = Options {
        address: "127.0.0.1:0".parse().unwrap(),
        token: None,
        limits: profiler_agent::history::Limits::default(),
        folder: None,
    };
    let server = Server::start(options, Duration::from_secs(2), &std::sync::Arc::default()).unwrap();
    let total = profile.sample_count();
    let start = profile.capture.start / 1_000_000_000;
    server.entrance().hand_over(profile);
    let address = server.address().to_string().replace("http://", "");
    wait_for("the slice", || get(&address, "/readyz").status == 200);
    let range = format!("since={start}&until={}", start + 2);
    let ask = |path: &str| {
        let answer = get(&address, path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let policy = &answer.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        answer
    };
    for by in ["", "&by=thread", "&by=cpu", "&reverse&icicle"] {
        let both = format!("/diff.svg?a={start}..{0}&b={start}..{0}{by}", start + 2);
        for path in [format!("/flamegraph.svg?{range}{by}"), both] {
            let picture = ask(&path);
            let text = picture.text();
            assert!(
                !text.contains("<script>alert") && !text.contains("onload=\"alert"),
                "{path}"
            );
            let mut reader = quick_xml::Reader::from_str(text);
            let mut scripts = 0;
            loop {
                match reader.read_event().unwrap() {
                    quick_xml::events::Event::Start(tag) => {
                        scripts += u32::from(tag.name().as_ref() == b"script");
                    }
                    quick_xml::events::Event::Eof => break,
                    _ => {}
                }
            }
            assert_eq!(scripts, 1, "{path}");
        }
        let folded = ask(&format!("/profile.folded?{range}{by}"));
        let mut sum = 0;
        for line in folded.text().lines() {
            assert!(line.chars().all(is_plain), "{line:?}");
            sum += line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        }
        assert_eq!(sum, total);
        for format in ["pb.gz", "otlp", "json"] {
            let answer = ask(&format!("/profile.{format}?{range}{by}"));
            let again = read::bytes(&answer.body, &read::Options::default()).unwrap();
            if format != "json" {
                assert_eq!(again.sample_count(), total, "{format}");
            }
        }
        let page = ask(&format!("/flamegraph.html?{range}{by}"));
        assert_eq!(page.text().matches("<script").count(), 2);
        assert!(!page.text().contains("alert("));
    }
    for path in ["/processes.json", "/timeline.json", "/page.json"] {
        let answer = ask(&format!("{path}?{range}"));
        assert_eq!(answer.headers["content-type"], "application/json");
        let _: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    }
    // What was asked for wrongly is told back, and is text too.
    for path in [
        "/profile.folded?pid=0",
        "/profile.folded?pid=%1b%5b2J%3Cscript%3E",
        "/profile.folded?%3Cscript%3E=1",
    ] {
        let answer = get(&address, path);
        assert!([400, 404].contains(&answer.status));
        assert!(answer.headers["content-type"].starts_with("text/plain"));
        assert!(
            answer.text().trim_end().chars().all(is_plain),
            "{:?}",
            answer.text()
        );
    }
}
