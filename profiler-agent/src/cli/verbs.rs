//! The verbs that need no capture: what they are told on the command line.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, CommandFactory as _, ValueEnum, error::ErrorKind};
use profiler_agent::{
    export::file::{Format, Output},
    http::Address,
    read,
    target::Scope,
    top::{Screen, Sort},
};
use regex::Regex;

use super::{Cli, DEFAULT_ADDRESS, DEFAULT_UNWIND_MEMORY, TOKEN_VARIABLE, Task, duration, once_each};

/// Work with profiles that are there already.
#[derive(Debug)]
pub(crate) enum FilesTask {
    /// Adds up and writes.
    Render {
        /// What to read.
        files: Vec<PathBuf>,
        /// How to read it.
        options: read::Options,
        /// Who is asked for ranges of time.
        agent: Whom,
        /// Where to write.
        outputs: Vec<Output>,
        /// Whether files that exist are overwritten.
        force: bool,
        /// Whether to say nothing but errors.
        quiet: bool,
    },
    /// Compares.
    Diff {
        /// The profile before.
        before: PathBuf,
        /// The one after.
        after: PathBuf,
        /// How to read them.
        options: read::Options,
        /// Who is asked for ranges of time.
        agent: Whom,
        /// Where to draw.
        pictures: Vec<Output>,
        /// Whether files that exist are overwritten.
        force: bool,
        /// Most rows of a table.
        rows: usize,
    },
    /// Tells who has most.
    Report {
        /// What to read.
        files: Vec<PathBuf>,
        /// How to read it.
        options: read::Options,
        /// Who is asked for ranges of time.
        agent: Whom,
        /// Most rows of a table.
        rows: usize,
    },
}

/// Look at the host as it is.
#[derive(Debug)]
pub(crate) struct TopTask {
    /// Whom to ask.
    pub(crate) source: TopSource,
    /// What to show to the agent.
    pub(crate) token: Option<String>,
    /// What to sample.
    pub(crate) scope: Scope,
    /// How often.
    pub(crate) frequency: u32,
    /// Bytes of kernel memory for unwind tables.
    pub(crate) unwind_memory: usize,
    /// How long a time is shown.
    pub(crate) last: Duration,
    /// How often it is looked at.
    pub(crate) every: Duration,
    /// The first screen; `None` is what serves best.
    pub(crate) screen: Option<Screen>,
    /// The order of its rows.
    pub(crate) sort: Sort,
    /// The process, if it is of one.
    pub(crate) pid: Option<u32>,
    /// Which names.
    pub(crate) filter: Option<Regex>,
    /// Whether one table is all that is wanted.
    pub(crate) once: bool,
    /// Most rows of that.
    pub(crate) rows: usize,
}

/// Whom to ask.
#[derive(Debug)]
pub(crate) enum TopSource {
    /// A running agent.
    Agent {
        /// Where it answers.
        address: Address,
        /// Whether somebody said so; else this may sample by itself.
        is_asked_for: bool,
    },
    /// Nobody: samples of its own.
    Own,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScreenName {
    Processes,
    Functions,
    Flamegraph,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SortName {
    #[value(name = "self")]
    Own,
    Total,
    Name,
    Pid,
}

/// The keys of `top`.
const TOP_KEYS: &str = "\
Keys: Tab, 1 2 3 the screens; up and down a row; Enter the functions of the chosen process, g its flamegraph, Esc back;
s sorts, / filters, + - a longer or shorter time, space holds, ? all keys, q ends.
Where the output is no terminal, one table is written.";

#[derive(Debug, Args)]
#[command(after_help = TOP_KEYS)]
pub(crate) struct TopArgs {
    /// Ask the agent that answers there: 127.0.0.1:7979, unix:/run/profiler-agent.sock. Default: 127.0.0.1:7979; where none answers, sample.
    /// A token is taken from PROFILER_AGENT_SERVE_TOKEN.
    #[arg(long, value_name = "ADDR")]
    from: Option<Address>,

    /// Sample, whether an agent runs or not.
    #[arg(long, conflicts_with = "from")]
    own: bool,

    /// Of this process alone.
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,

    /// How long a time is shown.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    last: Duration,

    /// How often it is looked at.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    every: Duration,

    /// Samples per second and CPU, where this samples.
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..))]
    frequency: u32,

    /// What is shown first.
    #[arg(long, value_name = "SCREEN")]
    screen: Option<ScreenName>,

    /// In which order.
    #[arg(long, value_name = "BY", default_value = "self")]
    sort: SortName,

    /// Show processes or functions whose name this regular expression finds.
    #[arg(long, value_name = "REGEX")]
    filter: Option<Regex>,

    /// Write one table, and end.
    #[arg(long)]
    once: bool,

    /// Most rows of that table.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 20)]
    rows: usize,
}

impl TopArgs {
    pub(super) fn task(self, get: &dyn Fn(&str) -> Option<String>) -> Result<Task, clap::Error> {
        let source = match (self.own, self.from) {
            (true, _) => TopSource::Own,
            (false, from) => TopSource::Agent {
                is_asked_for: from.is_some(),
                address: from.unwrap_or(Address::Tcp(DEFAULT_ADDRESS)),
            },
        };
        Ok(Task::Top(Box::new(TopTask {
            source,
            token: get(TOKEN_VARIABLE),
            scope: self.pid.map_or(Scope::Host, |pid| Scope::Processes(vec![pid])),
            frequency: self.frequency,
            unwind_memory: DEFAULT_UNWIND_MEMORY,
            last: self.last.max(Duration::from_secs(1)),
            every: self.every.max(Duration::from_millis(500)),
            screen: self.screen.map(|screen| match screen {
                ScreenName::Processes => Screen::Processes,
                ScreenName::Functions => Screen::Functions,
                ScreenName::Flamegraph => Screen::Flamegraph,
            }),
            sort: match self.sort {
                SortName::Own => Sort::Own,
                SortName::Total => Sort::Total,
                SortName::Name => Sort::Name,
                SortName::Pid => Sort::Pid,
            },
            pid: self.pid,
            filter: self.filter,
            once: self.once,
            rows: self.rows,
        })))
    }
}

/// What says how to read files.
#[derive(Debug, Args)]
struct Reading {
    /// Of pprof files that hold several numbers for each stack, take this, e.g. alloc_space. Default: the one that the file shows first.
    #[arg(long, value_name = "NAME")]
    sample_type: Option<String>,

    /// Where a running agent answers that is asked for ranges of time. A token is taken from PROFILER_AGENT_SERVE_TOKEN.
    #[arg(long, value_name = "ADDR", default_value_t = Address::Tcp(DEFAULT_ADDRESS))]
    from: Address,
}

impl Reading {
    fn parts(self, get: &dyn Fn(&str) -> Option<String>) -> (read::Options, Whom) {
        let agent = Whom {
            address: self.from,
            token: get(TOKEN_VARIABLE),
        };
        let options = read::Options {
            sample_type: self.sample_type,
            ..read::Options::default()
        };
        (options, agent)
    }
}

/// The running agent that is asked for ranges of time.
#[derive(Debug)]
pub(crate) struct Whom {
    /// Where it answers.
    pub(crate) address: Address,
    /// What to show to it.
    pub(crate) token: Option<String>,
}

impl Whom {
    /// The two times of what is a range and no file: `10m..5m`, `2026-01-31T12:00:00Z..`.
    pub(crate) fn range<'a>(&self, input: &'a Path) -> Option<(&'a str, &'a str)> {
        if input.exists() {
            return None;
        }
        let (since, until) = input.to_str()?.split_once("..")?;
        let is_time = |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains('/');
        (is_time(since) && (until.is_empty() || is_time(until))).then_some((since, until))
    }
}

/// What the verbs say of their files.
const INPUTS: &str = "\
Files may be folded stacks, pprof (.pb.gz of any tool), OTLP profiles (.otlp, or the JSON lines of the Collector's
file exporter), the output of `perf script`, and speedscope's JSON, gzipped or not; their content tells which.
`-` is the standard input. They are read without any privilege: this needs no root. In place of a file may stand a range of time,
SINCE..UNTIL, which a running agent is asked for: 10m..5m, 5m.., 2026-01-31T12:00:00Z..2026-01-31T12:05:00Z";

#[derive(Debug, Args)]
#[command(after_help = INPUTS)]
pub(crate) struct RenderArgs {
    /// Profiles; several are added up.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Write this file; repeatable. The extension decides: .svg (flamegraph), .folded (stacks as text), .pb.gz (pprof), .otlp
    /// (OpenTelemetry), .json (speedscope). `-` is folded stacks on the standard output.
    #[arg(short, long, required = true, value_name = "FILE", value_parser = clap::value_parser!(Output))]
    output: Vec<Output>,

    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    reading: Reading,

    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

impl RenderArgs {
    pub(super) fn task(self, get: &dyn Fn(&str) -> Option<String>) -> Result<Task, clap::Error> {
        let Self {
            files,
            output,
            force,
            reading,
            quiet,
        } = self;
        once_each(&output)?;
        let (options, agent) = reading.parts(get);
        Ok(Task::Files(FilesTask::Render {
            files,
            options,
            agent,
            outputs: output,
            force,
            quiet,
        }))
    }
}

#[derive(Debug, Args)]
#[command(after_help = INPUTS)]
pub(crate) struct DiffArgs {
    /// The profile to compare with.
    before: PathBuf,

    /// The profile to look at.
    after: PathBuf,

    /// Draw the difference into this .svg: shape and widths of AFTER, red where its share is larger than that of BEFORE, blue where it is
    /// smaller; or into this .html, a page to explore; repeatable.
    #[arg(short, long, value_name = "FILE", value_parser = clap::value_parser!(Output))]
    output: Vec<Output>,

    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,

    /// Most rows of a table.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
    rows: usize,

    #[command(flatten)]
    reading: Reading,
}

impl DiffArgs {
    pub(super) fn task(self, get: &dyn Fn(&str) -> Option<String>) -> Result<Task, clap::Error> {
        let Self {
            before,
            after,
            output,
            force,
            rows,
            reading,
        } = self;
        once_each(&output)?;
        let is_no_picture = |output: &&Output| {
            let format = match output {
                Output::File { format, .. } => Some(format),
                Output::Stdout => None,
            };
            !matches!(format, Some(Format::Svg | Format::Html))
        };
        if let Some(other) = output.iter().find(is_no_picture) {
            return Err(Cli::command().error(
                ErrorKind::ValueValidation,
                format!(
                    "--output: a difference can be drawn into an .svg or an .html only, not into {other}"
                ),
            ));
        }
        let (options, agent) = reading.parts(get);
        Ok(Task::Files(FilesTask::Diff {
            before,
            after,
            options,
            agent,
            pictures: output,
            force,
            rows,
        }))
    }
}

#[derive(Debug, Args)]
#[command(after_help = INPUTS)]
pub(crate) struct ReportArgs {
    /// Profiles; several are added up.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Most rows of a table.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
    rows: usize,

    #[command(flatten)]
    reading: Reading,
}

impl ReportArgs {
    pub(super) fn task(self, get: &dyn Fn(&str) -> Option<String>) -> Task {
        let (options, agent) = self.reading.parts(get);
        Task::Files(FilesTask::Report {
            files: self.files,
            options,
            agent,
            rows: self.rows,
        })
    }
}

/// Where a shell looks for completions.
const PLACES: &str = "\
Where they belong:
  bash:  profiler-agent completions bash > ~/.local/share/bash-completion/completions/profiler-agent
  zsh:   profiler-agent completions zsh > ~/.zfunc/_profiler-agent       (a folder of $fpath)
  fish:  profiler-agent completions fish > ~/.config/fish/completions/profiler-agent.fish";

#[derive(Debug, Args)]
#[command(after_help = PLACES)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

impl CompletionsArgs {
    pub(super) fn task(self) -> Task {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "profiler-agent", &mut text);
        // clap_complete 4.6 sets one name for a verb of a program with a dash, and looks for another: the flags of verbs would be unknown.
        let text = String::from_utf8_lossy(&text).replace("profiler__subcmd__agent", "profiler__agent");
        Task::Print(text.into_bytes())
    }
}

#[derive(Debug, Args)]
#[command(after_help = "profiler-agent man | man -l -    shows it")]
pub(crate) struct ManArgs {
    /// The verb; default: all that is not one.
    verb: Option<String>,
}

impl ManArgs {
    pub(super) fn task(self) -> Result<Task, clap::Error> {
        let mut command = Cli::command();
        // Gives the verbs their full names.
        command.build();
        if let Some(verb) = self.verb {
            let verbs: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let wrong = format!("there is no verb {verb:?}; there are {}", verbs.join(", "));
            let found = command.find_subcommand(&verb).cloned();
            command = found.ok_or_else(|| Cli::command().error(ErrorKind::ValueValidation, wrong))?;
        }
        let mut text = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut text)
            .map_err(|error| Cli::command().error(ErrorKind::Io, error))?;
        Ok(Task::Print(text))
    }
}
