//! What a slice costs on its way out, and how many bytes it takes: encode, split, compress, spool, send. On a kept profile, so that sizes are the
//! same in every run and the noise of the host is in the times alone. What only computes is measured by CPU time, what waits by the clock.
//!
//! `data/compile.otlp.gz` is a real capture of three programs: two that are 31 calls deep, one of them in the kernel most of the time, and a shell
//! that has gcc and g++ compile in turn; as many samples as two busy CPUs make in 10 s at 99 Hz, taken on a host that was shared.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark may fail loudly"
)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    thread,
    time::Instant,
};

use profiler_agent::{
    export::otlp::{
        client::{Client, Options as ClientOptions},
        encode::{self, Names, Request, Times, encode},
        endpoint::{Endpoint, Protocol},
        parcel::{Compression, Parcel},
    },
    profile::{Location, LocationId, Process, ProcessId, Profile, Sample, Stack, StackId},
    read, resource,
    spool::{self, Spool},
};
use support::{
    Bars,
    allocations::{self, Counting},
    figure, median,
};

/// Bytes of a sample that the OpenTelemetry eBPF profiler sends, gzipped, without any names, of two busy CPUs at 99 Hz: half of it.
const BAR_WITHOUT_NAMES: f64 = 15.0;
const BAR_WITH_NAMES: f64 = 20.0;
/// Samples a second that one core encodes, with names and times, millions.
const BAR_ENCODE: f64 = 5.0;
/// How much more often than for a tenth of it memory may be asked for: once or twice, where room was guessed.
const BAR_ALLOCATIONS: f64 = 1.1;
/// How much longer it may take to encode many requests than one; they are 1.4 x the bytes.
const BAR_SPLIT: f64 = 1.5;
const PASSES: usize = 31;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let profile = kept();
    let samples = profile.sample_count() as f64;
    println!(
        "{samples} samples, {} stacks, {} locations, {} processes",
        profile.stacks.len(),
        profile.locations.len(),
        profile.processes.len()
    );
    let mut bars = Bars::default();
    sizes(&profile, samples, &mut bars);
    encoding("kept profile", &profile, &mut bars);
    encoding(
        "the same stacks, 12 x the samples",
        &often(&profile, 12),
        &mut bars,
    );
    growing(&profile, &mut bars);
    splitting(&profile, &mut bars);
    compressing(&profile);
    spooling(&profile);
    sending(&profile, &mut bars);
    bars.code()
}

fn kept() -> Profile {
    let packed = include_bytes!("data/compile.otlp.gz");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut bytes)
        .expect("gzip");
    read::bytes(&bytes, &read::Options::default()).expect("a profile")
}

fn options(names: Names, times: Times) -> encode::Options {
    encode::Options {
        names,
        times,
        resource: resource::of_this_host(&resource::Resource::default()),
        ..encode::Options::default()
    }
}

fn whole(profile: &Profile, options: &encode::Options) -> Request {
    let mut requests = encode(profile, options);
    assert_eq!(requests.len(), 1, "it is one request");
    requests.remove(0)
}

fn sizes(profile: &Profile, samples: f64, bars: &mut Bars) {
    println!("bytes of a sample, before compression, gzip, zstd:");
    for (word, names) in [
        ("none", Names::None),
        ("readable", Names::Readable),
        ("all", Names::All),
    ] {
        for (when, times) in [
            ("rounded", Times::Rounded),
            ("exact", Times::Exact),
            ("none", Times::None),
        ] {
            let request = whole(profile, &options(names, times));
            let size = |compression| Parcel::pack(&request, compression).body.len() as f64 / samples;
            println!(
                "  names {word:8} times {when:7} {:>6} {:>6} {:>6}",
                figure(size(Compression::None)),
                figure(size(Compression::Gzip)),
                figure(size(Compression::Zstd))
            );
            let bar = match (names, times) {
                (Names::None, Times::Rounded) => BAR_WITHOUT_NAMES,
                (Names::Readable, Times::Rounded) => BAR_WITH_NAMES,
                _ => continue,
            };
            let what = format!("gzipped bytes of a sample, names {word}, times {when}, kept profile");
            bars.at_most(&what, size(Compression::Gzip), bar, "B");
        }
    }
}

/// Seconds of the middle run.
fn seconds(mut work: impl FnMut()) -> f64 {
    let times: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&times)
}

/// Seconds of CPU of the middle run, whoever else wants the CPU.
fn cpu_seconds(mut work: impl FnMut()) -> f64 {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let times: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = now();
            work();
            now() - start
        })
        .collect();
    median(&times)
}

fn encoding(of: &str, profile: &Profile, bars: &mut Bars) {
    let usual = options(Names::Readable, Times::Rounded);
    let request = whole(profile, &usual);
    let samples = profile.sample_count() as f64;
    let time = cpu_seconds(|| assert_eq!(encode(profile, &usual).len(), 1));
    println!(
        "encode, {of}, {samples} samples of {} stacks: {} kB in {} ms, {} MB/s, {} million samples/s",
        profile.stacks.len(),
        request.bytes.len() / 1000,
        figure(time * 1e3),
        figure(request.bytes.len() as f64 / time / 1e6),
        figure(samples / time / 1e6)
    );
    bars.at_most(
        &format!("encoding, {of}, microseconds of a sample (at 5 million a second: 0.2)"),
        time / samples * 1e6,
        1.0 / BAR_ENCODE,
        "us",
    );
}

/// Each event so many times, a nanosecond apart.
fn often(profile: &Profile, times: u64) -> Profile {
    let mut profile = profile.clone();
    for sample in &mut profile.samples {
        let each = sample.timestamps.iter();
        sample.timestamps = each
            .flat_map(|time| (0..times).map(move |more| time + more))
            .collect();
        sample.count *= times;
        sample.weight *= times;
    }
    profile
}

/// So many times as many processes, locations and stacks.
fn larger(profile: &Profile, times: u32) -> Profile {
    let mut larger = profile.clone();
    for copy in 1..times {
        let behind = |rows: usize| copy * rows as u32;
        larger
            .processes
            .extend(profile.processes.iter().map(|process| Process {
                pid: process.pid + copy * 1_000_000,
                ..process.clone()
            }));
        larger
            .locations
            .extend(profile.locations.iter().map(|location| Location {
                address: location.address + u64::from(copy) * 0x1000_0000,
                ..location.clone()
            }));
        larger.stacks.extend(profile.stacks.iter().map(|stack| {
            Stack {
                frames: stack
                    .frames
                    .iter()
                    .map(|frame| LocationId(frame.0 + behind(profile.locations.len())))
                    .collect(),
                outcome: stack.outcome,
            }
        }));
        larger.samples.extend(profile.samples.iter().map(|sample| Sample {
            process: ProcessId(sample.process.0 + behind(profile.processes.len())),
            stack: StackId(sample.stack.0 + behind(profile.stacks.len())),
            ..sample.clone()
        }));
    }
    larger
}

/// How often memory is asked for does not depend on how much there is.
fn growing(profile: &Profile, bars: &mut Bars) {
    let usual = encode::Options {
        limit: usize::MAX,
        ..options(Names::Readable, Times::Rounded)
    };
    let count = |profile: &Profile| {
        let before = allocations::calls();
        let _request = whole(profile, &usual);
        allocations::calls() - before
    };
    let (one, again, ten) = (count(profile), count(profile), count(&larger(profile, 10)));
    assert_eq!(one, again, "the same batch takes as many allocations");
    println!("allocations of a batch: {one}; of one with 10 x the processes, locations and stacks: {ten}");
    bars.at_most(
        "allocations of a batch, 10 x as large / 1 x",
        ten as f64 / one as f64,
        BAR_ALLOCATIONS,
        "x",
    );
}

fn splitting(profile: &Profile, bars: &mut Bars) {
    let usual = options(Names::Readable, Times::Rounded);
    let request = whole(profile, &usual);
    let one = cpu_seconds(|| assert_eq!(encode(profile, &usual).len(), 1));
    // A tenth of the request at most.
    let limit = request.bytes.len() / 10;
    let split = encode::Options { limit, ..usual };
    let requests = encode(profile, &split);
    assert!(requests.len() > 10 && requests.iter().all(|request| request.bytes.len() <= limit));
    let time = cpu_seconds(|| assert_eq!(encode(profile, &split).len(), requests.len()));
    let bytes: usize = requests.iter().map(|request| request.bytes.len()).sum();
    println!(
        "split into {}: {} ms, {} x the bytes of one",
        requests.len(),
        figure(time * 1e3),
        figure(bytes as f64 / request.bytes.len() as f64)
    );
    bars.at_most(
        "encoding, split below a tenth / one request",
        time / one,
        BAR_SPLIT,
        "x",
    );
}

fn compressing(profile: &Profile) {
    let request = whole(profile, &options(Names::Readable, Times::Rounded));
    for compression in [Compression::Gzip, Compression::Zstd] {
        let time = cpu_seconds(|| {
            let _parcel = Parcel::pack(&request, compression);
        });
        println!(
            "compress by {compression}: {} ms, {} MB/s",
            figure(time * 1e3),
            figure(request.bytes.len() as f64 / time / 1e6)
        );
    }
}

fn spooling(profile: &Profile) {
    let request = whole(profile, &options(Names::Readable, Times::Rounded));
    let parcel = Parcel::pack(&request, Compression::Gzip);
    let folder = tempfile::tempdir().expect("folder");
    let (mut spool, _) = Spool::open(&spool::Options {
        folder: folder.path().to_owned(),
        limit: 256 << 20,
    })
    .expect("spool");
    let write = seconds(|| {
        spool.push(&parcel, None).expect("room");
    });
    assert_eq!(spool.len(), PASSES);
    let replay = seconds(|| {
        let oldest = spool.oldest().expect("one");
        assert_eq!(oldest.parcel.expect("whole").body, parcel.body);
        spool.remove(oldest.id);
    });
    assert!(spool.is_empty());
    println!(
        "spool, {} kB a request: write {} ms with its syncs, read back and remove {} ms",
        parcel.body.len() / 1000,
        figure(write * 1e3),
        figure(replay * 1e3)
    );
}

/// By HTTP, to a receiver that does nothing but answer.
fn sending(profile: &Profile, bars: &mut Bars) {
    let request = whole(profile, &options(Names::Readable, Times::Rounded));
    let parcel = Parcel::pack(&request, Compression::Gzip);
    let address = receiver();
    let endpoint = || Endpoint::parse(&format!("http://{address}"), Some(Protocol::Http)).expect("endpoint");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let send = |client: &Client| {
        let accepted = runtime.block_on(client.export(parcel.clone())).expect("taken");
        assert_eq!(accepted.rejected, 0);
    };
    let client = || {
        let _inside = runtime.enter();
        Client::new(endpoint(), &ClientOptions::default()).expect("client")
    };
    let kept = client();
    send(&kept);
    let (mut reused, mut new) = (Vec::new(), Vec::new());
    // In turn, so that what else the host does is shared by both.
    for _ in 0..PASSES {
        let start = Instant::now();
        send(&kept);
        reused.push(start.elapsed().as_secs_f64());
        let another = client();
        let start = Instant::now();
        send(&another);
        new.push(start.elapsed().as_secs_f64());
    }
    let (reused, new) = (median(&reused), median(&new));
    println!(
        "send over loopback: {} ms on a connection that is kept, {} ms on a new one",
        figure(reused * 1e3),
        figure(new * 1e3)
    );
    bars.at_most("send, kept connection / new connection", reused / new, 1.0, "x");
}

fn receiver() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                stream.set_nodelay(true).expect("option");
                let (mut reader, mut writer) = (std::io::BufReader::new(&stream), &stream);
                loop {
                    let mut length = None;
                    loop {
                        let mut line = String::new();
                        if std::io::BufRead::read_line(&mut reader, &mut line).unwrap_or(0) == 0 {
                            return;
                        }
                        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse::<usize>().ok();
                        }
                        if line == "\r\n" {
                            break;
                        }
                    }
                    let mut body = vec![0; length.expect("a length")];
                    if reader.read_exact(&mut body).is_err() {
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                    if writer.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
