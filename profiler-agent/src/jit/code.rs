//! Generated code: which function was at an address at a time. Times are those of `CLOCK_MONOTONIC`, in nanoseconds.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// How long it is remembered what was replaced, in nanoseconds. Samples are at most 0.5 s old when they are looked up; those that wait for
/// unwind tables 10 s at most.
const MEMORY: u64 = 30_000_000_000;

/// Pieces that were replaced and are remembered.
const MOST_PAST: usize = 1 << 16;

/// What a piece takes beside its name: its place in the tree and two allocations.
const PIECE: usize = 112;

/// A function that was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Tells it from others at the same address; from 1.
    pub serial: u32,
    /// As the program calls it.
    pub name: Arc<str>,
}

/// See the [module documentation](self).
///
/// What comes later covers what was there before, in whole or in part. No two live pieces overlap.
#[derive(Debug, Default)]
pub struct Code {
    live: BTreeMap<u64, Piece>,
    /// What was replaced, in the order of that.
    past: VecDeque<Past>,
    bytes: usize,
    limit: usize,
    serials: u32,
    changes: u64,
    dropped: u64,
}

#[derive(Debug, Clone)]
struct Piece {
    end: u64,
    since: u64,
    function: Function,
}

#[derive(Debug)]
struct Past {
    start: u64,
    until: u64,
    piece: Piece,
}

impl Code {
    /// How large it may become; 0 at first.
    pub fn limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Bytes it takes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of changes so far.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// Number of functions that found no room.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds a function that was put there at a time; 0 is before anything was sampled.
    pub fn insert(&mut self, start: u64, len: u64, name: &str, time: u64) {
        let end = start.saturating_add(len);
        if start >= end {
            return;
        }
        let again = self.live.get(&start);
        if again.is_some_and(|piece| piece.end == end && *piece.function.name == *name) {
            return;
        }
        self.put(start, end, name.into(), time);
    }

    /// Moves a function.
    pub fn relocate(&mut self, from: u64, len: u64, to: u64, time: u64) {
        let Some(piece) = self.piece(from) else { return };
        let name = Arc::clone(&piece.function.name);
        self.remove(from, from.saturating_add(len), time);
        let end = to.saturating_add(len);
        if to < end {
            self.put(to, end, name, time);
        }
    }

    /// What was at an address at a time; what came there later, if nothing was known then. Goes through `left` pieces that were replaced at
    /// most, which it takes from that, and answers with what is there now when they are used up.
    pub fn at(&self, address: u64, time: u64, left: &mut usize) -> Option<&Function> {
        let live = self.piece(address);
        if live.is_some_and(|piece| piece.since <= time) {
            return live.map(|piece| &piece.function);
        }
        // Of the pieces that covered the address, the first that was replaced after that time.
        let first = self.past.partition_point(|past| past.until <= time);
        let mut later = self.past.range(first..).take(*left);
        let past = later.find(|past| {
            *left = left.saturating_sub(1);
            past.start <= address && address < past.piece.end
        });
        past.map(|past| &past.piece).or(live).map(|piece| &piece.function)
    }

    /// Whether what was at an address at a time is what is there now.
    pub fn is_settled(&self, address: u64, time: u64) -> bool {
        self.piece(address).is_none_or(|piece| piece.since <= time)
    }

    /// What is at an address now.
    pub fn now(&self, address: u64) -> Option<&Function> {
        self.piece(address).map(|piece| &piece.function)
    }

    /// The live pieces: first address, first address behind, name; ascending.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64, &str)> {
        let pieces = self.live.iter();
        pieces.map(|(start, piece)| (*start, piece.end, &*piece.function.name))
    }

    fn piece(&self, address: u64) -> Option<&Piece> {
        let (_, piece) = self.live.range(..=address).next_back()?;
        (address < piece.end).then_some(piece)
    }

    fn put(&mut self, start: u64, end: u64, name: Arc<str>, time: u64) {
        self.remove(start, end, time);
        let bytes = PIECE + name.len();
        while !self.has_room(bytes) && self.forget() {}
        if !self.has_room(bytes) {
            self.dropped += 1;
            return;
        }
        self.bytes += bytes;
        self.serials = self.serials.wrapping_add(1).max(1);
        self.changes += 1;
        let function = Function {
            serial: self.serials,
            name,
        };
        self.live.insert(
            start,
            Piece {
                end,
                since: time,
                function,
            },
        );
    }

    const fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= self.limit
    }

    /// Takes a range away; what sticks out of it stays.
    fn remove(&mut self, start: u64, end: u64, time: u64) {
        let covered: Vec<u64> = self
            .live
            .range(..end)
            .rev()
            .take_while(|(_, piece)| piece.end > start)
            .map(|(&at, _)| at)
            .collect();
        for at in covered {
            let Some(old) = self.live.remove(&at) else {
                continue;
            };
            let bytes = PIECE + old.function.name.len();
            self.bytes = self.bytes.saturating_sub(bytes);
            self.changes += 1;
            // What finds no room has no name any more, rather than that of what was there before.
            if old.end > end && self.has_room(bytes) {
                self.bytes += bytes;
                self.live.insert(end, old.clone());
            }
            if at < start && self.has_room(bytes) {
                self.bytes += bytes;
                let before = Piece {
                    end: start,
                    ..old.clone()
                };
                self.live.insert(at, before);
            }
            // Nothing was sampled before time began.
            if time > 0 && self.has_room(bytes) {
                self.bury(
                    Past {
                        start: at.max(start),
                        until: time,
                        piece: Piece {
                            end: old.end.min(end),
                            ..old
                        },
                    },
                    bytes,
                );
            }
        }
    }

    fn bury(&mut self, past: Past, bytes: usize) {
        let now = past.until;
        // A dump may have its times out of order; the past has not.
        let until = self.past.back().map_or(now, |last| last.until.max(now));
        self.past.push_back(Past { until, ..past });
        self.bytes += bytes;
        while self
            .past
            .front()
            .is_some_and(|oldest| oldest.until.saturating_add(MEMORY) < until)
            || self.past.len() > MOST_PAST
        {
            self.forget();
        }
    }

    /// Forgets what was replaced first; says whether there was something.
    fn forget(&mut self) -> bool {
        let Some(oldest) = self.past.pop_front() else {
            return false;
        };
        let bytes = PIECE + oldest.piece.function.name.len();
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Code {
        let mut code = Code::default();
        code.limit(1 << 20);
        code
    }

    fn name(function: Option<&Function>) -> &str {
        function.map_or("-", |function| &function.name)
    }

    #[test]
    fn later_code_covers_earlier_in_whole_or_in_part() {
        let mut code = code();
        code.insert(100, 100, "outer", 0);
        code.insert(150, 10, "inner", 0);
        code.insert(190, 20, "next", 0);
        let pieces: Vec<_> = code.pieces().collect();
        assert_eq!(
            pieces,
            [
                (100, 150, "outer"),
                (150, 160, "inner"),
                (160, 190, "outer"),
                (190, 210, "next")
            ]
        );
        for (address, expected) in [
            (99, "-"),
            (100, "outer"),
            (155, "inner"),
            (160, "outer"),
            (209, "next"),
            (210, "-"),
        ] {
            assert_eq!(name(code.now(address)), expected, "{address}");
        }
    }

    #[test]
    fn an_address_has_the_name_of_its_time() {
        let mut code = code();
        code.insert(100, 10, "first", 0);
        code.insert(100, 10, "second", 20);
        code.insert(105, 10, "third", 30);
        for (address, time, expected) in [
            (107, 5, "first"),
            (107, 19, "first"),
            (107, 20, "second"),
            (107, 29, "second"),
            (107, 30, "third"),
            (102, 40, "second"),
            // Nothing was known there at that time: what came later.
            (112, 1, "third"),
        ] {
            assert_eq!(
                name(code.at(address, time, &mut 10)),
                expected,
                "{address} at {time}"
            );
            assert_eq!(
                code.is_settled(address, time),
                time >= 30 || (address, time) == (102, 40)
            );
        }
        let serials: Vec<u32> = [19, 20, 30]
            .iter()
            .filter_map(|time| Some(code.at(107, *time, &mut 10)?.serial))
            .collect();
        assert_eq!(serials, [1, 2, 3]);
    }

    #[test]
    fn code_that_is_moved_takes_its_name_along() {
        let mut code = code();
        code.insert(100, 10, "f", 0);
        code.relocate(100, 10, 105, 50);
        let at = |address, time| name(code.at(address, time, &mut 10));
        assert_eq!((at(101, 60), at(101, 40), at(112, 60)), ("-", "f", "f"));
        code.relocate(1, 10, 2, 60);
        assert_eq!(code.pieces().count(), 1);
    }

    #[test]
    fn what_is_written_again_is_no_change() {
        let mut code = code();
        code.insert(100, 10, "f", 0);
        let changes = code.changes();
        code.insert(100, 10, "f", 50);
        assert_eq!(code.changes(), changes);
        assert_eq!(code.at(100, 1, &mut 10).map(|function| function.serial), Some(1));
    }

    #[test]
    fn no_more_of_the_past_is_gone_through_than_may_be() {
        let mut code = code();
        code.insert(0, 10, "first", 0);
        for time in 1..=1000 {
            code.insert(100, 10, if time % 2 == 0 { "a" } else { "b" }, time);
        }
        code.insert(0, 10, "second", 1001);
        let mut left = 2500;
        for (expected, rest) in [("first", 1500), ("first", 500), ("second", 0), ("second", 0)] {
            assert_eq!((name(code.at(5, 0, &mut left)), left), (expected, rest));
        }
        assert_eq!(name(code.at(5, 1001, &mut left)), "second");
    }

    #[test]
    fn it_stays_within_its_limit_and_forgets_its_past() {
        let mut code = code();
        code.limit(10 * (PIECE + 1));
        for at in 0..100 {
            code.insert(at * 10, 10, "f", 1);
        }
        assert_eq!((code.pieces().count(), code.dropped()), (10, 90));
        assert_eq!(code.bytes(), 10 * (PIECE + 1));
        // A function that is broken up again and again does not grow beyond it either.
        code.insert(0, 1 << 40, "all", 2);
        for at in 1..100 {
            code.insert(at << 20, 1, "f", 2);
        }
        assert!(code.bytes() <= 10 * (PIECE + 1));
        let mut code = self::code();
        for time in 1..=MOST_PAST as u64 + 10 {
            code.insert(0, 10, if time % 2 == 0 { "a" } else { "b" }, time);
        }
        assert!(code.bytes() <= 1 << 20 && code.past.len() > 9000 && code.dropped() == 0);
        code.insert(0, 20, "c", MEMORY * 10);
        assert_eq!(code.past.len(), 1);
        assert_eq!(code.bytes(), 2 * (PIECE + 1));
    }
}
