//! OTLP: conforming, complete, split below its limit, and the same story as the other formats tell.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, any_value::Value},
    profiles::v1development::{ProfilesData, ProfilesDictionary, Sample},
};
use profiler_agent::{
    export::otlp::encode::{DEFAULT_LIMIT, Names, Options, Request, Times, encode},
    profile::Profile,
};
use proptest::prelude::*;
use prost::Message;

use crate::{
    folded, pprof,
    support::{
        conformance::{Rule, assert_conforms},
        golden, profiles, tools,
    },
};

fn limited(limit: usize) -> Options {
    Options {
        limit,
        ..Options::default()
    }
}

fn one(profile: &Profile) -> Request {
    let mut requests = encode(profile, &limited(usize::MAX));
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

fn text(value: Option<&AnyValue>) -> Option<String> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Attributes of a sample.
fn attributes(dictionary: &ProfilesDictionary, sample: &Sample) -> BTreeMap<String, String> {
    let rows = sample.attribute_indices.iter().map(|&index| {
        let row = &dictionary.attribute_table[usize::try_from(index).unwrap()];
        let key = &dictionary.string_table[usize::try_from(row.key_strindex).unwrap()];
        (key.clone(), text(row.value.as_ref()).unwrap())
    });
    rows.collect()
}

/// Number of events by pid, thread, CPU, outcome, and names of functions leaf first.
type Counts = BTreeMap<(String, BTreeMap<String, String>, Vec<String>), u64>;

fn count(requests: &[Request], into: &mut Counts) {
    for request in requests {
        let data = ProfilesData::decode(&*request.bytes).unwrap();
        let dictionary = data.dictionary.as_ref().unwrap();
        let row = |index: i32| usize::try_from(index).unwrap();
        let mut events = 0;
        for resource in &data.resource_profiles {
            let pid = resource
                .resource
                .as_ref()
                .unwrap()
                .attributes
                .iter()
                .find(|a| a.key == "process.pid");
            let pid = text(pid.unwrap().value.as_ref()).unwrap();
            for profile in resource.scope_profiles.iter().flat_map(|scope| &scope.profiles) {
                for sample in &profile.samples {
                    let names = dictionary.stack_table[row(sample.stack_index)]
                        .location_indices
                        .iter()
                        .flat_map(|&location| &dictionary.location_table[row(location)].lines)
                        .map(|line| &dictionary.function_table[row(line.function_index)])
                        .map(|function| dictionary.string_table[row(function.name_strindex)].clone())
                        .collect();
                    let number = match sample.values.as_slice() {
                        [] => sample.timestamps_unix_nano.len() as u64,
                        [value] => u64::try_from(*value).unwrap(),
                        _ => panic!("more than one value"),
                    };
                    let key = (pid.clone(), attributes(dictionary, sample), names);
                    *into.entry(key).or_default() += number;
                    events += number;
                }
            }
        }
        assert_eq!(events, request.events);
    }
}

/// The same from the profile itself.
fn expected(profile: &Profile) -> Counts {
    let mut counts = Counts::new();
    for sample in &profile.samples {
        let mut attributes = BTreeMap::from([
            ("thread.id".to_owned(), sample.tid.to_string()),
            ("cpu.logical_number".to_owned(), sample.cpu.to_string()),
        ]);
        let name = profile.string(sample.thread_name);
        if !name.is_empty() {
            attributes.insert("thread.name".to_owned(), name.to_owned());
        }
        let outcome = profile.stacks[sample.stack.index()].outcome;
        if !outcome.is_complete() {
            attributes.insert("profile.stack.outcome".to_owned(), outcome.name().to_owned());
        }
        if let Some(unwinding) = profile.unwinding(sample.stack) {
            attributes.insert("profile.stack.unwinding".to_owned(), unwinding.name().to_owned());
        }
        let names = profile.stacks[sample.stack.index()]
            .frames
            .iter()
            .flat_map(|location| &profile.locations[location.index()].lines)
            .map(|line| {
                let function = &profile.functions[line.function.index()];
                let names = [function.name, function.system_name, function.file].map(|id| profile.string(id));
                if names == [""; 3] { "[unknown]" } else { names[0] }.to_owned()
            })
            .collect();
        let pid = profile.processes[sample.process.index()].pid.to_string();
        *counts.entry((pid, attributes, names)).or_default() += sample.count;
    }
    counts
}

/// A file without a build ID keeps its row for its name; its hash comes with the unwinder's tables.
const EXCEPT: [Rule; 1] = [Rule::BuildId];

#[test]
fn server() {
    let request = one(&profiles::server());
    assert_conforms(&request.bytes, &[]);
    assert_eq!(request.events, 2800);
    let mut data = ProfilesData::decode(&*request.bytes).unwrap();
    for resource in &mut data.resource_profiles {
        for sample in &mut resource.scope_profiles[0].profiles[0].samples {
            sample.timestamps_unix_nano.truncate(1);
        }
    }
    golden::check("server.otlp.txt", format!("{data:#?}\n").as_bytes());
    assert_eq!(
        request,
        one(&profiles::server()),
        "the same profile gives the same bytes"
    );

    // Written by hand, but as prost would write it.
    // Ordered by program; the worker comes first.
    let resource = data.resource_profiles[1].resource.as_ref().unwrap();
    let keys: Vec<_> = resource.attributes.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "service.name",
            "process.executable.name",
            "process.executable.path",
            "process.pid",
            "process.creation.time",
            "host.name",
        ]
    );
    assert_eq!(
        text(resource.attributes[0].value.as_ref()).unwrap(),
        "unknown_service:shop-server"
    );
    assert_eq!(
        text(resource.attributes[4].value.as_ref()).unwrap(),
        "2026-11-21T03:01:11.250Z"
    );
}

#[test]
fn nothing_gives_no_request() {
    let mut profile = profiles::server();
    profile.samples.clear();
    assert_eq!(encode(&profile, &Options::default()), []);
}

#[test]
fn order_of_samples_does_not_matter() {
    let profile = profiles::server();
    let mut reversed = profile.clone();
    reversed.samples.reverse();
    assert!(one(&profile) == one(&reversed));
}

#[test]
fn long_samples_are_split() {
    let mut b = profiles::Builder::new("one stack");
    let process = b.process(1, "x", "/x");
    let function = b.function("spin", "spin", "", 0);
    let location = b.location(profiles::NATIVE, None, 1, &[function]);
    let stack = b.stack(&[location], profiler_common::Outcome::Complete);
    let times: Vec<u64> = (0..1_500_000).map(|i| profiles::START + i).collect();
    b.sample(process, 1, "x", 0, stack, &times);
    let requests = encode(&b.profile, &Options::default());
    assert_eq!(requests.len(), 3, "12 MB of timestamps");
    let mut all = Vec::new();
    for request in &requests {
        assert!(request.bytes.len() <= DEFAULT_LIMIT);
        assert_conforms(&request.bytes, &[]);
        let data = ProfilesData::decode(&*request.bytes).unwrap();
        let profile = &data.resource_profiles[0].scope_profiles[0].profiles[0];
        all.extend_from_slice(&profile.samples[0].timestamps_unix_nano);
    }
    assert_eq!(all, times);
    assert!(
        requests[..2]
            .iter()
            .all(|request| request.bytes.len() > DEFAULT_LIMIT - 200),
        "and full"
    );
}

#[test]
fn python_reads_it() {
    let test = "otlp::python_reads_it";
    let Some(python) = tools::find("PROFILER_TEST_PYTHON", None) else {
        return tools::skip(
            test,
            "PROFILER_TEST_PYTHON, a Python with opentelemetry-proto 1.45.2",
        );
    };
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("x.otlp");
    std::fs::write(&path, one(&profiles::server()).bytes).unwrap();
    let script = r#"
import sys
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.profiles.v1development.profiles_pb2 import ProfilesData
data = ProfilesData.FromString(open(sys.argv[1], "rb").read())
unknown = 0
def walk(message):
    global unknown
    unknown += len(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type is None: continue
        for child in (value if field.is_repeated else [value]): walk(child)
walk(data)
d = data.dictionary
total = 0
for r in data.resource_profiles:
    pid = next(a.value.int_value for a in r.resource.attributes if a.key == "process.pid")
    for s in r.scope_profiles:
        for p in s.profiles:
            n = sum(len(x.timestamps_unix_nano) for x in p.samples)
            total += n
            print(pid, d.string_table[p.sample_type.type_strindex], d.string_table[p.period_type.type_strindex], p.period, n)
names = {d.string_table[f.name_strindex] for f in d.function_table}
print("unknown", unknown, "total", total, "tcp_sendmsg" in names)
"#;
    let output = std::process::Command::new(python)
        .arg("-c")
        .arg(script)
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "4243 samples cpu 10101010 600\n4242 samples cpu 10101010 2200\nunknown 0 total 2800 True\n"
    );
}

/// The same without what was asked to be left out.
fn smaller(counts: Counts, times: Times, profile: &Profile, names: Names) -> Counts {
    let mut smaller = Counts::new();
    for ((pid, mut attributes, functions), count) in counts {
        if times == Times::None {
            attributes.remove("cpu.logical_number");
        }
        *smaller.entry((pid, attributes, functions)).or_default() += count;
    }
    if names == Names::None {
        // Which frames have none is said by their mappings; here it is enough that nothing is lost.
        let total: u64 = smaller.values().sum();
        assert_eq!(total, profile.sample_count());
    }
    smaller
}

#[test]
fn what_is_left_out_makes_it_smaller() {
    let profile = profiles::server();
    let size = |times, names| {
        let options = Options {
            times,
            names,
            ..limited(usize::MAX)
        };
        let request = encode(&profile, &options).remove(0);
        assert_conforms(&request.bytes, &[]);
        assert_eq!(request.events, 2800);
        request.bytes.len()
    };
    let all = size(Times::Exact, Names::All);
    assert!(size(Times::Exact, Names::Readable) < all);
    assert!(size(Times::Exact, Names::None) < size(Times::Exact, Names::Readable));
    assert_eq!(
        size(Times::Rounded, Names::All),
        all,
        "half of it, but when it is compressed"
    );
    assert!(size(Times::None, Names::All) * 4 < all);
    let one_process = one(&profile).bytes.len();
    let options = Options {
        resource: vec![("host.id".into(), "x".into()), ("host.name".into(), "y".into())],
        ..limited(usize::MAX)
    };
    let with_host = encode(&profile, &options).remove(0);
    assert_conforms(&with_host.bytes, &[]);
    assert!(with_host.bytes.len() > one_process);
}

#[test]
fn rounded_times_lie_less_than_a_hundredth_of_the_period_before() {
    let profile = profiles::server();
    let times = |times| {
        let options = Options {
            times,
            ..limited(usize::MAX)
        };
        let data = ProfilesData::decode(&*encode(&profile, &options).remove(0).bytes).unwrap();
        let profiles = data.resource_profiles.into_iter().flat_map(|r| r.scope_profiles);
        let samples = profiles
            .flat_map(|scope| scope.profiles)
            .flat_map(|profile| profile.samples);
        samples
            .flat_map(|sample| sample.timestamps_unix_nano)
            .collect::<Vec<u64>>()
    };
    let (exact, rounded) = (times(Times::Exact), times(Times::Rounded));
    assert_eq!(exact.len(), rounded.len());
    let start = profile.capture.start;
    for (exact, rounded) in exact.iter().zip(rounded) {
        assert!(rounded <= *exact && exact - rounded < profile.capture.period() / 100);
        assert!(rounded.trailing_zeros() >= 16 || rounded == start);
    }
}

proptest! {
    #[test]
    fn holds_every_sample_whatever_is_left_out(
        profile in profiles::arbitrary(),
        times in prop::sample::select(vec![Times::Exact, Times::Rounded, Times::None]),
        names in prop::sample::select(vec![Names::All, Names::Readable, Names::None]),
        limit in prop_oneof![Just(usize::MAX), 1..5_000_usize],
    ) {
        let requests = encode(&profile, &Options { times, names, ..limited(limit) });
        let mut counts = Counts::new();
        count(&requests, &mut counts);
        let expected = smaller(expected(&profile), times, &profile, names);
        if names == Names::All {
            prop_assert_eq!(&counts, &expected);
        }
        prop_assert_eq!(counts.values().sum::<u64>(), profile.sample_count());
        for request in &requests {
            assert_conforms(&request.bytes, &EXCEPT);
        }
    }

    #[test]
    fn holds_every_sample_at_any_limit(profile in profiles::arbitrary(), limit in prop_oneof![
        Just(usize::MAX), 1..500_usize, 500..5_000_usize, 5_000..50_000_usize,
    ]) {
        let requests = encode(&profile, &limited(limit));
        let mut counts = Counts::new();
        count(&requests, &mut counts);
        prop_assert_eq!(&counts, &expected(&profile));
        for request in &requests {
            assert_conforms(&request.bytes, &EXCEPT);
            let data = ProfilesData::decode(&*request.bytes).unwrap();
            let samples = data
                .resource_profiles
                .iter()
                .flat_map(|resource| &resource.scope_profiles)
                .flat_map(|scope| &scope.profiles)
                .map(|profile| profile.samples.len())
                .sum::<usize>();
            prop_assert!(request.bytes.len() <= limit || samples == 1, "{} > {limit}", request.bytes.len());
        }
    }

    #[test]
    fn folded_pprof_and_otlp_agree(profile in profiles::arbitrary()) {
        // By stack alone, in the names that a folded line can hold.
        let mut from_folded: BTreeMap<usize, u64> = BTreeMap::new();
        for (frames, count) in folded::lines(&profile) {
            *from_folded.entry(frames.len() - 1).or_default() += count;
        }
        let mut from_pprof: BTreeMap<usize, u64> = BTreeMap::new();
        let mut pprof_names: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for (mut names, count) in pprof::stacks(&profile) {
            names.pop();
            *from_pprof.entry(names.len()).or_default() += count;
            *pprof_names.entry(names).or_default() += count;
        }
        let mut from_otlp: BTreeMap<usize, u64> = BTreeMap::new();
        let mut otlp_names: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        let mut counts = Counts::new();
        count(&encode(&profile, &Options::default()), &mut counts);
        for ((_, _, names), count) in counts {
            *from_otlp.entry(names.len()).or_default() += count;
            let names = names.into_iter().map(|n| if n == "[unknown]" { String::new() } else { n }).collect();
            *otlp_names.entry(names).or_default() += count;
        }
        prop_assert_eq!(&from_folded, &from_pprof);
        prop_assert_eq!(&from_folded, &from_otlp);
        prop_assert_eq!(pprof_names, otlp_names);
    }
}
