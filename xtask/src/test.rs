//! `test`: every test there is, as root, with everything they need set up first.
//!
//! What tests are given, and what a test does that cannot run, is told in the documentation of this crate.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::collector;
use crate::command;
use crate::page;
use crate::python::Python;
use crate::run;
use crate::setup;
use crate::workspace::Workspace;

/// Sets up, builds the agent, and runs the tests that `args` select; all by default.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::install(workspace)?;
    run::build(workspace)?;
    let strict = env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
    let skips = workspace.target().join("test-skips.txt");
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;

    let mut cargo = command::cargo();
    cargo
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(as_root()?)
        .args(args);
    cargo
        .current_dir(workspace.root())
        .env("PROFILER_TEST_COLLECTOR", collector::program(workspace))
        .env("PROFILER_TEST_PYTHON", Python::of(workspace).program("python3"))
        .env("PROFILER_TEST_AGENT", workspace.agent())
        .env("PROFILER_TEST_SKIPS", &skips)
        .env("PROFILER_TEST_STRICT", if strict { "1" } else { "0" });
    if let Some(go) = collector::find_go(workspace)? {
        cargo.env("PROFILER_TEST_GO", go);
    }
    if let Some(zig) = setup::find_zig(workspace)? {
        cargo.env("PROFILER_TEST_ZIG", zig);
    }
    cargo.env("PROFILER_TEST_PAGE_TOOLS", page::tools(workspace));
    if let Some(node) = page::find_node(workspace)? {
        cargo.env("PROFILER_TEST_NODE", node.program);
    }
    if let Some(browser) = page::find_browser() {
        cargo.env("PROFILER_TEST_BROWSER", browser);
    }
    let (all_passed, tally) = follow(&mut cargo)?;

    let skipped = fs::read_to_string(&skips).with_context(|| format!("cannot read {}", skips.display()))?;
    let skipped: Vec<&str> = skipped.lines().collect();
    for line in &skipped {
        println!("did not run: {line}");
    }
    // A test that returned early counted itself as passed.
    let passed = tally.passed.saturating_sub(skipped.len());
    println!(
        "{passed} passed, {} failed, {} skipped",
        tally.failed,
        skipped.len() + tally.ignored
    );
    if strict && !skipped.is_empty() {
        bail!(
            "under CI every test runs; what each of those lacks is above, and `cargo xtask setup` should install it"
        );
    }
    if !all_passed {
        bail!("not every test passed; the failures are listed above");
    }
    Ok(())
}

/// Makes cargo start the tests through sudo, when this is not root. The build stays the user's own.
pub(crate) fn as_root() -> Result<Vec<String>> {
    if command::is_root()? {
        return Ok(Vec::new());
    }
    if command::find_in_path("sudo").is_none() {
        bail!("the tests load kernel programs and need root, and there is no sudo; run the same as root");
    }
    // sudo has a PATH of its own even under -E.
    let path = format!("PATH={}", env::var("PATH").unwrap_or_default());
    Ok(vec![
        "--config".to_owned(),
        format!("target.'cfg(all())'.runner = [\"sudo\", \"-E\", \"env\", {path:?}]"),
    ])
}

/// Sums of what the test binaries said at their ends.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            let number = number.parse::<usize>().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs `cargo`, repeats its output and counts along.
fn follow(cargo: &mut Command) -> Result<(bool, Tally)> {
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read what the tests write")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.add(&line);
        }
    }
    Ok((child.wait().context("cannot wait for cargo")?.success(), tally))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_over_binaries() {
        let mut tally = Tally::default();
        tally.add("running 3 tests");
        tally.add(
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s",
        );
        tally.add("test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        assert_eq!(
            tally,
            Tally {
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
    }
}
