//! The history on the disk: every slice is a segment, so that the past is still there after a restart, or after `kill -9`.
//!
//! The segments are those of the [`spool`], in a folder of their own: written whole or not at all, the oldest make way. A
//! body is what OTLP says of a slice, and what it cannot say.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Limits, is_ahead, nanos};
use crate::{
    export::otlp::{
        encode::{self, Request, Times},
        parcel::{Compression, Parcel},
    },
    profile::Profile,
    read,
    spool::{self, Folder as Disk, FolderError, Id, Spool},
    telemetry::Loss,
};

/// Most bytes of a slice, unpacked.
const MOST_BYTES: u64 = 256 << 20;

/// What a segment holds.
#[derive(Serialize, Deserialize)]
struct Slice {
    start: u64,
    duration: u64,
    target: String,
    host: String,
    frequency: u32,
    /// By reason.
    lost: Vec<(String, u64)>,
    /// `ProfilesData`; empty for a slice without samples.
    otlp: Vec<u8>,
}

/// A folder that keeps slices.
#[derive(Debug)]
pub struct Folder {
    spool: Spool<Disk>,
    age: Duration,
    /// Segments with the end of their slices, of those that were written or read since it was opened.
    ends: BTreeMap<Id, u64>,
    /// Segments of the runs before that nobody has read yet, oldest first.
    unread: Vec<Id>,
    /// When the oldest ended of what was read so far; at first the time it is.
    oldest_end: u64,
    /// Segments that could not be read.
    unreadable: u64,
    /// Segments that were left out, of a clock that was ahead.
    ahead: u64,
}

/// Why a slice was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Putting it into a form that can be written.
    #[error("cannot pack a slice of the history")]
    Pack(#[from] postcard::Error),
    /// The disk.
    #[error(transparent)]
    Push(#[from] spool::PushError),
}

impl Folder {
    /// Opens a folder at a time, nanoseconds since the Unix epoch; makes it, if it is not there.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: PathBuf, limits: Limits, now: u64) -> Result<Self, FolderError> {
        let options = spool::Options {
            folder: path,
            limit: limits.bytes as u64,
        };
        let (spool, _) = Spool::open(&options)?;
        Ok(Self {
            unread: spool.ids(),
            spool,
            age: limits.age,
            ends: BTreeMap::new(),
            oldest_end: now,
            unreadable: 0,
            ahead: 0,
        })
    }

    /// The youngest slice of the runs before that was not read yet; `None` when there is no more. One that cannot be read is taken away, and
    /// counted. One that lies in the future, or in that of what came after it, is counted and left to its age: it may be this clock that is wrong.
    pub fn earlier(&mut self) -> Option<Profile> {
        while let Some(id) = self.unread.pop() {
            // What has made way meanwhile is not damaged.
            if !self.spool.contains(id) {
                continue;
            }
            if let Some(profile) = self.spool.read(id).ok().as_ref().and_then(unpack) {
                let end = profile.capture.start.saturating_add(profile.capture.duration);
                if is_ahead(end, self.oldest_end) {
                    self.ahead += 1;
                    continue;
                }
                self.oldest_end = self.oldest_end.min(end);
                self.ends.insert(id, end);
                return Some(profile);
            }
            self.unreadable += 1;
            self.spool.remove(id);
        }
        None
    }

    /// Segments that could not be read so far.
    pub const fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Segments so far that were left out because they lie in the future.
    pub const fn ahead(&self) -> u64 {
        self.ahead
    }

    /// Keeps a slice.
    ///
    /// # Errors
    /// [`KeepError`]: this slice is in memory alone.
    pub fn keep(&mut self, profile: &Profile) -> Result<(), KeepError> {
        let parcel = pack(profile)?;
        let end = profile.capture.start.saturating_add(profile.capture.duration);
        let oldest = end.saturating_sub(nanos(self.age));
        // What is older than one that is too old is so too, known or not.
        let mut ends = self.ends.iter().rev();
        if let Some((&last, _)) = ends.find(|(_, end)| **end < oldest) {
            for id in self.spool.ids().into_iter().take_while(|id| *id <= last) {
                self.spool.remove(id);
            }
            self.ends = self.ends.split_off(&last);
            self.ends.remove(&last);
        }
        let (id, _) = self.spool.push(&parcel, None).map_err(|(error, _)| error)?;
        self.ends.insert(id, end);
        Ok(())
    }
}

fn pack(profile: &Profile) -> Result<Parcel, postcard::Error> {
    let capture = &profile.capture;
    let options = encode::Options {
        limit: usize::MAX,
        times: Times::Exact,
        ..encode::Options::default()
    };
    let mut otlp = Vec::new();
    if !profile.samples.is_empty() {
        for request in encode::encode(profile, &options) {
            otlp.extend_from_slice(&request.bytes);
        }
    }
    let slice = Slice {
        start: capture.start,
        duration: capture.duration,
        target: capture.target.clone(),
        host: capture.host.clone(),
        frequency: capture.frequency,
        lost: capture
            .lost
            .iter()
            .map(|(reason, &count)| (reason.name().to_owned(), count))
            .collect(),
        otlp,
    };
    let request = Request {
        bytes: postcard::to_allocvec(&slice)?.into(),
        events: profile.sample_count(),
        profiles: 1,
    };
    Ok(Parcel::pack(&request, Compression::Zstd))
}

fn unpack(parcel: &Parcel) -> Option<Profile> {
    let bytes = match parcel.compression {
        Compression::None => parcel.body.to_vec(),
        Compression::Gzip | Compression::Zstd => unpacked(&parcel.body).ok()?,
    };
    let slice: Slice = postcard::from_bytes(&bytes).ok()?;
    let mut profile = Profile::default();
    if !slice.otlp.is_empty() {
        profile = read::bytes(&slice.otlp, &read::Options::default()).ok()?;
    }
    let capture = &mut profile.capture;
    capture.start = slice.start;
    capture.duration = slice.duration;
    capture.target = slice.target;
    capture.host = slice.host;
    capture.frequency = slice.frequency;
    let reasons: BTreeMap<&str, Loss> = Loss::ALL.into_iter().map(|loss| (loss.name(), loss)).collect();
    capture.lost = slice
        .lost
        .iter()
        .filter_map(|(name, count)| Some((*reasons.get(name.as_str())?, *count)))
        .collect();
    Some(profile)
}

fn unpacked(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    zstd::Decoder::new(body)?
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "reads the test's own files")]
mod tests {
    use super::*;
    use crate::history::{History, Past, Query, tests::slice};

    #[test]
    fn what_was_kept_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::default();
        let open = || Folder::open(folder.path().to_owned(), limits, u64::MAX).unwrap();
        let mut before = History::new(limits);
        let mut kept = open();
        for number in 1..=5 {
            let slice = slice(number, 1..5);
            before.push(&slice);
            kept.keep(&slice).unwrap();
        }
        drop(kept);
        let mut after = History::new(limits);
        let (mut folder, mut past) = (open(), Past::new(limits));
        while let Some(slice) = folder.earlier() {
            assert!(past.push(&slice).is_none());
        }
        assert!(after.put_before(past.finish().unwrap()));
        assert_eq!(folder.unreadable(), 0);
        assert_eq!(before.span(), after.span());
        assert_eq!(before.samples(), after.samples());
        let all = Query::default();
        assert_eq!(before.shares(&all), after.shares(&all));
        let (one, other) = (before.profile(&all), after.profile(&all));
        assert_eq!(one.capture.lost, other.capture.lost);
        let times = |profile: &Profile| {
            let mut times: Vec<u64> = profile
                .samples
                .iter()
                .flat_map(|sample| sample.timestamps.clone())
                .collect();
            times.sort_unstable();
            times
        };
        assert_eq!(times(&one), times(&other));
    }

    #[test]
    fn damage_costs_its_own_slice_alone() {
        let damages: [fn(&mut Vec<u8>); 3] = [
            |bytes| *bytes.last_mut().unwrap() ^= 1,
            |bytes| *bytes.first_mut().unwrap() ^= 1,
            |bytes| bytes.truncate(10),
        ];
        for damage in damages {
            let folder = tempfile::tempdir().unwrap();
            let open = || Folder::open(folder.path().to_owned(), Limits::default(), u64::MAX).unwrap();
            let mut kept = open();
            for number in 1..=3 {
                kept.keep(&slice(number, 1..5)).unwrap();
            }
            drop(kept);
            let segments = walk(folder.path());
            let mut bytes = std::fs::read(segments.get(1).unwrap()).unwrap();
            damage(&mut bytes);
            std::fs::write(segments.get(1).unwrap(), bytes).unwrap();
            let mut folder = open();
            let starts: Vec<u64> = std::iter::from_fn(|| folder.earlier())
                .map(|slice| slice.capture.start)
                .collect();
            assert_eq!(folder.unreadable(), 1);
            // The youngest first.
            assert_eq!(
                starts,
                [slice(3, 0..0).capture.start, slice(1, 0..0).capture.start]
            );
        }
    }

    #[test]
    fn what_was_kept_by_a_clock_that_was_ahead_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = |now| {
            let mut folder = Folder::open(folder.path().to_owned(), Limits::default(), now).unwrap();
            let slices: Vec<u64> = std::iter::from_fn(|| folder.earlier())
                .map(|read| read.capture.start / slice(1, 0..0).capture.start)
                .collect();
            (slices, folder.ahead(), folder.unreadable())
        };
        let mut kept = Folder::open(folder.path().to_owned(), Limits::default(), u64::MAX).unwrap();
        // Ahead from the third to the fourth, and again with the last.
        for number in [1, 2, 203, 204, 5, 6, 207] {
            kept.keep(&slice(number, 1..3)).unwrap();
        }
        drop(kept);
        let now = slice(8, 0..0).capture.start;
        assert_eq!(numbers(now), (vec![6, 5, 2, 1], 3, 0));
        // Nothing is gone: a clock may be wrong that is behind.
        assert_eq!(numbers(0), (vec![], 7, 0));
        assert_eq!(numbers(now), (vec![6, 5, 2, 1], 3, 0));
    }

    #[test]
    fn the_old_leaves_the_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            age: Duration::from_secs(60),
            ..Limits::default()
        };
        let mut kept = Folder::open(folder.path().to_owned(), limits, u64::MAX).unwrap();
        for number in 1..=30 {
            kept.keep(&slice(number, 1..3)).unwrap();
        }
        // Slices of ten seconds.
        assert_eq!(kept.spool.len(), 7);
    }

    fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .flat_map(|entry| {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path) } else { vec![path] }
            })
            .filter(|path| path.extension().is_some_and(|end| end == "segment"))
            .collect();
        files.sort();
        files
    }
}
