//! The unwind step against a model: stacks laid out by the ABI's rules, and memory that follows none.

use profiler_common::{
    Outcome,
    arch::{Registers, USER_LIMIT},
    unwind::{Memory, Rule, step},
};
use proptest::prelude::*;

/// Words of a stack, the lowest address first.
struct Stack {
    base: u64,
    words: Vec<u64>,
}

impl Memory for Stack {
    fn pair(&mut self, address: u64) -> Option<[u64; 2]> {
        let index = usize::try_from(address.checked_sub(self.base)? / 8).ok()?;
        Some([*self.words.get(index)?, *self.words.get(index + 1)?])
    }
}

/// Walks to the end, as the kernel program does.
fn walk(mut registers: Registers, stack: &mut Stack, limit: usize) -> (Vec<u64>, Outcome) {
    let mut frames = Vec::new();
    loop {
        if frames.len() == limit {
            return (frames, Outcome::Truncated);
        }
        frames.push(registers.ip);
        match step(registers, Rule::FramePointer, stack) {
            Ok(caller) => registers = caller,
            Err(outcome) => return (frames, outcome),
        }
    }
}

const BASE: u64 = 0x7ffc_0000_0000;

/// A stack of functions that each keep `locals` words below their frame record, as compilers lay them out; and the registers
/// of the innermost.
fn lay_out(functions: &[(u64, usize)]) -> (Stack, Registers) {
    let mut words = vec![0; 4];
    let mut records = Vec::new();
    for &(_, locals) in functions {
        words.extend(std::iter::repeat_n(0xdead_beef_dead_beef, locals));
        records.push(words.len());
        words.extend([0, 0]);
    }
    for (index, &record) in records.iter().enumerate() {
        // The record of each function holds where its caller's is, and an address in the caller.
        words[record] = records
            .get(index + 1)
            .map_or(0, |caller| BASE + 8 * *caller as u64);
        words[record + 1] = functions.get(index + 1).map_or(0, |&(ip, _)| ip);
    }
    let leaf = Registers {
        ip: functions[0].0,
        sp: BASE,
        bp: BASE + 8 * records[0] as u64,
    };
    (Stack { base: BASE, words }, leaf)
}

#[test]
fn the_end_of_the_chain_is_the_end_of_the_thread() {
    let (mut stack, leaf) = lay_out(&[(0x1000, 3), (0x2000, 0), (0x3000, 9)]);
    assert_eq!(
        walk(leaf, &mut stack, 100),
        (vec![0x1000, 0x2000, 0x3000], Outcome::Complete)
    );
}

#[test]
fn a_frame_pointer_of_zero_ends_it_at_once() {
    let mut stack = Stack {
        base: BASE,
        words: Vec::new(),
    };
    let leaf = Registers {
        ip: 0x1000,
        sp: BASE,
        bp: 0,
    };
    assert_eq!(walk(leaf, &mut stack, 100), (vec![0x1000], Outcome::Complete));
}

#[test]
fn what_is_no_frame_pointer_is_told_from_what_cannot_be_read() {
    let mut stack = Stack {
        base: BASE,
        words: vec![0; 8],
    };
    for (bp, outcome) in [
        (BASE - 8, Outcome::BadFramePointer),   // below the stack pointer
        (BASE + 4, Outcome::BadFramePointer),   // not aligned
        (USER_LIMIT, Outcome::BadFramePointer), // not user space
        (u64::MAX - 7, Outcome::BadFramePointer),
        (BASE + 0x1000, Outcome::Unreadable), // behind the end of the stack
        (BASE + 56, Outcome::Unreadable),     // half of a record
    ] {
        let leaf = Registers {
            ip: 0x1000,
            sp: BASE,
            bp,
        };
        assert_eq!(walk(leaf, &mut stack, 100), (vec![0x1000], outcome), "{bp:#x}");
    }
}

#[test]
fn a_return_address_outside_user_space_is_none() {
    let mut stack = Stack {
        base: BASE,
        words: vec![BASE + 16, USER_LIMIT + 5, 0, 0],
    };
    let leaf = Registers {
        ip: 0x1000,
        sp: BASE,
        bp: BASE,
    };
    assert_eq!(
        walk(leaf, &mut stack, 100),
        (vec![0x1000], Outcome::BadFramePointer)
    );
}

proptest! {
    /// Every stack that compilers lay out is found whole, or as far as the limit allows.
    #[test]
    fn laid_out_stacks_are_found_whole(
        functions in prop::collection::vec((1_u64..USER_LIMIT, 0_usize..40), 1..200),
        limit in 1_usize..250,
    ) {
        let (mut stack, leaf) = lay_out(&functions);
        let (frames, outcome) = walk(leaf, &mut stack, limit);
        let expected: Vec<u64> = functions.iter().map(|&(ip, _)| ip).take(limit).collect();
        prop_assert_eq!(frames, expected);
        prop_assert_eq!(outcome, if functions.len() >= limit && limit < functions.len() + 1 { Outcome::Truncated } else { Outcome::Complete });
    }

    /// Whatever the memory holds, each step goes up, so that every walk ends.
    #[test]
    fn every_walk_goes_up_and_ends(
        words in prop::collection::vec(prop_oneof![
            any::<u64>(),
            (0_u64..64).prop_map(|word| BASE + 8 * word),
            Just(0),
        ], 0..64),
        bp in prop_oneof![any::<u64>(), (0_u64..64).prop_map(|word| BASE + 8 * word)],
        sp in prop_oneof![any::<u64>(), Just(BASE)],
    ) {
        let mut stack = Stack { base: BASE, words };
        let mut registers = Registers { ip: 1, sp, bp };
        for _ in 0..=64 {
            match step(registers, Rule::FramePointer, &mut stack) {
                Ok(caller) => {
                    prop_assert!(caller.sp > registers.sp);
                    registers = caller;
                }
                Err(_) => return Ok(()),
            }
        }
        prop_assert!(false, "64 words hold more than 64 frames");
    }
}
