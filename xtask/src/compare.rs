//! `bench --compare REF`: another version's benchmarks and ours, run in turn on the same machine. What is held against each other are the bars that
//! both tell: of each the median over the rounds, and as noise how far apart a version's own rounds are.
//!
//! The other version is unpacked and built below `target/compare`, with a target folder of its own, since benchmarks find the agent there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::bench::Bar;
use crate::command;
use crate::workspace::Workspace;

/// Those that need nothing but themselves.
pub(crate) const COMPARABLE: &[&str] = &["pipeline", "tables", "symbols", "delivery"];

/// Rounds of each version.
const ROUNDS: usize = 5;
/// What is no regression whatever the noise.
const TOLERANCE: f64 = 0.03;

/// Builds both and compares them; fails when one of ours is worse beyond the noise.
pub(crate) fn run(workspace: &Workspace, reference: &str, names: &[String]) -> Result<()> {
    if !command::is_root()? {
        bail!("the benchmarks need root; run `sudo -E cargo xtask bench --compare {reference}`");
    }
    if let Some(name) = names.iter().find(|name| !COMPARABLE.contains(&name.as_str())) {
        bail!(
            "{name} cannot be compared, since it needs more than itself; choose of {}",
            COMPARABLE.join(", ")
        );
    }
    let chosen = COMPARABLE
        .iter()
        .filter(|name| names.is_empty() || names.iter().any(|chosen| chosen == *name));
    let other = unpack(workspace, reference)?;
    let other_target = workspace.target().join("compare/target");
    let mut regressions = Vec::new();
    for name in chosen {
        let theirs = build(&other, Some(&other_target), name)
            .with_context(|| format!("{reference} has no benchmark {name} that builds"))?;
        let ours = build(workspace.root(), None, name)?;
        let mut rounds = [Measured::default(), Measured::default()];
        for round in 1..=ROUNDS {
            println!("compare: {name}, round {round} of {ROUNDS}");
            for (program, measured) in [&theirs, &ours].into_iter().zip(&mut rounds) {
                measured.add(program, workspace.root())?;
            }
        }
        let [before, after] = &rounds;
        for verdict in judge(before, after) {
            println!("compare: {}", verdict.line);
            if verdict.is_regression {
                regressions.push(verdict.line);
            }
        }
    }
    if !regressions.is_empty() {
        bail!("worse than {reference}:\n{}", regressions.join("\n"));
    }
    Ok(())
}

/// The sources of a version, below `target/compare`.
fn unpack(workspace: &Workspace, reference: &str) -> Result<PathBuf> {
    let commit = command::output(
        Command::new("git")
            .args([
                "rev-parse",
                "--verify",
                "--short=12",
                &format!("{reference}^{{commit}}"),
            ])
            .current_dir(workspace.root()),
    )
    .with_context(|| format!("{reference} is no version of this repository"))?;
    let folder = workspace.target().join("compare").join(&commit);
    if folder.join("Cargo.toml").is_file() {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let archive = folder.with_extension("tar");
    command::run_quiet(
        Command::new("git")
            .args(["archive", "--format=tar", "--output"])
            .arg(&archive)
            .arg(&commit)
            .current_dir(workspace.root()),
    )?;
    command::run_quiet(
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&folder),
    )?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    Ok(folder)
}

/// Builds a benchmark; answers its program.
fn build(root: &Path, target: Option<&Path>, name: &str) -> Result<PathBuf> {
    let mut cargo = command::of_agent(root, "bench", name);
    cargo.arg("--no-run").stdin(Stdio::null());
    if let Some(target) = target {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    let output = cargo.output().context("cannot start cargo")?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("cannot build {name} in {}:\n{words}", root.display());
    }
    let program =
        executable(&words).with_context(|| format!("cargo does not say where {name} is:\n{words}"))?;
    Ok(root.join(program))
}

/// `  Executable benches/x.rs (target/release/deps/x-123)`
fn executable(words: &str) -> Option<&str> {
    let line = words
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Executable "))?;
    line.rsplit_once('(')?.1.strip_suffix(')')
}

/// What the rounds of a version gave, by what was measured.
#[derive(Debug, Default)]
struct Measured(BTreeMap<String, Vec<f64>>);

impl Measured {
    fn add(&mut self, program: &Path, folder: &Path) -> Result<()> {
        let output = Command::new(program)
            .arg("--bench")
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let bars: Vec<Bar> = text.lines().filter_map(Bar::parse).collect();
        // A missed bar is no reason to stop here, but one that did not run is.
        if bars.is_empty() {
            bail!(
                "{} measured nothing:\n{text}\n{}",
                program.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        for bar in bars {
            if let Some(value) = bar.value() {
                self.0.entry(bar.what).or_default().push(value);
            }
        }
        Ok(())
    }
}

/// What is said of one bar.
#[derive(Debug)]
struct Verdict {
    line: String,
    is_regression: bool,
}

/// Holds what both measured against each other. Every bar is a most, so more is worse.
fn judge(before: &Measured, after: &Measured) -> Vec<Verdict> {
    let both = before
        .0
        .iter()
        .filter_map(|(what, before)| Some((what, before, after.0.get(what)?)));
    both.filter_map(|(what, before, after)| {
        let (old, new) = (median(before)?, median(after)?);
        let noise = spread(before, old).max(spread(after, new));
        let change = new / old - 1.0;
        let is_regression = change > noise + TOLERANCE;
        let line = format!(
            "{what}: {old:.4} before, {new:.4} now, {:+.1} %, noise {:.1} %{}",
            change * 100.0,
            noise * 100.0,
            if is_regression { ": worse" } else { "" }
        );
        Some(Verdict { line, is_regression })
    })
    .collect()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied()?;
    (middle > 0.0).then_some(middle)
}

/// How far the outermost values are from the middle, as a part of it. The single worst one, which may be another's doing, is left out.
fn spread(values: &[f64], middle: f64) -> f64 {
    let mut distances: Vec<f64> = values.iter().map(|value| (value / middle - 1.0).abs()).collect();
    distances.sort_by(f64::total_cmp);
    let place = distances.len().saturating_sub(2);
    distances.get(place).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(values: &[f64]) -> Measured {
        Measured(BTreeMap::from([("x".to_owned(), values.to_vec())]))
    }

    fn is_worse(before: &[f64], after: &[f64]) -> bool {
        let verdicts = judge(&measured(before), &measured(after));
        assert_eq!(verdicts.len(), 1);
        verdicts.iter().any(|verdict| verdict.is_regression)
    }

    #[test]
    fn what_is_beyond_the_noise_is_worse() {
        let calm = [1.0, 1.01, 0.99, 1.0, 1.0];
        assert!(!is_worse(&calm, &calm));
        assert!(is_worse(&calm, &[1.1, 1.11, 1.1, 1.09, 1.1]));
        assert!(!is_worse(&calm, &[0.5; 5]));
        // As much change, but as much noise.
        assert!(!is_worse(&[1.0, 1.2, 0.8, 1.0, 0.9], &[1.1, 1.3, 0.9, 1.1, 1.0]));
        // One round that somebody else has spoilt says nothing.
        assert!(!is_worse(&calm, &[1.0, 1.0, 9.0, 1.0, 1.01]));
        assert!(is_worse(&[1.0, 1.0, 9.0, 1.0, 1.0], &[1.1; 5]));
    }

    #[test]
    fn only_what_both_have_is_compared() {
        assert!(judge(&measured(&[1.0]), &Measured::default()).is_empty());
    }

    #[test]
    fn cargo_says_where_the_program_is() {
        let words = "   Compiling x\n    Finished `bench` profile\n  Executable benches/x.rs (target/release/deps/x-12ab)\n";
        assert_eq!(executable(words), Some("target/release/deps/x-12ab"));
        assert_eq!(executable("error"), None);
    }
}
