//! A perf ring that programs write to, which the agent has none of: to compare with.
#![allow(unsafe_code, reason = "perf_event_open and mmap have no safe wrapper")]
#![allow(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a benchmark may fail loudly"
)]

use std::{
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::NonNull,
};

use aya_obj::generated::{perf_event_attr, perf_event_sample_format, perf_sw_ids, perf_type_id};

/// Nobody reads it: what does not fit is lost.
const LEN: usize = 4 << 20;

/// The ring of CPU 0. Records carry the time and what the program wrote; the reader would be woken when it is full.
pub(crate) struct PerfRing {
    event: OwnedFd,
    memory: NonNull<u8>,
}

impl PerfRing {
    pub(crate) fn new() -> Self {
        // SAFETY: plain integers, for which zero is "not asked for".
        let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
        attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
        attr.config = perf_sw_ids::PERF_COUNT_SW_BPF_OUTPUT as u64;
        attr.size = size_of::<perf_event_attr>() as u32;
        attr.sample_type = perf_event_sample_format::PERF_SAMPLE_TIME as u64
            | perf_event_sample_format::PERF_SAMPLE_RAW as u64;
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = u32::MAX;
        attr.set_use_clockid(1);
        attr.clockid = libc::CLOCK_MONOTONIC;
        // SAFETY: `attr` is a valid attribute whose `size` says how long it is; every process of CPU 0.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a fresh descriptor that nobody else owns.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                rustix::param::page_size() + LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let memory = NonNull::new(memory.cast()).expect("memory");
        Self { event, memory }
    }

    /// Bytes that were written.
    pub(crate) fn written(&self) -> u64 {
        const HEAD: usize = 1024;
        // SAFETY: a field of the page that the mapping begins with,
        let head = unsafe { self.memory.add(HEAD) };
        // SAFETY: which the kernel writes at any time.
        unsafe { head.cast::<u64>().read_volatile() }
    }
}

impl AsFd for PerfRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), rustix::param::page_size() + LEN) };
    }
}
