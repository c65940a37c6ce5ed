//! `prove`: what the agent shows of real programs, held against what is true.
//!
//! ```text
//! programs ─▶ load ─┬▶ completeness: the agent alone; is any stack cut short?
//!                   └▶ equality: the agent beside perf and gdb; do they see the same callers?
//!
//! compilers ─▶ names: the agent beside binutils and LLVM; do they tell the same functions and lines?
//! ```
//!
//! The Debian packages of the programs are installed here and not by `setup`: nothing else needs them. Everything runs on loopback, in
//! temporary folders, and is ended.

mod completeness;
mod delivery;
mod equality;
mod hostile;
mod load;
mod names;
mod programs;
mod questions;
mod traffic;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, bail};

use self::programs::{PROGRAMS, Program, Run};
use crate::command;
use crate::run;
use crate::setup;
use crate::vm;
use crate::workspace::Workspace;

/// Where the figures are kept.
const DOCUMENT: &str = "docs/completeness.md";
/// Where those of names are kept.
const NAMES_DOCUMENT: &str = "docs/names.md";

/// What there is to prove.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Proof {
    /// No user stack is cut short
    Completeness,
    /// perf and gdb see the same callers
    Equality,
    /// Binutils and LLVM tell the same functions and lines
    Names,
    /// Files that change while they are read, or lie, cost their own names at most
    Hostile,
    /// Fifty who ask at once wait a second at most, and cost no sample
    Questions,
    /// A Collector that is away for three minutes and an agent that is killed meanwhile cost no more than is said
    Delivery,
    /// Programs and libraries come and go for half an hour, 50 a second: nothing is left of them
    Traffic,
    /// 100,000 distinct stacks a slice of 2,000 processes, for ten minutes: memory stays what it is
    Soak,
    /// The systemd unit does what it promises, as a systemd runs it that is the first process of a virtual machine
    Service,
}

/// Proves it for the programs called `names`, or all of them, whose figures are then written down.
pub(crate) fn run(workspace: &Workspace, proof: Proof, names: &[String]) -> Result<()> {
    if !command::is_root()? {
        bail!("profiling and changing users need root; run `sudo -E cargo xtask prove`");
    }
    match proof {
        Proof::Completeness => {
            let chosen = install(workspace, names, |_| true)?;
            let figures = each(&chosen, |program| completeness::measure(workspace, program))?;
            let short: Vec<&str> = figures
                .iter()
                .filter_map(completeness::Figure::name_if_short)
                .collect();
            conclude(
                workspace,
                names,
                "completeness",
                &completeness::table(&figures),
                &short,
            )
        }
        Proof::Equality => {
            // Processes have to live while three look at them.
            let chosen = install(workspace, names, |program| !matches!(program.run, Run::Again(_)))?;
            setup::install_packages(&[("linux-perf", ""), ("gdb", "")])?;
            let figures = each(&chosen, |program| equality::measure(workspace, program))?;
            let short: Vec<&str> = figures
                .iter()
                .filter_map(equality::Figure::name_if_unequal)
                .collect();
            conclude(workspace, names, "equality", &equality::table(&figures), &short)
        }
        Proof::Names => prove_names(workspace),
        Proof::Hostile => hostile::run(workspace),
        Proof::Questions => {
            run::build(workspace)?;
            questions::run(workspace)
        }
        Proof::Delivery => delivery::run(workspace),
        Proof::Traffic => traffic::run(workspace),
        Proof::Soak => delivery::soak(workspace),
        Proof::Service => vm::prove_service(workspace),
    }
}

/// The programs called `names`, or all of them, as far as they are `fit`; with their packages installed, and the agent built.
fn install(
    workspace: &Workspace,
    names: &[String],
    fit: impl Fn(&Program) -> bool,
) -> Result<Vec<&'static Program>> {
    if let Some(name) = names
        .iter()
        .find(|name| !PROGRAMS.iter().any(|p| p.name == **name))
    {
        let known: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
        bail!(
            "there is no program called {name}; there are {}",
            known.join(", ")
        );
    }
    let chosen: Vec<&'static Program> = PROGRAMS
        .iter()
        .filter(|program| names.is_empty() || names.iter().any(|name| name == program.name))
        .filter(|program| fit(program))
        .collect();
    let packages: BTreeSet<&str> = chosen.iter().flat_map(|p| p.packages).copied().collect();
    let packages: Vec<(&str, &str)> = packages.into_iter().map(|package| (package, "")).collect();
    setup::install_packages(&packages)?;
    run::build(workspace)?;
    Ok(chosen)
}

/// Tells the figures, writes them down when all programs were asked for, and fails when some fall short.
fn conclude(workspace: &Workspace, names: &[String], name: &str, table: &str, short: &[&str]) -> Result<()> {
    println!("{table}");
    if names.is_empty() {
        write(workspace, DOCUMENT, name, table)?;
    }
    if !short.is_empty() {
        bail!("below the bar, or too few stacks: {}", short.join(", "));
    }
    Ok(())
}

/// All programs, always: those built one after another use what is there.
fn prove_names(workspace: &Workspace) -> Result<()> {
    let figures = names::measure(workspace)?;
    let table = names::table(&figures);
    println!("{table}");
    write(workspace, NAMES_DOCUMENT, "names", &table)?;
    let short: Vec<&str> = figures
        .iter()
        .filter_map(names::Figure::name_if_unequal)
        .collect();
    if !short.is_empty() {
        bail!("below the bar: {}", short.join("; "));
    }
    Ok(())
}

/// Puts a table into its document.
fn write(workspace: &Workspace, document: &str, name: &str, table: &str) -> Result<()> {
    let document = workspace.join(document);
    let text =
        fs::read_to_string(&document).with_context(|| format!("cannot read {}", document.display()))?;
    let text = replaced(&text, name, table)
        .with_context(|| format!("cannot put the table into {}", document.display()))?;
    fs::write(&document, text).with_context(|| format!("cannot write {}", document.display()))
}

fn each<T>(programs: &[&'static Program], measure: impl Fn(&'static Program) -> Result<T>) -> Result<Vec<T>> {
    programs
        .iter()
        .map(|program| {
            eprintln!("{}", program.name);
            // perf fails when a process ends between its being listed and looked at, as servers' helpers do all the time.
            let again = |error: anyhow::Error| {
                eprintln!("{}, again: {error:#}", program.name);
                measure(program)
            };
            measure(program).or_else(again).or_else(again).or_else(again)
        })
        .collect()
}

/// A document with another table between its marks.
fn replaced(text: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = text
        .split_once(&begin)
        .with_context(|| format!("it lacks the mark {begin}"))?;
    let (_, after) = rest
        .split_once(&end)
        .with_context(|| format!("it lacks the mark {end}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}
