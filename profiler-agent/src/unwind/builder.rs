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
    cfi::{self, CfiError, FileSections},
    sections::MAX_CFI,
    table::Table,
};

/// Files that wait to be read; the rest waits with the asker.
const QUEUE: usize = 16;

/// Most bytes of a piece of a table: an eighth of a segment. What a few small blocks have left of a segment must still hold pieces: of
/// halves, eight segments with a small block in each hold 8, and librustc_driver and libLLVM (13 MB) are 14.
const PIECE: usize = 1 << 18;

/// Samples wait for what the thread builds, and other programs want the CPUs: it may work this much at a time as fast as it can,
const BURST: Duration = Duration::from_secs(1);
/// and in the long run one part of this many of a CPU.
const SHARE: u32 = 4;

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
    /// There is too much of it.
    #[error("its call frame information has more than {MAX_CFI} bytes")]
    Oversized,
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
        let mut pace = Pace {
            hurry: Arc::clone(&hurry),
            saved: BURST,
            since: Instant::now(),
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

/// How much of a CPU the thread takes: it saves time while it does not work, and rests when it has spent it.
struct Pace {
    hurry: Arc<AtomicBool>,
    /// How long it may work, at `since`.
    saved: Duration,
    since: Instant,
}

impl Pace {
    /// Rests after work that took this long, if it should.
    fn rest(&mut self, took: Duration) {
        self.saved = (self.saved + self.since.elapsed() / SHARE).min(BURST);
        self.since = Instant::now();
        let debt = took.saturating_sub(self.saved);
        self.saved = self.saved.saturating_sub(took);
        let until = Instant::now() + debt * SHARE;
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
    let sections = FileSections::read(file)?;
    if sections.is_oversized() {
        return Err(BuildError::Oversized);
    }
    Ok(cfi::tables(&sections.borrow(), code, PIECE)?.pieces)
}
