//! A file that grows while it is read.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use super::{
    Code,
    dump::{self, Event, Head, Header},
    perf_map,
};
use crate::clock::Clock;

/// Bytes that are read at once. A file with a longer line is no perf map; names of C++ and Java that are made by machines have some kB.
const WINDOW: usize = 256 << 10;

/// How much of what was read last is compared, to see whether the file was written anew.
const TAIL: usize = 64;

/// How far a file's time of change may lie before the write: the kernel takes that of its last tick, the longest of which are 10 ms.
const CLOCK_TICK: u64 = 10_000_000;

/// What a record costs of what may be read, however short it is.
const RECORD_COST: usize = 256;

/// What the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of text, `/tmp/perf-PID.map`.
    PerfMap,
    /// Records, `jit-PID.dump`.
    Dump,
}

/// Reads a file once, and then what comes behind.
#[derive(Debug)]
pub struct Follower {
    file: File,
    format: Format,
    /// Up to here it has been read.
    at: u64,
    /// The last bytes before that.
    tail: Vec<u8>,
    /// Whether it was read to its end once: what was there before has no time.
    caught_up: bool,
    /// When it was read last.
    read: u64,
    header: Option<Header>,
    bad: u64,
    refused: Option<&'static str>,
}

impl Follower {
    /// Nothing is read yet.
    pub fn new(file: File, format: Format) -> Self {
        Self {
            file,
            format,
            at: 0,
            tail: Vec::new(),
            caught_up: false,
            read: 0,
            header: None,
            bad: 0,
            refused: None,
        }
    }

    /// Whether this is the file that is followed.
    pub(super) fn follows(&self, file: &File) -> bool {
        let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino()));
        matches!((identity(&self.file), identity(file)), (Ok(one), Ok(other)) if one == other)
    }

    /// Lines and records that could not be read.
    pub const fn bad(&self) -> u64 {
        self.bad
    }

    /// Why the file is read no further.
    pub const fn refused(&self) -> Option<&'static str> {
        self.refused
    }

    /// Reads on, `left` bytes at most, which it takes from that. `now` is a time of `CLOCK_MONOTONIC`, and the clock says when by that
    /// the file was changed.
    pub fn read(&mut self, code: &mut Code, left: &mut usize, now: u64, clock: &Clock) {
        if self.refused.is_some() {
            return;
        }
        let Ok(metadata) = self.file.metadata() else {
            return;
        };
        let len = metadata.len();
        if len < self.at || (len > self.at && !self.is_same()) {
            // Java writes its map from the beginning each time.
            self.at = 0;
            self.tail.clear();
            self.header = None;
        }
        // What is new was written since the last look, and not after the file was changed last, if that can be believed.
        let changed = u64::try_from(metadata.mtime())
            .unwrap_or_default()
            .saturating_mul(1_000_000_000);
        let changed = changed.saturating_add(u64::try_from(metadata.mtime_nsec()).unwrap_or_default());
        let changed = clock.monotonic(changed);
        let written = if (self.read.saturating_sub(CLOCK_TICK)..now).contains(&changed) {
            changed.max(self.read)
        } else {
            now
        };
        let time = if self.caught_up { written } else { 0 };
        self.read = now;
        let mut window = Vec::new();
        while self.refused.is_none() && *left > 0 {
            let rest = len.saturating_sub(self.at);
            let Ok(rest) = usize::try_from(rest.min(WINDOW.min(*left).max(dump::RECORD) as u64)) else {
                return;
            };
            window.resize(rest, 0);
            if rest == 0 || self.file.read_exact_at(&mut window, self.at).is_err() {
                break;
            }
            let done = match self.format {
                Format::PerfMap => self.lines(&window, code, time),
                Format::Dump => self.records(&window, len, code, time, left),
            };
            *left = left.saturating_sub(rest);
            if done == 0 {
                break;
            }
            let read = usize::try_from(done).unwrap_or(usize::MAX).min(window.len());
            let from = read.saturating_sub(TAIL);
            self.tail = window.get(from..read).unwrap_or_default().to_vec();
            if done > window.len() as u64 {
                // The end of a record that was passed over has not been seen.
                self.tail.clear();
            }
            self.at = self.at.saturating_add(done);
        }
        self.caught_up |= *left > 0;
    }

    /// Whether the bytes before are those that were read.
    fn is_same(&self) -> bool {
        let mut tail = vec![0; self.tail.len()];
        let from = self.at.saturating_sub(tail.len() as u64);
        self.file.read_exact_at(&mut tail, from).is_ok() && tail == self.tail
    }

    /// Takes in whole lines, and says how many bytes they have.
    fn lines(&mut self, window: &[u8], code: &mut Code, time: u64) -> u64 {
        let Some(last) = window.iter().rposition(|&byte| byte == b'\n') else {
            if window.len() >= WINDOW {
                self.refused = Some("a line without an end in the perf map");
            }
            return 0;
        };
        let whole = window.get(..last).unwrap_or_default();
        for line in whole.split(|&byte| byte == b'\n') {
            match perf_map::parse(line) {
                Some(line) => code.insert(line.start, line.len, line.name, time),
                None => self.bad += 1,
            }
        }
        last as u64 + 1
    }

    /// Takes in whole records, and says how many bytes they have.
    fn records(&mut self, window: &[u8], file_len: u64, code: &mut Code, time: u64, left: &mut usize) -> u64 {
        let Some(header) = self.header else {
            if window.len() < dump::HEADER {
                return 0;
            }
            self.header = Header::parse(window);
            if self.header.is_none() {
                self.refused = Some("a jitdump of another machine, or of none");
            }
            return self.header.map_or(0, |header| header.len);
        };
        let mut done = 0_u64;
        while let Some(bytes) = usize::try_from(done).ok().and_then(|done| window.get(done..)) {
            if bytes.len() < dump::HEAD || *left == 0 {
                break;
            }
            let Some(head) = Head::parse(bytes) else {
                self.refused = Some("a record of the jitdump that does not say how long it is");
                break;
            };
            let behind = self.at.saturating_add(done).saturating_add(head.len);
            let needed = head.len.min(dump::RECORD as u64);
            if behind > file_len || needed > bytes.len() as u64 {
                break;
            }
            let record = usize::try_from(needed)
                .ok()
                .and_then(|needed| bytes.get(..needed));
            // What has been written has happened. A time to come would keep what was replaced for good, and every sample unsettled.
            let time = if header.is_timed {
                head.time.min(self.read)
            } else {
                time
            };
            match record.and_then(|record| head.event(record)) {
                Some(Event::Load { start, len, name }) => code.insert(start, len, name, time),
                Some(Event::Move { from, len, to }) => code.relocate(from, len, to, time),
                Some(Event::Other) => {}
                None => self.bad += 1,
            }
            *left = left.saturating_sub(RECORD_COST);
            done = done.saturating_add(head.len);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::clock;

    /// A file, what follows it, and what came of that.
    struct Bench {
        file: File,
        follower: Follower,
        code: Code,
        clock: Clock,
        now: u64,
    }

    impl Bench {
        fn new(format: Format) -> Self {
            let file = tempfile::tempfile().unwrap();
            let mut code = Code::default();
            code.limit(1 << 20);
            Self {
                follower: Follower::new(file.try_clone().unwrap(), format),
                file,
                code,
                clock: Clock::now(),
                now: 1000,
            }
        }

        /// Appends and reads, and says how many bytes were read.
        fn append(&mut self, bytes: &[u8]) -> usize {
            let end = self.file.metadata().unwrap().len();
            self.file.write_all_at(bytes, end).unwrap();
            self.read()
        }

        fn read(&mut self) -> usize {
            let mut left = 4 << 20;
            self.now += 1000;
            self.follower
                .read(&mut self.code, &mut left, self.now, &self.clock);
            (4 << 20) - left
        }

        fn names(&self) -> Vec<&str> {
            self.code.pieces().map(|(.., name)| name).collect()
        }
    }

    #[test]
    fn a_map_is_read_as_it_grows() {
        let mut bench = Bench::new(Format::PerfMap);
        bench.append(b"10 8 a\nbad line\n\xff\xfe\n20 8 b\n30 ");
        assert_eq!(bench.names(), ["a", "b"]);
        assert_eq!(bench.follower.bad(), 2);
        bench.append(b"8 half");
        assert_eq!(bench.names(), ["a", "b"]);
        bench.append(b" and half\n10 8 c\n");
        assert_eq!(bench.names(), ["c", "b", "half and half"]);
        // Once caught up, what comes has a time.
        assert!(bench.now < 10_000, "the file's own time is far from that");
        let at = |time| bench.code.at(0x14, time, &mut 10).map(|function| &*function.name);
        assert_eq!((at(2000), at(4000)), (Some("a"), Some("c")));
        assert_eq!(bench.read(), 0, "nothing new, nothing read");
    }

    #[test]
    fn what_is_written_right_after_a_look_is_of_then() {
        let mut bench = Bench::new(Format::PerfMap);
        bench.now = clock::monotonic();
        bench.append(b"10 8 a\n");
        let looked = bench.now;
        bench.file.write_all_at(b"10 8 b\n", 7).unwrap();
        // By the tick before it, and the next look is long after.
        let tick = bench.clock.wall(looked - CLOCK_TICK / 2);
        bench
            .file
            .set_modified(UNIX_EPOCH + Duration::from_nanos(tick))
            .unwrap();
        bench.now += 50 * CLOCK_TICK;
        bench.read();
        let at = |time| bench.code.at(0x14, time, &mut 10).map(|function| &*function.name);
        assert_eq!((at(looked - 1), at(looked)), (Some("a"), Some("b")));
    }

    #[test]
    fn a_map_that_is_written_anew_is_read_anew() {
        let mut bench = Bench::new(Format::PerfMap);
        bench.append(b"10 8 a\n20 8 b\n");
        bench.file.set_len(0).unwrap();
        bench.append(b"10 8 c\n");
        assert_eq!(bench.names(), ["c", "b"]);
        // The same, and longer than before when it is looked at.
        bench.file.set_len(0).unwrap();
        bench.append(b"40 8 d\n50 8 e\n60 8 f\n");
        assert_eq!(bench.names(), ["c", "b", "d", "e", "f"]);
    }

    #[test]
    fn a_line_without_an_end_ends_it() {
        let mut bench = Bench::new(Format::PerfMap);
        bench.append(b"10 8 a\n");
        bench.file.set_len(10 << 30).unwrap();
        assert!(bench.read() <= 2 * WINDOW);
        assert!(bench.follower.refused().is_some());
        assert_eq!((bench.read(), bench.names()), (0, vec!["a"]));
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn load(time: u64, start: u64, name: &str, code: usize) -> Vec<u8> {
        let len = 56 + name.len() as u64 + 1 + code as u64;
        let head = words(&[len << 32, time, 0, start, start, 0x10, 1]);
        [&head[..], name.as_bytes(), &vec![0; code + 1]].concat()
    }

    #[test]
    fn a_dump_is_read_as_it_grows_and_has_times() {
        let mut bench = Bench::new(Format::Dump);
        let header = words(&[1 << 32 | 0x4a69_5444, 62 << 32 | 40, 0, 0, 0]);
        bench.append(&header[..20]);
        bench.append(&header[20..]);
        let long = load(50, 0x100, "a", 300 << 10);
        bench.append(&long[..1000]);
        assert_eq!(bench.names(), [""; 0], "a record that is not whole");
        bench.append(&[&long[1000..], &load(70, 0x100, "b", 16)].concat());
        bench.append(&words(&[16 << 32 | 3, 99]));
        assert_eq!(bench.names(), ["b"]);
        let at = |time| {
            bench
                .code
                .at(0x104, time, &mut 10)
                .map(|function| &*function.name)
        };
        assert_eq!((at(69), at(70)), (Some("a"), Some("b")));
        bench.append(&load(u64::MAX, 0x100, "c", 16));
        let (now, at) = (bench.now, |time| {
            bench
                .code
                .at(0x104, time, &mut 10)
                .map(|function| &*function.name)
        });
        assert_eq!((at(now - 1), at(now)), (Some("b"), Some("c")));
        assert!(bench.code.is_settled(0x104, now));
        bench.append(&words(&[0, 99]));
        assert!(bench.follower.refused().is_some());
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        let mut bench = Bench::new(Format::Dump);
        bench.append(&[b'x'; 100]);
        assert!(bench.follower.refused().is_some());
        let mut bench = Bench::new(Format::Dump);
        bench.file.set_len(10 << 30).unwrap();
        assert!(bench.read() <= 2 * WINDOW);
        assert!(bench.follower.refused().is_some());
    }

    #[test]
    fn one_look_reads_no_more_than_it_may() {
        let mut bench = Bench::new(Format::PerfMap);
        let lines: String = (0..20_000)
            .map(|line| format!("{:x} 8 function\n", line * 8))
            .collect();
        bench.file.write_all_at(lines.as_bytes(), 0).unwrap();
        bench.code.limit(64 << 20);
        let mut left = 100_000;
        bench.follower.read(&mut bench.code, &mut left, 1, &bench.clock);
        assert_eq!(left, 0);
        let some = bench.code.pieces().count();
        assert!((1000..10_000).contains(&some), "{some}");
        bench.read();
        assert_eq!(bench.code.pieces().count(), 20_000);
        assert_eq!(
            bench.code.at(0, 0, &mut 10).map(|function| function.serial),
            Some(1),
            "all of it is from before"
        );
    }
}
