//! Captures of real programs by the real binary on the running kernel: is what it says true?
//!
//! Every test here takes its turn: they measure CPU time. Rates are odd, so that nothing runs in step with a clock of the kernel.
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
    collections::BTreeSet,
    fs,
    ops::Range,
    path::Path,
    process::Stdio,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use support::{
    agent::{Agent, Run, Running},
    machine::Cpus,
    picture::{self, Otlp, PARTS, Picture, assert_count, assert_same, assert_split},
    tools,
    workload::{Report, Workload, alone, compiled, compiled_as, send, text, wait_for},
};

/// Samples per second where many are wanted.
const RATE: u64 = 997;

/// One capture of `split` that several tests look at.
struct Split {
    agent: Agent,
    run: Run,
    report: Report,
    /// What the host took from it meanwhile, in seconds.
    steal: f64,
    /// When the agent lived, nanoseconds since the Unix epoch.
    lived: Range<u64>,
}

/// One of each kind.
const OUTPUTS: [&str; 4] = ["out.folded", "out.svg", "out.pb.gz", "out.otlp"];

/// Nanoseconds since the Unix epoch.
fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(time.as_nanos()).unwrap()
}

/// To be looked at while [`alone`]. CPU time is the measure, not time: a busy machine takes longer, nothing else.
static SPLIT: LazyLock<Split> = LazyLock::new(|| {
    let agent = Agent::new();
    let program = compiled("split");
    let rate = RATE.to_string();
    let outputs = OUTPUTS.iter().flat_map(|output| ["-o", output]);
    let command = ["--", program.to_str().unwrap(), "report", "1500", "2"];
    let before = now();
    let cpus_before = Cpus::now();
    let run = agent.run(["-F", &rate].into_iter().chain(outputs).chain(command));
    let cpus = Cpus::now();
    run.expect(0, &["exited with code 0"]);
    let report = Report::read(&agent.path("report"));
    let steal = cpus.stolen_from(report.get("cpu") as f64 / 1e9, cpus_before);
    Split {
        agent,
        run,
        report,
        steal,
        lived: before..now(),
    }
});

#[test]
fn a_known_split_is_seen_in_every_output() {
    let Some(_alone) = alone("a_known_split_is_seen_in_every_output") else {
        return;
    };
    let folded = Picture::folded_file(&SPLIT.agent.path("out.folded"));
    let total = folded.total();
    // By the callers of the functions too, on their own threads.
    let samples = |part: &str| folded.within(&["work", "round_of_slices", part]);
    assert_split(samples, total, &SPLIT.report);

    // The others agree to the sample, frame by frame. Of some 3,000 samples none is too narrow for the picture.
    let frames = folded.frames();
    let mut svg = picture::svg(&SPLIT.agent.path("out.svg"));
    assert_eq!(svg.remove("all"), Some(total));
    for process in folded.processes() {
        assert_eq!(svg.remove(process), Some(folded.of_process(process)));
    }
    assert_same("svg", &svg, &frames);
    let otlp = Picture::otlp(&Otlp::read(&SPLIT.agent.path("out.otlp")));
    assert_eq!(otlp.total(), total);
    assert_same("otlp", &otlp.frames(), &frames);
    let test = "a_known_split_is_seen_in_every_output";
    if let Some(pprof) = Picture::pprof(test, &SPLIT.agent.path("out.pb.gz")) {
        assert_eq!(pprof.total(), total);
        assert_same("pprof", &pprof.frames(), &frames);
    }
}

#[test]
fn a_sample_has_the_time_on_the_wall() {
    let Some(_alone) = alone("a_sample_has_the_time_on_the_wall") else {
        return;
    };
    let Split { agent, lived, .. } = &*SPLIT;
    let otlp = Otlp::read(&agent.path("out.otlp"));
    let mut all = BTreeSet::<u64>::new();
    for (_, profile) in otlp.profiles() {
        let capture = profile.time_unix_nano..profile.time_unix_nano + profile.duration_nano;
        for sample in &profile.samples {
            let times = &sample.timestamps_unix_nano;
            assert!(times.is_sorted());
            assert!(
                times.iter().all(|time| capture.contains(time)),
                "{times:?} are not in {capture:?}"
            );
            all.extend(times);
        }
        // A tenth of a second for a clock that is being corrected.
        let slack = 100_000_000;
        assert!(
            capture.start > lived.start - slack && capture.end < lived.end + slack,
            "{capture:?}, {lived:?}"
        );
    }
    // The target was busy from its start to its end, and so are the samples: no two seconds in one heap.
    let (first, last) = (all.first().unwrap(), all.last().unwrap());
    let burnt = SPLIT.report.get("cpu") / 2;
    assert!(
        last - first > burnt * 9 / 10,
        "{first} to {last}, {burnt} ns of CPU time on each of two CPUs"
    );
}

#[test]
fn there_is_a_sample_for_each_period_of_cpu_time() {
    let Some(_alone) = alone("there_is_a_sample_for_each_period_of_cpu_time") else {
        return;
    };
    let Split {
        agent,
        run,
        report,
        steal,
        ..
    } = &*SPLIT;
    let folded = Picture::folded_file(&agent.path("out.folded"));
    assert_count(folded.total(), report, RATE, *steal);
    // The summary says the same, and that nothing was lost.
    run.expect(0, &["\nlost: 0\n", " samples of "]);
    let said = run.stderr.split(" samples of ").next().unwrap();
    let said = said.lines().last().unwrap().replace(',', "");
    assert_eq!(said.parse(), Ok(folded.total()), "{}", run.stderr);
}

#[test]
fn a_running_process_and_a_command_give_the_same_picture() {
    let Some(_alone) = alone("a_running_process_and_a_command_give_the_same_picture") else {
        return;
    };
    let command = Picture::folded_file(&SPLIT.agent.path("out.folded"));
    let agent = Agent::new();
    let report = agent.path("report");
    let mut target = Workload::start(&compiled("split"), [report.to_str().unwrap(), "60000", "2"]);
    let rate = RATE.to_string();
    let run = agent.run([
        "-p",
        &target.pid().to_string(),
        "-F",
        &rate,
        "-d",
        "1500ms",
        "-o",
        "-",
    ]);
    run.expect(0, &["\nlost: 0\n"]);
    target.terminate();
    let process = Picture::folded(&run.stdout);

    // Either is right about the split by itself; the report knows the whole life of the process, of which each part is alike.
    assert_split(
        |part| process.within(&[part]),
        process.total(),
        &Report::read(&report),
    );
    // And the stacks, from the root on, are the same, down to those that hold a share of 3 %.
    assert_eq!(process.main_stacks(0.03), command.main_stacks(0.03));
}

#[test]
fn kernel_frames_stand_on_the_user_frames_that_called_them() {
    let Some(_alone) = alone("kernel_frames_stand_on_the_user_frames_that_called_them") else {
        return;
    };
    let agent = Agent::new();
    let rate = RATE.to_string();
    let run = agent.run([
        "-F",
        &rate,
        "-o",
        "-",
        "--",
        compiled("copy").to_str().unwrap(),
        "500",
    ]);
    run.expect(0, &["\nlost: 0\n"]);
    let picture = Picture::folded(&run.stdout);
    // `copy` is nearly all the time in read(2), of which the name of the function in the kernel is as old as the kernel.
    let joined: u64 = picture
        .stacks
        .iter()
        .filter(|(stack, _)| {
            let mut frames = stack.iter();
            // In this order, whatever is between them.
            ["main", "copy_for", "copy_block", "ksys_read_[k]", "vfs_read_[k]"]
                .iter()
                .all(|expected| frames.any(|frame| frame == expected))
        })
        .map(|(_, count)| count)
        .sum();
    assert!(
        joined * 2 > picture.total(),
        "{joined} of {}:\n{}",
        picture.total(),
        run.stdout
    );
    // What was entered from user code is never a user's frame again.
    for stack in picture.stacks.keys() {
        let first = stack
            .iter()
            .position(|frame| frame.ends_with("_[k]"))
            .unwrap_or(stack.len());
        assert!(
            stack[first..].iter().all(|frame| frame.ends_with("_[k]")),
            "{stack:?}"
        );
    }
}

#[test]
fn a_command_is_sampled_from_its_first_instruction() {
    let Some(_alone) = alone("a_command_is_sampled_from_its_first_instruction") else {
        return;
    };
    let agent = Agent::new();
    let rate = RATE.to_string();
    let before = Cpus::now();
    let run = agent.run(["-F", &rate, "-o", "-", "--", compiled("early").to_str().unwrap()]);
    // It is over too soon for a share of it to say much.
    let steal = Cpus::now().stolen_since(before) * RATE as f64;
    // Its own success or failure is told, and is not the agent's.
    run.expect(0, &["exited with code 7", "\nlost: 0\n"]);
    let picture = Picture::folded(&run.stdout);
    // And nothing before it: what the agent did on its way is not the command's.
    assert_eq!(
        picture.processes().into_iter().collect::<Vec<_>>(),
        ["early"],
        "{}",
        run.stdout
    );
    // 300 ms of CPU time from fork to exit. The program has one function, and reads no clock between entry and burning: were it
    // sampled late by 60 ms, a fifth would be missing. Three deviations of 300 independent arrivals are 17 %, and
    // the truth is a third of that at most (see `assert_count`, for what the host takes too).
    let expected = 300.0 * RATE as f64 / 1000.0;
    let seen = picture.within(&["_start", "burn_[i]"]) as f64;
    println!("{seen} samples of {expected:.1}, {steal:.1} that the host may have added");
    assert!(
        seen > expected * 0.8 && (picture.total() as f64) < expected * 1.2 + steal,
        "expected {expected:.1} and {steal:.1} at most beside them:\n{}",
        run.stdout
    );
}

#[test]
fn a_command_is_asked_to_end_with_the_capture() {
    let Some(_alone) = alone("a_command_is_asked_to_end_with_the_capture") else {
        return;
    };
    let agent = Agent::new();
    let program = compiled("split");
    let run = agent.run([
        "-d",
        "500ms",
        "-o",
        "-",
        "--",
        program.to_str().unwrap(),
        "report",
        "60000",
        "1",
    ]);
    run.expect(0, &["exited with code 0"]);
    assert_eq!(Report::read(&agent.path("report")).get("asked_to_end"), 1);
    assert!(
        Picture::folded(&run.stdout).within(&["round_of_slices"]) > 0,
        "{}",
        run.stdout
    );
}

#[test]
fn children_are_in_and_strangers_are_out() {
    let Some(_alone) = alone("children_are_in_and_strangers_are_out") else {
        return;
    };
    // The stranger is busy, and so are its children, born during the captures.
    let _stranger = Workload::start(&compiled_as("family", "stranger"), ["20", "10000"]);
    let family = compiled("family");
    let agent = Agent::new();
    let rate = RATE.to_string();
    let check = |run: &Run| {
        run.expect(0, &["\nlost: 0\n"]);
        let picture = Picture::folded(&run.stdout);
        assert_eq!(
            picture.processes().into_iter().collect::<Vec<_>>(),
            ["family"],
            "{}",
            run.stdout
        );
        // Each burns as much as the others. A sixth, where a third is due, leaves room for what time the host takes.
        for generation in ["generation_one", "generation_two", "generation_three"] {
            let caller = if generation == "generation_three" {
                "main"
            } else {
                "one_round"
            };
            let samples = picture.within(&[caller, generation]);
            assert!(samples * 6 > picture.total(), "{generation}:\n{}", run.stdout);
        }
    };
    // All of it from the first instruction on.
    check(&agent.run(["-F", &rate, "-o", "-", "--", family.to_str().unwrap(), "100", "3"]));
    // A process that runs already; its children and theirs are born during the capture.
    let target = Workload::start(&family, ["20", "10000"]);
    let pid = target.pid().to_string();
    check(&agent.run(["-F", &rate, "-d", "1500ms", "-o", "-", "-p", &pid]));
}

#[test]
fn the_whole_host_is_every_process() {
    let Some(_alone) = alone("the_whole_host_is_every_process") else {
        return;
    };
    let agent = Agent::new();
    let (first, second) = (agent.path("first"), agent.path("second"));
    let _first = Workload::start(
        &compiled_as("split", "first_of_two"),
        [first.to_str().unwrap(), "60000", "1"],
    );
    let _second = Workload::start(
        &compiled_as("split", "other_of_two"),
        [second.to_str().unwrap(), "60000", "1"],
    );
    let rate = RATE.to_string();
    let run = agent.run(["-F", &rate, "-d", "1s", "-o", "-"]);
    run.expect(0, &["the whole host"]);
    let picture = Picture::folded(&run.stdout);
    // A hundredth of a CPU for each, however many others there are.
    for process in ["first_of_two", "other_of_two"] {
        let own: u64 = picture.of_process(process);
        assert!(own * 100 > RATE, "{process} has {own} samples:\n{}", run.stdout);
        let named = picture
            .stacks
            .keys()
            .any(|stack| stack[0] == process && stack.iter().any(|frame| frame == "sixty"));
        assert!(named, "{}", run.stdout);
    }
}

#[test]
fn the_end_of_the_target_ends_the_capture_and_loses_nothing() {
    let Some(_alone) = alone("the_end_of_the_target_ends_the_capture_and_loses_nothing") else {
        return;
    };
    let agent = Agent::new();
    let paths = [agent.path("first"), agent.path("other")];
    let programs = [
        compiled_as("split", "ends_early"),
        compiled_as("split", "ends_late"),
    ];
    let mut targets: Vec<Workload> = programs
        .iter()
        .zip(&paths)
        .map(|(program, report)| Workload::start(program, [report.to_str().unwrap(), "60000", "1"]))
        .collect();
    let pids = targets
        .iter()
        .map(|target| target.pid().to_string())
        .collect::<Vec<_>>()
        .join(",");
    let rate = RATE.to_string();
    let mut running = agent.start(["-p", &pids, "-F", &rate, "-d", "1h", "-o", "-"]);
    running.samples();
    let started = Instant::now();
    for target in &mut targets {
        std::thread::sleep(Duration::from_millis(700));
        target.terminate();
    }
    // An hour would be for ever: `finish` would say that it hangs.
    let run = running.finish();
    assert!(started.elapsed() < Duration::from_secs(60));
    run.expect(0, &["\nlost: 0\n"]);
    let picture = Picture::folded(&run.stdout);
    // The one that ended in the middle is there with names, as is the one that went on.
    for process in ["ends_early", "ends_late"] {
        let (mut named, mut nameless) = (0, 0);
        for (stack, count) in &picture.stacks {
            if stack[0] == process {
                let has_name = stack.iter().any(|frame| PARTS.contains(&frame.as_str()));
                *if has_name { &mut named } else { &mut nameless } += count;
            }
        }
        assert!(
            named > 20 && nameless * 10 < named,
            "{process}: {named}, {nameless}\n{}",
            run.stdout
        );
    }
    assert!(
        picture.of_process("ends_late") > picture.of_process("ends_early"),
        "{}",
        run.stdout
    );
}

/// Runs an agent on a busy process until a signal.
fn ended_by(signal: Signal) {
    let agent = Agent::new();
    let report = agent.path("report");
    let target = Workload::start(&compiled("split"), [report.to_str().unwrap(), "60000", "1"]);
    let mut running = agent.start(["-p", &target.pid().to_string(), "-o", "-", "-o", "out.svg"]);
    running.samples();
    std::thread::sleep(Duration::from_millis(700));
    running.send(signal);
    let run = running.finish();
    run.expect(0, &["out.svg"]);
    let picture = Picture::folded(&run.stdout);
    assert!(picture.within(&["round_of_slices"]) > 0, "{}", run.stdout);
    assert_eq!(picture::svg(&agent.path("out.svg"))["all"], picture.total());
    assert_eq!(agent.files(), ["out.svg"]);
}

#[test]
fn ctrl_c_writes_the_result() {
    let Some(_alone) = alone("ctrl_c_writes_the_result") else {
        return;
    };
    ended_by(Signal::INT);
}

#[test]
fn sigterm_writes_the_result() {
    let Some(_alone) = alone("sigterm_writes_the_result") else {
        return;
    };
    ended_by(Signal::TERM);
}

#[test]
fn a_second_signal_aborts_and_leaves_nothing() {
    let Some(_alone) = alone("a_second_signal_aborts_and_leaves_nothing") else {
        return;
    };
    for second in [Signal::INT, Signal::TERM] {
        let agent = Agent::new();
        let pids = tempfile::tempdir().unwrap();
        let pid_file = pids.path().join("pid");
        // It does not end when asked to, so the first signal has the agent wait for it.
        let program = compiled("stubborn");
        let mut running = agent.start([
            "-o",
            "out.svg",
            "--",
            program.to_str().unwrap(),
            pid_file.to_str().unwrap(),
        ]);
        running.samples();
        wait_for("the command", || {
            pid_file.exists() && text(&pid_file).ends_with('\n')
        });
        std::thread::sleep(Duration::from_millis(300));
        running.send(Signal::INT);
        std::thread::sleep(Duration::from_millis(300));
        running.send(second);
        let run = running.finish();
        // Left alone, as it would be without the agent.
        send(text(&pid_file).trim().parse().unwrap(), Signal::KILL);
        run.expect(130, &[]);
        assert_eq!(agent.files(), Vec::<String>::new());
    }
}

#[test]
fn a_command_that_does_not_end_is_told_of_and_left_alone() {
    let Some(_alone) = alone("a_command_that_does_not_end_is_told_of_and_left_alone") else {
        return;
    };
    let agent = Agent::new();
    let pids = tempfile::tempdir().unwrap();
    let pid_file = pids.path().join("pid");
    let program = compiled("stubborn");
    let run = agent.run([
        "-d",
        "300ms",
        "-o",
        "-",
        "--",
        program.to_str().unwrap(),
        pid_file.to_str().unwrap(),
    ]);
    let pid: u32 = text(&pid_file).trim().parse().unwrap();
    let lives = Path::new(&format!("/proc/{pid}")).exists();
    send(pid, Signal::KILL);
    run.expect(0, &["did not end on SIGTERM", &pid.to_string()]);
    assert!(lives);
    assert!(
        Picture::folded(&run.stdout).within(&["main", "never_mind"]) > 0,
        "{}",
        run.stdout
    );
}

/// A CPU that can be taken away; back whatever happens.
struct Cpu(String);

impl Cpu {
    fn set(&self, online: bool) -> std::io::Result<()> {
        fs::write(&self.0, if online { "1" } else { "0" })
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = self.set(true);
    }
}

#[test]
fn a_cpu_that_leaves_and_comes_back_is_sampled_again() {
    leave_and_come_back("a_cpu_that_leaves_and_comes_back_is_sampled_again", false);
}

/// As when the host is suspended: nobody runs meanwhile who could look.
#[test]
fn a_cpu_that_was_away_unseen_is_sampled_again() {
    leave_and_come_back("a_cpu_that_was_away_unseen_is_sampled_again", true);
}

fn leave_and_come_back(test: &str, unseen: bool) {
    let Some(_alone) = alone(test) else { return };
    let cpu = Cpu("/sys/devices/system/cpu/cpu1/online".into());
    if cpu.set(true).is_err() {
        tools::skip(test, "a second CPU that can be taken offline");
        return;
    }
    let agent = Agent::new();
    let program = compiled("comeback");
    let mut running = agent.start(["-F", "199", "-v", "-o", "-", "--", program.to_str().unwrap(), "1"]);
    running.samples();
    std::thread::sleep(Duration::from_millis(500));
    if unseen {
        running.send(Signal::STOP);
    }
    if let Err(error) = cpu.set(false) {
        tools::skip(test, &format!("a CPU that can be taken offline: {error}"));
        return;
    }
    // Seen within a second, as the agent looks that often.
    let is_told = |running: &Running<'_>, word: &str| {
        wait_for("word of the CPU", || running.stderr().contains(word));
    };
    if unseen {
        std::thread::sleep(Duration::from_millis(200));
    } else {
        is_told(&running, "went offline");
    }
    cpu.set(true).unwrap();
    if unseen {
        running.send(Signal::CONT);
    }
    is_told(&running, "came online");
    std::thread::sleep(Duration::from_millis(1000));
    running.send(Signal::TERM);
    let run = running.finish();
    run.expect(0, &["went offline"]);
    let picture = Picture::folded(&run.stdout);
    for function in ["before_it_left", "while_it_was_away", "after_it_came_back"] {
        assert!(
            picture.within(&["main", function]) > 0,
            "{function}:\n{}",
            run.stdout
        );
    }
}

#[test]
fn folded_stacks_are_all_there_is_on_the_standard_output() {
    let Some(_alone) = alone("folded_stacks_are_all_there_is_on_the_standard_output") else {
        return;
    };
    let agent = Agent::new();
    let report = agent.path("report");
    let target = Workload::start(&compiled("split"), [report.to_str().unwrap(), "60000", "1"]);
    let run = agent.run(["-p", &target.pid().to_string(), "-d", "500ms", "-q", "-o", "-"]);
    run.expect(0, &[]);
    assert_eq!(run.stderr, "", "-q is quiet");
    assert!(Picture::folded(&run.stdout).total() > 0);
    // For a reader that is gone the agent is no less careful with its files.
    let mut command = agent.command([
        "-p",
        &target.pid().to_string(),
        "-d",
        "500ms",
        "-o",
        "-",
        "-o",
        "out.svg",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(picture::svg(&agent.path("out.svg"))["all"] > 0);
    // Nor for one that has left the standard error: `2>&1 | head -1`.
    let mut command = agent.command(["-p", &target.pid().to_string(), "-d", "500ms", "-o", "second.svg"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(picture::svg(&agent.path("second.svg"))["all"] > 0);
}
