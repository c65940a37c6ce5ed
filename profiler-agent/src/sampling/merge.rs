//! Many rings, one order of time.
//!
//! Each ring is in order by itself. A record appears in its ring a little after the time it carries, so what is read must
//! not be newer than the moment the heads were looked at, less [`SETTLE`]: an older record could still be on its way
//! in another ring. What is younger stays where it is until the next call.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::record::{HEADER_LEN, Layout, Record, Torn};

/// How long a record may be on its way from its clock reading to its ring, nanoseconds. The kernel does not let go of the CPU in
/// between, a hypervisor may.
pub const SETTLE: u64 = 5_000_000;

/// What one ring must offer to be merged.
pub trait Buffer {
    /// The CPU that writes it.
    fn cpu(&self) -> u32;
    /// What its records look like.
    fn layout(&self) -> Layout;
    /// Where the writer stands.
    fn head(&self) -> u64;
    /// Where the reader stands.
    fn tail(&self) -> u64;
    /// The written bytes from `from` to `to`, which must lie between tail and head; otherwise empty.
    fn window(&self, from: u64, to: u64) -> Window<'_>;
    /// Gives everything before `tail` back to the writer. Exclusive, so that no [`Window`] into it is left. Says whether the writer may have found no
    /// room before that, of which nothing else tells yet.
    fn release(&mut self, tail: u64) -> bool;
}

/// Written bytes of a ring, in two parts where they wrap around its end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window<'a> {
    /// Up to the end of the ring.
    pub first: &'a [u8],
    /// From its start.
    pub second: &'a [u8],
}

impl<'a> Window<'a> {
    /// Number of bytes.
    pub const fn len(self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The first `len` bytes in one piece: in place, or put together in `spare` when they wrap. `None` when there are fewer.
    pub fn take<'b>(self, len: usize, spare: &'b mut Vec<u8>) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        if let Some(whole) = self.first.get(..len) {
            return Some(whole);
        }
        let rest = self.second.get(..len.checked_sub(self.first.len())?)?;
        spare.clear();
        spare.extend_from_slice(self.first);
        spare.extend_from_slice(rest);
        Some(spare)
    }
}

/// A record, and where and when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The CPU.
    pub cpu: u32,
    /// What happened.
    pub record: Record<'a>,
}

/// Reads rings together; keeps its buffers between calls.
#[derive(Debug, Default)]
pub struct Merger {
    /// The oldest unread record of each ring that has one, by time.
    next: BinaryHeap<Reverse<(u64, usize)>>,
    /// Where each ring is read up to, and its head when the call began.
    spans: Vec<(u64, u64)>,
    /// Room for a record that wraps around the end of its ring.
    spare: Vec<u8>,
    /// How often a ring held bytes that are no record; all it held was skipped.
    torn: u64,
    /// Whether a ring may have refused a record that nothing tells of yet.
    overflowed: bool,
}

impl Merger {
    /// Hands every record with a time up to `until` to `sink`, oldest first, and frees its place.
    pub fn drain<B: Buffer>(&mut self, rings: &mut [B], until: u64, mut sink: impl FnMut(Event<'_>)) {
        self.next.clear();
        self.spans.clear();
        self.spans
            .extend(rings.iter().map(|ring| (ring.tail(), ring.head())));
        for (index, ring) in rings.iter().enumerate() {
            self.queue(index, ring);
        }
        while let Some(Reverse((time, index))) = self.next.pop() {
            if time > until {
                break;
            }
            let (Some(ring), Some((from, to))) = (rings.get(index), self.spans.get_mut(index)) else {
                break;
            };
            match next_record(ring.layout(), ring.window(*from, *to), &mut self.spare) {
                Ok((len, time, record)) => {
                    sink(Event {
                        time,
                        cpu: ring.cpu(),
                        record,
                    });
                    *from += len as u64;
                }
                Err(Torn) => {
                    self.torn += 1;
                    *from = *to;
                }
            }
            self.queue(index, ring);
        }
        for (ring, &(tail, _)) in rings.iter_mut().zip(&self.spans) {
            self.overflowed |= ring.release(tail);
        }
    }

    /// Whether a ring may have refused records since the last call that nothing tells of yet.
    pub fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }

    /// How often a ring lost its place since the last call.
    pub fn take_torn(&mut self) -> u64 {
        std::mem::take(&mut self.torn)
    }

    /// Puts the next record of a ring in line.
    fn queue(&mut self, index: usize, ring: &impl Buffer) {
        let Some((from, to)) = self.spans.get_mut(index) else {
            return;
        };
        if from == to {
            return;
        }
        match time(ring.layout(), ring.window(*from, *to)) {
            Ok(time) => self.next.push(Reverse((time, index))),
            Err(Torn) => {
                self.torn += 1;
                *from = *to;
            }
        }
    }
}

/// The first record of a window with its length and time.
fn next_record<'a>(
    layout: Layout,
    window: Window<'a>,
    spare: &'a mut Vec<u8>,
) -> Result<(usize, u64, Record<'a>), Torn> {
    let len = layout.length(window.first)?;
    let bytes = window.take(len, spare).ok_or(Torn)?;
    let (time, record) = layout.parse(bytes)?;
    Ok((len, time, record))
}

/// The time of the first record of a window. Records are made of whole, aligned words, so that a ring never splits one.
fn time(layout: Layout, window: Window<'_>) -> Result<u64, Torn> {
    let len = layout.length(window.first)?;
    let offset = layout.time_offset(len)?;
    let word = match offset.checked_sub(window.first.len()) {
        None => window.first.get(offset..),
        Some(offset) => window.second.get(offset..),
    };
    word.and_then(<[u8]>::first_chunk)
        .map(|&word| u64::from_ne_bytes(word))
        .ok_or(Torn)
}

const _: () = assert!(HEADER_LEN == 8);

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own making"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ring in plain memory, written as the kernel does.
    struct Memory {
        cpu: u32,
        data: Vec<u8>,
        head: u64,
        tail: u64,
    }

    impl Memory {
        /// An empty ring of 256 bytes whose positions begin at `start`.
        fn new(cpu: u32, start: u64) -> Self {
            Self {
                cpu,
                data: vec![0xaa; 256],
                head: start,
                tail: start,
            }
        }

        /// Writes a record if there is room.
        fn write(&mut self, record: &[u8]) -> bool {
            if self.head + record.len() as u64 - self.tail > self.data.len() as u64 {
                return false;
            }
            for &byte in record {
                let at = (self.head % self.data.len() as u64) as usize;
                self.data[at] = byte;
                self.head += 1;
            }
            true
        }
    }

    impl Buffer for Memory {
        fn cpu(&self) -> u32 {
            self.cpu
        }

        fn layout(&self) -> Layout {
            Layout::Events
        }

        fn head(&self) -> u64 {
            self.head
        }

        fn tail(&self) -> u64 {
            self.tail
        }

        fn window(&self, from: u64, to: u64) -> Window<'_> {
            let start = (from % 256) as usize;
            let len = (to - from) as usize;
            let first = len.min(256 - start);
            Window {
                first: &self.data[start..start + first],
                second: &self.data[..len - first],
            }
        }

        fn release(&mut self, tail: u64) -> bool {
            let was_full = self.head - self.tail == self.data.len() as u64;
            self.tail = tail;
            was_full
        }
    }

    fn fork(time: u64, tid: u32) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(7u32.to_ne_bytes());
        record.extend(0u16.to_ne_bytes());
        record.extend(40u16.to_ne_bytes());
        for word in [tid, 1, tid, 1] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(time.to_ne_bytes());
        record.extend(time.to_ne_bytes());
        record
    }

    fn drain(merger: &mut Merger, rings: &mut [Memory], until: u64) -> Vec<(u64, u32, u32)> {
        let mut seen = Vec::new();
        merger.drain(rings, until, |event| {
            let Record::Fork { tid, .. } = event.record else {
                panic!("unexpected {event:?}")
            };
            seen.push((event.time, event.cpu, tid));
        });
        seen
    }

    #[test]
    fn what_is_too_young_stays_for_the_next_call() {
        let mut rings = [Memory::new(0, 0), Memory::new(1, 0)];
        assert!(rings[0].write(&fork(10, 1)));
        assert!(rings[0].write(&fork(30, 3)));
        assert!(rings[1].write(&fork(20, 2)));
        let mut merger = Merger::default();
        assert_eq!(drain(&mut merger, &mut rings, 20), [(10, 0, 1), (20, 1, 2)]);
        assert_eq!(drain(&mut merger, &mut rings, u64::MAX), [(30, 0, 3)]);
        assert_eq!(rings[0].tail, rings[0].head);
    }

    #[test]
    fn a_torn_ring_is_skipped_and_counted_and_the_others_go_on() {
        let mut rings = [Memory::new(0, 0), Memory::new(1, 0)];
        assert!(rings[0].write(&fork(10, 1)));
        assert!(rings[0].write(&[0xff; 24]));
        assert!(rings[1].write(&fork(20, 2)));
        let mut merger = Merger::default();
        assert_eq!(drain(&mut merger, &mut rings, u64::MAX), [(10, 0, 1), (20, 1, 2)]);
        assert_eq!(merger.take_torn(), 1);
        assert_eq!(rings[0].tail, rings[0].head);
        // After the skip the ring works again.
        assert!(rings[0].write(&fork(40, 4)));
        assert_eq!(drain(&mut merger, &mut rings, u64::MAX), [(40, 0, 4)]);
        assert_eq!(merger.take_torn(), 0);
    }

    proptest! {
        /// Whatever is written, in whatever portions, comes out whole, once and in order, across every wrap.
        #[test]
        fn everything_written_is_read_once_in_order(
            start in 0u64..1024,
            writes in prop::collection::vec((0usize..3, 1u64..50, any::<bool>()), 1..200),
        ) {
            let start = start * 8;
            let mut rings = [Memory::new(0, start), Memory::new(1, start), Memory::new(2, start)];
            let (mut merger, mut clock) = (Merger::default(), 0);
            let (mut written, mut read) = (Vec::new(), Vec::new());
            for (number, (ring, pause, pause_to_read)) in writes.into_iter().enumerate() {
                clock += pause;
                if pause_to_read {
                    read.extend(drain(&mut merger, &mut rings, clock - 1));
                }
                if rings[ring].write(&fork(clock, number as u32)) {
                    written.push((clock, ring as u32, number as u32));
                }
            }
            read.extend(drain(&mut merger, &mut rings, u64::MAX));
            prop_assert_eq!(read, written);
            prop_assert_eq!(merger.take_torn(), 0);
        }

        /// No bytes make the reader panic or stand still.
        #[test]
        fn arbitrary_bytes_are_survived(words in prop::collection::vec(any::<u64>(), 0..32)) {
            let mut rings = [Memory::new(0, 8)];
            for word in words {
                prop_assert!(rings[0].write(&word.to_ne_bytes()));
            }
            let mut merger = Merger::default();
            merger.drain(&mut rings, u64::MAX, |_| {});
            prop_assert_eq!(rings[0].tail, rings[0].head);
        }
    }
}
