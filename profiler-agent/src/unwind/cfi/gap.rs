//! Code between the functions that call frame information speaks of.
//!
//! The C compiler adds a few functions of its own to every program and library (`_init`, `_fini`, `frame_dummy`, `__do_global_dtors_aux` …),
//! and the C library leaves out the instructions around the system calls that return twice (`clone3`). Nothing is said of these, and their
//! frame pointer is their caller's.
//!
//! Their instructions are read, and the stack pointer is followed through them: through functions that are made of the few kinds of
//! instructions in [`SHAPES`] from the first to the last and come to each with one depth of the stack. Nothing is said of any other.
//!
//! A function that returns has its return address on top of the stack then, from which the depth at each of its instructions follows. So it does
//! not matter whether all of it lies here, or only its end.

use std::ops::Range;

use profiler_common::row::{Base, Rule, SavedBp, SavedBx};

/// Most bytes between two functions that are read; those of the C compiler have some 200. More is there where whole files are not described.
const LONGEST: u64 = 512;

/// Most gaps of one file that are read; libcrypto has 31.
pub(super) const MOST: usize = 256;

/// Functions begin at multiples of this.
const ALIGN: u64 = 16;

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing that matters here: what it calls comes back with the same stack and frame pointer.
    None,
    /// Nothing, and stands between functions too.
    Pad,
    PushBp,
    PopBp,
    /// Copies the stack pointer to the frame pointer.
    BpIsSp,
    /// Moves the stack pointer down by its last byte,
    Down,
    /// or up.
    Up,
    /// Goes elsewhere, by its last byte or its last four, or not.
    Branch,
    /// The same without a choice.
    Jump,
    /// Leaves the function for another,
    Leave,
    /// or returns.
    Return,
}

/// An instruction: its first bytes, the operand bytes that follow, and what it does.
type Shape = (&'static [u8], usize, Effect);

const SHAPES: &[Shape] = &[
    (&[0xf3, 0x0f, 0x1e, 0xfa], 0, Effect::None), // endbr64
    (&[0x55], 0, Effect::PushBp),
    (&[0x5d], 0, Effect::PopBp),
    (&[0x48, 0x89, 0xe5], 0, Effect::BpIsSp), // mov rbp, rsp
    (&[0x48, 0x83, 0xec], 1, Effect::Down),   // sub rsp, …
    (&[0x48, 0x83, 0xc4], 1, Effect::Up),     // add rsp, …
    (&[0x48, 0x8d, 0x05], 4, Effect::None),   // lea rax, [rip + …]
    (&[0x48, 0x8d, 0x35], 4, Effect::None),   // lea rsi
    (&[0x48, 0x8d, 0x3d], 4, Effect::None),   // lea rdi
    (&[0x48, 0x8b, 0x05], 4, Effect::None),   // mov rax, [rip + …]
    (&[0x48, 0x8b, 0x3d], 4, Effect::None),   // mov rdi
    (&[0xb8], 4, Effect::None),               // mov eax, …
    (&[0xbe], 4, Effect::None),               // mov esi
    (&[0xbf], 4, Effect::None),               // mov edi
    (&[0x48, 0x89, 0xf0], 0, Effect::None),   // mov rax, rsi
    (&[0x48, 0x29, 0xfe], 0, Effect::None),   // sub rsi, rdi
    (&[0x48, 0x81, 0xee], 4, Effect::None),   // sub rsi, …
    (&[0x48, 0x01, 0xc6], 0, Effect::None),   // add rsi, rax
    (&[0x48, 0xc1, 0xee], 1, Effect::None),   // shr rsi
    (&[0x48, 0xc1, 0xe8], 1, Effect::None),   // shr rax
    (&[0x48, 0xc1, 0xf8], 1, Effect::None),   // sar rax
    (&[0x48, 0xc1, 0xfe], 1, Effect::None),   // sar rsi
    (&[0x48, 0xd1, 0xfe], 0, Effect::None),   // sar rsi, 1
    (&[0x48, 0x39, 0xf8], 0, Effect::None),   // cmp rax, rdi
    (&[0x48, 0x3d], 4, Effect::None),         // cmp rax, …
    (&[0x80, 0x3d], 5, Effect::None),         // cmp byte [rip + …], …
    (&[0x48, 0x83, 0x3d], 5, Effect::None),   // cmp qword [rip + …], …
    (&[0x48, 0x85, 0xc0], 0, Effect::None),   // test rax, rax
    (&[0xc6, 0x05], 5, Effect::None),         // mov byte [rip + …], …
    (&[0xe8], 4, Effect::None),               // call
    (&[0xff, 0x15], 4, Effect::None),         // call [rip + …]
    (&[0xff, 0xd0], 0, Effect::None),         // call rax
    (&[0x0f, 0x05], 0, Effect::None),         // syscall
    (&[0x0f, 0x8c], 4, Effect::Branch),       // jl
    (&[0x0f, 0x84], 4, Effect::Branch),       // je
    (&[0x74], 1, Effect::Branch),             // je
    (&[0x75], 1, Effect::Branch),             // jne
    (&[0x7c], 1, Effect::Branch),             // jl
    (&[0xeb], 1, Effect::Jump),
    (&[0xe9], 4, Effect::Jump),
    (&[0xff, 0xe0], 0, Effect::Leave), // jmp rax
    (&[0x3e, 0xff, 0xe0], 0, Effect::Leave),
    (&[0xff, 0x25], 4, Effect::Leave),  // jmp [rip + …]
    (&[0xc3], 0, Effect::Return),       // ret
    (&[0xf3, 0xc3], 0, Effect::Return), // rep ret
    (&[0x90], 0, Effect::Pad),
    (&[0x0f, 0x1f, 0x00], 0, Effect::Pad),
    (&[0x0f, 0x1f, 0x40], 1, Effect::Pad),
    (&[0x0f, 0x1f, 0x44, 0x00], 1, Effect::Pad),
    (&[0x0f, 0x1f, 0x80], 4, Effect::Pad),
    (&[0x0f, 0x1f, 0x84, 0x00], 4, Effect::Pad),
    (&[0x2e, 0x0f, 0x1f, 0x84, 0x00], 4, Effect::Pad),
    (&[0x00], 0, Effect::Pad), // never executed
];

/// An instruction that makes the one behind it longer and does nothing to a `nop`.
const OPERAND_SIZE: u8 = 0x66;

/// Where the stack stands at an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Depth {
    /// Bytes from the stack pointer up to the canonical frame address.
    frame: u8,
    /// How far below that the caller's frame pointer is, if it has been pushed.
    bp: Option<u8>,
}

impl Depth {
    /// At the first instruction of a function.
    const ENTRY: Self = Self { frame: 8, bp: None };

    const fn rule(self) -> Rule {
        Rule::Cfa {
            base: Base::Sp,
            offset: self.frame as i32,
            bp: match self.bp {
                Some(below) => SavedBp::AtCfa(-(below as i16)),
                None => SavedBp::Same,
            },
            bx: SavedBx::Same,
        }
    }

    fn after(self, effect: Effect, operand: u8) -> Option<Self> {
        let Self { frame, bp } = self;
        Some(match effect {
            Effect::PushBp if bp.is_none() => {
                let frame = frame.checked_add(8)?;
                Self {
                    frame,
                    bp: Some(frame),
                }
            }
            Effect::PopBp if bp == Some(frame) => Self {
                frame: frame.checked_sub(8)?,
                bp: None,
            },
            Effect::BpIsSp if bp.is_some() => self,
            Effect::Down if operand.is_multiple_of(8) && operand < 0x80 => Self {
                frame: frame.checked_add(operand)?,
                bp,
            },
            Effect::Up if operand.is_multiple_of(8) && operand < 0x80 => Self {
                frame: frame
                    .checked_sub(operand)
                    .filter(|&frame| frame >= bp.unwrap_or(8))?,
                bp,
            },
            Effect::None | Effect::Pad | Effect::Branch | Effect::Jump => self,
            Effect::Leave | Effect::Return if self == Self::ENTRY => self,
            Effect::PushBp
            | Effect::PopBp
            | Effect::BpIsSp
            | Effect::Down
            | Effect::Up
            | Effect::Leave
            | Effect::Return => return None,
        })
    }
}

/// What to read of the bytes from one function's end to the next one's start: nothing where they are there to align that.
pub(super) fn readable(start: u64, end: u64) -> Range<u64> {
    let is_padding = [2, 4, 8, 16, 32, 64]
        .into_iter()
        .any(|align| end - start < align && end.is_multiple_of(align));
    if is_padding {
        start..start
    } else {
        start..end.min(start.saturating_add(LONGEST))
    }
}

/// The rules of the code in `bytes`, which lies at `start`: addresses, and the rule from there on. The last is [`Rule::None`], where no more
/// is known.
pub(super) fn rules(start: u64, bytes: &[u8]) -> Vec<(u64, Rule)> {
    let mut rules = Vec::new();
    let mut at = padding(bytes);
    while at < bytes.len() {
        let from = start + at as u64;
        let rest = bytes.get(at..).unwrap_or_default();
        let begins_here = at > 0 || start.is_multiple_of(ALIGN);
        let Some(function) = function(rest).filter(|function| function.returns || begins_here) else {
            break;
        };
        let known = function.depths.iter();
        rules.extend(known.map(|(offset, depth)| (from + *offset as u64, depth.rule())));
        at += function.len;
        at += padding(bytes.get(at..).unwrap_or_default());
    }
    rules.push((start + at as u64, Rule::None));
    rules
}

/// A function that is understood.
#[derive(Debug, Default)]
struct Function {
    len: usize,
    /// Where its depth changes.
    depths: Vec<(usize, Depth)>,
    /// Whether it returns; others only go on elsewhere.
    returns: bool,
}

/// Bytes of padding that `bytes` begin with.
fn padding(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some((len, Effect::Pad, _)) = bytes.get(at..).and_then(instruction) {
        at += len;
    }
    at
}

/// The function that `bytes` begin with, if all of it is understood.
fn function(bytes: &[u8]) -> Option<Function> {
    let mut function = Function::default();
    // Where branches lead that have not been come to, with the depth they bring.
    let mut targets: Vec<(usize, Depth)> = Vec::new();
    let mut seen: Vec<(usize, Depth)> = Vec::new();
    // None behind an instruction that does not go on.
    let mut depth = Some(Depth::ENTRY);
    let mut at = 0;
    loop {
        let brought = targets
            .extract_if(.., |(target, _)| *target == at)
            .map(|(_, depth)| depth);
        for brought in brought.collect::<Vec<_>>() {
            if depth.is_some_and(|depth| depth != brought) {
                return None;
            }
            depth = Some(brought);
        }
        let Some(here) = depth else {
            if targets.is_empty() {
                function.len = at;
                return Some(function);
            }
            // Padding before the target of a branch.
            let (len, Effect::Pad, _) = instruction(bytes.get(at..)?)? else {
                return None;
            };
            at += len;
            continue;
        };
        if at == bytes.len() {
            // It goes on in the next function, which begins here with a depth of its own.
            function.len = at;
            return (here == Depth::ENTRY && targets.is_empty()).then_some(function);
        }
        if function.depths.last().is_none_or(|(_, last)| *last != here) {
            function.depths.push((at, here));
        }
        seen.push((at, here));
        let (len, effect, operand) = instruction(bytes.get(at..)?)?;
        let after = here.after(effect, operand.to_le_bytes()[0])?;
        let next = at + len;
        if matches!(effect, Effect::Branch | Effect::Jump) {
            match usize::try_from(i64::try_from(next).ok()? + i64::from(operand)) {
                Ok(target) if target > at && target < bytes.len() => targets.push((target, after)),
                // Back to where it has been,
                Ok(target) if seen.contains(&(target, after)) => {}
                Ok(target) if target <= at => return None,
                // or to another function, as which it then goes on.
                _ if after == Depth::ENTRY => {}
                _ => return None,
            }
        }
        function.returns |= effect == Effect::Return;
        at = next;
        depth = (!matches!(effect, Effect::Jump | Effect::Leave | Effect::Return)).then_some(after);
    }
}

/// Length and effect of the instruction that `bytes` begin with, and its last operand.
fn instruction(bytes: &[u8]) -> Option<(usize, Effect, i32)> {
    let prefixes = bytes.iter().take_while(|&&byte| byte == OPERAND_SIZE).count();
    let rest = bytes.get(prefixes..)?;
    let (head, operands, effect) = *SHAPES.iter().find(|(head, ..)| rest.starts_with(head))?;
    if prefixes > 0 && effect != Effect::Pad {
        return None;
    }
    let operand = rest.get(head.len()..head.len() + operands)?;
    let operand = match *operand {
        [byte] => byte.cast_signed().into(),
        [a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    Some((prefixes + head.len() + operands, effect, operand))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The depth at each address that has one.
    fn depths(start: u64, bytes: &[u8]) -> Vec<(u64, Option<i32>)> {
        let offset = |rule| {
            if let Rule::Cfa { offset, .. } = rule {
                Some(offset)
            } else {
                None
            }
        };
        let rules = rules(start, bytes);
        rules
            .into_iter()
            .map(|(address, rule)| (address, offset(rule)))
            .collect()
    }

    /// `deregister_tm_clones` to `frame_dummy` of libaudit, as Debian 12 has them.
    const CRT: &[u8] = include_bytes!("../../../tests/fixtures/unwind/crt.bin");

    #[test]
    fn functions_of_the_compiler_are_known() {
        let known = depths(0x3600, CRT);
        assert_eq!(
            known,
            [
                (0x3600, Some(8)),
                (0x3630, Some(8)),
                (0x3670, Some(8)),
                (0x367e, Some(16)), // behind push rbp
                (0x36a4, Some(8)),  // behind pop rbp
                (0x36b0, Some(8)),
                (0x36c0, None),
            ]
        );
        let pushed = rules(0x3600, CRT)[3].1;
        assert!(
            matches!(
                pushed,
                Rule::Cfa {
                    bp: SavedBp::AtCfa(-16),
                    ..
                }
            ),
            "{pushed:?}"
        );
    }

    #[test]
    fn a_system_call_that_returns_twice_is_known() {
        // clone3 of the C library: syscall; test rax, rax; jl …; je …; ret
        let bytes = [0x0f, 0x05, 0x48, 0x85, 0xc0, 0x7c, 0x18, 0x74, 0x01, 0xc3];
        assert_eq!(depths(0x98d7, &bytes), [(0x98d7, Some(8)), (0x98e1, None)]);
    }

    #[test]
    fn what_is_not_understood_to_its_end_is_not_known() {
        let ret = 0xc3;
        for (what, bytes) in [
            ("it pops what it has not pushed", &[0x5d, ret][..]),
            (
                "it returns in the middle of its frame",
                &[0x48, 0x83, 0xec, 8, ret],
            ),
            ("another instruction", &[0x55, 0x41, 0x54, ret]),
            ("it ends in the middle", &[0x55]),
            ("two depths at one place", &[0x74, 1, 0x55, 0x5d, ret]),
            (
                "into the middle of an instruction",
                &[0x74, 1, 0x48, 0x85, 0xc0, ret],
            ),
            ("backwards with another depth", &[0x90, 0x55, 0xeb, 0xfd]),
            ("out of the gap with a frame", &[0x55, 0xe9, 0, 1, 0, 0]),
            ("the frame pointer for something else", &[0x48, 0x89, 0xe5, ret]),
            (
                "a negative number",
                &[0x48, 0x83, 0xec, 0xf8, 0x48, 0x83, 0xc4, 0xf8, ret],
            ),
        ] {
            assert_eq!(depths(0x1000, bytes).last().unwrap().1, None, "{what}");
            assert!(depths(0x1000, bytes).len() == 1, "{what}");
        }
        // Something may have been pushed before, and be popped behind the jump.
        let jumps = [0xeb, 0x20];
        assert_eq!(depths(0x1001, &jumps), [(0x1001, None)]);
        assert_eq!(depths(0x1000, &jumps), [(0x1000, Some(8)), (0x1002, None)]);
        // What was understood before is known all the same.
        let bytes = [ret, 0x90, 0x55, 0x41];
        assert_eq!(depths(0x1000, &bytes), [(0x1000, Some(8)), (0x1002, None)]);
    }
}
