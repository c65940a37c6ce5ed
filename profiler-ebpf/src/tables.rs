//! From an address of the current process to the rule that leads up from it.
//!
//! The searches are global functions of a scalar, so that the verifier goes through each once; what they find lies in scratch.

use profiler_common::{
    arena::{self, EPOCH_AT, PENDING, SEGMENT_LEN, Segment as _, USED_AT},
    row::{Packed, Rule},
};

use crate::{
    bounded::masked,
    maps::{PROCESSES, SCRATCH, SEGMENTS, Scratch},
};

/// Looks up the mappings of a process.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, pid: u32) {
    scratch.mapping.start = 0;
    scratch.mapping.end = 0;
    // SAFETY: the entry is copied at once.
    scratch.known = match unsafe { PROCESSES.get(pid) } {
        Some(list) => {
            scratch.mappings = *list;
            1
        }
        None => 0,
    };
}

/// What [`find_mapping`] found.
const FOUND: u32 = 1;

/// What [`rule`] answers in place of a rule, which are all 20 bits long: the kernel side does not know this process, or this code, or
/// not yet.
pub const UNKNOWN: u32 = 1 << 20;
/// The same: there is no code.
pub const NOWHERE: u32 = 1 << 21;

/// The bits of the rule that leads up from the frame in scratch, or one of the above.
///
/// A raw pointer, because the functions called here find their way to the same scratch: of a reference LLVM would believe that
/// nobody else reads or writes behind it.
///
/// # Safety
///
/// `scratch` is this CPU's slot.
#[inline(always)]
pub unsafe fn rule(scratch: *mut Scratch, slot: u32) -> u32 {
    // SAFETY: by contract; each access is of a field that the functions called may have changed.
    unsafe {
        if (*scratch).known == 0 {
            return UNKNOWN;
        }
        let address = (*scratch).frame().address();
        if (address < (*scratch).mapping.start || address >= (*scratch).mapping.end)
            && find_mapping(slot) != FOUND
        {
            return if (*scratch).mappings.settled == 0 {
                UNKNOWN
            } else {
                NOWHERE
            };
        }
        match (*scratch).mapping.table {
            PENDING => UNKNOWN,
            0 => Rule::NO_BITS,
            _ => find_row(slot),
        }
    }
}

/// Finds the mapping of the address of the frame in scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_mapping(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    let address = scratch.frame().address();
    let Some(segment) = Segment::get(scratch.mappings.segment, &raw mut scratch.laundry) else {
        return 0;
    };
    match arena::find_mapping(&segment, scratch.mappings.offset, scratch.mappings.count, address) {
        Some(mapping) => {
            scratch.mapping = mapping;
            FOUND
        }
        None => 0,
    }
}

/// Finds the row of the address of the frame in scratch; returns its rule's bits. An entry is left in `scratch.entry`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_row(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return Rule::NO_BITS;
    };
    // SAFETY: a slot of this CPU's own array, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    let address = scratch.frame().address();
    let table = scratch.mapping.table;
    let Some(segment) = Segment::get((table >> 32) as u32, &raw mut scratch.laundry) else {
        return Rule::NO_BITS;
    };
    segment.mark_as_used(table as u32);
    let bits = arena::find_row(&segment, table as u32, address.wrapping_sub(scratch.mapping.bias));
    if let Packed::Entry(number) = Rule::unpack(bits) {
        scratch.entry = arena::entry(&segment, table as u32, number);
    }
    bits
}

/// A segment of the arena.
struct Segment {
    bytes: *const u8,
    laundry: *mut u32,
}

impl Segment {
    #[inline(always)]
    fn get(number: u32, laundry: *mut u32) -> Option<Self> {
        let bytes = SEGMENTS.get_value_ptr_mut(number, &0)?;
        Some(Self {
            bytes: bytes.cast(),
            laundry,
        })
    }
}

impl Segment {
    /// Notes in a table that it is in use. Written once an epoch, so that CPUs do not take its line from each other.
    #[inline(always)]
    fn mark_as_used(&self, table: u32) {
        const LAST: i32 = SEGMENT_LEN as i32 - 4;
        let epoch = self.u32(EPOCH_AT);
        let used = table.wrapping_add(USED_AT);
        if self.u32(used) != epoch {
            let offset = masked::<LAST>(u64::from(used)) as usize;
            // SAFETY: the mask keeps the offset inside the segment and a multiple of 4.
            unsafe {
                self.bytes
                    .cast_mut()
                    .add(offset)
                    .cast::<u32>()
                    .write_volatile(epoch)
            };
        }
    }
}

impl arena::Segment for Segment {
    #[inline(always)]
    fn u32(&self, offset: u32) -> u32 {
        const LAST: i32 = SEGMENT_LEN as i32 - 4;
        let offset = masked::<LAST>(u64::from(offset)) as usize;
        // SAFETY: the mask keeps the offset inside the segment and a multiple of 4.
        unsafe { *self.bytes.add(offset).cast() }
    }

    #[inline(always)]
    fn u64(&self, offset: u32) -> u64 {
        const LAST: i32 = SEGMENT_LEN as i32 - 8;
        let offset = masked::<LAST>(u64::from(offset)) as usize;
        // SAFETY: the mask keeps the offset inside the segment and a multiple of 8.
        unsafe { *self.bytes.add(offset).cast() }
    }

    #[inline(always)]
    fn launder(&self, number: u32) -> u32 {
        // SAFETY: a field of this CPU's scratch.
        unsafe { self.laundry.write_volatile(number) };
        // SAFETY: as above.
        unsafe { self.laundry.read_volatile() }
    }
}
