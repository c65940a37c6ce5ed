//! What an output says: how many samples there are, and in which frames. Read by means of the tests' own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::Path,
    process::Command,
};

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    profiles::v1development::{Profile as OtlpProfile, ProfilesData, ProfilesDictionary, ResourceProfiles},
};
use prost::Message as _;

use super::{
    conformance::{Rule, assert_conforms},
    tools,
    workload::{Report, text},
};

/// The functions of `split`.
pub const PARTS: [&str; 3] = ["sixty", "thirty", "ten"];

/// A profile as its reader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Stacks, root first, with the name of the process before it, and their samples.
    pub stacks: BTreeMap<Vec<String>, u64>,
}

impl Picture {
    /// Of folded stacks.
    pub fn folded(text: &str) -> Self {
        let mut stacks = BTreeMap::new();
        for line in text.lines() {
            let (stack, count) = line
                .rsplit_once(' ')
                .unwrap_or_else(|| panic!("no count: {line}"));
            let stack = stack.split(';').map(str::to_owned).collect();
            let count: u64 = count.parse().unwrap_or_else(|_| panic!("no count: {line}"));
            assert!(stacks.insert(stack, count).is_none(), "twice: {line}");
        }
        Self { stacks }
    }

    pub fn folded_file(path: &Path) -> Self {
        Self::folded(&text(path))
    }

    /// Of a pprof file, read by `go tool pprof`; where there is no Go, the test says so.
    pub fn pprof(test: &str, path: &Path) -> Option<Self> {
        let Some(go) = tools::find("PROFILER_TEST_GO", Some("go")) else {
            tools::skip(test, "go (for `go tool pprof`)");
            return None;
        };
        let output = Command::new(go)
            .args(["tool", "pprof", "-raw"])
            .arg(path)
            // Without these it looks for binaries, and for settings, in the home of whoever runs the test.
            .env("PPROF_BINARY_PATH", "/nonexistent")
            .env("PPROF_TMPDIR", path.parent().unwrap())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(Self::raw(&String::from_utf8(output.stdout).unwrap()))
    }

    /// Of what `go tool pprof -raw` prints.
    fn raw(raw: &str) -> Self {
        let (samples, rest) = raw
            .split_once("\nSamples:\n")
            .unwrap()
            .1
            .split_once("\nLocations\n")
            .unwrap();
        let locations = rest.split_once("\nMappings\n").unwrap().0;
        // `1: 0x1234 M=1 function file:line:column s=0`, and further functions on lines of their own, innermost first.
        let mut functions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut location = "";
        for line in locations.lines() {
            let mut line = line.trim_start();
            if let Some((id, rest)) = line.split_once(": 0x") {
                location = id;
                functions.entry(id).or_default();
                line = rest.split_once(' ').unwrap().1;
                line = line
                    .strip_prefix("M=")
                    .map_or(line, |line| line.split_once(' ').unwrap().1);
            }
            let name = line.rsplit(' ').nth(2).map(|_| {
                let (name, _) = line.rsplit_once(" s=").unwrap();
                name.rsplit_once(' ').unwrap().0
            });
            functions
                .get_mut(location)
                .unwrap()
                .push(name.unwrap_or("[unknown]"));
        }
        // `count nanoseconds: location location …`, leaf first, then labels on lines of their own.
        let mut picture = Self::default();
        let mut current: Option<(u64, Vec<String>)> = None;
        for line in samples.lines().skip(1) {
            if let Some((_, process)) = line.split_once(" process:[") {
                let (count, mut stack) = current.take().unwrap();
                stack.insert(0, process.split(']').next().unwrap().to_owned());
                *picture.stacks.entry(stack).or_default() += count;
            } else if let Some((values, ids)) = line.split_once(": ").filter(|_| !line.contains(":[")) {
                assert_eq!(current, None, "a sample of no process:\n{raw}");
                let count = values.split_whitespace().next().unwrap().parse().unwrap();
                let stack = ids.split_whitespace().flat_map(|id| &functions[id]);
                let mut stack: Vec<String> = stack.map(|&name| name.to_owned()).collect();
                stack.reverse();
                current = Some((count, stack));
            }
        }
        assert_eq!(current, None, "a sample of no process:\n{raw}");
        picture
    }

    /// Of OTLP.
    pub fn otlp(otlp: &Otlp) -> Self {
        let mut picture = Self::default();
        for (resource, profile) in otlp.profiles() {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            let process = string(attributes, "process.executable.name");
            for sample in &profile.samples {
                let names = otlp.row(sample.stack_index, |tables| &tables.stack_table);
                let names = names
                    .location_indices
                    .iter()
                    .flat_map(|&location| &otlp.row(location, |tables| &tables.location_table).lines);
                let mut stack: Vec<String> = names
                    .map(|line| {
                        let function = otlp.row(line.function_index, |tables| &tables.function_table);
                        otlp.row(function.name_strindex, |tables| &tables.string_table)
                            .clone()
                    })
                    .collect();
                stack.push(process.clone());
                stack.reverse();
                // Each time is one sample.
                assert_eq!(sample.values, [0_i64; 0]);
                *picture.stacks.entry(stack).or_default() += sample.timestamps_unix_nano.len() as u64;
            }
        }
        picture
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Samples whose stack holds these frames, next to each other, caller first.
    pub fn within(&self, path: &[&str]) -> u64 {
        self.stacks
            .iter()
            .filter(|(stack, _)| stack.windows(path.len()).any(|frames| frames == path))
            .map(|(_, count)| count)
            .sum()
    }

    /// Samples of the processes of a name.
    pub fn of_process(&self, name: &str) -> u64 {
        self.stacks
            .iter()
            .filter(|(stack, _)| stack[0] == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// Names of the processes.
    pub fn processes(&self) -> BTreeSet<&str> {
        self.stacks.keys().map(|stack| stack[0].as_str()).collect()
    }

    /// The stacks that hold at least a share of the samples.
    pub fn main_stacks(&self, share: f64) -> BTreeSet<&[String]> {
        let least = self.total() as f64 * share;
        self.stacks
            .iter()
            .filter(|&(_, &count)| count as f64 >= least)
            .map(|(stack, _)| stack.as_slice())
            .collect()
    }

    /// Functions and their samples, callees included, without the marks of kernel and inlined ones. One that calls itself counts
    /// twice.
    pub fn frames(&self) -> BTreeMap<String, u64> {
        let mut frames = BTreeMap::new();
        for (stack, count) in &self.stacks {
            // What a process is called may differ: by its thread here, by its executable there.
            for frame in &stack[1..] {
                let name = ["_[k]", "_[i]", "_[j]"]
                    .iter()
                    .find_map(|mark| frame.strip_suffix(mark));
                *frames.entry(name.unwrap_or(frame).to_owned()).or_default() += count;
            }
        }
        frames
    }
}

/// Frames of a flamegraph and their samples, by the titles that a browser shows; the number of all samples is under
/// `all`.
pub fn svg(path: &Path) -> BTreeMap<String, u64> {
    let svg = text(path);
    let mut frames = BTreeMap::new();
    for title in svg.split("<title>").skip(1) {
        let title = title.split("</title>").next().unwrap();
        let (name, rest) = title.rsplit_once(" (").unwrap();
        let count = rest.split(' ').next().unwrap().replace(',', "");
        let name = name
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&");
        *frames.entry(name).or_default() += count.parse::<u64>().unwrap_or_else(|_| panic!("{title}"));
    }
    frames
}

/// A frame of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its function.
    pub name: String,
    /// The file it is in; empty where there is none.
    pub file: String,
    /// `native`, `kernel` or `abort-marker`.
    kind: String,
}

impl Frame {
    pub fn is_marker(&self) -> bool {
        self.kind == "abort-marker"
    }

    pub fn is_kernel(&self) -> bool {
        self.kind == "kernel"
    }
}

/// OTLP, decoded by opentelemetry-proto.
#[derive(Debug)]
pub struct Otlp(ProfilesData);

impl Otlp {
    /// Of a file.
    pub fn read(path: &Path) -> Self {
        Self::read_except(path, &[])
    }

    /// Of a file in which some rules may be broken.
    #[expect(clippy::disallowed_methods, reason = "a file of the tests' own making")]
    pub fn read_except(path: &Path, except: &[Rule]) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::decode_except(&bytes, except)
    }

    /// Of a request; compressed ones are known by the first bytes of gzip.
    pub fn decode(bytes: &[u8]) -> Self {
        Self::decode_except(bytes, &[])
    }

    fn decode_except(bytes: &[u8], except: &[Rule]) -> Self {
        let mut plain = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::GzDecoder::new(bytes)
                .read_to_end(&mut plain)
                .unwrap();
        } else {
            plain.extend(bytes);
        }
        assert_conforms(&plain, except);
        Self(ProfilesData::decode(&*plain).unwrap())
    }

    /// Every profile and whose it is.
    pub fn profiles(&self) -> impl Iterator<Item = (&ResourceProfiles, &OtlpProfile)> {
        self.0.resource_profiles.iter().flat_map(|resource| {
            let scopes = resource.scope_profiles.iter();
            scopes.flat_map(move |scope| scope.profiles.iter().map(move |profile| (resource, profile)))
        })
    }

    /// Every stack, root first, and its samples. Functions that were inlined are left out: a frame is one on the stack.
    pub fn stacks(&self) -> impl Iterator<Item = (Vec<Frame>, u64)> {
        self.profiles().flat_map(move |(_, profile)| {
            profile.samples.iter().map(move |sample| {
                let stack = self.row(sample.stack_index, |tables| &tables.stack_table);
                let frames = stack.location_indices.iter().rev();
                let frames = frames.map(|&location| self.frame(location));
                (frames.collect(), sample.timestamps_unix_nano.len() as u64)
            })
        })
    }

    fn frame(&self, location: i32) -> Frame {
        let text = |index| self.row(index, |tables| &tables.string_table).clone();
        let location = self.row(location, |tables| &tables.location_table);
        let function = location.lines.last().map_or(0, |line| line.function_index);
        let function = self.row(function, |tables| &tables.function_table);
        let mapping = self.row(location.mapping_index, |tables| &tables.mapping_table);
        let kind = location.attribute_indices.iter().find_map(|&index| {
            let attribute = self.row(index, |tables| &tables.attribute_table);
            match attribute.value.as_ref()?.value.as_ref()? {
                Value::StringValue(kind) if text(attribute.key_strindex) == "profile.frame.type" => {
                    Some(kind.clone())
                }
                _ => None,
            }
        });
        Frame {
            name: text(function.name_strindex),
            file: text(mapping.filename_strindex),
            kind: kind.unwrap(),
        }
    }

    /// A row of a table of the dictionary.
    fn row<T>(&self, index: i32, table: impl Fn(&ProfilesDictionary) -> &Vec<T>) -> &T {
        let tables = self.0.dictionary.as_ref().unwrap();
        &table(tables)[usize::try_from(index).unwrap()]
    }
}

/// The text of an attribute.
fn string(attributes: &[KeyValue], key: &str) -> String {
    let attribute = attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.and_then(|attribute| attribute.value.as_ref()?.value.clone());
    match value {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

/// Fails unless two outputs of one capture hold the same frames with the same samples; says which do not.
pub fn assert_same(what: &str, left: &BTreeMap<String, u64>, right: &BTreeMap<String, u64>) {
    let all: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let different: Vec<_> = all
        .into_iter()
        .map(|frame| (frame, left.get(frame), right.get(frame)))
        .filter(|(_, left, right)| left != right)
        .collect();
    assert!(different.is_empty(), "{what}: {different:?}");
}

/// Fails unless the samples are divided as the CPU time was, within three standard deviations.
///
/// The deviation is that of a fair draw for every sample, sqrt(p (1 - p) / n). Samples come at regular intervals, and the
/// slices of the workload are longer than these: a slice of length t holds t / period samples rounded up or down. So the
/// true deviation is below 1/2 per slice, a third of the fair draw's at most, and a false alarm lies beyond nine of
/// them: its probability is far below 1e-4. Time in which no timer fired (see [`assert_count`]) may all be of one part.
pub fn assert_split(samples: impl Fn(&str) -> u64, total: u64, report: &Report) {
    let stolen = report.get("stolen") as f64 / report.get("cpu") as f64;
    for part in PARTS {
        let (share, seen) = (report.share(part), samples(part) as f64 / total as f64);
        let bound = 3.0 * (share * (1.0 - share) / total as f64).sqrt();
        let said = format!(
            "{part}: {seen:.4} of {total} samples, {share:.4} of the CPU time; 3 sigma are {bound:.4}, the host may have taken {stolen:.4}"
        );
        eprintln!("{said}");
        assert!((seen - share).abs() <= bound + stolen, "{said}");
    }
}

/// Fails unless there is a sample for each period of CPU time, within three standard deviations.
///
/// Each stretch of time that the target runs without a break is sampled at regular intervals: it holds its length / period samples,
/// rounded up or down by chance. With f the fraction, the variance of that is f (1 - f): at most 1/4, and at most the
/// number of samples. So sqrt(n), the deviation of independent arrivals, is an upper bound whatever else the machine
/// does, and at least twice the truth where stretches are longer than a period: a false alarm lies beyond six true
/// deviations, 1e-8.
///
/// What a bound by chance does not cover is time that the host of a virtual machine takes. Where the guest accounts it to
/// whoever ran, no timer fires in it: the workload has seen these gaps, and as many samples may be missing. Where the guest is told of it,
/// as the seconds of [`steal`](super::machine::Cpus), it is no CPU time, and as many samples may be too many.
pub fn assert_count(samples: u64, report: &Report, frequency: u64, steal: f64) {
    let periods = |nanoseconds: u64| nanoseconds as f64 * frequency as f64 / 1e9;
    let expected = periods(report.get("cpu"));
    let stolen = periods(report.get("stolen"));
    let steal = steal * frequency as f64;
    let bound = 3.0 * expected.sqrt();
    let samples = samples as f64;
    let said = format!(
        "{samples} samples; expected {expected:.1}, of which {stolen:.1} the host may have taken, and {steal:.1} beside them; 3 sigma are {bound:.1}"
    );
    eprintln!("{said}");
    assert!(
        samples >= expected - stolen - bound && samples <= expected + steal + bound,
        "{said}"
    );
}
