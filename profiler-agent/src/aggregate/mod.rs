//! Samples of one identity, added up.
//!
//! ```text
//! addresses of a process ──▶ locations ──▶ stack ──▶ (kind, process, thread, CPU, stack) ──▶ count, timestamps
//!        cache by hash        interned     interned
//! ```
//!
//! A location is an address of a *file*, so that processes share it; a stack is a list of locations. The usual sample
//! finds its stack in the cache by one hash of its raw bytes, and adds a timestamp. Only new stacks are resolved, only new
//! locations get a name, and every table is bounded.
//!
//! A capture without an end is cut into slices. A slice that is closed waits for its names while the next one fills:
//! ```text
//! add ──▶ open slice ──close──▶ closed slice ──names──▶ take ──▶ Profile
//! ```
//! Stacks and locations are kept from slice to slice, since most come again and their names were dear; those that do not
//! come again for some slices are forgotten, all that the open slice does not need as soon as a table is half full.

mod locations;
mod snapshot;

use std::hash::{BuildHasher as _, Hasher as _};

use hashbrown::{DefaultHashBuilder, HashMap};
use profiler_common::{
    Outcome,
    record::{BY_FRAME_POINTER, COMM_LEN, INTERRUPTED},
};

use slab::Slab;

pub use self::locations::LocationCounts;
use self::locations::{Generated, Locations, Marker};
use crate::{
    clock::Clock,
    jit::Jits,
    process::{Key, Origin, Place, Process, Processes},
    profile::{Capture, Kind, LocationId, Profile},
    sampling::record::Sample,
    symbols::{Request, Response},
};

/// Bounds of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Distinct stacks; further ones are counted under one frame that says so. 100,000 deep ones take some 20 MB.
    pub stacks: usize,
    /// Timestamps kept, 8 bytes each; beyond, a profile carries counts without times.
    pub timestamps: usize,
    /// Distinct samples of a slice, some 150 bytes each; further ones are counted for their process, without thread and stack.
    pub identities: usize,
    /// Processes; the samples of further ones are counted under one name.
    pub processes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stacks: 100_000,
            timestamps: 4_000_000,
            identities: 250_000,
            processes: 65_536,
        }
    }
}

/// Slices for which a stack that does not come again is kept, and a process.
const KEEP_STACKS: u32 = 6;
/// The same for a location and its names, which cost more to find.
const KEEP_LOCATIONS: u32 = 60;

/// Entries of the cache of raw stacks, 32 bytes each; when full it begins anew.
const CACHE: usize = 65_536;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Aggregator {
    limits: Limits,
    clock: Clock,
    locations: Locations,
    /// Names of generated code.
    jits: Jits,
    stacks: Slab<StackEntry>,
    stack_ids: HashMap<Stack, u32>,
    /// Hash of a raw stack and whose it is, to the stack.
    cache: HashMap<u128, Cached>,
    hashers: [DefaultHashBuilder; 2],
    processes: HashMap<Key, ProcessInfo>,
    /// Number of the open slice.
    slice: u32,
    open: Slice,
    closed: Option<Slice>,
    /// Spare room for the frames of a new stack.
    frames: Vec<LocationId>,
    counts: Counts,
}

/// The stack of a raw stack.
#[derive(Debug)]
struct Cached {
    stack: u32,
    /// The last slice in which it was found. The stack may be found for longer, by other processes.
    used: u32,
}

/// What the aggregator counts about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples taken in.
    pub samples: u64,
    /// Those whose stack was in the cache.
    pub cache_hits: u64,
    /// Those beyond the budget of stacks, of distinct samples or of processes, counted without theirs.
    pub over_budget: u64,
    /// Those with a complete user stack, or without any.
    pub complete: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stack {
    frames: Box<[LocationId]>,
    outcome: Outcome,
}

/// A stack, and when it was of use.
#[derive(Debug)]
struct StackEntry {
    stack: Stack,
    /// The last slice that it was part of.
    used: u32,
}

/// The samples of one span of time.
#[derive(Debug, Default)]
struct Slice {
    samples: HashMap<Identity, Total>,
    /// Timestamps in `samples`.
    timestamps: usize,
    /// First and last time of a sample.
    span: Option<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    kind: Kind,
    process: Key,
    tid: u32,
    thread_name: [u8; COMM_LEN],
    cpu: u32,
    stack: u32,
}

#[derive(Debug, Default)]
struct Total {
    count: u64,
    weight: u64,
    timestamps: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ProcessInfo {
    pid: u32,
    start_ticks: u64,
    name: String,
    executable: String,
    origin: Origin,
    /// The last slice that it was part of.
    used: u32,
}

/// Stands for the processes beyond the budget.
const OTHERS: Key = Key(u32::MAX);

impl Aggregator {
    /// Empty.
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self {
            limits,
            clock,
            locations: Locations::default(),
            jits: Jits::default(),
            stacks: Slab::new(),
            stack_ids: HashMap::new(),
            cache: HashMap::new(),
            hashers: Default::default(),
            processes: HashMap::new(),
            slice: 0,
            open: Slice::default(),
            closed: None,
            frames: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Adds a sample of `process` taken on `cpu` at `time`, of `CLOCK_MONOTONIC`.
    pub fn add(
        &mut self,
        sample: &Sample<'_>,
        cpu: u32,
        time: u64,
        process: &Process,
        processes: &mut Processes,
    ) {
        let key = self.take_note_of(process);
        self.counts.samples += 1;
        self.counts.complete += u64::from(sample.outcome.is_complete());

        let generation = (process.generation(), self.jits.generation(process.key));
        let hash = self.hash(sample, process.key, generation);
        let stack = match self.cache.get_mut(&hash) {
            Some(cached) => {
                self.counts.cache_hits += 1;
                cached.used = self.slice;
                cached.stack
            }
            None => self.resolve(sample, time, hash, process, processes),
        };
        let identity = Identity {
            kind: Kind::from(sample.kind),
            process: key,
            tid: sample.tid,
            thread_name: sample.comm,
            cpu,
            stack,
        };
        if self.open.samples.len() >= self.limits.identities && !self.open.samples.contains_key(&identity) {
            self.counts.over_budget += 1;
            let stack = self.beyond(Marker::SampleBudget);
            let identity = Identity {
                tid: 0,
                thread_name: [0; COMM_LEN],
                cpu: 0,
                stack,
                ..identity
            };
            self.count(identity, sample.weight, time);
        } else {
            self.count(identity, sample.weight, time);
        }
    }

    /// Adds one event to a row.
    fn count(&mut self, identity: Identity, weight: u64, time: u64) {
        if let Some(entry) = usize::try_from(identity.stack)
            .ok()
            .and_then(|id| self.stacks.get_mut(id))
        {
            entry.used = self.slice;
        }
        let time = self.clock.wall(time);
        let open = &mut self.open;
        let (first, last) = open.span.unwrap_or((time, time));
        open.span = Some((first.min(time), last.max(time)));
        let total = open.samples.entry(identity).or_default();
        total.count += 1;
        total.weight = total.weight.saturating_add(weight);
        if open.timestamps < self.limits.timestamps {
            open.timestamps += 1;
            total.timestamps.push(time);
        }
    }

    /// Reads what programs have written about the code that they generate. Samples that are added then find it. Says whether there may
    /// be more. With `last`, nothing that is there by now is missed.
    pub fn read_jits(&mut self, processes: &Processes, last: bool) -> bool {
        self.jits.read(processes, last)
    }

    /// Whether there are files that name generated code.
    pub fn follows_jits(&self) -> bool {
        self.jits.follows()
    }

    /// Keeps what is known of a process; answers the key that its samples are counted under.
    fn take_note_of(&mut self, process: &Process) -> Key {
        if let Some(info) = self.processes.get_mut(&process.key) {
            info.used = self.slice;
            // The name may change at any time, the program once it is known.
            if info.name != process.name || info.executable != process.executable {
                info.name.clone_from(&process.name);
                info.executable.clone_from(&process.executable);
            }
            return process.key;
        }
        if self.processes.len() < self.limits.processes {
            let info = ProcessInfo {
                pid: process.pid,
                start_ticks: process.start_ticks,
                name: process.name.clone(),
                executable: process.executable.clone(),
                origin: Origin::of(process.pid),
                used: self.slice,
            };
            self.processes.insert(process.key, info);
            return process.key;
        }
        self.counts.over_budget += 1;
        let others = self.processes.entry(OTHERS).or_insert_with(|| ProcessInfo {
            pid: 0,
            start_ticks: 0,
            name: "[too many processes]".into(),
            executable: String::new(),
            origin: Origin::default(),
            used: 0,
        });
        others.used = self.slice;
        OTHERS
    }

    /// Ends the open slice and begins another. The closed one is taken by [`Self::take`], best when [`Self::is_named`]; if one was
    /// closed already and not taken, they become one.
    pub fn close(&mut self) {
        let slice = std::mem::take(&mut self.open);
        // As large as the last one: slices of one host resemble each other.
        self.open
            .samples
            .reserve(slice.samples.len().min(self.limits.identities) / 2);
        self.closed = Some(match self.closed.take() {
            // Nothing is forgotten that it needs.
            Some(earlier) => earlier.join(slice),
            None => {
                self.forget();
                slice
            }
        });
        self.slice = self.slice.wrapping_add(1);
        self.locations.close_slice();
    }

    /// Samples that are added from now on have their times on the wall by this clock.
    pub const fn follow(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Whether a slice was closed and not taken.
    pub const fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Whether the closed slice has all the names that it will get.
    pub const fn is_named(&self) -> bool {
        self.locations.is_named()
    }

    /// Forgets what has not been of use lately; of crowded tables, all that is of no use to the open slice.
    fn forget(&mut self) {
        let is_crowded = self.is_crowded();
        let Self {
            locations,
            stacks,
            stack_ids,
            cache,
            processes,
            slice,
            ..
        } = self;
        for (_, entry) in stacks.iter().filter(|(_, entry)| entry.used == *slice) {
            for &frame in &entry.stack.frames {
                locations.mark(frame);
            }
        }
        let (keep_stacks, keep_locations) = if is_crowded {
            (0, 0)
        } else {
            (KEEP_STACKS, KEEP_LOCATIONS)
        };
        stacks.retain(|_, entry| {
            let stays = slice.wrapping_sub(entry.used) <= keep_stacks;
            if !stays {
                stack_ids.remove(&entry.stack);
            }
            stays
        });
        // Processes that come and go leave an entry each for the stacks that all of them have.
        cache.retain(|_, cached| {
            let is_there = usize::try_from(cached.stack).is_ok_and(|stack| stacks.contains(stack));
            is_there && slice.wrapping_sub(cached.used) <= keep_stacks
        });
        if is_crowded || slice.is_multiple_of(KEEP_STACKS) {
            locations.sweep(keep_locations);
        }
        processes.retain(|_, info| slice.wrapping_sub(info.used) <= KEEP_STACKS);
    }

    /// A request that has the kernel's names read before the first one is asked for.
    pub fn prepare_kernel(&mut self) -> Request {
        self.locations.prepare_kernel()
    }

    /// Hands out every request for names that is due; those that `send` gives back are kept for the next call.
    pub fn request_names(&mut self, send: impl FnMut(Request) -> Result<(), Request>) {
        self.locations.request_names(send);
    }

    /// Whether it is worth asking for names while sampling goes on: half of the locations have none. So few requests are made,
    /// as many as the number of locations doubles, and at the end at most half is left.
    pub fn wants_names(&self) -> bool {
        self.locations.mostly_unanswered()
    }

    /// Takes in names.
    pub fn name(&mut self, response: Response) {
        self.locations.name(response);
    }

    /// Whether names are still to come or to be asked for.
    pub fn waits_for_names(&self) -> bool {
        self.locations.waiting()
    }

    /// What happened so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// How the cache of locations did so far.
    pub const fn location_counts(&self) -> LocationCounts {
        self.locations.counts()
    }

    /// The closed slice as a profile, with the names known by now; if none is closed, everything since the last call.
    pub fn take(&mut self, capture: Capture, clock: &Clock) -> Profile {
        if self.closed.is_none() {
            self.close();
        }
        let slice = self.closed.take().unwrap_or_default();
        self.locations.name_late(&self.jits);
        let profile = snapshot::take(self, slice, capture, clock);
        self.jits.forget_ended();
        // Nobody needs what was in it any more.
        if self.is_crowded() {
            self.forget();
        }
        profile
    }

    /// Whether a table is half full: then there is no room for what has gone by.
    fn is_crowded(&self) -> bool {
        self.stacks.len() > self.limits.stacks / 2 || self.locations.len() > locations::MAX_LOCATIONS / 2
    }

    /// Two hashes of different keys, together too wide for two stacks to share by chance; the keys are drawn at start, so that no
    /// process can aim for it either.
    fn hash(&self, sample: &Sample<'_>, key: Key, generation: (u32, u32)) -> u128 {
        self.hashers.iter().fold(0, |hash, builder| {
            let mut hasher = builder.build_hasher();
            hasher.write_u32(key.0);
            hasher.write_u32(generation.0);
            hasher.write_u32(generation.1);
            hasher.write_u8(sample.outcome as u8);
            hasher.write_usize(sample.kernel.len());
            hasher.write(sample.kernel.0);
            hasher.write(sample.user.0);
            hash << 64 | u128::from(hasher.finish())
        })
    }

    /// Finds the stack of a sample the long way.
    fn resolve(
        &mut self,
        sample: &Sample<'_>,
        time: u64,
        hash: u128,
        process: &Process,
        processes: &mut Processes,
    ) -> u32 {
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        // Code that was replaced has the name of its time, and what is at its place now has another.
        let mut settled = true;
        for (depth, address) in sample.kernel.iter().enumerate() {
            frames.push(self.locations.kernel(call_site(depth, address)));
        }
        for word in sample.user.iter() {
            let frame = UserFrame::from_word(word);
            let place = processes.place(process, frame.address);
            let generated = match place {
                Place::Anonymous(..) => {
                    let runtime = self.jits.runtime(process.key);
                    let (function, is_there_still) = self.jits.find(process, frame.address, time);
                    settled &= is_there_still;
                    Generated { runtime, function }
                }
                Place::File(..) | Place::Unreadable { .. } | Place::Vdso(_) | Place::Nowhere => {
                    Generated::default()
                }
            };
            let location = self.locations.user(process.key, place, generated, frame);
            frames.push(location);
        }
        if !sample.outcome.is_complete() {
            frames.push(self.locations.marker(Marker::Incomplete(sample.outcome)));
        }
        let stack = Stack {
            frames: frames.as_slice().into(),
            outcome: sample.outcome,
        };
        self.frames = frames;

        if self.stacks.len() >= self.limits.stacks && !self.stack_ids.contains_key(&stack) {
            self.counts.over_budget += 1;
            let id = self.beyond(Marker::StackBudget);
            self.remember(hash, id);
            return id;
        }
        let id = self.stack(stack);
        if settled {
            self.remember(hash, id);
        }
        id
    }

    /// The number of a stack.
    fn stack(&mut self, stack: Stack) -> u32 {
        let Self {
            stacks,
            stack_ids,
            slice,
            ..
        } = self;
        *stack_ids.entry(stack).or_insert_with_key(|stack| {
            let id = stacks.insert(StackEntry {
                stack: stack.clone(),
                used: *slice,
            });
            u32::try_from(id).unwrap_or(u32::MAX)
        })
    }

    /// The stack of what has no room.
    fn beyond(&mut self, budget: Marker) -> u32 {
        let marker = self.locations.marker(budget);
        self.stack(Stack {
            frames: [marker].into(),
            outcome: Outcome::Complete,
        })
    }

    /// Finds this stack by its bytes the next time.
    fn remember(&mut self, hash: u128, stack: u32) {
        if self.cache.len() >= CACHE {
            self.cache.clear();
        }
        let used = self.slice;
        self.cache.insert(hash, Cached { stack, used });
    }
}

impl Slice {
    /// Both as one.
    fn join(mut self, later: Self) -> Self {
        for (identity, total) in later.samples {
            let sum = self.samples.entry(identity).or_default();
            sum.count += total.count;
            sum.weight = sum.weight.saturating_add(total.weight);
            sum.timestamps.extend(total.timestamps);
        }
        self.timestamps += later.timestamps;
        self.span = match (self.span, later.span) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (span, None) | (None, span) => span,
        };
        self
    }
}

/// Callers are known by their return address, which may already belong to the next line, or the next function: one byte before
/// it is the call. The leaf is where it is.
const fn call_site(depth: usize, address: u64) -> u64 {
    if depth == 0 {
        address
    } else {
        address.wrapping_sub(1)
    }
}

/// A user frame without its marks.
#[derive(Debug, Clone, Copy)]
struct UserFrame {
    /// Where it is: of a caller, inside its call.
    address: u64,
    /// Whether its caller was looked for by frame pointer.
    by_frame_pointer: bool,
}

impl UserFrame {
    const fn from_word(word: u64) -> Self {
        let address = word & !(BY_FRAME_POINTER | INTERRUPTED);
        Self {
            address: address.wrapping_sub((word & INTERRUPTED == 0) as u64),
            by_frame_pointer: word & BY_FRAME_POINTER != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use profiler_common::record::EventKind;

    use super::*;
    use crate::{profile::Language, sampling::record::Frames, symbols::Symbol, symbols::Symbols};

    /// Addresses as they lie in a ring.
    fn raw(addresses: &[u64]) -> Vec<u8> {
        addresses
            .iter()
            .flat_map(|address| address.to_ne_bytes())
            .collect()
    }

    fn capture() -> Capture {
        Capture {
            target: String::new(),
            command: String::new(),
            host: String::new(),
            start: 0,
            duration: 1,
            frequency: 99,
            clock: "cpu-clock",
            lost: BTreeMap::new(),
        }
    }

    struct Bench {
        aggregator: Aggregator,
        processes: Processes,
    }

    impl Bench {
        fn new(limits: Limits) -> Self {
            Self {
                aggregator: Aggregator::new(limits, Clock::SAME),
                processes: Processes::new(None),
            }
        }

        /// A sample of this very process, where nothing is mapped at small addresses.
        fn add(&mut self, tid: u32, kernel: &[u64], user: &[u64], outcome: Outcome, cpu: u32, time: u64) {
            let (kernel, user) = (raw(kernel), raw(user));
            let sample = Sample {
                kind: EventKind::Cpu,
                outcome,
                pid: std::process::id(),
                tid,
                weight: 10,
                comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
                kernel: Frames(&kernel),
                user: Frames(&user),
            };
            let process = std::sync::Arc::clone(self.processes.find(sample.pid));
            self.aggregator
                .add(&sample, cpu, time, &process, &mut self.processes);
        }

        fn take(&mut self) -> Profile {
            self.aggregator.take(capture(), &Clock::SAME)
        }
    }

    #[test]
    fn samples_of_one_identity_are_one_row_and_others_are_not() {
        let mut bench = Bench::new(Limits::default());
        bench.add(1, &[], &[16, 32], Outcome::Complete, 0, 30);
        bench.add(1, &[], &[16, 32], Outcome::Complete, 0, 20);
        bench.add(2, &[], &[16, 32], Outcome::Complete, 0, 21); // another thread
        bench.add(1, &[], &[16, 32], Outcome::Complete, 1, 22); // another CPU
        bench.add(1, &[], &[16, 48], Outcome::Complete, 0, 23); // another stack
        bench.add(1, &[], &[16, 32], Outcome::Truncated, 0, 24); // another end
        bench.add(1, &[16], &[32], Outcome::Complete, 0, 25); // the same words, but one is the kernel's
        let counts = bench.aggregator.counts();
        assert_eq!((counts.samples, counts.cache_hits, counts.complete), (7, 3, 6));
        let profile = bench.take();
        assert_eq!(profile.sample_count(), 7);
        assert_eq!(profile.samples.len(), 6);
        assert_eq!(profile.stacks.len(), 4);
        assert_eq!(profile.processes.len(), 1);
        let twice = profile.samples.iter().find(|sample| sample.count == 2).unwrap();
        assert_eq!(
            (twice.tid, twice.cpu, twice.weight, &twice.timestamps[..]),
            (1, 0, 20, &[20, 30][..])
        );
        // What was taken out is gone; the tables are still good.
        assert_eq!(bench.take().samples.len(), 0);
        bench.add(1, &[], &[16, 32], Outcome::Complete, 0, 40);
        assert_eq!(bench.take().sample_count(), 1);
    }

    #[test]
    fn a_stack_is_leaf_first_and_says_when_it_is_not_whole() {
        let mut bench = Bench::new(Limits::default());
        bench.add(
            1,
            &[0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020],
            &[16, 32],
            Outcome::Unreadable,
            0,
            1,
        );
        let profile = bench.take();
        let names: Vec<&str> = profile
            .frames(profile.samples[0].stack)
            .map(|frame| frame.name)
            .collect();
        // Nothing has been asked for names yet.
        assert_eq!(
            names,
            ["[kernel]", "[kernel]", "[unknown]", "[unknown]", "[unreadable]"]
        );
    }

    #[test]
    fn names_come_to_where_they_were_asked_for() {
        let mut bench = Bench::new(Limits::default());
        bench.add(1, &[0xffff_ffff_8100_0010], &[16], Outcome::Complete, 0, 1);
        assert!(bench.aggregator.waits_for_names());
        // A full queue keeps the request for the next time.
        bench.aggregator.request_names(Err);
        let mut requests = Vec::new();
        bench.aggregator.request_names(|request| {
            requests.push(request);
            Ok(())
        });
        assert_eq!(requests.len(), 1);
        let address = requests[0].addresses[0];
        let function = |name: &str| Symbol {
            name: name.into(),
            ..Symbol::default()
        };
        let symbols = vec![Symbols {
            address,
            functions: vec![function("inlined"), function("outer")],
            language: Language::Other,
            start: None,
        }];
        bench.aggregator.name(Response {
            id: requests[0].id,
            symbols,
            error: None,
        });
        assert!(!bench.aggregator.waits_for_names());
        let profile = bench.take();
        let frames: Vec<_> = profile
            .frames(profile.samples[0].stack)
            .map(|f| (f.name, f.inlined))
            .collect();
        assert_eq!(
            frames,
            [("inlined", true), ("outer", false), ("[unknown]", false)]
        );
    }

    #[test]
    fn beyond_its_budgets_it_still_counts() {
        let mut bench = Bench::new(Limits {
            stacks: 2,
            timestamps: 3,
            ..Limits::default()
        });
        for user in 1..=5 {
            bench.add(1, &[], &[user], Outcome::Complete, 0, user);
        }
        bench.add(1, &[], &[1], Outcome::Complete, 0, 6);
        assert_eq!(bench.aggregator.counts().over_budget, 3);
        let profile = bench.take();
        assert_eq!(profile.sample_count(), 6);
        assert!(
            profile.samples.iter().all(|sample| sample.timestamps.is_empty()),
            "one shape for all"
        );
        let over = profile.samples.iter().find(|sample| sample.count == 3).unwrap();
        let names: Vec<&str> = profile.frames(over.stack).map(|frame| frame.name).collect();
        assert_eq!(names, ["[too many distinct stacks]"]);
    }

    #[test]
    fn a_closed_slice_waits_for_its_own_names_only() {
        let mut bench = Bench::new(Limits::default());
        let mut requests = Vec::new();
        let ask = |bench: &mut Bench, requests: &mut Vec<Request>| {
            bench.aggregator.request_names(|request| {
                requests.push(request);
                Ok(())
            });
        };
        bench.add(1, &[0xffff_ffff_8100_0010], &[], Outcome::Complete, 0, 5);
        bench.aggregator.close();
        bench.add(1, &[0xffff_ffff_8100_0020], &[], Outcome::Complete, 0, 15);
        ask(&mut bench, &mut requests);
        assert!(bench.aggregator.is_closed() && !bench.aggregator.is_named());
        let name = |address: u64| Symbols {
            address,
            functions: vec![Symbol {
                name: format!("at_{address:x}").into(),
                ..Symbol::default()
            }],
            language: Language::Other,
            start: None,
        };
        // The names of the older address, then, with another answer, those of the younger one.
        let Request { id, addresses, .. } = requests.remove(0);
        bench.aggregator.name(Response {
            id,
            symbols: vec![name(addresses[0])],
            error: None,
        });
        assert!(bench.aggregator.is_named() && bench.aggregator.waits_for_names());
        let first = bench.take();
        assert_eq!((first.sample_count(), first.samples[0].timestamps[0]), (1, 5));
        let names = |profile: &Profile| -> Vec<String> {
            let frames = profile.frames(profile.samples[0].stack);
            frames.map(|frame| frame.name.to_owned()).collect()
        };
        assert_eq!(names(&first), ["at_ffffffff81000010"]);
        let second = bench.take();
        assert_eq!((second.sample_count(), second.samples[0].timestamps[0]), (1, 15));
        assert_eq!(names(&second), ["[kernel]"]);
        assert_eq!(bench.take().sample_count(), 0);
    }

    #[test]
    fn a_sample_that_waited_is_in_the_span_of_its_slice() {
        let mut bench = Bench::new(Limits::default());
        bench.add(1, &[], &[16], Outcome::Complete, 0, 70);
        bench.add(1, &[], &[16], Outcome::Complete, 0, 120);
        let capture = Capture {
            start: 100,
            duration: 10,
            ..capture()
        };
        let profile = bench.aggregator.take(capture, &Clock::SAME);
        assert_eq!((profile.capture.start, profile.capture.duration), (70, 51));
    }

    /// Hours of slices in which everything is new: stacks, addresses, processes.
    #[test]
    fn what_does_not_come_again_is_forgotten() {
        let limits = Limits {
            stacks: 1000,
            ..Limits::default()
        };
        let mut bench = Bench::new(limits);
        let mut most = (0, 0, 0);
        for slice in 0..2160_u64 {
            for sample in 0..20 {
                let address = 0x1000 * (slice * 20 + sample + 1);
                // A JIT of a process of its own, at new addresses each time.
                bench.add(1, &[], &[address, 16], Outcome::Complete, 0, slice);
            }
            // One that comes again and again keeps its place.
            bench.add(1, &[], &[48], Outcome::Complete, 0, slice);
            assert_eq!(bench.take().sample_count(), 21);
            let aggregator = &bench.aggregator;
            most.0 = most.0.max(aggregator.stacks.len());
            most.1 = most.1.max(aggregator.locations.len());
            most.2 = most.2.max(aggregator.cache.len());
            assert_eq!(aggregator.stacks.len(), aggregator.stack_ids.len());
        }
        assert!(most.0 <= 21 * 8, "{most:?}");
        assert!(most.1 <= 21 * 70, "{most:?}");
        assert!(most.2 <= 21 * 8, "{most:?}");
        assert_eq!(bench.aggregator.counts().over_budget, 0);
        assert_eq!(bench.aggregator.counts().cache_hits, 2159);
    }

    #[test]
    fn a_table_that_fills_up_makes_room_at_the_next_slice() {
        let limits = Limits {
            stacks: 100,
            identities: 50,
            ..Limits::default()
        };
        let mut bench = Bench::new(limits);
        for round in 0..3_u64 {
            for sample in 0..90 {
                let address = 0x1000 * (round * 90 + sample + 1);
                bench.add(1, &[], &[address], Outcome::Complete, 0, round);
            }
            let profile = bench.take();
            assert_eq!(profile.sample_count(), 90);
            // 50 identities, and one row for what is beyond.
            assert_eq!(profile.samples.len(), 51);
            let over = profile.samples.iter().find(|sample| sample.count == 40).unwrap();
            let names: Vec<&str> = profile.frames(over.stack).map(|frame| frame.name).collect();
            assert_eq!((over.tid, names), (0, vec!["[too many distinct samples]"]));
        }
    }
}
