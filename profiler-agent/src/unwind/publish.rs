//! What the kernel programs know of processes: the list of mappings of each whose stacks they walk.

use std::{
    num::NonZero,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use hashbrown::{HashMap, HashSet};
use profiler_common::{
    arena::{MAPPING_LEN, MAX_MAPPINGS, MappingList, PENDING},
    record::MAX_PROCESSES,
};

use super::{
    arena::{ArenaError, Block},
    file_address, request,
    tables::Tables,
};
use crate::process::{Code, Key, Process, Processes};

/// [`MappingList`], as aya wants the values of maps.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct List(MappingList);

#[expect(unsafe_code, reason = "aya asks for the promise that a type is plain bytes")]
// SAFETY: five integers of one size, without padding.
unsafe impl aya::Pod for List {}

/// Samples of a process that came to user space although all was known, before the list counts as settled,
const PATIENCE: u32 = 8;
/// if no more time than this lies between two of them.
const ASTRAY_TOGETHER: Duration = Duration::from_secs(10);

/// Least time between two lists of a process, by its mappings: a long list that is written all the time takes the arena from all others.
const PAUSE: Duration = Duration::from_micros(100);

/// What a process was published as.
#[derive(Debug)]
struct Published {
    key: Key,
    generation: u32,
    block: Block,
    /// Files whose tables its list refers to,
    uses: HashSet<u32>,
    /// and those whose tables were not there yet.
    waits: HashSet<u32>,
    /// Samples that came to user space for nothing, and the last time.
    useless: u32,
    useless_at: Instant,
    settled: bool,
    /// When the next list may be written.
    next: Instant,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Publisher {
    lists: aya::maps::HashMap<MapData, u32, List>,
    published: HashMap<u32, Published>,
    /// Pids whose list is to be written.
    due: HashSet<u32>,
    /// Of the list written last.
    serial: NonZero<u32>,
}

impl Publisher {
    pub(super) fn new(lists: aya::maps::HashMap<MapData, u32, List>) -> Self {
        Self {
            lists,
            published: HashMap::new(),
            due: HashSet::new(),
            serial: NonZero::<u32>::MIN,
        }
    }

    /// The process had a sample that the kernel programs could not walk to its end. `astray`: nobody could.
    pub(super) fn missed(&mut self, process: &Process, astray: bool) {
        match self.published.get_mut(&process.pid) {
            Some(published) if published.key == process.key && astray => {
                if published.useless_at.elapsed() > ASTRAY_TOGETHER {
                    published.useless = 0;
                }
                published.useless_at = Instant::now();
                published.useless = published.useless.saturating_add(1);
                if published.useless != PATIENCE {
                    return;
                }
                // The list is right and the walks are wrong: no need to hear of each.
                published.settled = true;
            }
            _ => {}
        }
        self.due.insert(process.pid);
    }

    /// Notes which lists are out of date.
    pub(super) fn changed(
        &mut self,
        processes: &mut Processes,
        fresh: &HashSet<u32>,
        evicted: &HashSet<u32>,
        tables: &mut Tables,
    ) {
        for pid in processes.take_changed() {
            let Some(published) = self.published.get(&pid) else {
                continue;
            };
            match processes.get(pid) {
                Some(process) if process.key == published.key => {
                    self.due.insert(pid);
                }
                _ => self.forget(pid, tables),
            }
        }
        if !fresh.is_empty() || !evicted.is_empty() {
            for (&pid, published) in &mut self.published {
                let refers = !published.uses.is_disjoint(evicted);
                if refers {
                    // Long lists too: their room is somebody else's before long.
                    published.next = Instant::now();
                }
                if refers || !published.waits.is_disjoint(fresh) {
                    self.due.insert(pid);
                }
            }
        }
    }

    /// Writes the lists that are due.
    pub(super) fn publish(&mut self, processes: &mut Processes, tables: &mut Tables) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|pid| {
            self.published
                .get(pid)
                .is_none_or(|published| published.next <= now)
        });
        self.due = later;
        let due: HashSet<u32> = due;
        for pid in due {
            let room = self.published.contains_key(&pid) || self.published.len() < MAX_PROCESSES as usize;
            if let Some(process) = processes.get(pid).cloned().filter(|_| room) {
                self.publish_one(&process, processes, tables);
            }
        }
    }

    fn publish_one(&mut self, process: &Process, processes: &mut Processes, tables: &mut Tables) {
        let mut list = Vec::new();
        let (mut uses, mut waits) = (HashSet::new(), HashSet::new());
        let codes = processes.code(process);
        if processes.are_chosen() {
            // By the time its stacks need a table it should be there. The dynamic linker puts what a program asks for above what that asks for.
            for code in codes.iter().rev() {
                if let Some((id, _)) = file_address(code, code.start) {
                    tables.want(id, || request(id, code));
                }
            }
        }
        for code in codes {
            let Code { start, end, .. } = code;
            let Some((id, address)) = file_address(&code, start) else {
                entry(&mut list, start..end, 0, 0);
                continue;
            };
            let bias = start.wrapping_sub(address);
            let Some(pieces) = tables.pieces(id) else {
                waits.insert(id);
                entry(&mut list, start..end, bias, PENDING);
                continue;
            };
            uses.insert(id);
            let mut at = start;
            for (range, block) in pieces {
                let from = bias.wrapping_add(range.start).max(at);
                let to = bias.wrapping_add(range.end).min(end);
                if from < to {
                    entry(&mut list, at..from, bias, 0);
                    let table = u64::from(block.segment) << 32 | u64::from(block.offset);
                    entry(&mut list, from..to, bias, table);
                    at = to;
                }
            }
            entry(&mut list, at..end, bias, 0);
        }
        let most = MAX_MAPPINGS as usize * MAPPING_LEN as usize;
        let whole = list.len() <= most && !process.is_partial();
        list.truncate(most);
        let pid = process.pid;
        let (key, generation) = (process.key, process.generation());
        let before = self
            .published
            .get(&pid)
            .filter(|published| published.key == key && published.generation == generation);
        let (useless, useless_at, settled) = before.map_or((0, Instant::now(), false), |published| {
            (
                published.useless,
                published.useless_at,
                published.settled && whole,
            )
        });
        if !process.is_current() {
            // Another program runs there, whose news is on its way.
            self.forget(pid, tables);
            return;
        }
        let block = match tables.arena.write(&list) {
            Ok(block) => block,
            Err(error) => {
                // Its stacks are unwound in user space, then; its next sample tries again.
                if matches!(error, ArenaError::Full) {
                    tables.lack(list.len());
                }
                self.forget(pid, tables);
                return;
            }
        };
        self.serial = self.serial.checked_add(1).unwrap_or(NonZero::<u32>::MIN);
        let mappings = MappingList {
            segment: block.segment,
            offset: block.offset,
            count: u32::try_from(list.len()).unwrap_or_default() / MAPPING_LEN,
            settled: settled.into(),
            serial: self.serial.get(),
        };
        let pointed = self.lists.insert(pid, List(mappings), 0);
        tables.arena.tell_of_list();
        if let Err(error) = pointed {
            tracing::debug!(pid, %error, "the kernel side knows no more processes");
            tables.arena.retire(block);
            self.forget(pid, tables);
            return;
        }
        let published = Published {
            key,
            generation,
            block,
            uses,
            waits,
            useless,
            useless_at,
            settled,
            next: Instant::now() + PAUSE * mappings.count,
        };
        if let Some(old) = self.published.insert(pid, published) {
            tables.arena.retire(old.block);
        }
    }

    fn forget(&mut self, pid: u32, tables: &mut Tables) {
        if let Some(published) = self.published.remove(&pid) {
            let _ = self.lists.remove(&pid); // the kernel side has done so when the process ended
            tables.arena.tell_of_list();
            tables.arena.retire(published.block);
        }
    }
}

/// Adds a mapping to a list in the layout of [`profiler_common::arena::Mapping`]; an empty one is none.
fn entry(list: &mut Vec<u8>, range: std::ops::Range<u64>, bias: u64, table: u64) {
    if range.is_empty() {
        return;
    }
    list.extend(
        [range.start, range.end, bias, table]
            .iter()
            .flat_map(|word| word.to_ne_bytes()),
    );
}
