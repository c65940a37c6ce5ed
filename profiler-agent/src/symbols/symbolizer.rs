//! The handle of the stage: requests go in, responses come out, neither waits for the other. Behind it a thread that serves the child.

use std::{
    collections::VecDeque,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::{
    Object, Request, Response, Source, Symbols,
    client::Client,
    confine::Confinement,
    demangle::NAME_LIMIT,
    handover::{Handover, Manner, Wish, hand_over, is_trusted},
    message::MOST_ADDRESSES,
    spawn::Ended,
};
use crate::cpu_time::{peak_memory, schedstat};

/// Requests, and as many responses, that wait; beyond this the caller keeps its request.
pub const QUEUE: usize = 64;

/// The running program, whatever has become of its file: it serves as its own child.
pub const SELF: &str = "/proc/self/exe";

/// The child lets files go after it was not asked for this long; where it is asked for ever, those that it was not asked for at the last
/// two occasions.
const RELEASE: Duration = Duration::from_secs(2);

/// And it ends after this long; the next request starts one anew.
const IDLE: Duration = Duration::from_secs(30);

/// An object that the child has failed over so often is not asked for again.
const MOST_FAULTS: u32 = 2;

/// Objects whose faults are remembered.
const MOST_REMEMBERED: usize = 4096;

/// Children that may fail to start in a row; then requests are answered without names.
const MOST_STARTS: u32 = 5;

/// And none is started for this long.
const NO_CHILD: Duration = Duration::from_secs(10);

/// A child that has failed is replaced after this long, and after twice as long each time that none has answered since.
const BACKOFF: Duration = Duration::from_millis(10);

/// The longest that [`BACKOFF`] grows to.
const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Most bytes of copies that the child holds.
const MOST_COPIED: u64 = 192 << 20;

/// The kernel's table is read again for an unknown address (a module loaded since), but not earlier than this, and
/// twice as long each time it did not help: 120 ms each.
const KERNEL_RELOAD: Duration = Duration::from_secs(10);

/// The longest that [`KERNEL_RELOAD`] grows to.
const KERNEL_RELOAD_MOST: Duration = Duration::from_secs(600);

/// Runs the parsers of foreign files in a child process without privileges.
///
/// ```text
/// caller ── try_request ──▶ [64 requests] ──▶ thread ──▶ [64 responses] ── try_recv, recv_timeout ──▶ caller
///                                               ⇅
///                                             child
/// ```
/// Nothing blocks but [`Symbolizer::recv_timeout`]. Each request has one answer, and those of one object come in the order of their requests;
/// files that only root can write are served before others, and those that a child has failed over come last. A caller that does not take
/// its responses stops the thread, then sees [`NotTaken::Full`]; nothing is lost.
///
/// A child that dies, or takes more than 5 s of CPU time for a question, is replaced, and the question is asked once more, after all others and without
/// debug information. If that fails too, the object has no more names. [`Response::error`] says why.
///
/// Dropping it ends the thread after the request that it is working on; drop does not wait for that.
#[derive(Debug)]
pub struct Symbolizer {
    requests: SyncSender<Request>,
    responses: Receiver<Response>,
    pending: usize,
    cost: Arc<Mutex<Cost>>,
}

/// What the children have used, and how often one had to be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Pid of the one that runs, 0 for none.
    pub pid: u32,
    /// CPU time.
    pub cpu: Duration,
    /// Most memory that one had at one time, bytes; mapped pages of files included.
    pub peak_memory: u64,
    /// How many failed.
    pub failed: u32,
}

/// Why a request was not taken; it is handed back.
#[derive(Debug)]
pub enum NotTaken {
    /// The queue is full: take responses and try again.
    Full(Request),
    /// The thread is gone; no request will ever be taken.
    Ended(Request),
}

impl NotTaken {
    /// The request, for another try.
    pub fn into_request(self) -> Request {
        match self {
            Self::Full(request) | Self::Ended(request) => request,
        }
    }
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => write!(f, "{QUEUE} symbol requests are waiting already"),
            Self::Ended(_) => f.write_str("the symbol thread has ended"),
        }
    }
}

impl std::error::Error for NotTaken {}

impl Symbolizer {
    /// Starts the thread; the child is started at the first request. `program` is one that calls [`serve`](super::serve): [`SELF`] in the
    /// agent. `inlines` says whether inlined functions and lines are wanted; `every` how often names are asked for where that goes on for
    /// ever: then files are held from one time to the next, and debug information is read where so much is asked for that it is worth it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(program: &Path, inlines: bool, every: Option<Duration>) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(QUEUE);
        let (outbox, responses) = sync_channel(QUEUE);
        let cost = Arc::new(Mutex::new(Cost::default()));
        let worker = Worker {
            program: program.to_owned(),
            inlines,
            every,
            client: None,
            faults: HashMap::new(),
            failures: 0,
            no_child: None,
            told: false,
            kernel: None,
            cost: Arc::clone(&cost),
        };
        thread::Builder::new()
            .name("symbols".into())
            .spawn(move || worker.work(&inbox, &outbox))?;
        Ok(Self {
            requests,
            responses,
            pending: 0,
            cost,
        })
    }

    /// Hands a request over. Returns at once.
    ///
    /// # Errors
    /// With the request itself, when it was not taken.
    pub fn try_request(&mut self, request: Request) -> Result<(), NotTaken> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) => NotTaken::Full(request),
            TrySendError::Disconnected(request) => NotTaken::Ended(request),
        })?;
        self.pending += 1;
        Ok(())
    }

    /// Takes a response if there is one.
    pub fn try_recv(&mut self) -> Option<Response> {
        match self.responses.try_recv() {
            Ok(response) => Some(self.taken(response)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.ended(),
        }
    }

    /// Takes a response, waiting for it for up to `timeout`; `None` at once when none is pending.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Option<Response> {
        if self.pending == 0 {
            return None;
        }
        match self.responses.recv_timeout(timeout) {
            Ok(response) => Some(self.taken(response)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.ended(),
        }
    }

    /// Requests handed over whose responses were not taken yet; 0 once the thread is gone.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// What the children have used so far.
    pub fn cost(&self) -> Cost {
        let mut cost = *lock(&self.cost);
        if cost.pid != 0 {
            cost.cpu += Duration::from_nanos(schedstat(cost.pid).unwrap_or_default());
            cost.peak_memory = cost.peak_memory.max(peak_memory(cost.pid));
        }
        cost
    }

    fn taken(&mut self, response: Response) -> Response {
        self.pending = self.pending.saturating_sub(1);
        response
    }

    fn ended(&mut self) -> Option<Response> {
        self.pending = 0;
        None
    }
}

/// The thread.
struct Worker {
    program: PathBuf,
    /// Whether inlined functions are wanted.
    inlines: bool,
    /// How often they are, if for ever.
    every: Option<Duration>,
    client: Option<Client>,
    /// How often a child has failed over an object, and why.
    faults: HashMap<u32, (u32, String)>,
    /// Children that failed in a row, without an answer in between.
    failures: u32,
    /// Until when no start is tried, and why.
    no_child: Option<(Instant, String)>,
    /// Whether it was told what the confinement lacks.
    told: bool,
    kernel: Option<KernelTable>,
    cost: Arc<Mutex<Cost>>,
}

/// The kernel's symbols that the child has.
struct KernelTable {
    read: Instant,
    /// How old they must be to be read again.
    patience: Duration,
}

/// Why a request has no answer.
enum Trouble {
    /// The child failed over it.
    Failed(String),
    /// It is none of the child's business: the object's files cannot be had, or no child.
    Nameless(String),
}

impl Worker {
    /// Until one of the two ends is dropped.
    fn work(mut self, inbox: &Receiver<Request>, outbox: &SyncSender<Response>) {
        let mut waiting = VecDeque::new();
        while self.wait(inbox, &mut waiting) {
            let Some(place) = self.next(&waiting) else {
                continue;
            };
            let Some(request) = waiting.get(place) else {
                continue;
            };
            let response = match self.answer(request) {
                Ok(response) => response,
                Err(Trouble::Failed(reason)) => {
                    tracing::debug!(object = request.id, reason, "a symbolizer failed");
                    if self.faults.len() >= MOST_REMEMBERED {
                        self.faults.clear();
                    }
                    let (faults, why) = self.faults.entry(request.id).or_default();
                    *faults += 1;
                    *why = reason;
                    // It stays where it is, and comes after all that have not failed.
                    continue;
                }
                Err(Trouble::Nameless(reason)) => nameless(request, reason),
            };
            waiting.remove(place);
            if outbox.send(response).is_err() {
                break;
            }
        }
        self.end_child();
    }

    /// Waits for something to do; false when there will be nothing any more.
    fn wait(&mut self, inbox: &Receiver<Request>, waiting: &mut VecDeque<Request>) -> bool {
        while waiting.len() < QUEUE {
            let received = if !waiting.is_empty() {
                inbox.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else {
                self.idle(inbox)
            };
            match received {
                Ok(request) => waiting.push_back(request),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Waits for a request, and gives back meanwhile what is not needed.
    fn idle(&mut self, inbox: &Receiver<Request>) -> Result<Request, RecvTimeoutError> {
        if let Some(client) = &mut self.client {
            match inbox.recv_timeout(RELEASE) {
                Err(RecvTimeoutError::Timeout) => {}
                received => return received,
            }
            // A little more than twice as long, for they are not asked for to the millisecond.
            let unused = self.every.map_or(Duration::ZERO, |every| every * 5 / 2);
            if client.release(unused).is_err() {
                self.end_child();
            } else {
                match inbox.recv_timeout(IDLE) {
                    Err(RecvTimeoutError::Timeout) => self.end_child(),
                    received => return received,
                }
            }
        }
        inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
    }

    /// The request that is served next.
    fn next(&self, waiting: &VecDeque<Request>) -> Option<usize> {
        let rank = |request: &Request| {
            let faults = self.faults.get(&request.id).map_or(0, |(faults, _)| *faults);
            (faults, !is_trusted(&request.object))
        };
        let ranks = waiting.iter().map(rank).enumerate();
        ranks
            .min_by_key(|(place, rank)| (*rank, *place))
            .map(|(place, _)| place)
    }

    fn answer(&mut self, request: &Request) -> Result<Response, Trouble> {
        let Request {
            id,
            object,
            addresses,
        } = request;
        if let Some((MOST_FAULTS.., reason)) = self.faults.get(id) {
            return Err(Trouble::Nameless(format!("given up: {reason}")));
        }
        let mut response = self.ask(*id, object, addresses)?;
        if matches!(object, Object::Kernel) {
            self.ask_kernel_again(*id, &mut response)?;
        }
        Ok(response)
    }

    /// Asks in as many questions as it takes.
    fn ask(&mut self, id: u32, object: &Object, addresses: &[u64]) -> Result<Response, Trouble> {
        let mut response = Response {
            id,
            symbols: Vec::with_capacity(addresses.len()),
            error: None,
        };
        loop {
            let rest = addresses.get(response.symbols.len()..).unwrap_or_default();
            let part = rest.get(..MOST_ADDRESSES).unwrap_or(rest);
            let client = self.child()?;
            let mut handover = None;
            let reopens = client.confinement().reopens_files();
            if !client.holds(id, part.len()) {
                let manner = match self.faults.get(&id) {
                    Some((_, reason)) => {
                        response.error = Some(format!("debug information not used: {reason}"));
                        Manner::Cautious
                    }
                    None if reopens => Manner::Usual,
                    None => Manner::Copies,
                };
                let wish = Wish {
                    inlines: self.inlines,
                    addresses: self.every.map(|_| addresses.len()),
                };
                let files = hand_over(object, manner, wish).map_err(Trouble::Nameless)?;
                add(&mut response.error, files.remark.clone());
                handover = Some(files);
            }
            let answer = self.question(id, handover, part)?;
            response.symbols.extend(answer.symbols);
            add(&mut response.error, answer.error);
            if response.symbols.len() >= addresses.len() {
                return Ok(response);
            }
        }
    }

    /// A module may have been loaded since the child got the kernel's symbols.
    fn ask_kernel_again(&mut self, id: u32, response: &mut Response) -> Result<(), Trouble> {
        let unknown: Vec<u64> = response
            .symbols
            .iter()
            .filter(|symbols| symbols.functions.is_empty())
            .map(|symbols| symbols.address)
            .collect();
        let Some(patience) = self.kernel.as_ref().map(|kernel| kernel.patience) else {
            return Ok(());
        };
        let is_due = self
            .kernel
            .as_ref()
            .is_some_and(|kernel| kernel.read.elapsed() > patience);
        if unknown.is_empty() || !is_due {
            return Ok(());
        }
        let wish = Wish {
            inlines: false,
            addresses: None,
        };
        let mut handover = Some(hand_over(&Object::Kernel, Manner::Usual, wish).map_err(Trouble::Nameless)?);
        let mut found = Vec::new();
        for part in unknown.chunks(MOST_ADDRESSES) {
            self.child()?;
            found.extend(self.question(id, handover.take(), part)?.symbols);
        }
        found.retain(|symbols| !symbols.functions.is_empty());
        if found.len() < unknown.len()
            && let Some(kernel) = &mut self.kernel
        {
            kernel.patience = (patience * 2).min(KERNEL_RELOAD_MOST);
        }
        let mut found = found.into_iter().peekable();
        for symbols in &mut response.symbols {
            if let Some(named) = found.next_if(|named| named.address == symbols.address) {
                *symbols = named;
            }
        }
        Ok(())
    }

    /// One question to the child that is there.
    fn question(
        &mut self,
        id: u32,
        handover: Option<Handover>,
        addresses: &[u64],
    ) -> Result<Response, Trouble> {
        let kernel = handover
            .as_ref()
            .is_some_and(|handover| matches!(handover.source, Source::Kernel { .. }));
        let copied = handover.as_ref().map_or(0, |handover| handover.copied);
        let Some(client) = &mut self.client else {
            return Err(Trouble::Nameless("there is no symbolizer".into()));
        };
        let room = if copied > 0 && client.copied().saturating_add(copied) > MOST_COPIED {
            client.release(Duration::ZERO)
        } else {
            Ok(())
        };
        match room.and_then(|()| client.ask(id, handover, addresses)) {
            Ok(response) => {
                self.failures = 0;
                if kernel {
                    self.kernel = Some(KernelTable {
                        read: Instant::now(),
                        patience: KERNEL_RELOAD,
                    });
                }
                Ok(response)
            }
            Err(failure) => {
                self.failures = self.failures.saturating_add(1);
                self.client = None;
                self.count(failure.ended(), true);
                Err(Trouble::Failed(failure.to_string()))
            }
        }
    }

    /// The child, started if there is none.
    fn child(&mut self) -> Result<&mut Client, Trouble> {
        if self.client.as_ref().is_some_and(Client::has_ended) {
            // Not over a question; whoever ended it, the next one may do.
            self.failures = self.failures.saturating_add(1);
            self.end_child();
        }
        let client = match self.client.take() {
            Some(client) => client,
            None => self.start_child()?,
        };
        Ok(self.client.insert(client))
    }

    fn start_child(&mut self) -> Result<Client, Trouble> {
        if let Some((until, reason)) = &self.no_child
            && Instant::now() < *until
        {
            return Err(Trouble::Nameless(reason.clone()));
        }
        let mut starts = 0;
        loop {
            if self.failures > 0 {
                let doublings = (self.failures - 1).min(16);
                thread::sleep((BACKOFF * (1 << doublings)).min(BACKOFF_MOST));
            }
            match Client::start(&self.program) {
                Ok(client) => {
                    self.no_child = None;
                    lock(&self.cost).pid = client.pid();
                    self.tell(client.confinement());
                    return Ok(client);
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    starts += 1;
                    if starts == MOST_STARTS {
                        let reason = match std::error::Error::source(&error) {
                            Some(source) => format!("{error}: {source}"),
                            None => error.to_string(),
                        };
                        self.no_child = Some((Instant::now() + NO_CHILD, reason.clone()));
                        return Err(Trouble::Nameless(reason));
                    }
                }
            }
        }
    }

    /// What the confinement lacks, once.
    fn tell(&mut self, confinement: &Confinement) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        for (layer, reason) in &confinement.missing {
            let (name, meaning) = layer.describe();
            tracing::info!(layer = name, meaning, reason, "the symbolizer runs without");
        }
    }

    fn end_child(&mut self) {
        if let Some(ended) = self.client.take().and_then(Client::end) {
            self.count(ended, false);
        }
    }

    fn count(&self, ended: Ended, failed: bool) {
        let mut cost = lock(&self.cost);
        cost.pid = 0;
        cost.cpu += ended.cpu;
        cost.peak_memory = cost.peak_memory.max(ended.peak_memory);
        cost.failed += u32::from(failed);
    }
}

/// Adds what is wrong to what was wrong already, once.
fn add(error: &mut Option<String>, more: Option<String>) {
    match (error.as_mut(), more) {
        (_, None) => {}
        (None, more) => *error = more,
        (Some(error), Some(more)) if error.len() < NAME_LIMIT && !error.contains(&more) => {
            error.push_str("; ");
            error.push_str(&more);
        }
        (Some(_), Some(_)) => {}
    }
}

/// The answer to a request that has none.
fn nameless(request: &Request, reason: String) -> Response {
    let symbols = request.addresses.iter().map(|&address| Symbols {
        address,
        ..Symbols::default()
    });
    Response {
        id: request.id,
        symbols: symbols.collect(),
        error: Some(reason),
    }
}

/// A thread that died has left whole numbers behind.
fn lock(cost: &Mutex<Cost>) -> std::sync::MutexGuard<'_, Cost> {
    cost.lock().unwrap_or_else(PoisonError::into_inner)
}
