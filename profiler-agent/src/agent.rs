//! A capture from its start to its profile: the one place that knows every stage and their order.
//!
//! ```text
//! sampling ─▶ process ─▶ aggregate ─▶ Profile
//!                           │  ▲
//!                           ▼  │ names
//!                         symbols
//! ```
//!
//! One thread reads, follows and adds up; it waits for nobody. Names are found by another one meanwhile.

mod slices;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use profiler_common::record::Counter;
use rustix::event::EventfdFlags;

use crate::{
    aggregate::{Aggregator, Counts, Limits, LocationCounts},
    clock::{self, Clock},
    cpu_time::{CpuTime, OwnCost},
    group::Group,
    process::Processes,
    procfs,
    profile::{Capture, Profile},
    sampling::{self, ProgramCost, Sampler, SamplingError, merge, record::Record},
    symbols::{self, Symbolizer},
    target::{LAUNCHER, Running, Scope, Target, TargetError, Waiting, Wanted},
    telemetry::Loss,
    unwind::Unwinder,
};

/// How often the rings are looked at when none may be half full. Nothing waits for it: a sample of what is not known yet wakes this side, and the
/// files that names come from stay open. Beside busy programs each look finds its memory cold, so that ten a second took 2.4 times the CPU time.
const TICK: Duration = Duration::from_millis(500);
/// The same where somebody does wait: a finished slice for its last names, samples of generated code for the file that has its names, which says of
/// what it holds no more than that it came between two looks.
const SHORT_TICK: Duration = Duration::from_millis(100);
/// The same while a ring of process events fills, or a sample waits for the kernel side to learn of its code or for an unwind table: until then
/// each sample of that code brings a copy of its stack.
const EAGER_TICK: Duration = Duration::from_millis(5);
/// How long that goes on after the kernel side has woken this one: what it did so for can be read when it has settled.
const EAGER_TIME: Duration = Duration::from_millis(20);
/// Fewer samples in a look are next to nothing, of generated code too: half a second of one busy CPU at 99 Hz brings fifty.
const QUIET: u64 = 4;
/// How often the rest is seen to while somebody waits for the end: CPUs, CPU time, progress.
const SLOW_TICK: Duration = Duration::from_secs(1);
/// And at most when it goes on for ever, where it is as often as there is a slice: at each second it was a quarter of what the agent used beside a
/// host that slept.
const ENDLESS_SLOW_TICK: Duration = Duration::from_secs(5);
/// How often processes are looked for whose end was missed: 10 µs each.
const LOOK_FOR_GONE: Duration = Duration::from_secs(60);
/// How long the start of a capture waits for the unwind tables of its targets: samples that find none are as good, but for those of deep
/// stacks and of handlers on stacks of their own.
const FIRST_TABLES: Duration = Duration::from_millis(150);
/// Files that may be open at one time: each that is mapped somewhere and was sampled is, and the usual limit is 1,024.
const MAX_OPEN_FILES: u64 = 8192;
/// How long a finished capture waits for unwind tables; what has none by then is unwound by frame pointer.
const TABLES_DEADLINE: Duration = Duration::from_secs(10);
/// How long a finished capture waits for names; what has none by then is shown by module and offset.
const NAMES_DEADLINE: Duration = Duration::from_secs(10);

use self::slices::Slices;
pub use self::slices::{MIN_INTERVAL, Totals};

/// What to capture.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which processes.
    pub scope: Scope,
    /// Samples per second and busy CPU.
    pub frequency: u32,
    /// Bytes of kernel memory for unwind tables, at most.
    pub unwind_memory: usize,
    /// Whether inlined functions and lines are wanted.
    pub inlines: bool,
    /// How long; `None` is until [`Stop::request`] or the end of the targets.
    pub duration: Option<Duration>,
    /// How often a finished slice is handed out; `None` makes one of the whole capture.
    pub interval: Option<Duration>,
    /// Whether the kernel accounts for the time of BPF programs meanwhile.
    pub kernel_stats: bool,
}

/// Why a capture failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Its target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The kernel side.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A resource of the system.
    #[error("cannot {what}")]
    System {
        /// For what.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Ends a capture from another thread.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    /// Readable once requested.
    event: OwnedFd,
}

impl Stop {
    /// Not requested yet.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            requested: AtomicBool::new(false),
            event,
        })
    }

    /// Asks the capture to end and to hand out what it has. Says whether it had been asked before.
    pub fn request(&self) -> bool {
        // An eventfd takes the count up to 2^64 - 2.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        self.requested.swap(true, Ordering::Relaxed)
    }

    fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

/// Where a running capture stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Since its start.
    pub elapsed: Duration,
    /// Samples so far.
    pub samples: u64,
    /// Samples lost so far.
    pub lost: u64,
}

/// What a running capture counts about itself.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// How the samples went.
    pub samples: Counts,
    /// How names of addresses were found.
    pub locations: LocationCounts,
    /// What the slices that were handed out hold.
    pub totals: Totals,
    /// Samples that were lost, by reason.
    pub lost: BTreeMap<Loss, u64>,
    /// Process records that a full ring refused.
    pub lost_events: u64,
    /// Children that did not fit into the set of targets.
    pub unfollowed: u64,
    /// Processes that are followed.
    pub processes: usize,
    /// Files whose unwind tables the kernel has.
    pub tables: usize,
    /// Bytes of the kernel's memory that these and lists of mappings take.
    pub table_memory: usize,
    /// And how many they may.
    pub table_limit: usize,
    /// What the symbolizer has used.
    pub symbolizer: symbols::Cost,
    /// What the kernel programs have cost, where the kernel accounts for it.
    pub programs: Vec<(&'static str, ProgramCost)>,
}

/// A finished capture.
#[derive(Debug)]
pub struct Captured {
    /// What was sampled since the last slice that was handed out, or at all.
    pub profile: Profile,
    /// The whole capture.
    pub whole: Capture,
    /// What all slices hold, this last one too.
    pub totals: Totals,
    /// How the samples went.
    pub counts: Counts,
    /// CPU time of the targets by the kernel's accounting, nanoseconds.
    pub cpu_time: u64,
    /// Whether that is all of it; see [`CpuTime::is_whole`].
    pub cpu_time_is_whole: bool,
    /// Process records that a full ring refused; mappings were read again then.
    pub lost_events: u64,
    /// Children that did not fit into the set of targets.
    pub unfollowed: u64,
    /// What the agent used up to here.
    pub cost: OwnCost,
    /// How often the symbolizer had to be replaced.
    pub symbolizer_failures: u32,
    /// How the command ended, if one was run.
    pub command: Option<ExitStatus>,
}

/// Captures until the duration is over, the targets have ended, or `stop` is requested. `progress` is called with what is counted: when sampling has
/// begun, then about once a second, or where it goes on for ever as often as there is a slice, but each five seconds at least, and when it has ended. `hand_out`
/// is called with each slice but the last, which is in the answer. Sampling waits while they run.
///
/// # Errors
///
/// [`CaptureError`]; nothing stays behind in the kernel, and a command that was created does not run.
pub fn capture(
    options: &Options,
    stop: &Stop,
    mut progress: impl FnMut(Progress, Figures),
    mut hand_out: impl FnMut(Profile),
) -> Result<Captured, CaptureError> {
    check_pids(&options.scope)?;
    let waiting = match &options.scope {
        Scope::Command(command) => Some(Waiting::create(command)?),
        Scope::Host | Scope::Processes(_) | Scope::Named(_) | Scope::Group(_) | Scope::Container(_) => None,
    };
    // Not before: the command gets the limits that it was given.
    procfs::allow_open_files(MAX_OPEN_FILES);
    let wanted = match &options.scope {
        Scope::Host => Wanted::Everything,
        Scope::Processes(pids) => Wanted::Processes(pids.clone()),
        Scope::Named(name) => Wanted::Named(name.as_str().into()),
        Scope::Group(path) => Wanted::Group(Group::open(path).map_err(TargetError::from)?),
        Scope::Container(id) => Wanted::Group(Group::of_container(id).map_err(TargetError::from)?),
        Scope::Command(_) => Wanted::Processes(waiting.iter().map(|command| command.pid).collect()),
    };
    let pids = wanted.pids().unwrap_or_default().iter();
    let targets = pids
        .map(|&pid| Target::attach(pid))
        .collect::<Result<Vec<Target>, TargetError>>()?;

    let mut run = Run::new(options, wanted)?;
    match &waiting {
        Some(command) => run.launching = Some(command.pid),
        None => run.prepare(&targets),
    }
    Run::take_precedence();
    run.sampler.start()?;
    run.slices.begin(run.start_time);
    run.tell(&mut progress)?;
    let command = waiting.map(Waiting::release).transpose()?;

    let deadline = options.duration.map(|duration| run.started + duration);
    run.until(deadline, &targets, stop, &mut progress, &mut hand_out)?;
    run.sampler.stop();
    let end = clock::monotonic();
    run.cpu_time.update(&run.processes);
    run.drain(u64::MAX);
    run.wait_for_tables();
    run.wait_for_names();
    run.hand_out_closed(&mut hand_out);
    run.tell(&mut progress)?;

    let status = command.map(Running::end).transpose();
    let status = status
        .map_err(|source| CaptureError::System {
            what: "wait for the command",
            source,
        })?
        .flatten();
    run.finish(end, status)
}

/// Refuses to look for pids where they mean other processes than in the kernel.
fn check_pids(scope: &Scope) -> Result<(), TargetError> {
    match scope {
        _ if procfs::has_pids_of_the_host() => Ok(()),
        Scope::Processes(_) | Scope::Command(_) => Err(TargetError::PidNamespace),
        Scope::Host | Scope::Named(_) | Scope::Group(_) | Scope::Container(_) => {
            tracing::warn!(
                "processes have no names and no mappings: this one is in a pid namespace of its own, and does not see those of the host; run the container with `--pid=host`, or `hostPID: true`"
            );
            Ok(())
        }
    }
}

/// The stages of a running capture.
struct Run {
    clock: Clock,
    sampler: Sampler,
    kernel_log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    processes: Processes,
    unwinder: Unwinder,
    aggregator: Aggregator,
    symbolizer: Symbolizer,
    cpu_time: CpuTime,
    /// The control group that is sampled.
    group: Option<Group>,
    slices: Slices,
    started: Instant,
    /// Until when the rings are looked at eagerly.
    eager_until: Instant,
    looked_for_gone: Instant,
    /// The same on `CLOCK_MONOTONIC`.
    start_time: u64,
    torn: u64,
    lost_events: u64,
    /// Bytes of kernel memory for unwind tables, at most.
    unwind_memory: usize,
    /// Ends the kernel's accounting with it.
    _accounting: Option<OwnedFd>,
    /// Process of the command, until it runs its program.
    launching: Option<u32>,
}

impl Run {
    fn new(options: &Options, wanted: Wanted) -> Result<Self, CaptureError> {
        let system = |what| move |source| CaptureError::System { what, source };
        let clock = Clock::now();
        let mut aggregator = Aggregator::new(Limits::default(), clock);
        let mut symbolizer = Symbolizer::start(Path::new(symbols::SELF), options.inlines, options.interval)
            .map_err(system("start the thread that finds names"))?;
        // Starting the child and reading the kernel's symbols takes 150 ms: better now than at the end.
        let _ = symbolizer.try_request(aggregator.prepare_kernel());
        let mut sampler = Sampler::new(sampling::Config {
            frequency: options.frequency,
            wanted: wanted.clone(),
        })?;
        let accounting = options.kernel_stats.then(sampling::account_for_programs);
        let accounting = accounting.and_then(|accounting| {
            accounting
                .inspect_err(|error| tracing::warn!("the kernel does not account for the time of its programs: {error}; it takes Linux 5.8 and CAP_SYS_ADMIN"))
                .ok()
        });
        let kernel_log = match sampler.log() {
            Ok(log) => Some(log),
            Err(error) => {
                tracing::debug!(%error, "the kernel side has no log");
                None
            }
        };
        let mut processes = Processes::new(wanted.pids());
        // After the events began, so that no mapping falls between the two.
        processes.scan();
        let maps = sampler.take_unwind_maps()?;
        let unwinder = Unwinder::new(maps, options.unwind_memory)
            .map_err(system("start the thread that builds unwind tables"))?;
        if let (Scope::Named(name), Wanted::Named(comm)) = (&options.scope, &wanted)
            && !processes.living().any(|process| process.is_called(*comm))
        {
            tracing::warn!("no process is called {name} yet; `ps -e` shows how processes are called");
        }
        let (target, command) = name_of_target(&mut processes, &options.scope, &wanted);
        let capture = Capture {
            target,
            command,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            start: 0,
            duration: 0,
            frequency: options.frequency,
            clock: sampler.clock().name(),
            lost: BTreeMap::new(),
        };
        Ok(Self {
            clock,
            slices: Slices::new(options.interval, capture),
            sampler,
            kernel_log,
            cpu_time: CpuTime::start(&wanted, &processes),
            group: match wanted {
                Wanted::Group(group) => Some(group),
                Wanted::Everything | Wanted::Processes(_) | Wanted::Named(_) => None,
            },
            processes,
            unwinder,
            aggregator,
            symbolizer,
            started: Instant::now(),
            eager_until: Instant::now(),
            looked_for_gone: Instant::now(),
            start_time: clock::monotonic(),
            torn: 0,
            lost_events: 0,
            unwind_memory: options.unwind_memory,
            _accounting: accounting,
            launching: None,
        })
    }

    /// Lets this thread run before others: it takes a thousandth of a CPU, but if a host has thousands of threads that want to run, its fair
    /// turn comes after the rings are full. So does the thread that builds tables; the one that finds names goes on as it is.
    fn take_precedence() {
        const NICE: i32 = -10;
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "samples may be lost when the host is overloaded");
        }
    }

    /// Makes the targets known to the kernel side before the first sample. Of a whole host most is asleep, and of a command nothing is there yet.
    fn prepare(&mut self, targets: &[Target]) {
        let patience = Instant::now() + FIRST_TABLES;
        for target in targets {
            let process = Arc::clone(self.processes.find(target.pid));
            self.unwinder.prepare(&process, &mut self.processes);
        }
        self.update_unwinder(false);
        while self.unwinder.is_building() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
            self.update_unwinder(false);
        }
    }

    /// Runs until something ends the capture.
    fn until(
        &mut self,
        deadline: Option<Instant>,
        targets: &[Target],
        stop: &Stop,
        progress: &mut impl FnMut(Progress, Figures),
        hand_out: &mut impl FnMut(Profile),
    ) -> Result<(), CaptureError> {
        let system = |what| move |source| CaptureError::System { what, source };
        let slow_tick = match (deadline, self.slices.interval()) {
            (None, Some(interval)) => interval.min(ENDLESS_SLOW_TICK),
            _ => SLOW_TICK,
        };
        let mut next_slow_tick = self.started + slow_tick;
        let mut is_awaited = false;
        loop {
            let now = Instant::now();
            let eager = self.unwinder.is_waited_for() || now < self.eager_until;
            let tick = match (eager, is_awaited) {
                (true, _) => EAGER_TICK,
                (false, true) => SHORT_TICK,
                (false, false) => TICK,
            };
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(());
            }
            let next = [deadline, self.slices.next_cut(), Some(next_slow_tick)];
            let next = next.into_iter().flatten().min();
            let left = next.map_or(tick, |next| next.saturating_duration_since(now).min(tick));
            let mut ends: Vec<BorrowedFd<'_>> = vec![stop.event.as_fd()];
            // A target that has ended stays readable: wait for the others only.
            ends.extend(
                targets
                    .iter()
                    .filter(|target| !target.has_ended())
                    .map(Target::as_fd),
            );
            let ended = ends.len() == 1 && !targets.is_empty();
            if !ended {
                let woken = self.sampler.wait(&ends, left);
                if woken.map_err(system("wait for samples"))? {
                    self.eager_until = Instant::now() + EAGER_TIME;
                }
            }
            let settled = clock::monotonic().saturating_sub(merge::SETTLE);
            let samples = self.aggregator.counts().samples;
            self.drain(settled);
            self.update_unwinder(false);
            let found = self.aggregator.counts().samples - samples;
            self.take_names();
            self.cut_slices(settled, hand_out)?;
            is_awaited = self.slices.wait_for_names() || found >= QUIET && self.aggregator.follows_jits();
            // The files stay open, so that nothing is lost by waiting; and each request may have them parsed anew, libc's debug
            // information alone in 20 ms: asking at every look made three quarters of the agent's CPU time.
            if self.aggregator.wants_names() {
                self.request_names();
            }
            if let Some(log) = &mut self.kernel_log {
                log.flush();
            }
            if ended {
                self.cpu_time.update(&self.processes);
                return Ok(());
            }
            if stop.requested() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= next_slow_tick {
                next_slow_tick = now + slow_tick;
                self.slow_tick();
                self.tell(progress)?;
                if self.group.as_ref().is_some_and(|group| !group.is_populated()) {
                    return Ok(());
                }
            }
        }
    }

    /// Tells where the capture stands.
    fn tell(&self, progress: &mut impl FnMut(Progress, Figures)) -> Result<(), CaptureError> {
        let figures = self.figures()?;
        let now = Progress {
            elapsed: self.started.elapsed(),
            samples: figures.samples.samples,
            lost: figures.lost.get(&Loss::RingFull).copied().unwrap_or_default(),
        };
        progress(now, figures);
        Ok(())
    }

    /// What is counted, as it stands.
    fn figures(&self) -> Result<Figures, CaptureError> {
        let ring_full = self.sampler.counter(Counter::RingFull)?;
        Ok(Figures {
            samples: self.aggregator.counts(),
            locations: self.aggregator.location_counts(),
            totals: self.slices.totals().clone(),
            lost: BTreeMap::from([(Loss::RingFull, ring_full), (Loss::TornRecord, self.torn)]),
            lost_events: self.lost_events,
            unfollowed: self.sampler.counter(Counter::TargetsFull)?,
            processes: self.processes.living().count(),
            tables: self.unwinder.tables(),
            table_memory: self.unwinder.memory(),
            table_limit: self.unwind_memory,
            symbolizer: self.symbolizer.cost(),
            programs: self.sampler.costs(),
        })
    }

    fn slow_tick(&mut self) {
        let lost_before = self.lost_events;
        let (sampler, mut stages) = self.stages();
        sampler.follow_cpus(|event| stages.take_in(event));
        self.doubt_what_was_lost(lost_before);
        self.processes.forget_ended();
        if self.looked_for_gone.elapsed() >= LOOK_FOR_GONE {
            self.looked_for_gone = Instant::now();
            self.processes.look_for_gone();
        }
        self.cpu_time.update(&self.processes);
    }

    /// Takes in what happened up to a time of `CLOCK_MONOTONIC`.
    fn drain(&mut self, until: u64) {
        // Before the samples that may fall into what was written.
        self.aggregator.read_jits(&self.processes, false);
        let lost_before = self.lost_events;
        let (sampler, mut stages) = self.stages();
        sampler.drain(until, |event| stages.take_in(event));
        self.processes.look_at_exits();
        self.doubt_what_was_lost(lost_before);
    }

    /// Has mappings read again if records are missing, some of which may have told of them.
    fn doubt_what_was_lost(&mut self, lost_before: u64) {
        let (torn, overflowed) = (self.sampler.take_torn(), self.sampler.take_overflow());
        self.torn += torn;
        if self.lost_events != lost_before || overflowed || torn > 0 {
            self.processes.doubt();
        }
    }

    /// Tells the kernel side what it lacks, and takes in the samples that have waited for tables; with `last`, all that wait.
    fn update_unwinder(&mut self, last: bool) {
        let Self {
            unwinder,
            processes,
            aggregator,
            ..
        } = self;
        unwinder.update(processes, last, |sample, (cpu, time), process, processes| {
            aggregator.add(sample, cpu, time, process, processes);
        });
    }

    fn wait_for_tables(&mut self) {
        let deadline = Instant::now() + TABLES_DEADLINE;
        self.unwinder.hurry();
        self.update_unwinder(false);
        while self.unwinder.is_waited_for() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            self.update_unwinder(false);
        }
        self.update_unwinder(true);
    }

    /// The source of events, and what they pass through.
    fn stages(&mut self) -> (&mut Sampler, Stages<'_>) {
        let Self {
            sampler,
            processes,
            unwinder,
            aggregator,
            lost_events,
            launching,
            ..
        } = self;
        let stages = Stages {
            processes,
            unwinder,
            aggregator,
            lost_events,
            launching,
        };
        (sampler, stages)
    }

    /// Takes in the names that were found.
    fn take_names(&mut self) {
        while let Some(response) = self.symbolizer.try_recv() {
            self.aggregator.name(response);
        }
    }

    /// Asks for the names of new frames.
    fn request_names(&mut self) {
        let Self {
            aggregator,
            symbolizer,
            ..
        } = self;
        aggregator.request_names(|request| {
            symbolizer
                .try_request(request)
                .map_err(symbols::NotTaken::into_request)
        });
    }

    fn wait_for_names(&mut self) {
        let deadline = Instant::now() + NAMES_DEADLINE;
        while self.aggregator.read_jits(&self.processes, true) && Instant::now() < deadline {}
        self.take_names();
        self.request_names();
        while self.aggregator.waits_for_names() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.symbolizer.recv_timeout(left) {
                Some(response) => self.aggregator.name(response),
                None => {
                    tracing::warn!(
                        "some names took longer than {NAMES_DEADLINE:?}; they are shown by module and offset"
                    );
                    break;
                }
            }
            self.take_names();
            self.request_names();
        }
    }

    fn finish(mut self, end: u64, status: Option<ExitStatus>) -> Result<Captured, CaptureError> {
        let start = self.clock.wall(self.start_time);
        let profile = self.last_slice(end)?;
        let symbolizer = self.symbolizer.cost();
        let LocationCounts {
            looked_up,
            known,
            over_budget,
        } = self.aggregator.location_counts();
        tracing::info!(
            looked_up,
            known,
            over_budget,
            "addresses looked up in the cache of locations"
        );
        Ok(Captured {
            counts: self.aggregator.counts(),
            cpu_time: self.cpu_time.nanoseconds(&self.clock),
            cpu_time_is_whole: self.cpu_time.is_whole(),
            lost_events: self.lost_events,
            unfollowed: self.sampler.counter(Counter::TargetsFull)?,
            whole: self.slices.whole(start, end.saturating_sub(self.start_time)),
            totals: self.slices.take_totals(),
            profile,
            cost: OwnCost::now(&self.clock, symbolizer),
            symbolizer_failures: symbolizer.failed,
            command: status,
        })
    }
}

/// What is profiled, for people: its name, and the command line of a process that is alone.
fn name_of_target(processes: &mut Processes, scope: &Scope, wanted: &Wanted) -> (String, String) {
    match (scope, wanted) {
        (Scope::Command(command), _) => {
            let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
            (words.join(" "), String::new())
        }
        (Scope::Named(name), _) => (format!("processes called {name}"), String::new()),
        (_, Wanted::Group(group)) => (format!("control group {}", group.path.display()), String::new()),
        (_, Wanted::Processes(pids)) => {
            let names: Vec<_> = pids
                .iter()
                .map(|&pid| format!("{} ({pid})", processes.find(pid).name))
                .collect();
            let command = match pids.as_slice() {
                &[pid] => procfs::command_line(pid),
                _ => String::new(),
            };
            (names.join(", "), command)
        }
        (_, Wanted::Everything | Wanted::Named(_)) => ("whole host".into(), String::new()),
    }
}

/// What an event passes through.
struct Stages<'a> {
    processes: &'a mut Processes,
    unwinder: &'a mut Unwinder,
    aggregator: &'a mut Aggregator,
    lost_events: &'a mut u64,
    launching: &'a mut Option<u32>,
}

impl Stages<'_> {
    fn take_in(&mut self, event: merge::Event<'_>) {
        let Self {
            processes,
            unwinder,
            aggregator,
            ..
        } = self;
        match event.record {
            // Between fork and exec a command runs the agent's code. The name decides too, should the record of the exec be lost.
            Record::Sample(sample) | Record::Unfinished(sample, _)
                if *self.launching == Some(sample.pid) && is_launcher(&sample.comm) => {}
            Record::Sample(sample) => {
                let process = Arc::clone(processes.find(sample.pid));
                aggregator.add(&sample, event.cpu, event.time, &process, processes);
            }
            Record::Unfinished(sample, rest) => {
                let process = Arc::clone(processes.find(sample.pid));
                let at = (event.cpu, event.time);
                unwinder.finish(
                    &sample,
                    &rest,
                    at,
                    &process,
                    processes,
                    |sample, process, processes| {
                        aggregator.add(sample, event.cpu, event.time, process, processes);
                    },
                );
            }
            Record::Lost(count) => *self.lost_events += count,
            Record::Comm { pid, exec, .. } => {
                if exec && *self.launching == Some(pid) {
                    *self.launching = None;
                }
                processes.apply(&event.record);
            }
            Record::Mmap(_) | Record::Fork { .. } | Record::Exit { .. } | Record::Other => {
                processes.apply(&event.record);
            }
        }
    }
}

/// Whether a thread has the name of the one that starts commands.
fn is_launcher(comm: &[u8]) -> bool {
    comm.split(|&byte| byte == 0).next() == Some(LAUNCHER.as_bytes())
}
