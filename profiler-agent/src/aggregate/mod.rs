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
use profiler_common::{Outcome, record::COMM_LEN};

use self::locations::{Locations, Marker};
use crate::{
    process::{Key, Processes},
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
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            locations: Locations::default(),
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

    /// Adds a sample taken on `cpu` at `time`, nanoseconds since the Unix epoch.
    pub fn add(&mut self, sample: &Sample<'_>, cpu: u32, time: u64, processes: &mut Processes) {
        let process = processes.find(sample.pid);
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

        let hash = self.hash(sample, key, generation);
        let stack = match self.cache.get(&hash) {
            Some(&stack) => {
                self.counts.cache_hits += 1;
                stack
            }
            None => self.resolve(sample, hash, key, processes),
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

    /// A request that has the kernel's names read before the first one is asked for.
    pub fn prepare_kernel(&mut self) -> Request {
        self.locations.prepare_kernel()
    }

    /// Hands out every request for names that is due; those that `send` gives back are kept for the next call.
    pub fn request_names(&mut self, send: impl FnMut(Request) -> Result<(), Request>) {
        self.locations.request_names(send);
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

    /// Everything since the last call as a profile, with the names known by now.
    pub fn take(&mut self, capture: Capture, clock: &crate::clock::Clock) -> Profile {
        snapshot::take(self, capture, clock)
    }

    /// Two hashes of different keys, together too wide for two stacks to share by chance; the keys are drawn at start, so that no
    /// process can aim for it either.
    fn hash(&self, sample: &Sample<'_>, key: Key, generation: u32) -> u128 {
        self.hashers.iter().fold(0, |hash, builder| {
            let mut hasher = builder.build_hasher();
            hasher.write_u32(key.0);
            hasher.write_u32(generation);
            hasher.write_u8(sample.outcome as u8);
            hasher.write_usize(sample.kernel.len());
            hasher.write(sample.kernel.0);
            hasher.write(sample.user.0);
            hash << 64 | u128::from(hasher.finish())
        })
    }

    /// Finds the stack of a sample the long way.
    fn resolve(&mut self, sample: &Sample<'_>, hash: u128, key: Key, processes: &mut Processes) -> u32 {
        let mut frames = std::mem::take(&mut self.frames);
        frames.clear();
        for (depth, address) in sample.kernel.iter().enumerate() {
            frames.push(self.locations.kernel(call_site(depth, address)));
        }
        for (depth, address) in sample.user.iter().enumerate() {
            let address = call_site(depth, address);
            let place = processes.place(sample.pid, address);
            frames.push(self.locations.user(key, place, address));
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
