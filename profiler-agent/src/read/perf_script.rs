//! What `perf script` prints, with its default fields or more:
//!
//! ```text
//! redis-server  4242/4243  [001]  8123.456789:  10101010 cpu-clock:pppH:
//!         55d0c0de1234 lookupKey+0x14 (/usr/bin/redis-server)
//!         55d0c0de0f00 processCommand (inlined)
//!         ...
//! ```
//!
//! Samples count one each. Where a file has samples of several events, those of the first are taken.

use profiler_common::Outcome;

use super::{
    Problem,
    builder::{Builder, frame_kind, mapping_kind},
    folded,
};
use crate::profile::{
    Capture, FrameKind, Function, Kind, Language, Line, Location, LocationId, MappingKind, Process, Sample,
    Stack, StringId, Unit,
};

/// The line before a stack.
#[derive(Debug, PartialEq)]
struct Header<'a> {
    name: &'a str,
    /// 0 where only the thread is given.
    pid: u32,
    tid: u32,
    /// In nanoseconds, of the clock of the kernel.
    time: Option<u64>,
    event: &'a str,
    /// What stands behind it: the only frame, where no stacks were recorded.
    rest: &'a str,
}

impl<'a> Header<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with(char::is_whitespace) || line.starts_with('#') {
            return None;
        }
        // A name may hold spaces: the first word that can be a pid ends it, if what follows can follow.
        let mut at = 0;
        for word in line.split(' ').map(str::len) {
            let (before, text) = line.split_at_checked(at)?;
            let word = text.get(..word)?;
            at += word.len() + 1;
            let ids = match word.split_once('/') {
                Some((pid, tid)) => pid.parse().ok().zip(tid.parse().ok()),
                // That of the idle thread is -1 in some files.
                None => word.parse().ok().map(|tid| (0, tid)),
            };
            if let Some((pid, tid)) = ids
                && !before.trim().is_empty()
                && let Some(header) = Self::rest(line.get(at..)?)
            {
                let name = before.trim();
                return Some(Self {
                    name,
                    pid,
                    tid,
                    ..header
                });
            }
        }
        None
    }

    /// What follows the ids: CPU, time, period, event.
    fn rest(text: &'a str) -> Option<Self> {
        let mut rest = text.trim_start();
        let mut word = || {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            rest = after.trim_start();
            word
        };
        let mut this = word();
        let has_cpu = this.starts_with('[') && this.ends_with(']');
        if has_cpu {
            this = word();
        }
        let time = this
            .strip_suffix(':')
            .and_then(|time| time.split_once('.'))
            .and_then(|(seconds, fraction)| {
                let seconds: u64 = seconds.parse().ok()?;
                let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && fraction.len() <= 9;
                let fraction: u64 = digits.then(|| format!("{fraction:0<9}").parse().ok())??;
                seconds.checked_mul(1_000_000_000)?.checked_add(fraction)
            });
        if time.is_some() {
            this = word();
        }
        if !has_cpu && time.is_none() {
            return None;
        }
        if !this.is_empty() && this.bytes().all(|byte| byte.is_ascii_digit()) {
            this = word();
        }
        Some(Self {
            name: "",
            pid: 0,
            tid: 0,
            time,
            event: this.strip_suffix(':')?,
            rest,
        })
    }
}

/// A line of a stack.
#[derive(Debug, PartialEq)]
struct Frame<'a> {
    address: u64,
    name: &'a str,
    file: &'a str,
}

impl<'a> Frame<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (address, rest) = line.trim().split_once(' ')?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let rest = rest.strip_suffix(')')?;
        // A name can have parentheses too.
        let place = rest
            .rfind(" (/")
            .or_else(|| rest.rfind(" (["))
            .or_else(|| rest.rfind(" ("));
        let (name, file) = match place {
            Some(place) => rest.split_at(place),
            None => ("", rest),
        };
        let file = file.trim_start_matches([' ', '(']);
        let name = name.trim();
        let name = match name.rsplit_once("+0x") {
            Some((name, offset)) if offset.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
            _ => name,
        };
        Some(Self { address, name, file })
    }
}

/// Whether the first line of a text is one of a sample. A name in folded stacks may read like one, but a count follows it: then it is one only if
/// a frame does too.
pub(super) fn is_perf_script(text: &[u8]) -> bool {
    let mut lines = text.split(|&byte| byte == b'\n');
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    let has_frame =
        |line: Option<&[u8]>| line.is_some_and(|line| Frame::parse(&String::from_utf8_lossy(line)).is_some());
    first.is_some_and(|line| Header::parse(&String::from_utf8_lossy(line)).is_some())
        && (!folded::is_folded(text) || has_frame(lines.next()))
}

/// The sample that is being read.
struct Open {
    process: Process,
    tid: u32,
    thread_name: StringId,
    frames: Vec<LocationId>,
    /// Functions that were inlined into the next frame.
    inlined: Vec<Line>,
}

pub(super) fn parse(
    bytes: &[u8],
    builder: &mut Builder,
    notes: &mut Vec<String>,
) -> Result<Capture, Problem> {
    let mut event: Option<String> = None;
    let (mut others, mut strange, mut first_strange) = (0_u64, 0_u64, 0);
    let mut times: Option<(u64, u64)> = None;
    let mut open: Option<Open> = None;
    let mut is_passed_over = false;
    for (number, line) in (1_u64..).zip(bytes.split(|&byte| byte == b'\n')) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line.is_empty() {
            close(builder, &mut open)?;
        } else if let Some(header) = Header::parse(line) {
            close(builder, &mut open)?;
            is_passed_over = event.get_or_insert_with(|| header.event.to_owned()) != header.event;
            if is_passed_over {
                others += 1;
                continue;
            }
            if let Some(time) = header.time {
                let (first, last) = times.unwrap_or((time, time));
                times = Some((first.min(time), last.max(time)));
            }
            let name = builder.string(header.name);
            let mut sample = Open {
                process: Process {
                    pid: header.pid,
                    start: 0,
                    name,
                    executable: StringId(0),
                    service: StringId(0),
                    attributes: Vec::new(),
                },
                tid: header.tid,
                thread_name: name,
                frames: Vec::new(),
                inlined: Vec::new(),
            };
            if let Some(frame) = Frame::parse(header.rest) {
                add(builder, &mut sample, &frame);
            }
            open = Some(sample);
        } else if let Some((sample, frame)) = open.as_mut().zip(Frame::parse(line)) {
            add(builder, sample, &frame);
        } else if !is_passed_over && !line.starts_with('#') {
            strange += 1;
            if strange == 1 {
                first_strange = number;
            }
        }
    }
    close(builder, &mut open)?;
    let event = event.unwrap_or_default();
    if others > 0 {
        notes.push(format!(
            "{others} samples of other events than {event} were left out"
        ));
    }
    if strange > 0 {
        notes.push(format!(
            "{strange} lines were not understood and left out, the first is line {first_strange}"
        ));
    }
    Ok(Capture {
        duration: times.map_or(0, |(first, last)| last - first),
        clock: ["cycles", "cpu-clock"]
            .into_iter()
            .find(|clock| event.split(':').next() == Some(clock))
            .unwrap_or(""),
        ..Capture::default()
    })
}

/// Adds a frame to a sample.
fn add(builder: &mut Builder, sample: &mut Open, frame: &Frame<'_>) {
    let name = if frame.name == "[unknown]" { "" } else { frame.name };
    let mut line = |name: &str| {
        let name = builder.string(name);
        Line {
            function: builder.function(Function {
                name,
                system_name: name,
                file: StringId(0),
                start_line: 0,
            }),
            line: 0,
            column: 0,
        }
    };
    if frame.file == "inlined" {
        sample.inlined.push(line(name));
        return;
    }
    let mut lines = std::mem::take(&mut sample.inlined);
    if !name.is_empty() || !lines.is_empty() {
        lines.push(line(name));
    }
    let kind = match frame.file {
        "" | "[unknown]" => None,
        file => Some(mapping_kind(file)),
    };
    let mapping = kind.map(|kind| {
        let path = if kind == MappingKind::Anonymous {
            "[anon]"
        } else {
            frame.file
        };
        builder.plain_mapping(kind, path)
    });
    sample.frames.push(builder.location(Location {
        kind: kind.map_or(FrameKind::Native(Language::Other), frame_kind),
        mapping,
        address: frame.address,
        by_frame_pointer: false,
        is_named: true,
        lines,
    }));
}

/// Adds the sample that was read to the profile.
fn close(builder: &mut Builder, open: &mut Option<Open>) -> Result<(), Problem> {
    let Some(sample) = open.take() else {
        return Ok(());
    };
    let stack = builder.stack(Stack {
        frames: sample.frames,
        outcome: Outcome::Complete,
    })?;
    let process = builder.process(sample.process);
    builder.sample(Sample {
        kind: Kind::Other(Unit::Events),
        process,
        tid: sample.tid,
        thread_name: sample.thread_name,
        cpu: 0,
        stack,
        count: 1,
        weight: 1,
        timestamps: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_versions() {
        let header = |text| Header::parse(text).map(|h| (h.name, h.pid, h.tid, h.event, h.rest));
        for (line, expected) in [
            (
                "java 12345 [002] 123.456789: cycles: ",
                ("java", 0, 12345, "cycles", ""),
            ),
            (
                "swapper     0 [000]  1.000001:     250000 cycles:P: ",
                ("swapper", 0, 0, "cycles:P", ""),
            ),
            (
                "Web Content 12/34 [001] 5.5:  1 cpu-clock:pppH:",
                ("Web Content", 12, 34, "cpu-clock:pppH", ""),
            ),
            (
                "a 1 b 77 99.9:  sched:sched_switch: prev_comm=a",
                ("a 1 b", 0, 77, "sched:sched_switch", "prev_comm=a"),
            ),
            (
                "perf 7 8.000000: 1 cycles: ffff do_it+0x1 ([kernel.kallsyms])",
                ("perf", 0, 7, "cycles", "ffff do_it+0x1 ([kernel.kallsyms])"),
            ),
        ] {
            assert_eq!(header(line), Some(expected), "{line}");
        }
        for line in [
            "",
            "main;a;b 12",
            "\t ffff f (x)",
            "# cmdline : perf",
            "a 1 2",
            "x 1 [001]",
        ] {
            assert_eq!(header(line), None, "{line}");
        }
        let frame = |text| Frame::parse(text).map(|frame| (frame.address, frame.name, frame.file));
        for (line, expected) in [
            (
                "\t 7f12 f+0x1a (/usr/lib/libc.so.6)",
                (0x7f12, "f", "/usr/lib/libc.so.6"),
            ),
            (
                "\t 1 operator()(int) (.part.0)+0x0 (/tmp/a b (deleted))",
                (1, "operator()(int) (.part.0)", "/tmp/a b (deleted)"),
            ),
            ("\t 2 g (inlined)", (2, "g", "inlined")),
            ("\t 3 [unknown] ([unknown])", (3, "[unknown]", "[unknown]")),
            (
                "\t ffffffff81 do_sys (([nf_tables])",
                (0xff_ffff_ff81, "do_sys", "[nf_tables]"),
            ),
        ] {
            assert_eq!(frame(line), Some(expected), "{line}");
        }
        assert_eq!(frame("\t file.c:12"), None);
    }
}
