//! speedscope's own format, JSON: <https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources>.
//!
//! Stacks and names are those of [folded stacks](super::folded), marks included; equal stacks are one sample, so that the
//! order of time is not in it. Widths are time where the rate is known, else what was counted.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::folded::{Folded, Options};
use crate::profile::{Kind, Profile, Unit};

/// Says what the file is.
pub const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
pub struct File {
    /// [`SCHEMA`].
    #[serde(rename = "$schema", default)]
    pub schema: String,
    /// What all profiles refer to.
    pub shared: Shared,
    /// Profiles; ours is one.
    pub profiles: Vec<Sampled>,
    /// Title.
    #[serde(default)]
    pub name: Option<String>,
    /// What made it.
    #[serde(default)]
    pub exporter: Option<String>,
}

/// What all profiles refer to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shared {
    /// Every frame once.
    pub frames: Vec<Frame>,
}

/// A function.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame {
    /// Its name.
    pub name: String,
}

/// A profile of samples; there is another type, of events, which we neither write nor read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sampled {
    /// `sampled`.
    pub r#type: String,
    /// Title.
    #[serde(default)]
    pub name: String,
    /// Of the weights: `none`, `nanoseconds`, `microseconds`, `milliseconds`, `seconds` or `bytes`.
    pub unit: String,
    /// 0.
    #[serde(default)]
    pub start_value: f64,
    /// Sum of the weights.
    #[serde(default)]
    pub end_value: f64,
    /// Indices of frames, root first.
    #[serde(default)]
    pub samples: Vec<Vec<u32>>,
    /// One a sample.
    #[serde(default)]
    pub weights: Vec<f64>,
}

/// Writes a profile.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, out: &mut impl Write) -> io::Result<()> {
    let kind = profile.kind();
    let folded = Folded::new(profile, &Options { kind });
    let period = profile.capture.period();
    let (unit, factor) = match kind {
        Kind::Cpu if period > 0 => ("nanoseconds", period),
        Kind::Cpu | Kind::Other(Unit::Events | Unit::Counts) => ("none", 1),
        Kind::Other(Unit::Nanoseconds) => ("nanoseconds", 1),
        Kind::Other(Unit::Bytes) => ("bytes", 1),
    };
    let weights: Vec<f64> = folded
        .lines()
        .map(|(_, count)| count.saturating_mul(factor) as f64)
        .collect();
    let title = super::text::plain(&profile.capture.target, 200);
    let file = File {
        schema: SCHEMA.to_owned(),
        shared: Shared {
            frames: folded
                .labels()
                .map(|(label, _)| Frame {
                    name: label.to_owned(),
                })
                .collect(),
        },
        profiles: vec![Sampled {
            r#type: "sampled".to_owned(),
            name: title.clone(),
            unit: unit.to_owned(),
            start_value: 0.0,
            end_value: weights.iter().sum(),
            samples: folded.lines().map(|(frames, _)| frames.to_vec()).collect(),
            weights,
        }],
        name: Some(title),
        exporter: Some(format!("profiler-agent {}", env!("CARGO_PKG_VERSION"))),
    };
    serde_json::to_writer(&mut *out, &file)?;
    out.write_all(b"\n")
}
