//! From a question to a profile, and from that to bytes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Shared,
    bounds::held,
    question::{By, Question, nanos},
};
use crate::{
    export::{file::Format, folded, span::Span, text::Rfc3339},
    history::{History, Query},
    profile::{
        Capture, FrameKind, Function, Language, Line, Location, LocationId, Profile, Stack, StackId,
        StringId,
        tables::{Tables, Translation},
    },
    render::{difference, html, svg, svg::SvgError},
    telemetry::Loss,
};

const JSON: &str = "application/json";
/// Most processes that the answer to a wrong pid lists.
const MOST_LISTED: usize = 10;

/// Most bytes of an answer: names of a few functions can be in a great many stacks.
pub(super) const MOST_BYTES: usize = 256 << 20;
/// Parts of a time line: of half a second each, or so many.
const MOST_BARS: u64 = 300;
const SHORTEST_BAR: u64 = 500_000_000;
/// Processes of a time line that are told one by one.
const MOST_PROCESSES: usize = 32;

/// What is made of profiles.
#[derive(Debug, Clone, Copy)]
pub(super) enum Drawn {
    Profile(Format),
    /// What the page reads.
    Columns,
    Difference,
    Processes,
    Timeline,
}

/// What is sent back.
#[derive(Debug)]
pub(super) enum Answer {
    /// A profile in some format, with the span and the losses of which it is made.
    Profile {
        content_type: &'static str,
        body: Bytes,
        about: About,
    },
    /// JSON or plain text.
    Text { content_type: &'static str, body: Bytes },
    /// Nothing was found: a sentence says why.
    Nothing(String),
    /// It would be too long.
    TooLong,
    /// It failed here.
    Failed(String),
}

impl Answer {
    /// Bytes of it.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Profile { body, .. } | Self::Text { body, .. } => body.len(),
            Self::Nothing(body) | Self::Failed(body) => body.len(),
            Self::TooLong => 0,
        }
    }

    /// The same, with the room that its bytes take until nobody has them any more. Sentences are copied for everybody, and short.
    pub(super) fn within(mut self, room: OwnedSemaphorePermit) -> Self {
        if let Self::Profile { body, .. } | Self::Text { body, .. } = &mut self {
            *body = held(std::mem::take(body), room);
        }
        self
    }
}

/// What an answer is made of.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// Nanoseconds since the Unix epoch.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) samples: u64,
    /// By reason.
    pub(super) lost: BTreeMap<Loss, u64>,
}

impl About {
    /// When it was, and what was lost.
    fn of(capture: &Capture) -> Self {
        Self {
            start: capture.start,
            end: capture.start.saturating_add(capture.duration),
            samples: 0,
            lost: capture.lost.clone(),
        }
    }
}

/// An answer that is being written, up to its longest.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    is_too_long: bool,
}

impl io::Write for Body {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MOST_BYTES.saturating_sub(self.bytes.len()) {
            self.is_too_long = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Body {
    fn answer(mut self, content_type: &'static str, about: About, written: Result<(), SvgError>) -> Answer {
        match written {
            Ok(()) => {
                // It counts by its length.
                self.bytes.shrink_to_fit();
                Answer::Profile {
                    content_type,
                    body: self.bytes.into(),
                    about,
                }
            }
            Err(_) if self.is_too_long => Answer::TooLong,
            Err(error) => Answer::Failed(error.to_string()),
        }
    }
}

/// Answers a question, of the history as it is now: slices go on coming in meanwhile.
pub(super) fn make(shared: &Shared, question: &Question, drawn: Drawn) -> Answer {
    let history = shared.history().snapshot();
    match drawn {
        Drawn::Profile(_) | Drawn::Columns => profile(&history, question, drawn),
        Drawn::Difference => difference(&history, question),
        Drawn::Processes => processes(&history, question),
        Drawn::Timeline => timeline(&history, question),
    }
}

/// A profile in a format.
fn profile(history: &History, question: &Question, drawn: Drawn) -> Answer {
    if let (Drawn::Profile(format @ (Format::Svg | Format::Folded)), None) = (drawn, question.by) {
        return picture(history, question, format);
    }
    let mut profile = history.profile(&question.query);
    let about = About {
        samples: profile.sample_count(),
        ..About::of(&profile.capture)
    };
    if about.samples == 0 {
        return Answer::Nothing(nothing(history, question));
    }
    if let Some(by) = question.by {
        profile = rooted(&profile, by);
    }
    name_target(&mut profile.capture, history, &question.query);
    let mut body = Body::default();
    let options = folded::Options::default();
    let (content_type, written) = match drawn {
        Drawn::Profile(Format::Svg) => (
            content_type(Format::Svg),
            svg::draw(&Span::of(&profile, &options), question.look, &mut body),
        ),
        Drawn::Profile(format) => (content_type(format), format.write(&profile, &mut body)),
        Drawn::Columns | Drawn::Difference | Drawn::Processes | Drawn::Timeline => (
            JSON,
            html::write_columns(&profile, &options, &mut body).map_err(SvgError::from),
        ),
    };
    body.answer(content_type, about, written)
}

/// What needs to know no more than how many samples a stack has.
fn picture(history: &History, question: &Question, format: Format) -> Answer {
    let mut span = history.folded(&question.query);
    let about = About {
        samples: span.total(),
        ..About::of(&span.capture)
    };
    if about.samples == 0 {
        return Answer::Nothing(nothing(history, question));
    }
    name_target(&mut span.capture, history, &question.query);
    let mut body = Body::default();
    let written = if format == Format::Svg {
        svg::draw(&span, question.look, &mut body)
    } else {
        span.merged().write(&mut body).map_err(SvgError::from)
    };
    body.answer(content_type(format), about, written)
}

/// What has changed from one range to another.
fn difference(history: &History, question: &Question) -> Answer {
    let Some((before, after)) = &question.compared else {
        return Answer::Nothing(
            "give two ranges: ?a=SINCE..UNTIL&b=SINCE..UNTIL, like a=10m..5m&b=5m..\n".into(),
        );
    };
    let [before, after] = [before, after].map(|range| {
        let query = Query {
            range: Some(range.clone()),
            ..question.query.clone()
        };
        let mut span = history.folded(&query);
        name_target(&mut span.capture, history, &query);
        span
    });
    let [first, last] = [&before, &after].map(|span| About::of(&span.capture));
    let mut lost = first.lost;
    for (reason, count) in last.lost {
        *lost.entry(reason).or_default() += count;
    }
    let about = About {
        start: first.start.min(last.start),
        end: last.end,
        samples: before.total().saturating_add(after.total()),
        lost,
    };
    for (span, name) in [(&before, "a"), (&after, "b")] {
        if span.total() == 0 {
            return Answer::Nothing(format!("{name}: {}", nothing(history, question)));
        }
    }
    let mut body = Body::default();
    let written = difference::draw(&before, &after, &mut body);
    body.answer(content_type(Format::Svg), about, written)
}

/// CPU use over time, by process.
fn timeline(history: &History, question: &Question) -> Answer {
    #[derive(Serialize)]
    struct Line<'a> {
        /// Milliseconds since the Unix epoch, and how many.
        start: u64,
        duration: u64,
        bars: usize,
        processes: Vec<Process<'a>>,
        others: Vec<f64>,
    }
    #[derive(Serialize)]
    struct Process<'a> {
        pid: u32,
        name: &'a str,
        cpus: Vec<f64>,
    }
    let span = history.span().unwrap_or_default();
    let asked = question.query.range.clone().unwrap_or(span.clone());
    let length = span
        .end
        .min(asked.end)
        .saturating_sub(span.start.max(asked.start));
    let bars = (length / SHORTEST_BAR).clamp(1, MOST_BARS);
    let line = history.timeline(
        &question.query,
        usize::try_from(bars).unwrap_or(1),
        MOST_PROCESSES,
    );
    let cpus = |list: &[u64]| -> Vec<f64> {
        let bar = Duration::from_nanos(length / bars).as_secs_f64().max(1e-9);
        list.iter()
            .map(|&nanos| (Duration::from_nanos(nanos).as_secs_f64() / bar * 1000.0).round() / 1000.0)
            .collect()
    };
    json(&Line {
        start: line.range.start / 1_000_000,
        duration: length.div_ceil(1_000_000),
        bars: line.bars,
        processes: line
            .processes
            .iter()
            .map(|(share, list)| Process {
                pid: share.pid,
                name: &share.name,
                cpus: cpus(list),
            })
            .collect(),
        others: cpus(&line.others),
    })
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.shrink_to_fit();
            Answer::Text {
                content_type: JSON,
                body: body.into(),
            }
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Who burns what.
fn processes(history: &History, question: &Question) -> Answer {
    #[derive(Serialize)]
    struct Processes {
        from: String,
        until: String,
        processes: Vec<Process>,
    }
    #[derive(Serialize)]
    struct Process {
        pid: u32,
        name: String,
        samples: u64,
        cpu_seconds: f64,
    }
    let span = history.span().unwrap_or_default();
    let range = question.query.range.clone().unwrap_or(span.clone());
    let time = |nanos: u64| Rfc3339(nanos).to_string();
    let shares = history.shares(&question.query);
    json(&Processes {
        from: time(range.start.max(span.start)),
        until: time(range.end.min(span.end)),
        processes: shares
            .into_iter()
            .map(|share| Process {
                pid: share.pid,
                name: share.name,
                samples: share.samples,
                cpu_seconds: Duration::from_nanos(share.weight).as_secs_f64(),
            })
            .collect(),
    })
}

const fn content_type(format: Format) -> &'static str {
    match format {
        Format::Svg => "image/svg+xml",
        Format::Html => super::HTML,
        Format::Folded => "text/plain; charset=utf-8",
        Format::Pprof => "application/octet-stream",
        Format::Otlp => "application/x-protobuf",
        Format::Speedscope => JSON,
    }
}

/// Why nothing was found: the range, or who.
fn nothing(history: &History, question: &Question) -> String {
    let Some(span) = history.span() else {
        return "there are no samples yet; the first ones are there after a few seconds\n".into();
    };
    let mut text = format!(
        "there are samples from {} to {}",
        Rfc3339(span.start),
        Rfc3339(span.end)
    );
    let wanted = &question.query.range;
    let anybody = Query {
        range: wanted.clone(),
        ..Query::default()
    };
    let known = history.shares(&anybody);
    if known.is_empty() {
        text.push_str(", none in the range that was asked for\n");
        return text;
    }
    text.push_str(", none of what was asked for; in that range there are");
    for share in known.iter().take(MOST_LISTED) {
        let name = crate::export::text::plain(&share.name, 32);
        // Writing to a string cannot fail.
        let _ = write!(text, " {} ({name}),", share.pid);
    }
    text.pop();
    if known.len() > MOST_LISTED {
        let _ = write!(text, " and {} more", known.len() - MOST_LISTED);
    }
    text.push('\n');
    text
}

/// The same with a word at the root of each stack.
fn rooted(profile: &Profile, by: By) -> Profile {
    let mut to = Tables::new(profile.capture.clone());
    let mut translation = Translation::new(profile);
    let mut roots: BTreeMap<(u32, StringId), LocationId> = BTreeMap::new();
    let mut samples = profile.samples.clone();
    for sample in &mut samples {
        let key = match by {
            By::Thread => (sample.tid, sample.thread_name),
            By::Cpu => (sample.cpu, StringId::default()),
        };
        let root = *roots.entry(key).or_insert_with(|| {
            let word = match by {
                By::Thread => format!("{} ({})", profile.string(sample.thread_name), sample.tid),
                By::Cpu => format!("CPU {}", sample.cpu),
            };
            word_location(&mut to, &word)
        });
        let outcome = profile
            .stacks
            .get(sample.stack.index())
            .map(|stack| stack.outcome);
        let whole = translation.stack(&mut to, sample.stack);
        let mut frames = frames_of(&to, whole);
        frames.push(root);
        sample.stack = to.stack(Stack {
            frames,
            outcome: outcome.unwrap_or(profiler_common::Outcome::Complete),
        });
        sample.process = translation.process(&mut to, sample.process);
        sample.thread_name = translation.string(&mut to, sample.thread_name);
    }
    let mut rooted = to.finish();
    rooted.samples = samples;
    rooted
}

fn frames_of(tables: &Tables, stack: StackId) -> Vec<LocationId> {
    let stack = tables.profile().stacks.get(stack.index());
    stack.map(|stack| stack.frames.clone()).unwrap_or_default()
}

fn word_location(to: &mut Tables, word: &str) -> LocationId {
    let name = to.string(word);
    let function = to.function(Function {
        name,
        system_name: name,
        file: StringId::default(),
        start_line: 0,
    });
    to.location(Location {
        kind: FrameKind::Native(Language::Other),
        mapping: None,
        address: 0,
        by_frame_pointer: false,
        is_named: true,
        lines: vec![Line {
            function,
            line: 0,
            column: 0,
        }],
    })
}

/// The title of a picture of a part of the host names the part.
fn name_target(capture: &mut Capture, history: &History, query: &Query) {
    let names: Vec<String> = match (query.pids.as_slice(), &query.process_name) {
        ([], None) => return,
        ([], Some(name)) => vec![name.clone()],
        _ => {
            let asked = history.processes(query).into_iter();
            asked.map(|(pid, name)| format!("{name} ({pid})")).collect()
        }
    };
    capture.target = names.join(", ");
    capture.command.clear();
}

/// Whether a range that begins now and is over by then is in the history.
pub(super) fn covers(history: &History, end: SystemTime) -> bool {
    history.span().is_some_and(|span| span.end >= nanos(end))
}
