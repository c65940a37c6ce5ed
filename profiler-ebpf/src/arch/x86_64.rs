//! x86_64: where the kernel keeps a thread's registers, and how to tell its modes apart.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::PerfEventContext,
};
use profiler_common::{
    arch::{REGISTERS, Registers},
    unwind::{Frame, Origin},
};

/// Lowest two bits of `cs`: the privilege level, 3 in user mode.
const PRIVILEGE: u64 = 3;
/// `__USER_CS`: 64-bit user code. A 32-bit program runs on `__USER32_CS`, 0x23.
const USER_CS: u64 = 0x33;

/// What a thread was doing in user space.
pub enum UserMode {
    /// It has no user space: a kernel thread.
    None,
    /// A 32-bit program.
    Compat,
    /// A 64-bit program in this frame.
    Native(Frame),
}

/// Whether the tick hit kernel code.
#[inline(always)]
pub fn in_kernel(ctx: &PerfEventContext) -> bool {
    // SAFETY: the context of a perf event program is valid while it runs.
    unsafe { (*ctx.ctx).regs.cs & PRIVILEGE == 0 }
}

/// The user registers of the sampled thread: those of the tick itself when it hit user code, else those saved on entry
/// to the kernel. All of them go to `leaf`.
#[inline(always)]
pub fn user_mode(ctx: &PerfEventContext, in_kernel: bool, leaf: &mut [u64; REGISTERS]) -> UserMode {
    if !in_kernel {
        // SAFETY: the context of a perf event program is valid while it runs.
        return classify(unsafe { &(*ctx.ctx).regs }, false, leaf);
    }
    // SAFETY: both helpers are without preconditions; the result is the top of the current kernel stack.
    let saved = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    // A copy, although the verifier would allow plain loads: LLVM merges those with the loads above, and the verifier wants each
    // load to be of one kind of memory.
    // SAFETY: the helper checks the address and fails instead of faulting.
    match unsafe { bpf_probe_read_kernel(saved) } {
        Ok(regs) => classify(&regs, true, leaf),
        Err(_) => UserMode::None,
    }
}

#[inline(always)]
fn classify(regs: &pt_regs, in_kernel: bool, leaf: &mut [u64; REGISTERS]) -> UserMode {
    if regs.cs & PRIVILEGE == 0 {
        return UserMode::None;
    }
    if regs.cs != USER_CS {
        return UserMode::Compat;
    }
    // By DWARF number: System V ABI, AMD64 supplement, figure 3.36.
    *leaf = [
        regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    let registers = Registers {
        ip: regs.rip,
        sp: regs.rsp,
        bp: regs.rbp,
        bx: regs.rbx,
    };
    // On entry to the kernel the number of the system call stands here; -1 is an interrupt or a fault. In user mode there is no entry.
    let in_call = in_kernel && regs.orig_rax.cast_signed() >= 0;
    let origin = if in_call {
        Origin::IN_CALL
    } else {
        Origin::INNERMOST
    };
    UserMode::Native(Frame { registers, origin })
}
