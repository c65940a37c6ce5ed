//! x86_64: where the kernel keeps a thread's registers, and how to tell its modes apart.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
    },
    programs::PerfEventContext,
};
use profiler_common::{arch::Registers, unwind::Origin};

use crate::{
    maps::{SCRATCH, Scratch},
    patched::Patched,
    task::Task,
};

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
    /// A 64-bit program; its frame and all its registers are in scratch.
    Native,
}

/// Whether the tick hit kernel code.
#[inline(always)]
pub fn in_kernel(ctx: &PerfEventContext) -> bool {
    // SAFETY: the context of a perf event program is valid while it runs.
    unsafe { (*ctx.ctx).regs.cs & PRIVILEGE == 0 }
}

/// The user registers of the sampled thread: those of the tick itself when it hit user code, else those saved on entry
/// to the kernel. They go to `scratch`.
#[inline(always)]
pub fn user_mode(ctx: &PerfEventContext, in_kernel: bool, slot: u32, scratch: &mut Scratch) -> UserMode {
    if !in_kernel {
        // SAFETY: the context of a perf event program is valid while it runs.
        return classify(unsafe { &(*ctx.ctx).regs }, false, scratch);
    }
    match saved_registers(slot) {
        NATIVE => UserMode::Native,
        COMPAT => UserMode::Compat,
        _ => UserMode::None,
    }
}

/// What [`saved_registers`] found, but for [`UserMode::None`].
const NATIVE: u32 = 1;
const COMPAT: u32 = 2;

/// Leaves the frame in which the thread entered the kernel in scratch. A global function: the registers take a third of a BPF stack, and
/// LLVM would merge the look at them with that at the context, which are two kinds of memory to the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn saved_registers(slot: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: a slot of this CPU's own, in use by this program alone.
    let scratch = unsafe { &mut *scratch };
    let saved = match SAVED_REGISTERS.get() {
        // SAFETY: both helpers are without preconditions; the result is the top of the current kernel stack.
        0 => (unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) }) as *const pt_regs,
        offset => Task::current().stack().wrapping_byte_add(offset as usize).cast(),
    };
    // SAFETY: the helper checks the address and fails instead of faulting.
    let Ok(regs) = (unsafe { bpf_probe_read_kernel(saved) }) else {
        return 0;
    };
    match classify(&regs, true, scratch) {
        UserMode::None => 0,
        UserMode::Compat => COMPAT,
        UserMode::Native => NATIVE,
    }
}

#[inline(always)]
fn classify(regs: &pt_regs, in_kernel: bool, scratch: &mut Scratch) -> UserMode {
    if regs.cs & PRIVILEGE == 0 {
        return UserMode::None;
    }
    if regs.cs != USER_CS {
        return UserMode::Compat;
    }
    // By DWARF number: System V ABI, AMD64 supplement, figure 3.36. One by one: of an array LLVM holds all parts at a time, most of them on the stack.
    scratch.leaf[0] = regs.rax;
    scratch.leaf[1] = regs.rdx;
    scratch.leaf[2] = regs.rcx;
    scratch.leaf[3] = regs.rbx;
    scratch.leaf[4] = regs.rsi;
    scratch.leaf[5] = regs.rdi;
    scratch.leaf[6] = regs.rbp;
    scratch.leaf[7] = regs.rsp;
    scratch.leaf[8] = regs.r8;
    scratch.leaf[9] = regs.r9;
    scratch.leaf[10] = regs.r10;
    scratch.leaf[11] = regs.r11;
    scratch.leaf[12] = regs.r12;
    scratch.leaf[13] = regs.r13;
    scratch.leaf[14] = regs.r14;
    scratch.leaf[15] = regs.r15;
    scratch.registers = Registers {
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
    scratch.origin = origin.bits();
    UserMode::Native
}
