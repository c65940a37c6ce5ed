//! Are user stacks whole? The agent profiles each program, and every stack without a marker is complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use profiler_common::Outcome;

use super::load::{Group, Place};
use super::programs::Program;
use crate::workspace::Workspace;

/// How long each program is profiled,
const SECONDS: u64 = 60;
/// and samples per second and CPU.
const FREQUENCY: u32 = 997;
/// Fewer stacks prove nothing.
const FEWEST: u64 = 500;

/// What came out for one program.
pub(crate) struct Figure {
    program: &'static Program,
    version: String,
    stacks: Stacks,
    unwound: String,
}

impl Figure {
    /// The program's name, unless all is as good as it has to be.
    pub(crate) fn name_if_short(&self) -> Option<&'static str> {
        let Stacks { user, truncated, .. } = self.stacks;
        // Deeper than the limit is not the unwinder's failure.
        let share = self.stacks.share() + percent(truncated, user);
        let enough = user >= FEWEST && share >= self.program.bar;
        (!enough).then_some(self.program.name)
    }
}

/// Profiles a program.
pub(crate) fn measure(workspace: &Workspace, program: &'static Program) -> Result<Figure> {
    let place = Place::prepare(workspace, program)?;
    let version = place.version(program)?;
    let (folded, summary) = (place.folder().join("out.folded"), place.folder().join("summary"));
    let mut agent = Command::new(workspace.agent());
    agent
        .args(["--frequency", &FREQUENCY.to_string()])
        .args(["--duration", &format!("{SECONDS}s")])
        .arg("--output")
        .arg(&folded)
        .arg("--")
        .stderr(File::create(&summary).with_context(|| format!("cannot write {}", summary.display()))?);
    let mut agent = Group::start(&mut place.command(agent, program))?;
    let mut client = place.client(program)?;
    let mut ended = agent.wait(Duration::from_secs(SECONDS + 1))?;
    // Some servers stay as long as they have a client.
    drop(client.take());
    ended = ended || agent.wait(Duration::from_secs(30))?;
    drop(agent);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (folded, summary) = (read(folded), read(summary));
    if !ended || folded.is_empty() || place.has_failed() {
        bail!("no whole profile of {}:\n{summary}", program.name);
    }
    // To be looked into.
    let kept = workspace.target().join("prove");
    fs::create_dir_all(&kept)
        .and_then(|()| fs::write(kept.join(format!("{}.folded", program.name)), &folded))
        .with_context(|| format!("cannot write into {}", kept.display()))?;
    Ok(Figure {
        program,
        version,
        stacks: Stacks::of(&folded),
        unwound: unwound(&summary).unwrap_or_default().to_owned(),
    })
}

/// How the stacks were unwound, from what the agent says at its end.
fn unwound(summary: &str) -> Option<&str> {
    let line = summary.lines().find(|line| line.starts_with("stacks: "))?;
    line.split_once("; unwound ")?.1.split(';').next()
}

/// User stacks of a profile.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stacks {
    user: u64,
    /// Deeper than the limit; incomplete, too.
    truncated: u64,
    /// Incomplete ones by marker and outermost frame.
    incomplete: BTreeMap<String, u64>,
}

impl Stacks {
    /// Of folded stacks: `process;[marker];frame;frame 42`. A stack of kernel frames alone is no user stack.
    fn of(folded: &str) -> Self {
        let markers: Vec<String> = Outcome::ALL
            .into_iter()
            .filter(|outcome| !outcome.is_complete())
            .map(|outcome| format!("[{}]", outcome.name().replace('_', " ")))
            .collect();
        let mut stacks = Self::default();
        for line in folded.lines() {
            let Some((stack, count)) = line.rsplit_once(' ') else {
                continue;
            };
            let count = count.parse().unwrap_or(0);
            let mut frames = stack.split(';');
            let process = frames.next().unwrap_or_default();
            if frames.clone().all(|frame| frame.ends_with("_[k]")) {
                continue;
            }
            stacks.user += count;
            let marker = frames
                .next()
                .filter(|frame| markers.iter().any(|marker| marker == frame));
            if let Some(marker) = marker {
                if marker == "[truncated]" {
                    stacks.truncated += count;
                }
                let outermost = frames.next().unwrap_or_default();
                let what = format!("{marker} {process}: {outermost}");
                *stacks.incomplete.entry(what).or_default() += count;
            }
        }
        stacks
    }

    /// The complete ones, per cent.
    fn share(&self) -> f64 {
        let incomplete: u64 = self.incomplete.values().sum();
        percent(self.user - incomplete, self.user)
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// The table for people.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = "| program | what it did | user stacks | complete | bar | unwound | incomplete, by their outermost frame |\n|---|---|---:|---:|---:|---|---|\n".to_owned();
    for figure in figures {
        let Figure {
            program,
            version,
            stacks,
            unwound,
        } = figure;
        let mut incomplete: Vec<(&String, &u64)> = stacks.incomplete.iter().collect();
        incomplete.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let incomplete: Vec<String> = incomplete
            .into_iter()
            .map(|(what, count)| format!("{count} `{}`", what.replace('|', "/")))
            .take(5)
            .collect();
        // Never rounded up to the bar.
        let share = (stacks.share() * 1000.0).floor() / 1000.0;
        text += &format!(
            "| {}: {version} | {} | {} | {share:.3} % | {} % | {unwound} | {} |\n",
            program.name,
            program.does,
            stacks.user,
            program.bar,
            incomplete.join(", "),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_without_a_marker_are_complete() {
        let stacks = Stacks::of(
            "a b;_start;main 80\na b;[no rule];f;g 9\na b;[truncated];f;g 10\na b;[unknown];h 1\na b;ret_from_fork_[k];kthread_[k] 7\n",
        );
        assert_eq!(stacks.user, 100);
        assert_eq!(
            stacks.incomplete,
            BTreeMap::from([
                ("[no rule] a b: f".to_owned(), 9),
                ("[truncated] a b: f".to_owned(), 10)
            ])
        );
        assert_eq!(stacks.truncated, 10);
        assert!((stacks.share() - 81.0).abs() < 1e-9);
    }

    #[test]
    fn the_summary_says_how() {
        let summary = "x\nstacks: 100 % complete; unwound 90.1 % by tables, 9.8 % by both; 3 beyond the budget of distinct stacks\n";
        assert_eq!(unwound(summary), Some("90.1 % by tables, 9.8 % by both"));
    }
}
