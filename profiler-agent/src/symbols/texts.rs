//! Names and paths, each made once: many addresses are of one function, and many functions of one file.

use std::{borrow::Cow, sync::Arc};

use blazesym::symbolize::CodeInfo;
use hashbrown::{HashMap, HashSet};

use super::{
    Symbol,
    demangle::{bounded, demangle},
};

/// Most bytes of texts; then it begins anew. Those of 10,000 functions of a large C++ program.
const MOST_BYTES: usize = 4 << 20;

/// The texts of answers.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// By the name in the symbol table: the one for people, and that name, if it is another one.
    names: HashMap<Arc<str>, (Arc<str>, Arc<str>)>,
    others: HashSet<Arc<str>>,
    bytes: usize,
    /// A path that is put together.
    path: String,
}

impl Texts {
    /// A function by its name in a symbol table or in DWARF, without its place.
    pub(super) fn function(&mut self, name: &str) -> Symbol {
        if let Some((name, system_name)) = self.names.get(name) {
            return Symbol {
                name: Arc::clone(name),
                system_name: Arc::clone(system_name),
                ..Symbol::default()
            };
        }
        let key: Arc<str> = name.into();
        let cut = match bounded(name) {
            Cow::Owned(cut) => cut.into(),
            Cow::Borrowed(_) => Arc::clone(&key),
        };
        let (person, linker) = match demangle(name) {
            Some(demangled) => (demangled.into(), cut),
            None => (cut, Arc::default()),
        };
        self.make_room(name.len() + person.len());
        self.names.insert(key, (Arc::clone(&person), Arc::clone(&linker)));
        Symbol {
            name: person,
            system_name: linker,
            ..Symbol::default()
        }
    }

    /// A function, with its place.
    pub(super) fn function_at(&mut self, name: &str, code: Option<&CodeInfo<'_>>) -> Symbol {
        let function = self.function(name);
        let Some(code) = code else { return function };
        Symbol {
            file: self.path_of(code),
            line: code.line.unwrap_or_default(),
            column: code.column.map(u32::from).unwrap_or_default(),
            ..function
        }
    }

    /// A text as it is, cut if it is too long.
    pub(super) fn plain(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            return Arc::default();
        }
        if let Some(text) = self.others.get(text) {
            return Arc::clone(text);
        }
        let text: Arc<str> = bounded(text).into();
        self.make_room(text.len());
        self.others.insert(Arc::clone(&text));
        text
    }

    fn path_of(&mut self, code: &CodeInfo<'_>) -> Arc<str> {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        let file = code.file.to_string_lossy();
        if let (Some(folder), false) = (&code.dir, file.starts_with('/')) {
            path.push_str(&folder.to_string_lossy());
            if !path.is_empty() && !path.ends_with('/') {
                path.push('/');
            }
        }
        path.push_str(&file);
        let text = self.plain(&path);
        self.path = path;
        text
    }

    /// Forgets all when there is no room for so many bytes more.
    fn make_room(&mut self, bytes: usize) {
        // The entries themselves, and what allocations take.
        const ENTRY: usize = 128;
        if self.bytes + bytes > MOST_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes + ENTRY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_once() {
        let mut texts = Texts::default();
        let first = texts.function("_ZN3foo3barEi");
        let again = texts.function("_ZN3foo3barEi");
        assert_eq!(
            (&*first.name, &*first.system_name),
            ("foo::bar(int)", "_ZN3foo3barEi")
        );
        assert!(Arc::ptr_eq(&first.name, &again.name) && Arc::ptr_eq(&first.system_name, &again.system_name));
        let plain = texts.function("main");
        assert_eq!((&*plain.name, &*plain.system_name), ("main", ""));
        assert!(Arc::ptr_eq(&texts.plain("/a.c"), &texts.plain("/a.c")));
    }

    #[test]
    fn texts_have_a_budget() {
        let mut texts = Texts::default();
        for number in 0..10_000 {
            texts.function(&format!("{number:01000}"));
            texts.plain(&format!("{number:0100}"));
            assert!(texts.bytes <= 2 * MOST_BYTES);
        }
        assert!(texts.names.len() < 5000);
        // A name longer than the budget passes.
        let long = texts.function(&"x".repeat(2 * MOST_BYTES));
        assert!(long.name.len() <= 4096);
    }
}
