//! The page: what is in it, and what it does in a real browser.

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
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use profiler_agent::{
    export::{folded::Options, speedscope, text::is_plain},
    profile::{
        Capture, Function, FunctionId, Kind, Line, Location, LocationId, Profile, Sample, Stack, StackId,
    },
    render::html,
};
use profiler_common::Outcome;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::{
    agent::{Agent, Run, address},
    profiles, tools,
    workload::{self, Workload},
};

fn page(profile: &Profile) -> String {
    let mut out = Vec::new();
    html::write(profile, &Options::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What stands between two texts, of which there is one.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    assert!(!rest.contains(before), "{before} is there twice");
    rest.split_once(after).unwrap().0
}

/// The data in a page.
fn columns(page: &str) -> Value {
    let packed = between(page, "<script type=\"text/plain\" id=\"profile\">", "</script>");
    let packed = STANDARD.decode(packed).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*packed)
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

fn numbers(columns: &Value, table: &str, column: &str) -> Vec<u64> {
    let list = columns[table][column].as_array().unwrap();
    list.iter().map(|number| number.as_u64().unwrap()).collect()
}

/// A stack with its process and thread, root first, each frame with its kind.
type Row = (u64, u64, Vec<(String, u64)>);

/// What a page says, as counts and times.
fn read(columns: &Value) -> BTreeMap<Row, (u64, Vec<u64>)> {
    let strings: Vec<&str> = columns["strings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    let (names, kinds) = (
        numbers(columns, "frames", "name"),
        numbers(columns, "frames", "kind"),
    );
    let (depths, frames) = (
        numbers(columns, "nodes", "depth"),
        numbers(columns, "nodes", "frame"),
    );
    let mut paths: Vec<Vec<(String, u64)>> = Vec::new();
    let mut open: Vec<u64> = Vec::new();
    for (&depth, &frame) in depths.iter().zip(&frames) {
        open.truncate(usize::try_from(depth).unwrap());
        assert_eq!(open.len() as u64, depth, "a node has a parent");
        open.push(frame);
        let name = |frame: &u64| {
            let frame = usize::try_from(*frame).unwrap();
            (
                strings[usize::try_from(names[frame]).unwrap()].to_owned(),
                kinds[frame],
            )
        };
        paths.push(open[1..].iter().map(name).collect());
    }
    let (tids, processes) = (
        numbers(columns, "threads", "tid"),
        numbers(columns, "threads", "process"),
    );
    let mut times = numbers(columns, "samples", "time").into_iter();
    let has_times = times.len() > 0;
    let mut rows = BTreeMap::new();
    let (threads, nodes) = (
        numbers(columns, "samples", "thread"),
        numbers(columns, "samples", "node"),
    );
    for ((thread, node), count) in threads
        .iter()
        .zip(&nodes)
        .zip(numbers(columns, "samples", "count"))
    {
        let thread = usize::try_from(*thread).unwrap();
        let path = paths[usize::try_from(*node).unwrap()].clone();
        let (all, at): &mut (u64, Vec<u64>) =
            rows.entry((processes[thread], tids[thread], path)).or_default();
        *all += count;
        if has_times {
            let mut time = 0;
            for _ in 0..count {
                time += times.next().unwrap();
                at.push(time);
            }
        }
    }
    assert_eq!(times.next(), None);
    rows.into_iter()
        .map(|(row, (count, mut times))| {
            times.sort_unstable();
            (row, (count, times))
        })
        .collect()
}

/// The same from the profile.
fn expected(profile: &Profile) -> BTreeMap<Row, (u64, Vec<u64>)> {
    let plain = |text: &str| -> String {
        let text: String = text.chars().map(|c| if is_plain(c) { c } else { '?' }).collect();
        if text.trim().is_empty() {
            "[unknown]".to_owned()
        } else {
            text
        }
    };
    let mut rows: BTreeMap<Row, (u64, Vec<u64>)> = BTreeMap::new();
    for sample in &profile.samples {
        let process = &profile.processes[sample.process.index()];
        let mut path = vec![(plain(profile.string(process.name)), 0)];
        for frame in profile.frames(sample.stack).rev() {
            use profiler_agent::profile::FrameKind;
            let kind = match (frame.kind, frame.inlined, frame.location.is_named) {
                (FrameKind::Kernel, ..) => 4,
                (FrameKind::Jit(_), true, _) => 2,
                (FrameKind::Jit(_), false, _) => 5,
                (FrameKind::Marker, ..) => 6,
                (FrameKind::Native(_), _, false) => 3,
                (FrameKind::Native(_), true, true) => 2,
                (FrameKind::Native(_), false, true) => 1,
            };
            path.push((plain(frame.name), kind));
        }
        let key = (u64::from(sample.process.0), u64::from(sample.tid), path);
        let (count, times) = rows.entry(key).or_default();
        *count += sample.count;
        let start = profile.capture.start;
        times.extend(sample.timestamps.iter().map(|time| (time - start) / 1_000_000));
    }
    for (_, times) in rows.values_mut() {
        times.sort_unstable();
    }
    rows
}

#[test]
fn is_whole_in_itself() {
    let page = page(&profiles::server());
    for foreign in [
        "http:",
        "https:",
        "//cdn",
        "url(",
        "@import",
        "src=",
        "<link rel=\"stylesheet",
    ] {
        assert!(!page.contains(foreign), "{foreign} is in the page");
    }
    let policy = between(&page, "http-equiv=\"Content-Security-Policy\" content=\"", "\"");
    assert!(
        policy.starts_with("default-src 'none'; ") && policy.contains("connect-src 'none'"),
        "{policy}"
    );
    for (open, close) in [("<script type=\"module\">", "</script>"), ("<style>", "</style>")] {
        let text = between(&page, open, close);
        let hash = STANDARD.encode(Sha256::digest(text));
        assert!(
            policy.contains(&format!("'sha256-{hash}'")),
            "{open} is not let in by {policy}"
        );
    }
    for place in ["policy", "version", "style", "script", "data"] {
        assert!(
            !page.contains(&format!("{{{{{place}}}}}")),
            "{place} is left to fill in"
        );
    }
    assert!(
        !page.contains("innerHTML") && !page.contains("eval("),
        "names are text"
    );
    assert_eq!(
        page,
        self::page(&profiles::server()),
        "the same profile gives the same bytes"
    );
}

#[test]
fn the_served_page_asks_its_own_host_alone() {
    let mut out = Vec::new();
    html::write_served(&mut out).unwrap();
    let page = String::from_utf8(out).unwrap();
    assert!(page.contains("connect-src 'self'"));
    assert!(!page.contains("id=\"profile\""));
}

#[test]
fn nothing_to_show() {
    let mut profile = profiles::server();
    profile.samples.clear();
    assert!(read(&columns(&page(&profile))).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn says_what_the_profile_says(profile in profiles::arbitrary()) {
        let columns = columns(&page(&profile));
        let (read, expected) = (read(&columns), expected(&profile));
        // Names are long: only what differs is told.
        for row in read.keys().chain(expected.keys()) {
            prop_assert_eq!(read.get(row), expected.get(row), "{:.2000}", format!("{row:?}"));
        }
        // Names are sorted, so that siblings are: their order is that of their numbers.
        let names = numbers(&columns, "frames", "name");
        let strings = columns["strings"].as_array().unwrap();
        let names: Vec<&str> = names[1..].iter().map(|&name| strings[usize::try_from(name).unwrap()].as_str().unwrap()).collect();
        prop_assert!(names.is_sorted());
    }
}

/// A profile of 100,000 distinct stacks, 36 deep, in which the deeper half of each is its own.
fn many() -> Profile {
    let mut b = profiles::Builder::new("100,000 stacks");
    let process = b.process(1, "many", "/usr/bin/many");
    let thread_name = b.string("many");
    let mut profile = b.profile;
    const FUNCTIONS: u32 = 5_000;
    const STACKS: u32 = 100_000;
    for number in 0..FUNCTIONS {
        let name = format!(
            "some_module_{}::Type{}::function_{number}",
            number % 40,
            number % 300
        );
        profile.strings.push(name.into());
        let name = profiler_agent::profile::StringId(u32::try_from(profile.strings.len() - 1).unwrap());
        let nothing = profiler_agent::profile::StringId(0);
        profile.functions.push(Function {
            name,
            system_name: name,
            file: nothing,
            start_line: 0,
        });
        profile.locations.push(Location {
            kind: profiles::NATIVE,
            mapping: None,
            address: number.into(),
            by_frame_pointer: false,
            is_named: true,
            lines: vec![Line {
                function: FunctionId(number),
                line: 0,
                column: 0,
            }],
        });
    }
    profile.capture = Capture {
        duration: 60_000_000_000,
        ..profile.capture
    };
    for stack in 0..STACKS {
        let mut width = 1.0_f64;
        let mut frames: Vec<LocationId> = (0..36_u32)
            .map(|depth| {
                width = (width * 1.6).min(f64::from(STACKS));
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "100,000 at most"
                )]
                let branch = stack % width as u32;
                let number = branch
                    .wrapping_mul(2_654_435_761)
                    .wrapping_add(depth.wrapping_mul(40_503));
                LocationId((number >> 7) % FUNCTIONS)
            })
            .collect();
        frames.reverse();
        profile.stacks.push(Stack {
            frames,
            outcome: Outcome::Complete,
        });
        let count = 1 + u64::from(stack.wrapping_mul(2_246_822_519) >> 29);
        let times = (0..count).map(|nth| {
            profiles::START
                + u64::from(stack.wrapping_mul(40_503) % 60_000) * 1_000_000 * (nth + 1) / (count + 1)
        });
        profile.samples.push(Sample {
            kind: Kind::Cpu,
            process,
            tid: 1,
            thread_name,
            cpu: 0,
            stack: StackId(stack),
            count,
            weight: count * profile.capture.period(),
            timestamps: times.collect(),
        });
    }
    profile
}

/// Node, or why the test did not run.
fn node(test: &str) -> Option<PathBuf> {
    let node = tools::find("PROFILER_TEST_NODE", Some("node"));
    if node.is_none() {
        tools::skip(test, "Node.js (`cargo xtask setup` installs it)");
    }
    node
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("page").join(name)
}

fn run<S: AsRef<OsStr>>(node: &Path, arguments: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(node).args(arguments).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout.into_owned()
}

#[test]
fn its_parts_without_a_browser() {
    let Some(node) = node("its_parts_without_a_browser") else {
        return;
    };
    let said = run(
        &node,
        [OsStr::new("--test"), source("test/unit.test.js").as_os_str()],
    );
    assert!(said.contains("# pass ") && !said.contains("# pass 0"), "{said}");
}

#[test]
fn in_a_browser() {
    const NAME: &str = "in_a_browser";
    let Some(node) = node(NAME) else {
        return;
    };
    let Some(browser) = tools::find("PROFILER_TEST_BROWSER", Some("chromium-headless-shell")) else {
        tools::skip(NAME, "Chromium (Debian package chromium-headless-shell)");
        return;
    };
    let Some(modules) = tools::find("PROFILER_TEST_PAGE_TOOLS", None) else {
        tools::skip(NAME, "playwright-core (`cargo xtask setup` installs it)");
        return;
    };
    let Some(_alone) = workload::alone(NAME) else {
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();

    let phases = workload::compiled("phases");
    let agent = Agent::new();
    let Run { code, stderr, .. } = agent.run([
        OsStr::new("-F"),
        OsStr::new("499"),
        OsStr::new("-o"),
        folder.join("real.html").as_os_str(),
        OsStr::new("-o"),
        folder.join("real.svg").as_os_str(),
        OsStr::new("--"),
        phases.as_os_str(),
        OsStr::new("2500"),
        OsStr::new("1"),
    ]);
    assert_eq!(code, Some(0), "{stderr}");

    let mut timeless = profiles::server();
    for sample in &mut timeless.samples {
        sample.timestamps.clear();
    }
    for (name, profile) in [
        ("hostile.html", profiles::hostile()),
        ("many.html", many()),
        ("timeless.html", timeless),
    ] {
        fs::write(folder.join(name), page(&profile)).unwrap();
    }
    let program = Workload::start(&workload::compiled("cycle"), ["1000"]);
    let running = agent.start(["--serve", "127.0.0.1:0", "-F", "199"]);
    let address = address(&running);
    // Of less there is nothing to choose from.
    std::thread::sleep(std::time::Duration::from_secs(12));

    let said = run(
        &node,
        [
            source("test/browser.js").as_os_str(),
            folder.as_os_str(),
            browser.as_os_str(),
            modules.as_os_str(),
            address.as_ref(),
        ],
    );
    drop((program, running));
    println!("{said}");
    assert!(said.matches(": fine").count() >= 15, "{said}");
}

/// What speedscope says of its files, in its own words.
#[test]
fn speedscope_takes_our_files() {
    const NAME: &str = "speedscope_takes_our_files";
    let Some(node) = node(NAME) else {
        return;
    };
    let Some(modules) = tools::find("PROFILER_TEST_PAGE_TOOLS", None) else {
        tools::skip(NAME, "speedscope's schema (`cargo xtask setup` installs it)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut counted = profiles::server();
    counted.capture.frequency = 0;
    let files: Vec<PathBuf> = [
        ("server", profiles::server()),
        ("hostile", profiles::hostile()),
        ("counted", counted),
    ]
    .into_iter()
    .map(|(name, profile)| {
        let path = folder.path().join(format!("{name}.json"));
        let mut bytes = Vec::new();
        speedscope::write(&profile, &mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    })
    .collect();
    let script = source("test/speedscope.js");
    let arguments = [script.as_os_str(), modules.as_os_str()];
    let said = run(
        &node,
        arguments
            .into_iter()
            .chain(files.iter().map(|file| file.as_os_str())),
    );
    assert_eq!(said.matches(": fine").count(), files.len(), "{said}");
}
