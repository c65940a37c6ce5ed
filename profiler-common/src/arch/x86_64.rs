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
}

/// Bytes of the pair that `push %rbp; mov %rsp,%rbp` leaves at the frame pointer: saved `rbp`, return address.
pub const FRAME_RECORD: u64 = 16;

/// First address behind user space with five-level page tables; whatever points above is no user address.
pub const USER_LIMIT: u64 = 1 << 56;
