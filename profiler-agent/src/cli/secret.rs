//! Files that hold a secret and nothing else. They are read each time the settings are, so that what was renewed is seen, and no message has a word
//! of what is in them.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher as _},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use profiler_agent::export::otlp::headers::{Header, HeaderError};

/// Most bytes of a file; receivers take some kB of headers.
const LIMIT: u64 = 64 << 10;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is longer than any secret.
    #[error("{0} is longer than {LIMIT} bytes, so it is another file than is meant")]
    TooLong(PathBuf),
    /// A line is no header.
    #[error("{path}, line {line}: {reason}")]
    Header {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is no token in it, or more than that.
    #[error("{0} must hold a token in one line, and nothing else")]
    Token(PathBuf),
}

/// Reads headers: a `NAME=VALUE` in each line that is not empty and does not begin with `#`.
pub(super) fn headers(path: &Path, warnings: &mut Vec<String>) -> Result<Vec<Header>, SecretError> {
    let text = read(path, warnings)?;
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
    lines
        .map(|(line, text)| {
            text.parse().map_err(|error| SecretError::Header {
                path: path.to_owned(),
                line,
                reason: match error {
                    // A token alone may end in `=`, and would be taken for the name.
                    HeaderError::Name(_) => HeaderError::NoValue.to_string(),
                    HeaderError::NoValue | HeaderError::Value(_) | HeaderError::Reserved(_) => {
                        error.to_string()
                    }
                },
            })
        })
        .collect()
}

/// Reads a token.
pub(super) fn token(path: &Path, warnings: &mut Vec<String>) -> Result<String, SecretError> {
    let text = read(path, warnings)?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_control) {
        return Err(SecretError::Token(path.to_owned()));
    }
    Ok(token.to_owned())
}

/// Tells whether a secret has changed, and nothing about it.
pub(super) fn fingerprint(secret: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

fn read(path: &Path, warnings: &mut Vec<String>) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o004 != 0 {
        let path = path.display();
        warnings.push(format!(
            "every user of this host can read {path}, which holds a secret; chmod o= {path}"
        ));
    }
    let mut text = String::new();
    file.take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIMIT {
        return Err(SecretError::TooLong(path.to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn headers_stand_one_in_a_line() {
        let file = file(
            "# of the backend\n\nauthorization = Bearer a=b\n x-tenant=7\r\n",
            0o640,
        );
        let mut warnings = Vec::new();
        let headers = headers(file.path(), &mut warnings).unwrap();
        let expected = ["authorization=Bearer a=b", "x-tenant=7"].map(|text| text.parse().unwrap());
        assert_eq!((headers.as_slice(), warnings.len()), (&expected[..], 0));
    }

    #[test]
    fn a_token_is_one_line() {
        let mut warnings = Vec::new();
        assert_eq!(
            token(file("secret\n", 0o600).path(), &mut warnings).unwrap(),
            "secret"
        );
        for text in ["", " \n", "one\ntwo"] {
            let error = token(file(text, 0o600).path(), &mut warnings).unwrap_err();
            assert!(error.to_string().contains("a token in one line"), "{error}");
        }
        assert_eq!(warnings, [""; 0]);
    }

    #[test]
    fn who_can_read_it_is_told_and_what_is_in_it_is_not() {
        let mut warnings = Vec::new();
        token(file("secret", 0o604).path(), &mut warnings).unwrap();
        assert!(
            warnings[0].contains("every user") && !warnings[0].contains("secret\n"),
            "{warnings:?}"
        );
        for (text, words) in [
            (
                "# a token alone\nse:cret==\n",
                "line 2: a header looks like NAME=VALUE",
            ),
            ("secret", "line 1: a header looks like NAME=VALUE"),
            ("x=se\u{1}cret", "line 1: the value of the header x"),
            (&"secret".repeat(1 << 16), "longer than 65536 bytes"),
        ] {
            let file = file(text, 0o600);
            let error = headers(file.path(), &mut warnings).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("cret"), "{error}");
        }
        let error = token(Path::new("/no/such/file"), &mut warnings).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot read /no/such/file: "),
            "{error}"
        );
        assert_ne!(fingerprint("one"), fingerprint("two"));
    }
}
