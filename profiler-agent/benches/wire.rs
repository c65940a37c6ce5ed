//! Bytes on the wire, the agent's against those of the OpenTelemetry eBPF profiler, on one load in one run: two programs that are 31 calls deep, one of
//! which is in the kernel most of the time, and gcc and g++ that compile in turn.
//!
//! All profile the whole host at 99 Hz and send by gRPC with gzip, each to a receiver behind a proxy: the receiver counts samples, the proxy the
//! bytes that come from the profiler, those of HTTP/2 included. They run side by side, since what else the machine does changes from minute to
//! minute; each is in the samples of the others, with the little that it uses. What they send in the first minute does not count.
//!
//! The other profiler sends every 5 s, times to the nanosecond, and no names of functions. The agent sends as by default, every 10 s with names, but for
//! what each line says.
//!
//! Run by `cargo xtask bench wire`, as root.
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
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
    profiles_service_server::{ProfilesService, ProfilesServiceServer},
};
use prost::Message as _;
use support::{Bars, Running, figure, gcc, otel_profiler};
use tonic::{Request, Response, Status, codec::CompressionEncoding, transport::server::TcpIncoming};

const FREQUENCY: u32 = 99;
/// Before it counts: the symbols and tables of what runs are read then.
const WARM_UP: Duration = Duration::from_mins(1);
const SPAN: Duration = Duration::from_mins(2);
/// Of what the other sends, without names.
const BAR_WITHOUT_NAMES: f64 = 0.5;
/// The same, with names, which the other does not send.
const BAR_WITH_NAMES: f64 = 0.67;

/// 31 calls deep; each function is another one, and what is called changes with the data, as in programs that do something.
const DEEP: &str = r"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
volatile unsigned long sink;
static int zero;
__attribute__((noipa)) int deep0(int n) {
    static char memory[1 << 16];
    unsigned long hash = n;
#ifdef KERNEL
    if (read(zero, memory, sizeof memory) < 0) _exit(1);
#else
    for (int at = 0; at < 1 << 16; at++) hash = hash * 31 + memory[at];
    memory[hash & 0xffff]++;
#endif
    sink += hash;
    return (int)hash;
}
#define DEEP(name, callee) __attribute__((noipa)) int name(int n) { return callee(n - 1) + (int)(sink & 1); }
";

/// What is counted of requests.
const COUNTED: [&str; 13] = [
    "bytes on the wire",
    "bytes before compression",
    "requests",
    "samples",
    "frames",
    "stacks",
    "locations",
    "resources",
    "bytes of resources",
    "bytes of samples",
    "bytes of stacks",
    "bytes of locations",
    "bytes of strings and attributes",
];
const WIRE: usize = 0;
const REQUESTS: usize = 2;
const SAMPLES: usize = 3;

/// What came, and how much of it.
#[derive(Debug, Default)]
struct Counts([AtomicU64; COUNTED.len()]);

/// The same between two moments.
type Seen = [u64; COUNTED.len()];

impl Counts {
    fn now(&self) -> Seen {
        self.0.each_ref().map(|count| count.load(Ordering::SeqCst))
    }

    fn add(&self, more: [usize; COUNTED.len()]) {
        for (count, more) in self.0.iter().zip(more) {
            count.fetch_add(more as u64, Ordering::SeqCst);
        }
    }

    fn add_wire(&self, bytes: u64) {
        self.0[WIRE].fetch_add(bytes, Ordering::SeqCst);
    }

    /// Counts once another request has come as a whole.
    fn after_a_request(&self) -> Seen {
        let requests = self.now()[REQUESTS];
        let deadline = Instant::now() + Duration::from_mins(2);
        while self.now()[REQUESTS] == requests {
            assert!(Instant::now() < deadline, "no request comes");
            thread::sleep(Duration::from_millis(10));
        }
        // What comes beside requests, and requests that came as several.
        thread::sleep(Duration::from_secs(1));
        self.now()
    }
}

/// Bytes on the wire of a sample.
fn of_a_sample(seen: &Seen) -> f64 {
    seen[WIRE] as f64 / seen[SAMPLES] as f64
}

fn tell(what: &str, seen: &Seen) {
    println!(
        "{what}: {} samples in {} requests; of a sample:",
        seen[SAMPLES], seen[REQUESTS]
    );
    for (name, count) in COUNTED.iter().zip(seen) {
        println!("  {name:32} {:>7}", figure(*count as f64 / seen[SAMPLES] as f64));
    }
}

#[derive(Clone)]
struct Receiver(Arc<Counts>);

#[tonic::async_trait]
impl ProfilesService for Receiver {
    async fn export(
        &self,
        request: Request<ExportProfilesServiceRequest>,
    ) -> Result<Response<ExportProfilesServiceResponse>, Status> {
        let request = request.into_inner();
        let dictionary = request.dictionary.clone().unwrap_or_default();
        let (mut samples, mut frames, mut bytes_of_samples, mut bytes_of_resources) = (0, 0, 0, 0);
        for resource in &request.resource_profiles {
            bytes_of_resources += resource.resource.as_ref().map_or(0, |it| it.encoded_len());
            let profiles = resource.scope_profiles.iter().flat_map(|scope| &scope.profiles);
            for sample in profiles.flat_map(|profile| &profile.samples) {
                // Each time is an event; without times, the values say how many.
                let events = match sample.timestamps_unix_nano.len() {
                    0 => usize::try_from(sample.values.iter().sum::<i64>()).unwrap_or(0),
                    times => times,
                };
                let stack = usize::try_from(sample.stack_index).expect("a row");
                samples += events;
                frames += events * dictionary.stack_table[stack].location_indices.len();
                bytes_of_samples += sample.encoded_len();
            }
        }
        let bytes_of_texts = dictionary.string_table.iter().map(String::len).sum::<usize>()
            + dictionary
                .attribute_table
                .iter()
                .map(|it| it.encoded_len())
                .sum::<usize>();
        self.0.add([
            0,
            request.encoded_len(),
            1,
            samples,
            frames,
            dictionary.stack_table.len().saturating_sub(1),
            dictionary.location_table.len().saturating_sub(1),
            request.resource_profiles.len(),
            bytes_of_resources,
            bytes_of_samples,
            dictionary.stack_table.iter().map(|it| it.encoded_len()).sum(),
            dictionary.location_table.iter().map(|it| it.encoded_len()).sum(),
            bytes_of_texts,
        ]);
        Ok(Response::new(ExportProfilesServiceResponse::default()))
    }
}

/// What sends.
struct Sender {
    what: &'static str,
    /// Arguments of the agent; none for the other.
    agent: Option<&'static [&'static str]>,
    bar: Option<f64>,
}

const SENDERS: [Sender; 5] = [
    Sender {
        what: "OpenTelemetry eBPF profiler",
        agent: None,
        bar: None,
    },
    Sender {
        what: "agent, no names",
        agent: Some(&["--otlp-names", "none"]),
        bar: Some(BAR_WITHOUT_NAMES),
    },
    Sender {
        what: "agent, no names, each minute",
        agent: Some(&["--otlp-names", "none", "--interval", "1m"]),
        bar: Some(BAR_WITHOUT_NAMES),
    },
    Sender {
        what: "agent, readable names",
        agent: Some(&[]),
        bar: Some(BAR_WITH_NAMES),
    },
    Sender {
        what: "agent, readable names, each minute",
        agent: Some(&["--interval", "1m"]),
        bar: Some(BAR_WITH_NAMES),
    },
];

fn main() -> ExitCode {
    let program = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .expect("run me by `cargo xtask bench wire`, which builds what is compared")
    };
    let (profiler, agent) = (program("PROFILER_BENCH_OTEL"), program("PROFILER_BENCH_AGENT"));
    let folder = tempfile::tempdir().expect("temporary folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let _load = load(folder.path());
    let running = SENDERS.map(|sender| {
        let counts = Arc::new(Counts::default());
        let receiver = {
            let _inside = runtime.enter();
            receiver(Arc::clone(&counts))
        };
        let address = proxy(receiver, Arc::clone(&counts));
        let running = match sender.agent {
            None => Running::start(&mut otel_profiler(&profiler, address, FREQUENCY)),
            Some(arguments) => start_agent(&agent, arguments, address),
        };
        (running, counts)
    });
    thread::sleep(WARM_UP);
    // Each from the end of a request to the end of another.
    let all = thread::scope(|scope| {
        let seen = running.each_ref().map(|(_, counts)| {
            scope.spawn(|| {
                let before = counts.after_a_request();
                thread::sleep(SPAN);
                let now = counts.after_a_request();
                std::array::from_fn::<u64, { COUNTED.len() }, _>(|at| now[at] - before[at])
            })
        });
        seen.map(|seen| seen.join().expect("counts"))
    });
    let other = all[0];
    for (sender, seen) in SENDERS.iter().zip(&all) {
        tell(sender.what, seen);
        println!(
            "  {} x the first",
            figure(of_a_sample(seen) / of_a_sample(&other))
        );
    }
    let mut bars = Bars::default();
    for (sender, seen) in SENDERS.iter().zip(&all) {
        let share = seen[SAMPLES] as f64 / other[SAMPLES] as f64;
        assert!(
            (0.5..2.0).contains(&share),
            "not the same load: {share} x the samples"
        );
        if let Some(bar) = sender.bar {
            bars.at_most(
                &format!(
                    "bytes of a sample on the wire, {} / OpenTelemetry eBPF profiler",
                    sender.what
                ),
                of_a_sample(seen) / of_a_sample(&other),
                bar,
                "x",
            );
        }
    }
    bars.code()
}

fn receiver(counts: Arc<Counts>) -> SocketAddr {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("address")).expect("port");
    let address = incoming.local_addr().expect("address");
    let service = ProfilesServiceServer::new(Receiver(counts))
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(64 << 20);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    address
}

/// Passes connections on to the receiver, and counts what comes to it.
fn proxy(receiver: SocketAddr, counts: Arc<Counts>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(receiver) else {
                continue;
            };
            let halves = [&client, &server].map(|stream| stream.try_clone().expect("stream"));
            let counts = Arc::clone(&counts);
            thread::spawn(move || pass(&client, &server, |bytes| counts.add_wire(bytes)));
            let [client, server] = halves;
            thread::spawn(move || pass(&server, &client, |_| ()));
        }
    });
    address
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, count: impl Fn(u64)) {
    let mut buffer = [0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        count(read as u64);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Two deep programs and a shell that compiles. They end with the benchmark.
fn load(folder: &Path) -> Vec<Running> {
    let source = folder.join("deep.c");
    let mut text = DEEP.to_owned();
    for number in 1..=30 {
        text += &format!("DEEP(deep{number}, deep{})\n", number - 1);
    }
    text += "int main(void) {\n\
             prctl(PR_SET_PDEATHSIG, SIGKILL);\n\
             zero = open(\"/dev/zero\", O_RDONLY);\n\
             for (;;) sink += deep30(7);\n}\n";
    std::fs::write(&source, text).expect("source");
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs/unit.cpp");
    let mut running: Vec<Running> = [("user", "-DUSER"), ("kernel", "-DKERNEL")]
        .map(|(name, flag)| {
            let program = folder.join(name);
            gcc(
                &source,
                &program,
                &["-O1", "-fno-optimize-sibling-calls", "-fomit-frame-pointer", flag],
            );
            Running::start(&mut Command::new(program))
        })
        .into();
    let mut shell = Command::new("setpriv");
    shell
        .args(["--pdeathsig", "KILL", "sh", "-c"])
        .arg("while :; do gcc -O2 -c -o c.o \"$1\"; g++ -O2 -c -o cpp.o \"$2\"; done")
        .args([Path::new("sh"), &source, &unit])
        .current_dir(folder)
        .stderr(Stdio::null());
    running.push(Running::start(&mut shell));
    running
}

fn start_agent(agent: &Path, arguments: &[&str], receiver: SocketAddr) -> Running {
    Running::start(
        Command::new(agent)
            .arg("--otlp-endpoint")
            .arg(format!("http://{receiver}"))
            .args([
                "-F",
                &FREQUENCY.to_string(),
                "--spool-limit",
                "0",
                "--metrics-interval",
                "off",
            ])
            .args(["--serve", "off"])
            .args(arguments)
            .stderr(Stdio::null())
            .stdout(Stdio::null()),
    )
}
