//! Unwinding: tables from files' call frame information, what the kernel programs know of them, and the stacks that they leave to user
//! space.
//!
//! ```text
//! unfinished sample ──▶ walk ──▶ finished sample
//!                        │ ▲
//!            no table yet│ │             builder: sections ▶ cfi ▶ table
//!                        ▼ │             (a thread of its own)
//!                       tables ◀──────────────┘
//!                        │
//!                        ▼
//!                     publish ──▶ lists of mappings, for the kernel programs: they finish the next one
//! ```
//!
//! Everything begins with a sample that the kernel programs could not finish, unless its process was known before: the process or some code
//! on its stack is unknown to them. It is finished here, and waits if it must until the tables that it needs are built; and its process is made known. So only code that is sampled costs
//! a table, and the first sample is as good as the last. Processes that do not fit into the kernel's maps go this way for ever: it costs
//! more, and is as right.
//!
//! A table belongs to a file and is shared by all processes that run it. The sections are a stranger's bytes: what they may cost in time and
//! memory is bounded before they are read.

mod arena;
mod builder;
pub mod cfi;
mod parked;
mod publish;
mod sections;
pub mod table;
mod tables;
pub mod walk;

use std::sync::Arc;

use aya::maps::MapData;
use profiler_common::{Outcome, record::Unfinished};

use self::{
    builder::Request,
    parked::Park,
    publish::Publisher,
    tables::{Known, Tables},
    walk::{Walked, Way},
};
use crate::{
    process::{Code, CodeBacking, Process, Processes, vdso},
    sampling::record::{Frames, Rest, Sample},
};

pub use self::{builder::BuildError, publish::List};

/// The maps of the kernel programs that this stage fills.
#[derive(Debug)]
pub struct Maps {
    /// The array of segments.
    pub segments: MapData,
    /// [`profiler_common::arena::News`].
    pub news: MapData,
    /// Where each process's mappings are.
    pub processes: aya::maps::HashMap<MapData, u32, List>,
}

/// The id of the vDSO's table; files count from 0.
const VDSO: u32 = u32::MAX;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Unwinder {
    tables: Tables,
    publisher: Publisher,
    park: Park,
    /// Room for the frames of a sample.
    frames: Vec<u64>,
    bytes: Vec<u8>,
}

impl Unwinder {
    /// Begins with the maps empty; fills at most `bytes` of the kernel's memory with tables and lists.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give, or no memory to map.
    pub fn new(maps: Maps, bytes: usize) -> std::io::Result<Self> {
        let Maps {
            segments,
            news,
            processes,
        } = maps;
        Ok(Self {
            tables: Tables::new(segments, news, bytes)?,
            publisher: Publisher::new(processes),
            park: Park::default(),
            frames: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// Whether samples wait for tables.
    pub fn is_waited_for(&self) -> bool {
        !self.park.is_empty()
    }

    /// From now on somebody waits for the last samples: what can be built is built at once.
    pub fn hurry(&self) {
        self.tables.hurry();
    }

    /// Bytes of the kernel's memory that hold tables and mappings.
    pub fn memory(&self) -> usize {
        self.tables.arena.memory()
    }

    /// Files whose tables are in the kernel's memory.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Makes a process known that will be sampled, with the tables of all its code: no sample needs to be finished here then.
    pub fn prepare(&mut self, process: &Process, processes: &mut Processes) {
        for code in processes.code(process) {
            if let Some((id, _)) = file_address(&code, code.start) {
                self.tables.want(id, || request(id, &code));
            }
        }
        self.publisher.missed(process, false);
    }

    /// Whether tables are being built.
    pub const fn is_building(&self) -> bool {
        !self.tables.is_idle()
    }

    /// Finishes a sample and hands it to `sink`, now or in a later [`Self::update`].
    pub fn finish(
        &mut self,
        sample: &Sample<'_>,
        rest: &Rest<'_>,
        (cpu, time): (u32, u64),
        process: &Arc<Process>,
        processes: &mut Processes,
        sink: impl FnOnce(&Sample<'_>, &Process, &mut Processes),
    ) {
        let mut walked = self.walk(sample, rest, process, processes, false);
        if walked == Walked::Pending {
            if self.park.keep(sample, rest, cpu, time, process) {
                return;
            }
            walked = self.walk(sample, rest, process, processes, true);
        }
        self.hand_out(sample, walked, process, processes, sink);
    }

    /// Brings the kernel's picture up to date, and hands out the samples that have waited for tables that are there now. With
    /// `last`, all of them: what has no table yet is unwound by frame pointer.
    pub fn update(
        &mut self,
        processes: &mut Processes,
        last: bool,
        mut sink: impl FnMut(&Sample<'_>, (u32, u64), &Process, &mut Processes),
    ) {
        for id in processes.take_forgotten_files() {
            self.tables.forget(id);
        }
        let changes = self.tables.collect();
        self.publisher
            .changed(processes, &changes.fresh, &changes.evicted, &mut self.tables);
        if last || !changes.fresh.is_empty() || self.tables.is_idle() || self.park.is_overdue() {
            for parked in self.park.take() {
                let (sample, rest) = parked.parts();
                let give_up = last || parked.is_overdue();
                let walked = self.walk(&sample, &rest, &parked.process, processes, give_up);
                if walked == Walked::Pending {
                    self.park.put_back(parked);
                    continue;
                }
                let at = (parked.cpu, parked.time);
                self.hand_out(
                    &sample,
                    walked,
                    &parked.process,
                    processes,
                    |sample, process, processes| {
                        sink(sample, at, process, processes);
                    },
                );
            }
        }
        self.publisher.publish(processes, &mut self.tables);
        self.tables.release();
    }

    /// Walks a sample's stack to its end, into `self.frames`; with `give_up`, by frame pointer where there is no table yet.
    fn walk(
        &mut self,
        sample: &Sample<'_>,
        rest: &Rest<'_>,
        process: &Process,
        processes: &mut Processes,
        give_up: bool,
    ) -> Walked {
        let Self { tables, frames, .. } = self;
        frames.clear();
        frames.extend(sample.user.iter());
        walk::walk(
            &Unfinished::from_bytes(rest.state),
            rest.stack,
            frames,
            |address| {
                let Some(code) = processes.code_at(process, address) else {
                    return Way::Nowhere;
                };
                let Some((id, file_address)) = file_address(&code, address) else {
                    return Way::Untold;
                };
                tables.need(id, || request(id, &code));
                match tables.find(id, file_address) {
                    Known::Rule(rule) => Way::Table(rule),
                    Known::Pending if !give_up => Way::Pending,
                    Known::Nothing | Known::Pending => Way::Untold,
                    Known::Unusable => Way::FramePointer,
                }
            },
        )
    }

    /// Hands out the sample whose frames are in `self.frames`.
    fn hand_out(
        &mut self,
        sample: &Sample<'_>,
        walked: Walked,
        process: &Process,
        processes: &mut Processes,
        sink: impl FnOnce(&Sample<'_>, &Process, &mut Processes),
    ) {
        let (outcome, astray) = match walked {
            Walked::To(outcome) => (outcome, false),
            Walked::Astray(outcome) => (outcome, true),
            Walked::Pending => (Outcome::NoRule, false),
        };
        self.publisher.missed(process, astray);
        self.bytes.clear();
        self.bytes
            .extend(self.frames.iter().flat_map(|frame| frame.to_ne_bytes()));
        let sample = Sample {
            outcome,
            user: Frames(&self.bytes),
            ..*sample
        };
        sink(&sample, process, processes);
    }
}

/// Which table an address of a process is to be looked up in, and as which address of its file; `None` for code without any.
fn file_address(code: &Code, address: u64) -> Option<(u32, u64)> {
    let offset = address.wrapping_sub(code.start);
    match &code.backing {
        CodeBacking::File { file, address } => Some((file.id, address.wrapping_add(offset))),
        CodeBacking::Vdso(address) => Some((VDSO, address.wrapping_add(offset))),
        CodeBacking::Unknown => None,
    }
}

/// What to ask the builder for; `None` when there is nothing to read.
fn request(id: u32, code: &Code) -> Option<Request> {
    match &code.backing {
        CodeBacking::File { file, .. } => Some(Request {
            id,
            file: Arc::clone(&file.file),
            path: file.path.clone(),
            code: file.code(),
        }),
        CodeBacking::Vdso(_) => Some(Request {
            id,
            file: Arc::clone(&vdso()?.file),
            path: "[vdso]".into(),
            code: 0..0,
        }),
        CodeBacking::Unknown => None,
    }
}
