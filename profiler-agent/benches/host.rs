//! The agent on a whole host, for ever: what it holds and uses while nothing happens, and whether that stays so while programs come and go.
//!
//! - *rest*: 200 processes that sleep, and nothing that starts; after half a minute its memory, with its symbolizer's and the kernel's, and the
//!   CPU time of half a minute more;
//! - *traffic*: 50 programs a second, one in ten a file with a build ID that nobody has seen, and a library a second, just as new, that a
//!   process loads, runs and unloads. Files are deleted when they have been used, and their tables have to go after them: if they stayed there would
//!   be more and more, and if they left no room there would be fewer, since they have 2 MiB, less than all of half an hour need.
//!   `PROFILER_HOST_SECONDS` says for how long, 60 by default; `cargo xtask prove traffic` takes half an hour. Compared are the medians
//!   of the second and of the last quarter.
//!
//! The whole host is profiled, so nothing else may run on it: a compiler alone needs more than those tables.
//!
//! Run by `cargo xtask bench host`, as root.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark may fail loudly, and reads files of its own making"
)]

mod support;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use profiler_agent::cpu_time;
use support::{Bars, Running, figure, footprint::Footprint, gcc, median};

const SLEEPERS: usize = 200;
const REST: Duration = Duration::from_secs(30);
const REST_MEGABYTES: f64 = 40.0;
/// Of one CPU, with the kernel's side, of which nothing runs while all sleep.
const REST_CPU: f64 = 0.1;
/// Between two programs.
const EVERY: Duration = Duration::from_millis(20);
/// One program in so many is a new file,
const NEW: u64 = 10;
/// and with one in so many comes a new library.
const LOAD: u64 = 50;
/// The last quarter's memory by the second's, and the other way around its tables,
const GROWTH: f64 = 1.03;
/// of which there are some seventy: this way around they may be those of other programs on the host.
const TABLES: f64 = 1.1;

fn main() -> ExitCode {
    let agent = std::env::var_os("PROFILER_BENCH_AGENT")
        .map(PathBuf::from)
        .expect("run me by `cargo xtask bench host`, which builds the agent");
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut bars = Bars::default();
    if wanted("rest") {
        rest(&agent, folder.path(), &mut bars);
    }
    if wanted("traffic") {
        traffic(&agent, folder.path(), &mut bars);
    }
    bars.code()
}

/// Some of what an agent holds.
type Part = fn(&Footprint) -> u64;

/// An agent that answers on a socket.
struct Agent {
    child: Running,
    socket: PathBuf,
    words: PathBuf,
}

impl Agent {
    fn start(agent: &Path, folder: &Path, options: &[&str]) -> Self {
        let (socket, words) = (folder.join("socket"), folder.join("words"));
        let _ = fs::remove_file(&socket);
        let child = Running::start_now(
            Command::new(agent)
                .arg("--serve")
                .arg(format!("unix:{}", socket.display()))
                .args(options)
                .stdout(Stdio::null())
                .stderr(File::create(&words).expect("file")),
        );
        let mut agent = Self { child, socket, words };
        let since = Instant::now();
        while !agent.socket.exists() {
            assert!(
                !agent.child.has_ended() && since.elapsed() < Duration::from_secs(20),
                "the agent did not start: {}",
                agent.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.words).unwrap_or_default()
    }

    /// A figure of its own; the sum of the points that begin so.
    fn metrics(&self) -> Metrics {
        let mut stream = UnixStream::connect(&self.socket).expect("socket");
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .expect("request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        Metrics(answer)
    }

    fn footprint(&self) -> Footprint {
        Footprint::of(self.child.pid())
    }

    /// CPU seconds of the agent's threads and of the processes that it has started. Its own metric counts in steps of 10 ms, which is a
    /// third of what it may use in [`REST`].
    fn cpu(&self) -> f64 {
        let threads = std::iter::repeat_with(|| cpu_time::schedstat(self.child.pid()))
            .take(10)
            .find_map(|time| time)
            .expect("the agent runs");
        let symbolizer = "profiler_agent_symbolizer_cpu_time_seconds_total";
        threads as f64 / 1e9 + self.metrics().sum(symbolizer)
    }
}

struct Metrics(String);

impl Metrics {
    /// The sum of the points of a metric.
    fn sum(&self, name: &str) -> f64 {
        let points = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.rsplit(' ').next()?;
            rest.starts_with([' ', '{'])
                .then(|| value.parse::<f64>().expect("number"))
        });
        let points: Vec<f64> = points.collect();
        assert!(!points.is_empty(), "no {name} in\n{}", self.0);
        points.iter().sum()
    }
}

fn rest(agent: &Path, folder: &Path, bars: &mut Bars) {
    let sleepers: Vec<Running> = (0..SLEEPERS)
        .map(|_| Running::start_now(Command::new("sleep").arg("1000").stdin(Stdio::null())))
        .collect();
    let agent = Agent::start(agent, folder, &[]);
    std::thread::sleep(REST);
    let (before, since) = (agent.cpu(), Instant::now());
    std::thread::sleep(REST);
    let used = (agent.cpu() - before) / since.elapsed().as_secs_f64() * 100.0;
    let held = agent.footprint();
    let metrics = agent.metrics();
    println!(
        "at rest, {} processes: {} MB resident, {} MB of the symbolizer, {} MB in the kernel; tables of {} files; {} % of one CPU over {} s, \
         {} samples in all",
        sleepers.len(),
        megabytes(held.agent),
        megabytes(held.children),
        megabytes(held.kernel),
        metrics.sum("profiler_agent_unwind_tables"),
        figure(used),
        REST.as_secs(),
        metrics.sum("profiler_agent_sampling_samples_total"),
    );
    bars.at_most(
        "memory beside 200 processes at rest, both processes and the kernel",
        held.total() as f64 / 1e6,
        REST_MEGABYTES,
        "MB",
    );
    bars.at_most(
        "CPU time of the agent beside 200 processes at rest, of one CPU",
        used,
        REST_CPU,
        "%",
    );
}

fn traffic(agent: &Path, folder: &Path, bars: &mut Bars) {
    let seconds = std::env::var("PROFILER_HOST_SECONDS").map_or(60, |text| text.parse().expect("seconds"));
    let mut visitors = Visitors::new(folder);
    let agent = Agent::start(
        agent,
        folder,
        // A history that is full soon.
        &["-F", "499", "--unwind-memory", "2MiB", "--history", "5s,2MiB"],
    );
    let began = Instant::now();
    let (mut memory, mut tables) = (Vec::new(), Vec::new());
    let mut next_look = Duration::from_secs(1);
    while began.elapsed() < Duration::from_secs(seconds) {
        visitors.next();
        if began.elapsed() >= next_look {
            next_look += Duration::from_secs(1);
            memory.push(agent.footprint());
            tables.push(agent.metrics().sum("profiler_agent_unwind_tables"));
        }
    }
    let took = began.elapsed().as_secs_f64();
    // What has ended is forgotten with the slice that it was in, and a slice has 10 s.
    std::thread::sleep(Duration::from_secs(25));
    let processes = fs::read_dir("/proc").expect("proc").flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
    });
    let processes = processes.count() as f64;
    let metrics = agent.metrics();
    let quarter = |values: &[f64], number: usize| {
        let len = values.len() / 4;
        median(&values[number * len..(number + 1) * len])
    };
    // In all, and of each part.
    let megabytes = |part: Part| -> Vec<f64> { memory.iter().map(|held| part(held) as f64 / 1e6).collect() };
    let all = megabytes(Footprint::total);
    let (early, late) = (quarter(&all, 1), quarter(&all, 3));
    let (early_tables, late_tables) = (quarter(&tables, 1), quarter(&tables, 3));
    let samples = metrics.sum("profiler_agent_sampling_samples_total");
    println!(
        "{} programs in {took:.0} s, {} of them new files, {} new libraries; {samples} samples, {} lost; {} MB in the second quarter, {} in the \
         last, {} at most; tables of {early_tables} files, then of {late_tables}, in {} of {} MB; {} processes known of {processes}; {} CPU seconds",
        visitors.count,
        visitors.count / NEW,
        visitors.count / LOAD,
        metrics.sum("profiler_agent_sampling_lost_total"),
        figure(early),
        figure(late),
        figure(all.iter().copied().fold(0.0, f64::max)),
        figure(metrics.sum("profiler_agent_unwind_memory_usage_bytes") / 1e6),
        figure(metrics.sum("profiler_agent_unwind_memory_limit_bytes") / 1e6),
        metrics.sum("profiler_agent_sampling_processes"),
        figure(agent.cpu()),
    );
    let parts: [(&str, Part); 3] = [
        ("agent", |held| held.agent),
        ("symbolizer", |held| held.children),
        ("kernel", |held| held.kernel),
    ];
    for (name, part) in parts {
        let part = megabytes(part);
        println!(
            "{name}: {} MB in the second quarter, {} in the last",
            figure(quarter(&part, 1)),
            figure(quarter(&part, 3))
        );
    }
    let outcomes = |outcome: &str| {
        metrics.sum(&format!(
            "profiler_agent_sampling_stacks_total{{profiler_agent_stack_outcome=\"{outcome}\"}}"
        ))
    };
    let whole = outcomes("complete") + outcomes("no_user_stack");
    let all = metrics.sum("profiler_agent_sampling_stacks_total");
    println!("stacks: {} % whole of {all}", figure(whole / all * 100.0));
    assert!(
        samples > 2.0 * seconds as f64,
        "only {samples} samples: the programs were not seen"
    );
    assert!(
        visitors.count as f64 > took * 40.0,
        "only {} programs",
        visitors.count
    );
    bars.at_most(
        "memory in traffic, last quarter by second quarter",
        late / early,
        GROWTH,
        "x",
    );
    bars.at_most(
        "tables in traffic, second quarter by last quarter",
        early_tables / late_tables,
        GROWTH,
        "x",
    );
    // Before that, the first of them have not been deleted for long enough.
    if seconds >= 600 {
        bars.at_most(
            "tables in traffic, last quarter by second quarter",
            late_tables / early_tables,
            TABLES,
            "x",
        );
    }
    bars.at_most(
        "processes that the agent knows and that are there no more",
        metrics.sum("profiler_agent_sampling_processes") - processes,
        20.0,
        "",
    );
}

/// Programs that come and go.
struct Visitors {
    folder: PathBuf,
    program: Vec<u8>,
    library: Vec<u8>,
    /// Loads libraries.
    host: Running,
    paths: ChildStdin,
    count: u64,
    next: Instant,
    /// The library loaded last, which goes when the next one comes.
    loaded: Option<PathBuf>,
}

impl Visitors {
    fn new(folder: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/visitor.c");
        let (program, library) = (folder.join("visitor"), folder.join("library.so"));
        let id = "-Wl,--build-id";
        gcc(&source, &program, &["-O2", "-fomit-frame-pointer", id]);
        gcc(&source, &library, &["-O2", "-fPIC", "-shared", "-DLIBRARY", id]);
        let (host, paths) = Running::with_input(Command::new(&program).arg("stay"));
        Self {
            program: fs::read(&program).expect("program"),
            library: fs::read(&library).expect("library"),
            folder: folder.to_owned(),
            host,
            paths,
            count: 0,
            next: Instant::now(),
            loaded: None,
        }
    }

    /// Waits for the time of the next one, and lets it come and go.
    fn next(&mut self) {
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        self.next += EVERY;
        let usual = self.folder.join("visitor");
        if self.count.is_multiple_of(LOAD) {
            let path = self.new_file("library", &self.library);
            writeln!(self.paths, "{}", path.display()).expect("it reads");
            if let Some(path) = self.loaded.replace(path) {
                fs::remove_file(path).expect("file");
            }
            assert!(
                !self.host.has_ended(),
                "the process that loads libraries has ended"
            );
        }
        let is_new = self.count.is_multiple_of(NEW);
        let path = if is_new {
            self.new_file("program", &self.program)
        } else {
            usual
        };
        let status = Command::new(&path).stdin(Stdio::null()).status();
        assert!(status.expect("it runs").success());
        if is_new {
            fs::remove_file(path).expect("file");
        }
        self.count += 1;
    }

    /// A copy with another build ID.
    fn new_file(&self, kind: &str, bytes: &[u8]) -> PathBuf {
        const NOTE: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
        let at = bytes.windows(NOTE.len()).position(|window| window == NOTE);
        let at = at.expect("a build ID") + NOTE.len();
        let mut bytes = bytes.to_vec();
        bytes[at..at + 8].copy_from_slice(&self.count.to_le_bytes());
        let path = self.folder.join(format!("{kind}-{}", self.count));
        fs::write(&path, bytes).expect("file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        path
    }
}

fn megabytes(bytes: u64) -> String {
    figure(bytes as f64 / 1e6)
}
