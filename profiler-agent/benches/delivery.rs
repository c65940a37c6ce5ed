//! What a slice costs on its way out, and how many bytes it takes: encode, split, compress, spool, send. On a kept profile, so that sizes are the
//! same in every run and the noise of the host is in the times alone.
//!
//! `data/compile.otlp.gz` is a real capture of three programs: two that are 31 calls deep, one of them in the kernel most of the time, and a shell
//! that has gcc and g++ compile in turn; as many samples as two busy CPUs make in 10 s at 99 Hz, taken on a host that was shared.
#![allow(clippy::print_stdout, reason = "a benchmark reports there")]
#![allow(unsafe_code, reason = "a counting allocator is one")]
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
    alloc::{GlobalAlloc, Layout, System},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
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
    profile::Profile,
    read, resource,
    spool::{self, Spool},
};
use support::{Bars, figure, median};

/// Bytes of a sample that the OpenTelemetry eBPF profiler sends, gzipped, without any names, of two busy CPUs at 99 Hz: half of it.
const BAR_WITHOUT_NAMES: f64 = 15.0;
const BAR_WITH_NAMES: f64 = 20.0;
/// Samples a second that one core encodes, with names and times, millions.
const BAR_ENCODE: f64 = 5.0;
const PASSES: usize = 31;

/// Allocations so far.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(place, layout) }
    }
}

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
    encoding(&profile, samples, &mut bars);
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

fn encoding(profile: &Profile, samples: f64, bars: &mut Bars) {
    let usual = options(Names::Readable, Times::Rounded);
    let request = whole(profile, &usual);
    let time = seconds(|| assert_eq!(encode(profile, &usual).len(), 1));
    let count = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let _request = whole(profile, &usual);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    let (first, second) = (count(), count());
    assert_eq!(first, second, "the same batch takes as many allocations");
    println!(
        "encode: {} ms, {} MB/s, {} million samples/s, {first} allocations",
        figure(time * 1e3),
        figure(request.bytes.len() as f64 / time / 1e6),
        figure(samples / time / 1e6)
    );
    // A tenth of the request at most.
    let limit = request.bytes.len() / 10;
    let split = encode::Options { limit, ..usual };
    let requests = encode(profile, &split);
    assert!(requests.len() > 10 && requests.iter().all(|request| request.bytes.len() <= limit));
    let split_time = seconds(|| assert_eq!(encode(profile, &split).len(), requests.len()));
    println!(
        "split into {}: {} ms, {} x as long as one, {} x the bytes",
        requests.len(),
        figure(split_time * 1e3),
        figure(split_time / time),
        figure(
            requests.iter().map(|request| request.bytes.len()).sum::<usize>() as f64
                / request.bytes.len() as f64
        )
    );
    bars.at_most(
        "encoding, microseconds of a sample (at 5 million a second: 0.2)",
        time / samples * 1e6,
        1.0 / BAR_ENCODE,
        "us",
    );
}

fn compressing(profile: &Profile) {
    let request = whole(profile, &options(Names::Readable, Times::Rounded));
    for compression in [Compression::Gzip, Compression::Zstd] {
        let time = seconds(|| {
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
