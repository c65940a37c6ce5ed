//! The allocator's habits, kept small: what one big file took must not stay with the process.
#![allow(unsafe_code, reason = "malloc_trim and mallopt have no safe wrapper")]

/// Has all threads share one heap. glibc gives each thread its own, and each keeps its peak: 4 MB of 38 in a capture that parses
/// the debug information of two programs. To be called before there are threads.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns the allocator's free pages; without it the peak of one big file stays resident (77 MB of 245, then 5).
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
