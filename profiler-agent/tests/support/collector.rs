//! A real OpenTelemetry Collector, and what it writes.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    profiles::v1development::ProfilesData,
};
use profiler_agent::export::otlp::endpoint::{Endpoint, Protocol};
use prost::Message as _;
use tempfile::TempDir;

use super::{conformance::Rule, tools};

/// What the file exporter changes: it turns keys and texts of resources into references (so that all keys are empty), and gives the zero
/// attribute an empty value.
pub const AS_REWRITTEN: &[Rule] = &[
    Rule::InlineAttributes,
    Rule::Canonical,
    Rule::ZeroRow,
    Rule::AttributeKey,
    Rule::DuplicateKey,
];

/// The pipeline that writes profiles to a file.
pub const TO_FILE: &str = "profiles: {receivers: [otlp], exporters: [file/proto]}";

/// Where a Collector listens and writes; it may be started there more than once.
#[derive(Debug)]
pub struct Site {
    program: PathBuf,
    folder: TempDir,
    ports: [u16; 2],
    starts: usize,
}

/// A running Collector; killed when dropped.
#[derive(Debug)]
pub struct Collector {
    child: Child,
    folder: PathBuf,
    ports: [u16; 2],
    output: PathBuf,
    /// Goes with it, if it is the only one there.
    site: Option<Site>,
}

impl Site {
    /// Ports and a folder for a test; says so if there is no Collector.
    pub fn find(test: &str) -> Option<Self> {
        let Some(program) = tools::find("PROFILER_TEST_COLLECTOR", None) else {
            tools::skip(
                test,
                "PROFILER_TEST_COLLECTOR, a Collector with the file exporter",
            );
            return None;
        };
        Some(Self {
            program,
            folder: TempDir::new().unwrap(),
            ports: [(); 2].map(|()| free_port()),
            starts: 0,
        })
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where it listens, or will.
    pub fn url(&self, protocol: Protocol) -> String {
        url(self.ports, "http", protocol)
    }

    /// Starts a Collector and waits until it is ready. `processors` is a section of its configuration, `server` further keys of both protocols.
    pub fn start(&mut self, pipeline: &str, processors: &str, server: &str) -> Collector {
        self.starts += 1;
        let output = self.path(&format!("profiles-{}.pb", self.starts));
        let config = format!(
            r#"
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{}"{server}}}
      http: {{endpoint: "127.0.0.1:{}"{server}}}
exporters:
  file/proto: {{path: "{}", format: proto, flush_interval: 50ms}}
  nop: {{}}
{processors}
service:
  pipelines:
    {pipeline}
"#,
            self.ports[0],
            self.ports[1],
            output.display()
        );
        let path = self.path("config.yaml");
        std::fs::write(&path, config).unwrap();
        self.run(&path, &[], output)
    }

    /// Starts one with a configuration that is there already, and variables for it. What it writes is nobody's here.
    pub fn start_file(&self, config: &Path, variables: &[(&str, String)]) -> Collector {
        self.run(config, variables, self.path("nothing"))
    }

    fn run(&self, config: &Path, variables: &[(&str, String)], output: PathBuf) -> Collector {
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(config)
            .envs(variables.iter().map(|(name, value)| (name, value)))
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
        Collector {
            child,
            folder: self.folder.path().to_owned(),
            ports: self.ports,
            output,
            site: None,
        }
    }
}

/// A port that stays free until a Collector listens there: below those that the kernel gives to whoever asks for any, one of which was somebody
/// else's by then.
fn free_port() -> u16 {
    const PORTS: Range<u16> = 20_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Programs of tests that run at one time begin at different places.
    let start = u16::try_from(std::process::id() % 12_000).unwrap();
    let mut ports = std::iter::repeat_with(|| {
        let next = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        PORTS.start + next % (PORTS.end - PORTS.start)
    });
    ports
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .unwrap()
}

fn url(ports: [u16; 2], scheme: &str, protocol: Protocol) -> String {
    let port = ports[usize::from(protocol == Protocol::Http)];
    format!("{scheme}://127.0.0.1:{port}")
}

impl Collector {
    /// Starts one on ports of its own, and waits until it is ready.
    pub fn start(test: &str, pipeline: &str) -> Option<Self> {
        let mut site = Site::find(test)?;
        let mut collector = site.start(pipeline, "", "");
        collector.site = Some(site);
        Some(collector)
    }

    pub fn endpoint(&self, protocol: Protocol) -> Endpoint {
        Endpoint::parse(&url(self.ports, "http", protocol), Some(protocol)).unwrap()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stops it, as a service manager does, and reads what it has written: length, request, length, request.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
        requests(&self.output)
    }

    /// What it has written so far; the last request may be on its way.
    pub fn written(&self) -> Vec<Vec<u8>> {
        requests(&self.output)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn requests(path: &Path) -> Vec<Vec<u8>> {
    let bytes = read(path);
    let mut rest = bytes.as_slice();
    let mut requests = Vec::new();
    while let Some((length, others)) = rest.split_first_chunk::<4>() {
        let Some((request, others)) =
            others.split_at_checked(u32::from_be_bytes(*length).try_into().unwrap())
        else {
            break;
        };
        requests.push(request.to_vec());
        rest = others;
    }
    requests
}

#[expect(clippy::disallowed_methods, reason = "a file of this test")]
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

/// The text of a resource's attribute. The file exporter writes keys and texts as references.
pub fn attribute(strings: &[String], attributes: &[KeyValue], key: &str) -> Option<String> {
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

/// One event of a sample: when, and whose. No two are equal, since no thread is sampled twice at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub time: u64,
    pub pid: u32,
    pub tid: i64,
    pub cpu: i64,
}

/// The events of a request.
pub fn events(request: &[u8]) -> Vec<Event> {
    let data = ProfilesData::decode(request).unwrap();
    let dictionary = data.dictionary.as_ref().unwrap();
    let strings = &dictionary.string_table;
    let mut events = Vec::new();
    for resource in &data.resource_profiles {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let pid = attribute(strings, attributes, "process.pid")
            .unwrap()
            .parse()
            .unwrap();
        let profiles = resource.scope_profiles.iter().flat_map(|scope| &scope.profiles);
        for sample in profiles.flat_map(|profile| &profile.samples) {
            let number = |key: &str| {
                let rows = sample.attribute_indices.iter();
                let mut rows = rows.map(|&row| &dictionary.attribute_table[usize::try_from(row).unwrap()]);
                let row = rows.find(|row| strings[usize::try_from(row.key_strindex).unwrap()] == key);
                match row.unwrap().value.as_ref().unwrap().value.as_ref().unwrap() {
                    Value::IntValue(number) => *number,
                    other => panic!("{other:?}"),
                }
            };
            let (tid, cpu) = (number("thread.id"), number("cpu.logical_number"));
            events.extend(
                sample
                    .timestamps_unix_nano
                    .iter()
                    .map(|&time| Event { time, pid, tid, cpu }),
            );
        }
    }
    events
}

/// The attributes of a process in a request.
pub fn resource_of(request: &[u8], pid: u32) -> Vec<(String, String)> {
    let data = ProfilesData::decode(request).unwrap();
    let strings = &data.dictionary.as_ref().unwrap().string_table;
    let resources = data.resource_profiles.iter();
    let resources = resources.map(|resource| &resource.resource.as_ref().unwrap().attributes);
    let of_process =
        resources.filter(|attributes| attribute(strings, attributes, "process.pid") == Some(pid.to_string()));
    of_process
        .flatten()
        .map(|pair| {
            let key = match pair.key.as_str() {
                "" => strings[usize::try_from(pair.key_strindex).unwrap()].clone(),
                key => key.to_owned(),
            };
            let value = attribute(strings, std::slice::from_ref(pair), &key).unwrap();
            (key, value)
        })
        .collect()
}
