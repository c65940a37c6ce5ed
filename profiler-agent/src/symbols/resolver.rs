//! The side with the parsers: addresses in, names out. Runs in the child.

use std::{
    any::Any,
    fs::File,
    io::BufReader,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use blazesym::symbolize::{
    Input, Sym, Symbolized, Symbolizer as Blazesym, evict,
    source::{self, Elf},
};
use hashbrown::HashMap;

use super::{
    Response, Source, Symbol, Symbols,
    demangle::bounded,
    dwarf::Dwarf,
    elf::{self, Image},
    fde::Functions,
    gopclntab::{Pclntab, Position},
    kallsyms::Kallsyms,
    texts::Texts,
};
use crate::{memory, profile::Language};

/// Files held at once; each costs up to four descriptors.
const MOST_OBJECTS: usize = 128;

/// Bytes of symbol tables and DWARF, unpacked, of the files held at once, as long as they are more than one. Their
/// parsed form needs up to twice as much memory, and the pages of the mapped files count as well: with 48 MiB the capture of a
/// Rust program and libc peaked 5 MB higher, and took 0.04 s less.
const MOST_WEIGHT: u64 = 8 << 20;

/// Inlined functions of one address that are kept, innermost first; real ones reach some 30.
pub(super) const MOST_INLINED: usize = 128;

/// Names addresses of the kernel and of ELF files: DWARF with inlined functions, else Go's own table, else symbol tables, else PLT stubs;
/// where there is no name, it tells the start of the function.
///
/// Holds what it parsed until [`Resolver::release`], or until 128 files or 8 MiB of symbols and DWARF are held; then
/// the ones longest unused go. Nothing is read before it is asked for. Ask for many addresses of an object at once:
///
/// | | first address | 1,000 of them | each after that | memory |
/// |---|---|---|---|---|
/// | kernel, 122,000 symbols | 50 ms | 51 ms | 0.2 µs | 6 MB |
/// | libc with its debug file, compressed | 23 ms | 42 ms | 1.7 µs | 21 MB |
/// | Rust program, 15 MB of .debug_info | 5 ms | 82 ms | 9 µs | 27 MB, and the pages of the file |
///
/// blazesym maps files. A file that is truncated meanwhile kills the process with SIGBUS, hence the child. Panics are caught (blazesym's line tables are known to panic on a bad file index): the file is then
/// asked for its symbol table only, and after a second panic not at all.
#[derive(Debug)]
pub struct Resolver {
    blazesym: Blazesym,
    texts: Texts,
    /// By number.
    objects: HashMap<u32, Held>,
    /// The object that is the kernel.
    kernel: Option<(u32, Result<Kallsyms, String>)>,
    /// Objects that were let go and not told.
    let_go: Vec<u32>,
    /// Counts requests, to know what was unused for longest.
    clock: u64,
}

#[derive(Debug)]
struct Held {
    /// Keeps the descriptor's number: blazesym's cache knows files by path, and a number that is used again would
    /// be answered from the former file.
    file: Arc<File>,
    /// For messages.
    path: String,
    state: State,
    weight: u64,
    used: u64,
}

#[derive(Debug)]
enum State {
    /// May be asked.
    Ready(Box<Ready>),
    /// Is not asked any more, and why.
    Refused(String),
}

#[derive(Debug)]
struct Ready {
    image: Image,
    /// File with the debug information, the object itself or another one.
    dwarf: Option<Arc<File>>,
    /// File with the symbol table, the object itself or another one.
    symbols: Arc<File>,
    /// Its debug information, where that is in several files.
    gathered: Option<Dwarf>,
    /// Whether inlined functions are wanted.
    inlines: bool,
    /// Whether the symbol table is all that is asked: it is as good for names alone, and read in a thirtieth of the time.
    symbols_only: bool,
    /// Why its debug information is not used; the file is held all the same, for its descriptor's number.
    broken: Option<String>,
    /// Stubs of the PLT, once one was asked for.
    plt: Option<Vec<(u64, String)>>,
    /// Go's table, if it is a program of Go.
    go: Option<Pclntab>,
    /// Where functions begin, once one had no name.
    starts: Option<Option<Functions>>,
}

/// The files of an object, and what is wanted of them.
struct Files {
    file: Arc<File>,
    path: String,
    debug: Option<Arc<File>>,
    supplement: Option<Arc<File>>,
    package: Option<Arc<File>>,
    inlines: bool,
}

/// What is known about one address.
#[derive(Debug, Clone, Default)]
struct Answer {
    functions: Vec<Symbol>,
    language: Language,
    start: Option<u64>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolver {
    /// A resolver that holds nothing yet.
    pub fn new() -> Self {
        Self {
            blazesym: blazesym(),
            texts: Texts::default(),
            objects: HashMap::new(),
            kernel: None,
            let_go: Vec::new(),
            clock: 0,
        }
    }

    /// Names addresses of the object `id`. Its `source` is needed the first time, and when it was [let go](Self::take_let_go); it replaces
    /// the one before. Never panics and never fails: what could not be named is empty, and [`Response::error`] says why
    /// when it is the object as a whole.
    ///
    /// Without addresses it prepares the object, so that the first real question finds it warm.
    pub fn resolve(&mut self, id: u32, source: Option<Source>, addresses: &[u64]) -> Response {
        let elf = match source {
            Some(Source::Kernel { symbols }) => {
                let table = Kallsyms::read(BufReader::with_capacity(64 << 10, &*symbols));
                self.kernel = Some((id, table.map_err(|error| error.to_string())));
                None
            }
            Some(Source::Elf {
                file,
                path,
                debug,
                supplement,
                package,
                inlines,
            }) => Some(Files {
                file,
                path,
                debug,
                supplement,
                package,
                inlines,
            }),
            None => None,
        };
        let (answers, error) = match &self.kernel {
            Some((kernel, table)) if *kernel == id => named_by(table, addresses),
            _ => self.elf(id, elf, addresses),
        };
        let mut answers = answers.into_iter();
        let symbols = addresses.iter().map(|&address| {
            let Answer {
                functions,
                language,
                start,
            } = answers.next().unwrap_or_default();
            Symbols {
                address,
                functions,
                language,
                start,
            }
        });
        Response {
            id,
            symbols: symbols.collect(),
            error,
        }
    }

    /// The objects that were let go since the last call.
    pub fn take_let_go(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.let_go)
    }

    /// Lets the files of some objects go and returns their memory to the system. What is known about harmful files stays.
    pub fn release(&mut self, ids: &[u32]) {
        let before = self.objects.len();
        for id in ids {
            if self.objects.get(id).is_some_and(|held| !held.is_harmful())
                && let Some(held) = self.objects.remove(id)
            {
                self.evict(&held);
            }
        }
        if self.objects.len() < before {
            self.texts = Texts::default();
            memory::trim();
        }
    }

    fn elf(&mut self, id: u32, source: Option<Files>, addresses: &[u64]) -> (Vec<Answer>, Option<String>) {
        self.clock += 1;
        let held = match (self.objects.remove(&id), source) {
            (Some(held), source) if source.is_none() || held.is_harmful() => Some(held),
            (held, source) => {
                if let Some(held) = &held {
                    self.evict(held);
                }
                source.map(Held::open)
            }
        };
        let Some(mut held) = held else {
            return (Vec::new(), Some("its files are not here".into()));
        };
        held.used = self.clock;
        self.make_room(held.weight);
        let mut error = None;
        let mut answers = Vec::new();
        // Each panic takes one source away: first the DWARF, then the file.
        while let State::Ready(ready) = &mut held.state {
            let guarded =
                AssertUnwindSafe(|| ready.answers(&self.blazesym, &mut self.texts, &held.file, addresses));
            match catch_unwind(guarded) {
                Ok((named, problem)) => {
                    answers = named;
                    error = problem.map(|problem| format!("{}: {problem}", held.path));
                    break;
                }
                Err(payload) => {
                    // Its caches may be half-written.
                    self.blazesym = blazesym();
                    let text = format!("parser panicked: {}", panic_text(&*payload));
                    if ready.dwarf.is_none() || ready.broken.is_some() {
                        held.state = State::Refused(format!("{}: {text}", held.path));
                    } else {
                        ready.broken = Some(text);
                    }
                }
            }
        }
        if let State::Refused(reason) = &held.state {
            error = Some(reason.clone());
        }
        self.objects.insert(id, held);
        (answers, error)
    }

    /// Lets files go, longest unused first, until one of `weight` fits.
    fn make_room(&mut self, weight: u64) {
        let mut evicted = false;
        loop {
            let total = self
                .objects
                .values()
                .fold(weight, |sum, held| sum.saturating_add(held.weight));
            if self.objects.len() < MOST_OBJECTS && total <= MOST_WEIGHT {
                break;
            }
            let oldest = self
                .objects
                .iter()
                .min_by_key(|(_, held)| held.used)
                .map(|(id, _)| *id);
            let Some((id, held)) = oldest.and_then(|id| self.objects.remove_entry(&id)) else {
                break;
            };
            self.let_go.push(id);
            self.evict(&held);
            evicted = true;
        }
        if evicted {
            memory::trim();
        }
    }

    /// Has blazesym forget a file, before another gets its descriptor's number.
    fn evict(&mut self, held: &Held) {
        for file in held.files() {
            // Only an unknown path could fail, and then there is nothing to evict.
            drop(self.blazesym.evict(&evict::Elf::new(path_of(&file)).into()));
        }
    }
}

/// Names by the kernel's table.
fn named_by(table: &Result<Kallsyms, String>, addresses: &[u64]) -> (Vec<Answer>, Option<String>) {
    let name = |address: u64| -> Option<Symbol> {
        let (full, bare) = table.as_ref().ok()?.name(address)?;
        Some(Symbol {
            system_name: if bare == full { Arc::default() } else { bare.into() },
            name: full.into(),
            ..Symbol::default()
        })
    };
    let answers = addresses.iter().map(|&address| Answer {
        functions: name(address).into_iter().collect(),
        ..Answer::default()
    });
    (answers.collect(), table.as_ref().err().cloned())
}

impl Held {
    fn open(files: Files) -> Self {
        let Files {
            file,
            path,
            debug,
            supplement,
            package,
            inlines,
        } = files;
        let (state, weight) = match Image::read(&file) {
            Ok(image) => {
                let debug = debug.and_then(|debug| Some((Image::read(&debug).ok()?, debug)));
                let images = || {
                    [Some(&image), debug.as_ref().map(|(image, _)| image)]
                        .into_iter()
                        .flatten()
                };
                let symbols_only = !inlines && images().any(|image| image.has_symbols);
                let mut weight = images()
                    .map(|image| image.weight - if symbols_only { image.debug_weight } else { 0 })
                    .fold(0, u64::saturating_add);
                let mut ready = Ready::new(image, &file, debug, inlines);
                if supplement.is_some() || package.is_some() {
                    ready.gather(supplement.as_deref(), package.as_deref());
                    let others = supplement.iter().chain(&package);
                    weight = others
                        .map(|file| Image::read(file).map_or(0, |facts| facts.weight))
                        .fold(weight, u64::saturating_add);
                }
                (State::Ready(Box::new(ready)), weight)
            }
            Err(error) => (State::Refused(format!("{path}: {error}")), 0),
        };
        Self {
            file,
            path,
            state,
            weight,
            used: 0,
        }
    }

    /// Whether a parser has failed over it: then that is remembered.
    fn is_harmful(&self) -> bool {
        match &self.state {
            State::Ready(ready) => ready.broken.is_some(),
            State::Refused(_) => true,
        }
    }

    fn files(&self) -> Vec<Arc<File>> {
        let mut files = vec![Arc::clone(&self.file)];
        if let State::Ready(ready) = &self.state {
            let others = ready.dwarf.iter().chain([&ready.symbols]);
            files.extend(others.filter(|other| !Arc::ptr_eq(other, &self.file)).cloned());
            files.dedup_by(|one, other| Arc::ptr_eq(one, other));
        }
        files
    }
}

impl Ready {
    fn new(image: Image, file: &Arc<File>, debug: Option<(Image, Arc<File>)>, inlines: bool) -> Self {
        let has_symbols = image.has_symbols || debug.as_ref().is_some_and(|(facts, _)| facts.has_symbols);
        let (dwarf, symbols) = match debug {
            _ if image.has_dwarf => (Some(Arc::clone(file)), Arc::clone(file)),
            Some((facts, debug)) => {
                let dwarf = facts.has_dwarf.then(|| Arc::clone(&debug));
                let has_more = facts.has_symbols && !image.has_symbols;
                (dwarf, if has_more { debug } else { Arc::clone(file) })
            }
            None => (None, Arc::clone(file)),
        };
        Self {
            image,
            dwarf,
            symbols,
            inlines,
            symbols_only: has_symbols && !inlines,
            gathered: None,
            broken: None,
            plt: None,
            go: Pclntab::read(file),
            starts: None,
        }
    }

    /// Puts debug information together that is in several files. If that fails, what is in the first is better than nothing.
    fn gather(&mut self, supplement: Option<&File>, package: Option<&File>) {
        if let (Some(dwarf), false) = (&self.dwarf, self.symbols_only) {
            let read = catch_unwind(AssertUnwindSafe(|| Dwarf::read(dwarf, supplement, package)));
            self.gathered = read.ok().and_then(Result::ok);
        }
    }

    fn answers(
        &mut self,
        blazesym: &Blazesym,
        texts: &mut Texts,
        file: &Arc<File>,
        addresses: &[u64],
    ) -> (Vec<Answer>, Option<String>) {
        let mut named = Vec::new();
        if let (Some(dwarf), None, false) = (&self.dwarf, &self.broken, self.symbols_only) {
            match &self.gathered {
                Some(gathered) => named = functions_of(gathered, texts, addresses),
                None => match self.ask(blazesym, texts, dwarf, true, addresses) {
                    Ok(functions) => named = functions,
                    Err(problem) => self.broken = Some(problem),
                },
            }
        }
        let mut error = self
            .broken
            .as_ref()
            .map(|problem| format!("debug information not used: {problem}"));
        named.resize_with(addresses.len(), Vec::new);

        // The symbol table knows what DWARF does not: assembly, names of static C++ functions with their arguments,
        // functions whose description is in another file.
        let asked: Vec<u64> = addresses
            .iter()
            .zip(&named)
            .filter(|(_, functions)| {
                functions
                    .last()
                    .is_none_or(|outermost| outermost.system_name.is_empty())
            })
            .map(|(address, _)| *address)
            .collect();
        let symbols = self
            .ask(blazesym, texts, &self.symbols, false, &asked)
            .unwrap_or_else(|problem| {
                error = Some(problem);
                Vec::new()
            });
        let mut symbols = asked.iter().zip(symbols).peekable();
        let mut answers = Vec::with_capacity(addresses.len());
        for (&address, mut functions) in addresses.iter().zip(named) {
            if let Some((_, found)) = symbols.next_if(|(asked, _)| **asked == address) {
                refine(&mut functions, found);
            }
            functions.retain(|function| !function.name.is_empty());
            if !self.inlines {
                functions.drain(..functions.len().saturating_sub(1));
            }
            answers.push(self.complete(texts, file, address, functions));
        }
        (answers, error)
    }

    /// Adds what the tables of the file itself tell beside DWARF and symbols.
    fn complete(
        &mut self,
        texts: &mut Texts,
        file: &File,
        address: u64,
        mut functions: Vec<Symbol>,
    ) -> Answer {
        let position = self.go.as_ref().and_then(|go| go.position(file, address));
        if let Some(position) = position {
            // DWARF knows what was inlined; a symbol knows no line.
            if functions.last().is_none_or(|outermost| outermost.line == 0) {
                functions = vec![go_symbol(&position, texts)];
            }
            return Answer {
                functions,
                language: Language::Go,
                start: None,
            };
        }
        if functions.is_empty() && self.image.in_plt(address) {
            functions.extend(self.stub(texts, file, address));
        }
        let start = functions.is_empty().then(|| {
            let starts = self.starts.get_or_insert_with(|| Functions::read(file));
            starts.as_ref()?.start(file, address)
        });
        Answer {
            functions,
            language: Language::Other,
            start: start.flatten(),
        }
    }

    /// Asks one file; one answer per address.
    fn ask(
        &self,
        blazesym: &Blazesym,
        texts: &mut Texts,
        file: &File,
        debug_syms: bool,
        addresses: &[u64],
    ) -> Result<Vec<Vec<Symbol>>, String> {
        let mut elf = Elf::new(path_of(file));
        elf.debug_syms = debug_syms;
        let answers = blazesym
            .symbolize(&source::Source::Elf(elf), Input::VirtOffset(addresses))
            .map_err(|error| bounded(&error.to_string()).into_owned())?;
        let functions = answers
            .iter()
            .zip(addresses)
            .map(|(answer, &address)| match answer {
                Symbolized::Sym(symbol) if self.plausible(symbol, address) => functions_at(symbol, texts),
                Symbolized::Sym(_) | Symbolized::Unknown(_) => Vec::new(),
            });
        Ok(functions.collect())
    }

    /// A symbol without a size would take all up to the next one: `_init` the whole PLT. It ends with its section.
    /// A function in several pieces has no size either, and its address is given as 0; DWARF's ranges were checked.
    fn plausible(&self, symbol: &Sym<'_>, address: u64) -> bool {
        let in_pieces = symbol.addr == 0 && symbol.code_info.is_some();
        symbol.size.is_some() || in_pieces || self.image.together(address, symbol.addr)
    }

    fn stub(&mut self, texts: &mut Texts, file: &File, address: u64) -> Option<Symbol> {
        let stubs = self.plt.get_or_insert_with(|| elf::plt(file).unwrap_or_default());
        let after = stubs.partition_point(|(start, _)| *start <= address);
        let (_, name) = stubs.get(after.checked_sub(1)?)?;
        if name.is_empty() {
            return None;
        }
        let symbol = texts.function(name);
        let mut stub = |name: &str| {
            if name.is_empty() {
                Arc::default()
            } else {
                texts.plain(&format!("{name}@plt"))
            }
        };
        Some(Symbol {
            name: stub(&symbol.name),
            system_name: stub(&symbol.system_name),
            ..symbol
        })
    }
}

/// The functions at each address, innermost first.
fn functions_of(dwarf: &Dwarf, texts: &mut Texts, addresses: &[u64]) -> Vec<Vec<Symbol>> {
    let functions = addresses.iter().map(|&address| {
        let functions = dwarf.functions(address, MOST_INLINED + 1).into_iter();
        functions
            .map(|function| Symbol {
                file: texts.plain(&function.file),
                line: function.line,
                column: function.column,
                ..texts.function(&function.name)
            })
            .collect()
    });
    functions.collect()
}

/// Go's names are the same for its linker and for people.
fn go_symbol(position: &Position, texts: &mut Texts) -> Symbol {
    let Position { name, file, line } = position;
    Symbol {
        name: texts.plain(name),
        file: texts.plain(file),
        line: *line,
        ..Symbol::default()
    }
}

/// Completes what DWARF said with what the symbol table says of the same address: `recv<T>` is really
/// `std::sync::mpmc::list::Channel<T>::recv`, `static_function` is `static_function(int)`.
fn refine(functions: &mut Vec<Symbol>, mut found: Vec<Symbol>) {
    let Some(symbol) = found.pop() else { return };
    match functions.last_mut() {
        None => functions.push(symbol),
        Some(outermost) => {
            if outermost.name.is_empty() || same_function(&outermost.name, &symbol) {
                outermost.name = symbol.name;
                outermost.system_name = symbol.system_name;
            }
        }
    }
}

/// Whether a mangled symbol is of the function that DWARF calls `name` (functions with equal code may share it).
/// All manglings have an identifier with its length before it.
fn same_function(name: &str, symbol: &Symbol) -> bool {
    let identifier = name
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .find(|part| !part.is_empty());
    let Some(identifier) = identifier else {
        return false;
    };
    symbol
        .system_name
        .contains(&format!("{}{identifier}", identifier.len()))
        // Some are spelt otherwise in mangled names: `{closure_env#0}`, `{async_fn#0}`, `operator()`.
        || (name.starts_with('{') && symbol.name.contains("{closure"))
        || (identifier == "operator" && symbol.name.contains(name))
}

/// The functions of a symbol, innermost first.
fn functions_at(symbol: &Sym<'_>, texts: &mut Texts) -> Vec<Symbol> {
    let inlined = symbol.inlined.iter().rev().take(MOST_INLINED);
    let mut functions = Vec::with_capacity(inlined.len() + 1);
    functions.extend(inlined.map(|function| texts.function_at(&function.name, function.code_info.as_ref())));
    functions.push(texts.function_at(&symbol.name, symbol.code_info.as_deref()));
    functions
}

/// Demangling is ours: blazesym's has no bound, and does not keep the mangled name.
fn blazesym() -> Blazesym {
    Blazesym::builder()
        .enable_demangling(false)
        // A held descriptor's path stays the same file; a stat per look-up would only cost.
        .enable_auto_reload(false)
        .build()
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    bounded(text.unwrap_or("no message")).into_owned()
}
