//! Are the callers the right ones? perf, by DWARF from its own copies of the stack, and gdb, by ptrace, look at the same processes at the same
//! time as the agent.
//!
//! ```text
//! leaf      the function, since two looks rarely meet at one instruction
//! callers   file and offset of each call, from the innermost to the outermost
//! ```
//!
//! perf's samples are unwound once more, from the same registers and the same copy of the stack, by the agent's tables and steps: there each chain
//! has to be the same.
//!
//! All three sample, so not every chain is seen by all. What gdb saw and the agent did not is looked at pair by pair: a chain whose every
//! frame has, somewhere in the agent's chains, the very caller that it has here is made of proven steps. Where the agent never saw the frame at all
//! it says nothing of its callers. So it is for perf's, which show that the agent's walk in the kernel meets the same callers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SymbolKind};
use rustix::process::{Pid, Signal, kill_process};

use super::load::{Group, Place};
use super::programs::{Program, Run};
use crate::collector;
use crate::command;
use crate::workspace::Workspace;

/// Before anybody looks: programs have started, their code is mapped.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long perf looks, in seconds,
const PERF: &str = "12";
/// and how often a second: each of its samples is 64 KiB.
const PERF_FREQUENCY: &str = "49";
/// How often gdb stops the program.
const STOPS: u32 = 20;
/// How often a thread that runs is looked for, for each.
const TRIES: u32 = 100;
/// The agent looks often: what the others see it should have seen.
const FREQUENCY: &str = "1999";

/// A place in a file, by its offset; what lies in no file has no offset either.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Spot {
    file: String,
    offset: u64,
}

impl Spot {
    fn new(file: &str, offset: u64) -> Self {
        let file = file.trim_end_matches(" (deleted)");
        if file.starts_with('/') && !file.starts_with("//") && !file.starts_with("/tmp/perf-") {
            Self {
                file: file.to_owned(),
                offset,
            }
        } else {
            Self {
                file: "[no file]".to_owned(),
                offset: 0,
            }
        }
    }

    fn is_in_a_file(&self) -> bool {
        self.file.starts_with('/')
    }

    fn text(&self) -> String {
        let name = self.file.rsplit('/').next().unwrap_or_default();
        format!("{name}+{:#x}", self.offset)
    }
}

/// A user stack, innermost frame first.
type Chain = Vec<Spot>;

/// What came out for one program.
pub(crate) struct Figure {
    program: &'static Program,
    ours: usize,
    same: Same,
    perf: Compared,
    gdb: Compared,
}

impl Figure {
    /// Whether no chain of the others speaks against ours, and there were chains.
    pub(crate) fn name_if_unequal(&self) -> Option<&'static str> {
        let other: u64 = self.perf.other.values().chain(self.gdb.other.values()).sum();
        let compared = self.perf.compared() + self.gdb.compared();
        let same = &self.same;
        let differ = same.shorter + same.other.values().sum::<u64>();
        (compared < 50 || other * 20 > compared || differ * 200 > same.all()).then_some(self.program.name)
    }
}

/// Profiles a program with all three.
pub(crate) fn measure(workspace: &Workspace, program: &'static Program) -> Result<Figure> {
    let place = Place::prepare(workspace, program)?;
    let load = Group::start(place.command(Command::new("env"), program).stderr(Stdio::null()))?;
    let client = place.client(program)?;
    sleep(WARM_UP);
    let targets = descendants(load.0.id());
    if targets.is_empty() {
        bail!("{} is not running", program.name);
    }
    let pids: Vec<String> = targets.iter().map(u32::to_string).collect();
    let pids = pids.join(",");

    let (pprof, data) = (place.folder().join("out.pb.gz"), place.folder().join("perf.data"));
    let mut agent = Command::new(workspace.agent());
    agent.args(["-q", "-F", FREQUENCY, "-p", &pids, "-o"]).arg(&pprof);
    let mut agent = Group::start(agent.stdin(Stdio::null()))?;
    let mut perf = Command::new("perf");
    // Without build IDs, which perf 6.1 reads at its end and may fail over.
    perf.args(["record", "-q", "-B", "-N", "-F", PERF_FREQUENCY]);
    perf.args(["--call-graph", "dwarf,65528", "-p", &pids, "-o"]);
    command::run_quiet(perf.arg(&data).args(["--", "sleep", PERF]))?;
    let mut stops = Vec::new();
    for _ in 0..STOPS {
        if let Some(thread) = running_thread(load.0.id()) {
            stops.extend(gdb(thread));
        }
        sleep(Duration::from_millis(37));
    }
    // Chains that gdb has seen once may need a while to come again.
    sleep(Duration::from_secs(3));
    if let Some(pid) = i32::try_from(agent.0.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::INT);
    }
    if !agent.wait(Duration::from_secs(60))? {
        bail!("the agent does not end");
    }
    drop((client, load));

    let mut functions = Functions::default();
    let mut ours = Ours::default();
    for chain in agents(workspace, &pprof)? {
        ours.add(functions.with_leaf(chain));
    }
    let served = matches!(program.run, Run::Served { .. });
    let again = unwound_again(workspace, &data, &place.folder().join("chains"))?;
    let (mut same, mut perf) = (Same::default(), Compared::default());
    for (sample, chain) in perfs(&data)? {
        // Of what is executed later, perf believes that it has the mappings of before. Servers only fork.
        if served || targets.contains(&sample.pid) {
            let is_equal = same.add(again.get(&sample).map(Vec::as_slice), &chain);
            perf.add(&ours, &functions.with_leaf(chain), is_equal);
        }
    }
    let mut gdb = Compared::default();
    for chain in stops {
        gdb.add(&ours, &functions.with_leaf(chain), false);
    }
    Ok(Figure {
        program,
        ours: ours.chains.len(),
        same,
        perf,
        gdb,
    })
}

/// The agent's chains.
#[derive(Default)]
struct Ours {
    chains: HashSet<Chain>,
    /// Every frame of theirs and its caller.
    pairs: HashSet<(Spot, Spot)>,
    /// Every frame of theirs that has a caller.
    callees: HashSet<Spot>,
    /// The callers of every frame of theirs.
    callers: HashSet<Chain>,
    /// Every chain without its outermost frames, however many.
    beginnings: HashSet<Chain>,
}

impl Ours {
    fn add(&mut self, chain: Chain) {
        for pair in chain.windows(2) {
            if let [callee, caller] = pair {
                self.pairs.insert((callee.clone(), caller.clone()));
                self.callees.insert(callee.clone());
            }
        }
        for len in 1..chain.len() {
            self.beginnings.extend(chain.get(..len).map(<[Spot]>::to_vec));
            self.callers.extend(chain.get(len..).map(<[Spot]>::to_vec));
        }
        self.chains.insert(chain);
    }
}

/// Chains of another unwinder, held against the agent's.
#[derive(Debug, Default)]
struct Compared {
    /// The agent saw the same chain.
    equal: u64,
    /// It saw these callers, of another function.
    same_callers: u64,
    /// It saw each of its pairs of callee and caller.
    by_pairs: u64,
    /// It saw more callers: the other one gave up.
    cut_short: u64,
    /// It never saw the frames whose callers it did not see, or from the same sample it finds this chain: there is nothing to compare.
    not_met: u64,
    /// The first pair that it did not see, of a frame that it saw.
    other: BTreeMap<String, u64>,
}

impl Compared {
    /// `is_proven` says that the agent finds this chain from the same sample.
    fn add(&mut self, ours: &Ours, chain: &[Spot], is_proven: bool) {
        if ours.chains.contains(chain) {
            self.equal += 1;
        } else if ours.beginnings.contains(chain) {
            self.cut_short += 1;
        } else if chain
            .get(1..)
            .is_some_and(|callers| ours.callers.contains(callers))
        {
            self.same_callers += 1;
        } else {
            let mut strange = chain.windows(2).filter_map(|pair| match pair {
                [callee, caller] if !ours.pairs.contains(&(callee.clone(), caller.clone())) => {
                    Some((callee, caller))
                }
                _ => None,
            });
            let all_seen = strange.clone().next().is_none();
            match strange.find(|(callee, _)| ours.callees.contains(callee)) {
                Some((callee, caller)) if !is_proven => {
                    let pair = format!("{} < {}", callee.text(), caller.text());
                    *self.other.entry(pair).or_default() += 1;
                }
                None if all_seen => self.by_pairs += 1,
                Some(_) | None => self.not_met += 1,
            }
        }
    }

    /// Chains that could be compared.
    fn compared(&self) -> u64 {
        self.all() - self.not_met
    }

    fn all(&self) -> u64 {
        self.equal
            + self.same_callers
            + self.by_pairs
            + self.cut_short
            + self.not_met
            + self.other.values().sum::<u64>()
    }
}

/// perf's samples as perf and as the agent unwinds them.
#[derive(Debug, Default)]
struct Same {
    /// Both find the same frames.
    equal: u64,
    /// perf gives up earlier.
    longer: u64,
    /// The agent does.
    shorter: u64,
    /// They differ; the innermost frame that has another caller, with perf's and the agent's.
    other: BTreeMap<String, u64>,
}

impl Same {
    /// Says whether they are equal.
    fn add(&mut self, ours: Option<&[Spot]>, perfs: &[Spot]) -> bool {
        let ours = ours.unwrap_or_default();
        if ours == perfs {
            self.equal += 1;
            return true;
        }
        if ours.starts_with(perfs) {
            self.longer += 1;
        } else if perfs.starts_with(ours) {
            self.shorter += 1;
        } else {
            let same = ours
                .iter()
                .zip(perfs)
                .take_while(|(one, other)| one == other)
                .count();
            let text = |chain: &[Spot], at: usize| chain.get(at).map_or_else(String::new, Spot::text);
            let callee = same.checked_sub(1).map_or_else(String::new, |at| text(ours, at));
            let words = format!("{callee} < {}, not {}", text(perfs, same), text(ours, same));
            *self.other.entry(words).or_default() += 1;
        }
        false
    }

    fn all(&self) -> u64 {
        self.equal + self.longer + self.shorter + self.other.values().sum::<u64>()
    }
}

/// What tells perf's samples apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sampled {
    pid: u32,
    tid: u32,
    /// As perf writes it, in seconds.
    time: String,
}

/// Where functions begin, for innermost frames.
#[derive(Default)]
struct Functions(HashMap<String, BTreeSet<u64>>);

impl Functions {
    /// The chain with its innermost frame at the start of its function.
    fn with_leaf(&mut self, mut chain: Chain) -> Chain {
        if let Some(leaf) = chain.first_mut() {
            let starts = self
                .0
                .entry(leaf.file.clone())
                .or_insert_with(|| starts(Path::new(&leaf.file)).unwrap_or_default());
            leaf.offset = starts.range(..=leaf.offset).next_back().copied().unwrap_or(0);
        }
        chain
    }
}

/// File offsets of the functions that a file has names for.
fn starts(path: &Path) -> Option<BTreeSet<u64>> {
    let bytes = fs::read(path).ok()?;
    let file = object::File::parse(bytes.as_slice()).ok()?;
    let segments: Vec<_> = file
        .segments()
        .map(|segment| (segment.address(), segment.size(), segment.file_range().0))
        .collect();
    let symbols = file.symbols().chain(file.dynamic_symbols());
    Some(
        symbols
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| {
                let at = symbol.address();
                let (start, _, offset) = segments
                    .iter()
                    .find(|(start, size, _)| (*start..start + size).contains(&at))?;
                Some(at - start + offset)
            })
            .collect(),
    )
}

/// The agent's chains, as `go tool pprof` reads them.
fn agents(workspace: &Workspace, pprof: &Path) -> Result<Vec<Chain>> {
    let go = collector::find_go(workspace)?.context("there is no Go; run `cargo xtask setup`")?;
    let raw = command::output(Command::new(go).args(["tool", "pprof", "-raw"]).arg(pprof))?;
    let (samples, rest) = raw
        .split_once("\nLocations\n")
        .context("go tool pprof wrote no locations")?;
    let (locations, mappings) = rest.split_once("\nMappings\n").unwrap_or((rest, ""));
    // `1: 0x41f000/0x6d2000/0x1f000 /usr/bin/python3.11 BUILD-ID [FN]`
    let mappings: HashMap<&str, (u64, u64, &str)> = mappings
        .lines()
        .filter_map(|line| {
            let (number, line) = line.split_once(": ")?;
            let (range, path) = line.split_once(' ')?;
            let mut range = range.split('/').map(hexadecimal);
            let (start, _, offset) = (range.next()??, range.next()??, range.next()??);
            Some((number, (start, offset, path.split(' ').next()?)))
        })
        .collect();
    // `     1: 0x5e0513 M=1 NAME FILE:0:0 s=0`, and a line for each function that it is inlined into.
    let locations: HashMap<&str, Option<Spot>> = locations
        .lines()
        .filter_map(|line| {
            let (number, line) = line.trim_start().split_once(": 0x")?;
            let mut words = line.split(' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let mapping = words
                .next()?
                .strip_prefix("M=")
                .and_then(|number| mappings.get(number));
            let spot = match mapping {
                Some((_, _, "[kernel]")) => None,
                Some((start, offset, path)) => Some(Spot::new(
                    path,
                    address.wrapping_sub(*start).wrapping_add(*offset),
                )),
                None => Some(Spot::new("", 0)),
            };
            Some((number, spot))
        })
        .collect();
    // `    17  171717170: 19 20 21 `; the labels follow.
    let samples = samples.lines().filter_map(|line| {
        let (numbers, frames) = line.split_once(": ")?;
        numbers
            .split_whitespace()
            .all(|number| number.parse::<u64>().is_ok())
            .then_some(())?;
        let frames = frames
            .split_whitespace()
            .filter_map(|number| locations.get(number)?.clone());
        Some(frames.collect::<Chain>())
    });
    Ok(samples.filter(|chain| !chain.is_empty()).collect())
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// perf's chains.
fn perfs(data: &Path) -> Result<Vec<(Sampled, Chain)>> {
    let mut script = Command::new("timeout");
    script
        .args([
            "240",
            "perf",
            "script",
            "--no-inline",
            "--ns",
            "--max-stack",
            "1024",
        ])
        .args(["-F", "pid,tid,time,ip,dso", "-i"])
        .arg(data);
    Ok(chains(&command::output(&mut script)?))
}

/// The same samples by the agent's unwinder.
fn unwound_again(workspace: &Workspace, data: &Path, output: &Path) -> Result<HashMap<Sampled, Chain>> {
    let mut test = command::of_agent(workspace.root(), "test", "perf");
    test.args(["--", "--ignored"])
        .env("PROFILER_PROVE_PERF", data)
        .env("PROFILER_PROVE_CHAINS", output);
    command::run_quiet(&mut test)?;
    let text = fs::read_to_string(output).with_context(|| format!("cannot read {}", output.display()))?;
    Ok(chains(&text).into_iter().collect())
}

/// Blocks of `PID/TID TIME:`, then a line `OFFSET (FILE)` a frame.
fn chains(text: &str) -> Vec<(Sampled, Chain)> {
    let mut chains = Vec::new();
    for block in text.split("\n\n") {
        let mut lines = block.trim_start_matches('\n').lines();
        let sampled = lines.next().and_then(|line| {
            let (threads, time) = line.trim().split_once(' ')?;
            let (pid, tid) = threads.split_once('/')?;
            Some(Sampled {
                pid: pid.parse().ok()?,
                tid: tid.parse().ok()?,
                time: time.trim().split_once(':')?.0.to_owned(),
            })
        });
        let Some(sampled) = sampled else {
            continue;
        };
        let frames = lines.filter_map(|line| {
            let (offset, file) = line.trim().split_once(" (")?;
            let file = file.strip_suffix(')')?;
            let kernel = file.starts_with("[kernel") || file.starts_with("[guest.kernel");
            (!kernel).then(|| Some(Spot::new(file, u64::from_str_radix(offset, 16).ok()?)))?
        });
        let mut chain: Chain = frames.collect();
        // Some of its chains have an address in no file above `_start`.
        if chain.last().is_some_and(|outermost| !outermost.is_in_a_file()) {
            chain.pop();
        }
        if !chain.is_empty() {
            chains.push((sampled, chain));
        }
    }
    chains
}

/// One stop by gdb: `#1  0x000000000065007f in Py_RunMain ()`; the innermost frame and inlined ones may come without address.
fn gdb(pid: u32) -> Option<Chain> {
    let mut gdb = Command::new("gdb");
    gdb.args([
        "-nx",
        "-batch",
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set backtrace past-main on",
        "-ex",
        "printf \"leaf %#lx\\n\", $pc",
        "-ex",
        "bt",
        "-p",
    ])
    .arg(pid.to_string());
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let maps: Vec<(u64, u64, u64, &str)> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let executable = words.next()?.contains('x');
            let offset = words.next().and_then(number).filter(|_| executable)?;
            Some((
                number(start)?,
                number(end)?,
                offset,
                words.nth(2).unwrap_or_default(),
            ))
        })
        .collect();
    let spot = |address: u64| {
        let (start, _, offset, file) = maps
            .iter()
            .find(|(start, end, ..)| (*start..*end).contains(&address))?;
        Some(Spot::new(file, address - start + offset))
    };
    let text = command::output(&mut gdb).ok()?;
    let mut chain: Chain = Vec::new();
    for line in text.lines() {
        if let Some(address) = line.strip_prefix("leaf ") {
            chain.push(hexadecimal(address).and_then(spot)?);
        }
        let Some((number, frame)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else {
            continue;
        };
        if number == "0" {
            continue;
        }
        let frame = frame.trim_start();
        let address = frame.split(' ').next().and_then(hexadecimal);
        if let Some(address) = address {
            // Code without tables is where gdb begins to search the stack for what looks like code.
            match spot(address.wrapping_sub(1)).filter(Spot::is_in_a_file) {
                Some(caller) => chain.push(caller),
                None => break,
            }
        } else if frame.starts_with("<signal handler called>") {
            return None; // without the address of the trampoline
        } // else inlined, without an address
    }
    (chain.len() > 1).then_some(chain)
}

/// A process and all that it has started.
fn descendants(pid: u32) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        if !all.insert(pid) {
            continue;
        }
        let children = tasks(pid)
            .into_iter()
            .filter_map(|task| fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).ok());
        left.extend(children.flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        }));
    }
    all.retain(|pid| PathBuf::from(format!("/proc/{pid}/exe")).read_link().is_ok());
    all
}

/// The threads of a process.
fn tasks(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The thread of the load that has used most CPU time of those that run right now: one that waits is never sampled, whatever it waits in.
fn running_thread(load: u32) -> Option<u32> {
    for _ in 0..TRIES {
        let processes = descendants(load).into_iter();
        let threads = processes.flat_map(|pid| tasks(pid).into_iter().map(move |thread| (pid, thread)));
        let running = threads.filter_map(|(pid, thread)| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).ok()?;
            let mut fields = stat.rsplit(") ").next()?.split(' ');
            let state = fields.next()?;
            let ticks: u64 = fields
                .skip(10)
                .take(2)
                .filter_map(|ticks| ticks.parse::<u64>().ok())
                .sum();
            (state == "R").then_some((ticks, thread))
        });
        if let Some((_, thread)) = running.max() {
            return Some(thread);
        }
        sleep(Duration::from_millis(5));
    }
    None
}

/// The table for people.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = "| program | samples of perf | equal | perf gives up first | the agent gives up first | different | the first that differ |\n\
                    |---|---:|---:|---:|---:|---:|---|\n"
        .to_owned();
    for Figure { program, same, .. } in figures {
        let other: u64 = same.other.values().sum();
        text += &format!(
            "| {} | {} | {} | {} | {} | {other} | {} |\n",
            program.name,
            same.all(),
            same.equal,
            same.longer,
            same.shorter,
            first(same.other.iter()),
        );
    }
    text += "\n| program | chains of the agent | perf: stacks | equal | same callers | by pairs | cut short | not met | other | gdb: stops | equal | same callers | by pairs | cut short | not met | other | others, by the first pair |\n\
                    |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
    for Figure {
        program,
        ours,
        perf,
        gdb,
        ..
    } in figures
    {
        text += &format!("| {} | {ours} |", program.name);
        for compared in [perf, gdb] {
            let other: u64 = compared.other.values().sum();
            text += &format!(
                " {} | {} | {} | {} | {} | {} | {other} |",
                compared.all(),
                compared.equal,
                compared.same_callers,
                compared.by_pairs,
                compared.cut_short,
                compared.not_met
            );
        }
        text += &format!(" {} |\n", first(perf.other.iter().chain(&gdb.other)));
    }
    text
}

/// The most frequent three.
fn first<'a>(other: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    let mut other: Vec<_> = other.collect();
    other.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let other = other
        .into_iter()
        .take(3)
        .map(|(pair, count)| format!("{count} `{pair}`"));
    other.collect::<Vec<_>>().join(", ")
}
