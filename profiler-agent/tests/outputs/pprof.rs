//! pprof, read by `go tool pprof`, which is not ours, and field by field.

use std::{collections::BTreeMap, io::Read, process::Command};

use flate2::read::GzDecoder;
use profiler_agent::{
    export::pprof::{self, message},
    profile::Profile,
};
use proptest::prelude::*;
use prost::Message;

use crate::support::{profiles, tools};

fn bytes(profile: &Profile) -> Vec<u8> {
    let mut out = Vec::new();
    pprof::write(profile, &mut out).unwrap();
    out
}

fn decode(bytes: &[u8]) -> message::Profile {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    message::Profile::decode(&*plain).unwrap()
}

/// Function names leaf first with the name of the process behind them, and the number of events.
pub(crate) fn stacks(profile: &Profile) -> BTreeMap<Vec<String>, u64> {
    let decoded = decode(&bytes(profile));
    let string = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].clone();
    let row = |id: u64| usize::try_from(id).unwrap() - 1;
    let mut stacks = BTreeMap::new();
    for sample in &decoded.sample {
        let mut names = Vec::new();
        for &id in &sample.location_id {
            let location = &decoded.location[row(id)];
            assert_eq!(location.id, id);
            for line in &location.line {
                let function = &decoded.function[row(line.function_id)];
                assert_eq!(function.id, line.function_id);
                names.push(string(function.name));
            }
        }
        let process = sample.label.iter().find(|label| string(label.key) == "process");
        names.push(process.map_or(String::new(), |label| string(label.str)));
        *stacks.entry(names).or_default() += u64::try_from(sample.value[0]).unwrap();
    }
    stacks
}

/// Runs `go tool pprof` over the bytes; `None` where there is no Go.
fn go_tool_pprof(test: &str, bytes: &[u8], arguments: &[&str]) -> Option<String> {
    let Some(go) = tools::find("PROFILER_TEST_GO", Some("go")) else {
        tools::skip(test, "go (for `go tool pprof`)");
        return None;
    };
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("x.pb.gz");
    std::fs::write(&path, bytes).unwrap();
    let output = Command::new(go)
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(&path)
        // Without these it looks for binaries, and for settings, in the home of whoever runs the test.
        .env("PPROF_BINARY_PATH", folder.path())
        .env("PPROF_TMPDIR", folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn go_reads_it() {
    let profile = profiles::server();
    let bytes = bytes(&profile);
    let test = "pprof::go_reads_it";
    let Some(top) = go_tool_pprof(test, &bytes, &["-top", "-sample_index=samples"]) else {
        return;
    };
    for expected in [
        "File: shop-server",
        "Type: samples",
        "Duration: 28s",
        "Showing nodes accounting for 2800, 100% of 2800 total",
        "       680 24.29%",
        "shop::page::escape",
        "alloc::string::String::push_str (inline)",
    ] {
        assert!(top.contains(expected), "{expected:?} is not in\n{top}");
    }
    let seconds = go_tool_pprof(test, &bytes, &["-top"]).unwrap();
    assert!(
        seconds.contains("Type: cpu") && seconds.contains("of 28.28s total"),
        "{seconds}"
    );

    let raw = go_tool_pprof(test, &bytes, &["-raw"]).unwrap();
    for expected in [
        "PeriodType: cpu nanoseconds",
        "Period: 10101010",
        "samples/count cpu/nanoseconds",
        "comm:[http-2]",
        "process:[image worker]",
        "stack:[no_rule]",
        "pid:[4242]",
        "tid:[4250]",
        "1: 0x1000/0x101000/0x1000 /usr/bin/shop-server abababababababababababababababababababab [FN][FL][LN][IN]",
        "/usr/lib/libc.so.6 1cff007e [FN]",
        "0x1100 M=1 alloc::string::String::push_str string.rs:10",
        "lost ring_full: 3",
    ] {
        assert!(raw.contains(expected), "{expected:?} is not in\n{raw}");
    }
    let peek = go_tool_pprof(test, &bytes, &["-peek=tcp_sendmsg", "-sample_index=samples"]).unwrap();
    assert!(peek.contains("entry_SYSCALL_64_after_hwframe"), "{peek}");
}

/// Fills the gap that a reader of one profile leaves: names no one would choose.
#[test]
fn go_reads_hostile_names() {
    let mut b = profiles::Builder::new(&profiles::HOSTILE.join(" "));
    let process = b.process(1, profiles::HOSTILE[0], profiles::HOSTILE[1]);
    let long = "y".repeat(10_000);
    for name in profiles::HOSTILE.into_iter().chain([long.as_str()]) {
        let function = b.function(name, name, name, 0);
        let location = b.location(profiles::NATIVE, None, 1, &[function]);
        let stack = b.stack(&[location], profiler_common::Outcome::Complete);
        b.sample(process, 1, name, 0, stack, &[profiles::START]);
    }
    let total = b.profile.sample_count();
    let bytes = bytes(&b.profile);
    if let Some(top) = go_tool_pprof(
        "pprof::go_reads_hostile_names",
        &bytes,
        &["-top", "-sample_index=0"],
    ) {
        assert!(top.contains(&format!("of {total} total")), "{top}");
    }
}

#[test]
fn same_profile_same_bytes() {
    let profile = profiles::server();
    let one = bytes(&profile);
    assert_eq!(one, bytes(&profile));
    assert_eq!(one[4..8], [0; 4], "no time in the header of gzip");
}

proptest! {
    #[test]
    fn holds_every_sample(profile in profiles::arbitrary()) {
        let decoded = decode(&bytes(&profile));
        let sum = |place: usize| decoded.sample.iter().map(|s| s.value[place]).sum::<i64>();
        prop_assert_eq!(sum(0), i64::try_from(profile.sample_count()).unwrap());
        prop_assert_eq!(sum(1), profile.samples.iter().map(|s| i64::try_from(s.weight).unwrap()).sum::<i64>());
        let string = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].as_str();
        for (ours, theirs) in profile.functions.iter().zip(&decoded.function) {
            prop_assert_eq!(profile.string(ours.name), string(theirs.name));
            prop_assert_eq!(profile.string(ours.system_name), string(theirs.system_name));
            prop_assert_eq!(profile.string(ours.file), string(theirs.filename));
        }
        for (ours, theirs) in profile.locations.iter().zip(&decoded.location) {
            prop_assert_eq!(ours.address, theirs.address);
            if let Some(mapping) = ours.mapping {
                let ours = &profile.mappings[mapping.index()];
                let theirs = &decoded.mapping[usize::try_from(theirs.mapping_id).unwrap() - 1];
                prop_assert_eq!((ours.start, ours.limit), (theirs.memory_start, theirs.memory_limit));
                prop_assert_eq!(profile.string(ours.path), string(theirs.filename));
                prop_assert_eq!(ours.build_id.len() * 2, string(theirs.build_id).len());
            } else {
                prop_assert_eq!(theirs.mapping_id, 0);
            }
        }
    }
}
