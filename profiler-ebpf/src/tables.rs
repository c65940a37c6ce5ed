//! From an address of the current process to the rule that leads up from it.
//!
//! The searches are global functions of a scalar, so that the verifier goes through each once; what they find lies in scratch.

use core::{arch::asm, mem::offset_of};

use profiler_common::{
    arena::{self, Mapping, MappingList, News, PENDING, Pages, SEGMENT_LEN, Segment as _, USED_AT},
    row::{Packed, Rule},
    unwind::Frame,
};

use crate::{
    bounded::masked,
    maps::{NEWS, PROCESSES, SCRATCH, SEGMENTS, Scratch},
};

/// What has changed up to now; read before anything is looked up.
#[inline(always)]
pub fn news() -> News {
    let Some(news) = NEWS.get_ptr(0) else {
        return News::default();
    };
    // SAFETY: words of the map's one element, which others write; each is read once.
    unsafe {
        News {
            epoch: (&raw const (*news).epoch).read_volatile(),
            lists: (&raw const (*news).lists).read_volatile(),
            ended: (&raw const (*news).ended).read_volatile(),
        }
    }
}

/// Whether this is the process of the last sample, and none has ended since: what was found of it then holds. Most samples of a CPU are of the
/// process that it was busy with before, and a look into a map costs four lines of memory, which are cold at 99 Hz.
#[inline(always)]
pub fn is_as_before(scratch: &Scratch, pid: u32, news: News) -> bool {
    scratch.process == pid && scratch.news.ended == news.ended
}

/// Finds the mappings of a process.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, pid: u32, news: News) {
    if !is_as_before(scratch, pid, news) || scratch.news.lists != news.lists {
        scratch.process = pid;
        // SAFETY: the entry is copied at once.
        scratch.mappings = match unsafe { PROCESSES.get(pid) } {
            Some(list) => *list,
            None => MappingList::default(),
        };
    }
    scratch.news = news;
}

/// Tells all CPUs that a process has ended, or is another program: what they found of it before does not hold.
#[inline(always)]
pub fn tell_of_end() {
    if let Some(news) = NEWS.get_ptr(0) {
        // SAFETY: a word of the map's one element that all CPUs add to. The target has this instruction (BPF_XADD) but no type for it.
        unsafe {
            asm!(
                "lock *(u64 *)({ended} + 0) += {one}",
                ended = in(reg) &raw const (*news).ended,
                one = in(reg) 1_u64,
            );
        }
    }
}

/// Bits of an address of user space.
const ADDRESS_BITS: u32 = 47;

/// Rules found before, in the order in which walks came to them: most frames of a stack were in the stack before, and the caller of a frame
/// is where it was then, right behind it.
///
/// ```text
/// steps │ … leaf, caller, caller, … main │ other leaf │ …        a walk follows the steps as long as they are its own,
///             ▲                                 ▲     end        is led back to them by the index where they part,
/// index │ … ──┘ … ──────────────────────────────┘ …              and adds what it had to look up
/// ```
///
/// A step spares the look-ups of mapping and row, and the five or so lines of memory that those touch; at 99 Hz these are cold, and each
/// waits for the one before. Of steps that follow each other four share a line, and the next line is fetched ahead.
///
/// They begin at a multiple of their length, so that none lies in two lines.
///
/// They hold for the present epoch only, so that tables in use are still [marked](Segment::mark_as_used).
#[repr(C, align(16))]
pub struct Trail {
    steps: [Step; STEPS],
    /// Where the step of an address may be, by a hash of it, of which six further bits stand above the number of the step: nearly always
    /// they tell that it is another's, without a look at it.
    index: [u16; INDEX],
}

/// Steps of a [`Trail`], 16 KiB a CPU; a power of two.
const STEPS: usize = 1024;

/// Places of its index; a power of two.
const INDEX: usize = 2048;

/// A rule of a [`Trail`].
#[repr(C)]
#[derive(Clone, Copy)]
struct Step {
    /// Epoch, its lower 17 bits, and address.
    key: u64,
    /// Serial number of the list of mappings; 0 is none.
    list: u32,
    /// Bits of the rule.
    bits: u32,
}

/// The key of an address.
#[inline(always)]
fn key(epoch: u32, address: u64) -> u64 {
    u64::from(epoch) << ADDRESS_BITS | address
}

impl Trail {
    /// The step of this number, which wraps around.
    #[inline(always)]
    fn step(trail: *mut Self, number: u32) -> *mut Step {
        const LAST: i32 = (STEPS as i32 - 1) * size_of::<Step>() as i32;
        let offset = masked::<LAST>(u64::from(number) * size_of::<Step>() as u64) as usize;
        // The mask keeps the offset inside the array and a multiple of a step's size.
        trail.cast::<Step>().wrapping_byte_add(offset)
    }

    /// The place in the index of an address, and the upper bits of what stands there if it is this address's.
    #[inline(always)]
    fn place(trail: *mut Self, address: u64, list: u32) -> (*mut u16, u32) {
        const LAST: i32 = (INDEX as i32 - 1) * size_of::<u16>() as i32;
        // 2^64 divided by the golden ratio: the upper bits of the product depend on all of the address.
        let hash = (address ^ u64::from(list) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let offset = masked::<LAST>(hash << 1) as usize;
        let upper = (hash >> 16) as u32 & 0xffff & !(STEPS as u32 - 1);
        // The mask keeps the offset inside the array and a multiple of 2; the index is a field of the same trail.
        (
            trail.wrapping_byte_add(offset_of!(Trail, index) + offset).cast(),
            upper,
        )
    }
}

/// What [`find_rule`] answers in place of a rule, which are all 20 bits long: the kernel side does not know this process, or this code, or
/// not yet.
pub const UNKNOWN: u32 = 1 << 20;
/// The same: there is no code.
pub const NOWHERE: u32 = 1 << 21;

/// Where a walk stands.
pub struct Place {
    /// The frame that it has come to.
    pub frame: Frame,
    /// The step of the trail that it is likely to take next.
    next: u32,
}

impl Place {
    /// The one in scratch.
    ///
    /// # Safety
    ///
    /// `scratch` is this CPU's slot.
    #[inline(always)]
    pub unsafe fn load(scratch: *mut Scratch) -> Self {
        // SAFETY: by contract.
        unsafe {
            Self {
                frame: (*scratch).frame(),
                next: (*scratch).next_step,
            }
        }
    }

    /// Writes it to scratch.
    ///
    /// # Safety
    ///
    /// `scratch` is this CPU's slot.
    #[inline(always)]
    pub unsafe fn store(&self, scratch: *mut Scratch) {
        // SAFETY: by contract.
        unsafe {
            (*scratch).registers = self.frame.registers;
            (*scratch).origin = self.frame.origin.bits();
            (*scratch).next_step = self.next;
        }
    }
}

/// The bits of the rule that leads up from the frame of a place, or one of the above; `None` when it is not the next on the trail.
///
/// # Safety
///
/// `scratch` is this CPU's slot.
#[inline(always)]
pub unsafe fn next_rule(scratch: *mut Scratch, place: &mut Place) -> Option<u32> {
    // SAFETY: by contract.
    unsafe {
        let step = Trail::step(&raw mut (*scratch).trail, place.next);
        if (*step).key != key((*scratch).news.epoch, place.frame.address())
            || (*step).list != (*scratch).mappings.serial
        {
            return None;
        }
        place.next = place.next.wrapping_add(1);
        Some((*step).bits)
    }
}

/// The same for the frame in scratch, wherever on the trail or off it. An entry is left in `scratch.entry`; whatever else there is, on the trail.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_rule(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return UNKNOWN;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone; each access is of a field that the functions called may have
    // changed.
    unsafe {
        let address = (*scratch).frame().address();
        let (key, list) = (key((*scratch).news.epoch, address), (*scratch).mappings.serial);
        let trail = &raw mut (*scratch).trail;
        let (place, upper) = Trail::place(trail, address, list);
        let at = u32::from(*place);
        if at & !(STEPS as u32 - 1) == upper && list != 0 {
            let known = Trail::step(trail, at);
            if (*known).key == key && (*known).list == list {
                (*scratch).next_step = at.wrapping_add(1);
                return (*known).bits;
            }
        }
        let bits = look_up(scratch, slot, address);
        // An entry is not in its bits but in its table.
        if bits < UNKNOWN && !Rule::is_entry(bits) && address >> ADDRESS_BITS == 0 {
            let end = (*scratch).end_of_trail;
            *Trail::step(trail, end) = Step { key, list, bits };
            *place = (end & (STEPS as u32 - 1) | upper) as u16;
            (*scratch).end_of_trail = end.wrapping_add(1);
            (*scratch).next_step = end.wrapping_add(1);
        }
        bits
    }
}

/// Mappings found before, with what the heads of their tables say: a stack has frames in three or four, large programs have forty. Like the steps of a [`Trail`] they hold
/// for the present epoch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Recent {
    mapping: Mapping,
    pages: Pages,
    /// Serial number of its list; 0 is none.
    list: u32,
    epoch: u32,
}

/// How many are kept; a power of two.
pub const RECENT: usize = 64;

impl Recent {
    /// The place for the mapping of an address.
    #[inline(always)]
    fn place(recent: *mut [Self; RECENT], address: u64) -> *mut Self {
        const LAST: i32 = RECENT as i32 - 1;
        // Tables of large files come in pieces for some 4 MB of code, each with a mapping of its own.
        let number = masked::<LAST>(address >> 22) as usize;
        recent.cast::<Self>().wrapping_add(number)
    }
}

/// The same by mapping and row.
#[inline(always)]
unsafe fn look_up(scratch: *mut Scratch, slot: u32, address: u64) -> u32 {
    // SAFETY: as above.
    unsafe {
        let list = (*scratch).mappings.serial;
        if list == 0 {
            return UNKNOWN;
        }
        let recent = Recent::place(&raw mut (*scratch).recent, address);
        let mapping = (*recent).mapping;
        let epoch = (*scratch).news.epoch;
        if (*recent).list == list
            && (*recent).epoch == epoch
            && mapping.start <= address
            && address < mapping.end
        {
            (*scratch).mapping = mapping;
            (*scratch).pages = (*recent).pages;
        } else if find_mapping(slot) == FOUND {
            (*recent).list = list;
            (*recent).epoch = epoch;
            (*recent).mapping = (*scratch).mapping;
            (*recent).pages = (*scratch).pages;
        } else {
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

/// What [`find_mapping`] found.
const FOUND: u32 = 1;

/// Finds the mapping of the address of the frame in scratch, and marks its table as used.
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
    let Some(mapping) =
        arena::find_mapping(&segment, scratch.mappings.offset, scratch.mappings.count, address)
    else {
        return 0;
    };
    scratch.mapping = mapping;
    if !matches!(mapping.table, 0 | PENDING)
        && let Some(segment) = Segment::get((mapping.table >> 32) as u32, &raw mut scratch.laundry)
    {
        segment.mark_as_used(mapping.table as u32, scratch.news.epoch);
        scratch.pages = Pages::read(&segment, mapping.table as u32);
    }
    FOUND
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
    let address = address.wrapping_sub(scratch.mapping.bias);
    let bits = arena::find_row(&segment, table as u32, scratch.pages, address);
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
    fn mark_as_used(&self, table: u32, epoch: u32) {
        const LAST: i32 = SEGMENT_LEN as i32 - 4;
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
