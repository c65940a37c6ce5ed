//! Builds tables on a thread of its own, one file after the other, in the order of asking.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    cfi::{self, CfiError},
    sections::OwnedSections,
    table::{Table, TableError},
};

/// Files that wait to be read; the rest waits with the asker.
const QUEUE: usize = 16;

/// Most bytes of a piece of a table: half a segment, so that segments fill well.
const PIECE: usize = 1 << 20;

/// How long the thread works as fast as it can: first samples wait for what it builds. From then on it rests three times as long as it
/// works, so that it takes a quarter of one CPU at most.
const SPRINT: Duration = Duration::from_secs(1);
const REST: u32 = 3;

/// How long it sleeps at a time, so that it hears when it is in a hurry.
const NAP: Duration = Duration::from_millis(5);

/// A file to build a table of.
#[derive(Debug)]
pub(super) struct Request {
    /// Chosen by the asker, handed back.
    pub(super) id: u32,
    /// The file.
    pub(super) file: Arc<File>,
    /// Its path, for messages.
    pub(super) path: String,
    /// The addresses of its code; empty is all that its sections speak of.
    pub(super) code: Range<u64>,
}

/// The tables of a file, or why there are none.
#[derive(Debug)]
pub(super) struct Built {
    /// Of the request.
    pub(super) id: u32,
    /// Its tables, each for a range of its addresses.
    pub(super) pieces: Result<Vec<(Range<u64>, Table)>, BuildError>,
    /// Path of the file, for messages.
    pub(super) path: String,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Its call frame information is of no use.
    #[error(transparent)]
    Cfi(#[from] CfiError),
    /// It is too large.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The thread, and the two queues.
#[derive(Debug)]
pub(super) struct Builder {
    requests: SyncSender<Request>,
    answers: Receiver<Built>,
    hurry: Arc<AtomicBool>,
}

impl Builder {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(super) fn start() -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel::<Request>(QUEUE);
        let (outbox, answers) = sync_channel(QUEUE);
        let hurry = Arc::new(AtomicBool::new(false));
        let pace = Pace {
            hurry: Arc::clone(&hurry),
            started: Instant::now(),
        };
        thread::Builder::new().name("unwind".into()).spawn(move || {
            for Request { id, file, path, code } in inbox {
                let began = Instant::now();
                let pieces = build(&file, code);
                let took = began.elapsed();
                if outbox.send(Built { id, pieces, path }).is_err() {
                    return;
                }
                pace.rest(took);
            }
        })?;
        Ok(Self {
            requests,
            answers,
            hurry,
        })
    }

    /// Asks for a table; gives the request back when the queue is full.
    ///
    /// # Errors
    ///
    /// The request itself.
    pub(super) fn ask(&self, request: Request) -> Result<(), Request> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Disconnected(request) => request,
        })
    }

    /// An answer, if there is one.
    pub(super) fn answer(&self) -> Option<Built> {
        self.answers.try_recv().ok()
    }

    /// From now on somebody waits: no more rests.
    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }
}

/// How much of a CPU the thread takes.
struct Pace {
    hurry: Arc<AtomicBool>,
    started: Instant,
}

impl Pace {
    /// Rests after work that took this long, if it should.
    fn rest(&self, took: Duration) {
        if self.started.elapsed() < SPRINT {
            return;
        }
        let until = Instant::now() + took * REST;
        while !self.hurry.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(NAP));
        }
    }
}

fn build(file: &File, code: Range<u64>) -> Result<Vec<(Range<u64>, Table)>, BuildError> {
    let sections = OwnedSections::read(file)?;
    let rules = cfi::rules(&sections.borrow())?;
    if rules.by_address.is_empty() {
        return Ok(Vec::new());
    }
    Ok(Table::pieces(&rules.by_address, code, PIECE)?)
}
