//! Profiles from files: our own and those of other tools, so that they can be drawn, merged and compared.
//!
//! ```text
//! file ─▶ unpack (gzip) ─▶ what is it? ─┬▶ folded ──────┐
//!                                       ├▶ pprof ───────┤
//!                                       ├▶ otlp ────────┼▶ builder ─▶ Profile
//!                                       ├▶ perf script ─┤
//!                                       └▶ speedscope ──┘
//! ```
//!
//! What a file holds is told by its content, never by its name. Its names are a stranger's text: they are kept as they are,
//! but for bytes that are no UTF-8 and for what is beyond [`MAX_STRING`]; each output cleans them for itself.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;

use self::builder::Builder;
pub use self::builder::{MAX_DEPTH, MAX_FRAMES, MAX_STRING};
use crate::{
    export::text::plain,
    profile::{Capture, Kind, Profile},
};

mod builder;
mod folded;
mod otlp;
mod otlp_json;
mod perf_script;
mod pprof;
mod speedscope;
mod wire;

/// How to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most bytes of a file, unpacked.
    pub limit: usize,
    /// Which of the numbers of a pprof file, by its name; `None` is the one that the file shows first.
    pub sample_type: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limit: 256 << 20,
            sample_type: None,
        }
    }
}

/// What files hold.
#[derive(Debug)]
pub struct Contents {
    /// Of all of them together.
    pub profile: Profile,
    /// What was passed over, a sentence each.
    pub notes: Vec<String>,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused.
    #[error("cannot read {}: {source}", Name(file))]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something is wrong with what it holds.
    #[error("{}: {problem}", Name(file))]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
    /// What files count cannot be added up.
    #[error("these files count {} and {}, which do not add up; give them one by one", kinds[0].counted(), kinds[1].counted())]
    Kinds {
        /// What they count.
        kinds: [Kind; 2],
    },
}

/// What is wrong with the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Too large.
    #[error("holds more than {} MiB, unpacked; take a shorter or a filtered profile", .0 >> 20)]
    TooLarge(usize),
    /// Not a profile.
    #[error("is {0}")]
    Foreign(&'static str),
    /// None of the formats.
    #[error(
        "is no profile that is known here; known are folded stacks, pprof, OTLP profiles (protobuf, JSON), the output of `perf script`, and speedscope's JSON"
    )]
    Unknown,
    /// A part of it.
    #[error("{place} {what}")]
    Malformed {
        /// Line or offset.
        place: String,
        /// What is wrong there.
        what: &'static str,
    },
    /// JSON that is none, or not as it should be.
    #[error("is not as its format wants it: {0}")]
    Json(String),
    /// Nothing in it.
    #[error("holds no samples; was anything running when it was taken?")]
    Empty,
    /// Too much in it.
    #[error("has more than {1} {0}; take a shorter or a filtered profile")]
    Limit(&'static str, u64),
    /// A difference.
    #[error("is a difference of two profiles; give the two to `profiler-agent diff`")]
    Difference,
    /// No such number.
    #[error("has no sample type {asked:?}; it has {}", known.join(", "))]
    NoSampleType {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: Vec<String>,
    },
}

/// A file's name, fit for a line of text.
struct Name<'a>(&'a Path);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == "-" {
            return f.write_str("standard input");
        }
        f.write_str(&plain(&self.0.to_string_lossy(), 4096))
    }
}

/// Reads files and adds them up; `-` is the standard input.
///
/// # Errors
/// [`ReadError`], which names the file, the place in it and the remedy.
pub fn files(paths: &[PathBuf], options: &Options) -> Result<Contents, ReadError> {
    let mut builder = Builder::default();
    let mut notes = Vec::new();
    for path in paths {
        let bytes = contents(path, options.limit)?;
        let content = |problem| ReadError::Content {
            file: path.clone(),
            problem,
        };
        let before = notes.len();
        let name = Name(path).to_string();
        parse(&bytes, &name, &mut builder, &mut notes, options).map_err(content)?;
        for note in notes.iter_mut().skip(before) {
            *note = format!("{name}: {}", plain(note, 1000));
        }
    }
    let profile = builder.finish().map_err(|kinds| ReadError::Kinds { kinds })?;
    Ok(Contents { profile, notes })
}

/// Reads bytes as a file.
///
/// # Errors
/// [`Problem`].
pub fn bytes(bytes: &[u8], options: &Options) -> Result<Profile, Problem> {
    let mut builder = Builder::default();
    parse(bytes, "", &mut builder, &mut Vec::new(), options)?;
    // One file counts one thing.
    builder.finish().map_err(|_| Problem::Unknown)
}

/// The bytes of a file, no more than may be.
fn contents(path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
    let io = |source| ReadError::Io {
        file: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    if path == "-" {
        io::stdin()
            .lock()
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(io)?;
    } else {
        let file = fs::File::open(path).map_err(io)?;
        file.take(most).read_to_end(&mut bytes).map_err(io)?;
    }
    if bytes.len() > limit {
        return Err(ReadError::Content {
            file: path.to_owned(),
            problem: Problem::TooLarge(limit),
        });
    }
    Ok(bytes)
}

/// Reads what a file holds into the builder.
fn parse(
    bytes: &[u8],
    title: &str,
    builder: &mut Builder,
    notes: &mut Vec<String>,
    options: &Options,
) -> Result<(), Problem> {
    let unpacked;
    let mut bytes = bytes;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        unpacked = unpack(bytes, options.limit)?;
        bytes = &unpacked;
    }
    let before = builder.sample_count();
    let text = bytes.trim_ascii_start();
    if text.is_empty() {
        return Err(Problem::Empty);
    } else if bytes.starts_with(b"PERFILE2") {
        return Err(Problem::Foreign(
            "perf's own data; make text of it with `perf script -i FILE > FILE.txt`",
        ));
    }
    // Names can begin as other formats do: `<module>`, `{closure#0}`. The first line as a whole cannot be mistaken.
    let capture = if pprof::is_pprof(bytes) {
        pprof::parse(bytes, builder, options.sample_type.as_deref())?
    } else if otlp::is_otlp(bytes) {
        otlp::parse(bytes, builder)?
    } else if perf_script::is_perf_script(text) {
        perf_script::parse(bytes, builder, notes)?
    } else if folded::is_folded(text) {
        folded::parse(bytes, builder)?
    } else if text.starts_with(b"{") {
        match otlp_json::parse(text, builder)? {
            Some(capture) => capture,
            None => speedscope::parse(text, builder)?,
        }
    } else if text.starts_with(b"<") {
        return Err(Problem::Foreign(
            "a picture or a page; give the .folded, .pb.gz or .otlp file that was written beside it",
        ));
    } else {
        return Err(Problem::Unknown);
    };
    builder.capture(Capture {
        target: match capture.target.is_empty() {
            true => title.to_owned(),
            false => capture.target,
        },
        ..capture
    });
    if builder.sample_count() == before {
        return Err(Problem::Empty);
    }
    Ok(())
}

fn unpack(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = MultiGzDecoder::new(bytes).take(most).read_to_end(&mut out);
    if out.len() > limit {
        return Err(Problem::TooLarge(limit));
    }
    read.map_err(|_| Problem::Malformed {
        place: format!("the gzip stream, after {} bytes unpacked,", out.len()),
        what: "is cut short or damaged; copy the file once more",
    })?;
    Ok(out)
}

/// The bytes of a build ID in hexadecimal; none where it is not.
fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    // A build ID has 20 bytes; some have 32.
    digits
        .iter()
        .take(64)
        .map(byte)
        .collect::<Option<_>>()
        .unwrap_or_default()
}
