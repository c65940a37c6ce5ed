//! The history on the disk: every slice is a segment, so that the past is still there after a restart, or after `kill -9`.
//!
//! The segments are those of the [`spool`], in a folder of their own: written whole or not at all, the oldest make way. A
//! body is what OTLP says of a slice, and what it cannot say.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Limits, nanos};
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
    /// Segments with the end of their slices, oldest first.
    ends: VecDeque<(Id, u64)>,
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
    /// Opens a folder; makes it, if it is not there.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: PathBuf, limits: Limits) -> Result<Self, FolderError> {
        let options = spool::Options {
            folder: path,
            limit: limits.bytes as u64,
        };
        let (spool, _) = Spool::open(&options)?;
        Ok(Self {
            spool,
            age: limits.age,
            ends: VecDeque::new(),
        })
    }

    /// Every slice that is there, oldest first; those that cannot be read are taken away, and counted.
    pub fn load(&mut self, mut take: impl FnMut(&Profile)) -> u64 {
        let mut unreadable = 0;
        for id in self.spool.ids() {
            let slice = self.spool.read(id).ok().as_ref().and_then(unpack);
            let Some(profile) = slice else {
                unreadable += 1;
                self.spool.remove(id);
                continue;
            };
            let end = profile.capture.start.saturating_add(profile.capture.duration);
            self.ends.push_back((id, end));
            take(&profile);
        }
        unreadable
    }

    /// Keeps a slice.
    ///
    /// # Errors
    /// [`KeepError`]: this slice is in memory alone.
    pub fn keep(&mut self, profile: &Profile) -> Result<(), KeepError> {
        let parcel = pack(profile)?;
        let end = profile.capture.start.saturating_add(profile.capture.duration);
        let oldest = end.saturating_sub(nanos(self.age));
        while let Some(&(id, end)) = self.ends.front()
            && end < oldest
        {
            self.ends.pop_front();
            self.spool.remove(id);
        }
        let (id, _) = self.spool.push(&parcel, None).map_err(|(error, _)| error)?;
        self.ends.push_back((id, end));
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
    use crate::history::{History, Query, tests::slice};

    #[test]
    fn what_was_kept_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::default();
        let open = || Folder::open(folder.path().to_owned(), limits).unwrap();
        let mut before = History::new(limits);
        let mut kept = open();
        for number in 1..=5 {
            let slice = slice(number, 1..5);
            before.push(&slice);
            kept.keep(&slice).unwrap();
        }
        drop(kept);
        let mut after = History::new(limits);
        assert_eq!(open().load(|slice| after.push(slice)), 0);
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
        let folder = tempfile::tempdir().unwrap();
        let open = || Folder::open(folder.path().to_owned(), Limits::default()).unwrap();
        let mut kept = open();
        for number in 1..=3 {
            kept.keep(&slice(number, 1..5)).unwrap();
        }
        drop(kept);
        let segments = walk(folder.path());
        let mut bytes = std::fs::read(segments.get(1).unwrap()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(segments.get(1).unwrap(), bytes).unwrap();
        let mut number = 0;
        assert_eq!(open().load(|_| number += 1), 1);
        assert_eq!(number, 2);
    }

    #[test]
    fn the_old_leaves_the_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            age: Duration::from_secs(60),
            ..Limits::default()
        };
        let mut kept = Folder::open(folder.path().to_owned(), limits).unwrap();
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
