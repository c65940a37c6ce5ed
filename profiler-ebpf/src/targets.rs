//! Which processes are sampled. The agent puts the first ones in; their children join here, before they can run.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};
use aya_log_ebpf::warn;
use profiler_common::record::Counter;

use crate::{
    maps::{PROCESSES, TARGETS, count},
    patched::Patched,
    tables,
    task::Task,
};

/// Whether only targets are sampled; set by the agent.
#[unsafe(no_mangle)]
static TARGETS_ONLY: Patched<u32> = Patched::new(5);

/// Whether the agent wants samples of this process.
#[inline(always)]
pub fn wanted(pid: u32) -> bool {
    let targets_only = TARGETS_ONLY.get() != 0;
    // SAFETY: the entry is not held beyond the look.
    !targets_only || unsafe { TARGETS.get(pid) }.is_some()
}

/// `sched_process_fork(parent, child)`: the child is complete, but cannot run yet. The parent is the current task.
#[inline(always)]
pub fn follow(ctx: &RawTracePointContext) {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the entry is not held beyond the look.
    if unsafe { TARGETS.get(parent) }.is_none() {
        return;
    }
    let child = Task(ctx.arg::<*const c_void>(1));
    let pid = child.tgid();
    if pid != child.pid() {
        return; // a thread of a process that is in already
    }
    // Each one is counted, the first one on a CPU is also told.
    if TARGETS.insert(pid, 1, 0).is_err() && count(Counter::TargetsFull) == 0 {
        warn!(ctx, "process {} is not followed: the set of targets is full", pid);
    }
}

/// `sched_process_exec`: the current process runs another program from here on, whose code nobody knows yet.
#[inline(always)]
pub fn replaced() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if PROCESSES.remove(pid).is_ok() {
        tables::tell_of_end();
    }
}

/// `sched_process_exit`: the current thread ends; with the last one its process is no target any more, before its pid
/// can be used again.
#[inline(always)]
pub fn forget() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: neither entry is held beyond the look.
    if unsafe { TARGETS.get(pid).is_none() && PROCESSES.get(pid).is_none() } {
        return;
    }
    if Task::current().live_threads() == 0 {
        let was_target = TARGETS.remove(pid).is_ok();
        let was_known = PROCESSES.remove(pid).is_ok();
        if was_target || was_known {
            tables::tell_of_end();
        }
    }
}
