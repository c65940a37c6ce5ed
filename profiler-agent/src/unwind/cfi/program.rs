//! The program of a function, executed for what a walk needs: the canonical frame address, the return address, the frame pointer
//! and `rbx`.
//!
//! gimli executes such programs too, for all registers. Its rows are what the tests compare with at every address; the time that they
//! take is what the benchmark `tables` compares with.

use super::{
    cursor::Cursor,
    entry::{Common, Function},
    expression, rule,
};
use crate::unwind::table::Code;
use gimli::constants as dw;

/// Most states remembered at one time; compilers need one.
const MAX_REMEMBERED: usize = 16;

/// DWARF's number of `rbx`,
pub(super) const RBX: u16 = 3;
/// of the frame pointer,
pub(super) const RBP: u16 = 6;
/// and of the return address.
pub(super) const RA: u16 = 16;

/// What is known of a frame at some address. There is one for each of millions of rows, so there is no byte to waste.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cfa: Cfa,
    pub(super) ra: Saved,
    pub(super) bp: Saved,
    pub(super) bx: Saved,
}

/// Where the canonical frame address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cfa {
    /// That far above what is in a register; `None` is farther than any frame is large.
    Register(u16, Option<i32>),
    /// What an expression says that is one of those that compilers make.
    Expression(expression::Cfa),
    /// What another one says.
    Other,
}

/// Where the caller's value of a register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    /// Nobody said.
    Unknown,
    /// Nowhere.
    Undefined,
    /// Still there.
    Same,
    /// That far above the canonical frame address.
    Offset(i32),
    /// That far above the frame pointer.
    AtBp(i16),
    /// In another register.
    Register(u16),
    /// Somewhere else.
    Other,
}

impl Cfa {
    /// That far above what is in a register.
    #[inline]
    pub(super) fn register(number: u16, offset: i64) -> Self {
        Self::Register(number, i32::try_from(offset).ok())
    }

    /// What an expression says.
    pub(super) fn expression(bytes: &[u8]) -> Self {
        expression::cfa(bytes).map_or(Self::Other, Self::Expression)
    }
}

impl Saved {
    /// That far above the canonical frame address.
    #[inline]
    pub(super) fn offset(offset: i64) -> Self {
        i32::try_from(offset).map_or(Self::Other, Self::Offset)
    }

    /// Where an expression says.
    pub(super) fn expression(bytes: &[u8]) -> Self {
        expression::at_bp(bytes).map_or(Self::Other, Self::AtBp)
    }
}

impl State {
    /// Before the first instruction.
    const NEW: Self = Self {
        cfa: Cfa::Register(0, Some(0)),
        ra: Saved::Unknown,
        bp: Saved::Unknown,
        bx: Saved::Unknown,
    };
}

/// What executes programs.
#[derive(Debug, Default)]
pub(super) struct Machine {
    remembered: Vec<State>,
}

impl Machine {
    /// How the program of a common part leaves the registers; `None` for one that is broken.
    pub(super) fn common(&mut self, program: &[u8], data_alignment: i64) -> Option<State> {
        let mut execution = Execution::new(program, State::NEW, data_alignment, &mut self.remembered);
        while !execution.program.0.is_empty() {
            execution.instruction(None)?;
        }
        Some(execution.state)
    }

    /// Executes the program of a function, and hands out its rows: an address and the rule from there on.
    /// Whether it could be executed to its end; if not, the last row says that nothing is known from there on.
    #[inline]
    pub(super) fn function<E>(
        &mut self,
        function: &Function<'_>,
        common: &Common,
        mut row: impl FnMut(u64, Code) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Some(initial) = &common.initial else {
            return Ok(false);
        };
        let mut execution = Execution::new(
            function.program,
            *initial,
            common.data_alignment,
            &mut self.remembered,
        );
        let mut address = function.start;
        let mut current = Code::of(rule(&execution.state));
        while !execution.program.0.is_empty() {
            let next = match execution.instruction(Some(initial)) {
                Some(0) => continue,
                Some(units) => address.checked_add(units.wrapping_mul(common.code_alignment)),
                None => None,
            };
            current = execution.code(current);
            let Some(next) = next else {
                row(address, Code::NONE)?;
                return Ok(false);
            };
            row(address, current)?;
            address = next;
        }
        row(address, execution.code(current))?;
        Ok(true)
    }
}

/// What of a state has changed since somebody asked. Most rows of most programs differ from the row before in the offset alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// The offset of the canonical frame address.
    Offset,
    /// Anything.
    State,
}

/// The execution of one program.
struct Execution<'a, 'm> {
    program: Cursor<'a>,
    state: State,
    change: Change,
    data_alignment: i64,
    remembered: &'m mut Vec<State>,
}

impl<'a, 'm> Execution<'a, 'm> {
    fn new(program: &'a [u8], state: State, data_alignment: i64, remembered: &'m mut Vec<State>) -> Self {
        remembered.clear();
        Self {
            program: Cursor(program),
            state,
            change: Change::Nothing,
            data_alignment,
            remembered,
        }
    }

    /// The rule of the state, if this was the one when somebody last asked.
    #[inline(always)]
    fn code(&mut self, before: Code) -> Code {
        match (
            std::mem::replace(&mut self.change, Change::Nothing),
            self.state.cfa,
        ) {
            (Change::Nothing, _) => Some(before),
            (Change::Offset, Cfa::Register(_, Some(offset))) => before.with_offset(offset),
            _ => None,
        }
        .unwrap_or_else(|| Code::of(rule(&self.state)))
    }

    /// Executes one instruction, and returns by how many units it advances the address: 0 for those that are about something else.
    /// `None` for one that is broken, and for `DW_CFA_set_loc`, which no compiler makes.
    ///
    /// Those that most programs are made of stand here, in the loop of its caller.
    #[inline(always)]
    fn instruction(&mut self, initial: Option<&State>) -> Option<u64> {
        let byte = self.program.u8()?;
        let low = byte & 0x3f;
        match byte & 0xc0 {
            0x40 => return Some(low.into()), // DW_CFA_advance_loc
            0x80 => {
                let offset = self.factored_unsigned()?;
                self.save(low.into(), Saved::offset(offset)); // DW_CFA_offset
            }
            0xc0 => self.restore(low.into(), initial?), // DW_CFA_restore
            _ => match dw::DwCfa(byte) {
                dw::DW_CFA_nop => {}
                dw::DW_CFA_def_cfa_offset => {
                    let offset = self.program.unsigned()?.cast_signed();
                    self.cfa_offset(offset)?;
                }
                dw::DW_CFA_advance_loc1 => return self.program.u8().map(u64::from),
                dw::DW_CFA_advance_loc2 => return self.program.u16().map(u64::from),
                dw::DW_CFA_def_cfa => {
                    let register = self.program.register()?;
                    let offset = self.program.unsigned()?.cast_signed();
                    self.cfa(Cfa::register(register, offset));
                }
                dw::DW_CFA_def_cfa_register => {
                    let register = self.program.register()?;
                    let Cfa::Register(_, offset) = self.state.cfa else {
                        return None;
                    };
                    self.cfa(Cfa::Register(register, offset));
                }
                dw::DW_CFA_remember_state => {
                    if self.remembered.len() >= MAX_REMEMBERED {
                        return None;
                    }
                    self.remembered.push(self.state);
                }
                dw::DW_CFA_restore_state => {
                    self.state = self.remembered.pop()?;
                    self.change = Change::State;
                }
                _ => return self.rare(byte, initial),
            },
        }
        Some(0)
    }

    /// The other instructions.
    #[inline(never)]
    fn rare(&mut self, byte: u8, initial: Option<&State>) -> Option<u64> {
        match dw::DwCfa(byte) {
            dw::DW_CFA_advance_loc4 => return self.program.u32().map(u64::from),
            dw::DW_CFA_def_cfa_sf => {
                let register = self.program.register()?;
                let offset = self.factored_signed()?;
                self.cfa(Cfa::register(register, offset));
            }
            dw::DW_CFA_def_cfa_offset_sf => {
                let offset = self.factored_signed()?;
                self.cfa_offset(offset)?;
            }
            dw::DW_CFA_def_cfa_expression => {
                let expression = self.program.block()?;
                self.cfa(Cfa::expression(expression));
            }
            dw::DW_CFA_undefined => self.save_next(|_| Some(Saved::Undefined))?,
            dw::DW_CFA_same_value => self.save_next(|_| Some(Saved::Same))?,
            dw::DW_CFA_offset_extended => {
                self.save_next(|this| Some(Saved::offset(this.factored_unsigned()?)))?;
            }
            dw::DW_CFA_offset_extended_sf => {
                self.save_next(|this| Some(Saved::offset(this.factored_signed()?)))?;
            }
            dw::DW_CFA_expression => self.save_next(|this| this.program.block().map(Saved::expression))?,
            dw::DW_CFA_val_expression => self.save_next(|this| this.program.block().map(|_| Saved::Other))?,
            dw::DW_CFA_register => self.save_next(|this| this.program.register().map(Saved::Register))?,
            dw::DW_CFA_val_offset => self.save_next(|this| this.program.unsigned().map(|_| Saved::Other))?,
            dw::DW_CFA_val_offset_sf => self.save_next(|this| this.program.signed().map(|_| Saved::Other))?,
            dw::DW_CFA_restore_extended => {
                let register = self.program.register()?;
                self.restore(register, initial?);
            }
            dw::DW_CFA_GNU_args_size => {
                self.program.unsigned()?;
            }
            _ => return None,
        }
        Some(0)
    }

    #[inline]
    fn factored_unsigned(&mut self) -> Option<i64> {
        Some(
            self.program
                .unsigned()?
                .cast_signed()
                .wrapping_mul(self.data_alignment),
        )
    }

    fn factored_signed(&mut self) -> Option<i64> {
        Some(self.program.signed()?.wrapping_mul(self.data_alignment))
    }

    #[inline]
    fn cfa(&mut self, cfa: Cfa) {
        self.state.cfa = cfa;
        self.change = Change::State;
    }

    #[inline]
    fn cfa_offset(&mut self, new: i64) -> Option<()> {
        let Cfa::Register(_, offset) = &mut self.state.cfa else {
            return None;
        };
        *offset = i32::try_from(new).ok();
        if self.change == Change::Nothing {
            self.change = Change::Offset;
        }
        Some(())
    }

    #[inline]
    fn save(&mut self, register: u16, saved: Saved) {
        match register {
            RA => self.state.ra = saved,
            RBP => self.state.bp = saved,
            RBX => self.state.bx = saved,
            _ => return,
        }
        self.change = Change::State;
    }

    /// Saves the register that comes next as what follows says.
    fn save_next(&mut self, saved: impl FnOnce(&mut Self) -> Option<Saved>) -> Option<()> {
        let register = self.program.register()?;
        let saved = saved(self)?;
        self.save(register, saved);
        Some(())
    }

    #[inline]
    fn restore(&mut self, register: u16, initial: &State) {
        match register {
            RA => self.save(RA, initial.ra),
            RBP => self.save(RBP, initial.bp),
            RBX => self.save(RBX, initial.bx),
            _ => {}
        }
    }
}
