//! Two profiles in one flamegraph: shape and widths of the second, red where it has a larger share than the first, blue where it has a smaller one.
//!
//! What the second does not have at all has no width; a picture with the two given the other way round shows it.

use std::{fmt::Write as _, io};

use inferno::flamegraph::{
    self,
    color::{BackgroundColor, Color, StrokeColor},
};

use super::{
    svg::{MOST_FRAMES, NARROWEST, SvgError, lines},
    title,
};
use crate::{
    export::{
        folded::Options,
        merged::Merged,
        span::Span,
        text::{Rfc3339, Thousands, plain},
    },
    profile::Profile,
};

/// Draws the difference. Writes in small pieces: give it a buffered writer.
///
/// # Errors
/// [`SvgError::NoSamples`] when one of them has no samples, and the errors of the writer.
pub fn write(before: &Profile, after: &Profile, out: &mut impl io::Write) -> Result<(), SvgError> {
    let span = |profile| Span::of(profile, &Options::of(profile));
    draw(&span(before), &span(after), out)
}

/// The same of two spans of time.
///
/// # Errors
/// As [`write()`].
pub fn draw(before: &Span, after: &Span, out: &mut impl io::Write) -> Result<(), SvgError> {
    let totals = [before.total(), after.total()];
    if totals.contains(&0) {
        return Err(SvgError::NoSamples);
    }
    let merged = Merged::compared(&before.parts, &after.parts);
    let frames = merged.widest(false, MOST_FRAMES, NARROWEST);
    let lines = lines(&merged, &frames, |text, [one, other]| {
        // As many as there would be of as many samples as the other one has.
        let scaled =
            (u128::from(one) * u128::from(totals[1]) + u128::from(totals[0] / 2)) / u128::from(totals[0]);
        // Writing to a string cannot fail.
        let _ = write!(text, "{scaled} {other}");
    });

    let mut inferno = flamegraph::Options::default();
    inferno.title = format!(
        "{} → {}: more is red, less is blue",
        plain(&title(&before.capture), 40),
        plain(&title(&after.capture), 40)
    );
    inferno.subtitle = Some(format!("before: {} | after: {}", when(before), when(after)));
    inferno.notes = format!("made by profiler-agent {}", env!("CARGO_PKG_VERSION"));
    after.kind().counted().clone_into(&mut inferno.count_name);
    "verdana, dejavu sans, sans-serif".clone_into(&mut inferno.font_type);
    inferno.bgcolors = Some(BackgroundColor::Flat(Color::new(255, 255, 255)));
    // What has not changed is nearly white.
    inferno.stroke_color = StrokeColor::Color(Color::new(205, 205, 205));
    inferno.deterministic = true;
    flamegraph::from_lines(&mut inferno, lines.lines(), out)?;
    Ok(())
}

/// When and how much, in as many words as fit half a line.
fn when(span: &Span) -> String {
    let samples = format!("{} {}", Thousands(span.total()), span.kind().counted());
    match span.capture.start {
        0 => samples,
        start => format!("{} · {samples}", Rfc3339(start)),
    }
}
