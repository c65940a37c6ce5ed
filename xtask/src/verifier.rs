//! `verifier`: how much of its limit the kernel's verifier needs for each program.
//!
//! A kernel gives up on a program after 1,000,000 instructions, counted over every way through it, and kernels differ in how soon
//! they see that two ways are one. So there is a margin for kernels that nobody has tried.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// What the kernel allows for.
const LIMIT: u64 = 1_000_000;
/// What a program may need of it.
const MARGIN: u64 = 250_000;

/// What a kernel has made of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    program: String,
    /// Instructions that the verifier went through.
    instructions: u64,
    /// Length of the machine code.
    bytes: u64,
}

impl Size {
    /// The lines of the example `verifier`.
    pub(crate) fn parse_all(text: &str) -> Vec<Self> {
        let mut sizes: Vec<Self> = text.lines().filter_map(Self::parse).collect();
        sizes.sort_by(|a, b| a.program.cmp(&b.program));
        sizes
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [program, instructions, bytes] = <[&str; 3]>::try_from(fields).ok()?;
        Some(Self {
            program: program.to_owned(),
            instructions: instructions.parse().ok()?,
            bytes: bytes.parse().ok()?,
        })
    }

    pub(crate) fn above_margin(&self) -> bool {
        self.instructions > MARGIN
    }
}

/// Has the running kernel verify the programs, and fails when one needs more than it may.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args([
        "build",
        "--locked",
        "--package",
        "profiler-agent",
        "--example",
        "verifier",
    ]);
    command::run(cargo.current_dir(workspace.root()))?;
    let program = workspace.target().join("debug/examples/verifier");
    let said = command::output(&mut command::privileged(program, &[])?)?;
    let release = command::output(Command::new("uname").arg("-r")).context("cannot name the kernel")?;
    let sizes = Size::parse_all(&said);
    print!("{}", table(&[(release, sizes.clone())]));
    refuse_large(&sizes)
}

/// Fails when a program needs more than it may, or there is none.
pub(crate) fn refuse_large(sizes: &[Size]) -> Result<()> {
    if sizes.is_empty() {
        bail!("no program was verified");
    }
    let large: Vec<&str> = sizes
        .iter()
        .filter(|size| size.above_margin())
        .map(|size| size.program.as_str())
        .collect();
    if !large.is_empty() {
        bail!(
            "{} need more than {MARGIN} of the {LIMIT} instructions that a kernel verifies; docs/kernel-side.md says what keeps them few",
            large.join(", ")
        );
    }
    Ok(())
}

/// A table in Markdown, ready for the documentation: a row for each program, a column for each kernel.
pub(crate) fn table(kernels: &[(String, Vec<Size>)]) -> String {
    let mut programs: Vec<&str> = kernels
        .iter()
        .flat_map(|(_, sizes)| sizes.iter().map(|size| size.program.as_str()))
        .collect();
    programs.sort_unstable();
    programs.dedup();
    let mut text = String::from("| verified instructions, share of the limit, machine code |");
    for (kernel, _) in kernels {
        text.push_str(&format!(" {kernel} |"));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(kernels.len()));
    for program in programs {
        text.push_str(&format!("\n| `{program}` |"));
        for (_, sizes) in kernels {
            match sizes.iter().find(|size| size.program == program) {
                Some(size) => text.push_str(&format!(
                    " {}, {:.1} %, {} B |",
                    thousands(size.instructions),
                    size.instructions as f64 * 100.0 / LIMIT as f64,
                    thousands(size.bytes)
                )),
                None => text.push_str(" |"),
            }
        }
    }
    text.push('\n');
    text
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_judged_and_laid_out() {
        let sizes = Size::parse_all("on_tick 41290 8085\nnot a line at all\non_exit 54 202\n");
        assert_eq!(sizes.len(), 2);
        assert!(refuse_large(&sizes).is_ok());
        assert!(refuse_large(&[]).is_err());
        let large = Size::parse_all("on_tick 250001 1");
        let error = refuse_large(&large).unwrap_err().to_string();
        assert!(error.contains("on_tick"), "{error}");
        assert_eq!(
            table(&[("6.1".to_owned(), sizes)]),
            "| verified instructions, share of the limit, machine code | 6.1 |\n|---|---|\n\
             | `on_exit` | 54, 0.0 %, 202 B |\n| `on_tick` | 41,290, 4.1 %, 8,085 B |\n"
        );
    }
}
