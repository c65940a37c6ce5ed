//! Where the kernel keeps the user registers of a thread that is in the kernel.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::btf::{Btf, BtfError};

/// How the programs find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedRegisters {
    /// The kernel says it (`bpf_task_pt_regs`, since Linux 5.15).
    Told,
    /// At this offset in the kernel stack of the thread.
    At(u32),
}

impl SavedRegisters {
    /// How it is on the running kernel.
    ///
    /// # Errors
    ///
    /// [`BtfError`] when its types do not say how large a register set is.
    pub fn of_running_kernel(btf: &Btf) -> Result<Self, BtfError> {
        let helpers = [
            BpfHelper::BPF_FUNC_task_pt_regs,
            BpfHelper::BPF_FUNC_get_current_task_btf,
        ];
        for helper in helpers {
            // A kernel that answers nothing will refuse the programs too, and say why.
            if matches!(is_helper_supported(ProgramType::PerfEvent, helper), Ok(false)) {
                tracing::debug!(
                    ?helper,
                    "this kernel does not say where it saves registers; taking them from the end of the kernel stack"
                );
                return Ok(Self::At(stack_len(btf).saturating_sub(btf.size("pt_regs")?)));
            }
        }
        Ok(Self::Told)
    }
}

/// Length of a kernel stack on x86_64 (`THREAD_SIZE`): four pages, twice as many with KASAN, which leaves a field in each thread.
/// Registers lie at its very end on every kernel that does not tell; those with a gap for FRED (6.9 and later) do.
fn stack_len(btf: &Btf) -> u32 {
    if btf.offset("task_struct", "kasan_depth").is_ok() {
        32 << 10
    } else {
        16 << 10
    }
}
