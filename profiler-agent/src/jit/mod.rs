//! Names of code that is made at run time, from what the program writes down about it.
//!
//! ```text
//! /tmp/perf-PID.map   a line a function: start, size, name            node, java, python, .NET, php …
//! jit-PID.dump        a record a function, with the time it was made  node, java, LLVM …
//!        │ followed as they grow
//!        ▼
//!      Code: which function was at an address at a time ──▶ aggregate
//! ```
//!
//! A sample is looked up when it is taken in, in what had been written by then: an address that one function leaves and another takes
//! has the name of its time, and what is named stays named when the process ends. A dump says when code was made; of a line in a map
//! it is only known between which two looks it came, some 100 ms.
//!
//! Both files are the profiled program's own, and may hold anything. They are read in pieces with `pread`, never mapped, by parsers of
//! safe code with bounds on everything; nothing of them is executed or followed. So they are read here, where the times of samples
//! are at hand, and not in the symbolizer.

mod code;
mod dump;
mod follow;
mod locate;
mod perf_map;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

pub use self::{
    code::{Code, Function},
    follow::{Follower, Format},
};
use crate::{
    clock::{self, Clock},
    process::{Key, Process, Processes},
    profile::Runtime,
};

/// What all tables together may take: some 450,000 functions with names of 40 bytes.
const MOST_BYTES: usize = 64 << 20;

/// Bytes that are read at one look, of all files together; the rest has its turn at the next.
const MOST_READ: usize = 4 << 20;

/// Pieces that were replaced which samples go through within a [`TURN`], of all processes together: some 4 ms.
const MOST_SEARCHED: usize = 1 << 20;
/// How often that begins anew.
const TURN: Duration = Duration::from_millis(100);

/// How often a process that has generated code and no file yet is looked at again.
const SEARCH: Duration = Duration::from_secs(1);

/// Processes that are followed.
const MOST_PROCESSES: usize = 1024;

/// Dumps of one process; programs write one.
const MOST_DUMPS: usize = 16;

/// What is known about the generated code of all processes.
#[derive(Debug)]
pub struct Jits {
    jits: HashMap<Key, Jit>,
    /// Bytes of all tables.
    bytes: usize,
    /// Who was read last.
    last: Key,
    /// What is left of [`MOST_SEARCHED`], and since when.
    left: usize,
    turn: Instant,
    told_full: bool,
}

/// One process.
#[derive(Debug)]
struct Jit {
    pid: u32,
    start_ticks: u64,
    runtime: Runtime,
    code: Code,
    map: Option<Follower>,
    dumps: Vec<Follower>,
    searched: Option<Instant>,
    /// Changes of `code`.
    generation: u32,
    /// Whether what is wrong with its files has been told.
    told: bool,
}

impl Default for Jits {
    /// Knows nothing yet.
    fn default() -> Self {
        Self {
            jits: HashMap::new(),
            bytes: 0,
            last: Key(0),
            left: MOST_SEARCHED,
            turn: Instant::now(),
            told_full: false,
        }
    }
}

impl Jits {
    /// The function of a process at an address without a file, at a time of `CLOCK_MONOTONIC`, and whether it is there
    /// still: until the [generation](Self::generation) changes, the answer is the same for all later times. The first such address of a
    /// process has its files searched.
    pub fn find(&mut self, process: &Process, address: u64, time: u64) -> (Option<&Function>, bool) {
        if !self.jits.contains_key(&process.key) {
            if self.jits.len() >= MOST_PROCESSES {
                return (None, true);
            }
            self.jits.insert(process.key, Jit::new(process));
            self.look(process.key, Some(process), &mut MOST_READ.clone());
        }
        self.jits.get(&process.key).map_or((None, true), |jit| {
            let is_settled = jit.code.is_settled(address, time);
            (jit.code.at(address, time, &mut self.left), is_settled)
        })
    }

    /// What is at an address by now, for those that had no name in their time.
    pub fn find_late(&self, key: Key, address: u64) -> Option<&Function> {
        self.jits.get(&key)?.code.now(address)
    }

    /// What makes the code of a process, as far as that is known.
    pub fn runtime(&self, key: Key) -> Runtime {
        self.jits.get(&key).map_or(Runtime::Unknown, |jit| jit.runtime)
    }

    /// Changes with what is known of a process: addresses looked up under another number must be looked up again.
    pub fn generation(&self, key: Key) -> u32 {
        if self.jits.is_empty() {
            return 0;
        }
        self.jits.get(&key).map_or(0, |jit| jit.generation)
    }

    /// Reads what was written since the last call, as much as one look may take. Says whether there may be more. With `last`, new
    /// files are searched however short ago that was done.
    pub fn read(&mut self, processes: &Processes, last: bool) -> bool {
        if self.turn.elapsed() >= TURN {
            (self.left, self.turn) = (MOST_SEARCHED, Instant::now());
        }
        let mut keys: Vec<(u32, Key)> = self.jits.iter().map(|(key, jit)| (jit.pid, *key)).collect();
        // Each in its turn: one that writes without end must not keep the others waiting.
        keys.sort_unstable_by_key(|(_, key)| *key);
        let first = keys.partition_point(|(_, key)| *key <= self.last);
        keys.rotate_left(first);
        let mut left = MOST_READ;
        for (pid, key) in keys {
            if left == 0 {
                return true;
            }
            if last && let Some(jit) = self.jits.get_mut(&key) {
                jit.searched = None;
            }
            let process = processes.get(pid).filter(|process| process.key == key);
            self.look(key, process.map(Arc::as_ref), &mut left);
            self.last = key;
        }
        left == 0
    }

    /// Whether any process writes down what it generates.
    pub fn follows(&self) -> bool {
        self.jits
            .values()
            .any(|jit| jit.map.is_some() || !jit.dumps.is_empty())
    }

    /// Forgets the processes that have ended. To be called when what they were sampled in has its names.
    pub fn forget_ended(&mut self) {
        self.jits
            .retain(|_, jit| locate::is_alive(jit.pid, jit.start_ticks));
        self.bytes = self.jits.values().map(|jit| jit.code.bytes()).sum();
    }

    fn look(&mut self, key: Key, process: Option<&Process>, left: &mut usize) {
        // The wall clock may have been set since the last look.
        let (now, clock) = (clock::monotonic(), Clock::now());
        let Some(jit) = self.jits.get_mut(&key) else {
            return;
        };
        jit.search(process);
        let before = jit.code.bytes();
        let others = self.bytes.saturating_sub(before);
        jit.code.limit(MOST_BYTES.saturating_sub(others));
        let changes = jit.code.changes();
        for follower in jit.map.iter_mut().chain(&mut jit.dumps) {
            follower.read(&mut jit.code, left, now, &clock);
        }
        if jit.code.changes() != changes {
            jit.generation = jit.generation.wrapping_add(1);
        }
        jit.tell();
        self.bytes = others + jit.code.bytes();
        if jit.code.dropped() > 0 && !std::mem::replace(&mut self.told_full, true) {
            tracing::warn!(
                pid = jit.pid,
                "the names of generated code take more than {} MiB; functions beyond have none",
                MOST_BYTES >> 20
            );
        }
    }
}

impl Jit {
    fn new(process: &Process) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            runtime: locate::runtime(process),
            code: Code::default(),
            map: None,
            dumps: Vec::new(),
            searched: None,
            generation: 0,
            told: false,
        }
    }

    /// Looks for files that have come since, or that others have replaced.
    fn search(&mut self, process: Option<&Process>) {
        if self.searched.is_some_and(|searched| searched.elapsed() < SEARCH) {
            return;
        }
        self.searched = Some(Instant::now());
        if let Some(file) = locate::perf_map(self.pid, self.start_ticks)
            && self.map.as_ref().is_none_or(|map| !map.follows(&file))
        {
            self.map = Some(Follower::new(file, Format::PerfMap));
        }
        for file in process.into_iter().flat_map(locate::dumps) {
            if self.dumps.len() < MOST_DUMPS && !self.dumps.iter().any(|dump| dump.follows(&file)) {
                self.dumps.push(Follower::new(file, Format::Dump));
            }
        }
    }

    fn tell(&mut self) {
        if self.told {
            return;
        }
        let pid = self.pid;
        for follower in self.map.iter().chain(&self.dumps) {
            if let Some(reason) = follower.refused() {
                tracing::warn!(pid, reason, "generated code has no names from here on");
                self.told = true;
            } else if follower.bad() > 0 {
                tracing::debug!(
                    pid,
                    bad = follower.bad(),
                    "entries about generated code that cannot be read"
                );
                self.told = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_through_no_more_of_the_past_than_they_may() {
        const REPLACED: u64 = 50_000;
        let (mut jits, mut processes) = (Jits::default(), Processes::new(None));
        let process = Arc::clone(processes.find(std::process::id()));
        jits.find(&process, 0, 0);
        let code = &mut jits.jits.get_mut(&process.key).unwrap().code;
        code.limit(MOST_BYTES);
        code.insert(0, 10, "first", 0);
        for time in 1..=REPLACED {
            code.insert(100, 10, if time % 2 == 0 { "a" } else { "b" }, time);
        }
        code.insert(0, 10, "second", REPLACED + 1);
        let find = |jits: &mut Jits| jits.find(&process, 5, 0).0.unwrap().name.to_string();
        let first = (0..100).take_while(|_| find(&mut jits) == "first").count();
        assert_eq!(first, MOST_SEARCHED / usize::try_from(REPLACED).unwrap());
        assert_eq!(find(&mut jits), "second");
        std::thread::sleep(TURN);
        jits.read(&processes, false);
        assert_eq!(find(&mut jits), "first");
    }
}
