//! Where a process writes about the code that it generates, and what kind of program it is.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    process::{Backing, Process, open_mapped},
    procfs,
    profile::Runtime,
};

/// Opens `/tmp/perf-PID.map` as the process has it: below its root, by its pid in its own pid namespace.
///
/// Only a regular file that the process or root owns: in a folder that everybody may write to, anyone can put something under that name.
/// No link leads out of its root, and nothing is waited for.
pub(super) fn perf_map(pid: u32, start_ticks: u64) -> Option<File> {
    let thread = procfs::thread_with_memory(pid);
    let root = rustix::fs::open(
        format!("/proc/{thread}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let inner = procfs::status(thread, "NStgid")?;
    let inner = inner.split_ascii_whitespace().next_back()?;
    let handle = rustix::fs::openat2(
        &root,
        format!("tmp/perf-{inner}.map"),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let stat = rustix::fs::fstat(&handle).ok()?;
    let is_regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if !is_regular || !belongs_to(stat.st_uid, thread) || !is_alive(pid, start_ticks) {
        return None;
    }
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()
}

/// Opens the dumps of a process. By perf's convention the program maps its dump as if it were code, for a profiler to find it.
pub(super) fn dumps(process: &Process) -> impl Iterator<Item = File> {
    let dumps = process.mappings().filter(|mapping| match &mapping.backing {
        Backing::File { path, .. } => is_dump(path),
        Backing::Vdso | Backing::Anonymous => false,
    });
    let owner = procfs::thread_with_memory(process.pid);
    dumps
        .filter_map(|mapping| open_mapped(process.pid, mapping))
        .filter(move |file| {
            file.metadata()
                .is_ok_and(|metadata| belongs_to(metadata.uid(), owner))
        })
}

/// Whether the pid is still that of the process.
pub(super) fn is_alive(pid: u32, start_ticks: u64) -> bool {
    procfs::Stat::of(pid).is_some_and(|stat| stat.start == start_ticks)
}

/// What generates the code of a process, by the files that it has mapped.
pub(super) fn runtime(process: &Process) -> Runtime {
    let paths = process.mappings().filter_map(|mapping| match &mapping.backing {
        Backing::File { path, .. } => Some(path),
        Backing::Vdso | Backing::Anonymous => None,
    });
    paths
        .map(|path| runtime_of(path))
        .find(|runtime| *runtime != Runtime::Unknown)
        .unwrap_or_default()
}

/// `…/jit-PID.dump`
fn is_dump(path: &str) -> bool {
    let name = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = name.rsplit('/').next().unwrap_or(name);
    let number = name
        .strip_prefix("jit-")
        .and_then(|name| name.strip_suffix(".dump"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn runtime_of(path: &str) -> Runtime {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is = |base: &str| {
        let rest = name.strip_prefix(base);
        // `node`, `node20`, `libnode.so.108`, but not `nodemon`.
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    match () {
        () if is("libjvm") => Runtime::Jvm,
        () if is("node") || is("nodejs") || is("libnode") || is("deno") => Runtime::V8,
        () if is("python") || is("libpython") => Runtime::Cpython,
        () if is("libcoreclr") => Runtime::Dotnet,
        () if is("beam") => Runtime::Beam,
        () if is("php") || is("libphp") => Runtime::Php,
        () if is("ruby") || is("libruby") => Runtime::Ruby,
        () => Runtime::Unknown,
    }
}

fn belongs_to(owner: u32, thread: u32) -> bool {
    let uids = procfs::status(thread, "Uid").unwrap_or_default();
    owner == 0 || uids.split_ascii_whitespace().any(|uid| uid.parse() == Ok(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dumps() {
        assert!(is_dump("/home/a/.debug/jit/jit-12.dump"));
        assert!(is_dump("jit-1.dump (deleted)"));
        for other in [
            "/tmp/jit-.dump",
            "/tmp/jit-1.dump.gz",
            "/tmp/ajit-1.dump",
            "/tmp/jit-1a.dump",
        ] {
            assert!(!is_dump(other), "{other}");
        }
    }

    #[test]
    fn programs_that_generate_code() {
        for (path, runtime) in [
            (
                "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so",
                Runtime::Jvm,
            ),
            ("/usr/bin/node", Runtime::V8),
            ("/usr/lib/x86_64-linux-gnu/libnode.so.108", Runtime::V8),
            ("/usr/bin/python3.12", Runtime::Cpython),
            ("/usr/bin/nodemon", Runtime::Unknown),
            ("/usr/bin/bash", Runtime::Unknown),
        ] {
            assert_eq!(runtime_of(path), runtime, "{path}");
        }
    }
}
