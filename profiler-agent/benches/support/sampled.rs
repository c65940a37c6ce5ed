//! The agent's programs at work on one process, with the real tables, and what they did.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use profiler_agent::{
    clock,
    process::Processes,
    sampling::{Config, Sampler, merge, record::Record},
    target::Wanted,
    unwind::Unwinder,
};
use profiler_common::{
    Outcome,
    record::{BY_FRAME_POINTER, Counter},
};
use rustix::time::{ClockId, clock_gettime};

/// As the command line has it.
const UNWIND_MEMORY: usize = 16 << 20;

/// How often the rings are looked at while the tables are built.
const LOOK: Duration = Duration::from_millis(20);

/// How often they are looked at then, as in the agent.
const TICK: Duration = Duration::from_millis(100);

/// Samples in a row that must come finished before anything is measured.
const IN_A_ROW: u64 = 100;

/// How long that may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the programs did in a span of time.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    /// Samples of the process.
    pub(crate) samples: u64,
    /// Those among them whose walk was finished in the kernel,
    pub(crate) finished: u64,
    /// and those that came to where the thread began.
    pub(crate) complete: u64,
    /// User frames of all.
    pub(crate) user: u64,
    /// The least user frames of one.
    pub(crate) least: u64,
    /// User frames whose caller was looked for by frame pointer.
    pub(crate) chained: u64,
    /// Kernel frames of all.
    pub(crate) kernel: u64,
    /// Runs of the program, other processes' ticks included.
    pub(crate) runs: u64,
    /// Nanoseconds of all runs.
    pub(crate) time: f64,
}

/// The agent without what comes behind unwinding.
pub(crate) struct Sampled {
    pid: u32,
    frequency: u32,
    sampler: Sampler,
    processes: Processes,
    unwinder: Unwinder,
    /// Finished samples since the last that was not.
    in_a_row: u64,
}

impl Sampled {
    /// Loads the programs, with the process as their target.
    pub(crate) fn new(pid: u32, frequency: u32) -> Self {
        let mut sampler = Sampler::new(Config {
            frequency,
            wanted: Wanted::Processes(vec![pid]),
        })
        .expect("sampler");
        let mut processes = Processes::new(Some(&[pid]));
        processes.scan();
        let maps = sampler.take_unwind_maps().expect("maps");
        let unwinder = Unwinder::new(maps, UNWIND_MEMORY).expect("thread");
        // How fast tables are built is no matter here.
        unwinder.hurry();
        Self {
            pid,
            frequency,
            sampler,
            processes,
            unwinder,
            in_a_row: 0,
        }
    }

    /// Samples until the kernel side knows what it needs.
    pub(crate) fn warm_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.sampler.start().expect("start");
        while self.in_a_row < IN_A_ROW {
            assert!(
                Instant::now() < deadline,
                "the kernel side does not come to know the process: {} finished samples in a row, {} bytes",
                self.in_a_row,
                self.memory()
            );
            std::thread::sleep(LOOK);
            self.take_in(
                clock::monotonic().saturating_sub(merge::SETTLE),
                &mut Seen::default(),
            );
        }
        self.sampler.stop();
        self.take_in(u64::MAX, &mut Seen::default());
    }

    /// Samples for a while. The rings are looked at as often as the agent does.
    pub(crate) fn run(&mut self, span: Duration) -> Seen {
        let counters = |sampler: &Sampler| {
            let full = sampler.counter(Counter::RingFull).expect("counter");
            (sampler.cost().expect("cost"), full)
        };
        let (cost_before, full_before) = counters(&self.sampler);
        self.sampler.start().expect("start");
        let until = Instant::now() + span;
        let mut seen = Seen {
            least: u64::MAX,
            ..Seen::default()
        };
        while Instant::now() < until {
            std::thread::sleep(until.saturating_duration_since(Instant::now()).min(TICK));
            self.take_in(clock::monotonic().saturating_sub(merge::SETTLE), &mut seen);
        }
        self.sampler.stop();
        let (cost, full) = counters(&self.sampler);
        self.take_in(u64::MAX, &mut seen);
        // What was written was read, then.
        assert_eq!(full, full_before, "a ring was full");
        assert_eq!(self.sampler.take_torn(), 0, "a ring held what is no record");
        Seen {
            runs: cost.runs - cost_before.runs,
            time: (cost.time - cost_before.time).as_nanos() as f64,
            ..seen
        }
    }

    /// Has programs that know nothing sample for a while, and finishes here what they leave: what the samples cost in the kernel, and the
    /// nanoseconds of CPU time that each took here, from the ring to the whole stack.
    pub(crate) fn run_unknown(&mut self, span: Duration) -> (Seen, f64) {
        let mut unknowing = Sampler::new(self.sampler_config()).expect("sampler");
        unknowing.start().expect("start");
        std::thread::sleep(span);
        unknowing.stop();
        let cost = unknowing.cost().expect("cost");
        let Self {
            processes, unwinder, ..
        } = self;
        let mut seen = Seen {
            least: u64::MAX,
            runs: cost.runs,
            time: cost.time.as_nanos() as f64,
            ..Seen::default()
        };
        let before = clock_gettime(ClockId::ThreadCPUTime);
        unknowing.drain(u64::MAX, |event| {
            if let Record::Unfinished(sample, rest) = event.record {
                let process = Arc::clone(processes.find(sample.pid));
                let at = (event.cpu, event.time);
                unwinder.finish(&sample, &rest, at, &process, processes, |sample, _, _| {
                    let user = sample.user.len() as u64;
                    seen.samples += 1;
                    seen.complete += u64::from(sample.outcome == Outcome::Complete);
                    seen.user += user;
                    seen.least = seen.least.min(user);
                });
            }
        });
        let after = clock_gettime(ClockId::ThreadCPUTime);
        let spent = (after.tv_sec - before.tv_sec) as f64 * 1e9 + (after.tv_nsec - before.tv_nsec) as f64;
        (seen, spent / seen.samples as f64)
    }

    fn sampler_config(&self) -> Config {
        Config {
            frequency: self.frequency,
            wanted: Wanted::Processes(vec![self.pid]),
        }
    }

    /// Bytes of tables and lists that the kernel side has.
    pub(crate) fn memory(&self) -> usize {
        self.unwinder.memory()
    }

    /// Adds up what the rings hold up to a time; the kernel side learns what it lacked.
    fn take_in(&mut self, until: u64, seen: &mut Seen) {
        let Self {
            pid,
            sampler,
            processes,
            unwinder,
            in_a_row,
            ..
        } = self;
        let mut lost = false;
        sampler.drain(until, |event| match event.record {
            Record::Sample(sample) => {
                assert_eq!(sample.pid, *pid, "a sample of another process");
                let user = sample.user.len() as u64;
                seen.samples += 1;
                seen.finished += 1;
                seen.complete += u64::from(sample.outcome == Outcome::Complete);
                seen.user += user;
                seen.least = seen.least.min(user);
                seen.chained += sample
                    .user
                    .iter()
                    .filter(|frame| frame & BY_FRAME_POINTER != 0)
                    .count() as u64;
                seen.kernel += sample.kernel.len() as u64;
                *in_a_row += 1;
            }
            Record::Unfinished(sample, rest) => {
                seen.samples += 1;
                *in_a_row = 0;
                let process = Arc::clone(processes.find(sample.pid));
                let at = (event.cpu, event.time);
                unwinder.finish(&sample, &rest, at, &process, processes, |_, _, _| {});
            }
            // Samples that a ring refused are counted in `run`.
            Record::Lost(_) => lost = true,
            Record::Mmap(_)
            | Record::Comm { .. }
            | Record::Fork { .. }
            | Record::Exit { .. }
            | Record::Other => processes.apply(&event.record),
        });
        if lost {
            processes.doubt();
        }
        unwinder.update(processes, false, |_, _, _, _| {});
    }
}
