//! The command line. Nothing below this module sees clap.

mod verbs;

use std::{ffi::OsString, time::Duration};

use bytesize::ByteSize;
use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use profiler_agent::{
    export::{
        file::Output,
        otlp::endpoint::{Endpoint, Protocol},
    },
    target::Scope,
};
pub(crate) use verbs::FilesTask;

use profiler_common::arena::{MAX_SEGMENTS, SEGMENT_LEN};

const EXAMPLES: &str = "\
Examples:
  Where does process 1234 spend its time? Until Ctrl-C, then a flamegraph in flamegraphs/:
      sudo profiler-agent --pid 1234
  Thirty seconds of it, as a picture and for `go tool pprof`:
      sudo profiler-agent -p 1234 -d 30s -o out.svg -o out.pb.gz
  Two processes and the children they start:
      sudo profiler-agent -p 1234,1300 -d 1m
  A command from its first instruction to its end:
      sudo profiler-agent -- ./bench --size 1000
  The whole host for ten seconds, as folded stacks for other tools:
      sudo profiler-agent -d 10s -o - | grep nginx
  To an OpenTelemetry Collector:
      sudo profiler-agent -d 30s --otlp-endpoint http://localhost:4317
  What does this host allow, and what is missing?
      sudo profiler-agent doctor
  Where does the time of a capture go, in text? What has changed since another one?
      profiler-agent report out.pb.gz
      profiler-agent diff yesterday.pb.gz out.pb.gz -o changed.svg
  A flamegraph of what perf recorded:
      perf script | profiler-agent render - -o perf.svg

Exit codes: 0 fine, 1 failed or saw no sample, 2 wrong usage, 3 a privilege is missing,
4 this kernel cannot, 130 aborted by a second Ctrl-C.";

/// Where does the time go? Samples stacks in the kernel and draws a flamegraph.
///
/// Every stack of the target is sampled 99 times a second while it runs on a CPU, by a program in the kernel: no restart, no debug
/// build, no change of the target. Without a target the whole host is sampled.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Profile these processes with all their threads, and the children they start. Ends when they all have ended.
    #[arg(short, long, value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pid: Vec<u32>,

    /// Samples per second and CPU. Odd rates do not run in step with what happens every 10 ms.
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..))]
    frequency: u32,

    /// How long, e.g. 30s, 5m, 1h30m. Default: until Ctrl-C, SIGTERM, or the end of the target.
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Write this file; repeatable. The extension decides: .svg (flamegraph), .folded (stacks as text), .pb.gz (pprof), .otlp
    /// (OpenTelemetry), .json (speedscope). `-` is folded stacks on the standard output. Default: an .svg in flamegraphs/.
    #[arg(short, long, value_name = "FILE", value_parser = clap::value_parser!(Output))]
    output: Vec<Output>,

    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,

    /// Send the profile to this OpenTelemetry Collector, e.g. http://localhost:4317 (gRPC) or http://localhost:4318 (HTTP).
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// How to send it: grpc or http/protobuf. Default: by the port of the endpoint, 4318 is http/protobuf, any other grpc.
    #[arg(long, value_name = "PROTOCOL", requires = "otlp_endpoint")]
    otlp_protocol: Option<Protocol>,

    /// Kernel memory for unwind tables, e.g. 64MiB. They are built of what is sampled; when they do not fit, those not used lately make
    /// room.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = unwind_memory)]
    unwind_memory: usize,

    /// No inlined functions and no source lines: names come from symbol tables alone, which takes a small part of the time when
    /// there is much debug information.
    #[arg(long)]
    no_inlines: bool,

    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,

    /// Say more: what was probed, what was missing. Twice: everything.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Profile this command, which is asked to end (SIGTERM) when the profile ends before it does.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pid")]
    command: Vec<OsString>,
}

/// What is done instead of a capture.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Draws or converts profiles that were taken before, or by other tools; several are added up.
    Render(verbs::RenderArgs),
    /// Says and draws what has changed between two profiles, and what may be chance.
    Diff(verbs::DiffArgs),
    /// Says in text who has most of a profile: functions, the hottest path, processes.
    Report(verbs::ReportArgs),
    /// Writes the completions of this command line for a shell.
    Completions(verbs::CompletionsArgs),
    /// Writes the manual page, or that of a verb.
    Man(verbs::ManArgs),
    /// Says what this host allows and what is missing, each with what it means and what to do. Exit code 1 if something is broken.
    Doctor,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Task {
    /// A capture.
    Capture(Box<Request>),
    /// An examination of this host.
    Doctor,
    /// Something with profiles that are there already.
    Files(FilesTask),
    /// Writes this on the standard output.
    Print(Vec<u8>),
}

/// What to capture, and what to do with it.
#[derive(Debug)]
pub(crate) struct Request {
    /// What to profile.
    pub(crate) scope: Scope,
    /// Samples per second and CPU.
    pub(crate) frequency: u32,
    /// How long.
    pub(crate) duration: Option<Duration>,
    /// Where to write; empty is the default file.
    pub(crate) outputs: Vec<Output>,
    /// Whether files that exist are overwritten.
    pub(crate) force: bool,
    /// Where to send.
    pub(crate) endpoint: Option<Endpoint>,
    /// Bytes of kernel memory for unwind tables.
    pub(crate) unwind_memory: usize,
    /// Whether inlined functions and lines are wanted.
    pub(crate) inlines: bool,
    /// How much to say.
    pub(crate) verbosity: Verbosity,
}

/// How much the agent says on the standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors.
    Quiet,
    /// Progress, the summary and warnings.
    Normal,
    /// What was probed and found.
    Verbose,
    /// Everything.
    Debug,
}

impl Cli {
    /// Reads the command line of this process. Wrong usage ends it with exit code 2 and the remedy.
    pub(crate) fn read() -> Task {
        let cli = Self::parse();
        let task = match cli.verb {
            Some(Verb::Doctor) => Ok(Task::Doctor),
            Some(Verb::Render(args)) => args.task(),
            Some(Verb::Diff(args)) => args.task(),
            Some(Verb::Report(args)) => Ok(args.task()),
            Some(Verb::Completions(args)) => Ok(args.task()),
            Some(Verb::Man(args)) => args.task(),
            None => cli.request().map(|request| Task::Capture(Box::new(request))),
        };
        task.unwrap_or_else(|error| error.exit())
    }

    /// The checked request.
    fn request(self) -> Result<Request, clap::Error> {
        let Self {
            verb: _,
            mut pid,
            frequency,
            duration,
            output,
            force,
            otlp_endpoint,
            otlp_protocol,
            unwind_memory,
            no_inlines,
            quiet,
            verbose,
            command,
        } = self;
        let endpoint = otlp_endpoint
            .map(|url| Endpoint::parse(&url, otlp_protocol))
            .transpose()
            .map_err(|error| {
                Self::command().error(ErrorKind::ValueValidation, format!("--otlp-endpoint: {error}"))
            })?;
        once_each(&output)?;
        pid.sort_unstable();
        pid.dedup();
        Ok(Request {
            scope: match (pid.is_empty(), command.is_empty()) {
                (false, _) => Scope::Processes(pid),
                (true, false) => Scope::Command(command),
                (true, true) => Scope::Host,
            },
            frequency,
            duration,
            outputs: output,
            force,
            endpoint,
            unwind_memory,
            inlines: !no_inlines,
            verbosity: match (quiet, verbose) {
                (true, _) => Verbosity::Quiet,
                (false, 0) => Verbosity::Normal,
                (false, 1) => Verbosity::Verbose,
                (false, _) => Verbosity::Debug,
            },
        })
    }
}

/// Refuses an output that is given twice: the second would find the first in its way, after the work.
fn once_each(outputs: &[Output]) -> Result<(), clap::Error> {
    let mut others = outputs.iter().enumerate();
    match others.find(|(place, this)| outputs.iter().take(*place).any(|other| other == *this)) {
        None => Ok(()),
        Some((_, twice)) => {
            let message = format!("--output: {twice} is given twice");
            Err(Cli::command().error(ErrorKind::ValueValidation, message))
        }
    }
}

/// Reads `30s`, `5m`, `1h30m`. A bare number is refused: some tools take it for seconds, others for milliseconds.
fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("say which unit: {text}s, {text}m or {text}ms"));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 30s, 5m or 1h30m")),
    }
}

/// Reads `32MiB`, `16M`, within what the kernel side can hold.
fn unwind_memory(text: &str) -> Result<usize, String> {
    let range = 2 << 20..=MAX_SEGMENTS * SEGMENT_LEN;
    let bytes: ByteSize = text
        .parse()
        .map_err(|error| format!("{error}; write it like 32MiB"))?;
    usize::try_from(bytes.as_u64())
        .ok()
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| format!("must be from 2MiB to {}MiB", range.end() >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Request, clap::Error> {
        Cli::try_parse_from([&["profiler-agent"], arguments].concat()).and_then(Cli::request)
    }

    #[test]
    fn clap_finds_nothing_wrong() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pids_come_in_lists_and_repeated() {
        let request = parse(&["-p", "3,1", "--pid", "2", "-p1"]).unwrap();
        assert_eq!(request.scope, Scope::Processes(vec![1, 2, 3]));
        assert_eq!(parse(&[]).unwrap().scope, Scope::Host);
        assert_eq!(
            parse(&["--", "ls", "-l"]).unwrap().scope,
            Scope::Command(vec!["ls".into(), "-l".into()])
        );
    }

    #[test]
    fn wrong_usage_names_the_remedy() {
        for (arguments, remedy) in [
            (&["-F", "0"][..], "0 is not in 1.."),
            (&["-p", "0"], "0 is not in 1.."),
            (&["-p", "x"], "invalid digit"),
            (&["-d", "30"], "say which unit: 30s, 30m or 30ms"),
            (&["-d", "0s"], "longer than nothing"),
            (&["-d", "soon"], "write it like 30s"),
            (&["-o", "x.png"], ".svg"),
            (&["-o", "x.svg", "-o", "-", "-o", "x.svg"], "x.svg is given twice"),
            (&["-p", "1", "--", "ls"], "cannot be used with"),
            (&["--otlp-endpoint", "collector"], "http://"),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(remedy), "{arguments:?}: {error}");
        }
    }
}
