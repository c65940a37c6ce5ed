//! x86_64: System V ABI, AMD64 supplement, section 3.2.2 (the stack frame).

/// The registers a walk carries from frame to frame.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Instruction pointer: of the leaf where it was sampled, of a caller its return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, `rbp`.
    pub bp: u64,
    /// `rbx`, or 0 where nobody knows any more. The dynamic linker finds its frame with it while it looks up a function.
    pub bx: u64,
}

/// DWARF number of `rbx`.
pub const RBX: u8 = 3;

/// Bytes of the pair that `push %rbp; mov %rsp,%rbp` leaves at the frame pointer: saved `rbp`, return address.
pub const FRAME_RECORD: u64 = 16;

/// Bytes of a word on the stack.
pub const WORD: u64 = 8;

/// Bytes below the stack pointer that a function may use, section 3.2.2 of the ABI. Call frame information counts on them too: at the end
/// of a function it says of a register that was just popped that it lies where it was popped from.
pub const RED_ZONE: u64 = 128;

/// Where the kernel saves the interrupted code's frame pointer below a signal handler: bytes above the stack pointer when the handler has
/// returned. There lies a `ucontext_t` with its `gregs` from byte 40 on, `REG_RBP` is number 10.
pub const SIGNAL_BP: u64 = 40 + 10 * WORD;
/// The same of its `rbx`: `REG_RBX`, number 11.
pub const SIGNAL_BX: u64 = 40 + 11 * WORD;
/// The same of its stack pointer: `REG_RSP`, number 15.
pub const SIGNAL_SP: u64 = 40 + 15 * WORD;
/// The same of its instruction pointer: `REG_RIP`, number 16.
pub const SIGNAL_IP: u64 = 40 + 16 * WORD;

/// Number of general registers, in the order of their DWARF numbers.
pub const REGISTERS: usize = 16;

/// First address behind user space with five-level page tables; whatever points above is no user address.
pub const USER_LIMIT: u64 = 1 << 56;
