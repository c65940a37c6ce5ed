//! The agent's own metrics, over OTLP to a real Collector and in the text format of Prometheus, read by its own parser.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may fail loudly"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::any_value::Value,
    metrics::v1::{metric::Data, number_data_point::Value as Number},
};
use profiler_agent::{
    export::otlp::endpoint::Protocol,
    telemetry::{Kind, METRICS, document, prometheus_name},
};
use prost::Message as _;
use rustix::process::Signal;
use support::{
    agent::{Agent, Running},
    collector::{Site, TO_FILE},
    golden, tools,
    workload::{alone, root, wait_for},
};

/// A pipeline for each.
const BOTH: &str = "profiles: {receivers: [otlp], exporters: [nop]}
    metrics: {receivers: [otlp], exporters: [file/proto]}";

/// Points by the name of the metric and the attributes.
type Values = BTreeMap<(String, Vec<(String, String)>), f64>;

fn value(values: &Values, name: &str, attributes: &[(&str, &str)]) -> f64 {
    let attributes: Vec<(String, String)> = attributes
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    *values
        .get(&(name.to_owned(), attributes.clone()))
        .unwrap_or_else(|| panic!("no {name} {attributes:?} in {values:#?}"))
}

/// What is in a request, and the attributes of its resource.
fn points(request: &[u8]) -> (Values, BTreeMap<String, String>) {
    let request = ExportMetricsServiceRequest::decode(request).unwrap();
    let [resource] = request.resource_metrics.as_slice() else {
        panic!("one resource: {request:?}");
    };
    let text = |value: &Option<opentelemetry_proto::tonic::common::v1::AnyValue>| match value
        .as_ref()
        .and_then(|value| value.value.as_ref())
    {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{other:?} is no text"),
    };
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    let attributes = attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(&pair.value)))
        .collect();
    let mut values = Values::new();
    for metric in resource.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
        let table = METRICS.iter().find(|other| other.name == metric.name).unwrap();
        assert_eq!(
            (table.unit, table.description),
            (metric.unit.as_str(), metric.description.as_str())
        );
        let points = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                let is_counter = table.kind == Kind::Counter;
                assert!(is_counter || table.kind == Kind::UpDownCounter, "{}", metric.name);
                assert_eq!(
                    (sum.is_monotonic, sum.aggregation_temporality),
                    (is_counter, 2),
                    "{}",
                    metric.name
                );
                &sum.data_points
            }
            Data::Gauge(gauge) => {
                assert_eq!(table.kind, Kind::Gauge, "{}", metric.name);
                &gauge.data_points
            }
            Data::Histogram(histogram) => {
                assert_eq!(table.kind, Kind::Histogram, "{}", metric.name);
                let point = &histogram.data_points[0];
                values.insert((metric.name.clone(), Vec::new()), point.count as f64);
                assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                continue;
            }
            other => panic!("{other:?}"),
        };
        for point in points {
            let attributes: Vec<(String, String)> = point
                .attributes
                .iter()
                .map(|pair| (pair.key.clone(), text(&pair.value)))
                .collect();
            for (key, value) in &attributes {
                let known = table
                    .attributes
                    .iter()
                    .find(|attribute| attribute.key == key)
                    .unwrap();
                assert!(
                    (known.values)().contains(&value.as_str()),
                    "{}: {key}={value}",
                    metric.name
                );
            }
            let number = match point.value.unwrap() {
                Number::AsInt(number) => number as f64,
                Number::AsDouble(number) => number,
            };
            values.insert((metric.name.clone(), attributes), number);
        }
    }
    (values, attributes)
}

/// The equation, to the sample.
fn assert_balanced(values: &Values) {
    let ledger = |place: &str| value(values, &format!("profiler_agent.ledger.{place}"), &[]);
    let dropped: f64 = values
        .iter()
        .filter(|((name, _), _)| name == "profiler_agent.ledger.dropped")
        .map(|(_, count)| count)
        .sum();
    assert_eq!(
        ledger("inherited") + ledger("captured"),
        ledger("exported") + ledger("spooled") + ledger("waiting") + dropped,
        "{values:#?}"
    );
    assert_eq!(ledger("unaccounted"), 0.0);
}

/// Where an agent answers.
fn address(agent: &Running<'_>) -> String {
    let mut address = None;
    wait_for("the agent's address", || {
        let said = agent.stderr();
        let rest = said.split_once("Asked at http://").map(|(_, rest)| rest);
        address =
            rest.and_then(|rest| Some(rest.split_whitespace().next()?.trim_end_matches('.').to_owned()));
        address.is_some()
    });
    address.unwrap()
}

/// What it answers at `/metrics`.
fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(" 200 ") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    body.to_owned()
}

/// One `name{labels} value` of a text in the format of Prometheus.
fn scraped(text: &str, point: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(point)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {point} in\n{text}"))
        .parse()
        .unwrap()
}

/// What the parser of Prometheus' own client makes of a text: `name type`, a line each.
fn parsed(python: &Path, text: &str) -> BTreeSet<String> {
    const PROGRAM: &str = "
import sys
from prometheus_client.parser import text_string_to_metric_families
seen = set()
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.samples and family.documentation, family
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        assert key not in seen, key
        seen.add(key)
    print(family.name, family.type)
";
    let mut child = Command::new(python)
        .args(["-c", PROGRAM])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    let output = String::from_utf8(output.stdout).unwrap();
    output.lines().map(str::to_owned).collect()
}

#[test]
fn sighup_changes_how_often_metrics_are_sent() {
    let test = "sighup_changes_how_often_metrics_are_sent";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let collector = site.start(BOTH, "", "");
    let agent = Agent::new();
    let file = agent.path("agent.toml");
    let url = site.url(Protocol::Grpc);
    let set = |metrics: &str| {
        let settings =
            format!("otlp-endpoint = \"{url}\"\nspool-limit = \"0\"\nmetrics-interval = \"{metrics}\"\n");
        std::fs::write(&file, settings).unwrap();
    };
    set("1h");
    let mut running = agent.start(["--config", file.to_str().unwrap()]);
    running.samples();
    assert!(collector.written().is_empty(), "none within the hour");
    set("1s");
    running.send(Signal::HUP);
    // The first of them may be the last of those before.
    wait_for("three exports", || collector.written().len() >= 3);
    set("off");
    running.send(Signal::HUP);
    let changed = "changed: metrics-interval";
    wait_for("the end of the exports", || {
        running.stderr().matches(changed).count() == 2 && {
            let before = collector.written().len();
            std::thread::sleep(Duration::from_secs(4));
            collector.written().len() == before
        }
    });
    running.send(Signal::TERM);
    running.finish().expect(0, &[changed, "delivery: "]);
    for request in collector.finish() {
        assert_balanced(&points(&request).0);
    }
}

#[test]
fn a_collector_gets_the_metrics_that_are_scraped_too() {
    let test = "a_collector_gets_the_metrics_that_are_scraped_too";
    let Some(_alone) = alone(test) else { return };
    let Some(mut site) = Site::find(test) else { return };
    let Some(python) = tools::find("PROFILER_TEST_PYTHON", None) else {
        return tools::skip(test, "PROFILER_TEST_PYTHON, a Python with prometheus-client");
    };
    for protocol in [Protocol::Grpc, Protocol::Http] {
        // Not there at the start: metrics are no reason to end.
        let spool = site.path(&format!("spool-{}", protocol.name().len()));
        let url = site.url(protocol);
        let agent = Agent::new().variable("OTEL_SERVICE_NAME", "agent-of-test");
        let mut running = agent.start([
            "--otlp-endpoint",
            &url,
            "--otlp-protocol",
            protocol.name(),
            "--interval",
            "1s",
            "--metrics-interval",
            "1s",
            "--kernel-stats",
            "--serve",
            "127.0.0.1:0",
            "--spool",
            spool.to_str().unwrap(),
        ]);
        running.samples();
        let address = address(&running);
        wait_for("an outage that is told", || {
            running.stderr().contains(" takes no metrics: ")
                && scraped(&scrape(&address), "profiler_agent_spool_requests") > 0.0
        });
        let failures = scraped(
            &scrape(&address),
            "profiler_agent_export_requests_total{profiler_agent_export_outcome=\"failure\"}",
        );
        assert!(failures > 0.0);
        let collector = site.start(BOTH, "", "");
        wait_for("metrics of a delivery that works", || {
            let requests = collector.written();
            let Some(request) = requests.last() else {
                return false;
            };
            let values = points(request).0;
            let ledger = |place: &str| value(&values, &format!("profiler_agent.ledger.{place}"), &[]);
            // The backlog too: what is not away by the end stays on the disk.
            ledger("exported") > 0.0 && ledger("spooled") == 0.0
        });
        // At the end all that was counted is exported; a scrape knows of the slices that were there when it was counted last.
        let mut text = String::new();
        wait_for("figures of a slice", || {
            text = scrape(&address);
            text.contains("profiler_agent_sampling_stacks")
        });
        running.send(Signal::TERM);
        let run = running.finish();
        run.expect(0, &["takes metrics again", "delivery: "]);
        let requests = collector.finish();
        for request in &requests {
            assert_balanced(&points(request).0);
        }
        let (values, resource) = points(requests.last().unwrap());
        assert_eq!(resource["service.name"], "agent-of-test");
        assert_eq!(resource["os.type"], "linux");
        for key in [
            "service.instance.id",
            "service.version",
            "process.pid",
            "host.name",
        ] {
            assert!(!resource[key].is_empty(), "{key}");
        }
        // The last export is that of the end, so it agrees with the last word.
        let exported = format!(
            " {} exported ",
            value(&values, "profiler_agent.ledger.exported", &[])
        );
        assert!(run.stderr.contains(&exported), "{exported}: {}", run.stderr);
        assert_eq!(value(&values, "profiler_agent.ledger.spooled", &[]), 0.0);
        let success = value(
            &values,
            "profiler_agent.export.requests",
            &[("profiler_agent.export.outcome", "success")],
        );
        assert!(success >= 2.0);
        for (name, least) in [
            ("profiler_agent.export.duration", success),
            ("profiler_agent.export.connections", 1.0),
            ("profiler_agent.export.compressed", 500.0),
            ("profiler_agent.sampling.samples", 1.0),
            ("profiler_agent.sampling.processes", 2.0),
            ("profiler_agent.unwind.memory.limit", 1e6),
            ("process.memory.usage", 1e6),
            ("process.thread.count", 4.0),
            ("profiler_agent.history.samples", 1.0),
        ] {
            assert!(value(&values, name, &[]) >= least, "{name}: {values:#?}");
        }
        // One connection is kept, whatever failed before it was made.
        assert_eq!(value(&values, "profiler_agent.export.connections", &[]), 1.0);
        let size = |name| value(&values, name, &[]);
        assert!(size("profiler_agent.export.uncompressed") > size("profiler_agent.export.compressed"));
        let runs = value(
            &values,
            "profiler_agent.program.runs",
            &[("profiler_agent.program.name", "on_tick")],
        );
        let time = value(
            &values,
            "profiler_agent.program.time",
            &[("profiler_agent.program.name", "on_tick")],
        );
        assert!(
            runs > 0.0 && time > 0.0 && time / runs < 0.01,
            "{time} s, {runs} runs"
        );
        // What was scraped is the same table.
        let kinds = parsed(&python, &text);
        let names: BTreeSet<&str> = values.keys().map(|(name, _)| name.as_str()).collect();
        for metric in METRICS.iter().filter(|metric| names.contains(metric.name)) {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::UpDownCounter | Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Its parser takes `_total` off.
            let name = prometheus_name(metric);
            let family = format!("{} {kind}", name.trim_end_matches("_total"));
            assert!(kinds.contains(&family), "{family}: {kinds:?}");
        }
        // All that there is was seen, one way or the other.
        let silent: Vec<&str> = METRICS
            .iter()
            .map(|metric| metric.name)
            .filter(|name| !names.contains(name))
            .collect();
        assert_eq!(silent, Vec::<&str>::new());
    }
}

#[test]
fn metrics_have_an_endpoint_of_their_own_or_none() {
    let test = "metrics_have_an_endpoint_of_their_own_or_none";
    if !root(test) {
        return;
    }
    let Some(mut site) = Site::find(test) else { return };
    let collector = site.start(BOTH, "", "");
    // Exactly as it is given, by HTTP.
    let url = format!("{}/v1/metrics", site.url(Protocol::Http));
    let agent = Agent::new()
        .variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &url)
        .variable("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf")
        .variable("OTEL_METRIC_EXPORT_INTERVAL", "1000");
    // No profile is taken there.
    let nobody = [
        "--otlp-endpoint",
        "http://127.0.0.1:1",
        "--spool-limit",
        "0",
        "--shutdown-timeout",
        "1s",
    ];
    let running = agent.start(nobody.into_iter().chain(["--serve", "off"]));
    wait_for("metrics", || !collector.written().is_empty());
    running.send(Signal::TERM);
    running.finish();
    let (values, _) = points(collector.written().last().unwrap());
    assert_eq!(value(&values, "profiler_agent.ledger.exported", &[]), 0.0);
    assert!(
        !values
            .keys()
            .any(|(name, _)| name.starts_with("profiler_agent.history."))
    );

    let before = collector.written().len();
    let agent = Agent::new()
        .variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &url)
        .variable("OTEL_METRICS_EXPORTER", "none")
        .variable("OTEL_METRIC_EXPORT_INTERVAL", "1000");
    let mut running = agent.start(nobody);
    running.samples();
    std::thread::sleep(Duration::from_millis(2500));
    running.send(Signal::TERM);
    running.finish();
    assert_eq!(collector.written().len(), before);
}

#[test]
fn a_receiver_without_metrics_costs_one_warning() {
    let test = "a_receiver_without_metrics_costs_one_warning";
    if !root(test) {
        return;
    }
    let Some(mut site) = Site::find(test) else { return };
    let _collector = site.start(TO_FILE, "", "");
    let agent = Agent::new();
    let mut running = agent.start([
        "--otlp-endpoint",
        &site.url(Protocol::Grpc),
        "--metrics-interval",
        "1s",
        "--spool-limit",
        "0",
        "--serve",
        "off",
    ]);
    running.samples();
    wait_for("the warning", || running.stderr().contains("takes no metrics"));
    std::thread::sleep(Duration::from_secs(2));
    running.send(Signal::TERM);
    let run = running.finish();
    run.expect(0, &["--metrics-interval off"]);
    assert_eq!(
        run.stderr.matches("takes no metrics").count(),
        1,
        "{}",
        run.stderr
    );
}

#[test]
fn the_document_is_of_this_table() {
    golden::check("../../../docs/metrics.md", document().as_bytes());
}

/// <https://opentelemetry.io/docs/specs/semconv/general/naming/>
#[test]
fn names_are_by_the_conventions() {
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
    let exposed: BTreeSet<String> = METRICS.iter().map(prometheus_name).collect();
    assert_eq!(exposed.len(), METRICS.len());
    let is_name = |name: &str| {
        name.split('.').all(|part| {
            part.starts_with(|c: char| c.is_ascii_lowercase())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
    };
    for metric in METRICS {
        assert!(is_name(metric.name), "{}", metric.name);
        assert!(
            metric.name.starts_with("profiler_agent.") || metric.name.starts_with("process."),
            "{}",
            metric.name
        );
        // No name is the name space of another.
        assert!(
            !names
                .iter()
                .any(|other| other.starts_with(&format!("{}.", metric.name))),
            "{}",
            metric.name
        );
        let is_annotation = metric.unit.starts_with('{') && metric.unit.ends_with('}');
        assert!(
            is_annotation || ["By", "s"].contains(&metric.unit),
            "{}",
            metric.unit
        );
        assert!(metric.description.ends_with('.'), "{}", metric.description);
        assert!(metric.attributes.iter().all(|attribute| is_name(attribute.key)));
    }
}
