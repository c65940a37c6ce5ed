//! Slices on their way: what arrives, what waits, what is dropped and why, to the sample.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesPartialSuccess, ExportProfilesServiceRequest, ExportProfilesServiceResponse,
};
use profiler_agent::{
    export::otlp::{
        client,
        delivery::{DEFAULT_MEMORY, Delivery, Options, Report},
        encode,
        endpoint::{Endpoint, Protocol},
        parcel::Compression,
    },
    ledger::Counts,
    profile::Profile,
    spool,
    telemetry::Loss,
};
use tonic::{Code, Status};

use crate::support::{
    profiles,
    receivers::{GrpcReceiver, HttpReceiver},
    workload::wait_for,
};

/// The start of the first slice.
const START: u64 = 1_800_000_000_000_000_000;

/// A slice that is told apart from others by its number.
fn slice(number: u64) -> Profile {
    let mut slice = profiles::server();
    let shift = START + number * 10_000_000_000 - slice.capture.start;
    slice.capture.start += shift;
    for sample in &mut slice.samples {
        for timestamp in &mut sample.timestamps {
            *timestamp += shift;
        }
    }
    slice.capture.lost = BTreeMap::new();
    slice
}

/// The number of the slice that a request is of.
fn number(request: &ExportProfilesServiceRequest) -> u64 {
    let profile = &request.resource_profiles[0].scope_profiles[0].profiles[0];
    (profile.time_unix_nano - START) / 10_000_000_000
}

fn options(address: SocketAddr, folder: Option<&Path>) -> Options {
    Options {
        endpoint: Endpoint::parse(&format!("http://{address}"), Some(Protocol::Grpc)).unwrap(),
        client: client::Options {
            timeout: Duration::from_secs(2),
            ..client::Options::default()
        },
        compression: Compression::Gzip,
        encode: encode::Options::default(),
        spool: folder.map(|folder| spool::Options {
            folder: folder.to_owned(),
            limit: 64 << 20,
        }),
        memory: DEFAULT_MEMORY,
    }
}

/// What a receiver says at the moment.
#[derive(Clone, Default)]
struct Mood(Arc<AtomicU8>);

const GOOD: u8 = 0;
const AWAY: u8 = 1;
const WRONG: u8 = 2;
const PICKY: u8 = 3;

/// `google.rpc.Status { code: 8, details: [Any { RetryInfo { retry_delay: 3.5 s } }] }`.
const RETRY_INFO: &[u8] = b"\x08\x08\x1a\x36\x0a\x28type.googleapis.com/google.rpc.RetryInfo\
    \x12\x0a\x0a\x08\x08\x03\x10\x80\xca\xb5\xee\x01";
const BUSY: u8 = 4;

impl Mood {
    fn set(&self, mood: u8) {
        self.0.store(mood, Ordering::SeqCst);
    }

    fn answer(&self) -> Result<ExportProfilesServiceResponse, Status> {
        let part = |rejected_profiles, words: &str| ExportProfilesServiceResponse {
            partial_success: Some(ExportProfilesPartialSuccess {
                rejected_profiles,
                error_message: words.to_owned(),
            }),
        };
        match self.0.load(Ordering::SeqCst) {
            GOOD => Ok(part(0, "")),
            PICKY => Ok(part(1, "one was too old")),
            AWAY => Err(Status::new(Code::Unavailable, "away")),
            BUSY => Err(Status::with_details(
                Code::ResourceExhausted,
                "later",
                RETRY_INFO.into(),
            )),
            _ => Err(Status::new(Code::InvalidArgument, "not like this")),
        }
    }
}

/// A receiver with a mood, on a runtime of its own.
struct Receiver {
    address: SocketAddr,
    mood: Mood,
    inside: GrpcReceiver,
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    fn start(mood: u8) -> Self {
        Self::slow(mood, Duration::ZERO)
    }

    /// One that takes its time for each answer.
    fn slow(mood: u8, delay: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let moods = Mood::default();
        moods.set(mood);
        let (address, inside) = runtime.block_on(async {
            let moods = moods.clone();
            GrpcReceiver::start(delay, move || moods.answer())
        });
        Self {
            address,
            mood: moods,
            inside,
            _runtime: runtime,
        }
    }

    /// Numbers of the slices that came, in their order, and how it was answered.
    fn numbers(&self) -> Vec<u64> {
        let requests = self.inside.requests.lock().unwrap();
        requests.iter().map(|(_, request)| number(request)).collect()
    }

    fn forget(&self) {
        self.inside.requests.lock().unwrap().clear();
    }
}

fn balanced(delivery: &Delivery) -> Counts {
    let counts = delivery.ledger().counts();
    assert!(counts.is_balanced(), "{counts}");
    counts
}

fn finish(delivery: Delivery, last: u64) -> Report {
    let report = delivery.finish(slice(last), Duration::from_secs(10));
    assert!(report.counts.is_balanced(), "{}", report.counts);
    assert_eq!(report.counts.waiting, 0, "{}", report.counts);
    report
}

/// Samples of a slice.
fn samples() -> u64 {
    slice(0).sample_count()
}

#[test]
fn while_the_receiver_is_away_slices_wait_on_the_disk_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    // The backlog takes a second, so that it is still there when something fresh comes.
    let receiver = Receiver::slow(AWAY, Duration::from_millis(50));
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    for number in 1..=10 {
        delivery.entrance().hand_over(slice(number));
        balanced(&delivery);
        // Within a moment it is on the disk, though the first one was fresh.
        wait_for("the spool", || balanced(&delivery).spooled == number * samples());
    }
    receiver.mood.set(GOOD);
    receiver.forget();
    wait_for("the backlog", || balanced(&delivery).exported >= 3 * samples());
    // What is fresh does not wait for the backlog.
    delivery.entrance().hand_over(slice(11));
    wait_for("the rest", || balanced(&delivery).exported == 11 * samples());
    let report = finish(delivery, 12);
    assert_eq!(report.counts.exported, 12 * samples());
    assert_eq!(
        (report.counts.captured, report.counts.dropped_total()),
        (12 * samples(), 0)
    );
    assert_eq!(report.sent.requests, 12);
    assert_eq!(report.failure, None);

    let mut numbers = receiver.numbers();
    let fresh = numbers.iter().position(|number| *number == 11).unwrap();
    assert!(fresh < 10, "{numbers:?}");
    numbers.retain(|number| *number < 11);
    assert_eq!(numbers, Vec::from_iter(1..=10));
}

#[test]
fn what_one_run_leaves_the_next_one_sends() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(AWAY);
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    delivery.entrance().hand_over(slice(1));
    let report = finish(delivery, 2);
    assert_eq!(report.counts.spooled, 2 * samples(), "{}", report.counts);
    assert!(report.failure.unwrap().contains("away"));

    receiver.mood.set(GOOD);
    receiver.forget();
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    wait_for("the backlog", || balanced(&delivery).exported == 2 * samples());
    let report = finish(delivery, 3);
    assert_eq!(
        (
            report.counts.inherited,
            report.counts.captured,
            report.counts.exported
        ),
        (2 * samples(), samples(), 3 * samples())
    );
    assert_eq!(receiver.numbers(), [1, 2, 3]);
}

#[test]
fn without_a_disk_the_oldest_make_way_in_memory() {
    let receiver = Receiver::start(AWAY);
    let size = {
        let request = encode::encode(&slice(1), &encode::Options::default()).remove(0);
        profiler_agent::export::otlp::parcel::Parcel::pack(&request, Compression::Gzip)
            .body
            .len()
    };
    let options = Options {
        memory: size * 7 / 2,
        ..options(receiver.address, None)
    };
    let delivery = Delivery::start(options).unwrap();
    for number in 1..=6 {
        delivery.entrance().hand_over(slice(number));
        wait_for("the encoder", || {
            let counts = balanced(&delivery);
            counts.waiting + counts.dropped_total() == number * samples() && counts.waiting <= 4 * samples()
        });
    }
    receiver.mood.set(GOOD);
    receiver.forget();
    let report = finish(delivery, 7);
    let why = report.counts.why_dropped();
    assert!(
        why.len() == 1 && why[0].starts_with("queue_full: ") && why[0].contains("--queue-limit"),
        "{why:?}"
    );
    let dropped = report.counts.dropped;
    assert_eq!(
        dropped.keys().collect::<Vec<_>>(),
        [&Loss::QueueFull],
        "{dropped:?}"
    );
    let lost = dropped[&Loss::QueueFull] / samples();
    // The oldest, and no other; one may have been under way.
    let numbers = receiver.numbers();
    assert_eq!(numbers, Vec::from_iter(lost + 1..=7));
    assert!((3..=4).contains(&lost), "{lost}");
}

/// Options by which nothing may wait, and a slice is several requests.
fn without_room(options: Options) -> Options {
    let encode = encode::Options {
        limit: 4096,
        ..encode::Options::default()
    };
    assert!(encode::encode(&slice(1), &encode).len() > 3);
    Options {
        encode,
        memory: 0,
        ..options
    }
}

#[test]
fn a_receiver_that_takes_what_comes_gets_all_of_it() {
    let receiver = Receiver::start(GOOD);
    let delivery = Delivery::start(without_room(options(receiver.address, None))).unwrap();
    // Faster than they are sent.
    for number in 1..=3 {
        delivery.entrance().hand_over(slice(number));
    }
    let report = finish(delivery, 4);
    assert_eq!(report.counts.exported, 4 * samples(), "{}", report.counts);
    assert_eq!(report.counts.dropped, BTreeMap::new());
    assert!(receiver.numbers().is_sorted(), "{:?}", receiver.numbers());
    // Once it fails the limit holds.
    receiver.mood.set(AWAY);
    let delivery = Delivery::start(without_room(options(receiver.address, None))).unwrap();
    delivery.entrance().hand_over(slice(1));
    wait_for("the limit", || {
        balanced(&delivery).dropped == BTreeMap::from([(Loss::QueueFull, samples())])
    });
    delivery.abandon();
}

/// Waits a minute for an answer of this receiver.
fn with_patience(options: Options, receiver: &HttpReceiver) -> Options {
    Options {
        endpoint: Endpoint::parse(&format!("http://{}", receiver.address), Some(Protocol::Http)).unwrap(),
        client: client::Options {
            timeout: Duration::from_secs(60),
            ..client::Options::default()
        },
        ..options
    }
}

#[test]
fn slices_that_wait_for_room_are_in_nobodys_way_at_the_end() {
    let receiver = HttpReceiver::start("", Vec::new());
    let options = with_patience(without_room(options(receiver.address, None)), &receiver);
    let delivery = Delivery::start(options).unwrap();
    for number in 1..=3 {
        delivery.entrance().hand_over(slice(number));
    }
    wait_for("the first request", || {
        delivery.watch().figures().queue_requests > 1
    });
    let since = Instant::now();
    let report = delivery.abandon();
    assert!(since.elapsed() < Duration::from_secs(20), "it waited");
    assert_eq!(
        report.counts.dropped,
        BTreeMap::from([(Loss::ShutDown, 3 * samples())])
    );
    assert!(report.counts.is_balanced(), "{}", report.counts);
}

#[test]
fn what_is_refused_for_good_is_dropped_once() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(WRONG);
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    delivery.entrance().hand_over(slice(1));
    wait_for("the refusal", || {
        balanced(&delivery).dropped.get(&Loss::Refused) == Some(&samples())
    });
    receiver.mood.set(GOOD);
    let report = finish(delivery, 2);
    // It came while the receiver was left alone.
    assert_eq!(report.counts.exported + report.counts.spooled, samples());
    assert_eq!(receiver.numbers()[0], 1);
    assert_eq!(
        receiver.numbers().iter().filter(|number| **number == 1).count(),
        1
    );
}

#[test]
fn what_is_rejected_in_part_is_counted_in_part() {
    let receiver = Receiver::start(PICKY);
    let delivery = Delivery::start(options(receiver.address, None)).unwrap();
    let report = finish(delivery, 1);
    let rejected = report.counts.dropped[&Loss::Rejected];
    assert!(rejected > 0 && rejected < samples(), "{}", report.counts);
    assert_eq!(report.counts.exported, samples() - rejected);
    assert!(report.failure.unwrap().contains("one was too old"));
}

#[test]
fn a_receiver_that_asks_for_time_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(BUSY);
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    let asked = Instant::now();
    delivery.entrance().hand_over(slice(1));
    wait_for("the first try", || !receiver.numbers().is_empty());
    receiver.mood.set(GOOD);
    wait_for("the second try", || balanced(&delivery).exported == samples());
    assert!(asked.elapsed() >= Duration::from_millis(3500));
    assert_eq!(receiver.numbers(), [1, 1]);
    finish(delivery, 2);
}

#[test]
fn a_damaged_segment_costs_itself() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(AWAY);
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    delivery.entrance().hand_over(slice(1));
    delivery.entrance().hand_over(slice(2));
    finish(delivery, 3);
    let spool = folder.path().join("v1");
    let mut segments: Vec<_> = std::fs::read_dir(&spool)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some())
        .collect();
    segments.sort();
    assert_eq!(segments.len(), 3);
    // A body, and a header: how many samples the second has nobody knows then.
    for (segment, at) in [(&segments[1], 100), (&segments[2], 20)] {
        let file = std::fs::File::options().write(true).open(segment).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"!", at).unwrap();
    }

    receiver.mood.set(GOOD);
    receiver.forget();
    let delivery = Delivery::start(options(receiver.address, Some(folder.path()))).unwrap();
    wait_for("the backlog", || balanced(&delivery).spooled == 0);
    let report = finish(delivery, 4);
    assert_eq!(
        report.counts.dropped,
        BTreeMap::from([(Loss::SpoolUnreadable, samples() + 1)])
    );
    assert_eq!(report.counts.exported, 2 * samples());
    assert_eq!(receiver.numbers(), [1, 4]);
}

#[test]
fn a_receiver_that_never_answers_does_not_keep_slices_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = HttpReceiver::start("", Vec::new());
    let options = with_patience(options(receiver.address, Some(folder.path())), &receiver);
    let delivery = Delivery::start(options).unwrap();
    delivery.entrance().hand_over(slice(1));
    // While it is still waited for.
    wait_for("the copy on the disk", || {
        balanced(&delivery).spooled == samples()
    });
    let report = delivery.finish(slice(2), Duration::from_secs(1));
    assert_eq!(report.counts.spooled, 2 * samples(), "{}", report.counts);
    assert!(report.counts.is_balanced());
}

#[test]
fn a_full_spool_drops_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(AWAY);
    let limit = {
        let request = encode::encode(&slice(1), &encode::Options::default()).remove(0);
        let parcel = profiler_agent::export::otlp::parcel::Parcel::pack(&request, Compression::Gzip);
        (parcel.body.len() as u64 + 4200) * 3
    };
    let mut options = options(receiver.address, Some(folder.path()));
    options.spool = options.spool.map(|spool| spool::Options { limit, ..spool });
    let delivery = Delivery::start(options).unwrap();
    for number in 1..=5 {
        delivery.entrance().hand_over(slice(number));
        // Else a slow encoder would have the queue drop some.
        wait_for("the spool", || {
            let counts = balanced(&delivery);
            counts.spooled + counts.dropped_total() == number * samples()
        });
    }
    let report = finish(delivery, 6);
    assert_eq!(
        report.counts.dropped,
        BTreeMap::from([(Loss::SpoolFull, 3 * samples())])
    );
    assert_eq!(report.counts.spooled, 3 * samples());
}

#[test]
fn a_spool_that_cannot_be_used_is_no_reason_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let receiver = Receiver::start(GOOD);
    let delivery = Delivery::start(options(receiver.address, Some(&folder.path().join("file/x")))).unwrap();
    delivery.entrance().hand_over(slice(1));
    let report = finish(delivery, 2);
    assert_eq!(report.counts.exported, 2 * samples());
}
