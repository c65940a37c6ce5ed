//! Slices on their way to a receiver, each sample once, on a thread of its own.
//!
//! ```text
//! slice ─▶ encode, pack ─▶ fresh, in memory ──────────────▶ one request at a time ─▶ receiver
//!                             │ after a failure                  ▲
//!                             └───────▶ spool, on disk ──────────┘ in order, in turn with what is fresh
//! ```
//! What is fresh stays in memory only as long as the receiver takes it. After a failure it goes to the disk at once, and so does what waits for an
//! answer for a second: what `kill -9` can take is the slice that is still being sampled, and what was finished in the last second.
//!
//! What the limit of the memory is for is what the receiver did not take: what was tried and failed, and what is of slices before the last. A slice that
//! has just come waits for its turn whole, so that memory holds the limit and one slice at most. Where no disk takes what is beyond the limit while the
//! receiver takes its time, the next slice is not encoded before there is room.
//!
//! One request is under way at a time. When a receiver comes back, the backlog goes out oldest first, each of its requests followed by a
//! pause as long as it took and by what is fresh: the backlog takes at most half of the way.
//!
//! A failure is followed by a wait ([`retry`](super::retry)). One that may heal leaves the request where it is. One that never heals costs
//! that request, as the specification wants it, and the wait keeps a receiver that is set up wrong from costing the whole backlog.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    answer::{Accepted, ExportError},
    client::{self, Client, ClientError},
    connections::Connections,
    encode,
    endpoint::Endpoint,
    parcel::{Compression, Parcel},
    retry::Backoff,
};
use crate::{
    ledger::{Counts, Ledger, Place},
    profile::Profile,
    spool::{self, Folder, Id, Oldest, PushError, ReadError, Spool},
    telemetry::{Histogram, Loss},
};

/// Slices that wait to be encoded.
const SLICES: usize = 4;
/// How long a request may be under way before it is written to the disk too.
const COPY_AFTER: Duration = Duration::from_secs(1);
/// How often a segment is tried that the disk does not give.
const READS: u32 = 5;

/// Where slices go, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The receiver.
    pub endpoint: Endpoint,
    /// How requests are sent.
    pub client: client::Options,
    /// How they are compressed.
    pub compression: Compression,
    /// How they are encoded.
    pub encode: encode::Options,
    /// Where to keep what the receiver does not take; `None` keeps it in memory.
    pub spool: Option<spool::Options>,
    /// Most bytes in memory that the receiver did not take.
    pub memory: usize,
}

/// The usual limit of what waits in memory.
pub const DEFAULT_MEMORY: usize = 16 << 20;

/// Why nothing can be delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// There is no client for this endpoint.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The thread does not start.
    #[error("cannot start the thread that delivers")]
    Thread(#[from] std::io::Error),
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Requests that arrived.
    pub requests: u64,
    /// Their bytes before compression.
    pub bytes: u64,
    /// And after it.
    pub packed: u64,
    /// Requests that failed, each as often as it did.
    pub failures: u64,
}

/// What a running delivery counts, and what waits in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Where every sample is.
    pub counts: Counts,
    /// What was sent.
    pub sent: Sent,
    /// How long requests took, failed ones too.
    pub durations: Histogram,
    /// Connections that were opened.
    pub connections: u64,
    /// Requests in memory, the one under way too.
    pub queue_requests: u64,
    /// Their bytes.
    pub queue_bytes: u64,
    /// Most that these may be beside those of the last slice.
    pub queue_limit: u64,
    /// Requests on the disk.
    pub spool_requests: u64,
    /// Their bytes.
    pub spool_bytes: u64,
    /// Most that these may be; 0 without a spool.
    pub spool_limit: u64,
}

/// Sees what a delivery counts, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    ledger: Ledger,
    connections: Connections,
    /// But for what the two above know.
    figures: Mutex<Figures>,
    /// Is told of every duration as well.
    listener: Mutex<Option<Listener>>,
    /// Somebody wants the end to come.
    hurry: Notify,
}

/// Takes the seconds that a request took.
pub struct Listener(pub Box<dyn Fn(f64) + Send>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Watch {
    /// As it stands.
    pub fn figures(&self) -> Figures {
        let Watched {
            ledger,
            connections,
            figures,
            listener: _,
            hurry: _,
        } = &*self.0;
        Figures {
            counts: ledger.counts(),
            connections: connections.count(),
            ..lock(figures).clone()
        }
    }

    /// Tells `listener` from now on how long each request took, and nobody else any more.
    pub fn listen(&self, listener: Listener) {
        *lock(&self.0.listener) = Some(listener);
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn took(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        lock(&self.0.figures).durations.record(seconds);
        if let Some(Listener(listener)) = &*lock(&self.0.listener) {
            listener(seconds);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Where every sample is.
    pub counts: Counts,
    /// What was sent.
    pub sent: Sent,
    /// The last failure that nothing was sent after, or the receiver's words about what it rejected.
    pub failure: Option<String>,
}

/// See the [module documentation](self). Dropped without [`Self::finish`], it leaves what is in memory.
#[derive(Debug)]
pub struct Delivery {
    entrance: Entrance,
    thread: JoinHandle<Report>,
}

/// Where slices are handed over, from any thread.
#[derive(Debug, Clone)]
pub struct Entrance {
    orders: mpsc::Sender<Order>,
    watch: Watch,
}

#[derive(Debug)]
enum Order {
    Slice(Box<Profile>),
    /// From now on, send there and so; the spool stays what it is.
    Change(Box<Options>),
    /// Nothing comes any more; this long may it take from the last success.
    Finish(Duration),
}

impl Delivery {
    /// Starts, with or without a receiver there.
    ///
    /// # Errors
    ///
    /// [`DeliveryError`] for what can be known to be wrong. A spool that cannot be used is a warning: profiling goes on without it.
    pub fn start(options: Options) -> Result<Self, DeliveryError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let watch = Watch::default();
        let client = {
            let _inside = runtime.enter();
            Client::counting(options.endpoint.clone(), &options.client, &watch.0.connections)?
        };
        let (orders, inbox) = mpsc::channel(SLICES);
        let carrier = Carrier::new(options, client, watch.clone());
        let thread = thread::Builder::new()
            .name("delivery".into())
            .spawn(move || runtime.block_on(carrier.run(inbox)))?;
        Ok(Self {
            entrance: Entrance { orders, watch },
            thread,
        })
    }

    /// Where slices are handed over.
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }

    /// Where every sample is.
    pub fn ledger(&self) -> &Ledger {
        self.entrance.watch.ledger()
    }

    /// What it counts, for whoever wants to see it.
    pub fn watch(&self) -> Watch {
        self.entrance.watch.clone()
    }

    /// Hands the last slice over, and waits until everything is sent, or on the disk, or nothing was sent for `timeout`. Blocks.
    pub fn finish(self, last: Profile, timeout: Duration) -> Report {
        self.entrance.watch.ledger().capture(&last);
        self.end([Order::Slice(Box::new(last)), Order::Finish(timeout)])
    }

    /// Puts what is left on the disk, and waits for no receiver. Blocks.
    pub fn abandon(self) -> Report {
        self.entrance.hurry();
        self.end([Order::Finish(Duration::ZERO)])
    }

    fn end(self, last: impl IntoIterator<Item = Order>) -> Report {
        let Self { entrance, thread } = self;
        let Entrance { orders, watch } = entrance;
        for order in last {
            // It ends only after this, or by a bug of its own, which the join tells.
            let _ = orders.blocking_send(order);
        }
        thread.join().unwrap_or_else(|_| Report {
            counts: watch.ledger().counts(),
            failure: Some("the thread that delivers has died".into()),
            ..Report::default()
        })
    }
}

impl Entrance {
    /// Changes where and how slices are sent, but not the spool; what is under way goes on as it is. Says whether there was room for the order.
    pub fn change(&self, options: Options) -> bool {
        self.orders.try_send(Order::Change(Box::new(options))).is_ok()
    }

    /// Has [`Delivery::finish`] wait for no receiver any more: what is left goes to the spool at once.
    pub fn hurry(&self) {
        self.watch.0.hurry.notify_one();
    }

    /// Hands a finished slice over. Returns at once; when too many wait already, its samples are dropped and counted.
    pub fn hand_over(&self, slice: Profile) {
        self.watch.ledger().capture(&slice);
        if let Err(error) = self.orders.try_send(Order::Slice(Box::new(slice))) {
            let (mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order)) = error;
            if let Order::Slice(slice) = order {
                let samples = slice.sample_count();
                self.watch
                    .ledger()
                    .shift(samples, Place::Waiting, Place::Dropped(Loss::EncoderBusy));
                tracing::warn!(
                    samples,
                    "a slice was dropped: those before it are still being encoded, or sent"
                );
            }
        }
    }
}

/// A request under way.
struct UnderWay {
    answer: Pin<Box<dyn Future<Output = Result<Accepted, ExportError>> + Send>>,
    since: Instant,
    from: Source,
    /// Without its body.
    label: Parcel,
}

/// Where a request came from.
#[derive(Debug)]
enum Source {
    /// From memory, where its body is kept for another try.
    Memory(Parcel),
    /// From the disk, or copied there meanwhile.
    Disk(Id),
}

/// The thread's own.
struct Carrier {
    client: Client,
    compression: Compression,
    encode: encode::Options,
    memory: usize,
    watch: Watch,
    /// Oldest first.
    fresh: VecDeque<Parcel>,
    spool: Option<Spool<Folder>>,
    under_way: Option<UnderWay>,
    backoff: Backoff,
    /// Nothing is sent before.
    not_before: Instant,
    /// Nothing of the backlog is sent before.
    backlog_not_before: Instant,
    /// Whether the last request was of the backlog.
    was_backlog: bool,
    /// How often the oldest segment could not be read.
    failed_reads: u32,
    sent: Sent,
    failure: Option<String>,
    told: Told,
    /// When to give up, once nothing comes any more.
    ending: Option<(Duration, Instant)>,
    /// Whether somebody waits for the end.
    is_hurried: bool,
}

/// What was told already: each thing once, until it changes.
#[derive(Debug, Default)]
struct Told {
    failure: String,
    disk: String,
    warning: String,
}

/// Says whether a text is news.
fn is_news(told: &mut String, text: &str) -> bool {
    let news = told != text;
    if news {
        text.clone_into(told);
    }
    news
}

impl Carrier {
    fn new(options: Options, client: Client, watch: Watch) -> Self {
        let Options {
            endpoint: _,
            client: _,
            compression,
            encode,
            spool,
            memory,
        } = options;
        let spool = spool.and_then(|options| match Spool::open(&options) {
            Ok((spool, found)) => {
                watch.ledger().inherit(found.events);
                if !spool.is_empty() {
                    tracing::info!(
                        requests = spool.len(),
                        samples = found.events,
                        "the spool holds what an earlier run could not send"
                    );
                }
                Some(spool)
            }
            Err(error) => {
                tracing::warn!("{error}; until then what the receiver does not take waits in memory");
                None
            }
        });
        Self {
            client,
            compression,
            encode,
            memory,
            watch,
            fresh: VecDeque::new(),
            spool,
            under_way: None,
            backoff: Backoff::default(),
            not_before: Instant::now(),
            backlog_not_before: Instant::now(),
            was_backlog: false,
            failed_reads: 0,
            sent: Sent::default(),
            failure: None,
            told: Told::default(),
            ending: None,
            is_hurried: false,
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) -> Report {
        let watch = self.watch.clone();
        loop {
            self.send_next();
            self.show();
            if let Some((_, deadline)) = self.ending
                && (self.fresh.is_empty() && self.under_way.is_none()
                    || self.is_hurried
                    || Instant::now() >= deadline)
            {
                break;
            }
            let alarm = self.alarm();
            let is_open = self.ending.is_none() && !self.is_behind();
            let answer = async {
                match &mut self.under_way {
                    Some(under_way) => under_way.answer.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = answer => self.take_answer(answer),
                order = inbox.recv(), if is_open => match order {
                    Some(Order::Slice(slice)) => self.take_slice(&slice),
                    Some(Order::Change(options)) => self.change(*options),
                    Some(Order::Finish(timeout)) => self.ending = Some((timeout, Instant::now() + timeout)),
                    None => break,
                },
                () = watch.0.hurry.notified() => self.is_hurried = true,
                () = tokio::time::sleep_until(alarm) => self.copy_what_lingers(),
            }
        }
        self.give_up()
    }

    /// Lets others see how it stands.
    fn show(&self) {
        let under_way = self
            .under_way
            .iter()
            .filter_map(|under_way| match &under_way.from {
                Source::Memory(parcel) => Some(parcel),
                Source::Disk(_) => None,
            });
        let queue = || self.fresh.iter().chain(under_way.clone());
        let mut figures = lock(&self.watch.0.figures);
        figures.sent = self.sent;
        figures.queue_requests = queue().count() as u64;
        figures.queue_bytes = queue().map(|parcel| parcel.body.len() as u64).sum();
        figures.queue_limit = self.memory as u64;
        if let Some(spool) = &self.spool {
            figures.spool_requests = spool.len() as u64;
            figures.spool_bytes = spool.bytes();
            figures.spool_limit = spool.limit();
        }
    }

    fn change(&mut self, options: Options) {
        let Options {
            endpoint,
            client,
            compression,
            encode,
            spool: _,
            memory,
        } = options;
        match Client::counting(endpoint, &client, &self.watch.0.connections) {
            Ok(client) => self.client = client,
            Err(error) => {
                tracing::error!("{error}; it is sent as before");
                return;
            }
        }
        self.compression = compression;
        self.encode = encode;
        self.memory = memory;
        // What was wrong with the one before says nothing about this one.
        self.backoff.reset();
        self.not_before = Instant::now();
        self.told = Told::default();
    }

    /// When something is to be done though nothing has happened.
    fn alarm(&self) -> Instant {
        let mut alarm = Instant::now() + Duration::from_secs(3600);
        match &self.under_way {
            Some(under_way) if matches!(under_way.from, Source::Memory(_)) && self.spool.is_some() => {
                alarm = alarm.min(under_way.since + COPY_AFTER);
            }
            Some(_) => {}
            None if !self.fresh.is_empty() => alarm = alarm.min(self.not_before),
            None if self.has_backlog() => alarm = alarm.min(self.not_before.max(self.backlog_not_before)),
            None => {}
        }
        match self.ending {
            Some((_, deadline)) => alarm.min(deadline),
            None => alarm,
        }
    }

    fn has_backlog(&self) -> bool {
        self.spool.as_ref().is_some_and(|spool| !spool.is_empty())
    }

    /// Encodes a slice. The limit is for those before it: this one nobody has tried to send.
    fn take_slice(&mut self, slice: &Profile) {
        if !self.is_hurried {
            self.keep_within_memory();
        }
        for request in encode::encode(slice, &self.encode) {
            self.fresh.push_back(Parcel::pack(&request, self.compression));
        }
        if self.backoff.is_failing() {
            self.spill();
            self.keep_within_memory();
        }
    }

    /// Whether the next slice is to wait: the receiver takes what there is, no disk does, and it is more than the limit.
    fn is_behind(&self) -> bool {
        let is_taken = !self.backoff.is_failing() && !self.is_hurried;
        is_taken && self.spool.is_none() && self.fresh_bytes() > self.memory
    }

    fn fresh_bytes(&self) -> usize {
        self.fresh.iter().map(|parcel| parcel.body.len()).sum()
    }

    /// Begins to send, if nothing is under way and something may be.
    fn send_next(&mut self) {
        let now = Instant::now();
        if self.under_way.is_some() || now < self.not_before {
            return;
        }
        // At the end the backlog stays where it is.
        let backlog = self.has_backlog() && now >= self.backlog_not_before && self.ending.is_none();
        let parcel = if self.fresh.is_empty() || (backlog && !self.was_backlog) {
            if !backlog {
                return;
            }
            self.was_backlog = true;
            self.read_oldest()
        } else {
            self.was_backlog = false;
            let parcel = self.fresh.pop_front();
            parcel.map(|parcel| (Source::Memory(parcel.clone()), parcel))
        };
        let Some((from, parcel)) = parcel else {
            return;
        };
        let label = Parcel {
            body: prost::bytes::Bytes::new(),
            ..parcel
        };
        tracing::debug!(samples = label.events, bytes = parcel.body.len(), ?self.was_backlog, "sending");
        self.under_way = Some(UnderWay {
            label,
            answer: Box::pin(self.client.export(parcel)),
            since: now,
            from,
        });
    }

    /// The oldest of the backlog; what cannot be read makes way.
    fn read_oldest(&mut self) -> Option<(Source, Parcel)> {
        loop {
            let Oldest { id, events, parcel } = self.spool.as_ref()?.oldest()?;
            let error = match parcel {
                Ok(parcel) => {
                    self.failed_reads = 0;
                    return Some((Source::Disk(id), parcel));
                }
                Err(error) => error,
            };
            // Memory or descriptors may be short for a moment. A segment that is gone or damaged stays so.
            if let ReadError::Io(cause) = &error
                && cause.kind() != std::io::ErrorKind::NotFound
            {
                self.failed_reads += 1;
                if self.failed_reads < READS {
                    self.backlog_not_before = Instant::now() + Duration::from_secs(1);
                    return None;
                }
            }
            self.failed_reads = 0;
            tracing::warn!(samples = events, "{error}");
            self.watch
                .ledger()
                .shift(events, Place::Spooled, Place::Dropped(Loss::SpoolUnreadable));
            self.spool.as_mut()?.remove(id);
        }
    }

    fn take_answer(&mut self, answer: Result<Accepted, ExportError>) {
        let Some(UnderWay {
            since, from, label, ..
        }) = self.under_way.take()
        else {
            return;
        };
        let now = Instant::now();
        self.watch.took(now - since);
        let place = match from {
            Source::Memory(_) => Place::Waiting,
            Source::Disk(_) => Place::Spooled,
        };
        match answer {
            Ok(Accepted { rejected, message }) => {
                self.sent.requests += 1;
                self.sent.bytes += label.length as u64;
                self.sent.packed += self.packed(&from);
                let rejected_events = label.events_of(rejected);
                self.watch
                    .ledger()
                    .shift(label.events - rejected_events, place, Place::Exported);
                self.watch
                    .ledger()
                    .shift(rejected_events, place, Place::Dropped(Loss::Rejected));
                self.failure = None;
                if rejected > 0 {
                    let text = format!(
                        "{} rejected {rejected_events} samples: {message}",
                        self.client.endpoint()
                    );
                    if is_news(&mut self.told.warning, &message) {
                        tracing::warn!("{text}");
                    }
                    self.failure = Some(text);
                } else if !message.is_empty() && is_news(&mut self.told.warning, &message) {
                    tracing::warn!(message, "the receiver has something to say about the profiles");
                }
                if self.backoff.is_failing() {
                    tracing::warn!("{} takes profiles again", self.client.endpoint());
                }
                self.backoff.reset();
                self.told.failure.clear();
                if let Source::Disk(id) = from {
                    self.remove(id);
                }
                if self.was_backlog {
                    self.backlog_not_before = now + (now - since);
                }
                if let Some((timeout, deadline)) = &mut self.ending {
                    *deadline = now + *timeout;
                }
            }
            Err(error) => {
                self.sent.failures += 1;
                let text = error.to_string();
                if is_news(&mut self.told.failure, &text) {
                    tracing::warn!("{text}");
                }
                self.failure = Some(text);
                if error.is_retryable() {
                    if let Source::Memory(parcel) = from {
                        self.fresh.push_front(parcel);
                    }
                } else {
                    let reason = if matches!(error, ExportError::TooLarge(_)) {
                        Loss::TooLarge
                    } else {
                        Loss::Refused
                    };
                    self.watch
                        .ledger()
                        .shift(label.events, place, Place::Dropped(reason));
                    if let Source::Disk(id) = from {
                        self.remove(id);
                    }
                }
                self.not_before = now + self.backoff.fail(error.retry_after());
                self.spill();
                self.keep_within_memory();
            }
        }
    }

    /// Bytes that a request took on the way.
    fn packed(&self, from: &Source) -> u64 {
        match from {
            Source::Memory(parcel) => parcel.body.len() as u64,
            Source::Disk(id) => self.spool.as_ref().map_or(0, |spool| spool.size(*id)),
        }
    }

    fn remove(&mut self, id: Id) {
        if let Some(spool) = &mut self.spool {
            spool.remove(id);
        }
    }

    /// What is fresh goes to the disk, oldest first.
    fn spill(&mut self) {
        while let Some(parcel) = self.fresh.pop_front() {
            if self.keep(&parcel).is_none() {
                self.fresh.push_front(parcel);
                return;
            }
        }
    }

    /// Writes a request to the disk. One that would never fit is dropped.
    fn keep(&mut self, parcel: &Parcel) -> Option<Id> {
        let except = match &self.under_way {
            Some(UnderWay {
                from: Source::Disk(id),
                ..
            }) => Some(*id),
            _ => None,
        };
        let spool = self.spool.as_mut()?;
        let (result, dropped) = match spool.push(parcel, except) {
            Ok((id, dropped)) => (Ok(id), dropped),
            Err((error, dropped)) => (Err(error), dropped),
        };
        self.watch
            .ledger()
            .shift(dropped, Place::Spooled, Place::Dropped(Loss::SpoolFull));
        if dropped > 0 && is_news(&mut self.told.disk, "full") {
            tracing::warn!("the spool is full; the oldest profiles in it make way for new ones");
        }
        match result {
            Ok(id) => {
                self.watch
                    .ledger()
                    .shift(parcel.events, Place::Waiting, Place::Spooled);
                Some(id)
            }
            Err(error) => {
                let text = error.to_string();
                if is_news(&mut self.told.disk, &text) {
                    tracing::warn!("{text}; profiles wait in memory");
                }
                // The file system may take a smaller one, or this one later; too large stays too large, and waits in memory as without a spool.
                let (PushError::Io(_) | PushError::TooLarge { .. }) = error;
                None
            }
        }
    }

    /// Drops the oldest of what is in memory beyond the limit.
    fn keep_within_memory(&mut self) {
        if self.fresh_bytes() > self.memory {
            self.spill();
        }
        let mut bytes = self.fresh_bytes();
        while bytes > self.memory {
            let Some(parcel) = self.fresh.pop_front() else {
                return;
            };
            bytes -= parcel.body.len();
            self.watch
                .ledger()
                .shift(parcel.events, Place::Waiting, Place::Dropped(Loss::QueueFull));
            if is_news(&mut self.told.disk, "memory") {
                tracing::warn!("too much waits in memory for the receiver; the oldest profiles are dropped");
            }
        }
    }

    /// A request that is under way for long is written to the disk too.
    fn copy_what_lingers(&mut self) {
        let Some(mut under_way) = self.under_way.take() else {
            return;
        };
        if under_way.since.elapsed() >= COPY_AFTER
            && let Source::Memory(parcel) = &under_way.from
        {
            match self.keep(parcel) {
                Some(id) => under_way.from = Source::Disk(id),
                // Not tried again every moment.
                None => under_way.since = Instant::now(),
            }
        }
        self.under_way = Some(under_way);
    }

    /// The end: what is left goes to the disk, or is dropped.
    fn give_up(mut self) -> Report {
        if let Some(UnderWay {
            from: Source::Memory(parcel),
            ..
        }) = self.under_way.take()
        {
            // It may have arrived; without an answer it counts as not.
            self.fresh.push_front(parcel);
        }
        if !self.fresh.is_empty() && self.failure.is_none() {
            self.failure = Some(format!("{} took longer than it was to", self.client.endpoint()));
        }
        self.spill();
        for parcel in std::mem::take(&mut self.fresh) {
            self.watch
                .ledger()
                .shift(parcel.events, Place::Waiting, Place::Dropped(Loss::ShutDown));
        }
        Report {
            counts: self.watch.ledger().counts(),
            sent: self.sent,
            failure: self.failure,
        }
    }
}
