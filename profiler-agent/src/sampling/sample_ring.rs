//! The samples of one CPU, read in place from a BPF ring buffer.
//!
//! ```text
//!  consumer page   producer page   data: 2^n pages        the same pages again
//! ┌─────────────┐ ┌─────────────┐ ┌──────────────────────┬╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┐
//! │ tail        │ │ head        │ │…free… ▏record▕ record▕ …free…               ╎
//! └─────────────┘ └─────────────┘ └───────▲───────────────┴╌▲╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘
//!                                    tail % len        head % len
//! ```
//!
//! A program takes room by moving the head, writes a record and then takes a mark from its length; this side moves the tail after it has read one. Both count
//! bytes and never wrap in practice. Since the data is mapped twice, no record is in two parts. `kernel/bpf/ringbuf.c`.
#![expect(unsafe_code, reason = "the ring is memory shared with the kernel")]

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use aya::maps::{MapData, MapError};

use super::{
    merge::{Buffer, Window},
    record::{self, BUSY, Layout},
};

/// The samples of one CPU.
#[derive(Debug)]
pub struct SampleRing {
    map: MapData,
    cpu: u32,
    /// The page with the tail.
    consumer: Mapping,
    /// The page with the head, and the data.
    producer: Mapping,
    page: usize,
    /// Size of the data; a power of two.
    len: usize,
    /// Up to where records were found to be written, which is never beyond the head.
    written: Cell<u64>,
}

/// Memory of a map, mapped here.
#[derive(Debug)]
struct Mapping {
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, and is freed with it.
unsafe impl Send for Mapping {}

impl SampleRing {
    /// Has the kernel make a ring with at least `bytes` of data for a CPU.
    ///
    /// # Errors
    ///
    /// Those of `BPF_MAP_CREATE` (Linux 5.8 and later has such rings) and `mmap(2)`.
    pub fn new(cpu: u32, bytes: usize) -> Result<Self, MapError> {
        const RING: u32 = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        let page = rustix::param::page_size();
        let len = bytes.max(page).next_power_of_two();
        let entries = u32::try_from(len).unwrap_or(u32::MAX);
        let map = MapData::create(
            aya_obj::Map::new_from_params(RING, 0, 0, entries, 0),
            "samples",
            None,
        )?;
        let fd = map.fd().as_fd();
        let consumer = Mapping::new(fd, libc::PROT_READ | libc::PROT_WRITE, page, 0)?;
        let producer = Mapping::new(fd, libc::PROT_READ, page + 2 * len, page)?;
        Ok(Self {
            map,
            cpu,
            consumer,
            producer,
            page,
            len,
            written: Cell::new(0),
        })
    }

    /// The ring as the programs know it.
    pub fn map(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    /// The data from a position on: `len` bytes, at most those of the ring.
    fn data(&self, from: u64, len: usize) -> *const u8 {
        debug_assert!(len <= self.len);
        let start = usize::try_from(from & (self.len as u64 - 1)).unwrap_or(0);
        // SAFETY: the data begins one page into the mapping and is there twice, so that `len` bytes from any place in the first copy are inside.
        unsafe { self.producer.memory.as_ptr().add(self.page + start) }
    }
}

impl Buffer for SampleRing {
    fn cpu(&self) -> u32 {
        self.cpu
    }

    fn layout(&self) -> Layout {
        Layout::Samples
    }

    /// Up to where there are written records.
    fn head(&self) -> u64 {
        // Relaxed loads, and fences: nothing else is defined on memory that can only be read. What is before the head was marked as being written
        // before the head was moved;
        let head = self.producer.word().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let mut written = self.written.get();
        while written < head {
            let header = self.data(written, size_of::<u64>());
            // SAFETY: records begin at multiples of 8, and so does the data; the kernel changes the word as an atomic one.
            let length = unsafe { AtomicU32::from_ptr(header.cast_mut().cast()) };
            let length = length.load(Ordering::Relaxed);
            if length & BUSY != 0 {
                break;
            }
            written = (written + record::sample_record_len(length)).min(head);
        }
        // and what a record holds was written before its mark was taken away.
        fence(Ordering::Acquire);
        self.written.set(written);
        written
    }

    fn tail(&self) -> u64 {
        // Relaxed: nobody but this side writes it.
        self.consumer.word().load(Ordering::Relaxed)
    }

    fn window(&self, from: u64, to: u64) -> Window<'_> {
        let Ok(len) = usize::try_from(to.wrapping_sub(from)) else {
            return Window::default();
        };
        if from < self.tail() || to > self.written.get() || len > self.len {
            return Window::default();
        }
        // SAFETY: the bytes lie between tail and head, where the kernel does not write what is written; the tail cannot move while the window
        // borrows the ring.
        let first = unsafe { std::slice::from_raw_parts(self.data(from, len), len) };
        Window { first, second: &[] }
    }

    fn release(&mut self, tail: u64) -> bool {
        // Release: every read of the data is over.
        self.consumer.word().store(tail, Ordering::Release);
        // The programs count what they find no room for.
        false
    }
}

impl Mapping {
    fn new(map: BorrowedFd<'_>, protection: libc::c_int, len: usize, offset: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { memory, len })
    }

    /// The word that it begins with.
    fn word(&self) -> &AtomicU64 {
        // SAFETY: the start of a page, mapped as long as `self` lives; kernel and agent access it as an atomic word.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, not borrowed any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}
