//! The configuration file: TOML, each key the name of a flag without its dashes.
//!
//! ```toml
//! otlp-endpoint = "https://collector:4317"
//! otlp-header = ["authorization=Bearer TOKEN"]
//! interval = "10s"
//! frequency = 99
//! ```

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
};

use profiler_agent::procfs;
use toml::de::{DeTable, DeValue};

/// Most bytes of a file.
const LIMIT: u64 = 1 << 20;

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The flag without its dashes.
    pub(super) key: String,
    /// As the flag would have them.
    pub(super) values: Vec<String>,
    /// Where it stands, from 1.
    pub(super) line: usize,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML.
    #[error("{path}, line {line}: {reason}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// It has a key that means nothing.
    #[error("{path}, line {line}: there is no key {key:?}{nearest}")]
    UnknownKey {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// The key.
        key: String,
        /// The one that is probably meant.
        nearest: String,
    },
    /// A value is none that a flag can have.
    #[error(
        "{path}, line {line}: the value of {key} must be a text, a number, true, false, or a list of them"
    )]
    Value {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// The key.
        key: String,
    },
}

/// Reads a file, whose keys must be among `known`.
pub(super) fn read(path: &Path, known: &[&str]) -> Result<Vec<Entry>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = procfs::read(path, LIMIT).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|error| failed(io::Error::other(error)))?;
    parse(path, &text, known)
}

fn parse(path: &Path, text: &str, known: &[&str]) -> Result<Vec<Entry>, FileError> {
    let line = |offset: usize| {
        let before = text.as_bytes().get(..offset).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let table = DeTable::parse(text).map_err(|error| FileError::Syntax {
        path: path.to_owned(),
        line: line(error.span().map_or(0, |span| span.start)),
        reason: error.message().to_owned(),
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line(key.span().start);
        let name = key.get_ref().to_string();
        if !known.contains(&name.as_str()) {
            return Err(FileError::UnknownKey {
                path: path.to_owned(),
                line,
                nearest: nearest(&name, known),
                key: name,
            });
        }
        let wrong = |key| FileError::Value {
            path: path.to_owned(),
            line,
            key,
        };
        let values = match value.get_ref().as_array() {
            Some(values) => values.iter().map(|value| scalar(value.get_ref())).collect(),
            None => scalar(value.get_ref()).map(|value| vec![value]),
        };
        entries.push(Entry {
            values: values.ok_or_else(|| wrong(name.clone()))?,
            key: name,
            line,
        });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

/// A value as a flag would have it.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// The known key that one who wrote this probably meant.
fn nearest(key: &str, known: &[&str]) -> String {
    let key = key.replace('_', "-").to_lowercase();
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(&key, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let mut text = String::new();
    if let Some((_, known)) = nearest.filter(|(similarity, _)| *similarity > 0.7) {
        // Writing to a string cannot fail.
        let _ = write!(text, "; is {known:?} meant?");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["otlp-endpoint", "otlp-header", "frequency", "force"];

    fn read(text: &str) -> Result<Vec<Entry>, FileError> {
        parse(Path::new("agent.toml"), text, &KNOWN)
    }

    #[test]
    fn values_are_what_the_flag_would_have() {
        let entries =
            read("# a comment\nfrequency = 97\n\notlp-header = [\n  'a=b',\n  'c=d',\n]\nforce = true\n")
                .unwrap();
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.values.join("+"), entry.line))
            .collect();
        assert_eq!(
            entries,
            [
                ("frequency", "97".to_owned(), 2),
                ("otlp-header", "a=b+c=d".to_owned(), 4),
                ("force", "true".to_owned(), 8)
            ]
        );
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, words) in [
            (
                "frequency = 97\notlp_endpont = 'x'\n",
                "agent.toml, line 2: there is no key \"otlp_endpont\"; is \"otlp-endpoint\" meant?",
            ),
            ("\n\nzzz = 1", "line 3: there is no key \"zzz\""),
            ("\nfrequency = ", "agent.toml, line 2: "),
            ("frequency = 1\nfrequency = 2", "line 2: duplicate key"),
            (
                "[frequency]\nx = 1",
                "line 1: the value of frequency must be a text",
            ),
            (
                "frequency = [[1]]",
                "line 1: the value of frequency must be a text",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
