//! The unwind step against a model: stacks laid out by the ABI's rules, and memory that follows none.

#![expect(clippy::indexing_slicing, reason = "a test may fail loudly")]

use profiler_common::{
    Outcome,
    arch::{Registers, USER_LIMIT},
    row::{Base, Rule, SavedBp, SavedBx},
    unwind::{Frame, Origin, Thread, step},
};
use proptest::prelude::*;

/// Words of a stack, the lowest address first.
struct Stack {
    base: u64,
    words: Vec<u64>,
}

impl Thread for Stack {
    fn word(&mut self, address: u64) -> Option<u64> {
        self.words
            .get(usize::try_from(address.checked_sub(self.base)? / 8).ok()?)
            .copied()
    }

    fn register(&mut self, _number: u8) -> Option<u64> {
        None
    }
}

/// Walks to the end, as the kernel program does.
fn walk(registers: Registers, stack: &mut Stack, limit: usize) -> (Vec<u64>, Outcome) {
    let mut frame = Frame::innermost(registers);
    let mut frames = Vec::new();
    loop {
        if frames.len() == limit {
            return (frames, Outcome::Truncated);
        }
        frames.push(frame.registers.ip);
        match step(frame, Rule::FramePointer, stack) {
            Ok(caller) => frame = caller,
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
        bx: 7,
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
fn a_frame_pointer_of_zero_ends_it_but_says_nothing_of_the_innermost_frame() {
    let mut stack = Stack {
        base: BASE,
        words: Vec::new(),
    };
    let leaf = Registers {
        ip: 0x1000,
        sp: BASE,
        bp: 0,
        bx: 7,
    };
    assert_eq!(walk(leaf, &mut stack, 100), (vec![0x1000], Outcome::NoRule));
    for origin in [Origin::CALLED, Origin::CHAINED, Origin::INTERRUPTED] {
        let frame = Frame {
            registers: leaf,
            origin,
        };
        assert_eq!(
            step(frame, Rule::FramePointer, &mut stack),
            Err(Outcome::Complete)
        );
    }
}

#[test]
fn a_leaf_without_a_frame_has_its_return_address_on_top_of_the_stack() {
    let (mut stack, caller) = lay_out(&[(0x2000, 1), (0x3000, 0)]);
    stack.words[3] = 0x2000;
    let leaf = Registers {
        ip: 0x1000,
        sp: BASE + 24,
        ..caller
    };
    for (origin, ip) in [
        (Origin::INNERMOST, 0x2000),
        (Origin::IN_CALL, 0x2000),
        (Origin::INTERRUPTED, 0x2000),
        (Origin::CALLED, 0x3000),
        (Origin::CHAINED, 0x3000),
    ] {
        let frame = Frame {
            registers: leaf,
            origin,
        };
        let found = step(frame, Rule::Frameless, &mut stack).unwrap();
        assert_eq!(found.registers.ip, ip);
        if ip == 0x2000 {
            assert_eq!((found.registers.bp, found.registers.sp), (leaf.bp, BASE + 32));
        }
    }
}

#[test]
fn a_frame_pointer_may_lead_to_another_stack() {
    let (mut stack, leaf) = lay_out(&[(0x1000, 3), (0x2000, 0)]);
    let elsewhere = Registers {
        sp: BASE + (1 << 30),
        ..leaf
    };
    assert_eq!(
        walk(elsewhere, &mut stack, 100),
        (vec![0x1000, 0x2000], Outcome::Complete)
    );
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
            bx: 7,
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
        bx: 7,
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
        let whole = functions.len() <= limit;
        prop_assert_eq!(outcome, if whole { Outcome::Complete } else { Outcome::Truncated });
    }

    /// Whatever the memory holds, each step goes up or to another stack, so that every walk ends where its memory does.
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
        let mut frame = Frame::innermost(Registers { ip: 1, sp, bp, bx: 7 });
        for _ in 0..=64 {
            match step(frame, Rule::FramePointer, &mut stack) {
                Ok(caller) => {
                    let (from, to) = (frame.registers.sp, caller.registers.sp);
                    prop_assert!(to > from || from - to > 32 << 10, "{from:#x} to {to:#x}");
                    frame = caller;
                }
                Err(_) => return Ok(()),
            }
        }
        prop_assert!(false, "64 words hold more than 64 frames");
    }
}

/// A stack of words from `BASE` on, and a register that is known.
fn table_step(rule: Rule, words: &[u64], frame: Registers) -> Result<Frame, Outcome> {
    struct Leaf(Stack);
    impl Thread for Leaf {
        fn word(&mut self, address: u64) -> Option<u64> {
            self.0.word(address)
        }

        fn register(&mut self, number: u8) -> Option<u64> {
            (number == 10).then_some(BASE + 32)
        }
    }
    step(
        Frame::innermost(frame),
        rule,
        &mut Leaf(Stack {
            base: BASE,
            words: words.to_vec(),
        }),
    )
}

/// What lies in `rbx` all along.
const BX: u64 = BASE + 48;

fn caller(ip: u64, sp: u64, bp: u64) -> Result<Frame, Outcome> {
    Ok(Frame {
        registers: Registers { ip, sp, bp, bx: BX },
        origin: Origin::CALLED,
    })
}

#[test]
fn rules_of_the_tables_find_the_caller() {
    let frame = Registers {
        ip: 0x40_100b,
        sp: BASE,
        bp: BASE + 24,
        bx: BX,
    };
    let words = [BASE + 40, 0xb0, 0xa1, 0xb2, 0xa3, 0xb4, 0xa5, 0, 0];
    let cfa = |base, offset, bp| Rule::Cfa {
        base,
        offset,
        bp,
        bx: SavedBx::Same,
    };
    for (rule, expected) in [
        // push %rbx; sub … : the frame pointer is untouched
        (
            cfa(Base::Sp, 24, SavedBp::Same),
            caller(0xa1, BASE + 24, BASE + 24),
        ),
        // push %rbp: it lies below the return address
        (
            cfa(Base::Sp, 40, SavedBp::AtCfa(-16)),
            caller(0xa3, BASE + 40, 0xb2),
        ),
        // pushed later than other registers
        (
            cfa(Base::Sp, 40, SavedBp::AtCfa(-32)),
            caller(0xa3, BASE + 40, 0xb0),
        ),
        // mov %rsp,%rbp
        (
            cfa(Base::Bp, 16, SavedBp::AtCfa(-16)),
            caller(0xa3, BASE + 40, 0xb2),
        ),
        // a stack that was aligned: the frame address lies in memory, the caller's frame pointer under this one
        (
            cfa(Base::DerefBp(-24), 0, SavedBp::AtBp(0)),
            caller(0xa3, BASE + 40, 0xb2),
        ),
        (
            cfa(Base::DerefSp(0), 16, SavedBp::AtCfa(-16)),
            caller(0xa5, BASE + 56, 0xb4),
        ),
        // lea 8(%rsp),%r10
        (
            cfa(Base::Register(10), 8, SavedBp::Same),
            caller(0xa3, BASE + 40, BASE + 24),
        ),
        (
            cfa(Base::Register(11), 8, SavedBp::Same),
            Err(Outcome::UnsupportedRule),
        ),
        // a stub of the PLT before and behind its push: ip ends in b
        (Rule::Plt(12), caller(BASE + 40, BASE + 8, BASE + 24)),
        (Rule::Plt(11), caller(0xb0, BASE + 16, BASE + 24)),
        // vfork: pop %rdx
        (Rule::ReturnIn(10), caller(BASE + 32, BASE, BASE + 24)),
        (Rule::ReturnIn(11), Err(Outcome::UnsupportedRule)),
        (Rule::End, Err(Outcome::Complete)),
        (Rule::None, Err(Outcome::NoRule)),
        (Rule::Unsupported, Err(Outcome::UnsupportedRule)),
        // a return address of zero is how some threads begin
        (cfa(Base::Sp, 64, SavedBp::Same), Err(Outcome::Complete)),
        // a rule of another function
        (cfa(Base::Sp, 0, SavedBp::Same), Err(Outcome::BadRule)),
        (cfa(Base::Sp, 12, SavedBp::Same), Err(Outcome::BadRule)),
        (cfa(Base::DerefSp(8), 0, SavedBp::Same), Err(Outcome::BadRule)),
        (cfa(Base::DerefBp(4), 0, SavedBp::Same), Err(Outcome::BadRule)),
        (cfa(Base::Sp, 8000, SavedBp::Same), Err(Outcome::Unreadable)),
    ] {
        assert_eq!(table_step(rule, &words, frame), expected, "{rule:?}");
    }
}

#[test]
fn a_signal_handler_leads_back_to_what_it_interrupted() {
    let mut words = vec![0; 40];
    // ucontext_t: uc_flags, uc_link, uc_stack (3 words), then the registers; rbp is number 10, rbx 11, rsp 15, rip 16.
    words[5 + 10] = 0xbb;
    words[5 + 11] = 0xb5;
    words[5 + 15] = 0x5050;
    words[5 + 16] = 0x1111;
    let frame = Registers {
        ip: 0x40_1000,
        sp: BASE,
        bp: 1,
        bx: 3,
    };
    let interrupted = Registers {
        ip: 0x1111,
        sp: 0x5050,
        bp: 0xbb,
        bx: 0xb5,
    };
    assert_eq!(
        table_step(Rule::Signal, &words, frame),
        Ok(Frame {
            registers: interrupted,
            origin: Origin::INTERRUPTED,
        })
    );
    assert_eq!(
        table_step(Rule::Signal, &words[..10], frame),
        Err(Outcome::Unreadable)
    );
}

#[test]
fn rbx_is_carried_to_the_frame_that_is_found_with_it() {
    let rule = |base, offset, bx| Rule::Cfa {
        base,
        offset,
        bp: SavedBp::Same,
        bx,
    };
    let words = [1, BX, 0xa2, 3, 4, 0xa5, 6, 0xa7];
    let mut thread = Stack {
        base: BASE,
        words: words.to_vec(),
    };
    let frame = Frame {
        registers: Registers {
            ip: 1,
            sp: BASE,
            bp: 0,
            bx: 0,
        },
        origin: Origin::CALLED,
    };
    let by_rbx = rule(Base::Register(3), 0, SavedBx::Same);
    assert_eq!(step(frame, by_rbx, &mut thread), Err(Outcome::UnsupportedRule));
    // push %rbx
    let caller = step(frame, rule(Base::Sp, 24, SavedBx::Below(2)), &mut thread).unwrap();
    assert_eq!((caller.registers.ip, caller.registers.bx), (0xa2, BX));
    let outer = step(caller, by_rbx, &mut thread).unwrap();
    assert_eq!((outer.registers.ip, outer.registers.sp), (0xa5, BX));
    // What a function saved elsewhere is not guessed at, and code without tables may have done anything.
    let lost = step(caller, rule(Base::Sp, 24, SavedBx::Lost), &mut thread).unwrap();
    assert_eq!((lost.registers.ip, lost.registers.bx), (0xa5, 0));
}
