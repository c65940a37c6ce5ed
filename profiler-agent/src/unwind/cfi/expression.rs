//! Expressions: what little of DWARF's calculator compilers and linkers use to say where a frame is.

use gimli::{EndianSlice, Expression, LittleEndian, Operation, X86_64};
use profiler_common::row::Base;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// How an expression says where the canonical frame address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cfa {
    /// That far above a word near a register.
    Word(Base, i32),
    /// One or two words up, by the place in a stub of the procedure linkage table.
    Plt(u8),
}

/// What an expression for the canonical frame address says.
pub(super) fn cfa(expression: &[u8]) -> Option<Cfa> {
    match *operations(expression)?.as_slice() {
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
        ] => u8::try_from(from).ok().filter(|&from| from < 16).map(Cfa::Plt),
        [at, Operation::Deref { space: false, .. }] => Some(Cfa::Word(dereferenced(&at)?, 0)),
        [
            at,
            Operation::Deref { space: false, .. },
            Operation::PlusConstant { value },
        ] => Some(Cfa::Word(dereferenced(&at)?, i32::try_from(value).ok()?)),
        _ => None,
    }
}

/// How far above the frame pointer a register is saved, if an expression says that.
pub(super) fn at_bp(expression: &[u8]) -> Option<i16> {
    match *operations(expression)?.as_slice() {
        [
            Operation::RegisterOffset {
                register: X86_64::RBP,
                offset,
                ..
            },
        ] => i16::try_from(offset).ok(),
        _ => None,
    }
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
fn operations(expression: &[u8]) -> Option<Vec<Operation<Bytes<'_>>>> {
    const LONGEST: usize = 9;
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut operations = Expression(EndianSlice::new(expression, LittleEndian)).operations(encoding);
    let mut found = Vec::new();
    while let Some(operation) = operations.next().ok()? {
        found.push(operation);
        if found.len() > LONGEST {
            return None;
        }
    }
    Some(found)
}
