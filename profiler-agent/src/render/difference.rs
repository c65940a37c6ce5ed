//! Two profiles in one flamegraph: shape and widths of the second, red where it has a larger share than the first, blue where it has a smaller one.
//!
//! What the second does not have at all has no width; a picture with the two given the other way round shows it.

use std::io;

use inferno::{
    differential,
    flamegraph::{
        self,
        color::{BackgroundColor, Color, StrokeColor},
    },
};

use super::{svg::SvgError, title};
use crate::{
    export::{
        folded::{Folded, Options},
        text::{Rfc3339, Thousands, plain},
    },
    profile::Profile,
};

/// Draws the difference. Writes in small pieces: give it a buffered writer.
///
/// # Errors
/// [`SvgError::NoSamples`] when one of them has no samples, and the errors of the writer.
pub fn write(before: &Profile, after: &Profile, out: &mut impl io::Write) -> Result<(), SvgError> {
    let folded = [before, after].map(|profile| Folded::new(profile, &Options::of(profile)));
    if folded.iter().any(Folded::is_empty) {
        return Err(SvgError::NoSamples);
    }
    let mut texts = [Vec::new(), Vec::new()];
    for (folded, text) in folded.iter().zip(&mut texts) {
        folded.write(text)?;
    }
    let [first, second] = &texts;
    let options = differential::Options {
        normalize: true,
        ..differential::Options::default()
    };
    let mut lines = Vec::new();
    differential::from_readers(options, first.as_slice(), second.as_slice(), &mut lines)?;
    // Made of strings, so this cannot fail.
    let lines = String::from_utf8(lines).map_err(io::Error::other)?;

    let mut inferno = flamegraph::Options::default();
    inferno.title = format!("{} → {}: more is red, less is blue", short(before), short(after));
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
fn when(profile: &Profile) -> String {
    let samples = format!(
        "{} {}",
        Thousands(profile.sample_count()),
        profile.kind().counted()
    );
    match profile.capture.start {
        0 => samples,
        start => format!("{} · {samples}", Rfc3339(start)),
    }
}

/// What was profiled, in half a line.
fn short(profile: &Profile) -> String {
    plain(&title(profile), 40)
}
