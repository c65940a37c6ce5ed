//! Builds tables on a thread of its own, one file after the other.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use super::{
    cfi::{self, CfiError, FileSections},
    table::Table,
};

/// Files that wait to be read; the rest waits with the asker.
const QUEUE: usize = 16;

/// Most bytes of a piece of a table: half a segment, so that segments fill well.
const PIECE: usize = 1 << 20;

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
}

/// The thread, and the two queues.
#[derive(Debug)]
pub(super) struct Builder {
    requests: SyncSender<Request>,
    answers: Receiver<Built>,
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
        thread::Builder::new().name("unwind".into()).spawn(move || {
            for request in inbox {
                let Request { id, file, path, code } = request;
                if outbox
                    .send(Built {
                        id,
                        pieces: build(&file, code),
                        path,
                    })
                    .is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self { requests, answers })
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
}

fn build(file: &File, code: Range<u64>) -> Result<Vec<(Range<u64>, Table)>, BuildError> {
    let sections = FileSections::read(file)?;
    Ok(cfi::tables(&sections.borrow(), code, PIECE)?.pieces)
}
