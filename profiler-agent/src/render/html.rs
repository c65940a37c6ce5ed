//! The page: a file that shows a profile in any browser, offline, and asks nobody for anything.
//!
//! ```text
//! page/page.html ─┬─ page/page.css
//!                 ├─ page/src/*.js, one after the other
//!                 └─ columns, gzipped, in base64
//! ```
//!
//! Its policy lets in the style and the script that stand in it, by their hashes, and nothing else: no other script,
//! no request to any host. Names of the profiled programs are in the packed data alone, and the script shows them as
//! text: nothing that a program calls itself becomes markup.

use std::io::{self, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

use super::columns;
use crate::{
    export::folded::Options,
    profile::{
        Capture, Profile, Sample,
        tables::{Tables, Translation},
    },
};

/// Samples of two profiles that a page can compare: each has a time there.
const MOST_COMPARED: u64 = 4_000_000;

/// Two profiles that the page cannot compare.
#[derive(Debug, thiserror::Error)]
#[error("a page compares up to {MOST_COMPARED} samples, and these are {0}; an .svg has no limit")]
pub struct DifferenceError(u64);

const PAGE: &str = include_str!("../../page/page.html");
const STYLE: &str = include_str!("../../page/page.css");
/// What each module imports stands before it.
const MODULES: [&str; 12] = [
    include_str!("../../page/src/text.js"),
    include_str!("../../page/src/tree.js"),
    include_str!("../../page/src/profile.js"),
    include_str!("../../page/src/address.js"),
    include_str!("../../page/src/palette.js"),
    include_str!("../../page/src/canvas.js"),
    include_str!("../../page/src/flame.js"),
    include_str!("../../page/src/timeline.js"),
    include_str!("../../page/src/past.js"),
    include_str!("../../page/src/heatmap.js"),
    include_str!("../../page/src/functions.js"),
    include_str!("../../page/src/main.js"),
];

/// Writes the page with the profile in it. An empty profile makes a page that says so.
///
/// # Errors
/// Those of the writer.
pub fn write(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    columns::write(profile, options, &mut packed)?;
    let data = STANDARD.encode(packed.finish()?);
    page(Some((&data, "")), out)
}

/// Writes the page with two profiles, one after the other in its time line, which shows their difference to begin with.
///
/// # Errors
/// Those of the writer; [`DifferenceError`] for profiles that are no samples, or too many.
pub fn write_difference(before: &Profile, after: &Profile, out: &mut impl Write) -> io::Result<()> {
    let count = before.sample_count().saturating_add(after.sample_count());
    if count > MOST_COMPARED {
        return Err(io::Error::other(DifferenceError(count)));
    }
    let length = |profile: &Profile| {
        let millis = profile.capture.duration.div_ceil(1_000_000);
        if millis == 0 { 1000 } else { millis }
    };
    let (first, second) = (length(before), length(after));
    let mut to = Tables::new(Capture {
        target: format!(
            "{} → {}",
            super::title(&before.capture),
            super::title(&after.capture)
        ),
        command: String::new(),
        start: 0,
        duration: (first + second) * 1_000_000,
        ..before.capture.clone()
    });
    let mut samples = Vec::new();
    for (profile, begin, length) in [(before, 0, first), (after, first, second)] {
        let mut translation = Translation::new(profile);
        for sample in &profile.samples {
            let times = sample.timestamps.iter();
            let mut timestamps: Vec<u64> = times
                .map(|time| {
                    let since = time.saturating_sub(profile.capture.start);
                    begin * 1_000_000 + since.min(length * 1_000_000 - 1)
                })
                .collect();
            // Where it does not say when, all of it was in the middle.
            if timestamps.len() as u64 != sample.count {
                let count = usize::try_from(sample.count).unwrap_or_default();
                timestamps = vec![(begin + length / 2) * 1_000_000; count];
            }
            samples.push(Sample {
                process: translation.process(&mut to, sample.process),
                thread_name: translation.string(&mut to, sample.thread_name),
                stack: translation.stack(&mut to, sample.stack),
                timestamps,
                ..sample.clone()
            });
        }
    }
    let mut profile = to.finish();
    profile.samples = samples;
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    columns::write(&profile, &Options::of(&profile), &mut packed)?;
    let state = format!("base=0-{first}&amp;t={first}-{}", first + second);
    page(Some((&STANDARD.encode(packed.finish()?), &state)), out)
}

/// Writes the page without a profile: for a server that gives [what it asks for](write_columns) as `page.json` in the same folder, and a
/// time line of all that it has as `timeline.json`. It passes on what is behind `?` in its address.
///
/// # Errors
/// Those of the writer.
pub fn write_served(out: &mut impl Write) -> io::Result<()> {
    page(None, out)
}

/// The policy of the served page, for its server to say it too: what stands in a page cannot forbid that it is framed.
pub fn served_policy() -> String {
    format!("{}; frame-ancestors 'none'", policy(&script(), "'self'"))
}

/// The policy of pages that hold their profile.
pub fn embedded_policy() -> String {
    format!("{}; frame-ancestors 'none'", policy(&script(), "'none'"))
}

/// What a page with such a script may do, and whom it may ask.
fn policy(script: &str, connect: &str) -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(STYLE),
    )
}

/// Writes what the served page asks for as `page.json`.
///
/// # Errors
/// Those of the writer.
pub fn write_columns(profile: &Profile, options: &Options, out: &mut impl Write) -> io::Result<()> {
    columns::write(profile, options, out)
}

fn page(data: Option<(&str, &str)>, out: &mut impl Write) -> io::Result<()> {
    let script = script();
    let policy = policy(&script, if data.is_some() { "'none'" } else { "'self'" });
    let mut rest = PAGE;
    while let Some((before, (name, after))) = rest
        .split_once("{{")
        .and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        out.write_all(before.as_bytes())?;
        match (name, data) {
            ("policy", _) => out.write_all(policy.as_bytes())?,
            ("version", _) => out.write_all(env!("CARGO_PKG_VERSION").as_bytes())?,
            ("style", _) => out.write_all(STYLE.as_bytes())?,
            ("script", _) => out.write_all(script.as_bytes())?,
            // Of a type that is no script: the browser leaves it alone.
            ("data", Some((data, ""))) => {
                writeln!(out, "<script type=\"text/plain\" id=\"profile\">{data}</script>")?;
            }
            ("data", Some((data, state))) => {
                writeln!(
                    out,
                    "<script type=\"text/plain\" id=\"profile\" data-state=\"{state}\">{data}</script>"
                )?;
            }
            _ => {}
        }
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

/// The modules as one: without their imports, which stand before them, and without `export`.
fn script() -> String {
    let mut script = String::new();
    for module in MODULES {
        let mut is_import = false;
        for line in module.lines() {
            is_import |= line.starts_with("import ");
            if is_import {
                is_import = !line.ends_with(';');
                continue;
            }
            script.push_str(line.strip_prefix("export ").unwrap_or(line));
            script.push('\n');
        }
    }
    script
}

/// What a policy calls a text by.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}
