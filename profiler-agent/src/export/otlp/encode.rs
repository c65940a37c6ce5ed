//! A profile as requests: `ExportProfilesServiceRequest`, whose bytes are those of `ProfilesData` as well.
//!
//! Each request is complete in itself, below a limit, and holds no row that none of its samples needs. It grows
//! sample by sample; one that does not fit is taken back and opens the next request. So the size is never an estimate
//! by which something is cut too early, and nothing is encoded twice but the sample at each seam.
//!
//! The same profile gives the same bytes.

use std::{fmt::Write as _, str::FromStr};

use prost::bytes::Bytes;

use super::{
    dictionary::{Dictionary, Mark, number_attribute, packed_some, text_attribute},
    prepare::{Item, Prepared},
    wire::{bytes, fixed64, packed_fixed64_head, string, uint, varint, varint_len},
};
use crate::{
    export::text::Rfc3339,
    profile::{Kind, Process, Profile},
};

/// Version of the semantic conventions that the names of attributes come from.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// The default limit: 4 MiB, where gRPC servers in Go stop reading, less room for what a proxy adds.
pub const DEFAULT_LIMIT: usize = (4 << 20) - (64 << 10);

/// When each event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Times {
    /// To the nanosecond.
    #[default]
    Exact,
    /// To the largest power of two of nanoseconds that is no more than a hundredth of the sampling period, which compresses to half: at 99 Hz, 66 µs.
    /// An eighth of the period takes 0.25 bytes a sample less; but a timer that was late is on time again within a millisecond, and two samples of a
    /// thread would have one time.
    Rounded,
    /// Not at all: a count for events of one thread and stack, whatever the CPU.
    None,
}

/// Which names of functions are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// As people read them and as the linker knows them.
    #[default]
    All,
    /// As people read them.
    Readable,
    /// None of code of a file with a build ID, or OpenTelemetry's hash of it, which a receiver can name itself.
    None,
}

/// A word that is none of those to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not known; choose {choice}")]
pub struct UnknownChoice {
    given: String,
    choice: &'static str,
}

impl FromStr for Times {
    type Err = UnknownChoice;

    fn from_str(given: &str) -> Result<Self, UnknownChoice> {
        match given {
            "exact" => Ok(Self::Exact),
            "rounded" => Ok(Self::Rounded),
            "none" => Ok(Self::None),
            _ => Err(UnknownChoice {
                given: given.to_owned(),
                choice: "exact, rounded or none",
            }),
        }
    }
}

impl FromStr for Names {
    type Err = UnknownChoice;

    fn from_str(given: &str) -> Result<Self, UnknownChoice> {
        match given {
            "all" => Ok(Self::All),
            "readable" => Ok(Self::Readable),
            "none" => Ok(Self::None),
            _ => Err(UnknownChoice {
                given: given.to_owned(),
                choice: "all, readable or none",
            }),
        }
    }
}

/// How to encode. By default everything that a profile holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Most bytes of a request, before compression. Only a sample whose one stack is larger exceeds it.
    pub limit: usize,
    /// When each event was.
    pub times: Times,
    /// Which names of functions are sent.
    pub names: Names,
    /// Attributes of the host, which every resource has.
    pub resource: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limit: DEFAULT_LIMIT,
            times: Times::default(),
            names: Names::default(),
            resource: Vec::new(),
        }
    }
}

/// An encoded request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `ExportProfilesServiceRequest`, or `ProfilesData`: the same on the wire.
    pub bytes: Bytes,
    /// Events in it; those of all requests of a profile add up to [`Profile::sample_count`].
    pub events: u64,
    /// `Profile` messages in it.
    pub profiles: u32,
}

/// Encodes a profile. A profile without samples gives no request: the specification wants no empty ones.
pub fn encode(profile: &Profile, options: &Options) -> Vec<Request> {
    let prepared = Prepared::new(profile, options);
    let mut encoder = Encoder::new(&prepared, options);
    // One request is the rule; then its locations can stand in the order of their addresses. Else each request has what its own samples need.
    if !encoder.add_all_to_one() {
        encoder.add_all();
    }
    encoder.requests
}

/// What is open: the process and kind of the samples that are being added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    process: u32,
    kind: Kind,
}

/// How far a request had grown.
struct Checkpoint {
    dictionary: Mark,
    open: Option<Open>,
    samples: usize,
    events: u64,
}

struct Encoder<'p, 'a> {
    prepared: &'p Prepared<'a>,
    limit: usize,
    /// What times are multiples of, a power of two.
    step: u64,
    /// Attributes of the host.
    host: &'p [(String, String)],
    dictionary: Dictionary<'p, 'a>,
    /// Of a `ScopeProfiles`: its scope and the schema, which all have.
    scope: Vec<u8>,
    /// Finished `ResourceProfiles`, as elements.
    resources: Vec<u8>,
    /// The open process: its `Resource`, its finished `Profile`s as elements.
    resource: Vec<u8>,
    profiles: Vec<u8>,
    /// The open profile: its fields but the samples, its samples as elements.
    head: Vec<u8>,
    samples: Vec<u8>,
    open: Option<Open>,
    /// Finished `Profile`s in the request.
    closed: u32,
    events: u64,
    requests: Vec<Request>,
    /// The sample that is being made.
    body: Vec<u8>,
    /// Its timestamps.
    times: Vec<u64>,
    /// Text of a resource.
    text: String,
}

impl<'p, 'a> Encoder<'p, 'a> {
    fn new(prepared: &'p Prepared<'a>, options: &'p Options) -> Self {
        // Of a sample its rows and times, of a process its attributes.
        let profile = prepared.profile;
        let times: usize = profile.samples.iter().map(|sample| sample.timestamps.len()).sum();
        let room = profile.samples.len() * 24 + times * 8 + profile.processes.len() * 1024;
        let room = room.min(options.limit);
        Self {
            prepared,
            limit: options.limit,
            step: match options.times {
                Times::Exact | Times::None => 1,
                Times::Rounded => {
                    let most = prepared.profile.capture.period() / 100;
                    1 << most.max(1).ilog2()
                }
            },
            host: &options.resource,
            dictionary: Dictionary::new(prepared, options.limit),
            scope: scope(),
            resources: Vec::with_capacity(room),
            resource: Vec::with_capacity(4096),
            profiles: Vec::with_capacity(room),
            head: Vec::with_capacity(64),
            samples: Vec::with_capacity(room),
            open: None,
            closed: 0,
            events: 0,
            requests: Vec::new(),
            body: Vec::with_capacity(1024),
            times: Vec::with_capacity(128),
            text: String::with_capacity(64),
        }
    }

    /// Adds all samples to one request, behind all locations, and hands it out; whether they fit. If not, nothing is left of them.
    fn add_all_to_one(&mut self) -> bool {
        let prepared = self.prepared;
        let fits = self
            .dictionary
            .add_locations(prepared.locations_by_address(), self.limit)
            && self.samples_of_one();
        if fits {
            self.finish_request();
        } else {
            for buffer in [
                &mut self.resources,
                &mut self.resource,
                &mut self.profiles,
                &mut self.head,
                &mut self.samples,
            ] {
                buffer.clear();
            }
            self.open = None;
            self.closed = 0;
            self.events = 0;
            self.dictionary.clear();
        }
        fits
    }

    /// Adds samples as long as the request is below the limit; whether that was to the end.
    fn samples_of_one(&mut self) -> bool {
        let prepared = self.prepared;
        for items in prepared.items.chunk_by(Item::is_same) {
            let Some(item) = items.first() else {
                continue;
            };
            let (count, times) = self.gather(items);
            self.sample(item, count, &times);
            self.times = times;
            if self.len() > self.limit {
                return false;
            }
        }
        true
    }

    /// Adds all samples, and hands out the last request.
    fn add_all(&mut self) {
        let prepared = self.prepared;
        for items in prepared.items.chunk_by(Item::is_same) {
            if let Some(item) = items.first() {
                let (count, times) = self.gather(items);
                self.add(item, count, &times);
                self.times = times;
            }
        }
        self.finish_request();
    }

    /// Events and timestamps of one sample of the wire. Their memory is to be given back.
    fn gather(&mut self, items: &[Item]) -> (u64, Vec<u64>) {
        let (start, end) = self.window();
        let mut count = 0_u64;
        let mut timestamps = std::mem::take(&mut self.times);
        timestamps.clear();
        for sample in items.iter().filter_map(|item| self.prepared.sample(item)) {
            count = count.saturating_add(sample.count);
            if self.prepared.timed {
                // Receivers refuse a whole request for one timestamp outside.
                let times = sample.timestamps.iter();
                timestamps.extend(times.map(|&time| (time & !(self.step - 1)).clamp(start, end)));
            }
        }
        if items.len() > 1 {
            timestamps.sort_unstable();
        }
        (count, timestamps)
    }

    /// Adds one sample of the wire, in a request of its own if need be, in several if it has too many timestamps.
    fn add(&mut self, item: &Item, count: u64, timestamps: &[u64]) {
        if !self.prepared.timed {
            if !self.try_sample(item, count, &[]) {
                self.finish_request();
                self.sample(item, count, &[]);
            }
            return;
        }
        let mut rest = timestamps;
        while !rest.is_empty() {
            if self.try_sample(item, rest.len() as u64, rest) {
                return;
            }
            // It does not fit behind others, or not at all: then as much of it as fits a request.
            self.finish_request();
            let checkpoint = self.checkpoint();
            self.sample(item, 1, rest.get(..1).unwrap_or_default());
            // Sixteen bytes for the lengths, which grow too.
            let room = self.limit.saturating_sub(self.len() + 16);
            self.rewind(&checkpoint);
            let (now, later) = rest.split_at((1 + room / 8).min(rest.len()));
            self.sample(item, now.len() as u64, now);
            rest = later;
            if !rest.is_empty() {
                // The estimate was low: the rest may just fit behind, as a second sample of one identity.
                self.finish_request();
            }
        }
    }

    /// First and last timestamp that lie in the profile.
    fn window(&self) -> (u64, u64) {
        let capture = &self.prepared.profile.capture;
        let length = capture.duration.max(1);
        (capture.start, capture.start.saturating_add(length - 1))
    }

    /// Adds a sample if the request stays below the limit.
    fn try_sample(&mut self, item: &Item, count: u64, timestamps: &[u64]) -> bool {
        let checkpoint = self.checkpoint();
        self.sample(item, count, timestamps);
        let fits = self.len() <= self.limit;
        if !fits {
            self.rewind(&checkpoint);
        }
        fits
    }

    /// Adds a sample: `Sample { stack_index = 1, attribute_indices = 2, values = 4, timestamps_unix_nano = 5 }`.
    fn sample(&mut self, item: &Item, count: u64, timestamps: &[u64]) {
        self.open(Open {
            process: item.process,
            kind: item.kind,
        });
        let stack = self.dictionary.stack(item.stack);
        let attributes = item
            .attributes
            .map(|id| id.map(|id| self.dictionary.attribute(id)));
        self.body.clear();
        uint(&mut self.body, 1, stack.into());
        packed_some(&mut self.body, 2, attributes);
        if timestamps.is_empty() {
            let value = i64::try_from(count).unwrap_or(i64::MAX).unsigned_abs();
            varint(&mut self.body, 4 << 3 | 2);
            varint(&mut self.body, varint_len(value) as u64);
            varint(&mut self.body, value);
        } else {
            packed_fixed64_head(&mut self.body, 5, timestamps.len());
            for timestamp in timestamps {
                self.body.extend_from_slice(&timestamp.to_le_bytes());
            }
        }
        bytes(&mut self.samples, 2, &self.body);
        self.events = self.events.saturating_add(count);
    }

    /// Makes sure that samples go to this process and kind.
    fn open(&mut self, open: Open) {
        if self.open == Some(open) {
            return;
        }
        self.close_profile();
        if self.open.is_some_and(|other| other.process != open.process) {
            self.close_process();
        }
        if self.resource.is_empty() {
            let process = self.prepared.profile.processes.get(open.process as usize);
            resource(
                &mut self.resource,
                &mut self.text,
                self.prepared.profile,
                process,
                self.host,
            );
        }
        self.open = Some(open);
        self.profile_head(open.kind);
    }

    /// `Profile { sample_type = 1, time_unix_nano = 3, duration_nano = 4, period_type = 5, period = 6 }`.
    fn profile_head(&mut self, kind: Kind) {
        let (events, weight) = (kind.event_type(), kind.weight_type());
        let [name, unit] = [events.name, events.unit].map(|text| self.dictionary.constant(text));
        let [weight_name, weight_unit] = match kind {
            Kind::Cpu => [weight.name, weight.unit].map(|text| self.dictionary.constant(text)),
            Kind::Other(_) => [0; 2],
        };
        let value_type = |body: &mut Vec<u8>, name: u32, unit: u32| {
            body.clear();
            uint(body, 1, name.into());
            uint(body, 2, unit.into());
        };
        let capture = &self.prepared.profile.capture;
        self.head.clear();
        value_type(&mut self.body, name, unit);
        bytes(&mut self.head, 1, &self.body);
        fixed64(&mut self.head, 3, capture.start);
        uint(&mut self.head, 4, capture.duration.max(1));
        // A type without a period says nothing, but receivers refuse a profile that has none.
        match kind {
            Kind::Cpu => value_type(&mut self.body, weight_name, weight_unit),
            Kind::Other(_) => self.body.clear(),
        }
        bytes(&mut self.head, 5, &self.body);
        if kind == Kind::Cpu {
            uint(&mut self.head, 6, capture.period());
        }
    }

    fn close_profile(&mut self) {
        if self.samples.is_empty() {
            return;
        }
        // `ScopeProfiles.profiles` is field 2. Fields may come in any order.
        let length = self.head.len() + self.samples.len();
        varint(&mut self.profiles, 2 << 3 | 2);
        varint(&mut self.profiles, length as u64);
        self.closed += 1;
        self.profiles.append(&mut self.head);
        self.profiles.append(&mut self.samples);
    }

    /// `ResourceProfiles { resource = 1, scope_profiles = 2, schema_url = 3 }`,
    /// `ScopeProfiles { scope = 1, profiles = 2, schema_url = 3 }`.
    fn close_process(&mut self) {
        if self.profiles.is_empty() {
            self.resource.clear();
            return;
        }
        let head = &mut self.body;
        head.clear();
        bytes(head, 1, &self.resource);
        string(head, 3, SCHEMA_URL);
        let scope_len = self.scope.len() + self.profiles.len();
        varint(head, 2 << 3 | 2);
        varint(head, scope_len as u64);

        varint(&mut self.resources, 1 << 3 | 2);
        varint(&mut self.resources, (head.len() + scope_len) as u64);
        self.resources.append(head);
        self.resources.extend_from_slice(&self.scope);
        self.resources.append(&mut self.profiles);
        self.resource.clear();
    }

    /// Bytes of the request if it were finished now, or a few more: what is open is counted with the longest
    /// lengths and names that it can get.
    fn len(&self) -> usize {
        // Tags and lengths of five messages, two schema URLs, name and version of the scope.
        const FRAME: usize = 5 * 6 + 2 * (SCHEMA_URL.len() + 2) + 64;
        self.resources.len()
            + self.resource.len()
            + self.profiles.len()
            + self.head.len()
            + self.samples.len()
            + self.dictionary.len()
            + FRAME
    }

    /// Hands out the request, if there is anything in it, and begins another.
    fn finish_request(&mut self) {
        self.close_profile();
        self.close_process();
        self.open = None;
        self.head.clear();
        if self.resources.is_empty() {
            return;
        }
        let dictionary = self.dictionary.len();
        let mut bytes = Vec::with_capacity(self.resources.len() + dictionary + 6);
        bytes.append(&mut self.resources);
        varint(&mut bytes, 2 << 3 | 2);
        varint(&mut bytes, dictionary as u64);
        self.dictionary.write(&mut bytes);
        self.requests.push(Request {
            bytes: bytes.into(),
            events: std::mem::take(&mut self.events),
            profiles: std::mem::take(&mut self.closed),
        });
        self.dictionary.clear();
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            dictionary: self.dictionary.mark(),
            open: self.open,
            samples: self.samples.len(),
            events: self.events,
        }
    }

    /// Takes back the sample that was added since.
    fn rewind(&mut self, checkpoint: &Checkpoint) {
        self.dictionary.rewind(checkpoint.dictionary);
        self.events = checkpoint.events;
        if self.open == checkpoint.open {
            self.samples.truncate(checkpoint.samples);
            return;
        }
        // The sample opened a profile. The one before it is closed, which does not hurt: it is complete.
        self.open = None;
        self.samples.clear();
        self.head.clear();
        if self.profiles.is_empty() {
            self.resource.clear();
        }
    }
}

/// `ScopeProfiles { scope = 1, schema_url = 3 }`
fn scope() -> Vec<u8> {
    let (mut scope, mut out) = (Vec::new(), Vec::new());
    string(&mut scope, 1, env!("CARGO_PKG_NAME"));
    string(&mut scope, 2, env!("CARGO_PKG_VERSION"));
    bytes(&mut out, 1, &scope);
    string(&mut out, 3, SCHEMA_URL);
    out
}

/// The attributes of a process as a `Resource { attributes = 1 }`.
fn resource(
    out: &mut Vec<u8>,
    text: &mut String,
    profile: &Profile,
    process: Option<&Process>,
    host: &[(String, String)],
) {
    out.clear();
    let path = process.map_or("", |process| profile.string(process.executable));
    let name = path.rsplit('/').next().unwrap_or(path);
    let service = process.map_or("", |process| profile.string(process.service));
    if !service.is_empty() {
        text_attribute(out, 1, "service.name", &[service]);
    } else if name.is_empty() {
        // A kernel thread. Never its name: one thread of a program is not a service.
        text_attribute(out, 1, "service.name", &["unknown_service"]);
    } else {
        text_attribute(out, 1, "service.name", &["unknown_service:", name]);
    }
    if !name.is_empty() {
        text_attribute(out, 1, "process.executable.name", &[name]);
        text_attribute(out, 1, "process.executable.path", &[path]);
    }
    if let Some(process) = process {
        let title = profile.string(process.name);
        if !title.is_empty() && title != name {
            text_attribute(out, 1, "process.title", &[title]);
        }
        if process.pid != 0 {
            number_attribute(out, 1, "process.pid", process.pid);
        }
        if process.start != 0 {
            text.clear();
            // Writing to a string cannot fail.
            let _ = write!(text, "{:.3}", Rfc3339(process.start));
            text_attribute(out, 1, "process.creation.time", &[text]);
        }
        for (key, value) in &process.attributes {
            text_attribute(out, 1, profile.string(*key), &[profile.string(*value)]);
        }
    }
    let of_process = process.map_or(&[][..], |process| &process.attributes);
    for (key, value) in host {
        // The process itself may know better.
        if !of_process.iter().any(|(other, _)| profile.string(*other) == key) {
            text_attribute(out, 1, key, &[value]);
        }
    }
    if !profile.capture.host.is_empty() && !host.iter().any(|(key, _)| key == "host.name") {
        text_attribute(out, 1, "host.name", &[&profile.capture.host]);
    }
}
