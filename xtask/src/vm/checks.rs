//! Whether the stacks that an agent wrote are those that `chains.c` has.

use std::fmt;

use super::serial::{Part, Transcript};
use crate::verifier::{self, Size};

/// A part in which fewer samples were taken has not shown anything.
const LEAST_SAMPLES: u64 = 50;
/// The functions of `chains.c` that can be on a stack once it has arrived. All other names are the C library's or nobody's.
const OWN: [&str; 12] = [
    "main",
    "runs",
    "fixed",
    "variable",
    "sorts",
    "compare",
    "spin",
    "spin_for_ever",
    "reads",
    "calls_jit",
    "is_interrupted",
    "handler",
];
/// Frames that are not its own, one or some.
const FOREIGN: &str = "*";
/// How many functions call one another.
const DEPTH: usize = 31;

fn chain() -> impl Iterator<Item = &'static str> {
    ["fixed", "variable"].into_iter().cycle().take(DEPTH)
}

/// The stacks of one mode of `chains.c`.
struct Mode {
    name: &'static str,
    /// The frame where it began; empty where Debian's C library has taken its name off.
    root: &'static str,
    /// From there to the chain.
    before: &'static str,
    /// After the chain, on every stack.
    after: &'static str,
    /// What may follow, in part or in full.
    then: &'static str,
    /// Whether most samples hit the kernel.
    in_kernel: bool,
    /// Whether the stack lies in two places. Before the tables of a process are there, the kernel side hands on the piece that the thread
    /// is in, and such a stack cannot be complete.
    in_pieces: bool,
}

const MODES: [Mode; 5] = [
    Mode {
        name: "qsort",
        root: "_start",
        before: "* main",
        after: "sorts",
        then: "* compare spin",
        in_kernel: false,
        in_pieces: false,
    },
    Mode {
        name: "syscalls",
        root: "_start",
        before: "* main",
        after: "reads",
        then: "",
        in_kernel: true,
        in_pieces: false,
    },
    Mode {
        name: "jit",
        root: "_start",
        before: "* main",
        after: "calls_jit * spin_for_ever",
        then: "spin",
        in_kernel: false,
        in_pieces: false,
    },
    Mode {
        name: "signal",
        root: "_start",
        before: "* main",
        after: "is_interrupted * handler spin_for_ever",
        then: "spin",
        in_kernel: false,
        in_pieces: true,
    },
    Mode {
        name: "thread",
        root: "",
        before: "* runs",
        after: "sorts",
        then: "* compare spin",
        in_kernel: false,
        in_pieces: false,
    },
];

/// How one part came out.
pub(crate) struct Outcome {
    name: String,
    verdict: Result<String, String>,
}

impl Outcome {
    /// What `judge` says of a part that has ended well.
    pub(super) fn of(
        transcript: &Transcript,
        name: &str,
        judge: &dyn Fn(&Part) -> Result<String, String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            verdict: match transcript.part(name) {
                None => Err("the machine did not come so far".to_owned()),
                Some(Part { code: None, .. }) => Err("the machine stopped in its middle".to_owned()),
                Some(part @ Part { code: Some(0), .. }) => judge(part).map_err(|why| with_words(&why, part)),
                Some(part @ Part { code: Some(code), .. }) => {
                    Err(with_words(&format!("it ended with code {code}"), part))
                }
            },
        }
    }

    /// Whether the machine came to its end.
    pub(super) fn end(transcript: &Transcript) -> Self {
        Self {
            name: "to its end".to_owned(),
            verdict: if transcript.done {
                Ok("powered off by itself".to_owned())
            } else {
                Err("it stopped before; its last words are in the log".to_owned())
            },
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.verdict.is_err()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Ok(words) => write!(f, "ok      {}: {words}", self.name),
            Err(words) => write!(f, "FAILED  {}: {words}", self.name),
        }
    }
}

/// Judges all that a machine said.
pub(crate) fn judge(transcript: &Transcript) -> Vec<Outcome> {
    let check =
        |name: &str, judge: &dyn Fn(&Part) -> Result<String, String>| Outcome::of(transcript, name, judge);
    let mut outcomes = vec![check("verifier", &verifies), check("doctor", &is_confined)];
    for program in ["chains", "chains-static"] {
        for mode in &MODES {
            outcomes.push(check(&format!("{program} {}", mode.name), &|part| {
                of_process(part, program, mode, 1.0)
            }));
        }
    }
    let [qsort, syscalls, _, signal, _] = &MODES;
    // From its first instruction: the way to the chain is seen too, and the loader.
    outcomes.push(check("command", &|part| of_process(part, "chains", qsort, 0.7)));
    outcomes.push(check("host", &|part| {
        let one = of_process(part, "chains", syscalls, 1.0)?;
        let other = of_process(part, "chains-static", signal, 1.0)?;
        Ok(format!("{one}; {other}"))
    }));
    // The same two run on.
    outcomes.push(check("name", &|part| {
        of_one_process(part, "chains-static", signal)
    }));
    for name in ["group", "group, unseen"] {
        outcomes.push(check(name, &|part| of_one_process(part, "chains", syscalls)));
    }
    outcomes.push(check("dmesg", &no_complaint));
    outcomes.push(Outcome::end(transcript));
    outcomes
}

/// A reason, and what the command said of itself. Its profile is in the log.
fn with_words(why: &str, part: &Part) -> String {
    format!("{why}\n{}", part.stderr)
}

fn verifies(part: &Part) -> Result<String, String> {
    let sizes = Size::parse_all(&part.stdout);
    verifier::refuse_large(&sizes).map_err(|error| error.to_string())?;
    Ok(format!("{} programs below the margin", sizes.len()))
}

/// The process that reads the files of others: whatever it must not be able to do, it has tried in vain.
fn is_confined(part: &Part) -> Result<String, String> {
    const LEAST_TRIALS: usize = 15;
    let lines = |words: &str| {
        part.stdout
            .lines()
            .filter(move |line| line.contains(words))
            .count()
    };
    let (trials, refused) = (lines(" may not "), lines("tried and refused"));
    if trials < LEAST_TRIALS || refused != trials {
        return Err(format!(
            "{refused} of {trials} trials were refused:\n{}",
            part.stdout
        ));
    }
    Ok(format!(
        "{} layers in force, {trials} trials refused",
        lines("in force;")
    ))
}

/// The kernel's own log, after kernel programs have run in it.
pub(super) fn no_complaint(part: &Part) -> Result<String, String> {
    const COMPLAINTS: [&str; 4] = ["WARNING: CPU", "BUG:", "Oops", "general protection"];
    match part
        .stdout
        .lines()
        .find(|line| COMPLAINTS.iter().any(|words| line.contains(words)))
    {
        Some(line) => Err(format!("the kernel complained: {line}")),
        None => Ok("the kernel has not complained".to_owned()),
    }
}

/// The stacks of one process in a folded profile: this share of them has to be one of `mode`.
fn of_process(part: &Part, process: &str, mode: &Mode, share: f64) -> Result<String, String> {
    let (mut samples, mut right, mut incomplete, mut in_kernel) = (0, 0, 0, 0);
    let mut wrong = None;
    for (stack, count) in part.stdout.lines().filter_map(|line| line.rsplit_once(' ')) {
        let (Some((name, frames)), Ok(count)) = (stack.split_once(';'), count.parse::<u64>()) else {
            continue;
        };
        if name != process {
            continue;
        }
        let frames: Vec<&str> = frames.split(';').collect();
        samples += count;
        if frames.iter().any(|frame| frame.ends_with("_[k]")) {
            in_kernel += count;
        }
        let is_incomplete = frames.first().is_some_and(|frame| INCOMPLETE.contains(frame));
        if is_incomplete {
            incomplete += count;
        }
        if mode.has(&frames) {
            right += count;
        } else if !(is_incomplete && mode.in_pieces) {
            wrong.get_or_insert(stack);
        }
    }
    if samples < LEAST_SAMPLES {
        return Err(format!("{samples} samples of {process} are too few"));
    }
    if right < LEAST_SAMPLES {
        return Err(format!("{incomplete} of {samples} stacks are incomplete"));
    }
    let judged = if mode.in_pieces {
        samples - incomplete
    } else {
        samples
    };
    if let Some(wrong) = wrong.filter(|_| (right as f64) < judged as f64 * share) {
        return Err(format!(
            "{right} of {judged} stacks are as they should be; one that is not: {wrong}"
        ));
    }
    if mode.in_kernel && in_kernel * 2 < samples {
        return Err(format!("only {in_kernel} of {samples} samples hit the kernel"));
    }
    if let Some(lost) = part
        .stderr
        .lines()
        .find(|line| line.starts_with("lost: "))
        .filter(|line| !is_for_want_of_time(line))
    {
        return Err(format!("samples were {lost}"));
    }
    Ok(format!(
        "{right} of {samples} stacks of {process} exact, {incomplete} incomplete, {in_kernel} in the kernel"
    ))
}

/// The same, where nobody else may have been sampled.
fn of_one_process(part: &Part, process: &str, mode: &Mode) -> Result<String, String> {
    let others = |line: &&str| line.split(';').next() != Some(process);
    match part.stdout.lines().find(others) {
        None => of_process(part, process, mode, 1.0),
        Some(other) => Err(format!("somebody else was sampled: {other}")),
    }
}

/// Whether samples were lost only because the agent, on an emulated CPU, did not read its rings in time.
fn is_for_want_of_time(lost: &str) -> bool {
    match lost.split_once(" (") {
        None => lost == "lost: 0",
        Some((_, reasons)) => reasons
            .trim_end_matches(')')
            .split(", ")
            .all(|reason| reason.ends_with(" ring full")),
    }
}

/// The frame that stands for what is missing.
const INCOMPLETE: [&str; 9] = [
    "[short copy]",
    "[truncated]",
    "[unreadable]",
    "[bad frame pointer]",
    "[no mapping]",
    "[unsupported rule]",
    "[bad rule]",
    "[no rule]",
    "[32 bit]",
];

impl Mode {
    /// Whether a stack, its root first, is one of this mode.
    fn has(&self, frames: &[&str]) -> bool {
        let frames = frames.iter().take_while(|frame| !frame.ends_with("_[k]"));
        let frames: Vec<&str> = frames.copied().collect();
        if !self.root.is_empty() && frames.first() != Some(&self.root) {
            return false;
        }
        let mut pieces: Vec<&str> = Vec::new();
        for frame in frames {
            let piece = OWN.iter().find(|own| **own == frame).unwrap_or(&FOREIGN);
            if *piece != FOREIGN || pieces.last() != Some(&FOREIGN) {
                pieces.push(piece);
            }
        }
        let words = |text: &'static str| text.split_whitespace();
        let least: Vec<&str> = words(self.before)
            .chain(chain())
            .chain(words(self.after))
            .collect();
        let Some(more) = pieces.strip_prefix(least.as_slice()) else {
            return false;
        };
        let then: Vec<&str> = words(self.then).collect();
        then.starts_with(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(start: &str, depth: usize, end: &str) -> String {
        format!(
            "{start};{};{end}",
            chain().take(depth).collect::<Vec<_>>().join(";")
        )
    }

    fn has(mode: &Mode, stack: &str) -> bool {
        mode.has(&stack.split(';').collect::<Vec<_>>())
    }

    #[test]
    fn only_the_exact_chain_is_right() {
        let [qsort, syscalls, jit, ..] = &MODES;
        let start = "_start;__libc_start_main_impl;main";
        assert!(has(
            qsort,
            &stack(start, DEPTH, "sorts;__qsort_r;msort;msort;compare;spin")
        ));
        assert!(has(qsort, &stack(start, DEPTH, "sorts;__qsort_r")));
        assert!(has(
            qsort,
            &stack(start, DEPTH, "sorts;__qsort_r;msort;compare;spin;irq_[k]")
        ));
        // The callback has no caller in the C library.
        assert!(!has(qsort, &stack(start, DEPTH, "sorts;compare;spin")));
        // A caller was skipped.
        assert!(!has(qsort, &stack(start, DEPTH, "sorts;__qsort_r;spin")));
        assert!(!has(qsort, &stack(start, DEPTH - 2, "sorts")));
        assert!(!has(qsort, &stack("main", DEPTH, "sorts")));
        assert!(!has(qsort, &stack("[unknown];main", DEPTH, "sorts")));
        assert!(!has(qsort, &stack(start, DEPTH, "")));
        assert!(has(
            syscalls,
            &stack(
                start,
                DEPTH,
                "reads;entry_SYSCALL_64_after_hwframe_[k];vfs_read_[k]"
            )
        ));
        assert!(!has(syscalls, &stack(start, DEPTH, "reads;libc.so.6+0x12")));
        assert!(!has(jit, &stack(start, DEPTH, "calls_jit;spin_for_ever")));
    }

    #[test]
    fn one_trial_that_succeeds_is_too_many() {
        let trial = "  ok       may not write a file   Operation not permitted; tried and refused\n";
        let part = |stdout: String| Part {
            stdout,
            ..Part::default()
        };
        assert!(is_confined(&part(trial.repeat(20))).is_ok());
        assert!(is_confined(&part(trial.repeat(5))).is_err());
        let wrong = "  FAILED   may not write a file   it could\n";
        assert!(is_confined(&part(trial.repeat(20) + wrong)).is_err());
    }

    #[test]
    fn a_profile_is_right_when_all_of_it_is() {
        let [_, syscalls, ..] = &MODES;
        let right = stack("chains;_start;libc;main", DEPTH, "reads;vfs_read_[k]");
        let part = |stdout: String, stderr: &str| Part {
            stdout,
            stderr: format!("words\n{stderr}\n"),
            ..Part::default()
        };
        let judged = |part: &Part| of_process(part, "chains", syscalls, 1.0);
        assert!(judged(&part(format!("{right} 60\nother;x 5\n"), "lost: 0")).is_ok());
        assert!(judged(&part(format!("{right} 49\n"), "lost: 0")).is_err());
        assert!(judged(&part(format!("{right} 60\n"), "lost: 3 (3 ring full)")).is_ok());
        assert!(
            judged(&part(
                format!("{right} 60\n"),
                "lost: 4 (3 ring full, 1 torn record)"
            ))
            .is_err()
        );
        assert!(judged(&part(format!("{right} 600\nchains;_start;main 1\n"), "lost: 0")).is_err());
        assert!(
            judged(&part(
                format!("{right} 60\nchains;[bad frame pointer];x 50\n"),
                "lost: 0"
            ))
            .is_err()
        );
        let user = right.replace(";vfs_read_[k]", "");
        assert!(judged(&part(format!("{right} 60\n{user} 70\n"), "lost: 0")).is_err());
    }
}
