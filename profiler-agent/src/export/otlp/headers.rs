//! Headers that go out with every request: tokens, mostly. Their values are shown nowhere.

use std::{fmt, str::FromStr};

use reqwest::header::{HeaderName, HeaderValue};

/// One header.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

impl Header {
    /// Its name, in lower case.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(super) fn parts(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), self.value.clone())
    }
}

/// Without the value.
impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// Why a header is none. Never with the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// There is no `=`.
    #[error("a header looks like NAME=VALUE")]
    NoValue,
    /// The name has characters that headers cannot have.
    #[error("{0:?} cannot be the name of a header")]
    Name(String),
    /// So has the value.
    #[error("the value of the header {0} has characters that it cannot have")]
    Value(String),
    /// The agent says that itself.
    #[error("the header {0} is the agent's own")]
    Reserved(String),
}

/// What the transports set.
const RESERVED: [&str; 8] = [
    "content-type",
    "content-length",
    "content-encoding",
    "grpc-encoding",
    "te",
    "host",
    "transfer-encoding",
    super::client::VERSION_HEADER,
];

impl FromStr for Header {
    type Err = HeaderError;

    /// Reads `NAME=VALUE`.
    fn from_str(text: &str) -> Result<Self, HeaderError> {
        let (name, value) = text.split_once('=').ok_or(HeaderError::NoValue)?;
        let name = name.trim();
        let parsed: HeaderName = name.parse().map_err(|_| HeaderError::Name(name.to_owned()))?;
        if RESERVED.contains(&parsed.as_str()) {
            return Err(HeaderError::Reserved(name.to_owned()));
        }
        let mut value =
            HeaderValue::from_str(value.trim()).map_err(|_| HeaderError::Value(name.to_owned()))?;
        value.set_sensitive(true);
        Ok(Self { name: parsed, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_shown() {
        let header: Header = "Authorization = Bearer a=b".parse().unwrap();
        assert_eq!(format!("{header:?}"), "authorization=…");
        assert_eq!(header.parts().1.to_str().unwrap(), "Bearer a=b");
        for (text, error) in [
            ("authorization", HeaderError::NoValue),
            ("a b=c", HeaderError::Name("a b".into())),
            ("x=se\ncret", HeaderError::Value("x".into())),
            ("TE=x", HeaderError::Reserved("TE".into())),
        ] {
            let found = text.parse::<Header>().unwrap_err();
            assert!(!found.to_string().contains("cret"));
            assert_eq!(found, error);
        }
    }
}
