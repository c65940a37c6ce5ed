//! What the kernel itself tells of the processes on one CPU, read in place from a perf ring.
//!
//! ```text
//!   metadata page      data: 2^n pages
//! ┌───────────────┐ ┌────────────────────────────────────┐
//! │ head  tail  … │ │ …free… ▏record▕ record▕ …free…      │
//! └───────────────┘ └────────▲────────────────▲──────────┘
//!                        tail % len       head % len
//! ```
//!
//! The kernel moves `head` forward after it has written a record, this side moves `tail` after it has read one. Both count
//! bytes and never wrap in practice. The kernel does not touch what lies between the two.
#![expect(unsafe_code, reason = "the ring is memory shared with the kernel")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use super::{
    merge::{Buffer, Window},
    perf_event::PerfEvent,
    record::Layout,
};

// `struct perf_event_mmap_page`, a fixed part of the ABI.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// No record is longer: a mapping with a path of `PATH_MAX` bytes, and the byte that the kernel never fills.
const LONGEST: u64 = 4096 + 256;

/// The records of one CPU, with the event that owns their ring.
#[derive(Debug)]
pub struct EventRing {
    event: PerfEvent,
    cpu: u32,
    memory: NonNull<u8>,
    page: usize,
    /// Size of the data part; a power of two.
    len: usize,
}

// SAFETY: the memory belongs to this value alone, and is freed with it.
unsafe impl Send for EventRing {}

impl EventRing {
    /// Maps the ring of `event` with at least `bytes` of data.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: `EPERM` when `RLIMIT_MEMLOCK` and `perf_event_mlock_kb` do not allow for it.
    pub fn new(event: PerfEvent, cpu: u32, bytes: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let len = bytes.max(page).next_power_of_two();
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                page + len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self {
            event,
            cpu,
            memory,
            page,
            len,
        })
    }

    /// The event that owns the ring.
    pub const fn event(&self) -> &PerfEvent {
        &self.event
    }

    fn metadata(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the metadata page is mapped as long as `self` lives.
        let field = unsafe { self.memory.as_ptr().add(offset) }.cast::<u64>();
        // SAFETY: aligned to 8 by the ABI; kernel and agent access it as an atomic word.
        unsafe { AtomicU64::from_ptr(field) }
    }
}

impl Buffer for EventRing {
    fn cpu(&self) -> u32 {
        self.cpu
    }

    fn layout(&self) -> Layout {
        Layout::Events
    }

    fn head(&self) -> u64 {
        // Acquire: what lies before the head was written before the head was.
        self.metadata(DATA_HEAD).load(Ordering::Acquire)
    }

    fn tail(&self) -> u64 {
        // Relaxed: nobody but this side writes it.
        self.metadata(DATA_TAIL).load(Ordering::Relaxed)
    }

    /// The kernel tells of what it had no room for in front of the next record alone, which may never come: the program that filled the ring was the last
    /// to map anything. So a ring counts as overflowed when its longest record might not have fitted any more.
    fn release(&mut self, tail: u64) -> bool {
        let before = self.tail();
        // Release: every read of the data is over.
        self.metadata(DATA_TAIL).store(tail, Ordering::Release);
        // The head is read after the room was given back, so that what was refused for want of it was refused with the head where it is now, or before.
        fence(Ordering::SeqCst);
        self.head().wrapping_sub(before) > (self.len as u64).saturating_sub(LONGEST)
    }

    fn window(&self, from: u64, to: u64) -> Window<'_> {
        let tail = self.tail();
        let (Ok(start), Ok(len)) = (
            usize::try_from(from & (self.len as u64 - 1)),
            usize::try_from(to.wrapping_sub(from)),
        ) else {
            return Window::default();
        };
        if len > self.len || from < tail || to.wrapping_sub(tail) > self.len as u64 {
            return Window::default();
        }
        let first = len.min(self.len - start);
        // SAFETY: the data part begins one page into the mapping.
        let data = unsafe { self.memory.as_ptr().add(self.page) };
        // SAFETY: `start < len of the ring`.
        let head_part = unsafe { data.add(start) };
        // SAFETY: `first` bytes from there lie inside the data; the kernel does not write between tail and head, and the
        // tail cannot move while the window borrows the ring.
        let first_part = unsafe { std::slice::from_raw_parts(head_part, first) };
        // SAFETY: as above; what is left begins at the start of the data.
        let second_part = unsafe { std::slice::from_raw_parts(data, len - first) };
        Window {
            first: first_part,
            second: second_part,
        }
    }
}

impl Drop for EventRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, not borrowed any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.page + self.len) };
    }
}
