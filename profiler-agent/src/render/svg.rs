//! A flamegraph as an SVG file: zooms and searches in a browser, reads as a still picture everywhere else.
//!
//! What a person needs to trust a picture that is found in a ticket a year later stands in it as text: what was
//! profiled, when, on which host, at which rate, how many samples it shows and how many are missing.
//!
//! The same profile gives the same bytes: colours come from names, never from chance.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    io,
};

use inferno::flamegraph::{
    self,
    color::{BackgroundColor, Color, PaletteMap, StrokeColor},
};

use super::{Amount, subtitle, title};
use crate::{
    export::{
        folded::{LabelKind, Options},
        merged::{Frame, Merged},
        span::Span,
    },
    profile::{Capture, Profile},
};

/// Pixels that the legend adds at the bottom.
const LEGEND_HEIGHT: usize = 22;

/// Most frames of a picture: what else there is would make it slow to load, and be too narrow to be read.
pub(super) const MOST_FRAMES: usize = 10_000;
/// Frames below this part of the whole are narrower than the tenth of a pixel that is still drawn, of 1,200.
pub(super) const NARROWEST: u64 = 10_000;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum SvgError {
    /// A picture of nothing would look like a picture of idleness.
    #[error("there are no samples to draw")]
    NoSamples,
    /// The writer failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Draws a flamegraph, root at the bottom, widths in samples. Frames narrower than a tenth of a pixel are left
/// out, and of very many the narrowest. Writes in small pieces: give it a buffered writer.
///
/// # Errors
/// [`SvgError::NoSamples`] for a profile without samples of the asked kind, and the errors of the writer.
pub fn write(profile: &Profile, options: &Options, out: &mut impl io::Write) -> Result<(), SvgError> {
    draw(&Span::of(profile, options), Look::default(), out)
}

/// How a picture is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// The root is at the top.
    pub icicle: bool,
    /// Stacks are merged from their leaves on: who is called, by whom.
    pub reverse: bool,
}

/// The same of a span of time, with another look.
///
/// # Errors
/// As [`write()`].
pub fn draw(span: &Span, look: Look, out: &mut impl io::Write) -> Result<(), SvgError> {
    if span.total() == 0 {
        return Err(SvgError::NoSamples);
    }
    let merged = span.merged();
    let frames = merged.widest(look.reverse, MOST_FRAMES, NARROWEST);
    let drawn: BTreeSet<u32> = frames.iter().map(|frame| frame.label).collect();
    let labels = drawn.into_iter().map(|label| merged.label(label));
    let labels: Vec<(&str, LabelKind)> = labels.collect();
    let mut palette = PaletteMap::default();
    palette.insert("", shade(LabelKind::Process, ""));
    for &(label, kind) in &labels {
        palette.insert(label, shade(kind, label));
    }
    let mut inferno = flamegraph::Options::default();
    inferno.title = title(&span.capture);
    inferno.subtitle = Some(subtitle(&span.capture, Amount::of_span(span)));
    inferno.notes = notes(&span.capture);
    span.kind().counted().clone_into(&mut inferno.count_name);
    "verdana, dejavu sans, sans-serif".clone_into(&mut inferno.font_type);
    inferno.bgcolors = Some(BackgroundColor::Flat(Color::new(255, 255, 255)));
    inferno.stroke_color = StrokeColor::None;
    // Every label has its colour already; this is for what inferno might add.
    inferno.deterministic = true;
    if look.icicle {
        inferno.direction = flamegraph::Direction::Inverted;
    }
    inferno.palette_map = Some(&mut palette);
    // `no_sort` stays off: inferno refuses lines that are not in the order of their bytes, and ours are in the
    // order of their frames.
    let mut picture = Vec::new();
    let lines = lines(&merged, &frames, |text, [own, _]| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{own}");
    });
    flamegraph::from_lines(&mut inferno, lines.lines(), &mut picture)?;
    let picture = String::from_utf8(picture).map_err(io::Error::other)?;
    let kinds: BTreeSet<LabelKind> = labels.into_iter().map(|(_, kind)| kind).collect();
    out.write_all(with_legend(&picture, &kinds).as_bytes())?;
    Ok(())
}

/// Frames as folded stacks, a line for each that has events of its own; what is behind the stack is written by `count`.
pub(super) fn lines(merged: &Merged<'_>, frames: &[Frame], count: impl Fn(&mut String, [u64; 2])) -> String {
    let mut text = String::new();
    let mut path = Vec::new();
    for frame in frames.iter().filter(|frame| frame.own != [0, 0]) {
        path.clear();
        path.push(frame);
        while let Some(caller) = path.last().and_then(|frame| frames.get(frame.caller?)) {
            path.push(caller);
        }
        for (place, frame) in path.iter().rev().enumerate() {
            if place > 0 {
                text.push(';');
            }
            text.push_str(merged.label(frame.label).0);
        }
        text.push(' ');
        count(&mut text, frame.own);
        text.push('\n');
    }
    text
}

/// The picture with a line below it that says what its colours mean; inferno has no such thing. A picture that is not as expected stays
/// as it is.
fn with_legend(picture: &str, kinds: &BTreeSet<LabelKind>) -> String {
    let unchanged = || picture.to_owned();
    let between = |text: &str, before: &str| -> Option<usize> {
        let (_, rest) = text.split_once(before)?;
        rest.split_once('"')?.0.parse().ok()
    };
    let Some((head, body)) = picture
        .split_once("<svg ")
        .and_then(|(_, rest)| rest.split_once('>'))
    else {
        return unchanged();
    };
    let Some(height) = between(head, " height=\"") else {
        return unchanged();
    };
    let Some(body) = body.strip_suffix("</svg>") else {
        return unchanged();
    };
    let (old, new) = (
        format!(" height=\"{height}\""),
        format!(" height=\"{}\"", height + LEGEND_HEIGHT),
    );
    let head = head.replacen(&old, &new, 1).replacen(
        &format!(" {height}\""),
        &format!(" {}\"", height + LEGEND_HEIGHT),
        1,
    );
    let mut text = format!(
        "{}<svg {head}>{}<g id=\"legend\">",
        picture.split("<svg ").next().unwrap_or_default(),
        // The background.
        body.replacen(&old, &new, 1)
    );
    let mut left = 10;
    for &kind in kinds {
        let name = kind_name(kind);
        let Color { r, g, b } = colour(kind);
        let (top, line) = (height + 1, height + 11);
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "<rect x=\"{left}\" y=\"{top}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"rgb({r},{g},{b})\"/>\
             <text x=\"{}\" y=\"{line}\">{name}</text>",
            left + 18
        );
        // A character takes 7 pixels; wide fonts more.
        left += 44 + 7 * name.len();
    }
    text.push_str("</g></svg>");
    text
}

/// What a colour means.
const fn kind_name(kind: LabelKind) -> &'static str {
    match kind {
        LabelKind::Process => "process",
        LabelKind::Native => "function",
        LabelKind::Inlined => "inlined function",
        LabelKind::Unnamed => "code without a name",
        LabelKind::Kernel => "kernel",
        LabelKind::Jit => "generated code",
        LabelKind::Marker => "stack not whole",
    }
}

/// A comment in the file: what made it, and the losses by reason.
fn notes(capture: &Capture) -> String {
    let mut text = format!("made by profiler-agent {}", env!("CARGO_PKG_VERSION"));
    for (reason, count) in &capture.lost {
        let _ = write!(text, "; lost {}: {count}", reason.name());
    }
    text
}

/// The colour of a kind. The hues differ in lightness too, so that they can be told apart in grey and by the colour-blind.
const fn colour(kind: LabelKind) -> Color {
    let (r, g, b) = match kind {
        LabelKind::Process => (214, 219, 226),
        LabelKind::Native => (248, 196, 92),
        LabelKind::Inlined => (136, 206, 214),
        LabelKind::Unnamed => (216, 200, 168),
        LabelKind::Kernel => (232, 124, 84),
        LabelKind::Jit => (142, 200, 112),
        LabelKind::Marker => (178, 156, 196),
    };
    Color { r, g, b }
}

/// The colour of a label: that of its kind, in a shade that tells neighbours apart.
fn shade(kind: LabelKind, label: &str) -> Color {
    // `DefaultHasher::new` has fixed keys, so the colour of a name is the same in every run.
    let mut hasher = DefaultHasher::new();
    label.hash(&mut hasher);
    let percent = match kind {
        LabelKind::Process | LabelKind::Marker => 100,
        LabelKind::Native | LabelKind::Inlined | LabelKind::Unnamed | LabelKind::Kernel | LabelKind::Jit => {
            84 + hasher.finish() % 22
        }
    };
    let scale = |value: u8| u8::try_from((u64::from(value) * percent / 100).min(255)).unwrap_or(u8::MAX);
    let Color { r, g, b } = colour(kind);
    Color::new(scale(r), scale(g), scale(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_counted_for_its_caller() {
        let text = "a;b;c 100000\na;b;d 1\na;e;f 2\na;e;g 1\nz;c 1\n";
        let profile = crate::read::bytes(text.as_bytes(), &crate::read::Options::default()).unwrap();
        let span = Span::of(&profile, &Options::of(&profile));
        let of = |from_leaves, most| {
            let merged = span.merged();
            let frames = merged.widest(from_leaves, most, NARROWEST);
            let text = lines(&merged, &frames, |text, [own, _]| text.push_str(&own.to_string()));
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(of(false, 100), ["a 3", "a;b 1", "a;b;c 100000", "z 1"]);
        assert_eq!(of(true, 100), ["c 1", "c;b;a 100000", "d 1", "f 2", "g 1"]);
        // First frames, whatever is asked for, and the widest others.
        assert_eq!(of(false, 2), ["a 3", "a;b 100001", "z 1"]);
    }
}
