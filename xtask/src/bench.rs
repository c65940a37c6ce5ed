//! `bench`: what the agent costs, held against what it may cost.
//!
//! A benchmark checks that it did what it says it did, compares only what it measured in one run, and tells each bar in a line
//! ```text
//! bar: what was measured | 1.04 x | 1.2 x | ok
//! ```
//! which is repeated here in one table at the end.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::build_ebpf;
use crate::collector;
use crate::command;
use crate::otel;
use crate::run;
use crate::test;
use crate::workspace::Workspace;

/// The benchmarks of profiler-agent.
pub(crate) const NAMES: &[&str] = &[
    "kernel", "pipeline", "tables", "capture", "host", "symbols", "delivery", "soak", OTEL,
];

/// Runs only when it is asked for by name: what it compares with has to be built first.
const OTEL: &str = "otel";

/// Builds what they need, runs them one after the other, and fails when a bar is missed.
pub(crate) fn run(workspace: &Workspace, names: &[String]) -> Result<()> {
    let chosen: Vec<&str> = NAMES
        .iter()
        .copied()
        .filter(|&name| {
            if names.is_empty() {
                name != OTEL
            } else {
                names.iter().any(|chosen| chosen == name)
            }
        })
        .collect();
    let mut bars = Vec::new();
    let mut failed = Vec::new();
    for name in chosen {
        let mut cargo = command::of_agent(workspace.root(), "bench", name);
        cargo.args(test::as_root()?);
        match name {
            "kernel" => {
                cargo.env("PROFILER_BENCH_BASELINE", build_ebpf::baseline(workspace)?);
            }
            "capture" | "host" => {
                run::build(workspace)?;
                cargo.env("PROFILER_BENCH_AGENT", workspace.agent());
            }
            OTEL => {
                collector::build(workspace)?;
                cargo
                    .env("PROFILER_TEST_COLLECTOR", collector::program(workspace))
                    .env("PROFILER_BENCH_OTEL", otel::build(workspace)?);
            }
            _ => {}
        }
        println!("bench: {name}");
        let before = bars.len();
        let succeeded = follow(&mut cargo, &mut bars)?;
        let added = bars.get(before..).unwrap_or_default();
        // One that fails without a missed bar did not do what it should; one without bars proves nothing.
        if added.is_empty() || succeeded == added.iter().any(|bar| bar.verdict != "ok") {
            failed.push(name);
        }
    }
    println!("\n{}", table(&bars));
    if !failed.is_empty() {
        bail!(
            "{} did not run to the end; what it wrote above says why",
            failed.join(", ")
        );
    }
    let missed = bars.iter().filter(|bar| bar.verdict != "ok").count();
    if missed > 0 {
        bail!(
            "{missed} of {} bars missed; on a machine that does other work too, run it again",
            bars.len()
        );
    }
    Ok(())
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) what: String,
    measured: String,
    limit: String,
    verdict: String,
}

impl Bar {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.strip_prefix("bar: ")?.split(" | ").collect();
        let [what, measured, limit, verdict] = <[&str; 4]>::try_from(fields)
            .ok()?
            .map(|field| field.trim().to_owned());
        Some(Self {
            what,
            measured,
            limit,
            verdict,
        })
    }
}

impl Bar {
    /// The number of what was measured.
    pub(crate) fn value(&self) -> Option<f64> {
        self.measured.split(' ').next()?.parse().ok()
    }
}

fn table(bars: &[Bar]) -> String {
    let width = |column: fn(&Bar) -> &str| {
        bars.iter()
            .map(|bar| column(bar).chars().count())
            .max()
            .unwrap_or(0)
    };
    let what = width(|bar| &bar.what);
    let measured = width(|bar| &bar.measured).max("measured".len());
    let limit = width(|bar| &bar.limit).max("bar".len());
    let mut text = format!("{:what$}  {:>measured$}  {:>limit$}\n", "", "measured", "bar");
    for bar in bars {
        let line = format!(
            "{:what$}  {:>measured$}  {:>limit$}  {}\n",
            bar.what, bar.measured, bar.limit, bar.verdict
        );
        text.push_str(&line);
    }
    text
}

/// Runs `cargo`, repeats its output and collects its bars; whether it succeeded.
fn follow(cargo: &mut Command, bars: &mut Vec<Bar>) -> Result<bool> {
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read what the benchmark writes")?;
            println!("{line}");
            bars.extend(Bar::parse(&line));
        }
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_read_and_laid_out() {
        let bar = Bar::parse("bar: a walk | 1.04 x | 1.2 x | ok").unwrap();
        assert_eq!(bar.what, "a walk");
        assert_eq!(bar.verdict, "ok");
        assert!(Bar::parse("bar: half | a line").is_none());
        assert!(Bar::parse("1.04 x | 1.2 x").is_none());
        assert_eq!(
            table(&[bar]),
            "        measured    bar\na walk    1.04 x  1.2 x  ok\n"
        );
    }
}
