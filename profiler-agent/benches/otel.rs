//! What one sample costs in the kernel, the agent's against that of the OpenTelemetry eBPF profiler, by the kernel's own accounting
//! (bpf_stats; the programs that its entry program goes on with by tail call are accounted to it).
//!
//! The target is a C program 33 frames deep, without frame pointers, that has CPU 0 nearly for itself; at 99 Hz. The two run in turn, in
//! rounds, never side by side: each is started anew and given time to read the target's tables, and then measured by differences. What counts
//! is the median over the rounds of the ratio within a round.
//!
//! The profiler samples whatever runs on CPU 0, which it is held to; so does the agent's clock, whose programs drop what is not the target.
//! How much of the CPU the target had is checked, and that the profiler walked its stacks: by its own count of frames. It sends what it finds
//! to the OpenTelemetry Collector of the tests, which throws it away.
//!
//! Run by `cargo xtask bench otel`, as root.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use aya::{
    maps::{Map, MapData, PerCpuArray, loaded_maps},
    programs::loaded_programs,
};
use profiler_agent::procfs;
use support::{
    Bars, Running, figure, median, otel_profiler,
    sampled::Sampled,
    target::{self, Frames, Work},
};

const FREQUENCY: u32 = 99;
const ROUNDS: usize = 5;
const SPAN: Duration = Duration::from_secs(5);
/// Functions below `main`'s callers, and bytes of each frame.
const CALLS: u32 = 30;
const FRAME: u32 = 64;
const BAR: f64 = 0.33;

/// Its entry program, `native_tracer_entry`: the kernel keeps 15 bytes of a name.
const ENTRY: &[u8] = b"native_tracer_e";
/// Its counters, and the number of the one of frames walked.
const METRICS: &[u8] = b"metrics";
const WALKED: u32 = 6;

fn main() -> ExitCode {
    let program = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .expect("run me by `cargo xtask bench otel`, which builds what is compared with")
    };
    let (profiler, collector) = (program("PROFILER_BENCH_OTEL"), program("PROFILER_TEST_COLLECTOR"));
    let _accounting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("bpf_stats; are you root?");
    let folder = tempfile::tempdir().expect("temporary folder");
    let port = free_port();
    let configuration = folder.path().join("collector.yaml");
    std::fs::write(
        &configuration,
        format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{port}\"}}}}}}}}\nexporters: {{nop: {{}}}}\nservice: \
             {{pipelines: {{profiles: {{receivers: [otlp], exporters: [nop]}}}}}}\n"
        ),
    )
    .expect("configuration");
    let _collector = Running::start_now(
        Command::new(collector)
            .arg("--config")
            .arg(&configuration)
            .arg("--feature-gates=+service.profilesSupport")
            .stderr(Stdio::null()),
    );
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait("the Collector", || TcpStream::connect(address).is_ok());

    let sleeper = Running::start(Command::new("sleep").arg("1200"));
    let target = target::deep(folder.path(), Frames::Tables, FRAME, CALLS, Work::Writing);
    let dropped = Sampled::new(sleeper.pid(), FREQUENCY).run(SPAN);
    let dropped = dropped.time / dropped.runs as f64;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let other = other(&profiler, port, &target);
        let seen = target.awake(|| {
            let mut agent = Sampled::new(target.pid(), FREQUENCY);
            agent.warm_up();
            agent.run(SPAN)
        });
        assert!(
            seen.finished as f64 >= 0.99 * seen.samples as f64 && seen.least >= 33 && seen.chained == 0,
            "{seen:?}"
        );
        let agent = (seen.time - dropped * (seen.runs - seen.samples) as f64) / seen.samples as f64;
        println!(
            "agent {agent:.0} ns, {} samples, {:.1} frames each; OpenTelemetry eBPF profiler {:.0} ns, {} samples, {:.1} frames each; the target had {:.1} % of CPU 0",
            seen.samples,
            seen.user as f64 / seen.samples as f64,
            other.time,
            other.runs,
            other.frames,
            other.share * 100.0
        );
        ours.push(agent);
        theirs.push(other.time);
        ratios.push(agent / other.time);
    }
    println!(
        "{FREQUENCY} Hz (cold), 33 frames of {FRAME} bytes without frame pointers: {} ns a sample, the OpenTelemetry eBPF profiler {} ns",
        figure(median(&ours)),
        figure(median(&theirs))
    );
    let mut bars = Bars::default();
    bars.at_most(
        "kernel side / OpenTelemetry eBPF profiler, 33 frames, 99 Hz (cold)",
        median(&ratios),
        BAR,
        "x",
    );
    bars.code()
}

/// What the other profiler did.
struct Other {
    /// Nanoseconds of a run of its entry program.
    time: f64,
    runs: u64,
    /// Frames of a stack.
    frames: f64,
    /// Part of CPU 0 that the target had.
    share: f64,
}

/// One round of it.
fn other(profiler: &Path, port: u16, target: &Running) -> Other {
    let receiver = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _profiler = Running::start_now(
        otel_profiler(profiler, receiver, FREQUENCY)
            .args(["-pin-cpu-ids", "0"])
            // It takes its counters back to 0 whenever it reads them.
            .args(["-monitor-interval", "1h"]),
    );
    wait("the OpenTelemetry eBPF profiler", || cost().is_some());
    target.awake(|| measure(target.pid()))
}

/// What the profiler that runs does with the target.
fn measure(target: u32) -> Other {
    // Until it has the tables it walks nothing, which is cheap: under load, 15 s and longer.
    let mut last = (0, 0);
    wait(
        "the OpenTelemetry eBPF profiler's knowledge of the target",
        || {
            std::thread::sleep(Duration::from_secs(1));
            let now = (walked(), cost().expect("program").0);
            let (frames, runs) = (now.0 - last.0, now.1 - last.1);
            last = now;
            frames >= runs * 25
        },
    );
    let (cost_before, walked_before) = (cost().expect("program"), walked());
    let (began, cpu_before) = (Instant::now(), cpu_time(target));
    std::thread::sleep(SPAN);
    let (cost, walked) = (cost().expect("program"), walked());
    let share = (cpu_time(target) - cpu_before) / began.elapsed().as_secs_f64();
    let runs = cost.0 - cost_before.0;
    let frames = (walked - walked_before) as f64 / runs as f64;
    assert!(runs > 50 && share > 0.8, "{runs} runs, {share} of the CPU");
    assert!((25.0..45.0).contains(&frames), "it walks {frames} frames a stack");
    Other {
        time: (cost.1 - cost_before.1).as_nanos() as f64 / runs as f64,
        runs,
        frames,
        share,
    }
}

/// Runs and time of its entry program.
fn cost() -> Option<(u64, Duration)> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.name() == ENTRY)
        .map(|program| (program.run_count(), program.run_time()))
}

/// Frames that it walked.
fn walked() -> u64 {
    loaded_maps()
        .filter_map(Result::ok)
        .filter(|map| map.name() == METRICS && map.max_entries() > WALKED)
        .filter_map(|map| {
            PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(MapData::from_id(map.id()).ok()?)).ok()
        })
        .filter_map(|map| Some(map.get(&WALKED, 0).ok()?.iter().sum::<u64>()))
        .sum()
}

/// Seconds of CPU that a process has had.
fn cpu_time(pid: u32) -> f64 {
    let schedule = procfs::read(format!("/proc/{pid}/schedstat"), 256).expect("schedstat");
    let schedule = String::from_utf8(schedule).expect("text");
    let nanoseconds: f64 = schedule
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .expect("nanoseconds");
    nanoseconds / 1e9
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
    listener.local_addr().expect("address").port()
}

/// Waits until something is there.
fn wait(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_there() {
        assert!(Instant::now() < deadline, "{what} does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
}
