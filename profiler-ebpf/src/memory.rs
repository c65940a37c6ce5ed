//! The memory of the current process, a piece at a time.
//!
//! Each read through the kernel costs some 20 ns whatever its length, as much as the rest of a step; and a stack is read from one end to
//! the other. So a piece of it is copied, and frames are served from there.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_user;

use crate::bounded::masked;

/// Bytes of a piece; a power of two. Of 128, 256, 512 and 1024 this was the fastest on stacks of 48 and of 200 bytes a frame.
const PIECE: usize = 512;

/// The piece of user memory copied last. What is not there is unreadable: nothing is ever faulted in.
#[repr(C)]
pub struct UserMemory {
    /// Address of the first word.
    start: u64,
    words: [u64; PIECE / 8],
}

impl UserMemory {
    /// Forgets the piece, which may be another process's.
    #[inline(always)]
    pub fn forget(&mut self) {
        // No user address lies less than a piece behind this.
        self.start = u64::MAX;
    }

    /// Copies the piece that begins at `start`, or at least its first word, where the memory ends sooner.
    #[inline(always)]
    fn fill(&mut self, start: u64) -> bool {
        self.start = start;
        let words = self.words.as_mut_ptr().cast::<c_void>();
        // SAFETY: the helper checks the address and fails instead of faulting; `words` has room for a piece.
        if unsafe { bpf_probe_read_user(words, PIECE as u32, start as *const c_void) } == 0 {
            return true;
        }
        self.forget();
        // SAFETY: as above.
        unsafe { bpf_probe_read_user(words, 8, start as *const c_void) == 0 }
    }

    /// The word at `address`, a multiple of 8; `None` where it cannot be read.
    #[inline(always)]
    pub fn word(&mut self, address: u64) -> Option<u64> {
        const LAST: i32 = PIECE as i32 - 8;
        let mut offset = address.wrapping_sub(self.start);
        if offset > LAST as u64 {
            if !self.fill(address) {
                return None;
            }
            offset = 0;
        }
        let offset = masked::<LAST>(offset) as usize;
        // SAFETY: the mask keeps `offset` below the size of a piece; it is a multiple of 8.
        Some(unsafe { *self.words.as_ptr().wrapping_byte_add(offset) })
    }
}
