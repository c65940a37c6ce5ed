//! Builds tables on a thread of its own, one file after the other, in the order of asking; one that somebody waits for goes first.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    cfi::{self, CfiError, FileSections},
    sections::MAX_CFI,
    table::Table,
};

/// Tables that wait to be taken.
const ANSWERS: usize = 16;

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
    /// A fault of ours.
    #[error("the code that reads it failed: {0}; please report that, with the file")]
    Panicked(String),
}

/// The thread, and the two queues.
#[derive(Debug)]
pub(super) struct Builder {
    requests: Arc<Requests>,
    answers: Receiver<Built>,
    hurry: Arc<AtomicBool>,
}

/// Files that wait to be read: each is asked for once, so that there are no more than there are files.
#[derive(Debug, Default)]
struct Requests {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// Nobody asks any more.
    is_over: bool,
}

impl Requests {
    /// Nothing that is done while it is held can fail half-way.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one; waits for it.
    fn next(&self) -> Option<Request> {
        let waiting = self.lock();
        let is_idle = |waiting: &mut Waiting| waiting.requests.is_empty() && !waiting.is_over;
        let mut waiting = self
            .changed
            .wait_while(waiting, is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.is_over {
            return None;
        }
        waiting.requests.pop_front()
    }
}

impl Builder {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(super) fn start() -> std::io::Result<Self> {
        let requests = Arc::new(Requests::default());
        let inbox = Arc::clone(&requests);
        let (outbox, answers) = sync_channel(ANSWERS);
        let hurry = Arc::new(AtomicBool::new(false));
        let mut pace = Pace {
            hurry: Arc::clone(&hurry),
            saved: BURST,
            since: Instant::now(),
        };
        thread::Builder::new().name("unwind".into()).spawn(move || {
            take_precedence();
            while let Some(Request { id, file, path, code }) = inbox.next() {
                let began = Instant::now();
                let pieces = guarded(|| build(&file, code));
                let took = began.elapsed();
                tracing::debug!(path, ?took, "table built");
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

    /// Asks for a table.
    pub(super) fn ask(&self, request: Request) {
        self.requests.lock().requests.push_back(request);
        self.requests.changed.notify_one();
    }

    /// Somebody waits for this table: it goes before all others that have not been begun.
    pub(super) fn urge(&self, id: u32) {
        let requests = &mut self.requests.lock().requests;
        if let Some(at) = requests.iter().position(|request| request.id == id)
            && at > 0
            && let Some(request) = requests.remove(at)
        {
            requests.push_front(request);
        }
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

impl Drop for Builder {
    fn drop(&mut self) {
        self.requests.lock().is_over = true;
        self.requests.changed.notify_one();
    }
}

/// Lets this thread run before others. Samples wait for its tables with copies of stacks that may be too short; [`Pace`] says how much it may take.
fn take_precedence() {
    const NICE: i32 = -10;
    // On Linux this is about the thread.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "tables may be late when the host is overloaded");
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

/// What the work gives. If it panics, its file goes without a table, and the next one is built all the same.
fn guarded<T>(work: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    // Nothing outlives the work but what it gives.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|message| (*message).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Err(BuildError::Panicked(message.unwrap_or_default()))
    })
}

fn build(file: &File, code: Range<u64>) -> Result<Vec<(Range<u64>, Table)>, BuildError> {
    let sections = FileSections::read(file)?;
    if sections.is_oversized() {
        return Err(BuildError::Oversized);
    }
    Ok(cfi::tables(&sections.borrow(), code, PIECE)?.pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32) -> Request {
        Request {
            id,
            file: Arc::new(File::open("/proc/self/exe").unwrap()),
            path: String::new(),
            code: 0..0,
        }
    }

    #[test]
    fn what_is_waited_for_goes_first() {
        let builder = Builder {
            requests: Arc::default(),
            answers: sync_channel(1).1,
            hurry: Arc::default(),
        };
        (1..=4).for_each(|id| builder.ask(request(id)));
        builder.urge(3);
        builder.urge(9);
        let order: Vec<u32> = (0..4).map(|_| builder.requests.next().unwrap().id).collect();
        assert_eq!(order, [3, 1, 2, 4]);
        let requests = Arc::clone(&builder.requests);
        drop(builder);
        assert!(requests.next().is_none());
    }

    #[test]
    fn a_panic_is_an_error_of_its_file() {
        let failed: Result<(), BuildError> = guarded(|| panic!("no row {}", 7));
        assert!(failed.unwrap_err().to_string().contains("no row 7"));
        assert!(matches!(guarded(|| Ok(1)), Ok(1)));
    }
}
