//! profiler-agent: samples the stacks of running programs in the kernel, names every frame, and draws, writes or sends the result.
//!
//! # The way of a sample
//!
//! ```text
//! kernel     clock ─▶ filter ─▶ kernel stack ─▶ registers ─▶ user walk ─▶ ring of the CPU      (profiler-ebpf)
//!                                                                              │
//! agent      sampling ◀────────────────────────────────────────────────────────┘
//!               │ events of all CPUs in one order of time
//!               ▼
//!            process ─▶ unwind      a thread of its own; tables and mappings go back to the user walk
//!               │ what was mapped at that time
//!               ▼
//!            aggregate ◀──names── symbols       a thread of its own and a child without privileges; neither waits for the other
//!               │
//!               ▼
//!            profile ─▶ export (folded, pprof, OTLP) and render (SVG, HTML)
//! ```
//!
//! 1. [`target`] finds the processes, or the control [`group`], or creates the command and holds it before its first instruction.
//! 2. [`kernel`] asks what this kernel offers and allows: its types (BTF), the capabilities of this process.
//! 3. [`sampling`] loads the programs, opens a clock and the rings of every CPU, and hands out samples and process events, oldest first.
//! 4. [`process`] follows exec, fork, exit and mappings, so that an address is looked up in the mappings of its own time.
//! 5. [`unwind`] makes tables from what files say about their own frames, and puts them where the kernel programs look up how to walk code
//!    without frame pointers. Code whose table is not there yet is walked by frame pointer.
//! 6. [`aggregate`] adds up samples of one identity: kind, process, thread, CPU, stack.
//!    [`jit`] tells it what generated code is called.
//! 7. [`symbols`] gives names to locations while the capture runs.
//! 8. [`profile`] is the finished result, and all that an output reads.
//! 9. [`export`] writes files, whole or not at all, and sends OTLP, by way of the [`spool`] when nobody takes it; [`render`] draws. The [`history`] keeps the last hour, of which [`http`] answers questions.
//! 10. [`summary`] tells the person what happened, [`telemetry`] names each kind of loss and knows every metric, the [`ledger`] knows where each sample is.
//!
//! [`doctor`] tells what this host allows. [`agent`] alone knows all of these and their order. [`cpu_time`] is the independent witness of how many samples there should be,
//! [`clock`] turns the kernel's time into that on the wall, [`procfs`] reads /proc with bounds.
//!
//! # Who may use what
//!
//! aya is imported by [`sampling`] (its maps by [`unwind`], its log by [`agent`]), clap by the binary's `cli`, blazesym by [`symbols`], gimli by [`unwind`], inferno by [`render`], the
//! protocols of OpenTelemetry by [`export::otlp`]. Every queue, cache and table has a bound, and what goes beyond it is counted.

pub mod agent;
pub mod aggregate;
pub mod clock;
pub mod cpu_time;
pub mod diff;
pub mod doctor;
pub mod export;
pub mod group;
pub mod history;
pub mod http;
pub mod jit;
pub mod kernel;
pub mod ledger;
pub mod memory;
pub mod process;
pub mod procfs;
pub mod profile;
pub mod read;
pub mod render;
pub mod report;
pub mod resource;
pub mod sampling;
pub mod service;
pub mod spool;
pub mod summary;
pub mod symbols;
pub mod tally;
pub mod target;
pub mod telemetry;
pub mod top;
pub mod unwind;
