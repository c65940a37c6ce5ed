//! Profiles that are there already: read, merged, written, compared and told.
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
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use profiler_agent::{
    diff::Difference,
    export::{file::Format, folded, text::is_plain},
    profile::{Kind, Profile, Unit},
    read::{self, Options, Problem},
    render::difference,
    report::Report,
};
use proptest::prelude::*;
use support::{agent::Agent, golden, profiles, tools, workload::text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/read")
        .join(name)
}

fn read(bytes: &[u8]) -> Result<Profile, Problem> {
    read::bytes(bytes, &Options::default())
}

fn write(profile: &Profile, format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    format.write(profile, &mut out).unwrap();
    out
}

/// Folded stacks as a multiset.
fn lines(text: &[u8]) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for line in std::str::from_utf8(text).unwrap().lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        *lines.entry(stack.to_owned()).or_default() += count.parse::<u64>().unwrap();
    }
    lines
}

/// Stacks of a picture, by where its boxes lie; marks of frames are colours there.
fn stacks_of_svg(svg: &str) -> BTreeMap<String, u64> {
    let attribute = |text: &str, name: &str| -> Option<u64> {
        let (_, rest) = text.split_once(&format!("{name}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    // (bottom, x, width, name)
    let mut boxes: Vec<(u64, u64, u64, String)> = svg
        .split("<title>")
        .skip(1)
        .filter_map(|part| {
            let (title, rest) = part.split_once("</title>")?;
            let rect = rest.split_once("<rect ")?.1.split_once("/>")?.0;
            let name = title.rsplit_once(" (")?.0;
            Some((
                attribute(rect, " y")?,
                attribute(rect, "fg:x")?,
                attribute(rect, "fg:w")?,
                name.to_owned(),
            ))
        })
        .collect();
    // The root is at the bottom.
    boxes.sort_by_key(|(y, x, ..)| (std::cmp::Reverse(*y), *x));
    let mut stacks = BTreeMap::new();
    let within = |outer: &(u64, u64, u64, String), inner: &(u64, u64, u64, String)| {
        outer.1 <= inner.1 && inner.1 + inner.2 <= outer.1 + outer.2
    };
    let rows: Vec<u64> = {
        let mut rows: Vec<u64> = boxes.iter().map(|(y, ..)| *y).collect();
        rows.dedup();
        rows
    };
    for this in &boxes {
        let depth = rows.iter().position(|y| *y == this.0).unwrap();
        let above = rows.get(depth + 1);
        let children = boxes
            .iter()
            .filter(|other| Some(&other.0) == above && within(this, other));
        let own = this.2 - children.map(|child| child.2).sum::<u64>();
        if own > 0 && depth > 0 {
            let path = boxes
                .iter()
                .filter(|other| other.0 >= this.0 && within(other, this));
            let names: Vec<&str> = path.skip(1).map(|frame| frame.3.as_str()).collect();
            *stacks.entry(names.join(";")).or_default() += own;
        }
    }
    stacks
}

/// The rules of `file-format-schema.json` for what we write, and those of its reader.
fn is_speedscope(bytes: &[u8]) {
    let file: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!(
        file["$schema"],
        "https://www.speedscope.app/file-format-schema.json"
    );
    let frames = file["shared"]["frames"].as_array().unwrap();
    assert!(frames.iter().all(|frame| frame["name"].is_string()));
    let profiles = file["profiles"].as_array().unwrap();
    for profile in profiles {
        assert_eq!(profile["type"], "sampled");
        assert!(profile["name"].is_string());
        let units = [
            "bytes",
            "microseconds",
            "milliseconds",
            "nanoseconds",
            "none",
            "seconds",
        ];
        assert!(units.contains(&profile["unit"].as_str().unwrap()));
        let samples = profile["samples"].as_array().unwrap();
        let weights = profile["weights"].as_array().unwrap();
        assert_eq!(samples.len(), weights.len());
        for frame in samples.iter().flat_map(|sample| sample.as_array().unwrap()) {
            assert!(frame.as_u64().unwrap() < frames.len() as u64);
        }
        let sum: f64 = weights.iter().map(|weight| weight.as_f64().unwrap()).sum();
        let [start, end] = ["startValue", "endValue"].map(|key| profile[key].as_f64().unwrap());
        assert!((end - start - sum).abs() < 0.5, "{start} {end} {sum}");
    }
    assert!(file["name"].is_string() && file["exporter"].is_string() && !profiles.is_empty());
}

/// Lines as this project writes them.
fn ours() -> impl Strategy<Value = BTreeMap<String, u64>> {
    let frame = ("[a-z<>:&\"' ]{0,5}[a-z]", 0..8_u8);
    let stack = ("[a-z<&][a-z0-9-]{0,8}", prop::collection::vec(frame, 0..8));
    prop::collection::btree_map(stack, 1..1000_u64, 1..20).prop_map(|stacks| {
        let mut lines = BTreeMap::new();
        for ((process, frames), count) in stacks {
            let mut names = vec![process];
            let mut takes = false;
            for (name, mark) in frames {
                // What is inlined is so into something.
                let mark = match mark {
                    0 => "_[k]",
                    1 => "_[j]",
                    2 | 3 if takes => "_[i]",
                    _ => "",
                };
                takes = mark != "_[k]";
                names.push(format!("x{name}{mark}"));
            }
            *lines.entry(names.join(";")).or_default() += count;
        }
        lines
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_format_keeps_every_stack(lines_in in ours()) {
        let text: String = lines_in.iter().map(|(stack, count)| format!("{stack} {count}\n")).collect();
        let profile = read(text.as_bytes()).unwrap();
        prop_assert_eq!(&lines(&write(&profile, Format::Folded)), &lines_in);
        for format in [Format::Pprof, Format::Otlp, Format::Speedscope, Format::Folded] {
            let bytes = write(&profile, format);
            let again = read(&bytes).unwrap_or_else(|problem| panic!("{format:?}: {problem}"));
            prop_assert_eq!(&lines(&write(&again, Format::Folded)), &lines_in, "{:?}", format);
        }
        is_speedscope(&write(&profile, Format::Speedscope));
        let mut unmarked: BTreeMap<String, u64> = BTreeMap::new();
        for (stack, count) in &lines_in {
            let names: Vec<String> = stack
                .split(';')
                .map(|name| ["_[k]", "_[j]", "_[i]"].iter().find_map(|mark| name.strip_suffix(mark)).unwrap_or(name))
                .map(|name| name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&apos;"))
                .collect();
            *unmarked.entry(names.join(";")).or_default() += count;
        }
        let mut drawn = BTreeMap::new();
        let svg = String::from_utf8(write(&profile, Format::Svg)).unwrap();
        for (stack, count) in stacks_of_svg(&svg) {
            *drawn.entry(stack).or_default() += count;
        }
        // A picture leaves out what is a ten-thousandth of it, and shows that as its caller's own.
        let total: u64 = lines_in.values().sum();
        prop_assert_eq!(drawn.values().sum::<u64>(), total);
        if lines_in.values().all(|count| count * 10_000 > total) {
            prop_assert_eq!(drawn, unmarked);
        }
    }

    /// Whatever the names are, what was cleaned once stays as it is.
    #[test]
    fn hostile_names_settle(profile in profiles::arbitrary()) {
        let once = write(&profile, Format::Folded);
        let again = read(&once).unwrap();
        prop_assert_eq!(lines(&write(&again, Format::Folded)).values().sum::<u64>(), profile.sample_count());
        let settled = write(&again, Format::Folded);
        for format in [Format::Pprof, Format::Otlp, Format::Speedscope, Format::Folded] {
            let again = read(&write(&again, format)).unwrap();
            prop_assert_eq!(lines(&write(&again, Format::Folded)), lines(&settled), "{:?}", format);
        }
    }

    /// Nothing that a terminal takes for a command, and nothing wider than it.
    #[test]
    fn text_is_plain_and_fits(one in profiles::arbitrary(), other in profiles::arbitrary()) {
        let report = Report { profile: &one, rows: 100, columns: 60 };
        let difference = Difference { before: &one, after: &other, rows: 100, columns: 60 };
        for text in [report.to_string(), difference.to_string()] {
            prop_assert!(text.chars().all(|c| c == '\n' || is_plain(c)), "{text:?}");
            for line in text.lines().filter(|line| line.contains('…')) {
                prop_assert!(unicode_width::UnicodeWidthStr::width(line) <= 60, "{line:?}");
            }
        }
        let mut picture = Vec::new();
        difference::write(&one, &other, &mut picture).unwrap();
        let picture = String::from_utf8(picture).unwrap();
        prop_assert!(picture.chars().all(|c| c == '\n' || is_plain(c)));
        prop_assert_eq!(picture.matches("<script").count(), 1);
        let mut reader = quick_xml::reader::Reader::from_str(&picture);
        reader.config_mut().enable_all_checks(true);
        loop {
            match reader.read_event() {
                Ok(quick_xml::events::Event::Eof) => break,
                Ok(_) => {}
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}

/// Files as other tools write them.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/profile");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.push(fixture("collector.json"));
    paths.sort();
    #[expect(clippy::disallowed_methods, reason = "files of this repository")]
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Damage is an error or another profile, and never more than that.
    #[test]
    fn damaged_files_do_no_harm(
        seed in 0..seeds().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = seeds()[seed].clone();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(profile) = read(&bytes) {
            for format in [Format::Folded, Format::Pprof, Format::Otlp, Format::Svg] {
                let again = read(&write(&profile, format));
                if format != Format::Svg {
                    prop_assert_eq!(again.unwrap().sample_count(), profile.sample_count(), "{:?}", format);
                }
            }
            let report = Report { profile: &profile, rows: 5, columns: 80 }.to_string();
            prop_assert!(!report.is_empty());
        }
    }
}

#[test]
fn a_capture_is_the_same_after_reading() {
    let profile = profiles::server();
    let folded = write(&profile, Format::Folded);
    for format in [Format::Pprof, Format::Otlp] {
        let again = read(&write(&profile, format)).unwrap();
        assert_eq!(write(&again, Format::Folded), folded, "{format:?}");
        assert_eq!(again.kind(), Kind::Cpu);
        let (one, other) = (&again.capture, &profile.capture);
        assert_eq!(
            (one.start, one.duration, one.frequency, &one.host),
            (other.start, other.duration, other.frequency, &other.host),
            "{format:?}"
        );
    }
    // OTLP says all but what was lost and by which clock: the second time the bytes are the same.
    let again = read(&write(&profile, Format::Otlp)).unwrap();
    let outcomes = |profile: &Profile| {
        let mut outcomes: BTreeMap<_, u64> = BTreeMap::new();
        for sample in &profile.samples {
            *outcomes
                .entry(profile.stacks[sample.stack.index()].outcome)
                .or_default() += sample.count;
        }
        outcomes
    };
    assert_eq!(outcomes(&again), outcomes(&profile));
    assert_eq!(again.processes.len(), profile.processes.len());
    assert_eq!(
        again.mappings.iter().filter(|m| !m.build_id.is_empty()).count(),
        3
    );
    assert_eq!(
        write(&read(&write(&again, Format::Otlp)).unwrap(), Format::Otlp),
        write(&again, Format::Otlp)
    );
}

#[test]
fn profiles_of_go_are_read() {
    let cpu = read::files(&[fixture("go-cpu.pb.gz")], &Options::default())
        .unwrap()
        .profile;
    assert_eq!((cpu.kind(), cpu.capture.frequency), (Kind::Cpu, 100));
    let folded = String::from_utf8(write(&cpu, Format::Folded)).unwrap();
    assert!(
        folded.contains("made;runtime.main;main.main;main.spin;strings.Repeat"),
        "{folded}"
    );
    let heap = |sample_type: Option<&str>| {
        let options = Options {
            sample_type: sample_type.map(str::to_owned),
            ..Options::default()
        };
        read::files(&[fixture("go-heap.pb.gz")], &options)
    };
    let used = heap(None).unwrap().profile;
    assert_eq!(used.kind(), Kind::Other(Unit::Bytes));
    let folded = String::from_utf8(write(&used, Format::Folded)).unwrap();
    let kept = folded.lines().find(|line| line.contains(";main.keep ")).unwrap();
    let bytes: u64 = kept.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((60 << 20..72 << 20).contains(&bytes), "{kept}");
    assert_eq!(
        heap(Some("alloc_objects")).unwrap().profile.kind(),
        Kind::Other(Unit::Counts)
    );
    let error = heap(Some("cpu")).unwrap_err().to_string();
    assert!(
        error.contains("alloc_objects, alloc_space, inuse_objects, inuse_space"),
        "{error}"
    );
    // What it says, go itself says too, of what we write of it.
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.pb.gz");
    fs::write(&ours, write(&used, Format::Pprof)).unwrap();
    let Some(go) = tools::find("PROFILER_TEST_GO", Some("go")) else {
        tools::skip("profiles_of_go_are_read", "go (for `go tool pprof`)");
        return;
    };
    let top = Command::new(go)
        .args(["tool", "pprof", "-top", "-unit=B"])
        .arg(&ours)
        .env("PPROF_TMPDIR", folder.path())
        .output()
        .unwrap();
    let top = String::from_utf8(top.stdout).unwrap();
    assert!(
        top.contains(&format!("of {}B total", used.sample_count())),
        "{top}"
    );
}

#[test]
fn perf_script_is_read() {
    let contents = read::files(&[fixture("perf.txt")], &Options::default()).unwrap();
    let folded = String::from_utf8(write(&contents.profile, Format::Folded)).unwrap();
    let expected = "do_syscall_64_[k];__x64_sys_getdents64_[k];iterate_dir_[k];ext4_readdir_[k];call_filldir_[k];filldir64_[k];verify_dirent_name_[k];memchr_[k] 1";
    assert!(folded.contains(expected), "{folded}");
    assert_eq!(contents.notes, [""; 0]);
    let text = b"a 1 [0] 1.0: 1 cycles: \n\t1 f+0x1 (/bin/a)\n\n a 1 [0] 1.0: 1 faults: \nb 2 [0] 1.0: faults: \n\t2 g (/bin/b)\n";
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().write_all(text).unwrap();
    let contents = read::files(&[path.path().to_owned()], &Options::default()).unwrap();
    let notes = contents.notes.join("\n");
    assert!(
        notes.contains("1 samples of other events than cycles were left out"),
        "{notes}"
    );
    assert!(
        notes.contains("1 lines were not understood and left out, the first is line 4"),
        "{notes}"
    );
}

#[test]
fn folded_stacks_of_others_are_read() {
    // py-spy: no processes, and white space.
    let profile = read(b"<module> (a.py:1);f (a.py:5) 3\n<module> (a.py:1) 1\n").unwrap();
    assert_eq!(
        write(&profile, Format::Folded),
        b"<module> (a.py:1) 1\n<module> (a.py:1);f (a.py:5) 3\n"
    );
    for format in [Format::Pprof, Format::Otlp, Format::Speedscope] {
        let again = read(&write(&profile, format)).unwrap();
        assert_eq!(
            write(&again, Format::Folded),
            write(&profile, Format::Folded),
            "{format:?}"
        );
    }
    let profile = read(b"{closure#0};f 2\n").unwrap();
    assert_eq!(write(&profile, Format::Folded), b"{closure#0};f 2\n");
    // No UTF-8, fractions, the end of lines of another system.
    let profile = read(b"a;\xff\xfe;b 1.5\r\na;c 0\r\n\r\n").unwrap();
    assert_eq!(
        write(&profile, Format::Folded),
        "a;\u{fffd}\u{fffd};b 1\n".as_bytes()
    );
    let long = format!("a;{} 1\n", "x".repeat(100_000));
    let folded = write(&read(long.as_bytes()).unwrap(), Format::Folded);
    assert!(folded.len() < 70_000 && folded.ends_with("… 1\n".as_bytes()));
}

#[test]
fn json_of_the_collector_is_read() {
    let file = read::files(&[fixture("collector.json")], &Options::default()).unwrap();
    let expected = write(&profiles::server(), Format::Folded);
    assert_eq!(
        String::from_utf8(write(&file.profile, Format::Folded)).unwrap(),
        String::from_utf8(expected).unwrap()
    );
}

#[test]
fn what_cannot_be_read_says_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let otlp = write(&profiles::server(), Format::Otlp);
    let pprof = write(&profiles::server(), Format::Pprof);
    let deep = format!("a;{} 1\n", vec!["f"; read::MAX_DEPTH + 1].join(";"));
    for (name, bytes, words) in [
        ("empty", &b""[..], "holds no samples"),
        ("zero.folded", b"a;b 0\n", "holds no samples"),
        (
            "cut.otlp",
            &otlp[..otlp.len() / 2],
            "is no field of a protocol buffer: the file is cut short",
        ),
        (
            "cut.pb.gz",
            &pprof[..pprof.len() / 2],
            "cut short or damaged; copy the file once more",
        ),
        (
            "x.folded",
            b"a;b 1\na;c\n",
            "line 2 does not end in a space and a count",
        ),
        ("diff.folded", b"a;b 1 2\na;c 3 4\n", "profiler-agent diff"),
        (
            "deep.folded",
            deep.as_bytes(),
            "more than 8192 frames in one stack",
        ),
        ("x.svg", b"<?xml version=\"1.0\"?><svg/>", "is a picture"),
        ("perf.data", b"PERFILE2\0\0", "perf script -i"),
        ("x.json", b"{\"a\": 1}", "is not as its format wants it"),
        (
            "broken.json",
            b"{\"profiles\": [",
            "is not as its format wants it",
        ),
        (
            "program",
            b"\x7fELF\x02\x01\x01\0\0\0",
            "is no profile that is known here",
        ),
        ("text", b"hello\nworld\n", "is no profile that is known here"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = read::files(&[path], &Options::default()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{name}: {error}");
    }
    let limit = Options {
        limit: 1000,
        ..Options::default()
    };
    let big = folder.path().join("big");
    fs::write(&big, "a;b 1\n".repeat(1000)).unwrap();
    let error = read::files(&[big], &limit).unwrap_err().to_string();
    assert!(error.contains("holds more than"), "{error}");
    // A bomb: a gigabyte in a megabyte.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..1024 {
        gzip.write_all(&[0; 1 << 20]).unwrap();
    }
    assert_eq!(read(&gzip.finish().unwrap()), Err(Problem::TooLarge(256 << 20)));
}

#[test]
fn files_are_added_up() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one.folded", "other.folded"].map(|name| folder.path().join(name));
    fs::write(&one, "a;f 1\na;g 2\n").unwrap();
    fs::write(&other, "a;g 3\nb;f 4\n").unwrap();
    let sum = read::files(&[one, other], &Options::default()).unwrap().profile;
    assert_eq!(write(&sum, Format::Folded), b"a;f 1\na;g 5\nb;f 4\n");
    let mixed = [fixture("go-heap.pb.gz"), fixture("perf.txt")];
    let error = read::files(&mixed, &Options::default()).unwrap_err().to_string();
    assert!(
        error.contains("samples and bytes, which do not add up"),
        "{error}"
    );
}

/// A program, its pid and its files, for the tests of the command.
fn agent() -> Agent {
    let agent = Agent::new().variable("COLUMNS", "90");
    let profile = profiles::server();
    for format in Format::ALL {
        fs::write(
            agent.path(&format!("server{}", format.extension())),
            write(&profile, format),
        )
        .unwrap();
    }
    // The database has become twice as slow.
    let slower: String = String::from_utf8(write(&profile, Format::Folded))
        .unwrap()
        .lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((stack, count)) if line.contains("query") => {
                format!("{stack} {}\n", 2 * count.parse::<u64>().unwrap())
            }
            _ => format!("{line}\n"),
        })
        .collect();
    fs::write(agent.path("slower.folded"), slower).unwrap();
    agent
}

#[test]
fn report_and_diff_as_a_person_sees_them() {
    let agent = agent();
    let run = agent.run(["report", "server.pb.gz", "-n", "6"]);
    run.expect(0, &[]);
    golden::check("cli/report.txt", run.stdout.as_bytes());
    let run = agent.run(["diff", "server.otlp", "slower.folded", "-n", "5", "-o", "d.svg"]);
    run.expect(0, &["d.svg"]);
    golden::check("cli/diff.txt", run.stdout.as_bytes());
    let picture = text(&agent.path("d.svg"));
    assert!(picture.contains("shop-server") && picture.contains("more is red, less is blue"));
    let same = agent.run(["diff", "server.otlp", "server.pb.gz"]);
    same.expect(0, &[]);
    assert!(
        same.stdout.contains("none of 0 differences is more than chance"),
        "{}",
        same.stdout
    );
}

#[test]
fn render_writes_what_is_asked_for() {
    let agent = agent();
    let before = agent.files();
    let run = agent.run([
        "render",
        "server.otlp",
        "slower.folded",
        "-o",
        "x.svg",
        "-o",
        "x.pb.gz",
        "-o",
        "x.json",
        "-o",
        "-",
    ]);
    run.expect(0, &["x.svg (", "x.pb.gz (", "x.json ("]);
    let sum: u64 = lines(run.stdout.as_bytes()).values().sum();
    let [one, other] = ["server.folded", "slower.folded"]
        .map(|name| lines(text(&agent.path(name)).as_bytes()).values().sum::<u64>());
    assert_eq!(sum, one + other);
    for (arguments, code, words) in [
        (&["render", "server.otlp"][..], 2, "--output"),
        (
            &["render", "server.otlp", "-o", "x.svg"],
            1,
            "x.svg exists already",
        ),
        (
            &["render", "nothing.otlp", "-o", "y.svg"],
            1,
            "cannot read nothing.otlp",
        ),
        (&["render", "server.svg", "-o", "y.svg"], 1, "is a picture"),
        (
            &["diff", "server.otlp", "server.otlp", "-o", "y.pb.gz"],
            2,
            ".svg or an .html only",
        ),
        (&["diff", "server.otlp"], 2, "AFTER"),
        (&["report"], 2, "FILE"),
        (&["completions", "cmd"], 2, "bash"),
        (&["man", "cook"], 2, "there is no verb \"cook\"; there are"),
    ] {
        let run = agent.run(arguments);
        run.expect(code, &[words]);
        assert_eq!(run.stdout, "", "{arguments:?}");
    }
    let mut expected = [before, ["x.svg", "x.pb.gz", "x.json"].map(str::to_owned).to_vec()].concat();
    expected.sort();
    assert_eq!(agent.files(), expected, "nothing else is left");
}

/// Every flag of a verb, or of none, by its help.
fn flags(verb: &[&str]) -> Vec<String> {
    let run = Agent::new().run([verb, &["--help"]].concat());
    run.expect(0, &[]);
    let mut flags: Vec<String> = run
        .stdout
        .lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
        .map(|word| word.trim_end_matches('.').to_owned())
        .collect();
    flags.dedup();
    assert!(!flags.is_empty(), "{}", run.stdout);
    flags
}

const VERBS: [&str; 5] = ["render", "diff", "report", "completions", "man"];

#[test]
fn completions_know_every_flag_and_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let run = Agent::new().run(["completions", shell]);
        run.expect(0, &[]);
        let all = VERBS.iter().flat_map(|verb| flags(&[verb])).chain(flags(&[]));
        for flag in all {
            let name = if shell == "fish" {
                flag.trim_start_matches('-')
            } else {
                &flag
            };
            assert!(run.stdout.contains(name), "{shell} does not know {flag}");
        }
        assert!(VERBS.iter().all(|verb| run.stdout.contains(verb)));
        let Some(program) = tools::find("", Some(shell)) else {
            // Not everybody has all shells; bash is in every Debian.
            assert_ne!(shell, "bash");
            continue;
        };
        let mut check = Command::new(program)
            .arg("-n")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        check
            .stdin
            .take()
            .unwrap()
            .write_all(run.stdout.as_bytes())
            .unwrap();
        assert!(
            check.wait().unwrap().success(),
            "{shell} does not like its completions"
        );
    }
    // As bash asks for them.
    let script = Agent::new().run(["completions", "bash"]).stdout;
    for (words, expected) in [
        ("rep", "report"),
        ("report --sam", "--sample-type"),
        ("completions fi", "fish"),
    ] {
        let last = words.rsplit(' ').next().unwrap();
        let ask = format!(
            "{script}\nCOMP_WORDS=(profiler-agent {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _profiler__agent profiler-agent {last} profiler-agent; echo \"${{COMPREPLY[@]}}\""
        );
        let answer = Command::new("bash").arg("-c").arg(ask).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&answer.stdout).trim(),
            expected,
            "{words}"
        );
    }
}

#[test]
fn manual_pages_know_every_flag() {
    for verb in [&[][..]]
        .into_iter()
        .chain(VERBS.iter().map(std::slice::from_ref))
    {
        let run = Agent::new().run([&["man"], verb].concat());
        run.expect(0, &[]);
        assert!(run.stdout.contains(".TH profiler-agent"), "{}", run.stdout);
        let page = run.stdout.replace("\\-", "-");
        for flag in flags(verb) {
            assert!(page.contains(&flag), "{verb:?}: {flag}");
        }
        if let Some(groff) = tools::find("", Some("groff")) {
            let mut check = Command::new(groff)
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            check
                .stdin
                .take()
                .unwrap()
                .write_all(run.stdout.as_bytes())
                .unwrap();
            let output = check.wait_with_output().unwrap();
            assert!(output.status.success());
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
    }
}

#[test]
fn folded_options_follow_the_profile() {
    let profile = read(b"a;b 3\n").unwrap();
    assert_eq!(folded::Options::of(&profile).kind, Kind::Other(Unit::Events));
    assert_eq!(profile.kind().weight_type(), profile.kind().event_type());
}
