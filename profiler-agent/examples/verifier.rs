//! What the running kernel's verifier makes of the programs, as root: a line for each,
//! ```text
//! NAME INSTRUCTIONS BYTES
//! ```
//! with the instructions that the verifier went through, of the 1,000,000 that it takes, and the machine code that came out.
//! `cargo xtask verifier` holds them against a margin.
#![allow(clippy::print_stdout, reason = "stdout is where this reports")]

use anyhow::{Context as _, Result, bail};
use aya::{
    VerifierLogLevel,
    programs::{Program, ProgramError},
};
use profiler_agent::{
    sampling::{Config, programs},
    target::Wanted,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> Result<()> {
    // A filter is part of what is verified: the longest.
    let config = Config {
        frequency: 99,
        wanted: Wanted::Named("name".into()),
    };
    let mut programs = programs(&config, VerifierLogLevel::STATS)?;
    for (name, program) in programs.programs_mut() {
        load(program).with_context(|| format!("the kernel refused the program {name}"))?;
        let info = program.info()?;
        let bytes = info.size_jitted();
        let instructions = match info.verified_instruction_count() {
            Some(count) => count,
            None => count_again(program)
                .with_context(|| format!("the kernel does not say what it verified of {name}"))?,
        };
        println!("{name} {instructions} {bytes}");
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    if let Program::PerfEvent(program) = program {
        program.load()
    } else if let Program::RawTracePoint(program) = program {
        program.load()
    } else {
        Err(ProgramError::UnexpectedProgramType)
    }
}

fn unload(program: &mut Program) -> Result<(), ProgramError> {
    if let Program::PerfEvent(program) = program {
        program.unload()
    } else if let Program::RawTracePoint(program) = program {
        program.unload()
    } else {
        Err(ProgramError::UnexpectedProgramType)
    }
}

/// What the verifier's log says, which aya hands out for a program that was refused only. So the kernel is left without a descriptor to
/// return, and refuses at the very end. For kernels before 5.16, which do not keep the number.
fn count_again(program: &mut Program) -> Result<u32> {
    unload(program)?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(0),
            maximum: limit.maximum,
        },
    )?;
    let outcome = load(program);
    setrlimit(Resource::Nofile, limit)?;
    let Err(ProgramError::LoadError { verifier_log, .. }) = outcome else {
        bail!("no log of the verifier: {outcome:?}");
    };
    verifier_log
        .to_string()
        .lines()
        .find_map(|line| line.strip_prefix("processed ")?.split(' ').next()?.parse().ok())
        .with_context(|| format!("no count in the log of the verifier: {verifier_log}"))
}
