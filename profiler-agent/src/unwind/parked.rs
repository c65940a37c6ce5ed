//! Samples that wait for tables.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use profiler_common::record::UNFINISHED_LEN;

use crate::{
    process::{Mapping, Process},
    sampling::record::{Frames, Rest, Sample},
};

/// Most bytes that wait.
const MOST: usize = 8 << 20;

/// How long a sample waits at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sample with what it takes to go on, kept from the ring.
#[derive(Debug)]
pub(super) struct Parked {
    /// When it was taken.
    pub(super) time: u64,
    /// Where.
    pub(super) cpu: u32,
    /// Its process as it was then.
    pub(super) process: Arc<Process>,
    since: Instant,
    /// Bytes that its process takes on its account.
    process_len: usize,
    sample: Sample<'static>,
    kernel: Box<[u8]>,
    user: Box<[u8]>,
    state: [u8; UNFINISHED_LEN],
    stack: Box<[u8]>,
}

impl Parked {
    /// The sample and its rest, as they came.
    pub(super) fn parts(&self) -> (Sample<'_>, Rest<'_>) {
        let sample = Sample {
            kernel: Frames(&self.kernel),
            user: Frames(&self.user),
            ..self.sample
        };
        let rest = Rest {
            state: &self.state,
            stack: &self.stack,
        };
        (sample, rest)
    }

    /// Whether it has waited long enough.
    pub(super) fn is_overdue(&self) -> bool {
        self.since.elapsed() >= PATIENCE
    }

    fn len(&self) -> usize {
        size_of::<Self>() + self.process_len + self.kernel.len() + self.user.len() + self.stack.len()
    }
}

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(super) struct Park {
    parked: VecDeque<Parked>,
    bytes: usize,
}

impl Park {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Whether one has waited long enough.
    pub(super) fn is_overdue(&self) -> bool {
        self.parked.front().is_some_and(Parked::is_overdue)
    }

    /// Keeps a sample; says whether there was room.
    pub(super) fn keep(
        &mut self,
        sample: &Sample<'_>,
        rest: &Rest<'_>,
        cpu: u32,
        time: u64,
        process: &Arc<Process>,
    ) -> bool {
        // Those of one state of a process share it.
        let last = self.parked.back();
        let process_len = match last.is_some_and(|last| Arc::ptr_eq(&last.process, process)) {
            true => 0,
            false => process.mapping_count() * size_of::<Mapping>(),
        };
        let parked = Parked {
            process_len,
            time,
            cpu,
            process: Arc::clone(process),
            since: Instant::now(),
            sample: Sample {
                kernel: Frames(&[]),
                user: Frames(&[]),
                ..*sample
            },
            kernel: sample.kernel.0.into(),
            user: sample.user.0.into(),
            state: *rest.state,
            stack: rest.stack.into(),
        };
        let fits = self.bytes + parked.len() <= MOST;
        if fits {
            self.bytes += parked.len();
            self.parked.push_back(parked);
        }
        fits
    }

    /// All that wait, in the order in which they came; who still has to wait is put back by [`Self::put_back`].
    pub(super) fn take(&mut self) -> VecDeque<Parked> {
        self.bytes = 0;
        std::mem::take(&mut self.parked)
    }

    /// Lets one wait on.
    pub(super) fn put_back(&mut self, parked: Parked) {
        self.bytes += parked.len();
        self.parked.push_back(parked);
    }
}
