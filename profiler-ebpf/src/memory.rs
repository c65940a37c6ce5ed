//! The memory of the current process, a piece at a time.
//!
//! A read through the kernel costs some 50 ns and little more for a greater length, twice as much as the rest of a step; and a stack is
//! read from one end to the other. So a piece of it is copied, and frames are served from there.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_user;

use profiler_common::record::PAGE;

use crate::{bounded::masked, maps::SCRATCH};

/// A piece ends with a page, since a copy that fails half-way costs a fault in the kernel, 1 µs and more: the last frames of a thread lie
/// on the last page of its stack. With less than this left of the page it takes in the next one. 33 frames by table, whole sample, times that
/// of a bare `bpf_get_stack`, hot, 64 and 208 bytes each: 1.23 and 1.45 with pieces of 2048 bytes from anywhere, 1.07 and 1.25 with 4096,
/// 1.85 and 2.49 with 8192, which fail.
const LEAST: u64 = 1024;

/// Room for a piece; a power of two.
const ROOM: usize = 8192;

const _: () = assert!(PAGE + LEAST <= ROOM as u64);

/// The piece of user memory copied last. What is not there is unreadable: nothing is ever faulted in.
#[repr(C)]
pub struct UserMemory {
    /// Address of the first word.
    start: u64,
    /// Offset of the last word that was copied.
    last: u64,
    /// The words.
    words: [u64; ROOM / 8],
}

impl UserMemory {
    /// Forgets the piece, which may be another process's.
    #[inline(always)]
    pub fn forget(&mut self) {
        // All user addresses are farther from this than a piece, going up and around.
        self.start = 1 << 63;
    }

    /// Copies the piece that begins at `start`, a multiple of 8: to the end of the page, or if that is near, of the next one. At least a word.
    #[inline(always)]
    fn fill(&mut self, start: u64) -> bool {
        let rest = PAGE - start % PAGE;
        self.start = start;
        if rest < LEAST && self.copy(rest + PAGE, start) || self.copy(rest, start) {
            return true;
        }
        self.forget();
        false
    }

    #[inline(always)]
    fn copy(&mut self, bytes: u64, start: u64) -> bool {
        const MOST: i32 = ROOM as i32 - 1;
        let bytes = masked::<MOST>(bytes);
        self.last = bytes - 8;
        let words = self.words.as_mut_ptr().cast::<c_void>();
        // SAFETY: the helper checks the address and fails instead of faulting; `words` has room for more than the mask lets through.
        unsafe { bpf_probe_read_user(words, bytes as u32, start as *const c_void) == 0 }
    }
}

/// The word at `address`, a multiple of 8; `None` where it cannot be read.
///
/// # Safety
///
/// `memory` is that of the scratch in this CPU's slot.
#[inline(always)]
pub unsafe fn word(memory: *mut UserMemory, address: u64, slot: u32) -> Option<u64> {
    const LAST: i32 = ROOM as i32 - 8;
    // SAFETY: by contract; each access is of a field that the function called may have changed.
    unsafe {
        if address.wrapping_sub((*memory).start) > (*memory).last && fill(slot, address) == 0 {
            return None;
        }
        let offset = masked::<LAST>(address.wrapping_sub((*memory).start)) as usize;
        // The mask keeps `offset` below the room for a piece; it is a multiple of 8.
        Some(
            *(&raw const (*memory).words)
                .cast::<u64>()
                .wrapping_byte_add(offset),
        )
    }
}

/// Copies the piece that begins at `start`; 0 when there is no word. A global function, so that the verifier goes through it once and
/// not for each word of a frame.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fill(slot: u32, start: u64) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone.
    let memory = unsafe { &mut (*scratch).memory };
    memory.fill(start).into()
}
