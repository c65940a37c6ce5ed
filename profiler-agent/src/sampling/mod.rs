//! Samples and process events, from the kernel to the agent.
//!
//! ```text
//! clock ─▶ program ─▶ ring of samples of the CPU ──────┐
//!                                                      ├─▶ merged by time ─▶ one event at a time, borrowed from its ring
//! fork, exec, exit, mmap ─▶ ring of events of the CPU ─┘
//! ```
//!
//! Each CPU has two: a BPF ring buffer for samples, which costs a program a third of what a perf ring does, and a perf ring for the kernel's own
//! records, which come by no other way. The reader is woken when one may be half full, else it looks by itself.

pub mod bpf;
mod cpus;
pub mod event_ring;
pub mod merge;
pub mod perf_event;
pub mod record;
pub mod ring;
pub mod sample_ring;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{CgroupArray, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{PerfEvent as PerfEventProgram, ProgramError, RawTracePoint},
};
use profiler_common::{
    Filter,
    record::{Counter, MAX_TARGETS, RING_FILLS, WAKE_AFTER},
};
use rustix::event::{PollFd, PollFlags, Timespec};

pub use self::perf_event::Clock;
use self::{
    event_ring::EventRing,
    merge::{Buffer as _, Event, Merger},
    perf_event::PerfEvent,
    ring::Ring,
    sample_ring::SampleRing,
};
use crate::{
    kernel::{
        btf::{Btf, BtfError},
        registers::SavedRegisters,
    },
    procfs,
    target::{Comm, Wanted},
};

/// The kernel programs, built by `cargo xtask build-ebpf` from profiler-ebpf.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!("profiler.bpf.o");

/// Where the kernel says how fast it lets anyone sample.
const MAX_SAMPLE_RATE: &str = "/proc/sys/kernel/perf_event_max_sample_rate";

/// The programs, by the names of their functions.
pub const PROGRAM_NAMES: [&str; 5] = ["on_tick", "on_fork", "on_exec", "on_exit", "on_free"];

/// Has the kernel account for the time of BPF programs, of all on this host, as long as the answer lives.
///
/// # Errors
///
/// It takes Linux 5.8 and CAP_SYS_ADMIN.
pub fn account_for_programs() -> io::Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| io::Error::other(chain(&error)))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What to sample.
#[derive(Debug, Clone)]
pub struct Config {
    /// Samples per second and busy CPU.
    pub frequency: u32,
    /// Whose samples.
    pub wanted: Wanted,
}

/// What a program in the kernel has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramCost {
    /// How often it ran.
    pub runs: u64,
    /// How long, all runs together.
    pub time: Duration,
}

/// Why sampling could not begin.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// More than the kernel allows.
    #[error(
        "-F {asked} is above the kernel's limit of {limit} samples a second; raise it with `sysctl kernel.perf_event_max_sample_rate={asked}`"
    )]
    RateAboveLimit {
        /// Asked for.
        asked: u32,
        /// Allowed.
        limit: u64,
    },
    /// More targets than the map holds.
    #[error(
        "{0} targets are more than the {MAX_TARGETS} that can be followed; profile the whole host instead"
    )]
    TooManyTargets(usize),
    /// The kernel's types are needed and not there.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel refused the programs.
    #[error("the kernel refused the sampling programs")]
    Load(#[from] aya::EbpfError),
    /// The kernel refused one program.
    #[error("the kernel refused the program {name}")]
    Program {
        /// Which one.
        name: &'static str,
        /// What it said.
        #[source]
        source: ProgramError,
    },
    /// The kernel's verifier could not prove that a program is safe.
    #[error(
        "the verifier of Linux {release} refused the program {name}: {reason}; the programs are tested on Linux 5.10 to 7.2, please report this with what `-vv` logs"
    )]
    Unproven {
        /// Which one.
        name: &'static str,
        /// The running kernel.
        release: String,
        /// The verifier's last words; all of them are in the log.
        reason: String,
    },
    /// A map could not be set up.
    #[error("a map of the sampling programs cannot be used")]
    Map(#[from] aya::maps::MapError),
    /// The object lacks what this agent needs: it is not the one built from this tree.
    #[error("the sampling programs lack `{0}`; rebuild them with `cargo xtask build-ebpf`")]
    Incomplete(&'static str),
    /// A perf event could not be opened.
    #[error("cannot open the {what} of CPU {cpu}")]
    PerfEvent {
        /// What for.
        what: &'static str,
        /// Which CPU.
        cpu: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No CPU could be sampled.
    #[error("the kernel names no CPU that is online")]
    NoCpu,
}

impl SamplingError {
    /// The error of the operating system at its root, if there is one.
    pub fn os_error(&self) -> Option<i32> {
        let mut error: &(dyn std::error::Error + 'static) = self;
        loop {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            error = error.source()?;
        }
    }
}

/// The running programs and their rings.
pub struct Sampler {
    programs: Ebpf,
    config: Config,
    clock: Clock,
    /// Whether side-band records name files by build ID.
    build_ids: bool,
    /// The programs' array of rings.
    samples: MapData,
    cpus: BTreeMap<u32, Cpu>,
    /// CPUs that could not be sampled, as was told.
    refused: BTreeSet<u32>,
    /// Whether a CPU ran for a while before it had rings.
    was_blind: bool,
    rings: Vec<Ring>,
    merger: Merger,
    /// Whether the clocks run.
    running: bool,
    /// Readable when a sample waits for what the kernel side does not know.
    wake_ups: RingBuf<MapData>,
}

/// A CPU that is sampled.
#[derive(Debug)]
struct Cpu {
    clock: PerfEvent,
    /// How long the owner of its ring was enabled when it was looked at last.
    enabled: u64,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler")
            .field("config", &self.config)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl Sampler {
    /// Loads the programs and opens every ring. From here on process events are recorded and children of targets are followed; samples
    /// are taken after [`Self::start`].
    ///
    /// # Errors
    ///
    /// [`SamplingError`]; nothing stays behind in the kernel.
    pub fn new(config: Config) -> Result<Self, SamplingError> {
        if let Some(limit) =
            procfs::number(MAX_SAMPLE_RATE).filter(|&limit| u64::from(config.frequency) > limit)
        {
            return Err(SamplingError::RateAboveLimit {
                asked: config.frequency,
                limit,
            });
        }
        let pids = config.wanted.pids().unwrap_or_default();
        if pids.len() > MAX_TARGETS as usize {
            return Err(SamplingError::TooManyTargets(pids.len()));
        }
        let mut programs = load(&config)?;
        let samples = match programs.take_map("SAMPLES") {
            Some(Map::ArrayOfMaps(samples)) => samples,
            _ => return Err(SamplingError::Incomplete("SAMPLES")),
        };
        let wake_ups = programs
            .take_map("WAKE_UPS")
            .ok_or(SamplingError::Incomplete("WAKE_UPS"))?;
        let wake_ups = RingBuf::try_from(wake_ups)?;
        let mut sampler = Self {
            clock: Clock::Cycles,
            build_ids: true,
            config,
            programs,
            samples,
            cpus: BTreeMap::new(),
            refused: BTreeSet::new(),
            was_blind: false,
            rings: Vec::new(),
            merger: Merger::default(),
            running: false,
            wake_ups,
        };
        sampler.probe()?;
        for cpu in cpus::online() {
            sampler.add_cpu(cpu)?;
        }
        attach(&mut sampler.programs, "on_fork", "sched_process_fork")?;
        attach(&mut sampler.programs, "on_exec", "sched_process_exec")?;
        attach(&mut sampler.programs, "on_exit", "sched_process_exit")?;
        attach(&mut sampler.programs, "on_free", "sched_process_free")?;
        // After the hook, so that no child slips through between the two.
        for pid in sampler.config.wanted.pids().unwrap_or_default().to_vec() {
            sampler.add_target(pid)?;
        }
        if let Wanted::Group(group) = &sampler.config.wanted {
            let groups = sampler
                .programs
                .map_mut("GROUP")
                .ok_or(SamplingError::Incomplete("GROUP"))?;
            CgroupArray::try_from(groups)?.set(0, group.descriptor().as_raw_fd(), 0)?;
        }
        Ok(sampler)
    }

    /// Has the clocks run.
    ///
    /// # Errors
    ///
    /// [`SamplingError::PerfEvent`].
    pub fn start(&mut self) -> Result<(), SamplingError> {
        self.running = true;
        self.cpus
            .iter()
            .try_for_each(|(&number, cpu)| enable(number, &cpu.clock))
    }

    /// Stops the clocks; what is in the rings can still be read.
    pub fn stop(&mut self) {
        self.running = false;
        for (number, cpu) in &self.cpus {
            if let Err(error) = cpu.clock.disable() {
                tracing::warn!(cpu = number, %error, "the sampling clock did not stop");
            }
        }
    }

    /// Samples this process too, and the children it starts from now on.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Map`] when the set is full.
    pub fn add_target(&mut self, pid: u32) -> Result<(), SamplingError> {
        let targets = self
            .programs
            .map_mut("TARGETS")
            .ok_or(SamplingError::Incomplete("TARGETS"))?;
        HashMap::<_, u32, u8>::try_from(targets)?.insert(pid, 1, 0)?;
        Ok(())
    }

    /// What makes the CPUs tick.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Waits until a ring may be half full, a sample waits for what the kernel side does not know, one of `others` can be read, or `timeout` is
    /// over. Says whether a ring of process events fills or such a sample waits: what it was woken by can be read when it has settled,
    /// [`merge::SETTLE`] later.
    ///
    /// # Errors
    ///
    /// Those of `poll(2)`, an interruption by a signal excepted.
    pub fn wait(&mut self, others: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<bool> {
        // Rings of samples can be read whenever there is one; `WAKE_UPS` speaks for them.
        let events = self.rings.iter().filter_map(|ring| match ring {
            Ring::Events(events) => Some(events.event().as_fd()),
            Ring::Samples(_) => None,
        });
        let mut fds: Vec<PollFd<'_>> = others
            .iter()
            .copied()
            .chain([self.wake_ups.as_fd()])
            .chain(events)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // A process that maps thousands of files fills its ring within what a record takes to settle; nothing wakes a second time then.
        let mut woken = fds
            .iter()
            .skip(others.len() + 1)
            .any(|events| events.revents().contains(PollFlags::IN));
        drop(fds);
        while let Some(why) = self.wake_ups.next() {
            woken |= *why != RING_FILLS.to_ne_bytes();
        }
        Ok(woken)
    }

    /// Hands everything that happened up to `until` (nanoseconds of `CLOCK_MONOTONIC`) to `sink`, in order of time. Pass the present
    /// less [`merge::SETTLE`] while the clocks run, `u64::MAX` after [`Self::stop`].
    pub fn drain(&mut self, until: u64, sink: impl FnMut(Event<'_>)) {
        self.merger.drain(&mut self.rings, until, sink);
    }

    /// Whether process events may have been lost since the last call that no [`record::Record::Lost`] tells of.
    pub fn take_overflow(&mut self) -> bool {
        self.merger.take_overflow() | std::mem::take(&mut self.was_blind)
    }

    /// How often a ring held bytes that are no record, since the last call.
    pub fn take_torn(&mut self) -> u64 {
        self.merger.take_torn()
    }

    /// Follows CPUs that came online or went offline since the last call, or did both: as all but one do when the host is suspended. What a leaving CPU
    /// had in its rings is handed to `sink`. One that cannot be sampled is told of, and tried again with the next call.
    pub fn follow_cpus(&mut self, sink: impl FnMut(Event<'_>)) {
        let online = cpus::online();
        if online.is_empty() {
            return;
        }
        let stopped = self.stopped();
        let is_gone = |cpu: &u32| !online.contains(cpu) || stopped.contains(cpu);
        let gone: BTreeSet<u32> = self.cpus.keys().copied().filter(is_gone).collect();
        if !gone.is_empty() {
            tracing::info!(cpus = ?gone, "CPUs went offline");
            // All rings together, so that the order holds.
            self.drain(u64::MAX, sink);
            self.rings.retain(|ring| !gone.contains(&ring.cpu()));
            self.cpus.retain(|cpu, _| !gone.contains(cpu));
        }
        for cpu in online {
            if self.cpus.contains_key(&cpu) {
                continue;
            }
            match self.add_cpu(cpu) {
                Ok(()) => {
                    self.refused.remove(&cpu);
                    self.was_blind = true;
                    tracing::info!(cpu, "a CPU came online");
                }
                Err(error) if self.refused.insert(cpu) => {
                    tracing::warn!("a CPU came online and is not sampled: {}", chain(&error));
                }
                Err(_) => {}
            }
        }
    }

    /// The CPUs whose events stand still since the last call.
    fn stopped(&mut self) -> BTreeSet<u32> {
        let mut stopped = BTreeSet::new();
        for ring in &self.rings {
            if let Ring::Events(events) = ring
                && let Some(cpu) = self.cpus.get_mut(&ring.cpu())
                && let Ok(enabled) = events.event().time_enabled()
                && std::mem::replace(&mut cpu.enabled, enabled) == enabled
            {
                stopped.insert(ring.cpu());
            }
        }
        stopped
    }

    /// The programs' own counters, summed over CPUs.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Map`].
    pub fn counter(&self, counter: Counter) -> Result<u64, SamplingError> {
        let counters = self
            .programs
            .map("COUNTERS")
            .ok_or(SamplingError::Incomplete("COUNTERS"))?;
        let counters = PerCpuArray::<_, u64>::try_from(counters)?;
        Ok(counters.get(&(counter as u32), 0)?.iter().sum())
    }

    /// What the program that takes samples has cost, by the kernel's own accounting. Zero unless something on the host has switched the
    /// accounting on (`sysctl kernel.bpf_stats_enabled=1`, or [`aya::sys::enable_stats`]).
    ///
    /// # Errors
    ///
    /// [`SamplingError::Program`] when the kernel does not tell (before 5.1).
    pub fn cost(&self) -> Result<ProgramCost, SamplingError> {
        let program = self
            .programs
            .program("on_tick")
            .ok_or(SamplingError::Incomplete("on_tick"))?;
        let info = program.info().map_err(|source| SamplingError::Program {
            name: "on_tick",
            source,
        })?;
        Ok(ProgramCost {
            runs: info.run_count(),
            time: info.run_time(),
        })
    }

    /// The same for every program, by its name. Those that have not run under the kernel's accounting are left out.
    pub fn costs(&self) -> Vec<(&'static str, ProgramCost)> {
        let cost = |name: &'static str| {
            let info = self.programs.program(name)?.info().ok()?;
            let cost = ProgramCost {
                runs: info.run_count(),
                time: info.run_time(),
            };
            (cost.runs > 0).then_some((name, cost))
        };
        PROGRAM_NAMES.into_iter().filter_map(cost).collect()
    }

    /// The maps that hold unwind tables, for the stage that fills them; once.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Incomplete`] when they are not there, or gone already.
    pub fn take_unwind_maps(&mut self) -> Result<crate::unwind::Maps, SamplingError> {
        let Some(Map::ArrayOfMaps(segments)) = self.programs.take_map("SEGMENTS") else {
            return Err(SamplingError::Incomplete("SEGMENTS"));
        };
        let Some(Map::Array(news)) = self.programs.take_map("NEWS") else {
            return Err(SamplingError::Incomplete("NEWS"));
        };
        let processes = self
            .programs
            .take_map("PROCESSES")
            .ok_or(SamplingError::Incomplete("PROCESSES"))?;
        Ok(crate::unwind::Maps {
            segments,
            news,
            processes: HashMap::try_from(processes)?,
        })
    }

    /// The kernel side's log, for whoever reads it out.
    ///
    /// # Errors
    ///
    /// When the programs have no log.
    pub fn log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.programs)
    }

    /// Finds out which clock this machine has, and whether its kernel reports build IDs, by asking for them.
    fn probe(&mut self) -> Result<(), SamplingError> {
        let cpu = *cpus::online().first().ok_or(SamplingError::NoCpu)?;
        if let Err(error) = PerfEvent::clock(Clock::Cycles, self.config.frequency, cpu) {
            tracing::debug!(%error, "no hardware cycles to sample by, as in most virtual machines; using cpu-clock");
            self.clock = Clock::CpuClock;
        }
        if let Err(error) = PerfEvent::ring_owner(cpu, 1, true) {
            tracing::debug!(%error, "this kernel reports no build IDs of mapped files; using inodes");
            self.build_ids = false;
        }
        Ok(())
    }

    fn add_cpu(&mut self, cpu: u32) -> Result<(), SamplingError> {
        let failed = |what| move |source| SamplingError::PerfEvent { what, cpu, source };
        let owner =
            PerfEvent::ring_owner(cpu, EVENT_BYTES / 2, self.build_ids).map_err(failed("ring buffer"))?;
        let events = EventRing::new(owner, cpu, EVENT_BYTES as usize).map_err(failed("ring buffer"))?;
        events.event().enable().map_err(failed("ring buffer"))?;
        let samples = SampleRing::new(cpu, sample_bytes(self.config.frequency))?;
        bpf::set_descriptor(self.samples.fd().as_fd(), cpu, samples.map()).map_err(failed("ring buffer"))?;

        let clock =
            PerfEvent::clock(self.clock, self.config.frequency, cpu).map_err(failed("sampling clock"))?;
        let program: &PerfEventProgram = self
            .programs
            .program("on_tick")
            .and_then(|program| program.try_into().ok())
            .ok_or(SamplingError::Incomplete("on_tick"))?;
        let program = program.fd().map_err(|source| SamplingError::Program {
            name: "on_tick",
            source,
        })?;
        clock
            .set_program(program.as_fd())
            .map_err(failed("sampling clock"))?;
        if self.running {
            enable(cpu, &clock)?;
        }
        self.rings.extend([Ring::Events(events), Ring::Samples(samples)]);
        self.cpus.insert(cpu, Cpu { clock, enabled: 0 });
        Ok(())
    }
}

fn enable(cpu: u32, clock: &PerfEvent) -> Result<(), SamplingError> {
    clock.enable().map_err(|source| SamplingError::PerfEvent {
        what: "sampling clock",
        cpu,
        source,
    })
}

/// Size of each ring of events: room for what some hundred processes do that start.
const EVENT_BYTES: u32 = 128 << 10;

/// Size of each ring of samples: room for a second of samples of 100 frames, and for six that are unfinished.
fn sample_bytes(frequency: u32) -> usize {
    const LEAST: usize = 2 * WAKE_AFTER as usize;
    const MOST: usize = 4 << 20;
    (frequency as usize * 1024).next_power_of_two().clamp(LEAST, MOST)
}

/// The programs, made for the running kernel and not yet verified by it; `log` is what its verifier will say of one that it refuses.
///
/// # Errors
///
/// [`SamplingError`] when this kernel lacks what they need.
pub fn programs(config: &Config, log: VerifierLogLevel) -> Result<Ebpf, SamplingError> {
    let btf = Btf::of_running_kernel()?;
    let offset = |structure, field| btf.offset(structure, field);
    let (tgid, pid) = (offset("task_struct", "tgid")?, offset("task_struct", "pid")?);
    let (signal, live) = (offset("task_struct", "signal")?, offset("signal_struct", "live")?);
    let mm = offset("task_struct", "mm")?;
    // Some kernels may do without; then a stack that is gone counts as unreadable.
    let in_execve = btf.bit("task_struct", "in_execve").unwrap_or_default();
    let stack = offset("task_struct", "stack")?;
    let saved_registers = match SavedRegisters::of_running_kernel(&btf)? {
        SavedRegisters::Told => 0,
        SavedRegisters::At(offset) => offset,
    };
    let (leader, comm) = (
        offset("task_struct", "group_leader")?,
        offset("task_struct", "comm")?,
    );
    let (filter, name) = match config.wanted {
        Wanted::Everything => (Filter::Everything, Comm::from("")),
        Wanted::Processes(_) => (Filter::Processes, Comm::from("")),
        Wanted::Named(name) => (Filter::Name, name),
        Wanted::Group(_) => (Filter::Group, Comm::from("")),
    };
    let (filter, name) = (filter as u32, name.0);
    let period = 1_000_000_000 / u64::from(config.frequency.max(1));

    let programs = EbpfLoader::new()
        .btf(None) // nothing in there is relocated by types; no need to parse the kernel's once more
        .verifier_log_level(log)
        .override_global("TASK_TGID", &tgid, true)
        .override_global("TASK_PID", &pid, true)
        .override_global("TASK_SIGNAL", &signal, true)
        .override_global("SIGNAL_LIVE", &live, true)
        .override_global("TASK_STACK", &stack, true)
        .override_global("SAVED_REGISTERS", &saved_registers, true)
        .override_global("TASK_MM", &mm, true)
        .override_global("TASK_IN_EXECVE", &in_execve.byte, true)
        .override_global("IN_EXECVE_BIT", &in_execve.mask, true)
        .map_max_entries("SCRATCH", cpus::possible())
        .map_max_entries("SAMPLES", cpus::possible())
        .override_global("TASK_LEADER", &leader, true)
        .override_global("TASK_COMM", &comm, true)
        .override_global("FILTER", &filter, true)
        .override_global("NAME", &name, true)
        .override_global("PERIOD", &period, true)
        .load(PROGRAMS)?;
    Ok(programs)
}

fn load(config: &Config) -> Result<Ebpf, SamplingError> {
    let mut programs = programs(config, VerifierLogLevel::default())?;
    let program: &mut PerfEventProgram = programs
        .program_mut("on_tick")
        .and_then(|program| program.try_into().ok())
        .ok_or(SamplingError::Incomplete("on_tick"))?;
    program.load().map_err(|source| refused("on_tick", source))?;
    Ok(programs)
}

fn attach(programs: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), SamplingError> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(SamplingError::Incomplete(name))?;
    program
        .load()
        .and_then(|()| program.attach(tracepoint))
        .map_err(|source| refused(name, source))?;
    Ok(())
}

/// A program that was not taken: by the verifier, which says why, or for another reason.
fn refused(name: &'static str, source: ProgramError) -> SamplingError {
    let ProgramError::LoadError { verifier_log, .. } = &source else {
        return SamplingError::Program { name, source };
    };
    let log = verifier_log.to_string();
    match last_words(&log) {
        Some(reason) => {
            tracing::debug!("what the verifier said of {name}:\n{log}");
            SamplingError::Unproven {
                name,
                release: rustix::system::uname().release().to_string_lossy().into_owned(),
                reason: reason.to_owned(),
            }
        }
        // It did not come so far.
        None => SamplingError::Program { name, source },
    }
}

/// The line of a verifier's log that says what is wrong: the last one before its statistics.
fn last_words(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_stands_before_the_statistics() {
        let log = "46: (85) call unknown#158\ninvalid func unknown#158\nverification time 2151594 usec\n\
                   stack depth 248+0+0\nprocessed 25664 insns (limit 1000000) max_states_per_insn 15\n\n";
        assert_eq!(last_words(log), Some("invalid func unknown#158"));
        assert_eq!(last_words("processed 3 insns (limit 1000000)\n"), None);
        assert_eq!(last_words(""), None);
    }
}
