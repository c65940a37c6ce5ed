//! One table: the rows of a file in the layout of [`profiler_common::row`].

use std::ops::Range;

use hashbrown::HashMap;
use profiler_common::row::{MAX_ENTRIES, PAGE_SHIFT, Packed, Row, Rule};

/// Most pages of one table: a gigabyte of code.
const MAX_PAGES: u64 = 1 << 18;

/// Bytes of a page.
const PAGE: u64 = 1 << PAGE_SHIFT;

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
    /// The code spans more than a table can.
    #[error("its code spans {0} pages of 4 KiB, more than {MAX_PAGES}")]
    TooLarge(u64),
}

impl Table {
    /// Makes a table of rules, each in force from its address to the next one's. They are sorted by address; of several at one
    /// address the last counts. Rules outside `code`, the addresses that are executable, are left out.
    ///
    /// # Errors
    ///
    /// [`TableError::TooLarge`].
    pub fn new(rules: &[(u64, Rule)], code: Range<u64>) -> Result<Self, TableError> {
        let first_page = code.start >> PAGE_SHIFT;
        let pages = (code.end.saturating_sub(1) >> PAGE_SHIFT).saturating_sub(first_page) + 1;
        if code.is_empty() || pages > MAX_PAGES {
            return Err(TableError::TooLarge(if code.is_empty() { 0 } else { pages }));
        }
        let mut builder = Builder {
            table: Self {
                first_page,
                index: Vec::new(),
                rows: Vec::with_capacity(rules.len()),
                entries: Vec::new(),
            },
            entry_ids: HashMap::new(),
            in_force: Rule::None,
        };
        let mut rules = rules
            .iter()
            .filter(|(address, _)| code.contains(address))
            .peekable();
        while let Some(&(address, rule)) = rules.next() {
            if rules.peek().is_some_and(|(next, _)| *next == address) {
                continue; // replaced at once
            }
            builder.add(address, rule);
        }
        builder.begin_pages(pages);
        builder.begin_page(); // where the last one ends
        Ok(builder.table)
    }

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

    /// Bytes of all its parts.
    pub fn len(&self) -> usize {
        4 * self.index.len() + 4 * self.rows.len() + 8 * self.entries.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// A table under construction, its rows added by address.
struct Builder {
    table: Table,
    entry_ids: HashMap<[u32; 2], u32>,
    /// The rule of the last row.
    in_force: Rule,
}

impl Builder {
    fn add(&mut self, address: u64, rule: Rule) {
        if rule == self.in_force {
            return;
        }
        let page = (address >> PAGE_SHIFT) - self.table.first_page;
        let in_page = address % PAGE;
        // The page of this row begins with what is in force, unless the row is its first address.
        self.begin_pages(if in_page == 0 { page } else { page + 1 });
        if in_page == 0 {
            self.begin_page();
        }
        self.in_force = rule;
        self.row(in_page);
    }

    /// Begins every page before number `end`, each with the rule in force.
    fn begin_pages(&mut self, end: u64) {
        while (self.table.index.len() as u64) < end {
            self.begin_page();
            if self.in_force != Rule::None {
                self.row(0);
            }
        }
    }

    fn begin_page(&mut self) {
        self.table
            .index
            .push(u32::try_from(self.table.rows.len()).unwrap_or(u32::MAX));
    }

    fn row(&mut self, in_page: u64) {
        let bits = self.in_force.pack().unwrap_or_else(|| self.entry());
        self.table
            .rows
            .push(Row::new(u32::try_from(in_page).unwrap_or_default(), bits).0);
    }

    /// The bits of a rule that has to stand in the table of rules.
    fn entry(&mut self) -> u32 {
        let unsupported = Rule::Unsupported.pack().unwrap_or_default();
        let Some(entry) = self.in_force.entry() else {
            return unsupported;
        };
        let entries = &mut self.table.entries;
        let id = *self.entry_ids.entry(entry).or_insert_with(|| {
            entries.push(entry);
            u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
        });
        if id < MAX_ENTRIES {
            Rule::pack_entry(id)
        } else {
            unsupported
        }
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::row::{Base, SavedBp};
    use proptest::prelude::*;

    use super::*;

    fn rule() -> impl Strategy<Value = Rule> {
        prop_oneof![
            3 => (0_i32..40).prop_map(|words| Rule::Cfa { base: Base::Sp, offset: 8 * words, bp: SavedBp::Same }),
            1 => (0_i32..4000).prop_map(|words| Rule::Cfa { base: Base::Bp, offset: 8 * words, bp: SavedBp::AtBp(0) }),
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
            let table = Table::new(&rules, code.clone()).unwrap();
            prop_assert!(table.index.is_sorted());
            prop_assert_eq!(*table.index.last().unwrap() as usize, table.rows.len());
            for address in (0..28_000).step_by(3) {
                let listed = rules.iter().rev().find(|(at, _)| code.contains(at) && *at <= address);
                let expected = listed.map_or(Rule::None, |(_, rule)| *rule);
                let covered = (code.start >> PAGE_SHIFT..=(code.end - 1) >> PAGE_SHIFT).contains(&(address >> PAGE_SHIFT));
                prop_assert_eq!(table.rule(address), if covered { expected } else { Rule::None }, "{}", address);
            }
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(matches!(
            Table::new(&[], 0..1 << 40),
            Err(TableError::TooLarge(_))
        ));
        assert!(matches!(Table::new(&[], 0..0), Err(TableError::TooLarge(0))));
        assert_eq!(Table::new(&[], 0..4096).unwrap().rule(5), Rule::None);
    }
}
