//! speedscope's own format, as far as it holds samples.

use super::{Problem, builder::Builder, folded::Reader};
use crate::{
    export::speedscope::File,
    profile::{Capture, Kind, Unit},
};

pub(super) fn parse(bytes: &[u8], builder: &mut Builder) -> Result<Capture, Problem> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| Problem::Json(error.to_string()))?;
    let mut reader = Reader::default();
    let name = |&index: &u32| {
        let frame = file.shared.frames.get(index as usize);
        frame.map_or("", |frame| frame.name.as_str())
    };
    let samples = || file.profiles.iter().flat_map(|profile| &profile.samples);
    // As in folded stacks.
    let has_processes = !samples().any(|sample| {
        let first = sample.first().map_or("", name);
        first.contains(char::is_whitespace)
    });
    for profile in &file.profiles {
        if profile.r#type != "sampled" {
            return Err(Problem::Foreign(
                "of speedscope's type \"evented\", which holds no samples; write it as \"sampled\"",
            ));
        }
        let (unit, factor) = match profile.unit.as_str() {
            "none" => (Unit::Events, 1.0),
            "bytes" => (Unit::Bytes, 1.0),
            "nanoseconds" => (Unit::Nanoseconds, 1.0),
            "microseconds" => (Unit::Nanoseconds, 1e3),
            "milliseconds" => (Unit::Nanoseconds, 1e6),
            "seconds" => (Unit::Nanoseconds, 1e9),
            other => return Err(Problem::Json(format!("there is no unit {other:?}"))),
        };
        for (sample, weight) in profile.samples.iter().zip(&profile.weights) {
            if *weight < 0.0 {
                return Err(Problem::Difference);
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and what is beyond the largest number becomes that"
            )]
            let count = (weight * factor).round() as u64;
            reader.add(
                builder,
                sample.iter().map(name),
                has_processes,
                Kind::Other(unit),
                count,
            )?;
        }
    }
    Ok(Capture {
        target: file.name.unwrap_or_default(),
        ..Capture::default()
    })
}
