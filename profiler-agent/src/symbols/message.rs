//! What crosses between the agent and its child, and what is checked of it.
//!
//! The child may be in the hands of a file that it read: of what it says every number is compared with what it was asked, and every text is cut.
//! The child in turn takes nothing for granted that the agent says of descriptors.

use std::{borrow::Cow, error, fmt, sync::Arc};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::{
    Response, Source, Symbol, Symbols, confine::Confinement, demangle::bounded, resolver::MOST_INLINED,
    trial::Trial,
};
use crate::profile::Language;

/// Most addresses of one question. What a lying answer can cost is in proportion.
pub(super) const MOST_ADDRESSES: usize = 512;

/// Longest message, either way. Decoding one takes up to 16 times as much.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// Room in a message beside the names.
const MARGIN: usize = 64 << 10;

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
    /// Let the files of these objects go. Has no answer.
    Release(Vec<u32>),
    /// Try what must not be possible.
    Try,
}

/// What the child answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer<'a> {
    /// It has given up its privileges, and waits for questions. Comes once, and first.
    Ready(Confinement),
    /// Names.
    #[serde(borrow)]
    Names(Names<'a>),
    /// What came of it.
    Tried(Vec<Trial>),
}

/// Names for the first addresses of a question, at least for one: as many as fit into a message. Each text crosses once: of 1,000 addresses in a
/// C++ program the functions have 7,000 texts, of which 1,500 are different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names<'a> {
    /// Number of the object.
    id: u32,
    /// One for each address, in the order of the question.
    places: Vec<Place>,
    /// Of the first address, then of the second, and so on.
    functions: Vec<Function>,
    /// Lengths of the texts.
    lengths: Vec<u32>,
    /// The texts, one behind the other.
    #[serde(borrow)]
    texts: Cow<'a, str>,
    error: Option<Cow<'a, str>>,
    /// Objects whose files the child has let go since the last answer.
    pub(super) let_go: Vec<u32>,
}

/// What is known about an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    functions: u32,
    language: Language,
    start: Option<u64>,
}

/// A function by the numbers of its texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Function {
    name: u32,
    system_name: u32,
    file: u32,
    line: u32,
    column: u32,
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
        encode(self, 0)
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

impl<'a> Answer<'a> {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let room = match self {
            Self::Names(names) => names.texts.len() + names.functions.len() * 10 + names.lengths.len() * 2,
            Self::Ready(_) | Self::Tried(_) => 0,
        };
        encode(self, room)
    }

    /// Reads an answer. What it says of names must still be [taken](Names::take) as the answer to a question.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        decode(bytes)
    }
}

impl Names<'static> {
    /// As many names from the first as fit; those of one address fit always.
    pub(super) fn new(response: &Response, let_go: Vec<u32>) -> Self {
        let Response { id, symbols, error } = response;
        let mut names = Self {
            id: *id,
            places: Vec::with_capacity(symbols.len()),
            functions: Vec::with_capacity(symbols.len()),
            lengths: Vec::new(),
            texts: Cow::Borrowed(""),
            error: error.clone().map(Cow::Owned),
            let_go,
        };
        // As long as those of C++ are, so that it seldom grows.
        let mut texts = String::with_capacity(symbols.len() * 256);
        let mut numbers = HashMap::with_capacity(symbols.len() * 2);
        let mut bytes = 0;
        for symbols in symbols {
            let Symbols {
                address: _,
                functions,
                language,
                start,
            } = symbols;
            // At most five bytes for each number, and ten for an address.
            bytes += 20 + functions.len() * 25;
            let before = (names.functions.len(), names.lengths.len(), texts.len());
            let mut number = |text: &Arc<str>| {
                *numbers.entry(Arc::as_ptr(text)).or_insert_with(|| {
                    texts.push_str(text);
                    bytes += 5 + text.len();
                    names.lengths.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
                    u32::try_from(names.lengths.len() - 1).unwrap_or(u32::MAX)
                })
            };
            names.functions.extend(functions.iter().map(|function| {
                let Symbol {
                    name,
                    system_name,
                    file,
                    line,
                    column,
                } = function;
                Function {
                    name: number(name),
                    system_name: number(system_name),
                    file: number(file),
                    line: *line,
                    column: *column,
                }
            }));
            if bytes > MOST_BYTES - MARGIN && !names.places.is_empty() {
                names.functions.truncate(before.0);
                names.lengths.truncate(before.1);
                texts.truncate(before.2);
                break;
            }
            names.places.push(Place {
                functions: u32::try_from(functions.len()).unwrap_or(u32::MAX),
                language: *language,
                start: *start,
            });
        }
        names.texts = Cow::Owned(texts);
        names
    }
}

impl Names<'_> {
    /// Takes them as the answer to a question for `addresses` of object `id`. Texts are cut.
    pub(super) fn take(self, id: u32, addresses: &[u64]) -> Result<Response, Malformed> {
        let Self {
            id: answered,
            places,
            functions,
            lengths,
            texts,
            error,
            let_go: _,
        } = self;
        if answered != id {
            return Err(Malformed("names of another object"));
        }
        if places.len() > addresses.len() || (places.is_empty() && !addresses.is_empty()) {
            return Err(Malformed("names of too many or of no addresses"));
        }
        if lengths.len() > 3 * functions.len() {
            return Err(Malformed("texts of nothing"));
        }
        let mut rest = &*texts;
        let mut taken: Vec<Arc<str>> = Vec::with_capacity(lengths.len());
        for length in lengths {
            let parts = usize::try_from(length)
                .ok()
                .and_then(|length| rest.split_at_checked(length));
            let (text, behind) = parts.ok_or(Malformed("a text that is not there"))?;
            taken.push(bounded(text).into());
            rest = behind;
        }
        let text = |number: u32| {
            let text = usize::try_from(number).ok().and_then(|number| taken.get(number));
            text.cloned().ok_or(Malformed("a text that is not there"))
        };
        let mut functions = functions.into_iter();
        let mut symbols = Vec::with_capacity(places.len());
        for (place, &address) in places.into_iter().zip(addresses) {
            let count = usize::try_from(place.functions).unwrap_or(usize::MAX);
            if count > MOST_INLINED + 1 || count > functions.len() {
                return Err(Malformed("too many functions of one address"));
            }
            let mut named = Vec::with_capacity(count);
            for function in functions.by_ref().take(count) {
                named.push(Symbol {
                    name: text(function.name)?,
                    system_name: text(function.system_name)?,
                    file: text(function.file)?,
                    line: function.line,
                    column: function.column,
                });
            }
            symbols.push(Symbols {
                address,
                functions: named,
                language: place.language,
                start: place.start,
            });
        }
        if functions.len() > 0 {
            return Err(Malformed("functions of no address"));
        }
        Ok(Response {
            id,
            symbols,
            error: error.map(|error| bounded(&error).into_owned()),
        })
    }
}

/// Bytes as an answer of a child to a question for one address, as a client takes them.
///
/// # Errors
/// What is wrong with them.
pub fn check_answer(bytes: &[u8], id: u32, addresses: &[u64]) -> Result<Option<Response>, Malformed> {
    match Answer::decode(bytes)? {
        Answer::Ready(_) | Answer::Tried(_) => Ok(None),
        Answer::Names(names) => names.take(id, addresses).map(Some),
    }
}

/// Bytes as a question that came with `files` descriptors, as a child takes them; its number of addresses.
///
/// # Errors
/// What is wrong with them.
pub fn check_question(bytes: &[u8], files: usize) -> Result<usize, Malformed> {
    Ok(match Question::decode(bytes, files)? {
        Question::Name { addresses, .. } => addresses.len(),
        Question::Release(_) | Question::Try => 0,
    })
}

/// Writes a message of some `room` bytes, or more.
fn encode(message: &impl Serialize, room: usize) -> Result<Vec<u8>, Malformed> {
    postcard::to_extend(message, Vec::with_capacity(room)).map_err(|_| Malformed("cannot be written"))
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
    use crate::symbols::demangle::NAME_LIMIT;

    fn response(addresses: &[u64]) -> Response {
        let shared: Arc<str> = "shared".into();
        let symbols = addresses.iter().map(|&address| Symbols {
            address,
            functions: vec![
                Symbol {
                    name: format!("f{address}").into(),
                    file: Arc::clone(&shared),
                    line: 3,
                    ..Symbol::default()
                },
                Symbol {
                    name: Arc::clone(&shared),
                    ..Symbol::default()
                },
            ],
            language: Language::Go,
            start: Some(address),
        });
        Response {
            id: 7,
            symbols: symbols.collect(),
            error: None,
        }
    }

    fn names(addresses: &[u64]) -> Names<'static> {
        Names::new(&response(addresses), vec![3])
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
        let bytes = Answer::Names(names(&[1, 2])).encode().unwrap();
        let Answer::Names(names) = Answer::decode(&bytes).unwrap() else {
            panic!("no names");
        };
        assert_eq!(names.let_go, [3]);
        // The one of both, of either, and none.
        assert_eq!(names.lengths, [2, 0, 6, 2]);
        assert_eq!(names.take(7, &[1, 2]).unwrap(), response(&[1, 2]));
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
        let count = |given: &[u64], id, addresses: &[u64]| {
            names(given)
                .take(id, addresses)
                .map(|response| response.symbols.len())
        };
        assert_eq!(count(&[1, 2], 7, &[1, 2]), Ok(2));
        assert_eq!(count(&[1], 7, &[1, 2]), Ok(1));
        assert_eq!(count(&[], 7, &[]), Ok(0));
        for (given, id, addresses) in [(&[1, 2][..], 8, &[1, 2][..]), (&[1, 2], 7, &[1]), (&[], 7, &[1])] {
            assert!(count(given, id, addresses).is_err());
        }
        let lies: [fn(&mut Names<'_>); 6] = [
            |names| names.places[0].functions = 100_000,
            |names| names.places[0].functions = 1,
            |names| names.functions[0].file = 4,
            |names| names.lengths[0] = u32::MAX,
            // Within a character.
            |names| names.texts = "xééééé".into(),
            |names| names.lengths.extend([0; 100]),
        ];
        for lie in lies {
            let mut names = names(&[1]);
            assert!(names.clone().take(7, &[1]).is_ok());
            lie(&mut names);
            assert!(names.take(7, &[1]).is_err());
        }
    }

    #[test]
    fn long_texts_are_cut() {
        let mut long = response(&[1]);
        long.symbols[0].functions[0].file = "é".repeat(NAME_LIMIT).into();
        long.error = Some("x".repeat(1 << 20));
        let taken = Names::new(&long, Vec::new()).take(7, &[1]).unwrap();
        assert!(taken.symbols[0].functions[0].file.len() <= NAME_LIMIT);
        assert!(taken.error.unwrap().len() <= NAME_LIMIT);
    }

    #[test]
    fn the_longest_answers_fit() {
        // Each text another one.
        let text = || Arc::from("x".repeat(NAME_LIMIT));
        let symbols = |address| {
            let functions = (0..=MOST_INLINED).map(|_| Symbol {
                name: text(),
                system_name: text(),
                file: text(),
                line: u32::MAX,
                column: u32::MAX,
            });
            Symbols {
                address,
                functions: functions.collect(),
                language: Language::Go,
                start: Some(u64::MAX),
            }
        };
        let response = Response {
            id: u32::MAX,
            symbols: (0..8).map(symbols).collect(),
            error: Some("x".repeat(NAME_LIMIT)),
        };
        let answer = Answer::Names(Names::new(&response, vec![u32::MAX; 128]));
        let bytes = answer.encode().unwrap();
        assert!(bytes.len() <= MOST_BYTES);
        let addresses: Vec<u64> = (0..8).collect();
        let taken = check_answer(&bytes, u32::MAX, &addresses).unwrap().unwrap();
        assert_eq!(taken.symbols, response.symbols[..2]);
    }

    #[test]
    fn a_promise_of_many_elements_allocates_nothing() {
        // A list of 2^60 addresses, of which none comes.
        let mut bytes = vec![0, 7, 0];
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(Question::decode(&bytes, 0), Err(Malformed("cannot be read")));
    }
}
