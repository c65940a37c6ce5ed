//! What a request asks for: its parameters, read and checked.

use std::{
    fmt,
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use percent_encoding::percent_decode_str;
use regex::RegexBuilder;

use crate::{export::text::plain, history::Query, render::svg::Look};

/// Longest time that may be sampled from now on.
const MOST_SECONDS: u64 = 600;
/// Longest query string.
const MOST_BYTES: usize = 4096;
/// Memory of a compiled `filter`.
const MOST_REGEX: usize = 1 << 20;

/// Names of all parameters, as the answers to wrong ones list them.
pub const PARAMETERS: [&str; 15] = [
    "pid",
    "comm",
    "container",
    "service",
    "thread",
    "cpu",
    "event",
    "since",
    "until",
    "last",
    "seconds",
    "by",
    "reverse",
    "icicle",
    "filter",
];

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Question {
    /// Which samples.
    pub query: Query,
    /// Sample for so long from now on.
    pub seconds: Option<Duration>,
    /// What the root of each stack says.
    pub by: Option<By>,
    /// How it is drawn.
    pub look: Look,
    /// The two ranges of a difference.
    pub compared: Option<(Range<u64>, Range<u64>)>,
}

/// What the root of each stack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Name and number of the thread.
    Thread,
    /// Number of the CPU.
    Cpu,
}

/// Why a request cannot be answered: a sentence for who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

impl Question {
    /// Reads a query string, at a time; `newest` is the end of what there is to ask for, from which `last` counts back.
    ///
    /// # Errors
    /// [`Wrong`], which names the parameter and what it may be.
    pub fn parse(text: &str, now: SystemTime, newest: SystemTime) -> Result<Self, Wrong> {
        if text.len() > MOST_BYTES {
            return Err(Wrong(format!(
                "the parameters are longer than {MOST_BYTES} bytes"
            )));
        }
        let mut question = Self::default();
        let (mut since, mut until, mut last) = (None, None, None);
        let (mut before, mut after) = (None, None);
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            // They come from anywhere, and are shown in terminals.
            let shown = (plain(&name, 64), plain(&value, 200));
            let wrong = |what: &str| Wrong(format!("{}={}: {what}", shown.0, shown.1));
            match name.as_str() {
                "pid" => {
                    for pid in value.split(',') {
                        let pid = pid.parse().map_err(|_| {
                            wrong("give numbers of processes, e.g. pid=1234 or pid=1234,5678")
                        })?;
                        question.query.pids.push(pid);
                    }
                }
                "comm" => question.query.process_name = Some(value),
                "container" => question.query.container = Some(value),
                "service" => question.query.service = Some(value),
                "a" => before = Some(span(&value, now).map_err(&wrong)?),
                "b" => after = Some(span(&value, now).map_err(&wrong)?),
                "thread" => question.query.thread = Some(value),
                "cpu" => {
                    let cpu = value.parse().map_err(|_| wrong("give the number of a CPU"))?;
                    question.query.cpu = Some(cpu);
                }
                "event" if value == "cpu" => {}
                "event" => return Err(wrong("the only event is cpu")),
                "since" => since = Some(time(&value, now).map_err(&wrong)?),
                "until" => until = Some(time(&value, now).map_err(&wrong)?),
                "last" => {
                    let ago =
                        humantime::parse_duration(&value).map_err(|_| wrong("write it like 30s or 5m"))?;
                    last = Some(nanos(newest.checked_sub(ago).unwrap_or(UNIX_EPOCH)));
                }
                "seconds" => {
                    let seconds = value.parse().ok().filter(|s| (1..=MOST_SECONDS).contains(s));
                    let seconds = seconds.ok_or_else(|| wrong("give a number of seconds up to 600"))?;
                    question.seconds = Some(Duration::from_secs(seconds));
                }
                "by" => {
                    question.by = Some(match value.as_str() {
                        "thread" => By::Thread,
                        "cpu" => By::Cpu,
                        _ => return Err(wrong("it is thread or cpu")),
                    });
                }
                "reverse" => question.look.reverse = flag(&value).ok_or_else(|| wrong("it is 1 or 0"))?,
                "icicle" => question.look.icicle = flag(&value).ok_or_else(|| wrong("it is 1 or 0"))?,
                "filter" => {
                    let regex = RegexBuilder::new(&value).size_limit(MOST_REGEX).build();
                    question.query.function =
                        Some(regex.map_err(|_| wrong("no regular expression, or too large a one"))?);
                }
                _ => return Err(unknown(&name)),
            }
        }
        question.compared = match (before, after) {
            (None, None) => None,
            (Some(before), Some(after)) => Some((before, after)),
            _ => return Err(Wrong("a difference is of two ranges, a and b".into())),
        };
        if last.is_some() && (since.is_some() || until.is_some()) {
            return Err(Wrong("last and since or until exclude each other".into()));
        }
        if question.seconds.is_some() && (last.is_some() || since.is_some() || until.is_some()) {
            return Err(Wrong(
                "seconds is from now on; last, since and until are of the past".into(),
            ));
        }
        if let Some(last) = last {
            // With its last moment. Nothing is to be newer, or a clock was ahead.
            question.query.range = Some(last..nanos(newest).saturating_add(1));
        } else if since.is_some() || until.is_some() {
            question.query.range = Some(range(since, until)?);
        }
        Ok(question)
    }
}

fn range(since: Option<SystemTime>, until: Option<SystemTime>) -> Result<Range<u64>, Wrong> {
    let range = since.map_or(0, nanos)..until.map_or(u64::MAX, nanos);
    if range.is_empty() {
        return Err(Wrong("until is not after since".into()));
    }
    Ok(range)
}

/// Nanoseconds since the Unix epoch.
pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn decode(text: &str) -> Result<String, Wrong> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| Wrong("the parameters are no UTF-8".into()))
}

/// Reads a time: RFC 3339, seconds since the Unix epoch, or how long ago.
fn time(text: &str, now: SystemTime) -> Result<SystemTime, &'static str> {
    const HOW: &str =
        "give a time like 2026-01-31T12:00:00Z, seconds since the Unix epoch, or how long ago, like 5m";
    if let Ok(seconds) = text.parse::<f64>() {
        let since = Duration::try_from_secs_f64(seconds).map_err(|_| HOW)?;
        return UNIX_EPOCH.checked_add(since).ok_or(HOW);
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok_or(HOW);
    }
    humantime::parse_rfc3339_weak(text).map_err(|_| HOW)
}

/// Reads `SINCE..UNTIL`.
fn span(text: &str, now: SystemTime) -> Result<Range<u64>, &'static str> {
    let (since, until) = text
        .split_once("..")
        .ok_or("give two times with .. between them, like 10m..5m")?;
    let range = nanos(time(since, now)?)..if until.is_empty() {
        nanos(now)
    } else {
        nanos(time(until, now)?)
    };
    if range.is_empty() {
        return Err("its end is not after its start");
    }
    Ok(range)
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn unknown(name: &str) -> Wrong {
    let near = PARAMETERS
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(name, known), *known))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match near {
        Some((_, known)) => format!("did you mean {known}?"),
        None => format!("known are {}", PARAMETERS.join(", ")),
    };
    Wrong(format!("there is no parameter {:?}; {hint}", plain(name, 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Question, String> {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        Question::parse(text, now, now - Duration::from_secs(4)).map_err(|wrong| wrong.0)
    }

    #[test]
    fn parameters_are_read() {
        let question =
            parse("pid=1,2&pid=3&comm=a+b%26c&thread=worker&cpu=7&event=cpu&by=cpu&reverse&icicle=1")
                .unwrap();
        assert_eq!(question.query.pids, [1, 2, 3]);
        assert_eq!(question.query.process_name.as_deref(), Some("a b&c"));
        assert_eq!(question.query.thread.as_deref(), Some("worker"));
        assert_eq!((question.query.cpu, question.by), (Some(7), Some(By::Cpu)));
        assert!(question.look.reverse && question.look.icicle);
    }

    #[test]
    fn times_are_absolute_or_ago() {
        let second = 1_000_000_000;
        for (text, range) in [
            ("last=5m", 696 * second..996 * second + 1),
            ("since=10s&until=5s", 990 * second..995 * second),
            (
                "since=12.5&until=1970-01-01T00:01:00Z",
                12_500_000_000..60 * second,
            ),
            ("until=1970-01-01T00:00:02.5Z", 0..2_500_000_000),
        ] {
            assert_eq!(parse(text).unwrap().query.range, Some(range), "{text}");
        }
        assert!(parse("").unwrap().query.range.is_none());
        let two = parse("a=10s..5s&b=5s..").unwrap().compared;
        assert_eq!(
            two,
            Some((990 * second..995 * second, 995 * second..1000 * second))
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, says) in [
            ("pid=x", "pid=x: give numbers"),
            ("pdi=1", "did you mean pid?"),
            ("zzzzzz=1", "known are pid, comm"),
            ("last=5", "write it like"),
            ("last=5m&since=1", "exclude each other"),
            ("since=5s&until=10s", "not after"),
            ("seconds=0", "up to 600"),
            ("seconds=5&last=1m", "from now on"),
            ("since=NaN", "give a time like"),
            ("since=-1", "give a time like"),
            ("since=1e300", "give a time like"),
            ("filter=(", "no regular expression"),
            ("filter=(a{1000}){1000}", "too large"),
            ("comm=%ff", "no UTF-8"),
            ("event=lock", "only event"),
            ("by=core", "thread or cpu"),
            ("a=10m..5m", "of two ranges"),
            ("a=10m&b=5m..", "like 10m..5m"),
            ("a=5m..10m&b=5m..", "not after its start"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(parse(&"a".repeat(5000)).unwrap_err().contains("4096"));
    }
}
