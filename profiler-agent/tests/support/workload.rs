//! Programs to be profiled, from `workloads/`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use profiler_agent::procfs;

use super::tools;

/// Frame pointers in every function, and a frame for every call.
const FLAGS: [&str; 9] = [
    "-O2",
    "-g",
    "-pthread",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-ipa-icf",
    "-Werror=implicit-function-declaration",
    "-Wall",
    "-Wextra",
];

/// Flags of GCC alone; clang does neither without being asked.
const GCC_FLAGS: [&str; 2] = ["-mno-omit-leaf-frame-pointer", "-fno-shrink-wrap"];

/// While it is held, no other test samples or burns CPU time.
#[derive(Debug)]
pub struct Alone {
    _lock: File,
}

/// Whether a test that captures can run here, and if so, alone on the machine as far as these tests go: they measure
/// CPU time. A test that cannot says so.
pub fn alone(test: &str) -> Option<Alone> {
    if !root(test) {
        return None;
    }
    if tools::find("CC", Some("cc")).is_none() {
        tools::skip(test, "a C compiler (Debian package gcc)");
        return None;
    }
    // A lock of the system, since each test binary is a process of its own.
    let lock = File::create(temporary().join("alone.lock")).unwrap();
    lock.lock().unwrap();
    Some(Alone { _lock: lock })
}

/// Whether this is root, without whom no capture begins. A test that needs it says so.
pub fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        tools::skip(test, "root");
    }
    root
}

fn temporary() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A workload as a program of its own name.
pub fn compiled(source: &str) -> PathBuf {
    compiled_as(source, source)
}

/// A workload as a program of another name: what its process is called in a profile.
pub fn compiled_as(source: &str, name: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = temporary().join("workloads");
    let program = folder.join(name);
    // Once per test binary: the source may have changed since another run.
    if compiled.contains(name) {
        return program;
    }
    std::fs::create_dir_all(&folder).unwrap();
    let compiler = tools::find("CC", Some("cc")).unwrap();
    let version = Command::new(&compiler).arg("--version").output().unwrap();
    let is_clang = String::from_utf8_lossy(&version.stdout).contains("clang");
    let preliminary = folder.join(format!(".{name}.{}", std::process::id()));
    let output = Command::new(compiler)
        .args(FLAGS)
        .args(GCC_FLAGS.iter().filter(|_| !is_clang))
        .args(if source == "early" {
            &["-nostdlib", "-static"][..]
        } else {
            &[]
        })
        .arg("-o")
        .arg(&preliminary)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("workloads/{source}.c")))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // In one step, as another test binary may be running the old one.
    std::fs::rename(preliminary, &program).unwrap();
    compiled.insert(name.to_owned());
    program
}

/// A workload that runs in the background; ended when dropped.
#[derive(Debug)]
pub struct Workload(Child);

impl Workload {
    /// Starts a program.
    pub fn start<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::of(Command::new(program).args(arguments).stdin(Stdio::null()))
    }

    /// Starts a command.
    pub fn of(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) {
        send(self.0.id(), rustix::process::Signal::TERM);
        self.0.wait().unwrap();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Pids of the processes that a process has started, and that are there.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| procfs::read(task.ok()?.path().join("children"), 1 << 16).ok())
        .flat_map(|text| {
            let text = String::from_utf8_lossy(&text);
            let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<_>>()
        })
        .collect()
}

/// What `split` says about itself.
#[derive(Debug, Clone)]
pub struct Report(BTreeMap<String, u64>);

impl Report {
    /// Reads the report, which may take a moment to appear.
    pub fn read(path: &Path) -> Self {
        wait_for("the report of the workload", || path.exists());
        let lines = text(path);
        Self(
            lines
                .lines()
                .map(|line| {
                    let (name, value) = line.split_once(' ').unwrap();
                    (name.to_owned(), value.parse().unwrap())
                })
                .collect(),
        )
    }

    /// A value; times are in nanoseconds.
    pub fn get(&self, name: &str) -> u64 {
        self.0[name]
    }

    /// The share of a function in the time that all three have burnt.
    pub fn share(&self, function: &str) -> f64 {
        let all: u64 = super::picture::PARTS.iter().map(|part| self.get(part)).sum();
        self.get(function) as f64 / all as f64
    }
}

/// The text of a small file.
#[expect(clippy::disallowed_methods, reason = "files of the tests' own making")]
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits for something that is to happen soon, and fails when it does not.
pub fn wait_for(what: &str, happened: impl FnMut() -> bool) {
    wait_within(Duration::from_secs(20), what, happened);
}

/// The same with more patience.
pub fn wait_within(patience: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
