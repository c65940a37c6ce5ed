//! Call frame information: the compiler's word on how to get from a frame to its caller.
//!
//! [`entry`] reads the entries of `.eh_frame` and `.debug_frame`, [`program`] executes them for the registers that a walk carries. What
//! no [`Rule`] can say becomes [`Rule::Unsupported`], never a guess.
//!
//! ```text
//! sections ──▶ list of functions: 16 bytes each ──▶ by address ──▶ executed one by one ──▶ rows of the tables
//! ```
//!
//! Rows are never held but in the tables themselves: libLLVM has a million.
//!
//! The bytes are a stranger's. Each byte of a function's program makes at most one row, but functions without number can share a common
//! part, or take turns with many: [`MAX_WORK`] bounds the sum.

mod cursor;
mod entry;
mod expression;
mod gap;
mod program;

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

use gimli::{
    BaseAddresses, CfaRule, EhFrameHdr, EndianSlice, LittleEndian, Pointer, Register, RegisterRule,
    UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use hashbrown::HashMap;
use profiler_common::row::{Base, Rule, SavedBp, SavedBx};

use self::{
    entry::{Common, Entries, Function, Head},
    program::{Cfa, Machine, Saved, State},
};
use super::table::{Code, Pieces, Table, TableError};

pub(super) use self::entry::eh_frame_len;
pub use super::sections::FileSections;

/// Most functions of one file; libLLVM has 148,000.
pub const MAX_FUNCTIONS: usize = 1 << 19;

/// Most bytes of entries and programs that are read for one file; libLLVM needs 12 MB.
pub const MAX_WORK: usize = 1 << 26;

/// Most rows of one file; librustc_driver has 1.9 million.
pub const MAX_ROWS: usize = 10_000_000;

/// Most bytes of what stands where a file is entered, up to the next function that is known: the dynamic linker has 61.
const ENTRY: u64 = 64;

/// Most common parts that are remembered; compilers make two or three different ones.
const MAX_COMMON: usize = 16;

/// The data alignment by which Go's linker is known; compilers of C say -8.
///
/// Its functions are left to the frame pointer, which they all keep, but for [the places without a frame](Rule::Frameless). Its information
/// does not say where the frame pointer is saved, calls the frames of `systemstack` and `mcall`, which have changed stacks, ordinary ones, and has
/// no end at `goexit`.
const GO_ALIGNMENT: i64 = -4;

/// The sections that matter, with the addresses they are loaded at.
#[derive(Debug, Clone, Default)]
pub struct Sections<'a> {
    /// `.eh_frame`; empty where there is none.
    pub eh_frame: Section<'a>,
    /// `.debug_frame`, for the functions of which `.eh_frame` knows nothing: Go's, beside C's.
    pub debug_frame: &'a [u8],
    /// Address of `.text`, which some pointers count from.
    pub text: u64,
    /// Address of `.got`, likewise.
    pub got: u64,
    /// Addresses of `.plt`, whose stubs of 16 bytes push a word in their middle.
    pub plt: Range<u64>,
    /// Addresses of `.plt.sec` and `.plt.got`, whose stubs only jump.
    pub jumps: [Range<u64>; 2],
    /// Where the file is entered; 0 where it is not. Threads begin there, which the dynamic linker and some C libraries do not say.
    pub entry: u64,
    /// Where the file's instructions are, for what no section speaks of.
    pub instructions: Instructions<'a>,
}

/// The instructions of a file, which are read when they are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Instructions<'a> {
    /// The file; without one there are none.
    pub file: Option<&'a File>,
    /// The addresses of its executable sections or segments, in order, and their offsets in the file.
    pub executable: &'a [(Range<u64>, u64)],
}

impl Instructions<'_> {
    /// Those at some addresses, which must lie in one section.
    fn at(&self, range: &Range<u64>) -> Option<Vec<u8>> {
        let (addresses, offset) = self
            .executable
            .iter()
            .find(|(addresses, _)| addresses.start <= range.start && range.end <= addresses.end)?;
        let mut bytes = vec![0; usize::try_from(range.end.checked_sub(range.start)?).ok()?];
        let offset = offset.checked_add(range.start - addresses.start)?;
        self.file?.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

/// A section in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Section<'a> {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Why a file's call frame information is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CfiError {
    /// It would take too much room to read.
    #[error("its call frame information has more than {MAX_FUNCTIONS} functions")]
    TooManyFunctions,
    /// It would take too long.
    #[error("its call frame information asks for more than {MAX_WORK} bytes of work")]
    TooMuchWork,
    /// It would take too long, and too much room.
    #[error("its call frame information has more than {MAX_ROWS} rows")]
    TooManyRows,
    /// What comes out is too large.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// What a file's call frame information says.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// By address, each with the addresses that it is for.
    pub pieces: Vec<(Range<u64>, Table)>,
    /// Functions that are described.
    pub functions: usize,
    /// Rows that their programs made.
    pub rows: usize,
    /// Entries that could not be read, and functions whose program broke off: they are known up to there.
    pub broken: usize,
}

impl Tables {
    /// The rule in force at an address.
    pub fn rule(&self, address: u64) -> Rule {
        let behind = self.pieces.partition_point(|(range, _)| range.start <= address);
        behind
            .checked_sub(1)
            .and_then(|at| self.pieces.get(at))
            .filter(|(range, _)| range.contains(&address))
            .map_or(Rule::None, |(_, table)| table.rule(address))
    }
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The tables of the addresses in `code`, which may be empty for all that the sections speak of; each of at most `piece` bytes.
///
/// A rule is in force up to the next one's address; [`Rule::None`] is where no function is. Functions that overlap (nobody makes them)
/// end where the next one begins.
///
/// # Errors
///
/// [`CfiError`] when a bound is reached.
pub fn tables(sections: &Sections<'_>, code: Range<u64>, piece: usize) -> Result<Tables, CfiError> {
    let mut eh_frame = Reader::new(sections, Source::EhFrame);
    let mut debug_frame = Reader::new(sections, Source::DebugFrame);
    // lld and others leave stubs without any information.
    let jump = Rule::Cfa {
        base: Base::Sp,
        offset: 8,
        bp: SavedBp::Same,
        bx: SavedBx::Same,
    };
    let stubs = [
        (&sections.plt, Rule::Plt(11)),
        (&sections.jumps[0], jump),
        (&sections.jumps[1], jump),
    ];

    let mut list = List::new(code.clone());
    eh_frame.list(&mut list)?;
    list.begin_next();
    debug_frame.list(&mut list)?;
    list.begin_next();
    for (number, (range, _)) in (0..).zip(stubs) {
        list.add(range.start, range.end, Source::Stubs, number)?;
    }
    list.begin_next();
    let entry = sections.entry;
    if entry != 0 {
        let next = list.functions.partition_point(|function| function.start <= entry);
        let next = list.functions.get(next).map_or(u64::MAX, |next| next.start);
        list.add(
            entry,
            next.min(entry.saturating_add(ENTRY)),
            Source::Stubs,
            stubs.len(),
        )?;
        list.begin_next();
    }
    let List {
        functions,
        mut broken,
        work,
        ..
    } = list;

    let code = if code.is_empty() {
        let end = functions.iter().map(Run::end).max();
        functions.first().map_or(0, |function| function.start)..end.unwrap_or_default()
    } else {
        code
    };
    if functions.is_empty() {
        return Ok(Tables {
            broken,
            ..Tables::default()
        });
    }
    let mut pieces = Pieces::new(code, piece)?;
    let mut made = Made { rows: 0, work };
    let mut gaps = Gaps {
        instructions: sections.instructions,
        behind: pieces.start(),
        left: gap::MOST,
    };
    for (index, function) in functions.iter().enumerate() {
        let next = functions.get(index + 1).map_or(u64::MAX, |next| next.start);
        let end = function.end().min(next);
        let at = function.at & Source::AT;
        gaps.fill(function.start, &mut pieces)?;
        let whole = match function.source() {
            _ if function.start >= end => continue,
            Source::EhFrame => eh_frame.execute(at, &(function.start..end), &mut pieces, &mut made)?,
            Source::DebugFrame => debug_frame.execute(at, &(function.start..end), &mut pieces, &mut made)?,
            Source::Stubs => {
                let stub = stubs.get(usize::try_from(at).unwrap_or(usize::MAX));
                pieces.add(function.start, stub.map_or(Rule::End, |(_, rule)| *rule))?;
                true
            }
        };
        broken += usize::from(!whole);
        gaps.behind = end;
    }
    gaps.fill(pieces.end(), &mut pieces)?;
    let described = functions
        .iter()
        .filter(|function| function.source() != Source::Stubs);
    Ok(Tables {
        pieces: pieces.finish()?,
        functions: described.count(),
        rows: made.rows,
        broken,
    })
}

/// The code between functions.
struct Gaps<'a> {
    instructions: Instructions<'a>,
    /// The first address behind the last function.
    behind: u64,
    /// How many may be read yet.
    left: usize,
}

impl Gaps<'_> {
    /// Adds what is known from the last function up to the next one, at `next`.
    fn fill(&mut self, next: u64, pieces: &mut Pieces) -> Result<(), CfiError> {
        let Self {
            instructions, behind, ..
        } = *self;
        pieces.add(behind, Rule::None)?; // replaced at once where a function follows
        if behind >= next {
            return Ok(());
        }
        for (addresses, _) in instructions.executable {
            let (start, end) = (behind.max(addresses.start), next.min(addresses.end));
            let code = if start < end {
                gap::readable(start, end)
            } else {
                0..0
            };
            if code.is_empty() || self.left == 0 {
                continue;
            }
            self.left -= 1;
            for (address, rule) in gap::rules(start, &instructions.at(&code).unwrap_or_default()) {
                pieces.add(address, rule)?;
            }
        }
        Ok(())
    }
}

/// Where the rules of a function come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A program in `.eh_frame`.
    EhFrame,
    /// A program in `.debug_frame`.
    DebugFrame,
    /// A section of stubs, all alike; or behind the last of them, where the file is entered.
    Stubs,
}

impl Source {
    /// The bits of [`Run::at`] below the source.
    const AT: u32 = (1 << 30) - 1;
}

/// A run of addresses that has rules. A large file has hundreds of thousands, so there is no byte to waste.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    len: u32,
    /// Source in the upper 2 bits; below, the offset of its entry there or the number of its stubs.
    at: u32,
}

impl Run {
    /// By address, then length, then source and place, in one comparison.
    const fn order(&self) -> u128 {
        (self.start as u128) << 64 | (self.len as u128) << 32 | self.at as u128
    }

    const fn end(&self) -> u64 {
        self.start.saturating_add(self.len as u64)
    }

    const fn source(&self) -> Source {
        match self.at >> 30 {
            0 => Source::EhFrame,
            1 => Source::DebugFrame,
            _ => Source::Stubs,
        }
    }
}

/// The functions found so far, source by source.
struct List {
    /// The addresses of interest; empty is all.
    code: Range<u64>,
    functions: Vec<Run>,
    /// How many of them are of earlier sources. They are sorted.
    earlier: usize,
    broken: usize,
    work: usize,
}

impl List {
    const fn new(code: Range<u64>) -> Self {
        Self {
            code,
            functions: Vec::new(),
            earlier: 0,
            broken: 0,
            work: 0,
        }
    }

    /// Adds a function, unless an earlier source knows of code there.
    fn add(&mut self, start: u64, end: u64, source: Source, at: usize) -> Result<(), CfiError> {
        let Self {
            code,
            functions,
            earlier,
            ..
        } = self;
        let elsewhere = !code.is_empty() && (end <= code.start || start >= code.end);
        if start >= end || elsewhere {
            return Ok(()); // also what the linker dropped: it has no length
        }
        let known = functions.get(..*earlier).unwrap_or_default();
        let before = known.partition_point(|function| function.start < end);
        if before
            .checked_sub(1)
            .and_then(|last| known.get(last))
            .is_some_and(|function| function.end() > start)
        {
            return Ok(());
        }
        if functions.len() >= MAX_FUNCTIONS {
            return Err(CfiError::TooManyFunctions);
        }
        functions.push(Run {
            start,
            len: u32::try_from(end - start).unwrap_or(u32::MAX),
            at: (source as u32) << 30 | u32::try_from(at).unwrap_or(Source::AT) & Source::AT,
        });
        Ok(())
    }

    /// What is added from here on comes from another source.
    fn begin_next(&mut self) {
        if self.functions.len() > self.earlier {
            // Linkers put them in long runs by address, which this sort makes use of.
            self.functions.sort_by_key(Run::order);
        }
        self.earlier = self.functions.len();
    }
}

/// A section and what is kept while it is read.
struct Reader<'a> {
    entries: Entries<'a>,
    source: Source,
    /// Thousands of functions share one common part.
    common: HashMap<usize, Common>,
    /// The one that was used last, by its offset.
    last: Option<(usize, Common)>,
    machine: Machine,
}

impl<'a> Reader<'a> {
    fn new(sections: &Sections<'a>, source: Source) -> Self {
        let debug = source == Source::DebugFrame;
        let section = if debug {
            Section {
                address: 0,
                bytes: sections.debug_frame,
            }
        } else {
            sections.eh_frame
        };
        Self {
            entries: Entries {
                section,
                debug,
                text: sections.text,
                got: sections.got,
            },
            source,
            common: HashMap::new(),
            last: None,
            machine: Machine::default(),
        }
    }

    /// Lists the functions of the section.
    fn list(&mut self, list: &mut List) -> Result<(), CfiError> {
        for at in entry::entries(self.entries.section.bytes) {
            let Some(at) = at else {
                list.broken += 1;
                break;
            };
            match self.function(at, &mut list.work)? {
                Found::Common => {}
                Found::Broken => list.broken += 1,
                Found::Function(function) => {
                    let end = function.start.saturating_add(function.len);
                    list.add(function.start, end, self.source, at)?;
                }
            }
        }
        Ok(())
    }

    /// The entry at an offset. What it costs is added to `work`.
    #[inline]
    fn function(&mut self, at: usize, work: &mut usize) -> Result<Found<'a>, CfiError> {
        let (common_at, body) = match self.entries.head(at) {
            Some(Head::Function(common_at, body)) => (common_at, body),
            Some(Head::Common(_)) => return Ok(Found::Common),
            None => return Ok(Found::Broken),
        };
        *work += body.0.len();
        if self.last.as_ref().is_none_or(|(last, _)| *last != common_at) {
            let common = self.common(common_at, work);
            self.last = common.map(|common| (common_at, common));
        }
        if *work > MAX_WORK {
            return Err(CfiError::TooMuchWork);
        }
        let function = self
            .last
            .as_ref()
            .and_then(|(_, common)| self.entries.function(body, common));
        Ok(function.map_or(Found::Broken, Found::Function))
    }

    fn common(&mut self, at: usize, work: &mut usize) -> Option<Common> {
        if let Some(common) = self.common.get(&at) {
            return Some(*common);
        }
        let common = self.entries.common(at, &mut self.machine)?;
        *work += common.work;
        if self.common.len() >= MAX_COMMON {
            self.common.clear();
        }
        self.common.insert(at, common);
        Some(common)
    }

    /// Adds the rows of the function at an offset that lie in `range`; whether its program could be executed to its end.
    fn execute(
        &mut self,
        at: u32,
        range: &Range<u64>,
        pieces: &mut Pieces,
        made: &mut Made,
    ) -> Result<bool, CfiError> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let Found::Function(function) = self.function(at, &mut made.work)? else {
            return Ok(false);
        };
        let Some((_, common)) = &self.last else {
            return Ok(false);
        };
        if common.signal {
            made.rows += 1;
            pieces.add(range.start, Rule::Signal)?;
            return Ok(true);
        }
        let is_go = common.data_alignment == GO_ALIGNMENT && self.source == Source::DebugFrame;
        let rows = &mut made.rows;
        self.machine.function(&function, common, |address, code| {
            *rows += 1;
            let code = if is_go { frameless(code) } else { code };
            if *rows > MAX_ROWS {
                return Err(CfiError::TooManyRows);
            }
            if address < range.end {
                pieces.add_code(address, code)?;
            }
            Ok(())
        })
    }
}

/// What is at an offset.
enum Found<'a> {
    /// A common part.
    Common,
    /// A function, whose common part is the last one used.
    Function(Function<'a>),
    Broken,
}

/// What has been done so far.
#[derive(Default)]
struct Made {
    rows: usize,
    work: usize,
}

/// The address of `.eh_frame`, as `.eh_frame_hdr` has it.
pub(super) fn eh_frame_address(header: Section<'_>) -> Option<u64> {
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.address);
    match EhFrameHdr::new(header.bytes, LittleEndian)
        .parse(&bases, 8)
        .ok()?
        .eh_frame_ptr()
    {
        Pointer::Direct(address) => Some(address),
        Pointer::Indirect(_) => None,
    }
}

/// A row of gimli's as a rule: what tests compare tables with.
pub fn rule_of<'a, S: UnwindSection<Bytes<'a>>>(row: &UnwindTableRow<usize>, section: &S) -> Rule {
    let bytes = |expression: &UnwindExpression<usize>| {
        expression
            .get(section)
            .map_or(&[][..], |expression| expression.0.slice())
    };
    let saved = |register| match row.register(register) {
        None => Saved::Unknown,
        Some(RegisterRule::Undefined) => Saved::Undefined,
        Some(RegisterRule::SameValue) => Saved::Same,
        Some(RegisterRule::Offset(offset)) => Saved::offset(offset),
        Some(RegisterRule::Expression(expression)) => Saved::expression(bytes(&expression)),
        Some(RegisterRule::Register(register)) => Saved::Register(register.0),
        Some(_) => Saved::Other,
    };
    let rule = rule(&State {
        cfa: match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => Cfa::register(register.0, *offset),
            CfaRule::Expression(expression) => Cfa::expression(bytes(expression)),
        },
        ra: saved(X86_64::RA),
        bp: saved(X86_64::RBP),
        bx: saved(X86_64::RBX),
    });
    if rule.pack().is_some() || rule.entry().is_some() {
        rule
    } else {
        Rule::Unsupported
    }
}

/// What is known of a frame, as a rule; whether a table has room for such numbers is for the table to say.
#[inline(always)]
fn rule(state: &State) -> Rule {
    match state.ra {
        Saved::Undefined => Rule::End,
        Saved::Offset(-8) => frame_rule(state).unwrap_or(Rule::Unsupported),
        Saved::Register(number) => return_in(state, number).unwrap_or(Rule::Unsupported),
        Saved::Unknown | Saved::Same | Saved::Offset(_) | Saved::AtBp(_) | Saved::Other => Rule::Unsupported,
    }
}

#[inline(always)]
fn frame_rule(state: &State) -> Option<Rule> {
    let (base, offset) = match state.cfa {
        Cfa::Register(register, offset) => {
            let base = match Register(register) {
                X86_64::RSP => Base::Sp,
                X86_64::RBP => Base::Bp,
                Register(number) => Base::Register(u8::try_from(number).ok().filter(|&number| number < 16)?),
            };
            (base, offset?)
        }
        Cfa::Expression(expression::Cfa::Word(base, offset)) => (base, offset),
        Cfa::Expression(expression::Cfa::Plt(from)) => return Some(Rule::Plt(from)),
        Cfa::Other => return None,
    };
    let bp = match state.bp {
        Saved::Unknown | Saved::Same | Saved::Undefined => SavedBp::Same,
        Saved::Offset(at) => SavedBp::AtCfa(i16::try_from(at).ok()?),
        Saved::AtBp(at) => SavedBp::AtBp(at),
        Saved::Register(_) | Saved::Other => return None,
    };
    let bx = match state.bx {
        Saved::Unknown | Saved::Same | Saved::Undefined => SavedBx::Same,
        Saved::Offset(at @ (-56 | -48 | -40 | -32 | -24 | -16)) => {
            SavedBx::Below(u8::try_from(at / -8).unwrap_or_default())
        }
        Saved::Offset(_) | Saved::AtBp(_) | Saved::Register(_) | Saved::Other => SavedBx::Lost,
    };
    Some(Rule::Cfa { base, offset, bp, bx })
}

/// What of Go's information is of use.
fn frameless(code: Code) -> Code {
    match code.rule() {
        Some(Rule::Cfa {
            base: Base::Sp,
            offset: 8,
            ..
        }) => Code::of(Rule::Frameless),
        _ => Code::NONE,
    }
}

/// The rule of a function that has taken its return address off the stack.
fn return_in(state: &State, number: u16) -> Option<Rule> {
    let at_stack_pointer = state.cfa == Cfa::register(X86_64::RSP.0, 0);
    let untouched = [state.bp, state.bx]
        .iter()
        .all(|saved| matches!(saved, Saved::Unknown | Saved::Same));
    let number = u8::try_from(number).ok().filter(|&number| number < 16)?;
    (at_stack_pointer && untouched).then_some(Rule::ReturnIn(number))
}
