//! `prove questions`: fifty clients ask a running agent for flamegraphs of 100,000 distinct stacks, for a minute.
//!
//! ```text
//! branches ─▶ agent of it at 4,999 Hz ─▶ history on the disk ─▶ agent at 99 Hz ◀─ 50 clients, one question each every 200 ms
//! ```

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::load::Group;
use crate::command;
use crate::workspace::Workspace;

const CLIENTS: usize = 50;
const STACKS: usize = 100_000;
const TIME: Duration = Duration::from_secs(60);
/// Between an answer and the next question of a client.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the stacks may take to be sampled.
const PATIENCE: Duration = Duration::from_secs(600);
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 17_979);
/// What nine and ninety of a hundred answers may take, and the agent's memory beside its history of 256 MiB.
const MOST_TIME: Duration = Duration::from_secs(1);
const MOST_MEMORY: u64 = 1 << 30;

pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let agent = workspace.agent();
    let folder = tempfile::tempdir().context("cannot make a folder; is TMPDIR full?")?;
    let program = folder.path().join("branches");
    let mut compiler = Command::new("cc");
    compiler.args([
        "-O1",
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
        "-o",
    ]);
    compiler
        .arg(&program)
        .arg(workspace.join("profiler-agent/workloads/branches.c"));
    command::run(&mut compiler)?;
    let load = Group::start(Command::new(&program).arg("900"))?;
    let history = folder.path().join("history");

    let stacks = {
        // Of this program alone, or the history would be full of what else is busy here.
        let _sampler = start(&agent, &history, 4_999, Some(load.0.id()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            sleep(Duration::from_secs(5));
            let stacks = stacks()?;
            if stacks > STACKS {
                break stacks;
            }
            if Instant::now() > deadline {
                bail!("{stacks} distinct stacks were sampled, and {STACKS} are wanted");
            }
        }
    };

    let running = start(&agent, &history, 99, None)?;
    wait_until_ready()?;
    let kept = stacks_in(&text("/profile.folded?comm=branches")?);
    let before = Figures::now()?;
    let begin = Instant::now();
    let times = Mutex::new(Vec::new());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (times, failures) = (&times, &failures);
            scope.spawn(move || {
                // Most look at the same, as people at a dashboard do; some at something else: three pictures.
                let path = match client % 10 {
                    0 => "/flamegraph.svg?icicle&reverse".to_owned(),
                    1 => "/flamegraph.svg?last=5m".to_owned(),
                    _ => "/flamegraph.svg".to_owned(),
                };
                while begin.elapsed() < TIME {
                    let asked = Instant::now();
                    match get(&path) {
                        Ok((200, _)) => push(times, asked.elapsed()),
                        Ok((status, _)) => push(failures, format!("status {status}")),
                        Err(error) => push(failures, format!("{error:#}")),
                    }
                    sleep(PAUSE);
                }
            });
        }
    });
    let after = Figures::now()?;
    let memory = peak_memory(running.0.id())?;
    let mut times = times.into_inner().unwrap_or_default();
    let failures = failures.into_inner().unwrap_or_default();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    let taken = after.samples.saturating_sub(before.samples);
    let lost = after.lost.saturating_sub(before.lost);
    println!(
        "{stacks} distinct stacks sampled, {kept} in the history; {} answers to {CLIENTS} clients in {} s: half within {} ms, 99 % within {} ms, all within {} ms; \
         {} failed; {taken} samples taken meanwhile, {lost} lost; {} MiB of memory at most",
        times.len(),
        TIME.as_secs(),
        at(50).as_millis(),
        at(99).as_millis(),
        times.last().copied().unwrap_or_default().as_millis(),
        failures.len(),
        memory >> 20,
    );
    if let Some(failure) = failures.first() {
        bail!("{} questions were not answered: {failure}", failures.len());
    }
    if lost > 0 || after.skipped > before.skipped {
        bail!(
            "{lost} samples were lost, and {} slices",
            after.skipped - before.skipped
        );
    }
    if memory > MOST_MEMORY {
        bail!("the agent took {} MiB", memory >> 20);
    }
    if at(99) > MOST_TIME {
        bail!("99 % of the answers took up to {} ms", at(99).as_millis());
    }
    Ok(())
}

fn push<T>(list: &Mutex<Vec<T>>, value: T) {
    if let Ok(mut list) = list.lock() {
        list.push(value);
    }
}

fn start(agent: &Path, history: &Path, frequency: u32, pid: Option<u32>) -> Result<Agent> {
    let mut command = Command::new(agent);
    command
        .args([
            "-q",
            "--serve",
            &ADDRESS.to_string(),
            "--history",
            "1h,256MiB",
            "-F",
            &frequency.to_string(),
        ])
        .arg("--history-folder")
        .arg(history)
        .stdin(Stdio::null());
    if let Some(pid) = pid {
        command.args(["-p", &pid.to_string()]);
    }
    let child = command
        .spawn()
        .context("cannot start the agent; `cargo build --release` makes it")?;
    Ok(Agent(child))
}

/// An agent that is asked to end when this is dropped, so that its last slice is written.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.0.wait();
    }
}

fn get(path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(ADDRESS).context("cannot connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the answer breaks off")?;
    let head = answer.get(..64).map(String::from_utf8_lossy).unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("no HTTP")?, answer))
}

fn text(path: &str) -> Result<String> {
    let (_, answer) = get(path)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn stacks_in(folded: &str) -> usize {
    folded
        .lines()
        .filter(|line| line.starts_with("branches;"))
        .count()
}

/// Distinct stacks that an agent has, once it answers.
fn stacks() -> Result<usize> {
    match get("/profile.folded?comm=branches") {
        Ok((200, answer)) => Ok(stacks_in(&String::from_utf8_lossy(&answer))),
        // Not yet.
        Ok((404, _)) | Err(_) => Ok(0),
        Ok((status, _)) => bail!("the agent answers with status {status}"),
    }
}

fn wait_until_ready() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !matches!(get("/readyz"), Ok((200, _))) {
        if Instant::now() > deadline {
            bail!("the agent was not ready within a minute");
        }
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// What the agent says of itself.
struct Figures {
    samples: u64,
    lost: u64,
    skipped: u64,
}

impl Figures {
    fn now() -> Result<Self> {
        let text = text("/metrics")?;
        // All its lines, whatever their labels.
        let of = |name: &str| -> u64 {
            let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
            let own = lines.filter(|(key, _)| key.split('{').next() == Some(name));
            own.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
        };
        Ok(Self {
            samples: of("profiler_agent_sampling_samples_total"),
            lost: of("profiler_agent_sampling_lost_total"),
            skipped: of("profiler_agent_history_slices_skipped_total"),
        })
    }
}

fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the agent has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no VmHWM")?;
    Ok(kib << 10)
}
