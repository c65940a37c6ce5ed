//! Requests that wait on the disk for a receiver to come back.
//!
//! ```text
//! push ──▶ NUMBER.new ──fsync──▶ rename ──▶ NUMBER.segment ──fsync of the folder──▶ kept
//!                                                │
//! oldest ◀── read, checked ◀─────────────────────┤
//! remove ◀── acknowledged ───────────────────────┘
//! ```
//! One request is one file, whose name is its place in the order: a file is there whole under its name, or it is not there. So nothing is
//! rewritten, an acknowledgement is the removal of a file, and what is damaged costs itself and no neighbour. After `kill -9` at any
//! moment everything is there whose `push` has returned, and nothing that was removed; an acknowledgement that had just come when the agent died is the one
//! thing that can be sent again. When the power fails the same holds, since bytes and names are synced before a call returns.
//!
//! There is room for [`Options::limit`] bytes; the oldest make way. Files of another version stand in a folder of their own and are left alone.

pub mod disk;
pub mod segment;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
};

pub use self::disk::{Disk, Folder, FolderError};
use self::segment::{Damage, HEADER_LEN, Header};
use crate::export::otlp::parcel::Parcel;

/// Where segments of this version stand, below the spool's folder.
pub const VERSION: &str = "v1";
/// Ends the name of a segment.
const SEGMENT: &str = "segment";
/// Ends the name of one that is being made.
const UNFINISHED: &str = "new";
/// What a file takes beyond its bytes, about: an inode, and its last block.
const FILE_COST: u64 = 4096;
/// Samples of a segment whose header cannot be read: nobody knows how many, and none would be no loss.
const UNKNOWN_EVENTS: u64 = 1;
/// Most files. Small requests would else make millions of them.
const MAX_FILES: usize = 65_536;

/// Where to keep requests, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The folder; a subfolder for this version is made in it.
    pub folder: PathBuf,
    /// Most bytes on the disk.
    pub limit: u64,
}

/// Place of a segment in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(u64);

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: Id,
    /// Bytes on the disk.
    cost: u64,
    events: u64,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Spool<D> {
    disk: D,
    limit: u64,
    /// Oldest first.
    entries: VecDeque<Entry>,
    cost: u64,
    next: u64,
    /// Segments that could not be removed: they are not to be sent again.
    stubborn: VecDeque<String>,
    /// From how many of these on it is told.
    worth_telling: usize,
}

/// What was found when a spool was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Samples in it; one for a segment whose header cannot be read, which is found out again when its turn comes.
    pub events: u64,
    /// Segments that an agent was writing when it ended. They were removed; what they were to hold was never said to be kept.
    pub unfinished: u64,
}

/// Why a request was not kept.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The disk is full, read-only or broken.
    #[error("cannot write to the spool: {0}")]
    Io(#[from] io::Error),
    /// It alone is larger than the spool may be.
    #[error("a request of {size} bytes does not fit into a spool of {limit} bytes")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why the oldest request cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk does not give it.
    #[error("cannot read from the spool: {0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("a segment of the spool is of no use: {0}")]
    Damaged(#[from] Damage),
}

/// The oldest request.
#[derive(Debug)]
pub struct Oldest {
    /// To [`Spool::remove`] it by.
    pub id: Id,
    /// Samples in it, as they were counted when it came or was found.
    pub events: u64,
    /// The request, or why it cannot be had: remove it then.
    pub parcel: Result<Parcel, ReadError>,
}

impl Spool<Folder> {
    /// Opens the spool in a folder.
    ///
    /// # Errors
    /// [`FolderError`], when nothing can be kept there.
    pub fn open(options: &Options) -> Result<(Self, Found), FolderError> {
        let path = options.folder.join(VERSION);
        let folder = Folder::open(&path)?;
        Self::on(folder, options.limit).map_err(|source| FolderError::Io { path, source })
    }
}

impl<D: Disk> Spool<D> {
    /// Opens the spool on a disk.
    ///
    /// # Errors
    /// Those of the disk, when its files cannot be listed.
    pub fn on(disk: D, limit: u64) -> io::Result<(Self, Found)> {
        let mut spool = Self {
            disk,
            limit,
            entries: VecDeque::new(),
            cost: 0,
            next: 0,
            stubborn: VecDeque::new(),
            worth_telling: 1,
        };
        let mut found = Found::default();
        let mut entries = Vec::new();
        for (name, size) in spool.disk.list()? {
            let Some((id, kind)) = parse(&name) else {
                // Not ours.
                continue;
            };
            spool.next = spool.next.max(id.0.saturating_add(1));
            if kind == UNFINISHED {
                found.unfinished += 1;
                spool.sweep(&name);
                continue;
            }
            let events = spool.head(&name).map_or_else(
                |error| {
                    tracing::debug!(name, %error, "nobody knows how many samples are in a segment");
                    UNKNOWN_EVENTS
                },
                |header| header.events,
            );
            found.events += events;
            entries.push(Entry {
                id,
                cost: cost(size),
                events,
            });
        }
        entries.sort_unstable_by_key(|entry| entry.id);
        spool.cost = entries.iter().map(|entry| entry.cost).sum();
        spool.entries = entries.into();
        Ok((spool, found))
    }

    /// Keeps a request. To make room the oldest are dropped, but not `except`, which is on its way. Answers its place, and the samples
    /// that were dropped.
    ///
    /// # Errors
    /// [`PushError`]; nothing has changed then, but that some of the oldest may be gone, whose samples are the second part of it.
    pub fn push(&mut self, parcel: &Parcel, except: Option<Id>) -> Result<(Id, u64), (PushError, u64)> {
        let too_large = |size: usize, limit| PushError::TooLarge {
            size: size as u64,
            limit,
        };
        let Some(bytes) = segment::encode(parcel) else {
            return Err((too_large(parcel.body.len(), segment::MAX_BODY as u64), 0));
        };
        let cost = cost(bytes.len() as u64);
        if cost > self.limit {
            return Err((too_large(bytes.len(), self.limit), 0));
        }
        let mut dropped = 0;
        while self.cost + cost > self.limit || self.entries.len() >= MAX_FILES {
            let oldest = self
                .entries
                .iter()
                .find(|entry| Some(entry.id) != except)
                .copied();
            let Some(oldest) = oldest else { break };
            self.remove(oldest.id);
            dropped += oldest.events;
        }
        let id = Id(self.next);
        // A number that was tried is not tried again: what it left behind may be whole or not.
        self.next = self.next.saturating_add(1);
        if let Err(error) = self.write(id, &bytes) {
            self.sweep(&name(id, UNFINISHED));
            return Err((error.into(), dropped));
        }
        self.entries.push_back(Entry {
            id,
            cost,
            events: parcel.events,
        });
        self.cost += cost;
        Ok((id, dropped))
    }

    fn write(&mut self, id: Id, bytes: &[u8]) -> io::Result<()> {
        let (unfinished, finished) = (name(id, UNFINISHED), name(id, SEGMENT));
        self.disk.write(&unfinished, bytes)?;
        self.disk.sync(&unfinished)?;
        self.disk.rename(&unfinished, &finished)?;
        self.disk.sync_names().inspect_err(|_| {
            // It may or may not be there after a loss of power; said not to be kept, it must not be found.
            self.take_away(finished);
        })
    }

    fn head(&self, name: &str) -> Result<Header, ReadError> {
        let head = self.disk.read(name, HEADER_LEN as u64)?;
        Ok(Header::read(&head)?)
    }

    /// The oldest request.
    pub fn oldest(&self) -> Option<Oldest> {
        let &Entry { id, events, .. } = self.entries.front()?;
        // One that the disk gives now and did not give before stays counted as it was.
        let parcel = self.read(id).map(|parcel| Parcel { events, ..parcel });
        Some(Oldest { id, events, parcel })
    }

    /// All that is there, oldest first.
    pub fn ids(&self) -> Vec<Id> {
        self.entries.iter().map(|entry| entry.id).collect()
    }

    /// A request.
    ///
    /// # Errors
    /// [`ReadError`]: it is of no use, remove it.
    pub fn read(&self, id: Id) -> Result<Parcel, ReadError> {
        let limit = (HEADER_LEN + segment::MAX_BODY) as u64 + 1;
        let bytes = self.disk.read(&name(id, SEGMENT), limit)?;
        Ok(segment::decode(bytes)?)
    }

    /// Takes away a request that has arrived, or never will.
    pub fn remove(&mut self, id: Id) {
        let Some(place) = self.entries.iter().position(|entry| entry.id == id) else {
            return;
        };
        if let Some(entry) = self.entries.remove(place) {
            self.cost = self.cost.saturating_sub(entry.cost);
        }
        self.take_away(name(id, SEGMENT));
    }

    /// Whether a request is still there.
    pub fn contains(&self, id: Id) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// Bytes of a request's body; 0 when it is not there.
    pub fn size(&self, id: Id) -> u64 {
        let entry = self.entries.iter().find(|entry| entry.id == id);
        entry.map_or(0, |entry| {
            entry.cost.saturating_sub(FILE_COST + HEADER_LEN as u64)
        })
    }

    /// Samples in it.
    pub fn events(&self) -> u64 {
        self.entries.iter().map(|entry| entry.events).sum()
    }

    /// Requests in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Most that these may be.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes on the disk, about.
    pub const fn bytes(&self) -> u64 {
        self.cost
    }

    /// Removes what is not finished. What stays is in nobody's way, and is found when the spool is opened again.
    fn sweep(&mut self, name: &str) {
        if let Err(error) = self.disk.remove(name) {
            tracing::debug!(name, %error, "an unfinished segment is left for the next start");
        }
    }

    /// Removes a segment. One that the disk does not let go is tried again when it lets go of another: a disk that is read-only is asked once
    /// for each.
    fn take_away(&mut self, name: String) {
        match self.disk.remove(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.put_up_with(name, &error),
        }
        while let Some(name) = self.stubborn.pop_front() {
            if let Err(error) = self.disk.remove(&name)
                && error.kind() != io::ErrorKind::NotFound
            {
                // All others have their turn before it.
                self.stubborn.push_back(name);
                break;
            }
        }
        if self.stubborn.is_empty() {
            self.worth_telling = 1;
        }
        if let Err(error) = self.disk.sync_names() {
            tracing::debug!(%error, "what was removed may come back if the power fails");
        }
    }

    /// Remembers a segment that could not be removed.
    fn put_up_with(&mut self, name: String, error: &io::Error) {
        if self.stubborn.len() < MAX_FILES {
            self.stubborn.push_back(name);
        }
        let segments = self.stubborn.len();
        if segments >= self.worth_telling {
            // Told again when they are ten times as many.
            self.worth_telling = segments.saturating_mul(10);
            tracing::warn!(segments, %error, "cannot remove what has left the spool; it may be sent again after a restart");
        }
    }
}

/// What a file of that size takes.
const fn cost(size: u64) -> u64 {
    size.saturating_add(FILE_COST)
}

fn name(id: Id, kind: &str) -> String {
    format!("{:016x}.{kind}", id.0)
}

fn parse(name: &str) -> Option<(Id, &str)> {
    let (number, kind) = name.split_once('.')?;
    let id = (number.len() == 16).then(|| u64::from_str_radix(number, 16).ok())??;
    [SEGMENT, UNFINISHED].contains(&kind).then_some((Id(id), kind))
}

/// The usual folder: that of the service manager, or the system's.
pub fn default_folder() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY")
        .filter(|path| !path.is_empty())
        .map_or_else(|| Path::new("/var/lib/profiler-agent").to_owned(), PathBuf::from)
        .join("spool")
}

/// The usual limit.
pub const DEFAULT_LIMIT: u64 = 256 << 20;
