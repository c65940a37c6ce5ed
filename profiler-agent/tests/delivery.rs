//! Profiles without an end, to a real Collector that comes and goes, from an agent that is killed: what arrives, once.

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
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use profiler_agent::{export::otlp::endpoint::Protocol, telemetry::Loss};
use rustix::process::Signal;
use support::{
    agent::{Agent, Run, segments},
    collector::{AS_REWRITTEN, Event, Site, TO_FILE, events, resource_of},
    conformance::{Rule, assert_conforms},
    machine::Witness,
    proxy::{Fate, Proxy},
    workload::{Workload, alone, compiled, wait_for, wait_within},
};

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since the Unix epoch.
fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(time.as_nanos()).unwrap()
}

/// What the last line about the delivery says: words and the numbers before them.
fn ledger(stderr: &str) -> BTreeMap<String, u64> {
    let line = stderr.lines().find_map(|line| line.strip_prefix("delivery: "));
    let line = line.unwrap_or_else(|| panic!("no word of the delivery:\n{stderr}"));
    let words: Vec<&str> = line
        .split([' ', '(', ')', ','])
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(2)
        .filter_map(|pair| Some((pair[1].to_owned(), pair[0].parse().ok()?)))
        .collect()
}

/// A program that burns one CPU for a minute.
fn burning(agent: &Agent) -> Workload {
    let mut command = Command::new(compiled("split"));
    command
        .arg(agent.path("report"))
        .args(["60000", "1"])
        .env("OTEL_SERVICE_NAME", "burner")
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.version=1.2,host.name=liar");
    Workload::of(&mut command)
}

fn arguments<'a>(url: &'a str, spool: &'a Path) -> Vec<&'a str> {
    vec![
        "--otlp-endpoint",
        url,
        "--interval",
        "1s",
        "--spool",
        spool.to_str().unwrap(),
        // Rounded, two samples of a thread may have one time, and look like one that came twice.
        "--otlp-times",
        "exact",
    ]
}

#[test]
fn it_starts_without_a_collector_and_loses_nothing() {
    let test = "it_starts_without_a_collector_and_loses_nothing";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let agent = Agent::new();
        let workload = burning(&agent);
        let spool = site.path(&format!(
            "spool-{}",
            site.url(protocol).len() + protocol.name().len()
        ));
        let url = site.url(protocol);
        let mut arguments = arguments(&url, &spool);
        arguments.extend(["--otlp-protocol", protocol.name()]);
        let mut running = agent.start(arguments);
        running.samples();
        wait_for("two segments", || segments(&spool) >= 2);
        let collector = site.start(TO_FILE, "", "");
        wait_for("the backlog, and something fresh", || {
            segments(&spool) == 0 && collector.written().len() >= 4
        });
        running.send(Signal::TERM);
        let run = running.finish();
        run.expect(
            0,
            &[
                "Sent to",
                "every 1s",
                "cannot reach",
                "takes profiles again",
                "lost: ",
            ],
        );
        let requests = collector.finish();
        let mut arrived = Vec::new();
        let mut resources = BTreeSet::new();
        for request in &requests {
            resources.extend(resource_of(request, workload.pid()));
            // Of a whole host, some files have no build ID.
            assert_conforms(request, &[AS_REWRITTEN, &[Rule::BuildId]].concat());
            arrived.extend(events(request));
        }
        let ledger = ledger(&run.stderr);
        assert_eq!(ledger["exported"], arrived.len() as u64, "{}", run.stderr);
        assert_eq!((ledger["spooled"], ledger["waiting"]), (0, 0), "{}", run.stderr);
        assert_eq!(
            ledger["captured"],
            ledger["exported"] + ledger["dropped"],
            "{}",
            run.stderr
        );
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        for expected in [
            ("service.name", "burner"),
            ("service.version", "1.2"),
            ("process.executable.name", "split"),
            ("os.type", "linux"),
            ("process.pid", &workload.pid().to_string()),
            ("host.name", &rustix::system::uname().nodename().to_string_lossy()),
        ] {
            assert!(resources.contains(&pair(expected)), "{expected:?}: {resources:?}");
        }
        // The same in each slice.
        let keys: BTreeSet<&str> = resources.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys.len(), resources.len(), "{resources:?}");
        let distinct: BTreeSet<Event> = arrived.iter().copied().collect();
        assert_eq!(distinct.len(), arrived.len(), "some came twice");
        assert!(arrived.iter().any(|event| event.pid == workload.pid()));
        assert!(run.stderr.contains(&format!("({} samples", ledger["exported"])) || ledger["exported"] > 999);
    }
}

/// How long the Collector is away: no longer than it takes to see what happens, or as long as `cargo xtask prove delivery` says.
fn outage() -> Duration {
    let seconds = std::env::var("PROFILER_OUTAGE_SECONDS");
    Duration::from_secs(seconds.map_or(0, |text| text.parse().unwrap()))
}

#[test]
fn an_outage_and_a_kill_cost_at_most_what_was_in_memory() {
    let test = "an_outage_and_a_kill_cost_at_most_what_was_in_memory";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let agent = Agent::new();
    let mut command = Command::new(compiled("split"));
    let length = Duration::from_mins(2) + outage() * 2;
    command
        .arg(agent.path("report"))
        .args([&length.as_millis().to_string(), "1"]);
    let workload = Workload::of(&mut command);
    let spool = site.path("spool");
    let url = site.url(Protocol::Grpc);

    let witness = Witness::start();
    let first_collector = site.start(TO_FILE, "", "");
    let mut first = agent.start(arguments(&url, &spool));
    first.samples();
    wait_for("two requests", || first_collector.written().len() >= 2);
    let mut requests = first_collector.finish();
    std::thread::sleep(outage() / 2);
    wait_for("two segments", || segments(&spool) >= 2);
    let killed = now();
    first.kill();
    let kept = segments(&spool);

    let another = Agent::new();
    let mut second = another.start(arguments(&url, &spool));
    second.samples();
    let sampled_again = now();
    std::thread::sleep(outage() / 2);
    wait_for("more segments", || segments(&spool) > kept);
    let most = segments(&spool);
    let second_collector = site.start(TO_FILE, "", "");
    // After a long outage it is tried every 45 s at least.
    let patience = Duration::from_secs(20) + outage();
    wait_within(patience, "the backlog", || segments(&spool) == 0);
    second.send(Signal::TERM);
    let run = second.finish();
    let stood_still = witness.longest();
    run.expect(0, &["from before"]);
    let from_second = second_collector.finish();
    let arrived_at_second: usize = from_second.iter().map(|request| events(request).len()).sum();
    let ledger = ledger(&run.stderr);
    assert_eq!(ledger["exported"], arrived_at_second as u64, "{}", run.stderr);
    assert_eq!(ledger["spooled"] + ledger["waiting"], 0, "{}", run.stderr);
    assert_eq!(
        ledger["from"] + ledger["captured"],
        ledger["exported"] + ledger["dropped"],
        "{}",
        run.stderr
    );

    // Every request is different from all others, samples and all.
    requests.extend(from_second);
    let all: Vec<Event> = requests.iter().flat_map(|request| events(request)).collect();
    let distinct: BTreeSet<Event> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len(), "some came twice");
    // Some program burnt all the while, whichever got the CPUs: where there is a hole, the agent was dead, or what it had in memory is missing.
    assert!(all.iter().any(|event| event.pid == workload.pid()));
    let burnt: Vec<u64> = distinct.iter().map(|event| event.time).collect();
    let longest = (Duration::from_secs(1) + stood_still).as_nanos();
    let holes: Vec<(u64, u64)> = burnt
        .windows(2)
        .filter(|pair| u128::from(pair[1] - pair[0]) > longest)
        .map(|pair| (pair[0], pair[1]))
        .collect();
    let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
    println!(
        "away for {:?} and more, the machine stood still for {stood_still:?}, up to {most} segments, {} samples, each once; holes: {:?} s, of which before the kill {:?} s; {}",
        outage(),
        all.len(),
        holes
            .iter()
            .map(|(from, to)| seconds(to - from))
            .collect::<Vec<_>>(),
        holes
            .iter()
            .map(|(from, _)| seconds(killed.saturating_sub(*from)))
            .collect::<Vec<_>>(),
        run.stderr
            .lines()
            .find(|line| line.starts_with("delivery: "))
            .unwrap()
    );
    assert!(holes.len() <= 1, "{holes:?}");
    for (from, to) in holes {
        // One interval that was open, one second in which it may have waited for names or an answer, and room for a busy machine.
        let stood_still = u64::try_from(stood_still.as_nanos()).unwrap();
        assert!(
            from + 4 * SECOND + stood_still > killed,
            "{} s too much",
            (killed - from) / SECOND
        );
        assert!(to < sampled_again + 2 * SECOND + stood_still);
    }
}

/// Fails unless each sample that counts as exported is there, at most so often, and nothing was dropped on the way. Answers how many there are more than once.
fn assert_all_there(run: &Run, requests: &[Vec<u8>], at_most: usize) -> usize {
    let mut arrived: BTreeMap<Event, usize> = BTreeMap::new();
    for event in requests.iter().flat_map(|request| events(request)) {
        *arrived.entry(event).or_default() += 1;
    }
    let ledger = ledger(&run.stderr);
    assert_eq!(ledger["exported"], arrived.len() as u64, "{}", run.stderr);
    assert_eq!((ledger["spooled"], ledger["waiting"]), (0, 0), "{}", run.stderr);
    assert_eq!(
        ledger["captured"],
        ledger["exported"] + ledger["dropped"],
        "{}",
        run.stderr
    );
    // What a full ring refused was never on the way.
    let line = run
        .stderr
        .lines()
        .find(|line| line.starts_with("delivery: "))
        .unwrap();
    for reason in Loss::ALL {
        let is_of_capture = [Loss::RingFull, Loss::TornRecord].contains(&reason);
        assert!(
            is_of_capture || !line.contains(&reason.name().replace('_', " ")),
            "{line}"
        );
    }
    assert!(
        arrived.values().all(|count| *count <= at_most),
        "some came too often"
    );
    arrived.values().filter(|count| **count > 1).count()
}

#[test]
fn a_collector_without_memory_is_waited_for() {
    let test = "a_collector_without_memory_is_waited_for";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let agent = Agent::new();
    let _workload = burning(&agent);
    let spool = site.path("spool");
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let url = site.url(protocol);
        let refusing = site.start(
            "profiles: {receivers: [otlp], processors: [memory_limiter], exporters: [file/proto]}",
            "processors: {memory_limiter: {check_interval: 50ms, limit_mib: 2, spike_limit_mib: 1}}",
            "",
        );
        let another = Agent::new();
        let arguments = arguments(&url, &spool);
        let mut running = another.start(arguments.into_iter().chain(["--otlp-protocol", protocol.name()]));
        running.samples();
        wait_for("its refusal", || running.stderr().contains("high memory usage"));
        wait_for("two segments", || segments(&spool) >= 2);
        let mut requests = refusing.finish();
        let generous = site.start(TO_FILE, "", "");
        wait_for("the backlog", || {
            segments(&spool) == 0 && !generous.written().is_empty()
        });
        running.send(Signal::TERM);
        let run = running.finish();
        run.expect(0, &["takes profiles again"]);
        requests.extend(generous.finish());
        assert_eq!(assert_all_there(&run, &requests, 1), 0);
    }
}

#[test]
fn a_proxy_that_cuts_and_delays_costs_nothing() {
    const BY_HTTP: &[Fate] = &[
        // It has the request, and we do not know.
        Fate::CutAnswer(1),
        Fate::CutRequest(800),
        Fate::CutRequest(50_000),
        Fate::Delayed(Duration::from_millis(300)),
    ];
    const BY_GRPC: &[Fate] = &[
        Fate::CutRequest(0),
        Fate::CutRequest(800),
        Fate::CutRequest(50_000),
        Fate::Delayed(Duration::from_millis(300)),
    ];
    let test = "a_proxy_that_cuts_and_delays_costs_nothing";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let agent = Agent::new();
    let _workload = burning(&agent);
    for (protocol, fates) in [(Protocol::Http, BY_HTTP), (Protocol::Grpc, BY_GRPC)] {
        let collector = site.start(TO_FILE, "", "");
        let receiver = site.url(protocol).trim_start_matches("http://").parse().unwrap();
        let proxy = Proxy::start(receiver, fates);
        let another = Agent::new();
        let spool = another.path("spool");
        let url = format!("http://{}", proxy.address);
        let arguments = arguments(&url, &spool);
        let mut running = another.start(arguments.into_iter().chain([
            "--otlp-protocol",
            protocol.name(),
            "--metrics-interval",
            "off",
        ]));
        running.samples();
        // The last fate lets everything pass, late.
        wait_for("the fourth connection, and the backlog", || {
            proxy.connections.load(Ordering::Relaxed) >= 4 && segments(&spool) == 0
        });
        running.send(Signal::TERM);
        let run = running.finish();
        run.expect(0, &["cannot reach", "takes profiles again"]);
        let twice = assert_all_there(&run, &collector.finish(), 2);
        // The one whose answer was cut was sent again, as it must be.
        assert_eq!(twice > 0, protocol == Protocol::Http, "{twice}: {}", run.stderr);
    }
}

#[test]
fn a_second_signal_gives_up_the_receiver_and_not_the_profiles() {
    let test = "a_second_signal_gives_up_the_receiver_and_not_the_profiles";
    let Some(_alone) = alone(test) else { return };
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let agent = Agent::new();
    let spool = agent.path("spool");
    let patience = [
        "--otlp-timeout",
        "60s",
        "--shutdown-timeout",
        "60s",
        "--serve",
        "off",
    ];
    let mut running = agent.start(arguments(&url, &spool).into_iter().chain(patience));
    running.samples();
    wait_for("a request that lingers, and is copied", || segments(&spool) >= 1);
    // One more is finished, and only in memory.
    std::thread::sleep(Duration::from_millis(1500));
    let began = std::time::Instant::now();
    running.send(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    running.send(Signal::TERM);
    let run = running.finish();
    assert!(began.elapsed() < Duration::from_secs(40), "it waited");
    run.expect(
        130,
        &["stopped sending to http://", " samples are kept for the next run"],
    );
    let ledger = ledger(&run.stderr);
    assert!(ledger["spooled"] > 0 && segments(&spool) >= 2, "{}", run.stderr);
    assert_eq!((ledger["waiting"], ledger["exported"]), (0, 0), "{}", run.stderr);
    assert!(!run.stderr.contains("shut down"), "{}", run.stderr);
    assert_eq!(
        ledger["captured"],
        ledger["spooled"] + ledger["dropped"],
        "{}",
        run.stderr
    );
}

#[test]
fn sighup_changes_where_it_is_sent_and_says_what_it_cannot() {
    let test = "sighup_changes_where_it_is_sent_and_says_what_it_cannot";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let collector = site.start(TO_FILE, "", "");
    let agent = Agent::new();
    let file = agent.path("agent.toml");
    let headers = agent.path("headers");
    std::fs::write(&headers, "authorization=Bearer one\n").unwrap();
    let settings = |url: &str, frequency: u32| {
        format!(
            "otlp-endpoint = \"{url}\"\nfrequency = {frequency}\ninterval = \"1s\"\notlp-header-file = {headers:?}\n"
        )
    };
    // Nobody is there.
    std::fs::write(&file, settings("http://127.0.0.1:1", 97)).unwrap();
    let spool = agent.path("spool");
    let mut running = agent.start([
        "--config",
        file.to_str().unwrap(),
        "--spool",
        spool.to_str().unwrap(),
    ]);
    running.samples();
    wait_for("the first segment", || segments(&spool) >= 1);
    std::fs::write(&file, "otlp-endpont = 1").unwrap();
    running.send(Signal::HUP);
    wait_for("its refusal", || {
        running.stderr().contains("is \"otlp-endpoint\" meant?")
    });
    std::fs::write(&file, settings(&site.url(Protocol::Grpc), 49)).unwrap();
    running.send(Signal::HUP);
    wait_for("the backlog", || {
        segments(&spool) == 0 && collector.written().len() >= 2
    });
    std::fs::write(&headers, "authorization=Bearer two\n").unwrap();
    running.send(Signal::HUP);
    wait_for("the new token", || {
        running.stderr().contains("again; changed: otlp-header-file;")
    });
    running.send(Signal::TERM);
    let run = running.finish();
    run.expect(
        0,
        &[
            "the settings stay as they were",
            "changed: otlp-endpoint; changed by a restart only: frequency",
            "/headers, which holds a secret; chmod o= ",
            " 0 spooled",
        ],
    );
    assert!(!run.stderr.contains("Bearer"), "{}", run.stderr);
}
