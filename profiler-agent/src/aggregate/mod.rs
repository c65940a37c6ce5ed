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

mod locations;
mod snapshot;

use std::hash::{BuildHasher as _, Hasher as _};

use hashbrown::{DefaultHashBuilder, HashMap};
use profiler_common::{
    Outcome,
    record::{BY_FRAME_POINTER, COMM_LEN, INTERRUPTED},
};

pub use self::locations::LocationCounts;
use self::locations::{Generated, Locations, Marker};
use crate::{
    clock::Clock,
    jit::Jits,
    process::{Key, Place, Process, Processes},
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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stacks: 100_000,
            timestamps: 4_000_000,
        }
    }
}

/// Entries of the cache of raw stacks, 20 bytes each; when full it begins anew.
const CACHE: usize = 65_536;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Aggregator {
    limits: Limits,
    locations: Locations,
    /// Names of generated code.
    jits: Jits,
    stacks: Vec<Stack>,
    stack_ids: HashMap<Stack, u32>,
    /// Hash of a raw stack and whose it is, to the stack.
    cache: HashMap<u128, u32>,
    hashers: [DefaultHashBuilder; 2],
    processes: HashMap<Key, ProcessInfo>,
    samples: HashMap<Identity, Total>,
    /// Timestamps in `samples`.
    timestamps: usize,
    /// Spare room for the frames of a new stack.
    frames: Vec<LocationId>,
    counts: Counts,
}

/// What the aggregator counts about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples taken in.
    pub samples: u64,
    /// Those whose stack was in the cache.
    pub cache_hits: u64,
    /// Those beyond the budget of stacks, counted without theirs.
    pub over_budget: u64,
    /// Those with a complete user stack, or without any.
    pub complete: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stack {
    frames: Box<[LocationId]>,
    outcome: Outcome,
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
}

impl Aggregator {
    /// Empty.
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self {
            limits,
            locations: Locations::default(),
            jits: Jits::new(clock),
            stacks: Vec::new(),
            stack_ids: HashMap::new(),
            cache: HashMap::new(),
            hashers: Default::default(),
            processes: HashMap::new(),
            samples: HashMap::new(),
            timestamps: 0,
            frames: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Adds a sample of `process` taken on `cpu` at `time`, nanoseconds since the Unix epoch.
    pub fn add(
        &mut self,
        sample: &Sample<'_>,
        cpu: u32,
        time: u64,
        process: &Process,
        processes: &mut Processes,
    ) {
        let (key, generation) = (process.key, process.generation());
        match self.processes.get_mut(&key) {
            // The name may change at any time, the program once it is known.
            Some(info) if info.name == process.name && info.executable == process.executable => {}
            _ => {
                self.processes.insert(
                    key,
                    ProcessInfo {
                        pid: process.pid,
                        start_ticks: process.start_ticks,
                        name: process.name.clone(),
                        executable: process.executable.clone(),
                    },
                );
            }
        }
        self.counts.samples += 1;
        self.counts.complete += u64::from(sample.outcome.is_complete());

        let generation = (generation, self.jits.generation(key));
        let hash = self.hash(sample, key, generation);
        let stack = match self.cache.get(&hash) {
            Some(&stack) => {
                self.counts.cache_hits += 1;
                stack
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
        let total = self.samples.entry(identity).or_default();
        total.count += 1;
        total.weight = total.weight.saturating_add(sample.weight);
        if self.timestamps < self.limits.timestamps {
            self.timestamps += 1;
            total.timestamps.push(time);
        }
    }

    /// Reads what programs have written about the code that they generate. Samples that are added then find it. Says whether there may
    /// be more. With `last`, nothing that is there by now is missed.
    pub fn read_jits(&mut self, processes: &Processes, last: bool) -> bool {
        self.jits.read(processes, last)
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

    /// Everything since the last call as a profile, with the names known by now.
    pub fn take(&mut self, capture: Capture, clock: &Clock) -> Profile {
        self.locations.name_late(&self.jits);
        let profile = snapshot::take(self, capture, clock);
        self.jits.forget_ended();
        profile
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
        for (depth, address) in sample.kernel.iter().enumerate() {
            frames.push(self.locations.kernel(call_site(depth, address)));
        }
        for word in sample.user.iter() {
            let frame = UserFrame::from_word(word);
            let place = processes.place(process, frame.address);
            let generated = match place {
                Place::Anonymous(..) => Generated {
                    runtime: self.jits.runtime(process.key),
                    function: self.jits.find(process, frame.address, time),
                },
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
        let mut stack = Stack {
            frames: frames.as_slice().into(),
            outcome: sample.outcome,
        };
        self.frames = frames;

        if self.stacks.len() >= self.limits.stacks && !self.stack_ids.contains_key(&stack) {
            self.counts.over_budget += 1;
            let marker = self.locations.marker(Marker::StackBudget);
            stack = Stack {
                frames: [marker].into(),
                outcome: Outcome::Complete,
            };
        }
        let stacks = &mut self.stacks;
        let id = *self.stack_ids.entry(stack).or_insert_with_key(|stack| {
            stacks.push(stack.clone());
            u32::try_from(stacks.len() - 1).unwrap_or(u32::MAX)
        });
        if self.cache.len() >= CACHE {
            self.cache.clear();
        }
        self.cache.insert(hash, id);
        id
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
                aggregator: Aggregator::new(limits, Clock::now()),
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
            self.aggregator.take(capture(), &Clock::now())
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
}
