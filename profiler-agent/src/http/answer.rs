//! From a question to a profile, and from that to bytes.

use std::{collections::BTreeMap, fmt::Write as _, time::SystemTime};

use serde::Serialize;

use super::question::{By, Question, nanos};
use crate::{
    export::{file::Format, folded, text::Rfc3339},
    history::{History, Query},
    profile::{
        FrameKind, Function, Language, Line, Location, LocationId, Profile, Stack, StackId, StringId,
        tables::{Tables, Translation},
    },
    render::{difference, svg},
};

/// Most processes that the answer to a wrong pid lists.
const MOST_LISTED: usize = 10;

/// What is sent back.
#[derive(Debug)]
pub(super) enum Answer {
    /// A profile in some format, with the span and the losses of which it is made.
    Profile {
        content_type: &'static str,
        body: Vec<u8>,
        about: About,
    },
    /// JSON or plain text.
    Text {
        content_type: &'static str,
        body: String,
    },
    /// Nothing was found: a sentence says why.
    Nothing(String),
    /// It failed here.
    Failed(String),
}

/// What an answer is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    /// Nanoseconds since the Unix epoch.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) samples: u64,
    pub(super) lost: u64,
}

/// A profile in a format.
pub(super) fn profile(history: &History, question: &Question, format: Format) -> Answer {
    let mut profile = history.profile(&question.query);
    if let Some(filter) = &question.filter {
        keep_matching(&mut profile, |name| filter.is_match(name));
    }
    let about = About {
        start: profile.capture.start,
        end: profile.capture.start.saturating_add(profile.capture.duration),
        samples: profile.sample_count(),
        lost: profile.capture.lost_total(),
    };
    if about.samples == 0 {
        return Answer::Nothing(nothing(history, question));
    }
    if let Some(by) = question.by {
        profile = rooted(&profile, by);
    }
    name_target(&mut profile, &question.query);
    let mut body = Vec::new();
    let written = match format {
        Format::Svg => svg::draw(&profile, &folded::Options::default(), question.look, &mut body),
        Format::Html | Format::Folded | Format::Pprof | Format::Otlp | Format::Speedscope => {
            format.write(&profile, &mut body)
        }
    };
    match written {
        Ok(()) => Answer::Profile {
            content_type: content_type(format),
            body,
            about,
        },
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// What has changed from one range to another.
pub(super) fn difference(history: &History, question: &Question) -> Answer {
    let Some((before, after)) = &question.compared else {
        return Answer::Nothing(
            "give two ranges: ?a=SINCE..UNTIL&b=SINCE..UNTIL, like a=10m..5m&b=5m..\n".into(),
        );
    };
    let [before, after] = [before, after].map(|range| {
        let mut profile = history.profile(&Query {
            range: Some(range.clone()),
            ..question.query.clone()
        });
        if let Some(filter) = &question.filter {
            keep_matching(&mut profile, |name| filter.is_match(name));
        }
        name_target(&mut profile, &question.query);
        profile
    });
    let about = About {
        start: before.capture.start.min(after.capture.start),
        end: after.capture.start.saturating_add(after.capture.duration),
        samples: before.sample_count() + after.sample_count(),
        lost: before.capture.lost_total() + after.capture.lost_total(),
    };
    for (profile, name) in [(&before, "a"), (&after, "b")] {
        if profile.sample_count() == 0 {
            return Answer::Nothing(format!("{name}: {}", nothing(history, question)));
        }
    }
    let mut body = Vec::new();
    match difference::write(&before, &after, &mut body) {
        Ok(()) => Answer::Profile {
            content_type: content_type(Format::Svg),
            body,
            about,
        },
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Who burns what.
pub(super) fn processes(history: &History, question: &Question) -> Answer {
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
    let answer = Processes {
        from: time(range.start.max(span.start)),
        until: time(range.end.min(span.end)),
        processes: shares
            .into_iter()
            .map(|share| Process {
                pid: share.pid,
                name: share.name,
                samples: share.samples,
                cpu_seconds: std::time::Duration::from_nanos(share.weight).as_secs_f64(),
            })
            .collect(),
    };
    match serde_json::to_string(&answer) {
        Ok(body) => Answer::Text {
            content_type: "application/json",
            body,
        },
        Err(error) => Answer::Failed(error.to_string()),
    }
}

const fn content_type(format: Format) -> &'static str {
    match format {
        Format::Svg => "image/svg+xml",
        Format::Html => "text/html; charset=utf-8",
        Format::Folded => "text/plain; charset=utf-8",
        Format::Pprof => "application/octet-stream",
        Format::Otlp => "application/x-protobuf",
        Format::Speedscope => "application/json",
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

/// Leaves the samples of stacks with a function of such a name.
fn keep_matching(profile: &mut Profile, matches: impl Fn(&str) -> bool) {
    let names: Vec<bool> = profile.strings.iter().map(|name| matches(name)).collect();
    let matches = |id: StringId| names.get(id.index()).copied().unwrap_or_default();
    let locations: Vec<bool> = profile
        .locations
        .iter()
        .map(|location| {
            location.lines.iter().any(|line| {
                let function = profile.functions.get(line.function.index());
                function.is_some_and(|function| matches(function.name))
            })
        })
        .collect();
    let stacks: Vec<bool> = profile
        .stacks
        .iter()
        .map(|stack| {
            let mut frames = stack.frames.iter();
            frames.any(|frame| locations.get(frame.index()).copied().unwrap_or_default())
        })
        .collect();
    profile
        .samples
        .retain(|sample| stacks.get(sample.stack.index()).copied().unwrap_or_default());
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
fn name_target(profile: &mut Profile, query: &Query) {
    let names: Vec<String> = match (query.pids.as_slice(), &query.process_name) {
        ([], None) => return,
        ([], Some(name)) => vec![name.clone()],
        (pids, _) => {
            let processes = profile.processes.iter();
            let asked = processes.filter(|process| pids.contains(&process.pid));
            asked
                .map(|process| format!("{} ({})", profile.string(process.name), process.pid))
                .collect()
        }
    };
    profile.capture.target = names.join(", ");
    profile.capture.command.clear();
}

/// Whether a range that begins now and is over by then is in the history.
pub(super) fn covers(history: &History, end: SystemTime) -> bool {
    history.span().is_some_and(|span| span.end >= nanos(end))
}
