//! Which processes are sampled. Of a set the agent puts the first ones in; their children join here, before they can run.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::RawTracePointContext};
use aya_log_ebpf::warn;
use profiler_common::{Filter, record::Counter};

use crate::{
    maps::{GROUP, PROCESSES, TARGETS, count},
    patched::Patched,
    tables,
    task::{Comm, Task},
};

/// A [`Filter`]; set by the agent.
#[unsafe(no_mangle)]
static FILTER: Patched<u32> = Patched::new(5);
/// The name for [`Filter::Name`], zeros behind it; set by the agent.
#[unsafe(no_mangle)]
static NAME: Patched<Comm> = Patched::words(2);

/// Whether the agent wants samples of the current thread, which is of this process. The verifier knows the filter, and leaves out all others.
#[inline(always)]
pub fn wanted(pid: u32) -> bool {
    let filter = FILTER.get();
    if filter == Filter::Processes as u32 {
        // SAFETY: the entry is not held beyond the look.
        unsafe { TARGETS.get(pid) }.is_some()
    } else if filter == Filter::Name as u32 {
        Task::current().leader().comm() == NAME.get()
    } else if filter == Filter::Group as u32 {
        GROUP.current_task_under_cgroup(0) == Ok(true)
    } else {
        true
    }
}

/// Whether a process that was wanted is so until it ends: it may get another name, or be moved to another group.
#[inline(always)]
pub fn are_for_life() -> bool {
    let filter = FILTER.get();
    filter == Filter::Everything as u32 || filter == Filter::Processes as u32
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

/// `sched_process_exit`: the current thread ends; with the last one nobody runs the code of its process any more. It is a target still: from
/// Linux 6.16 on the kernel comes by here before it gives back the memory, which takes 70 to 85 ms a gigabyte.
#[inline(always)]
pub fn ended() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the entry is not held beyond the look.
    if unsafe { PROCESSES.get(pid) }.is_some()
        && Task::current().live_threads() == 0
        && PROCESSES.remove(pid).is_ok()
    {
        tables::tell_of_end();
    }
}

/// `sched_process_free(task)`: a thread is gone, and with the main one its process: the pid means another one from here on.
#[inline(always)]
pub fn forget(ctx: &RawTracePointContext) {
    let task = Task(ctx.arg::<*const c_void>(0));
    let pid = task.tgid();
    if pid == task.pid() && TARGETS.remove(pid).is_ok() {
        tables::tell_of_end();
    }
}
