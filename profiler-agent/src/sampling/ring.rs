//! The rings of a CPU.

use super::{
    event_ring::EventRing,
    merge::{Buffer, Window},
    record::Layout,
    sample_ring::SampleRing,
};

/// One of the two rings that a CPU has.
#[derive(Debug)]
pub enum Ring {
    /// What the kernel tells of processes.
    Events(EventRing),
    /// What the programs sampled.
    Samples(SampleRing),
}

impl Ring {
    fn either(&self) -> &dyn Buffer {
        match self {
            Self::Events(ring) => ring,
            Self::Samples(ring) => ring,
        }
    }
}

impl Buffer for Ring {
    fn cpu(&self) -> u32 {
        self.either().cpu()
    }

    fn layout(&self) -> Layout {
        self.either().layout()
    }

    fn head(&self) -> u64 {
        self.either().head()
    }

    fn tail(&self) -> u64 {
        self.either().tail()
    }

    fn window(&self, from: u64, to: u64) -> Window<'_> {
        self.either().window(from, to)
    }

    fn release(&mut self, tail: u64) -> bool {
        match self {
            Self::Events(ring) => ring.release(tail),
            Self::Samples(ring) => ring.release(tail),
        }
    }
}
