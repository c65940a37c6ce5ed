//! Tables: the rows of a file in the layout of [`profiler_common::row`], cut into pieces.

use std::ops::Range;

use hashbrown::HashMap;
use profiler_common::{
    arena::TABLE_HEADER_LEN,
    row::{MAX_ENTRIES, PAGE_SHIFT, Packed, Row, Rule},
};

/// Most pages of the code of one file: a gigabyte.
const MAX_PAGES: u64 = 1 << 18;

/// Most bytes of the tables of one file; librustc_driver has 8.4 MB.
pub const MAX_BYTES: usize = 16 << 20;

/// Bytes of a page.
const PAGE: u64 = 1 << PAGE_SHIFT;

/// Most bytes that a page can add to a table: a row and an entry for each of its addresses, and its word in the index.
const MAX_PAGE_BYTES: usize = 4 + (1 << PAGE_SHIFT) * (4 + 8);

/// Rules by address, ready to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Number of the first page: its address shifted by [`PAGE_SHIFT`].
    pub first_page: u64,
    /// Where the rows of each page begin, and one more for the end of the last.
    pub index: Vec<u32>,
    /// Rows by address, as [`Row`].
    pub rows: Vec<u32>,
    /// Rules that fit into no row.
    pub entries: Vec<[u32; 2]>,
}

/// Why there is no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// There is no code.
    #[error("it has no code")]
    Empty,
    /// The code spans more than tables can.
    #[error("its code spans {0} pages of 4 KiB, more than {MAX_PAGES}")]
    TooLong(u64),
    /// The code lies where no table can be.
    #[error("its code lies at {0:#x}, beyond what tables can speak of")]
    TooHigh(u64),
    /// The code is such that its tables are too large.
    #[error("its tables need more than {MAX_BYTES} bytes")]
    TooLarge,
}

impl Table {
    /// The rule in force at an address.
    pub fn rule(&self, address: u64) -> Rule {
        let find = || {
            let page = usize::try_from((address >> PAGE_SHIFT).checked_sub(self.first_page)?).ok()?;
            let (start, end) = (*self.index.get(page)?, *self.index.get(page + 1)?);
            let rows = self
                .rows
                .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
            let behind = rows.partition_point(|row| u64::from(Row(*row).address_in_page()) <= address % PAGE);
            match Row(*rows.get(behind.checked_sub(1)?)?).rule() {
                Packed::Rule(rule) => Some(rule),
                Packed::Entry(number) => self
                    .entries
                    .get(usize::try_from(number).ok()?)
                    .map(|entry| Rule::of_entry(*entry)),
            }
        };
        find().unwrap_or(Rule::None)
    }

    /// Bytes of [`Self::block`].
    pub fn block_len(&self) -> usize {
        TABLE_HEADER_LEN as usize + self.len()
    }

    /// The table as the kernel programs read it, [`profiler_common::arena`].
    pub fn block(&self) -> Vec<u8> {
        let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let entries = TABLE_HEADER_LEN as usize + 4 * (self.index.len() + self.rows.len());
        let header = [
            u32::try_from(self.first_page).unwrap_or(u32::MAX),
            number(self.index.len().saturating_sub(1)),
            number(entries),
            0,
        ];
        let words = header
            .iter()
            .chain(&self.index)
            .chain(&self.rows)
            .chain(self.entries.as_flattened());
        words.flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Bytes of all its parts.
    pub fn len(&self) -> usize {
        4 * self.index.len() + 4 * self.rows.len() + 8 * self.entries.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One without pages as yet, with room for what so many usually hold.
    fn starting(first_page: u64, pages: u64, limit: usize) -> Self {
        const ROWS_A_PAGE: usize = 64;
        let rows = usize::try_from(pages).map_or(usize::MAX, |pages| pages.saturating_mul(ROWS_A_PAGE));
        Self {
            first_page,
            index: Vec::new(),
            rows: Vec::with_capacity(rows.min(limit / 4)),
            entries: Vec::new(),
        }
    }

    fn begin_page(&mut self) {
        self.index
            .push(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
    }
}

/// Tables under construction: rules go in by address, pieces come out.
#[derive(Debug)]
pub struct Pieces {
    code: Range<u64>,
    /// Most bytes of a piece.
    limit: usize,
    done: Vec<(Range<u64>, Table)>,
    /// Bytes of those.
    done_bytes: usize,
    /// Where the piece under construction begins.
    start: u64,
    table: Table,
    /// First address of the page that begins next.
    next: u64,
    entry_ids: HashMap<[u32; 2], u32>,
    /// The rule that was added last, and where: another one may still replace it.
    pending: (u64, Code),
    /// The rule of the last row.
    in_force: Code,
}

/// A rule in the form that is quick to compare: there are millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    /// As it stands in a row, or [`Code::ENTRY`].
    bits: u32,
    entry: [u32; 2],
}

impl Code {
    /// It needs an entry of its own.
    const ENTRY: u32 = u32::MAX;
    pub(super) const NONE: Self = Self::of(Rule::None);
    const UNSUPPORTED: Self = Self {
        bits: match Rule::Unsupported.pack() {
            Some(bits) => bits,
            None => Self::ENTRY,
        },
        entry: [0; 2],
    };

    #[inline(always)]
    pub(super) const fn of(rule: Rule) -> Self {
        if let Some(bits) = rule.pack() {
            return Self { bits, entry: [0; 2] };
        }
        match rule.entry() {
            Some(entry) => Self {
                bits: Self::ENTRY,
                entry,
            },
            None => Self::UNSUPPORTED,
        }
    }

    /// The same rule with another offset; `None` where that takes more than a look.
    #[inline(always)]
    pub(super) fn with_offset(self, offset: i32) -> Option<Self> {
        let bits = Rule::with_offset(self.bits, offset)?;
        Some(Self { bits, entry: [0; 2] })
    }

    /// The rule, where it fits into a row.
    pub(super) fn rule(self) -> Option<Rule> {
        match Rule::unpack(self.bits) {
            Packed::Rule(rule) if self.bits != Self::ENTRY => Some(rule),
            Packed::Rule(_) | Packed::Entry(_) => None,
        }
    }
}

impl Pieces {
    /// Begins the tables for the addresses in `code`, each of at most `limit` bytes or, if that is more, those of one page.
    ///
    /// # Errors
    ///
    /// [`TableError`] when no table can speak of these addresses.
    pub fn new(code: Range<u64>, limit: usize) -> Result<Self, TableError> {
        if code.is_empty() {
            return Err(TableError::Empty);
        }
        let first_page = code.start >> PAGE_SHIFT;
        let pages = ((code.end - 1) >> PAGE_SHIFT) - first_page + 1;
        if pages > MAX_PAGES {
            return Err(TableError::TooLong(pages));
        }
        if first_page > u64::from(u32::MAX) {
            return Err(TableError::TooHigh(code.start));
        }
        Ok(Self {
            start: code.start,
            pending: (code.start, Code::NONE),
            code,
            limit,
            done: Vec::new(),
            done_bytes: 0,
            table: Table::starting(first_page, pages, limit),
            next: first_page << PAGE_SHIFT,
            entry_ids: HashMap::new(),
            in_force: Code::NONE,
        })
    }

    /// Adds a rule, in force from `address` to the next one's. They come by address; of several at one address the last counts.
    ///
    /// # Errors
    ///
    /// [`TableError::TooLarge`].
    pub fn add(&mut self, address: u64, rule: Rule) -> Result<(), TableError> {
        self.add_code(address, Code::of(rule))
    }

    /// The same.
    #[inline]
    pub(super) fn add_code(&mut self, address: u64, code: Code) -> Result<(), TableError> {
        let (before, pending) = self.pending;
        if code == pending {
            return Ok(());
        }
        if before < address {
            self.put(before, pending)?;
        }
        self.pending = (address.max(before), code);
        Ok(())
    }

    /// The first address,
    pub const fn start(&self) -> u64 {
        self.code.start
    }

    /// and the first behind the last.
    pub const fn end(&self) -> u64 {
        self.code.end
    }

    /// The pieces by address, each with the addresses that it is for.
    ///
    /// # Errors
    ///
    /// [`TableError::TooLarge`].
    pub fn finish(mut self) -> Result<Vec<(Range<u64>, Table)>, TableError> {
        let (address, code) = self.pending;
        self.put(address, code)?;
        let pages = ((self.code.end - 1) >> PAGE_SHIFT) + 1;
        self.begin_pages(pages)?;
        self.end_piece(self.code.end, pages)?;
        Ok(self.done)
    }

    #[inline]
    fn put(&mut self, address: u64, code: Code) -> Result<(), TableError> {
        if code == self.in_force || address >= self.code.end {
            return Ok(());
        }
        let in_page = address % PAGE;
        if address >= self.next {
            // The page of this row begins with what is in force, unless the row is its first address.
            let page = address >> PAGE_SHIFT;
            self.begin_pages(if in_page == 0 { page } else { page + 1 })?;
            if in_page == 0 {
                self.begin_page()?;
            }
        }
        self.in_force = code;
        self.row(in_page);
        Ok(())
    }

    /// Begins every page before number `end`, each with the rule in force.
    #[inline(never)]
    fn begin_pages(&mut self, end: u64) -> Result<(), TableError> {
        while self.next >> PAGE_SHIFT < end {
            self.begin_page()?;
            if self.in_force != Code::NONE {
                self.row(0);
            }
        }
        Ok(())
    }

    fn begin_page(&mut self) -> Result<(), TableError> {
        if self.table.block_len() + MAX_PAGE_BYTES > self.limit && !self.table.index.is_empty() {
            self.end_piece(self.next, self.next >> PAGE_SHIFT)?;
        }
        self.table.begin_page();
        self.next += PAGE;
        Ok(())
    }

    /// Puts the piece under construction with those that are done; the next one begins at `end` with page number `page`.
    fn end_piece(&mut self, end: u64, page: u64) -> Result<(), TableError> {
        let pages = ((self.code.end - 1) >> PAGE_SHIFT) + 1 - page;
        let mut table = std::mem::replace(&mut self.table, Table::starting(page, pages, self.limit));
        table.begin_page(); // where the last one ends
        table.index.shrink_to_fit();
        table.rows.shrink_to_fit();
        self.entry_ids.clear();
        self.done_bytes += table.block_len();
        if self.done_bytes > MAX_BYTES {
            return Err(TableError::TooLarge);
        }
        self.done.push((self.start..end, table));
        self.start = end;
        Ok(())
    }

    #[inline]
    fn row(&mut self, in_page: u64) {
        let bits = match self.in_force.bits {
            Code::ENTRY => self.entry(),
            bits => bits,
        };
        self.table
            .rows
            .push(Row::new(u32::try_from(in_page).unwrap_or_default(), bits).0);
    }

    /// The bits of a rule that has to stand in the table of rules.
    #[inline(never)]
    fn entry(&mut self) -> u32 {
        let entries = &mut self.table.entries;
        let id = *self
            .entry_ids
            .entry(self.in_force.entry)
            .or_insert_with_key(|&entry| {
                entries.push(entry);
                u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
            });
        if id < MAX_ENTRIES {
            Rule::pack_entry(id)
        } else {
            Code::UNSUPPORTED.bits
        }
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::row::{Base, SavedBp, SavedBx};
    use proptest::prelude::*;

    use super::*;

    fn rule() -> impl Strategy<Value = Rule> {
        prop_oneof![
            3 => (0_i32..40).prop_map(|words| Rule::Cfa { base: Base::Sp, offset: 8 * words, bp: SavedBp::Same, bx: SavedBx::Below(2) }),
            1 => (0_i32..4000).prop_map(|words| Rule::Cfa { base: Base::Bp, offset: 8 * words, bp: SavedBp::AtBp(0), bx: SavedBx::Lost }),
            1 => Just(Rule::None),
            1 => Just(Rule::End),
        ]
    }

    proptest! {
        /// At every address the table says what a plain list of rules says.
        #[test]
        fn says_what_the_list_says(
            rules in prop::collection::vec((0_u64..20_000, rule()), 0..60),
            start in 0_u64..10_000,
            len in 1_u64..15_000,
        ) {
            let mut rules = rules;
            rules.sort_by_key(|(address, _)| *address);
            let code = start..start + len;
            for limit in [0, 1 << 20] {
                let pieces = pieces(&rules, code.clone(), limit).unwrap();
                prop_assert_eq!(pieces.first().unwrap().0.start, code.start);
                prop_assert_eq!(pieces.last().unwrap().0.end, code.end);
                prop_assert!(pieces.array_windows().all(|[one, next]| one.0.end == next.0.start));
                for (range, table) in &pieces {
                    prop_assert!(limit > 0 || table.index.len() == 2, "a page each");
                    prop_assert!(table.index.is_sorted());
                    prop_assert_eq!(*table.index.last().unwrap() as usize, table.rows.len());
                    for address in range.clone() {
                        let listed = rules.iter().rev().find(|(at, _)| *at <= address);
                        let expected = listed.map_or(Rule::None, |(_, rule)| *rule);
                        prop_assert_eq!(table.rule(address), expected, "{}", address);
                    }
                    let last_page = table.first_page + table.index.len() as u64 - 1;
                    prop_assert_eq!(table.rule(last_page << PAGE_SHIFT), Rule::None);
                }
            }
        }
    }

    fn pieces(
        rules: &[(u64, Rule)],
        code: Range<u64>,
        limit: usize,
    ) -> Result<Vec<(Range<u64>, Table)>, TableError> {
        let mut pieces = Pieces::new(code, limit)?;
        for &(address, rule) in rules {
            pieces.add(address, rule)?;
        }
        pieces.finish()
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(matches!(pieces(&[], 0..1 << 40, 0), Err(TableError::TooLong(_))));
        assert!(matches!(pieces(&[], 0..0, 0), Err(TableError::Empty)));
        let high = 1 << 50..(1 << 50) + 1;
        assert!(matches!(pieces(&[], high, 0), Err(TableError::TooHigh(_))));
        let last = u64::MAX - 1..u64::MAX;
        assert!(matches!(pieces(&[], last, 0), Err(TableError::TooHigh(_))));
        assert_eq!(pieces(&[], 0..4096, 0).unwrap()[0].1.rule(5), Rule::None);
    }

    #[test]
    fn pieces_are_full_but_not_fuller_and_their_sum_is_bounded() {
        let limit = 1 << 20;
        let every = |step: usize, count: u64| -> Vec<(u64, Rule)> {
            let rules = [Rule::End, Rule::Unsupported];
            let addresses = (0..count).step_by(step);
            addresses.zip(rules.into_iter().cycle()).collect()
        };
        let made = pieces(&every(4, 4 << 20), 0..4 << 20, limit).unwrap();
        assert_eq!(made.len(), 5, "4 MiB of rows");
        for (_, table) in &made {
            assert!(table.block_len() <= limit);
        }
        for (_, table) in &made[..4] {
            assert!(table.block_len() > limit - MAX_PAGE_BYTES - (16 << 10));
        }
        assert_eq!(
            pieces(&every(1, 5 << 20), 0..5 << 20, limit),
            Err(TableError::TooLarge)
        );
    }
}
