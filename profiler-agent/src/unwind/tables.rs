//! The tables of all files: asked for when a stack first needs them, kept in the arena, evicted when they lie idle and others need the
//! room.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use hashbrown::{HashMap, HashSet, hash_map::Entry};
use profiler_common::{
    arena::{self, Pages},
    row::{Packed, Rule},
};

use super::{
    arena::{Arena, ArenaError, Block},
    builder::{Builder, Built, Request},
};

/// How long an epoch is: the grain of "used last". The kernel programs keep what they found for as long.
const EPOCH: Duration = Duration::from_secs(5);

/// Epochs that a table must have been idle to be evicted: what is used all the time does not throw each other out.
const MIN_IDLE: u32 = 3;

/// How long a table waits for room that has been made: until what was evicted is certainly free.
const ROOM_AFTER: Duration = Duration::from_millis(1500);

/// How long a file whose table found no room goes without.
const RETRY: Duration = Duration::from_secs(60);

/// What is known of a file's table.
#[derive(Debug)]
enum State {
    /// Asked for.
    Building,
    /// In the arena, by ranges of the file's addresses. Empty: the file has no call frame information.
    Ready(Vec<(Range<u64>, Block)>),
    /// There was no room for it.
    NoRoom(Instant),
}

/// What the tables say about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This leads up from there.
    Rule(Rule),
    /// Nothing: the frame pointer is all there is.
    Nothing,
    /// That the frame pointer is all there is.
    Unusable,
    /// Nothing yet.
    Pending,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Tables {
    builder: Builder,
    pub(super) arena: Arena,
    states: HashMap<u32, State>,
    building: usize,
    /// Tables that wait for room which has been made and is not free yet, with the time when it will be.
    unstored: VecDeque<(Instant, Built)>,
    /// Blocks of evicted tables that processes still refer to.
    condemned: Vec<Block>,
    /// Files that were forgotten since the last [`Self::collect`].
    forgotten: HashSet<u32>,
    /// Bytes that a list of mappings found no room for.
    lacking: usize,
    next_epoch: Instant,
    /// Whether it has been told that the memory is used up.
    told: bool,
}

/// Which tables have come and gone.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Files that have a table now, or never will.
    pub(super) fresh: HashSet<u32>,
    /// Files that have none any more.
    pub(super) evicted: HashSet<u32>,
}

impl Tables {
    /// None yet; at most `bytes` of them in the programs' array of segments.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give, or no memory to map.
    pub(super) fn new(segments: MapData, news: MapData, bytes: usize) -> std::io::Result<Self> {
        Ok(Self {
            builder: Builder::start()?,
            arena: Arena::new(segments, news, bytes)?,
            states: HashMap::new(),
            building: 0,
            unstored: VecDeque::new(),
            condemned: Vec::new(),
            forgotten: HashSet::new(),
            lacking: 0,
            next_epoch: Instant::now() + EPOCH,
            told: false,
        })
    }

    /// Asks for the table of a file that a stack needs, before all others.
    pub(super) fn need(&mut self, id: u32, request: impl FnOnce() -> Option<Request>) {
        self.want(id, request);
        if matches!(self.states.get(&id), Some(State::Building)) {
            self.builder.urge(id);
        }
    }

    /// Asks for the table of a file, unless that has been done.
    pub(super) fn want(&mut self, id: u32, request: impl FnOnce() -> Option<Request>) {
        if self.states.contains_key(&id) {
            return;
        }
        let Some(request) = request() else {
            self.states.insert(id, State::Ready(Vec::new()));
            return;
        };
        self.states.insert(id, State::Building);
        self.building += 1;
        self.builder.ask(request);
    }

    /// Nobody will ask for the table of this file again.
    pub(super) fn forget(&mut self, id: u32) {
        // What is being built finds nobody who uses it, and goes with the idlest.
        if let Entry::Occupied(state) = self.states.entry(id)
            && !matches!(state.get(), State::Building)
            && let State::Ready(pieces) = state.remove()
        {
            self.condemned.extend(pieces.into_iter().map(|(_, block)| block));
            self.forgotten.insert(id);
        }
    }

    /// Files whose tables are in the arena.
    pub(super) fn len(&self) -> usize {
        let states = self.states.values();
        states
            .filter(|state| matches!(state, State::Ready(pieces) if !pieces.is_empty()))
            .count()
    }

    /// Whether no table is being built.
    pub(super) const fn is_idle(&self) -> bool {
        self.building == 0
    }

    /// Somebody waits for all that is being built.
    pub(super) fn hurry(&self) {
        self.builder.hurry();
    }

    /// Takes in what has been built. What `changes` of the answer calls evicted is in use until [`Self::release`].
    pub(super) fn collect(&mut self) -> Changes {
        let mut changes = Changes {
            evicted: std::mem::take(&mut self.forgotten),
            ..Changes::default()
        };
        if Instant::now() >= self.next_epoch {
            self.next_epoch = Instant::now() + EPOCH;
            self.arena.advance_epoch();
            // Whoever runs them asks again.
            let retried = self
                .states
                .extract_if(|_, state| matches!(state, State::NoRoom(since) if since.elapsed() >= RETRY));
            changes.evicted.extend(retried.map(|(id, _)| id));
        }
        let lacking = std::mem::take(&mut self.lacking);
        if lacking > 0 {
            // Free room in pieces that are too small is no room.
            self.make_room(self.arena.free() + lacking, &mut changes);
        }
        while let Some((built, may_wait)) = self.next_built() {
            let id = built.id;
            if let Some(built) = self.store(built, may_wait, &mut changes) {
                self.unstored.push_back((Instant::now() + ROOM_AFTER, built));
                continue;
            }
            self.building -= 1;
            changes.fresh.insert(id);
        }
        changes
    }

    /// A table to be stored, and whether it may wait for room: once, and no other table waits for it.
    fn next_built(&mut self) -> Option<(Built, bool)> {
        let ripe = self
            .unstored
            .front()
            .is_some_and(|(when, _)| *when <= Instant::now());
        if ripe {
            let (_, built) = self.unstored.pop_front()?;
            return Some((built, false));
        }
        Some((self.builder.answer()?, true))
    }

    /// A list of mappings found no room: idle tables are evicted for it, at the next [`Self::collect`].
    pub(super) fn lack(&mut self, bytes: usize) {
        self.lacking = self.lacking.max(bytes);
    }

    /// No process refers to evicted tables any more.
    pub(super) fn release(&mut self) {
        for block in self.condemned.drain(..) {
            self.arena.retire(block);
        }
    }

    /// The pieces of a file's table; `None` when it is not there yet.
    pub(super) fn pieces(&self, id: u32) -> Option<&[(Range<u64>, Block)]> {
        match self.states.get(&id)? {
            State::Ready(pieces) => Some(pieces),
            State::NoRoom(_) => Some(&[]),
            State::Building => None,
        }
    }

    /// What a file's table says about one of its addresses.
    pub(super) fn find(&self, id: u32, address: u64) -> Known {
        let Some(pieces) = self.pieces(id) else {
            return Known::Pending;
        };
        let piece = pieces.iter().find(|(range, _)| range.contains(&address));
        let Some((&(_, block), segment)) =
            piece.and_then(|piece| Some((piece, self.arena.segment(piece.1.segment)?)))
        else {
            return Known::Nothing;
        };
        self.arena.mark_as_used(block);
        let pages = Pages::read(&segment, block.offset);
        let bits = arena::find_row(&segment, block.offset, pages, address);
        match Rule::unpack(bits) {
            Packed::Rule(Rule::None) => Known::Nothing,
            Packed::Rule(Rule::Unsupported | Rule::FramePointer) => Known::Unusable,
            Packed::Rule(rule) => Known::Rule(rule),
            Packed::Entry(number) => {
                Known::Rule(Rule::of_entry(arena::entry(&segment, block.offset, number)))
            }
        }
    }

    /// Puts the tables of a file into the arena; gives them back when they have to wait for room, if they may.
    fn store(&mut self, built: Built, may_wait: bool, changes: &mut Changes) -> Option<Built> {
        let pieces = match &built.pieces {
            Ok(pieces) => pieces,
            Err(error) => {
                tracing::warn!(path = built.path, %error, "its code is unwound by frame pointer");
                self.states.insert(built.id, State::Ready(Vec::new()));
                return None;
            }
        };
        let mut blocks = Vec::new();
        for (range, table) in pieces {
            match self.arena.write(&table.block()) {
                Ok(block) => {
                    self.arena.mark_as_used(block);
                    blocks.push((range.clone(), block));
                }
                Err(error) => {
                    for (_, block) in blocks {
                        self.arena.take_back(block);
                    }
                    let needed = pieces.iter().map(|(_, table)| table.block_len()).sum();
                    let full = matches!(error, ArenaError::Full) && needed < self.arena.capacity();
                    if full && may_wait && self.make_room(needed, changes) {
                        return Some(built);
                    }
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::warn!(
                            path = built.path,
                            %error,
                            "this code is unwound by frame pointer, and so may be other code; give --unwind-memory more"
                        );
                    }
                    self.states.insert(built.id, State::NoRoom(Instant::now()));
                    return None;
                }
            }
        }
        self.states.insert(built.id, State::Ready(blocks));
        None
    }

    /// Evicts the tables that have been idle longest until there will be `needed` bytes. Says whether there will.
    fn make_room(&mut self, needed: usize, changes: &mut Changes) -> bool {
        let mut coming = self.arena.free()
            + self.arena.retired()
            + self
                .condemned
                .iter()
                .map(|block| block.len as usize)
                .sum::<usize>();
        let len = |pieces: &[(Range<u64>, Block)]| -> usize {
            pieces.iter().map(|(_, block)| block.len as usize).sum()
        };
        let mut idle: Vec<(u32, u32, usize)> = self
            .states
            .iter()
            .filter_map(|(&id, state)| match state {
                State::Ready(pieces) if !pieces.is_empty() => {
                    let idle = pieces.iter().map(|(_, block)| self.arena.idle(*block)).min()?;
                    (idle >= MIN_IDLE).then_some((idle, id, len(pieces)))
                }
                State::Building | State::Ready(_) | State::NoRoom(_) => None,
            })
            .collect();
        // Nothing is thrown out for what does not fit all the same.
        if coming + idle.iter().map(|(_, _, len)| len).sum::<usize>() < needed {
            return false;
        }
        idle.sort_unstable();
        while coming < needed {
            let Some((_, id, len)) = idle.pop() else {
                return false;
            };
            if let Some(State::Ready(pieces)) = self.states.remove(&id) {
                coming += len;
                self.condemned.extend(pieces.into_iter().map(|(_, block)| block));
                changes.evicted.insert(id);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;
    use crate::{
        sampling::{Config, Sampler},
        target::Wanted,
    };

    /// Waits until everything that was asked for is there, or has no room; what was evicted meanwhile.
    fn settle(tables: &mut Tables) -> HashSet<u32> {
        let mut evicted = HashSet::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !tables.is_idle() {
            assert!(Instant::now() < deadline, "{tables:?}");
            evicted.extend(tables.collect().evicted);
            tables.release();
            std::thread::sleep(Duration::from_millis(5));
        }
        evicted
    }

    #[test]
    fn the_idlest_makes_room() {
        if !rustix::process::geteuid().is_root() {
            return; // there is no kernel memory to be had
        }
        let mut sampler = Sampler::new(Config {
            frequency: 99,
            wanted: Wanted::Processes(Vec::new()),
        })
        .unwrap();
        let maps = sampler.take_unwind_maps().unwrap();
        // Of the C library, whose tables have 0.12 MB.
        let room = 2 << 20;
        let mut tables = Tables::new(maps.segments, maps.news, room).unwrap();
        let program = Arc::new(File::open("/lib/x86_64-linux-gnu/libc.so.6").unwrap());
        let want = |tables: &mut Tables, id| {
            tables.want(id, || {
                Some(Request {
                    id,
                    file: Arc::clone(&program),
                    path: format!("file {id}"),
                    code: 0..0,
                })
            });
        };
        let has_table = |tables: &Tables, id| tables.pieces(id).is_some_and(|pieces| !pieces.is_empty());
        // All are in use: the first that finds no room goes without.
        let newcomer = (1..100)
            .find(|&id| {
                want(&mut tables, id);
                assert!(settle(&mut tables).is_empty());
                !has_table(&tables, id)
            })
            .unwrap();
        assert!(newcomer > 2, "{newcomer}");
        assert!(tables.pieces(newcomer).is_some_and(<[_]>::is_empty));
        assert!(tables.arena.memory() <= room);

        // The second is used again, the others are not.
        for _ in 0..=MIN_IDLE {
            tables.arena.advance_epoch();
        }
        let address = tables.pieces(2).unwrap()[0].0.start;
        let _ = tables.find(2, address);
        want(&mut tables, newcomer + 1);
        let evicted = settle(&mut tables);
        assert!(!evicted.is_empty() && !evicted.contains(&2), "{evicted:?}");
        assert!(evicted.iter().all(|&id| tables.pieces(id).is_none()));
        assert!(has_table(&tables, 2) && has_table(&tables, newcomer + 1));

        // A list of mappings finds no room: an idle table makes it some.
        let list = [0; 4096];
        while tables.arena.write(&list).is_ok() {}
        for _ in 0..=MIN_IDLE {
            tables.arena.advance_epoch();
        }
        tables.lack(list.len());
        assert!(!tables.collect().evicted.is_empty());
        tables.release();
        let deadline = Instant::now() + Duration::from_secs(30);
        while tables.arena.write(&list).is_err() {
            assert!(Instant::now() < deadline, "{tables:?}");
            std::thread::sleep(Duration::from_millis(50));
        }

        // A file that nobody will ask for again leaves its room.
        let file = (1..100).find(|&id| has_table(&tables, id)).unwrap();
        let free = tables.arena.free();
        tables.forget(file);
        assert!(tables.collect().evicted.contains(&file));
        tables.release();
        assert!(tables.pieces(file).is_none() && tables.arena.free() + tables.arena.retired() > free);
    }
}
