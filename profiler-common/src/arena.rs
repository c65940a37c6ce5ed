//! The memory that holds unwind tables and the mappings of processes, and how to find one's way in it.
//!
//! User space cuts it into blocks and writes them, the kernel programs read. It is made of segments of [`SEGMENT_LEN`] bytes; a place is a
//! segment's number and a byte offset in it.
//!
//! ```text
//! PROCESSES: pid ──▶ list of mappings              mapping ──▶ table
//! ┌────────────────────────────────────────┐       ┌──────────────────────────────────────────────┐
//! │ start u64 │ end u64 │ bias u64 │ table  │ × n   │ first page │ pages │ entries at │ used: each u32 │
//! └────────────────────────────────────────┘       │ index: pages + 1 × u32                        │
//!   by start address                               │ rows: u32 …                                  │
//!                                                  │ entries: 2 × u32 …                           │
//!                                                  └──────────────────────────────────────────────┘
//! ```

use crate::row::{PAGE_SHIFT, Row, Rule};

/// Bytes of a segment.
pub const SEGMENT_LEN: usize = 2 << 20;

/// Most segments.
pub const MAX_SEGMENTS: usize = 64;

/// Bytes of a mapping in a list.
pub const MAPPING_LEN: u32 = 32;

/// Bytes in front of the index of a table.
pub const TABLE_HEADER_LEN: u32 = 16;

/// Most mappings of a list: what a search of [`SEARCH_STEPS`] finds one's way in.
pub const MAX_MAPPINGS: u32 = 1 << 14;

/// Steps of a binary search among mappings.
const SEARCH_STEPS: u32 = 15;

/// Steps of a binary search among the rows of a page, of which there is at most one an address.
const ROW_STEPS: u32 = PAGE_SHIFT + 1;

/// Rows that share a line of the cache.
const ROWS_A_LINE: u32 = 16;

/// Words of a segment. Implementations may answer anything for an offset that is none; they must not fail.
pub trait Segment {
    /// The 32-bit word at a byte offset, a multiple of 4.
    fn u32(&self, offset: u32) -> u32;

    /// The 64-bit word at a byte offset, a multiple of 8.
    fn u64(&self, offset: u32) -> u64;

    /// A number through memory: the kernel's verifier then forgets what it knew of it, so that the ways through a search are one to it.
    #[inline(always)]
    fn launder(&self, number: u32) -> u32 {
        number
    }
}

/// Where the mappings of a process are.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MappingList {
    /// Segment.
    pub segment: u32,
    /// Byte offset of the first one.
    pub offset: u32,
    /// Number of mappings.
    pub count: u32,
    /// Not 0: what is not in the list is no code, and a walk that comes there has gone astray. Otherwise the list may lag behind.
    pub settled: u32,
    /// Tells it from every other list there was; 0 is none. What has been found with its help holds as long as the list does.
    pub serial: u32,
}

/// A mapping as a walk uses it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What to take from an address to get the file's own.
    pub bias: u64,
    /// Where the table is: segment in the upper half, byte offset in the lower one; 0 is none, [`PENDING`] is not yet.
    pub table: u64,
}

/// In place of a table: there may be one, but the kernel side does not have it.
pub const PENDING: u64 = u64::MAX;

/// What has changed since the kernel programs looked last: a word of each writer, so that the programs know by one line of memory whether what
/// they found for the last sample holds for the next.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct News {
    /// Number of the present epoch, which the agent advances.
    pub epoch: u32,
    /// How often the agent has pointed a process to another list, or to none.
    pub lists: u32,
    /// How often the programs themselves have taken a process out: it has ended, or is another program.
    pub ended: u64,
}

/// Byte offset in a table of the epoch of its last use, which the kernel programs write: what to evict can be told from it.
pub const USED_AT: u32 = 12;

/// The mapping of an address in a list of `count` that begins at `offset`.
#[inline(always)]
pub fn find_mapping(segment: &impl Segment, offset: u32, count: u32, address: u64) -> Option<Mapping> {
    let at = |index: u32| offset.wrapping_add(index.wrapping_mul(MAPPING_LEN));
    let (mut low, mut high) = (segment.launder(0), segment.launder(count));
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = segment.launder(low.wrapping_add(high) >> 1);
        if segment.u64(at(middle)) <= address {
            low = middle.wrapping_add(1);
        } else {
            high = middle;
        }
    }
    if low == 0 {
        return None;
    }
    let at = at(low.wrapping_sub(1));
    let mapping = Mapping {
        start: segment.u64(at),
        end: segment.u64(at.wrapping_add(8)),
        bias: segment.u64(at.wrapping_add(16)),
        table: segment.u64(at.wrapping_add(24)),
    };
    (address < mapping.end).then_some(mapping)
}

/// Which pages a table is about.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pages {
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Pages {
    /// Those of the table at `table`.
    #[inline(always)]
    pub fn read(segment: &impl Segment, table: u32) -> Self {
        Self {
            first: segment.u32(table),
            count: segment.u32(table.wrapping_add(4)),
        }
    }
}

/// The bits of the rule that the table at `table`, which is about `pages`, has for an address of its file: [`Rule::None`] where it has none.
///
/// Rows lie about as far apart in a page as their addresses do, so the search begins where the row would be, and next looks a line from
/// there: of the three or four lines that the rows of a page take it touches one or two. At 99 Hz each is a miss.
#[inline(always)]
pub fn find_row(segment: &impl Segment, table: u32, pages: Pages, address: u64) -> u32 {
    let word = |at: u32| segment.u32(table.wrapping_add(at));
    let Pages {
        first: first_page,
        count: pages,
    } = pages;
    let page = (address >> PAGE_SHIFT).wrapping_sub(u64::from(first_page));
    if page >= u64::from(pages) {
        return Rule::NO_BITS;
    }
    let index = TABLE_HEADER_LEN.wrapping_add((page as u32).wrapping_mul(4));
    let rows = TABLE_HEADER_LEN.wrapping_add(pages.wrapping_add(1).wrapping_mul(4));
    let row = |number: u32| Row(word(rows.wrapping_add(number.wrapping_mul(4))));
    let first = segment.launder(word(index));
    let (mut low, mut high) = (first, segment.launder(word(index.wrapping_add(4))));
    let in_page = address as u32 & ((1 << PAGE_SHIFT) - 1);
    let mut next = low.wrapping_add(high.wrapping_sub(low).wrapping_mul(in_page) >> PAGE_SHIFT);
    for step in 0..ROW_STEPS + 2 {
        if low >= high {
            break;
        }
        let middle = segment.launder(next);
        let is_behind = row(middle).address_in_page() <= in_page;
        if is_behind {
            low = middle.wrapping_add(1);
        } else {
            high = middle;
        }
        next = low.wrapping_add(high) >> 1;
        if step == 0 && high.wrapping_sub(low) > ROWS_A_LINE {
            next = if is_behind {
                low.wrapping_add(ROWS_A_LINE / 2)
            } else {
                high.wrapping_sub(ROWS_A_LINE / 2)
            };
        }
    }
    if low <= first {
        Rule::NO_BITS
    } else {
        row(low.wrapping_sub(1)).bits()
    }
}

/// The words of an entry of the table at `table`.
#[inline(always)]
pub fn entry(segment: &impl Segment, table: u32, number: u32) -> [u32; 2] {
    let at = table
        .wrapping_add(segment.u32(table.wrapping_add(8)))
        .wrapping_add(number.wrapping_mul(8));
    [segment.u32(at), segment.u32(at.wrapping_add(4))]
}
