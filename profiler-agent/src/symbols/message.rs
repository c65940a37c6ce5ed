//! What crosses between the agent and its child, and what is checked of it.
//!
//! The child may be in the hands of a file that it read: of what it says every number is compared with what it was asked, and every text is cut.
//! The child in turn takes nothing for granted that the agent says of descriptors.

use std::{error, fmt};

use serde::{Deserialize, Serialize};

use super::{
    Response, Source, Symbol,
    confine::Confinement,
    demangle::{NAME_LIMIT, bounded},
    resolver::MOST_INLINED,
    trial::Trial,
};

/// Most addresses of one question. What a lying answer can cost is in proportion.
pub(super) const MOST_ADDRESSES: usize = 512;

/// Longest message, either way. Decoding one takes up to 16 times as much.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// Most descriptors with a message.
pub(super) const MOST_FILES: usize = 8;

/// What the agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Question {
    /// Names for addresses of an object.
    Name {
        /// Number of the object.
        id: u32,
        /// Its files, unless the child holds them.
        source: Option<Source<u8>>,
        /// Addresses.
        addresses: Vec<u64>,
    },
    /// Let all files go. Has no answer.
    Release,
    /// Try what must not be possible.
    Try,
}

/// What the child answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It has given up its privileges, and waits for questions. Comes once, and first.
    Ready(Confinement),
    /// Names.
    Names {
        /// For the first addresses of the question, at least one: as many as fit into a message.
        response: Response,
        /// Objects whose files it has let go since the last answer.
        let_go: Vec<u32>,
    },
    /// What came of it.
    Tried(Vec<Trial>),
}

/// A message that says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Malformed {
    /// It is none that was waited for.
    pub(super) const UNASKED: Self = Self("not what was asked for");
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl error::Error for Malformed {}

impl Question {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        encode(self)
    }

    /// Reads a question that came with `files` descriptors.
    pub(super) fn decode(bytes: &[u8], files: usize) -> Result<Self, Malformed> {
        let question: Self = decode(bytes)?;
        if let Self::Name {
            source, addresses, ..
        } = &question
        {
            if addresses.len() > MOST_ADDRESSES {
                return Err(Malformed("too many addresses"));
            }
            if let Some(source) = source {
                source.clone().try_map(|file| {
                    if usize::from(file) < files {
                        Ok(())
                    } else {
                        Err(Malformed("a file that did not come along"))
                    }
                })?;
            }
        }
        Ok(question)
    }
}

impl Answer {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        encode(self)
    }

    /// Reads an answer. What it says of names must still be [checked](check_names) against the question.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        decode(bytes)
    }
}

/// Checks an answer to a question for `addresses` of object `id`, and cuts its texts. Says for how many of the addresses it is.
pub(super) fn check_names(response: &mut Response, id: u32, addresses: &[u64]) -> Result<usize, Malformed> {
    let Response {
        id: answered,
        symbols,
        error,
    } = response;
    if *answered != id {
        return Err(Malformed("names of another object"));
    }
    if symbols.len() > addresses.len() || (symbols.is_empty() && !addresses.is_empty()) {
        return Err(Malformed("names of too many or of no addresses"));
    }
    for (symbols, address) in symbols.iter_mut().zip(addresses) {
        if symbols.address != *address {
            return Err(Malformed("names of another address"));
        }
        if symbols.functions.len() > MOST_INLINED + 1 {
            return Err(Malformed("too many functions of one address"));
        }
        for function in &mut symbols.functions {
            let Symbol {
                name,
                system_name,
                file,
                line: _,
                column: _,
            } = function;
            [name, system_name, file].into_iter().for_each(cut);
        }
    }
    error.iter_mut().for_each(cut);
    Ok(symbols.len())
}

fn cut(text: &mut String) {
    if text.len() > NAME_LIMIT {
        *text = bounded(text);
    }
}

/// Bytes as an answer of a child to a question for one address, as a client takes them.
///
/// # Errors
/// What is wrong with them.
pub fn check_answer(bytes: &[u8], id: u32, addresses: &[u64]) -> Result<Option<Response>, Malformed> {
    match Answer::decode(bytes)? {
        Answer::Ready(_) | Answer::Tried(_) => Ok(None),
        Answer::Names {
            mut response,
            let_go: _,
        } => {
            check_names(&mut response, id, addresses)?;
            Ok(Some(response))
        }
    }
}

/// Bytes as a question that came with `files` descriptors, as a child takes them; its number of addresses.
///
/// # Errors
/// What is wrong with them.
pub fn check_question(bytes: &[u8], files: usize) -> Result<usize, Malformed> {
    Ok(match Question::decode(bytes, files)? {
        Question::Name { addresses, .. } => addresses.len(),
        Question::Release | Question::Try => 0,
    })
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, Malformed> {
    postcard::to_allocvec(message).map_err(|_| Malformed("cannot be written"))
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    if bytes.len() > MOST_BYTES {
        return Err(Malformed("too long"));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(Malformed("goes on behind its end")),
        Err(_) => Err(Malformed("cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Symbols;

    fn response(addresses: &[u64]) -> Response {
        let symbols = addresses.iter().map(|&address| Symbols {
            address,
            functions: vec![Symbol {
                name: "f".into(),
                ..Symbol::default()
            }],
            ..Symbols::default()
        });
        Response {
            id: 7,
            symbols: symbols.collect(),
            error: None,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let question = Question::Name {
            id: 7,
            source: Some(Source::Elf {
                file: 1,
                path: "/a".into(),
                debug: Some(0),
                supplement: None,
                package: Some(1),
                inlines: true,
            }),
            addresses: vec![1, u64::MAX],
        };
        let bytes = question.encode().unwrap();
        assert_eq!(Question::decode(&bytes, 2).unwrap(), question);
        let answer = Answer::Names {
            response: response(&[1, 2]),
            let_go: vec![3],
        };
        assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
    }

    #[test]
    fn questions_name_files_that_came_along() {
        let question = Question::Name {
            id: 7,
            source: Some(Source::Kernel { symbols: 0 }),
            addresses: Vec::new(),
        };
        let mut bytes = question.encode().unwrap();
        assert!(Question::decode(&bytes, 1).is_ok());
        assert!(Question::decode(&bytes, 0).is_err());
        bytes.push(0);
        assert_eq!(
            Question::decode(&bytes, 1),
            Err(Malformed("goes on behind its end"))
        );
        let question = Question::Name {
            id: 7,
            source: None,
            addresses: vec![0; MOST_ADDRESSES + 1],
        };
        assert!(Question::decode(&question.encode().unwrap(), 0).is_err());
    }

    #[test]
    fn answers_fit_their_question() {
        assert_eq!(check_names(&mut response(&[1, 2]), 7, &[1, 2]), Ok(2));
        assert_eq!(check_names(&mut response(&[1]), 7, &[1, 2]), Ok(1));
        assert_eq!(check_names(&mut response(&[]), 7, &[]), Ok(0));
        for (given, id, addresses) in [
            (&[1, 2][..], 8, &[1, 2][..]),
            (&[1, 2], 7, &[1]),
            (&[2, 1], 7, &[1, 2]),
            (&[], 7, &[1]),
        ] {
            assert!(check_names(&mut response(given), id, addresses).is_err());
        }
        let mut many = response(&[1]);
        many.symbols[0].functions = vec![Symbol::default(); MOST_INLINED + 2];
        assert!(check_names(&mut many, 7, &[1]).is_err());
    }

    #[test]
    fn long_texts_are_cut() {
        let mut long = response(&[1]);
        long.symbols[0].functions[0].file = "é".repeat(NAME_LIMIT);
        long.error = Some("x".repeat(1 << 20));
        check_names(&mut long, 7, &[1]).unwrap();
        assert!(long.symbols[0].functions[0].file.len() <= NAME_LIMIT);
        assert!(long.error.unwrap().len() <= NAME_LIMIT);
    }

    #[test]
    fn a_promise_of_many_elements_allocates_nothing() {
        // A list of 2^60 addresses, of which none comes.
        let mut bytes = vec![0, 7, 0];
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(Question::decode(&bytes, 0), Err(Malformed("cannot be read")));
    }
}
