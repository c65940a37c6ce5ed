//! A real OpenTelemetry Collector, and what it writes.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    profiles::v1development::ProfilesData,
};
use profiler_agent::export::otlp::{
    client::{Accepted, Client, ExportError, Options},
    encode::{self, encode},
    endpoint::{Endpoint, Protocol},
};
use prost::Message;

use crate::support::{
    conformance::{Rule, assert_conforms},
    profiles, tools,
};

struct Collector {
    child: Child,
    folder: tempfile::TempDir,
    ports: [u16; 2],
}

impl Collector {
    /// Starts one on ports of its own, and waits until it is ready.
    fn start(test: &str, pipeline: &str) -> Option<Self> {
        let Some(program) = tools::find("PROFILER_TEST_COLLECTOR", None) else {
            tools::skip(
                test,
                "PROFILER_TEST_COLLECTOR, a Collector with the file exporter",
            );
            return None;
        };
        let ports = [(); 2].map(|()| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        });
        let folder = tempfile::TempDir::new().unwrap();
        let config = format!(
            r#"
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{}"}}
      http: {{endpoint: "127.0.0.1:{}"}}
exporters:
  file/proto: {{path: "{}/profiles.pb", format: proto, flush_interval: 50ms}}
  nop: {{}}
service:
  pipelines:
    {pipeline}
"#,
            ports[0],
            ports[1],
            folder.path().display()
        );
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&path)
            .arg("--feature-gates=+service.profilesSupport")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("Everything is ready") {
            assert!(
                log.read_line(&mut text).unwrap() > 0,
                "the Collector did not start:\n{text}"
            );
        }
        // Read on, or it blocks once the pipe is full.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self { child, folder, ports })
    }

    fn endpoint(&self, protocol: Protocol) -> Endpoint {
        let port = self.ports[usize::from(protocol == Protocol::Http)];
        Endpoint::parse(&format!("http://127.0.0.1:{port}"), Some(protocol)).unwrap()
    }

    /// Stops it, as a service manager does, and reads what it has written: length, request, length, request.
    fn finish(mut self) -> Vec<Vec<u8>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
        let bytes = read(&self.folder.path().join("profiles.pb"));
        let mut rest = bytes.as_slice();
        let mut requests = Vec::new();
        while let Some((length, others)) = rest.split_first_chunk::<4>() {
            let (request, others) = others.split_at(u32::from_be_bytes(*length).try_into().unwrap());
            requests.push(request.to_vec());
            rest = others;
        }
        requests
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a file of this test")]
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// The text of a resource's attribute. The file exporter writes keys and texts as references.
fn attribute(strings: &[String], attributes: &[KeyValue], key: &str) -> Option<String> {
    let string = |index: i32| strings[usize::try_from(index).unwrap()].as_str();
    let found = attributes.iter().find(|pair| {
        let name = if pair.key.is_empty() {
            string(pair.key_strindex)
        } else {
            &pair.key
        };
        name == key
    })?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::StringValueStrindex(index) => Some(string(*index).to_owned()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_sample_arrives_once() {
    let profile = profiles::server();
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let pipeline = "profiles: {receivers: [otlp], exporters: [file/proto]}";
        let Some(collector) = Collector::start("collector::every_sample_arrives_once", pipeline) else {
            return;
        };
        let mut client = Client::new(collector.endpoint(protocol), Options::default()).unwrap();
        // Small requests, so that there are several.
        let requests = encode(&profile, &encode::Options { limit: 8_000 });
        assert!(requests.len() > 2);
        for request in &requests {
            assert_eq!(
                client.export(request.bytes.clone()).await,
                Ok(Accepted::default())
            );
        }
        let mut events = 0;
        let mut services = std::collections::BTreeSet::new();
        let written = collector.finish();
        assert_eq!(written.len(), requests.len());
        for bytes in written {
            // The exporter turns keys and texts of resources into references (so that all keys are empty), and
            // gives the zero attribute an empty value.
            assert_conforms(
                &bytes,
                &[
                    Rule::InlineAttributes,
                    Rule::Canonical,
                    Rule::ZeroRow,
                    Rule::AttributeKey,
                    Rule::DuplicateKey,
                ],
            );
            let data = ProfilesData::decode(&*bytes).unwrap();
            let strings = &data.dictionary.as_ref().unwrap().string_table;
            for resource in &data.resource_profiles {
                let attributes = &resource.resource.as_ref().unwrap().attributes;
                services.insert(attribute(strings, attributes, "service.name").unwrap());
                let profiles = resource.scope_profiles.iter().flat_map(|scope| &scope.profiles);
                let samples = profiles.flat_map(|profile| &profile.samples);
                events += samples
                    .map(|sample| sample.timestamps_unix_nano.len() as u64)
                    .sum::<u64>();
            }
        }
        assert_eq!(events, profile.sample_count(), "{protocol}");
        let names: Vec<_> = services.iter().map(String::as_str).collect();
        assert_eq!(names, ["unknown_service:shop-server", "unknown_service:worker"]);
    }
}

#[tokio::test]
async fn without_a_pipeline_it_says_what_is_missing() {
    let test = "collector::without_a_pipeline_it_says_what_is_missing";
    let Some(collector) = Collector::start(test, "logs: {receivers: [otlp], exporters: [nop]}") else {
        return;
    };
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let options = Options {
            timeout: Duration::from_secs(5),
            ..Options::default()
        };
        let mut client = Client::new(collector.endpoint(protocol), options).unwrap();
        let request = encode(&profiles::server(), &encode::Options::default()).remove(0);
        let error = client.export(request.bytes).await.unwrap_err();
        assert!(matches!(error, ExportError::NoProfiles { .. }), "{error:?}");
    }
}
