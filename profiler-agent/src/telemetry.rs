//! What the agent counts about itself: every loss has a reason, and every reason a name.
//!
//! ```text
//! capture thread, once a second ─▶┐
//! delivery, at every request ─────┼▶ Figures ─▶ METRICS, one table ─┬▶ /metrics, in Prometheus' text format
//! history, when it is asked ──────┘                                 ├▶ OTLP metrics, at an interval of their own
//!                                                                   └▶ docs/metrics.md
//! ```
//! Stages count for themselves and hand out copies; nothing here is waited for.

mod figures;
mod histogram;
mod prometheus;
mod table;

pub use self::{
    figures::{Figures, HistoryFigures, Own, Telemetry},
    histogram::Histogram,
    prometheus::{prometheus, prometheus_name},
    table::{Attribute, Kind, METRICS, Metric, Points, Sink, document},
};

/// Why a sample has not arrived where it was to go. The one enum for all stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The ring of a CPU was full when the sample was taken.
    RingFull,
    /// The ring held bytes that are no record.
    TornRecord,
    /// Finished slices came faster than they were encoded; or faster than they were sent, where no disk takes them.
    EncoderBusy,
    /// Too much was waiting in memory for the receiver, and the disk did not take it.
    QueueFull,
    /// Too much was waiting on the disk for the receiver.
    SpoolFull,
    /// What was waiting on the disk could not be read any more.
    SpoolUnreadable,
    /// The receiver has refused the request for good.
    Refused,
    /// The receiver took the request but not all of it.
    Rejected,
    /// Larger than any receiver has to take.
    TooLarge,
    /// The agent was to end, and the disk did not take what was left.
    ShutDown,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::RingFull,
        Self::TornRecord,
        Self::EncoderBusy,
        Self::QueueFull,
        Self::SpoolFull,
        Self::SpoolUnreadable,
        Self::Refused,
        Self::Rejected,
        Self::TooLarge,
        Self::ShutDown,
    ];

    /// Name in metrics and summaries: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::TornRecord => "torn_record",
            Self::EncoderBusy => "encoder_busy",
            Self::QueueFull => "queue_full",
            Self::SpoolFull => "spool_full",
            Self::SpoolUnreadable => "spool_unreadable",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
            Self::ShutDown => "shut_down",
        }
    }

    /// What happened on the way to the receiver, and what helps; `None` for what was lost before there was a profile.
    pub const fn on_the_way(self) -> Option<&'static str> {
        Some(match self {
            Self::RingFull | Self::TornRecord => return None,
            Self::EncoderBusy => {
                "slices came faster than they were encoded and sent; try a lower -F, or --spool FOLDER"
            }
            Self::QueueFull => {
                "the receiver failed while more than --queue-limit waited in memory; raise it, or keep what waits on the disk with --spool FOLDER"
            }
            Self::SpoolFull => {
                "the receiver failed while more than --spool-limit waited on the disk; raise it"
            }
            Self::SpoolUnreadable => "files of the spool are damaged",
            Self::Refused => "the receiver refused them",
            Self::Rejected => "the receiver took its requests in part",
            Self::TooLarge => "they were larger than the receiver takes",
            Self::ShutDown => {
                "the receiver did not take them before the end; raise --shutdown-timeout, or keep them on the disk with --spool FOLDER"
            }
        })
    }
}
