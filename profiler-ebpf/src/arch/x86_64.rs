//! x86_64: where the kernel keeps a thread's registers, and how to tell its modes apart.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::PerfEventContext,
};
use profiler_common::arch::{REGISTERS, Registers};

use crate::{patched::Patched, task::Task};

/// Where the user registers lie in a thread's kernel stack; 0 where the kernel says it itself (`bpf_task_pt_regs`, since Linux 5.15). The
/// verifier knows the value and looks at one branch only, so that it never meets a helper that its kernel lacks.
#[unsafe(no_mangle)]
static SAVED_REGISTERS: Patched<u32> = Patched::new(10);

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
    /// A 64-bit program with these registers.
    Native(Registers),
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
        return classify(unsafe { &(*ctx.ctx).regs }, leaf);
    }
    let saved = match SAVED_REGISTERS.get() {
        // SAFETY: both helpers are without preconditions; the result is the top of the current kernel stack.
        0 => (unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) }) as *const pt_regs,
        offset => Task::current().stack().wrapping_byte_add(offset as usize).cast(),
    };
    // A copy, although the verifier would allow plain loads: LLVM merges those with the loads above, and the verifier wants each
    // load to be of one kind of memory.
    // SAFETY: the helper checks the address and fails instead of faulting.
    match unsafe { bpf_probe_read_kernel(saved) } {
        Ok(regs) => classify(&regs, leaf),
        Err(_) => UserMode::None,
    }
}

#[inline(always)]
fn classify(regs: &pt_regs, leaf: &mut [u64; REGISTERS]) -> UserMode {
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
    UserMode::Native(Registers {
        ip: regs.rip,
        sp: regs.rsp,
        bp: regs.rbp,
    })
}
