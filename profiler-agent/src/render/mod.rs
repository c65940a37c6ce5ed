//! Pictures for people. The only module that knows inferno.

use crate::{
    export::{
        span::Span,
        text::{Rfc3339, Thousands, plain},
    },
    profile::{Capture, Kind, Profile},
};

mod columns;
pub mod difference;
pub mod html;
pub mod svg;
pub mod text;

/// Characters of the title that fit beside the buttons at 1,200 pixels.
const TITLE_LIMIT: usize = 90;
/// Characters of a host name that leave room for the rest of its line.
const HOST_LIMIT: usize = 40;

/// How much was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    kind: Kind,
    samples: u64,
    /// Samples whose stack is not whole.
    incomplete: u64,
}

impl Amount {
    /// That of a profile.
    pub(crate) fn of(profile: &Profile) -> Self {
        Self {
            kind: profile.kind(),
            samples: profile.sample_count(),
            incomplete: incomplete(profile),
        }
    }

    fn of_span(span: &Span) -> Self {
        Self {
            kind: span.kind(),
            samples: span.total(),
            incomplete: span.incomplete(),
        }
    }
}

/// What was profiled, with its command line as far as there is room.
pub(crate) fn title(capture: &Capture) -> String {
    let Capture { target, command, .. } = capture;
    match (target.trim().is_empty(), command.trim().is_empty()) {
        (true, true) => "flamegraph".to_owned(),
        (true, false) => plain(command, TITLE_LIMIT),
        (false, true) => plain(target, TITLE_LIMIT),
        (false, false) => plain(&format!("{target}: {command}"), TITLE_LIMIT),
    }
}

/// When, where, how, how much, and how much not, as far as it is known.
pub(crate) fn subtitle(capture: &Capture, amount: Amount) -> String {
    let Amount {
        kind,
        samples,
        incomplete,
    } = amount;
    let mut parts = Vec::new();
    let tenths = capture.duration / 100_000_000;
    let length = format!("{}.{} s", tenths / 10, tenths % 10);
    match (capture.start, capture.duration) {
        (0, 0) => {}
        (0, _) => parts.push(length),
        (start, 0) => parts.push(Rfc3339(start).to_string()),
        (start, duration) => parts.push(format!(
            "{} to {} ({length})",
            Rfc3339(start),
            Rfc3339(start.saturating_add(duration))
        )),
    }
    let host = plain(&capture.host, HOST_LIMIT);
    if !host.is_empty() {
        parts.push(format!("host {host}"));
    }
    match (capture.frequency, capture.clock) {
        (0, "") => {}
        (0, clock) => parts.push(clock.to_owned()),
        (rate, "") => parts.push(format!("{rate} Hz")),
        (rate, clock) => parts.push(format!("{rate} Hz {clock}")),
    }
    parts.push(format!("{} {}", Thousands(samples), kind.counted()));
    // Files of others do not tell of losses.
    if kind == Kind::Cpu || capture.lost_total() > 0 {
        parts.push(format!("{} lost", Thousands(capture.lost_total())));
    }
    if incomplete > 0 {
        parts.push(format!("{} incomplete", Thousands(incomplete)));
    }
    parts.join(" · ")
}

/// Samples whose stack is not whole.
pub(crate) fn incomplete(profile: &Profile) -> u64 {
    let whole = |sample: &&crate::profile::Sample| {
        let stack = profile.stacks.get(sample.stack.index());
        !stack.is_none_or(|stack| stack.outcome.is_complete())
    };
    profile
        .samples
        .iter()
        .filter(whole)
        .map(|sample| sample.count)
        .sum()
}
