//! Call frame information: the compiler's word on how to get from a frame to its caller.
//!
//! gimli executes the programs of `.eh_frame` or `.debug_frame`; what comes out is cut down to the registers that a walk carries.
//! What no [`Rule`] can say becomes [`Rule::Unsupported`], never a guess.
//!
//! The bytes are a stranger's. Each byte of a function's program makes at most one row, but the program of the common part
//! runs again for each function: [`MAX_WORK`] bounds the sum.

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, EndianSlice, LittleEndian, Operation, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use hashbrown::HashMap;
use profiler_common::row::{Base, Rule, SavedBp};

/// Most bytes of programs that are executed for one file: a hundred times what libLLVM needs.
pub const MAX_WORK: usize = 1 << 30;

/// Most rules of one file; librustc_driver has 1.9 million.
pub const MAX_RULES: usize = 10_000_000;

/// The sections that matter, with the addresses they are loaded at.
#[derive(Debug, Clone, Default)]
pub struct Sections<'a> {
    /// `.eh_frame`; empty where there is none.
    pub eh_frame: Section<'a>,
    /// `.debug_frame`, used where `.eh_frame` is empty.
    pub debug_frame: &'a [u8],
    /// Address of `.text`, which some pointers count from.
    pub text: u64,
    /// Address of `.got`, likewise.
    pub got: u64,
    /// Addresses of `.plt`, whose stubs of 16 bytes push a word in their middle.
    pub plt: Range<u64>,
    /// Addresses of `.plt.sec` and `.plt.got`, whose stubs only jump.
    pub jumps: [Range<u64>; 2],
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
    /// It cannot be read.
    #[error("its call frame information is broken: {0}")]
    Broken(gimli::Error),
    /// It would take too long.
    #[error("its call frame information asks for more than {MAX_WORK} bytes of work")]
    TooMuchWork,
    /// It would take too much room.
    #[error("its call frame information has more than {MAX_RULES} rows")]
    TooManyRules,
}

impl From<gimli::Error> for CfiError {
    fn from(error: gimli::Error) -> Self {
        Self::Broken(error)
    }
}

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The rules of a file by address, each in force up to the next one's; [`Rule::None`] where no function is.
///
/// A function whose program cannot be executed is left out, and the others are kept: `broken` of the answer counts them.
///
/// # Errors
///
/// [`CfiError`] when the sections as a whole cannot be read.
pub fn rules(sections: &Sections<'_>) -> Result<Rules, CfiError> {
    let bases = BaseAddresses::default()
        .set_eh_frame(sections.eh_frame.address)
        .set_text(sections.text)
        .set_got(sections.got);
    let mut rules = if sections.eh_frame.bytes.is_empty() {
        let mut section = DebugFrame::new(sections.debug_frame, LittleEndian);
        section.set_address_size(8);
        of_section(&section, &bases)?
    } else {
        let mut section = EhFrame::new(sections.eh_frame.bytes, LittleEndian);
        section.set_address_size(8);
        of_section(&section, &bases)?
    };
    // lld and others leave stubs without any information.
    let jump = Rule::Cfa {
        base: Base::Sp,
        offset: 8,
        bp: SavedBp::Same,
    };
    for (stubs, rule) in [
        (&sections.plt, Rule::Plt(11)),
        (&sections.jumps[0], jump),
        (&sections.jumps[1], jump),
    ] {
        rules.fill(stubs, rule);
    }
    Ok(rules)
}

/// See [`rules`].
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// By address; several at one address are in the order in which they count, the last one does.
    pub by_address: Vec<(u64, Rule)>,
    /// Functions that were left out.
    pub broken: u32,
}

impl Rules {
    /// Puts a rule where nothing is known; `range` must not be covered in part.
    fn fill(&mut self, range: &Range<u64>, rule: Rule) {
        if range.is_empty() {
            return;
        }
        let after = self
            .by_address
            .partition_point(|(address, _)| *address <= range.start);
        let in_force = after
            .checked_sub(1)
            .and_then(|at| self.by_address.get(at))
            .map_or(Rule::None, |(_, rule)| *rule);
        let next = self
            .by_address
            .get(after)
            .map_or(u64::MAX, |(address, _)| *address);
        if in_force != Rule::None || next < range.end {
            return;
        }
        let end = (next > range.end).then_some((range.end, Rule::None));
        self.by_address
            .splice(after..after, [(range.start, rule)].into_iter().chain(end));
    }
}

fn of_section<'a, S>(section: &S, bases: &BaseAddresses) -> Result<Rules, CfiError>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: std::hash::Hash,
{
    let mut functions: Vec<(u64, u64, usize)> = Vec::new();
    let mut rules: Vec<(u64, Rule)> = Vec::new();
    let mut broken = 0;
    let mut work = 0_usize;
    // Thousands of functions share one common part.
    let mut common = HashMap::new();
    let mut context = UnwindContext::new();
    let mut entries = section.entries(bases);
    while let Some(entry) = entries.next()? {
        let CieOrFde::Fde(partial) = entry else { continue };
        let function = partial.parse(|section, bases, offset| {
            if let Some(cie) = common.get(&offset) {
                return Ok(Clone::clone(cie));
            }
            let cie = section.cie_from_offset(bases, offset)?;
            common.insert(offset, cie.clone());
            Ok(cie)
        });
        let Ok(function) = function else {
            broken += 1;
            continue;
        };
        if function.len() == 0 {
            continue; // the linker dropped the function
        }
        work = work
            .saturating_add(function.entry_len())
            .saturating_add(function.cie().entry_len());
        if work > MAX_WORK {
            return Err(CfiError::TooMuchWork);
        }
        let first = rules.len();
        if function.is_signal_trampoline() {
            rules.push((function.initial_address(), Rule::Signal));
        } else if read(&function, section, bases, &mut context, &mut rules).is_err() {
            rules.truncate(first);
            broken += 1;
            continue;
        }
        if rules.len() > MAX_RULES {
            return Err(CfiError::TooManyRules);
        }
        functions.push((function.initial_address(), function.end_address(), first));
    }
    Ok(Rules {
        by_address: in_order(&mut functions, &rules),
        broken,
    })
}

/// Adds the rows of one function.
fn read<'a, S: UnwindSection<Bytes<'a>>>(
    function: &gimli::FrameDescriptionEntry<Bytes<'a>>,
    section: &S,
    bases: &BaseAddresses,
    context: &mut UnwindContext<usize>,
    rules: &mut Vec<(u64, Rule)>,
) -> gimli::Result<()> {
    let mut rows = function.rows(section, bases, context)?;
    while let Some(row) = rows.next_row()? {
        rules.push((row.start_address(), rule_of(row, section)));
        if rules.len() > MAX_RULES {
            break;
        }
    }
    Ok(())
}

/// The rules of all functions by address, with an end behind each that no other function follows at once.
fn in_order(functions: &mut [(u64, u64, usize)], rules: &[(u64, Rule)]) -> Vec<(u64, Rule)> {
    // Where the rules of each function end, before they are sorted away from each other.
    let ends: HashMap<usize, usize> = functions
        .iter()
        .map(|f| f.2)
        .zip(functions.iter().skip(1).map(|f| f.2).chain([rules.len()]))
        .collect();
    functions.sort_unstable();
    let mut ordered = Vec::with_capacity(rules.len() + functions.len());
    for (index, &(_, end, first)) in functions.iter().enumerate() {
        let last = ends.get(&first).copied().unwrap_or(first);
        let next = functions.get(index + 1).map_or(u64::MAX, |f| f.0);
        // Functions that overlap (nobody makes them) end where the next one begins.
        let own = rules.get(first..last).unwrap_or_default().iter().copied();
        ordered.extend(own.filter(|(address, _)| *address < next));
        if end < next {
            ordered.push((end, Rule::None));
        }
    }
    ordered
}

/// A row of gimli's as a rule.
pub fn rule_of<'a, S: UnwindSection<Bytes<'a>>>(row: &UnwindTableRow<usize>, section: &S) -> Rule {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return Rule::End,
        Some(RegisterRule::Offset(-8)) => {}
        _ => return Rule::Unsupported,
    }
    frame_rule(row, section).unwrap_or(Rule::Unsupported)
}

fn frame_rule<'a, S: UnwindSection<Bytes<'a>>>(row: &UnwindTableRow<usize>, section: &S) -> Option<Rule> {
    let (base, offset) = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let base = match *register {
                X86_64::RSP => Base::Sp,
                X86_64::RBP => Base::Bp,
                Register(number) => Base::Register(u8::try_from(number).ok().filter(|&number| number < 16)?),
            };
            (base, i32::try_from(*offset).ok()?)
        }
        CfaRule::Expression(expression) => {
            let operations = operations(expression, section)?;
            match *operations.as_slice() {
                // The stub of a PLT, as GNU ld describes it: rsp + 8 + (((rip & 15) >= n) << 3).
                [
                    Operation::RegisterOffset {
                        register: X86_64::RSP,
                        offset: 8,
                        ..
                    },
                    Operation::RegisterOffset {
                        register: X86_64::RA,
                        offset: 0,
                        ..
                    },
                    Operation::UnsignedConstant { value: 15 },
                    Operation::And,
                    Operation::UnsignedConstant { value: from },
                    Operation::Ge,
                    Operation::UnsignedConstant { value: 3 },
                    Operation::Shl,
                    Operation::Plus,
                ] => return u8::try_from(from).ok().filter(|&from| from < 16).map(Rule::Plt),
                [at, Operation::Deref { space: false, .. }] => (dereferenced(&at)?, 0),
                [
                    at,
                    Operation::Deref { space: false, .. },
                    Operation::PlusConstant { value },
                ] => (dereferenced(&at)?, i32::try_from(value).ok()?),
                _ => return None,
            }
        }
    };
    let bp = match row.register(X86_64::RBP) {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => SavedBp::Same,
        Some(RegisterRule::Offset(at)) => SavedBp::AtCfa(i16::try_from(at).ok()?),
        Some(RegisterRule::Expression(expression)) => match *operations(&expression, section)?.as_slice() {
            [
                Operation::RegisterOffset {
                    register: X86_64::RBP,
                    offset,
                    ..
                },
            ] => SavedBp::AtBp(i16::try_from(offset).ok()?),
            _ => return None,
        },
        Some(_) => return None,
    };
    let rule = Rule::Cfa { base, offset, bp };
    (rule.pack().is_some() || rule.entry().is_some()).then_some(rule)
}

/// What lies at a register's value plus an offset.
fn dereferenced(operation: &Operation<Bytes<'_>>) -> Option<Base> {
    let Operation::RegisterOffset { register, offset, .. } = *operation else {
        return None;
    };
    let at = i16::try_from(offset).ok()?;
    match register {
        X86_64::RBP => Some(Base::DerefBp(at)),
        X86_64::RSP => Some(Base::DerefSp(at)),
        _ => None,
    }
}

/// The operations of an expression; `None` when it is longer than any that is understood.
fn operations<'a, S: UnwindSection<Bytes<'a>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
) -> Option<Vec<Operation<Bytes<'a>>>> {
    const LONGEST: usize = 9;
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut operations = expression.get(section).ok()?.operations(encoding);
    let mut found = Vec::new();
    while let Some(operation) = operations.next().ok()? {
        found.push(operation);
        if found.len() > LONGEST {
            return None;
        }
    }
    Some(found)
}
