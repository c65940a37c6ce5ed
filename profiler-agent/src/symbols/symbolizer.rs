//! The handle of the stage: requests go in, responses come out, neither waits for the other.

use std::{
    fmt,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use super::{Request, Response, resolver::Resolver};

/// Requests, and as many responses, that wait; beyond this the caller keeps its request.
pub const QUEUE: usize = 64;

/// The stage lets its files go after it was not asked for this long.
const IDLE: Duration = Duration::from_secs(2);

/// Runs a [`Resolver`] on a thread of its own.
///
/// ```text
/// caller ── try_request ──▶ [64 requests] ──▶ thread ──▶ [64 responses] ── try_recv, recv_timeout ──▶ caller
/// ```
/// Nothing blocks but [`Symbolizer::recv_timeout`]. Answers come in the order of the requests, one each. A
/// caller that does not take its responses stops the thread, then sees [`NotTaken::Full`]; nothing is lost.
///
/// Dropping it ends the thread after the request that it is working on; drop does not wait for that.
///
/// The limit of a thread: a file that is truncated while it is parsed kills the process with SIGBUS, and one made
/// for it can eat memory. That ends when the stage moves into a process of its own.
#[derive(Debug)]
pub struct Symbolizer {
    requests: SyncSender<Request>,
    responses: Receiver<Response>,
    pending: usize,
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
    /// Starts the thread; it reads nothing before the first request.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(QUEUE);
        let (outbox, responses) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("symbols".into())
            .spawn(move || work(&inbox, &outbox))?;
        Ok(Self {
            requests,
            responses,
            pending: 0,
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

    fn taken(&mut self, response: Response) -> Response {
        self.pending = self.pending.saturating_sub(1);
        response
    }

    fn ended(&mut self) -> Option<Response> {
        self.pending = 0;
        None
    }
}

/// Until one of the two ends is dropped.
fn work(inbox: &Receiver<Request>, outbox: &SyncSender<Response>) {
    let mut resolver = Resolver::new();
    loop {
        match inbox.recv_timeout(IDLE) {
            Ok(request) => {
                if outbox.send(resolver.resolve(&request)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                resolver.release();
                // Nothing more to let go, so no more timeouts until there is work again.
                let Ok(request) = inbox.recv() else { return };
                if outbox.send(resolver.resolve(&request)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
