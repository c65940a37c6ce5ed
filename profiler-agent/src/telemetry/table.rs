//! Every metric: what leaves the agent as OTLP, what `/metrics` shows, and what docs/metrics.md says, is made of this table.
//!
//! Names follow <https://opentelemetry.io/docs/specs/semconv/general/naming/>; units are of UCUM.

use std::fmt::Write as _;

use profiler_common::Outcome;

use super::{Loss, figures::Figures, histogram::Histogram, prometheus::prometheus_name};
use crate::{
    agent,
    profile::Unwinding,
    sampling::{PROGRAM_NAMES, ProgramCost},
};

/// What can be done with the values of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows: a sum.
    Counter,
    /// A sum that grows and shrinks.
    UpDownCounter,
    /// A value for itself.
    Gauge,
    /// Durations by classes.
    Histogram,
}

impl Kind {
    /// Its name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::UpDownCounter => "up-down counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What the points of a metric differ by.
#[derive(Debug, Clone, Copy)]
pub struct Attribute {
    /// Its key.
    pub key: &'static str,
    /// All values that it can have.
    pub values: fn() -> Vec<&'static str>,
}

/// Takes a point: its attributes and its value.
pub type Sink<'a, T> = &'a mut dyn FnMut(&[(&'static str, &'static str)], T);

/// How the points of a metric are found.
#[derive(Debug, Clone, Copy)]
pub enum Points {
    /// Whole numbers.
    Numbers(fn(&Figures, Sink<'_, u64>)),
    /// Seconds.
    Seconds(fn(&Figures, Sink<'_, f64>)),
    /// One histogram of seconds, without attributes.
    Histogram(fn(&Figures) -> Option<&Histogram>),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As OpenTelemetry has it.
    pub name: &'static str,
    /// Unit by UCUM; `{…}` counts things.
    pub unit: &'static str,
    /// What can be done with its values.
    pub kind: Kind,
    /// What it is, in a sentence.
    pub description: &'static str,
    /// What its points differ by.
    pub attributes: &'static [Attribute],
    /// Where its points come from; none where there is nothing to say.
    pub points: Points,
}

/// A metric of one point without attributes, from a part of the figures that may not be there.
macro_rules! number {
    ($name:literal, $unit:literal, $kind:expr, $description:literal, $part:ident, |$of:ident| $value:expr $(,)?) => {
        Metric {
            name: $name,
            unit: $unit,
            kind: $kind,
            description: $description,
            attributes: &[],
            points: Points::Numbers(|figures, sink| {
                if let Some($of) = &figures.$part {
                    sink(&[], $value);
                }
            }),
        }
    };
}

const REASON: &str = "profiler_agent.loss.reason";
const OUTCOME: &str = "profiler_agent.stack.outcome";
const UNWINDING: &str = "profiler_agent.stack.unwinding";
const CACHE: &str = "profiler_agent.cache.name";
const RESULT: &str = "profiler_agent.cache.result";
const PROGRAM: &str = "profiler_agent.program.name";
const SUCCESS: &str = "profiler_agent.export.outcome";
const MODE: &str = "cpu.mode";

/// Every metric, in the order of the documents.
pub const METRICS: &[Metric] = &[
    // Sampling.
    number!(
        "profiler_agent.sampling.samples",
        "{sample}",
        Kind::Counter,
        "Samples taken in, as they come.",
        capture,
        |capture| capture.samples.samples,
    ),
    Metric {
        name: "profiler_agent.sampling.lost",
        unit: "{sample}",
        kind: Kind::Counter,
        description: "Samples lost before they were taken in, as it happens; the ledger has them when their slice is finished.",
        attributes: &[Attribute {
            key: REASON,
            values: || vec![Loss::RingFull.name(), Loss::TornRecord.name()],
        }],
        points: Points::Numbers(|figures, sink| {
            for (reason, count) in figures.capture.iter().flat_map(|capture| &capture.lost) {
                sink(&[(REASON, reason.name())], *count);
            }
        }),
    },
    number!(
        "profiler_agent.sampling.lost_events",
        "{event}",
        Kind::Counter,
        "Process events that a full ring refused; /proc was read again.",
        capture,
        |capture| capture.lost_events,
    ),
    number!(
        "profiler_agent.sampling.over_budget",
        "{sample}",
        Kind::Counter,
        "Samples beyond a bound of the aggregator, counted under a marker frame.",
        capture,
        |capture| capture.samples.over_budget,
    ),
    number!(
        "profiler_agent.sampling.unfollowed",
        "{process}",
        Kind::Counter,
        "Children that did not fit into the set of targets.",
        capture,
        |capture| capture.unfollowed,
    ),
    number!(
        "profiler_agent.sampling.processes",
        "{process}",
        Kind::UpDownCounter,
        "Processes that are followed.",
        capture,
        |capture| capture.processes as u64,
    ),
    Metric {
        name: "profiler_agent.sampling.stacks",
        unit: "{sample}",
        kind: Kind::Counter,
        description: "Samples of finished slices by how the walk of their stack ended.",
        attributes: &[Attribute {
            key: OUTCOME,
            values: || Outcome::ALL.map(Outcome::name).to_vec(),
        }],
        points: Points::Numbers(|figures, sink| {
            for (outcome, count) in figures
                .capture
                .iter()
                .flat_map(|capture| &capture.totals.outcomes)
            {
                sink(&[(OUTCOME, outcome.name())], *count);
            }
        }),
    },
    Metric {
        name: "profiler_agent.sampling.unwound",
        unit: "{sample}",
        kind: Kind::Counter,
        description: "Samples of finished slices with user frames by how those were found.",
        attributes: &[Attribute {
            key: UNWINDING,
            values: || Unwinding::ALL.map(Unwinding::name).to_vec(),
        }],
        points: Points::Numbers(|figures, sink| {
            for (unwinding, count) in figures.capture.iter().flat_map(|capture| &capture.totals.unwound) {
                sink(&[(UNWINDING, unwinding.name())], *count);
            }
        }),
    },
    Metric {
        name: "profiler_agent.program.runs",
        unit: "{run}",
        kind: Kind::Counter,
        description: "Runs of a kernel program under the kernel's accounting, which is off unless `--kernel-stats` or `sysctl kernel.bpf_stats_enabled=1` switches it on.",
        attributes: &[PROGRAMS],
        points: Points::Numbers(|figures, sink| {
            programs(figures, |name, cost| sink(&[(PROGRAM, name)], cost.runs));
        }),
    },
    Metric {
        name: "profiler_agent.program.time",
        unit: "s",
        kind: Kind::Counter,
        description: "CPU time of a kernel program under the same accounting; not there without it.",
        attributes: &[PROGRAMS],
        points: Points::Seconds(|figures, sink| {
            programs(figures, |name, cost| {
                sink(&[(PROGRAM, name)], cost.time.as_secs_f64());
            });
        }),
    },
    // Unwind tables, caches, names.
    number!(
        "profiler_agent.unwind.tables",
        "{file}",
        Kind::UpDownCounter,
        "Files whose unwind tables are in the kernel's memory.",
        capture,
        |capture| capture.tables as u64,
    ),
    number!(
        "profiler_agent.unwind.memory.usage",
        "By",
        Kind::UpDownCounter,
        "Kernel memory that holds unwind tables and lists of mappings.",
        capture,
        |capture| capture.table_memory as u64,
    ),
    number!(
        "profiler_agent.unwind.memory.limit",
        "By",
        Kind::UpDownCounter,
        "What that may grow to (`--unwind-memory`).",
        capture,
        |capture| capture.table_limit as u64,
    ),
    Metric {
        name: "profiler_agent.cache.lookups",
        unit: "{lookup}",
        kind: Kind::Counter,
        description: "Lookups in a cache. Its hit rate is hits by all lookups.",
        attributes: &[
            Attribute {
                key: CACHE,
                values: || vec!["stacks", "locations"],
            },
            Attribute {
                key: RESULT,
                values: || vec!["hit", "miss"],
            },
        ],
        points: Points::Numbers(|figures, sink| {
            if let Some(agent::Figures {
                samples, locations, ..
            }) = &figures.capture
            {
                for (cache, hits, all) in [
                    ("stacks", samples.cache_hits, samples.samples),
                    ("locations", locations.known, locations.looked_up),
                ] {
                    sink(&[(CACHE, cache), (RESULT, "hit")], hits);
                    sink(&[(CACHE, cache), (RESULT, "miss")], all.saturating_sub(hits));
                }
            }
        }),
    },
    number!(
        "profiler_agent.symbolizer.failures",
        "{failure}",
        Kind::Counter,
        "How often the process that finds names had to be replaced.",
        capture,
        |capture| capture.symbolizer.failed.into(),
    ),
    Metric {
        name: "profiler_agent.symbolizer.cpu.time",
        unit: "s",
        kind: Kind::Counter,
        description: "CPU time of the processes that find names; not in process.cpu.time.",
        attributes: &[],
        points: Points::Seconds(|figures, sink| {
            if let Some(capture) = &figures.capture {
                sink(&[], capture.symbolizer.cpu.as_secs_f64());
            }
        }),
    },
    number!(
        "profiler_agent.symbolizer.memory.peak",
        "By",
        Kind::Gauge,
        "Most memory that one of them had at one time.",
        capture,
        |capture| capture.symbolizer.peak_memory,
    ),
    // The ledger: inherited + captured = exported + spooled + waiting + dropped, of one moment.
    number!(
        "profiler_agent.ledger.inherited",
        "{sample}",
        Kind::Counter,
        "Samples that an earlier run had left on the disk.",
        delivery,
        |delivery| delivery.counts.inherited,
    ),
    number!(
        "profiler_agent.ledger.captured",
        "{sample}",
        Kind::Counter,
        "Samples of finished slices, those that were lost at once too.",
        delivery,
        |delivery| delivery.counts.captured,
    ),
    number!(
        "profiler_agent.ledger.exported",
        "{sample}",
        Kind::Counter,
        "Samples that the receiver has taken.",
        delivery,
        |delivery| delivery.counts.exported,
    ),
    number!(
        "profiler_agent.ledger.spooled",
        "{sample}",
        Kind::UpDownCounter,
        "Samples on the disk.",
        delivery,
        |delivery| delivery.counts.spooled,
    ),
    number!(
        "profiler_agent.ledger.waiting",
        "{sample}",
        Kind::UpDownCounter,
        "Samples in memory that are neither exported nor on the disk.",
        delivery,
        |delivery| delivery.counts.waiting,
    ),
    Metric {
        name: "profiler_agent.ledger.dropped",
        unit: "{sample}",
        kind: Kind::Counter,
        description: "Samples that were dropped.",
        attributes: &[Attribute {
            key: REASON,
            values: || Loss::ALL.map(Loss::name).to_vec(),
        }],
        points: Points::Numbers(|figures, sink| {
            if let Some(delivery) = &figures.delivery {
                for reason in Loss::ALL {
                    let count = delivery.counts.dropped.get(&reason).copied();
                    sink(&[(REASON, reason.name())], count.unwrap_or_default());
                }
            }
        }),
    },
    number!(
        "profiler_agent.ledger.unaccounted",
        "{sample}",
        Kind::Counter,
        "Samples that the ledger has no place for: 0, or there is a bug.",
        delivery,
        |delivery| delivery.counts.unaccounted,
    ),
    // Queue, spool, export.
    number!(
        "profiler_agent.queue.requests",
        "{request}",
        Kind::UpDownCounter,
        "Requests that wait in memory.",
        delivery,
        |delivery| delivery.queue_requests,
    ),
    number!(
        "profiler_agent.queue.usage",
        "By",
        Kind::UpDownCounter,
        "Their bytes.",
        delivery,
        |delivery| delivery.queue_bytes,
    ),
    number!(
        "profiler_agent.queue.limit",
        "By",
        Kind::UpDownCounter,
        "What those may grow to, beside the slice that came last (`--queue-limit`).",
        delivery,
        |delivery| delivery.queue_limit,
    ),
    number!(
        "profiler_agent.spool.requests",
        "{request}",
        Kind::UpDownCounter,
        "Requests on the disk.",
        delivery,
        |delivery| delivery.spool_requests,
    ),
    number!(
        "profiler_agent.spool.usage",
        "By",
        Kind::UpDownCounter,
        "Their bytes.",
        delivery,
        |delivery| delivery.spool_bytes,
    ),
    number!(
        "profiler_agent.spool.limit",
        "By",
        Kind::UpDownCounter,
        "What those may grow to (`--spool-limit`); 0 without a spool.",
        delivery,
        |delivery| delivery.spool_limit,
    ),
    Metric {
        name: "profiler_agent.export.requests",
        unit: "{request}",
        kind: Kind::Counter,
        description: "Requests with profiles that were sent; one that failed counts as often as it did.",
        attributes: &[Attribute {
            key: SUCCESS,
            values: || vec!["success", "failure"],
        }],
        points: Points::Numbers(|figures, sink| {
            if let Some(delivery) = &figures.delivery {
                sink(&[(SUCCESS, "success")], delivery.sent.requests);
                sink(&[(SUCCESS, "failure")], delivery.sent.failures);
            }
        }),
    },
    number!(
        "profiler_agent.export.uncompressed",
        "By",
        Kind::Counter,
        "Bytes of the requests that arrived, before compression.",
        delivery,
        |delivery| delivery.sent.bytes,
    ),
    number!(
        "profiler_agent.export.compressed",
        "By",
        Kind::Counter,
        "Bytes of the requests that arrived, as they were sent.",
        delivery,
        |delivery| delivery.sent.packed,
    ),
    Metric {
        name: "profiler_agent.export.duration",
        unit: "s",
        kind: Kind::Histogram,
        description: "Time from sending a request with profiles to its answer, or to its failure.",
        attributes: &[],
        points: Points::Histogram(|figures| figures.delivery.as_ref().map(|delivery| &delivery.durations)),
    },
    number!(
        "profiler_agent.export.connections",
        "{connection}",
        Kind::Counter,
        "Connections to the receiver of profiles that were opened.",
        delivery,
        |delivery| delivery.connections,
    ),
    // The history.
    number!(
        "profiler_agent.history.samples",
        "{sample}",
        Kind::UpDownCounter,
        "Samples that can be asked for.",
        history,
        |history| history.samples,
    ),
    number!(
        "profiler_agent.history.forgotten",
        "{sample}",
        Kind::Counter,
        "Samples too old for the history, beyond its bytes, or in the future after the clock was set back.",
        history,
        |history| history.forgotten,
    ),
    number!(
        "profiler_agent.history.slices_skipped",
        "{slice}",
        Kind::Counter,
        "Slices that came faster than the history took them in.",
        history,
        |history| history.skipped,
    ),
    number!(
        "profiler_agent.history.usage",
        "By",
        Kind::UpDownCounter,
        "Bytes of the history, about.",
        history,
        |history| history.bytes,
    ),
    Metric {
        name: "profiler_agent.history.span",
        unit: "s",
        kind: Kind::Gauge,
        description: "Time from its first to its last slice.",
        attributes: &[],
        points: Points::Seconds(|figures, sink| {
            if let Some(history) = figures.history {
                sink(&[], std::time::Duration::from_nanos(history.span).as_secs_f64());
            }
        }),
    },
    // The process, by the semantic conventions of processes.
    Metric {
        name: "process.cpu.time",
        unit: "s",
        kind: Kind::Counter,
        description: "CPU time of the agent; the kernel programs run on that of what they sample.",
        attributes: &[Attribute {
            key: MODE,
            values: || vec!["user", "system"],
        }],
        points: Points::Seconds(|figures, sink| {
            sink(&[(MODE, "user")], figures.own.user);
            sink(&[(MODE, "system")], figures.own.system);
        }),
    },
    Metric {
        name: "process.memory.usage",
        unit: "By",
        kind: Kind::UpDownCounter,
        description: "Memory of the agent that is resident; that of the process that finds names is its own.",
        attributes: &[],
        points: Points::Numbers(|figures, sink| sink(&[], figures.own.resident)),
    },
    Metric {
        name: "process.thread.count",
        unit: "{thread}",
        kind: Kind::UpDownCounter,
        description: "Threads of the agent.",
        attributes: &[],
        points: Points::Numbers(|figures, sink| sink(&[], figures.own.threads)),
    },
    Metric {
        name: "process.unix.file_descriptor.count",
        unit: "{file_descriptor}",
        kind: Kind::UpDownCounter,
        description: "Open files of the agent.",
        attributes: &[],
        points: Points::Numbers(|figures, sink| sink(&[], figures.own.files)),
    },
    Metric {
        name: "process.uptime",
        unit: "s",
        kind: Kind::Gauge,
        description: "Time since the agent was started.",
        attributes: &[],
        points: Points::Seconds(|figures, sink| sink(&[], figures.own.uptime)),
    },
];

const PROGRAMS: Attribute = Attribute {
    key: PROGRAM,
    values: || PROGRAM_NAMES.to_vec(),
};

fn programs(figures: &Figures, mut sink: impl FnMut(&'static str, &ProgramCost)) {
    for (name, cost) in figures.capture.iter().flat_map(|capture| &capture.programs) {
        sink(name, cost);
    }
}

/// docs/metrics.md.
pub fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    for metric in METRICS {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "| `{}`<br>`{}` | {}, `{}` | {}",
            metric.name,
            prometheus_name(metric),
            metric.kind.name(),
            metric.unit,
            metric.description
        );
        for Attribute { key, values } in metric.attributes {
            let values: Vec<String> = values().iter().map(|value| format!("`{value}`")).collect();
            let _ = write!(text, " By `{key}`: {}.", values.join(", "));
        }
        text += " |\n";
    }
    text += END;
    text
}

const INTRODUCTION: &str = include_str!("introduction.md");
const END: &str = include_str!("end.md");
