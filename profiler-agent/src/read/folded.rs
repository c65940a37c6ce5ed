//! Folded stacks, of this project, the stackcollapse programs, py-spy, async-profiler and others.
//!
//! The first frame of a line is the name of its process, as the stackcollapse programs have it, unless one of the file has white
//! space in it, which those replace: then the file tells no processes apart. Marks are understood: `_[k]` kernel, `_[j]` generated
//! code, `_[i]` inlined into the frame before it; what cannot be inlined into that frame loses its mark.

use profiler_common::Outcome;

use super::{
    Problem,
    builder::{Builder, MAX_DEPTH, unmapped_kind},
};
use crate::profile::{
    Capture, FrameKind, Kind, Language, LocationId, Runtime, Sample, Stack, StringId, Unit,
};

/// A line, root first, and its count. Nothing for an empty one.
fn line(line: &[u8]) -> Option<Result<(&[u8], u64), &'static str>> {
    let line = line.trim_ascii_end();
    if line.is_empty() {
        return None;
    }
    const WRONG: &str = "does not end in a space and a count, as every line of folded stacks does";
    let Some(space) = line.iter().rposition(|&byte| byte == b' ') else {
        return Some(Err(WRONG));
    };
    let (stack, count) = line.split_at(space);
    let count = count.trim_ascii_start();
    // Some write fractions.
    let (whole, fraction) = match count.iter().position(|&byte| byte == b'.') {
        Some(dot) => count.split_at(dot),
        None => (count, &b""[..]),
    };
    let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok());
    Some(match number {
        Some(number) if is_number(whole) && is_number(fraction.get(1..).unwrap_or_default()) => {
            Ok((stack.trim_ascii_end(), number))
        }
        _ => Err(WRONG),
    })
}

/// Whether the first line is one of folded stacks.
pub(super) fn is_folded(text: &[u8]) -> bool {
    text.split(|&byte| byte == b'\n')
        .find_map(line)
        .is_some_and(|line| line.is_ok())
}

pub(super) fn parse(bytes: &[u8], builder: &mut Builder) -> Result<Capture, Problem> {
    let mut stacks = Vec::new();
    let mut differences = 0;
    for (number, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        match line(text) {
            None => {}
            Some(Ok((stack, count))) => {
                differences += usize::from(matches!(line(stack), Some(Ok(_))));
                stacks.push((stack, count));
            }
            Some(Err(what)) => {
                return Err(Problem::Malformed {
                    place: format!("line {number}"),
                    what,
                });
            }
        }
    }
    if differences > 0 && differences == stacks.len() {
        return Err(Problem::Difference);
    }
    let has_processes = !stacks.iter().any(|(stack, _)| {
        let first = stack.split(|&byte| byte == b';').next().unwrap_or_default();
        String::from_utf8_lossy(first).contains(char::is_whitespace)
    });
    let mut reader = Reader::default();
    for (stack, count) in stacks {
        let stack = String::from_utf8_lossy(stack);
        reader.add(
            builder,
            stack.split(';'),
            has_processes,
            Kind::Other(Unit::Events),
            count,
        )?;
    }
    Ok(Capture::default())
}

/// Turns lines of names into samples.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Of the location that is being made: what it is, and its names, outermost first.
    open: Vec<String>,
    kind: Option<FrameKind>,
    frames: Vec<LocationId>,
}

impl Reader {
    /// Adds one stack, root first.
    pub(super) fn add<'n>(
        &mut self,
        builder: &mut Builder,
        names: impl Iterator<Item = &'n str>,
        has_processes: bool,
        kind: Kind,
        count: u64,
    ) -> Result<(), Problem> {
        if count == 0 {
            return Ok(());
        }
        let mut names = names.peekable();
        let process = match has_processes {
            true => builder.named_process(names.next().unwrap_or("")),
            false => builder.named_process(""),
        };
        self.frames.clear();
        for name in names {
            let mark = [
                ("_[k]", FrameKind::Kernel),
                ("_[j]", FrameKind::Jit(Runtime::Unknown)),
                ("_[i]", FrameKind::Native(Language::Other)),
            ]
            .into_iter()
            .find_map(|(mark, kind)| Some((name.strip_suffix(mark)?, kind)));
            let is_inlined = name.ends_with("_[i]");
            let (name, frame) = mark.unwrap_or_else(|| (name, unmapped_kind(name)));
            let takes = matches!(self.kind, Some(FrameKind::Native(_) | FrameKind::Jit(_)));
            if !(is_inlined && takes) {
                self.close(builder);
                self.kind = Some(frame);
            }
            self.open.push(name.to_owned());
            if self.frames.len() + self.open.len() > MAX_DEPTH {
                return Err(Problem::Limit("frames in one stack", MAX_DEPTH as u64));
            }
        }
        self.close(builder);
        self.frames.reverse();
        let stack = builder.stack(Stack {
            frames: std::mem::take(&mut self.frames),
            outcome: Outcome::Complete,
        })?;
        builder.sample(Sample {
            kind,
            process,
            tid: 0,
            thread_name: StringId(0),
            cpu: 0,
            stack,
            count,
            weight: count,
            timestamps: Vec::new(),
        })
    }

    fn close(&mut self, builder: &mut Builder) {
        if let Some(kind) = self.kind.take() {
            let names: Vec<&str> = self.open.iter().rev().map(String::as_str).collect();
            self.frames.push(builder.named_location(kind, &names));
        }
        self.open.clear();
    }
}
