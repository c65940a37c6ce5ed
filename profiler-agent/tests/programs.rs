//! Real programs without frame pointers, as Debian ships them, from their first instruction on: are their stacks whole?
//!
//! `cargo xtask prove` does the same with many more programs, for longer, and asks perf and gdb as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that fails fails"
)]

mod support;

use profiler_common::Outcome;
use support::{
    agent::Agent,
    tools,
    workload::{alone, text},
};

/// Fewer stacks prove nothing.
const FEWEST: u64 = 300;

/// Runs a command in a shell for 4 seconds, under the agent, and looks at its user stacks.
fn assert_whole(test: &str, program: &str, command: &str) {
    let Some(_alone) = alone(test) else { return };
    if tools::find("", Some(program)).is_none() {
        return tools::skip(test, &format!("{program} (Debian package of that name)"));
    }
    let agent = Agent::new();
    let options = ["-F", "997", "-d", "4s", "-o", "out.folded"];
    let again = format!("while {command} > /dev/null; do :; done");
    let run = agent.run(options.into_iter().chain(["--", "sh", "-c", &again]));
    run.expect(0, &["stacks: "]);

    let markers: Vec<String> = Outcome::ALL
        .iter()
        .filter(|outcome| !outcome.is_complete())
        .map(|outcome| format!("[{}]", outcome.name().replace('_', " ")))
        .collect();
    let folded = text(&agent.path("out.folded"));
    let (mut whole, mut broken) = (0_u64, Vec::new());
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let frames: Vec<&str> = stack.split(';').skip(1).collect();
        if markers.iter().any(|marker| marker == frames[0]) {
            broken.push(line);
        } else if !frames.iter().all(|frame| frame.ends_with("_[k]")) {
            whole += count.parse::<u64>().unwrap();
        }
    }
    assert!(whole >= FEWEST, "only {whole} user stacks");
    // 99.9 %, but of fewer than 1,000 one may be broken.
    let most = (whole / 1000).max(1) as usize;
    assert!(broken.len() <= most, "{whole} whole, but:\n{}", broken.join("\n"));
}

#[test]
fn python3_is_whole() {
    let code = "import json; d = [{str(i): [i] * 5} for i in range(5000)]; [json.loads(json.dumps(d)) for _ in range(20)]";
    assert_whole(
        "python3_is_whole",
        "/usr/bin/python3",
        &format!("/usr/bin/python3 -c '{code}'"),
    );
}

#[test]
fn perl_is_whole() {
    let code = "sub f { my $n = shift; $n < 2 ? $n : f($n - 1) + f($n - 2) } f(22); @a = sort { $a <=> $b } map { rand } 1 .. 99999";
    assert_whole("perl_is_whole", "perl", &format!("perl -e '{code}'"));
}

#[test]
fn xz_is_whole() {
    assert_whole("xz_is_whole", "xz", "cat /bin/bash /bin/bash | xz -9 -T2");
}

#[test]
fn git_is_whole() {
    let history = concat!("git -C ", env!("CARGO_MANIFEST_DIR"), " log -p -M --stat -30");
    assert_whole("git_is_whole", "git", history);
}

#[test]
fn openssl_is_whole() {
    assert_whole(
        "openssl_is_whole",
        "openssl",
        "openssl speed -seconds 1 -bytes 4096 sha256 aes-128-cbc rsa2048 ecdsap256",
    );
}
