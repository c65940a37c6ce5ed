//! The last hour of profiles, in bounded memory: what a flamegraph of the time before somebody asked is drawn from.
//!
//! ```text
//!          block                        block                     open block
//! ┌──────────────────────────┬──────────────────────────┬────────────────────────┐
//! │ names, stacks, processes │ names, stacks, processes │ names, stacks, …       │
//! │ slice │ slice │ …        │ slice │ slice │ …        │ slice │ ◀── newest     │
//! └──────────────────────────┴──────────────────────────┴────────────────────────┘
//!   ▲ forgotten first
//! ```
//! A slice is what the capture hands out every few seconds; its samples are columns of numbers, 4 bytes for the time of one. Rows that slices
//! have in common, nearly all of them, are there once a block, and a block is forgotten as a whole, when it is beyond the age or the bytes
//! that were asked for.
//!
//! Time is that of the wall clock. When it is set back, what was taken by the clock that was ahead lies in the future: it would be the newest for as long as
//! the clock was ahead, so it is forgotten too.

pub mod folder;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use regex::Regex;

use crate::{
    export::{folded::Folded, span::Span},
    profile::{
        Capture, Kind, Process, ProcessId, Profile, Sample, StackId, StringId,
        tables::{Tables, Translation},
    },
    telemetry::Loss,
};

/// Blocks that the whole of a history is made of, about: so much of it at most is forgotten at once.
const BLOCKS: u32 = 12;
/// How far a slice may reach beyond the end of one that came later: clocks are adjusted by as much.
const ADJUSTED: Duration = Duration::from_secs(5);

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// No older than this.
    pub age: Duration,
    /// No more bytes than this, about.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(3600),
            bytes: 64 << 20,
        }
    }
}

/// See the [module documentation](self).
#[derive(Debug)]
pub struct History {
    limits: Limits,
    blocks: VecDeque<Arc<Block>>,
    open: Open,
    /// Of the slices, without their time and their losses.
    capture: Capture,
    /// Samples that were forgotten.
    forgotten: u64,
}

/// A block that slices come into.
#[derive(Debug)]
struct Open {
    tables: Tables,
    slices: Vec<Arc<Slice>>,
    slice_bytes: usize,
}

/// What was kept of the time before a history began, the youngest slice first: becomes blocks, to be [put before](History::put_before) it.
#[derive(Debug)]
pub struct Past {
    limits: Limits,
    open: Open,
}

/// Slices whose rows are in the same tables.
#[derive(Debug)]
pub struct Block {
    tables: Profile,
    slices: Vec<Arc<Slice>>,
    bytes: usize,
    /// All of it, for pictures; it never changes.
    folded: OnceLock<Arc<Folded>>,
}

/// A span of time.
#[derive(Debug)]
struct Slice {
    /// Of the capture, without its texts: nanoseconds since the Unix epoch, and how many.
    start: u64,
    duration: u64,
    lost: BTreeMap<Loss, u64>,
    rows: Box<[Row]>,
    /// Times of the samples of all rows, one after the other: microseconds since the start.
    times: Box<[u32]>,
    samples: u64,
}

/// Samples of one identity.
#[derive(Debug, Clone, Copy)]
struct Row {
    process: ProcessId,
    tid: u32,
    thread_name: StringId,
    cpu: u32,
    stack: StackId,
    /// Number of samples, and of times, which is 0 where they were too many.
    count: u32,
    times: u32,
    /// Nanoseconds of one.
    weight: u64,
}

/// Which samples an answer is made of.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Nanoseconds since the Unix epoch; samples without a time of their own have that of their slice's start.
    pub range: Option<Range<u64>>,
    /// Of one of these processes; empty is all.
    pub pids: Vec<u32>,
    /// Of processes of this name.
    pub process_name: Option<String>,
    /// Of processes in this container, by its id or the start of it.
    pub container: Option<String>,
    /// Of processes of this service.
    pub service: Option<String>,
    /// Of threads of this name, or this id.
    pub thread: Option<String>,
    /// On this CPU.
    pub cpu: Option<u32>,
    /// Of stacks with a function whose name this finds.
    pub function: Option<Regex>,
}

/// CPU time over time, by process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// What it covers, nanoseconds since the Unix epoch.
    pub range: Range<u64>,
    /// In how many parts of the same length.
    pub bars: usize,
    /// Who used most, most first, with nanoseconds of CPU time in each part.
    pub processes: Vec<(Share, Vec<u64>)>,
    /// All others.
    pub others: Vec<u64>,
}

/// What there is of a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its samples.
    pub samples: u64,
    /// Their weight, nanoseconds of CPU time.
    pub weight: u64,
}

impl History {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            blocks: VecDeque::new(),
            open: Open::new(),
            capture: blank(),
            forgotten: 0,
        }
    }

    /// The same as it is now, to be asked while slices go on coming in: what is closed is shared, what is open is copied.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let mut blocks = self.blocks.clone();
        blocks.push_back(Arc::new(Block {
            tables: self.open.tables.profile().clone(),
            slices: self.open.slices.clone(),
            bytes: self.open.bytes(),
            folded: OnceLock::new(),
        }));
        Self {
            limits: self.limits,
            blocks,
            open: Open::new(),
            capture: self.capture.clone(),
            forgotten: self.forgotten,
        }
    }

    /// How much is kept.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes in a slice, which is younger than all others. Those that lie in its future are forgotten.
    pub fn push(&mut self, profile: &Profile) {
        self.capture = described(&profile.capture);
        // Its start says less: it is that of a sample that may have waited for long.
        let end = profile.capture.start.saturating_add(profile.capture.duration);
        self.forget_future(end);
        self.open.push(profile);
        if self.open.has_its_share(&self.limits) {
            self.blocks.push_back(Arc::new(self.open.close()));
        }
        self.forget(end);
    }

    /// Puts a block before all others, if there is room for it; for one that is older still there is none then either.
    pub fn put_before(&mut self, block: Block) -> bool {
        let youngest = self.span().map_or_else(|| block.end(), |span| span.end);
        let is_too_old = block.end() < youngest.saturating_sub(nanos(self.limits.age));
        // What comes in is not to push it out again at once.
        let most = self.limits.bytes - self.limits.bytes / BLOCKS as usize;
        if is_too_old || self.bytes() + block.bytes() > most {
            return false;
        }
        if self.capture.target.is_empty() {
            self.capture = block.tables.capture.clone();
        }
        self.blocks.push_front(Arc::new(block));
        true
    }

    fn forget(&mut self, end: u64) {
        let oldest = end.saturating_sub(nanos(self.limits.age));
        while let Some(block) = self.blocks.front() {
            if block.end() >= oldest && self.bytes() <= self.limits.bytes {
                return;
            }
            self.forgotten += samples(&block.slices);
            self.blocks.pop_front();
        }
    }

    /// Forgets what was taken by a clock that was ahead of what is now the time.
    fn forget_future(&mut self, now: u64) {
        let Self {
            blocks,
            open,
            forgotten,
            ..
        } = self;
        let mut is_ahead = |slices: &[Arc<Slice>]| {
            let is_ahead = is_ahead(end(slices), now);
            if is_ahead {
                *forgotten += samples(slices);
            }
            is_ahead
        };
        blocks.retain(|block| !is_ahead(&block.slices));
        if is_ahead(&open.slices) {
            *open = Open::new();
        }
    }

    /// Bytes of all, about.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes()).sum::<usize>() + self.open.bytes()
    }

    /// Samples that are there.
    pub fn samples(&self) -> u64 {
        self.slices().map(|slice| slice.samples).sum()
    }

    /// Samples that were forgotten.
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// From the first start of a slice to the last end of one, nanoseconds since the Unix epoch; `None` before the first slice.
    pub fn span(&self) -> Option<Range<u64>> {
        let start = self.slices().map(|slice| slice.start).min()?;
        let end = self.slices().map(|slice| slice.end()).max()?;
        Some(start..end)
    }

    fn slices(&self) -> impl Iterator<Item = &Arc<Slice>> {
        let closed = self.blocks.iter().flat_map(|block| &block.slices);
        closed.chain(&self.open.slices)
    }

    /// Every table with its slices that are in a range.
    fn blocks<'a>(&'a self, range: &'a Range<u64>) -> impl Iterator<Item = (&'a Profile, Vec<&'a Slice>)> {
        let closed = self
            .blocks
            .iter()
            .map(|block| (&block.tables, block.slices.as_slice()));
        closed
            .chain([(self.open.tables.profile(), self.open.slices.as_slice())])
            .map(|(tables, slices)| {
                let within = slices.iter().filter(|slice| slice.is_in(range));
                (tables, within.map(|slice| &**slice).collect::<Vec<_>>())
            })
            .filter(|(_, slices)| !slices.is_empty())
    }

    /// Which time an answer really covers, and what was lost in it: that of the slices that it is made of.
    fn capture(&self, query: &Query) -> Capture {
        let everything = self.span().unwrap_or_default();
        let range = query.range();
        let mut capture = Capture {
            start: everything.start.max(range.start).min(everything.end),
            ..self.capture.clone()
        };
        capture.duration = everything.end.min(range.end).saturating_sub(capture.start);
        for slice in self.blocks(&range).flat_map(|(_, slices)| slices) {
            for (&reason, count) in &slice.lost {
                *capture.lost.entry(reason).or_default() += count;
            }
        }
        capture
    }

    /// The samples that are asked for, for pictures: without their times, threads and CPUs. What is asked for as it was kept is added up once,
    /// for all who ask.
    pub fn folded(&self, query: &Query) -> Span {
        let range = query.range();
        let open = (self.open.tables.profile(), self.open.slices.as_slice(), None);
        let closed = self.blocks.iter();
        let closed = closed.map(|block| (&block.tables, block.slices.as_slice(), Some(block)));
        let mut parts = Vec::new();
        for (tables, slices, block) in closed.chain([open]) {
            let is_whole = slices.iter().all(|slice| slice.is_within(&range));
            if let Some(block) = block.filter(|_| is_whole && query.is_of_everybody()) {
                parts.push(block.folded());
                continue;
            }
            let wanted = Wanted::new(query, tables);
            let mut sums: hashbrown::HashMap<(ProcessId, StackId), u64> = hashbrown::HashMap::new();
            for slice in slices.iter().filter(|slice| slice.is_in(&range)) {
                for (row, times) in slice.rows().filter(|(row, _)| wanted.has(row)) {
                    let count = slice.count(row, times, &range);
                    if count > 0 {
                        *sums.entry((row.process, row.stack)).or_default() += count;
                    }
                }
            }
            if !sums.is_empty() {
                let counts = sums
                    .into_iter()
                    .map(|((process, stack), count)| (process, stack, count));
                parts.push(Arc::new(Folded::of(tables, Kind::Cpu, counts)));
            }
        }
        Span {
            capture: self.capture(query),
            parts,
        }
    }

    /// What adds up closed blocks, so that nobody who asks has to wait for it; to be done while slices go on coming in.
    pub fn preparation(&self) -> impl FnOnce() + use<> {
        let blocks = self.blocks.clone();
        move || {
            for block in blocks {
                block.folded();
            }
        }
    }

    /// Names and pids of processes that are asked for, whenever they were.
    pub fn processes(&self, query: &Query) -> Vec<(u32, String)> {
        let range = query.range();
        let mut names: Vec<(u32, String)> = Vec::new();
        for (tables, _) in self.blocks(&range) {
            for process in tables
                .processes
                .iter()
                .filter(|process| query.wants_process(tables, process))
            {
                let name = (process.pid, tables.string(process.name).to_owned());
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// The samples that are asked for. Its capture says which time it really covers, and what was lost in it.
    pub fn profile(&self, query: &Query) -> Profile {
        let range = query.range();
        let mut to = Tables::new(blank());
        let mut samples: hashbrown::HashMap<Identity, Sample> = hashbrown::HashMap::new();
        for (tables, slices) in self.blocks(&range) {
            let wanted = Wanted::new(query, tables);
            let mut translation = Translation::new(tables);
            for slice in slices {
                for (row, times) in slice.rows().filter(|(row, _)| wanted.has(row)) {
                    let count = slice.count(row, times, &range);
                    if count == 0 {
                        continue;
                    }
                    let sample = Sample {
                        kind: Kind::Cpu,
                        process: translation.process(&mut to, row.process),
                        tid: row.tid,
                        thread_name: translation.string(&mut to, row.thread_name),
                        cpu: row.cpu,
                        stack: translation.stack(&mut to, row.stack),
                        count,
                        weight: count * row.weight,
                        timestamps: Vec::new(),
                    };
                    let twin = add(&mut samples, sample);
                    let times = times.iter().map(|&time| slice.time(time));
                    twin.timestamps.extend(times.filter(|time| range.contains(time)));
                }
            }
        }
        let mut profile = to.finish();
        profile.samples = samples.into_values().collect();
        // The same question has the same answer.
        profile.samples.sort_unstable_by_key(Identity::of);
        let timed = profile
            .samples
            .iter()
            .all(|sample| sample.timestamps.len() as u64 == sample.count);
        if !timed {
            for sample in &mut profile.samples {
                sample.timestamps.clear();
            }
        }
        profile.capture = self.capture(query);
        profile
    }

    /// Who has used the CPUs in the range of a query, who used most first.
    pub fn shares(&self, query: &Query) -> Vec<Share> {
        let range = query.range();
        let mut shares: BTreeMap<(u32, &str), (u64, u64)> = BTreeMap::new();
        for (tables, slices) in self.blocks(&range) {
            let wanted = Wanted::new(query, tables);
            for slice in slices {
                for (row, times) in slice.rows().filter(|(row, _)| wanted.has(row)) {
                    let Some(process) = tables.processes.get(row.process.index()) else {
                        continue;
                    };
                    let count = slice.count(row, times, &range);
                    let share = shares
                        .entry((process.pid, tables.string(process.name)))
                        .or_default();
                    share.0 += count;
                    share.1 += count * row.weight;
                }
            }
        }
        let mut shares: Vec<Share> = shares
            .into_iter()
            .filter(|(_, (samples, _))| *samples > 0)
            .map(|((pid, name), (samples, weight))| Share {
                pid,
                name: name.to_owned(),
                samples,
                weight,
            })
            .collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.weight));
        shares
    }

    /// CPU time over the range of a query, in so many parts, of those processes that used most and of all others together.
    pub fn timeline(&self, query: &Query, bars: usize, most: usize) -> Timeline {
        let span = self.span().unwrap_or_default();
        let asked = query.range();
        let range = span.start.max(asked.start)..span.end.min(asked.end);
        let length = range.end.saturating_sub(range.start).max(1);
        let bars = bars.max(1);
        let bar = |time: u64| {
            let bar = u128::from(time.saturating_sub(range.start)) * bars as u128 / u128::from(length);
            usize::try_from(bar).unwrap_or(bars).min(bars - 1)
        };
        let mut shares = self.shares(query);
        shares.truncate(most);
        let rank: HashMap<(u32, &str), usize> = (0..)
            .zip(&shares)
            .map(|(rank, share)| ((share.pid, share.name.as_str()), rank))
            .collect();
        // The last one is that of all others.
        let mut lists = vec![vec![0_u64; bars]; shares.len() + 1];
        for (tables, slices) in self.blocks(&range) {
            let wanted = Wanted::new(query, tables);
            let ranks: Vec<usize> = tables
                .processes
                .iter()
                .map(|process| rank.get(&(process.pid, tables.string(process.name))))
                .map(|rank| rank.copied().unwrap_or(shares.len()))
                .collect();
            for slice in slices {
                for (row, times) in slice.rows().filter(|(row, _)| wanted.has(row)) {
                    let rank = ranks.get(row.process.index()).copied().unwrap_or(shares.len());
                    let Some(list) = lists.get_mut(rank) else { continue };
                    let mut add = |time: u64, count: u64| {
                        if let (true, Some(sum)) = (range.contains(&time), list.get_mut(bar(time))) {
                            *sum += count * row.weight;
                        }
                    };
                    if row.times == 0 {
                        add(slice.start, row.count.into());
                    }
                    for &time in times {
                        add(slice.time(time), 1);
                    }
                }
            }
        }
        let others = lists.pop().unwrap_or_default();
        Timeline {
            range,
            bars,
            processes: shares.into_iter().zip(lists).collect(),
            others,
        }
    }
}

impl Open {
    fn new() -> Self {
        Self {
            tables: Tables::new(blank()),
            slices: Vec::new(),
            slice_bytes: 0,
        }
    }

    /// Takes in a slice.
    fn push(&mut self, profile: &Profile) {
        let mut translation = Translation::new(profile);
        let start = profile.capture.start;
        let mut times = Vec::new();
        let rows = profile.samples.iter().map(|sample| {
            times.extend(sample.timestamps.iter().map(|time| {
                // A slice that lasts longer than an hour has its last samples there.
                u32::try_from(time.saturating_sub(start) / 1000).unwrap_or(u32::MAX)
            }));
            let count = u32::try_from(sample.count).unwrap_or(u32::MAX);
            Row {
                process: translation.process(&mut self.tables, sample.process),
                tid: sample.tid,
                thread_name: translation.string(&mut self.tables, sample.thread_name),
                cpu: sample.cpu,
                stack: translation.stack(&mut self.tables, sample.stack),
                count,
                times: u32::try_from(sample.timestamps.len()).unwrap_or(u32::MAX),
                weight: sample.weight.checked_div(sample.count).unwrap_or_default(),
            }
        });
        let rows: Box<[Row]> = rows.collect();
        self.slice_bytes += rows.len() * size_of::<Row>() + times.len() * size_of::<u32>();
        self.slices.push(Arc::new(Slice {
            start,
            duration: profile.capture.duration,
            lost: profile.capture.lost.clone(),
            rows,
            times: times.into(),
            samples: profile.sample_count(),
        }));
    }

    /// Bytes of it, about.
    const fn bytes(&self) -> usize {
        self.tables.bytes() + self.slice_bytes
    }

    /// Whether it has as much of a history as a block is to have.
    fn has_its_share(&self, limits: &Limits) -> bool {
        let share = nanos(limits.age) / u64::from(BLOCKS);
        let begin = self.slices.iter().map(|slice| slice.start).min();
        let length = end(&self.slices).saturating_sub(begin.unwrap_or_default());
        length >= share || self.bytes() > limits.bytes / BLOCKS as usize
    }

    /// The block that has come of it; what follows begins another one.
    fn close(&mut self) -> Block {
        let Self {
            tables,
            slices,
            slice_bytes,
        } = std::mem::replace(self, Self::new());
        Block {
            bytes: tables.bytes() + slice_bytes,
            tables: tables.finish(),
            slices,
            folded: OnceLock::new(),
        }
    }
}

impl Past {
    /// Nothing yet, of a history that may be so large.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Open::new(),
        }
    }

    /// Takes in a slice, which is older than all others; answers a block that is ready.
    pub fn push(&mut self, profile: &Profile) -> Option<Block> {
        self.open.push(profile);
        if !self.open.has_its_share(&self.limits) {
            return None;
        }
        self.close(described(&profile.capture))
    }

    /// The last block: nothing is older.
    pub fn finish(mut self) -> Option<Block> {
        self.close(blank())
    }

    fn close(&mut self, capture: Capture) -> Option<Block> {
        if self.open.slices.is_empty() {
            return None;
        }
        let mut block = self.open.close();
        block.slices.reverse();
        block.tables.capture = capture;
        block.folded();
        Some(block)
    }
}

impl Block {
    /// When the last of its slices ended.
    fn end(&self) -> u64 {
        end(&self.slices)
    }

    fn bytes(&self) -> usize {
        self.bytes + self.folded.get().map_or(0, |folded| folded.bytes())
    }

    /// All of it.
    fn folded(&self) -> Arc<Folded> {
        let folded = self.folded.get_or_init(|| {
            let rows = self.slices.iter().flat_map(|slice| slice.rows.iter());
            let counts = rows.map(|row| (row.process, row.stack, row.count.into()));
            Arc::new(Folded::of(&self.tables, Kind::Cpu, counts))
        });
        Arc::clone(folded)
    }
}

impl Slice {
    /// When it ended.
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.duration)
    }

    /// Whether some of it is in a range.
    fn is_in(&self, range: &Range<u64>) -> bool {
        self.start < range.end && self.start.saturating_add(self.duration.max(1)) > range.start
    }

    /// Whether all of it is.
    const fn is_within(&self, range: &Range<u64>) -> bool {
        range.start <= self.start && self.end() < range.end
    }

    /// Its rows, each with the times of its samples.
    fn rows(&self) -> impl Iterator<Item = (&Row, &[u32])> {
        let mut at = 0_usize;
        self.rows.iter().map(move |row| {
            let end = at.saturating_add(row.times as usize);
            let times = self.times.get(at..end).unwrap_or_default();
            at = end;
            (row, times)
        })
    }

    /// Nanoseconds since the Unix epoch.
    const fn time(&self, micros: u32) -> u64 {
        self.start + micros as u64 * 1000
    }

    /// Samples of a row in a range.
    fn count(&self, row: &Row, times: &[u32], range: &Range<u64>) -> u64 {
        if row.times == 0 {
            return if range.contains(&self.start) {
                row.count.into()
            } else {
                0
            };
        }
        if self.is_within(range) {
            return times.len() as u64;
        }
        let within = |&&time: &&u32| range.contains(&self.time(time));
        times.iter().filter(within).count() as u64
    }
}

/// Which rows of a table are asked for, whenever they were: what is the same for many of them is found out once.
struct Wanted<'a> {
    query: &'a Query,
    tables: &'a Profile,
    processes: Vec<bool>,
    stacks: Option<Vec<bool>>,
}

impl<'a> Wanted<'a> {
    fn new(query: &'a Query, tables: &'a Profile) -> Self {
        let processes = tables.processes.iter();
        Self {
            query,
            tables,
            processes: processes
                .map(|process| query.wants_process(tables, process))
                .collect(),
            stacks: query
                .function
                .as_ref()
                .map(|function| with_function(tables, function)),
        }
    }

    fn has(&self, row: &Row) -> bool {
        let is = |list: &[bool], place: usize| list.get(place).copied().unwrap_or_default();
        is(&self.processes, row.process.index())
            && self
                .stacks
                .as_ref()
                .is_none_or(|stacks| is(stacks, row.stack.index()))
            && self.query.cpu.is_none_or(|cpu| cpu == row.cpu)
            && self.query.thread.as_ref().is_none_or(|thread| {
                thread == self.tables.string(row.thread_name) || thread.parse() == Ok(row.tid)
            })
    }
}

impl Query {
    fn range(&self) -> Range<u64> {
        self.range.clone().unwrap_or(0..u64::MAX)
    }

    /// Whether nothing is asked for but a time.
    fn is_of_everybody(&self) -> bool {
        let Self {
            range: _,
            pids,
            process_name,
            container,
            service,
            thread,
            cpu,
            function,
        } = self;
        let words = [process_name, container, service, thread];
        pids.is_empty() && cpu.is_none() && function.is_none() && words.iter().all(|word| word.is_none())
    }

    fn wants_process(&self, tables: &Profile, process: &Process) -> bool {
        let name = tables.string(process.name);
        (self.pids.is_empty() || self.pids.contains(&process.pid))
            && self.process_name.as_ref().is_none_or(|wanted| wanted == name)
            && self
                .service
                .as_ref()
                .is_none_or(|service| service == tables.string(process.service))
            && self
                .container
                .as_ref()
                .is_none_or(|id| is_in_container(tables, process, id))
    }
}

/// Which stacks have a function whose name is found.
fn with_function(tables: &Profile, wanted: &Regex) -> Vec<bool> {
    let is = |list: &[bool], place: usize| list.get(place).copied().unwrap_or_default();
    let names: Vec<bool> = tables.strings.iter().map(|name| wanted.is_match(name)).collect();
    let functions: Vec<bool> = tables
        .functions
        .iter()
        .map(|function| is(&names, function.name.index()))
        .collect();
    let locations: Vec<bool> = tables
        .locations
        .iter()
        .map(|location| {
            let mut lines = location.lines.iter();
            lines.any(|line| is(&functions, line.function.index()))
        })
        .collect();
    let stacks = tables.stacks.iter();
    stacks
        .map(|stack| stack.frames.iter().any(|frame| is(&locations, frame.index())))
        .collect()
}

/// Whether a process is in the container of this id, of which the start is enough, as everywhere.
fn is_in_container(tables: &Profile, process: &Process, id: &str) -> bool {
    let mut attributes = process.attributes.iter();
    let container = attributes.find(|(key, _)| tables.string(*key) == "container.id");
    container.is_some_and(|(_, own)| !id.is_empty() && tables.string(*own).starts_with(id))
}

/// What tells samples apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Identity {
    process: ProcessId,
    tid: u32,
    thread_name: StringId,
    cpu: u32,
    stack: StackId,
}

impl Identity {
    const fn of(sample: &Sample) -> Self {
        Self {
            process: sample.process,
            tid: sample.tid,
            thread_name: sample.thread_name,
            cpu: sample.cpu,
            stack: sample.stack,
        }
    }
}

/// Adds a sample to the one of its identity, if there is one.
fn add(samples: &mut hashbrown::HashMap<Identity, Sample>, sample: Sample) -> &mut Sample {
    match samples.entry(Identity::of(&sample)) {
        hashbrown::hash_map::Entry::Occupied(twin) => {
            let twin = twin.into_mut();
            twin.count += sample.count;
            twin.weight += sample.weight;
            twin
        }
        hashbrown::hash_map::Entry::Vacant(place) => place.insert(sample),
    }
}

/// What a capture says of all of its slices.
fn described(capture: &Capture) -> Capture {
    Capture {
        start: 0,
        duration: 0,
        lost: BTreeMap::new(),
        ..capture.clone()
    }
}

/// A capture that nothing is known of.
const fn blank() -> Capture {
    Capture {
        target: String::new(),
        command: String::new(),
        host: String::new(),
        start: 0,
        duration: 0,
        frequency: 0,
        clock: "",
        lost: BTreeMap::new(),
    }
}

/// When the last of them ended.
fn end(slices: &[Arc<Slice>]) -> u64 {
    slices.iter().map(|slice| slice.end()).max().unwrap_or_default()
}

fn samples(slices: &[Arc<Slice>]) -> u64 {
    slices.iter().map(|slice| slice.samples).sum()
}

/// Whether what ended then was taken by another clock than that by which it is `now`.
fn is_ahead(end: u64, now: u64) -> bool {
    end > now.saturating_add(nanos(ADJUSTED))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use profiler_common::Outcome;

    use super::*;
    use crate::profile::Stack;

    const SECOND: u64 = 1_000_000_000;

    /// A slice of ten seconds in which each of some processes has a sample a second, on a stack of its own.
    pub(super) fn slice(number: u64, pids: Range<u32>) -> Profile {
        let start = number * 10 * SECOND;
        let mut to = Tables::new(Capture {
            target: "host".into(),
            start,
            duration: 10 * SECOND,
            frequency: 1,
            lost: BTreeMap::from([(Loss::RingFull, 1)]),
            ..blank()
        });
        let mut samples = Vec::new();
        let mut processes = Vec::new();
        for pid in pids {
            let name = to.string(&format!("program-{pid}"));
            let stack = to.stack(Stack {
                frames: Vec::new(),
                outcome: if pid.is_multiple_of(2) {
                    Outcome::Complete
                } else {
                    Outcome::Truncated
                },
            });
            samples.push(Sample {
                kind: Kind::Cpu,
                process: ProcessId(u32::try_from(processes.len()).unwrap()),
                tid: pid,
                thread_name: name,
                cpu: pid % 2,
                stack,
                count: 10,
                weight: 10 * SECOND,
                timestamps: (0..10).map(|second| start + second * SECOND).collect(),
            });
            processes.push(Process {
                pid,
                start: 0,
                name,
                executable: name,
                service: StringId::default(),
                attributes: Vec::new(),
            });
        }
        let mut profile = to.finish();
        profile.processes = processes;
        profile.samples = samples;
        profile
    }

    #[test]
    fn what_is_asked_for_is_found_by_time_and_by_who() {
        let mut history = History::new(Limits::default());
        for number in 1..=60 {
            history.push(&slice(number, 1..5));
        }
        assert_eq!(history.samples(), 60 * 4 * 10);
        assert_eq!(history.span(), Some(10 * SECOND..610 * SECOND));
        let count = |query: Query| {
            let profile = history.profile(&query);
            let times = profile
                .samples
                .iter()
                .map(|sample| sample.timestamps.len() as u64);
            assert_eq!(profile.sample_count(), times.sum::<u64>());
            // Pictures are made of the same samples, whether a block is added up for all who ask or not.
            let span = history.folded(&query);
            assert_eq!(
                (span.total(), &span.capture),
                (profile.sample_count(), &profile.capture)
            );
            profile.sample_count()
        };
        assert_eq!(count(Query::default()), 2400);
        let range = Some(95 * SECOND..105 * SECOND);
        assert_eq!(
            count(Query {
                range: range.clone(),
                ..Query::default()
            }),
            40
        );
        let one = Query {
            pids: vec![3],
            ..Query::default()
        };
        assert_eq!(count(one.clone()), 600);
        assert_eq!(
            count(Query {
                range: range.clone(),
                ..one
            }),
            10
        );
        assert_eq!(
            count(Query {
                cpu: Some(1),
                ..Query::default()
            }),
            1200
        );
        let named = Some("program-2".to_owned());
        assert_eq!(
            count(Query {
                process_name: named.clone(),
                ..Query::default()
            }),
            600
        );
        assert_eq!(
            count(Query {
                thread: named,
                ..Query::default()
            }),
            600
        );
        assert_eq!(
            count(Query {
                thread: Some("4".into()),
                ..Query::default()
            }),
            600
        );

        let part = history.profile(&Query {
            range: range.clone(),
            ..Query::default()
        });
        // Each identity is one sample, whichever blocks it was in, and each row is there once.
        assert_eq!(
            (part.samples.len(), part.processes.len(), part.stacks.len()),
            (4, 4, 2)
        );
        assert_eq!(
            (part.capture.start, part.capture.duration),
            (95 * SECOND, 10 * SECOND)
        );
        assert_eq!(part.capture.lost[&Loss::RingFull], 2);
        let shares = history.shares(&Query {
            range,
            ..Query::default()
        });
        assert_eq!(shares.len(), 4);
        assert!(
            shares
                .iter()
                .all(|share| share.samples == 10 && share.weight == 10 * SECOND)
        );
    }

    #[test]
    fn the_old_is_forgotten_and_counted() {
        let mut history = History::new(Limits {
            age: Duration::from_secs(120),
            bytes: 64 << 20,
        });
        for number in 1..=100 {
            history.push(&slice(number, 1..5));
            assert_eq!(history.samples() + history.forgotten(), number * 40);
        }
        let span = history.span().unwrap();
        let (all, copy) = (Query::default(), history.snapshot());
        assert_eq!(copy.span(), history.span());
        assert_eq!(copy.profile(&all), history.profile(&all));
        assert_eq!(span.end, 1010 * SECOND);
        // A block is forgotten when all of it is too old.
        assert!(
            (120..=140).contains(&((span.end - span.start) / SECOND)),
            "{span:?}"
        );
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_nothing_in_the_future() {
        let limits = Limits {
            age: Duration::from_secs(3600),
            ..Limits::default()
        };
        let mut history = History::new(limits);
        let mut pushed = 0;
        let mut push = |history: &mut History, number| {
            history.push(&slice(number, 1..5));
            pushed += 40;
            assert_eq!(history.samples() + history.forgotten(), pushed);
        };
        // Of an hour the last 20 minutes are by a clock that is ten minutes ahead.
        for number in (1..=240).chain(301..=420) {
            push(&mut history, number);
        }
        for number in 360..=365 {
            push(&mut history, number);
        }
        // Of the four blocks of that clock two are ahead, and forgotten as a whole.
        assert_eq!(history.span(), Some(310 * SECOND..3660 * SECOND));
        assert_eq!(history.samples(), (210 + 60 + 6) * 40);
        let of = |range| {
            let query = Query {
                range,
                ..Query::default()
            };
            history.profile(&query).sample_count()
        };
        assert_eq!(of(Some(3610 * SECOND..u64::MAX)), 5 * 40);
        assert_eq!(of(Some(3600 * SECOND..3610 * SECOND)), 2 * 40);
        assert_eq!(of(None), history.samples());
        let line = history.timeline(&Query::default(), 10, 10);
        let told: u64 = line.processes.iter().flat_map(|(_, bars)| bars).sum();
        assert_eq!(told, history.samples() * SECOND);

        // What age is goes by the clock as it is now.
        for number in 366..=900 {
            push(&mut history, number);
        }
        let span = history.span().unwrap();
        assert_eq!(span.end, 9010 * SECOND);
        assert!(
            (3600..=3900).contains(&((span.end - span.start) / SECOND)),
            "{span:?}"
        );
    }

    #[test]
    fn an_adjusted_clock_and_a_sample_that_waited_cost_nothing_and_the_span_is_of_all_slices() {
        let mut history = History::new(Limits::default());
        for range in [100..110, 98..108, 92..109] {
            let mut profile = slice(0, 1..5);
            profile.capture.start = range.start * SECOND;
            profile.capture.duration = (range.end - range.start) * SECOND;
            history.push(&profile);
        }
        assert_eq!((history.samples(), history.forgotten()), (120, 0));
        assert_eq!(history.span(), Some(92 * SECOND..110 * SECOND));
    }

    #[test]
    fn no_more_bytes_are_kept_than_asked_for() {
        let limits = Limits {
            age: Duration::from_secs(1 << 30),
            bytes: 1 << 20,
        };
        let mut history = History::new(limits);
        for number in 1..=1000 {
            let pid = u32::try_from(number).unwrap() * 100;
            history.push(&slice(number, pid..pid + 100));
            assert!(
                history.bytes() <= limits.bytes + limits.bytes / 4,
                "{}",
                history.bytes()
            );
        }
        assert!(history.samples() > 10_000 && history.forgotten() > 500_000);
    }
}
