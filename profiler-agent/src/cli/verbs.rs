//! The verbs that need no capture: what they are told on the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, error::ErrorKind};
use profiler_agent::{
    export::file::{Format, Output},
    read,
};

use super::{Cli, Task, once_each};

/// Work with profiles that are there already.
#[derive(Debug)]
pub(crate) enum FilesTask {
    /// Adds up and writes.
    Render {
        /// What to read.
        files: Vec<PathBuf>,
        /// How to read it.
        options: read::Options,
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
        /// Where to draw.
        pictures: Vec<PathBuf>,
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
        /// Most rows of a table.
        rows: usize,
    },
}

/// What says how to read files.
#[derive(Debug, Args)]
struct Reading {
    /// Of pprof files that hold several numbers for each stack, take this, e.g. alloc_space. Default: the one that the file shows first.
    #[arg(long, value_name = "NAME")]
    sample_type: Option<String>,
}

impl Reading {
    fn options(self) -> read::Options {
        read::Options {
            sample_type: self.sample_type,
            ..read::Options::default()
        }
    }
}

/// What the verbs say of their files.
const INPUTS: &str = "\
Files may be folded stacks, pprof (.pb.gz of any tool), OTLP profiles (.otlp, or the JSON lines of the Collector's
file exporter), the output of `perf script`, and speedscope's JSON, gzipped or not; their content tells which.
`-` is the standard input. They are read without any privilege: this needs no root.";

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
    pub(super) fn task(self) -> Result<Task, clap::Error> {
        let Self {
            files,
            output,
            force,
            reading,
            quiet,
        } = self;
        once_each(&output)?;
        Ok(Task::Files(FilesTask::Render {
            files,
            options: reading.options(),
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
    /// smaller; repeatable.
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
    pub(super) fn task(self) -> Result<Task, clap::Error> {
        let Self {
            before,
            after,
            output,
            force,
            rows,
            reading,
        } = self;
        once_each(&output)?;
        let picture = |output: Output| match output {
            Output::File {
                path,
                format: Format::Svg,
            } => Ok(path),
            Output::File { .. } | Output::Stdout => Err(Cli::command().error(
                ErrorKind::ValueValidation,
                format!("--output: a difference can be drawn into an .svg only, not into {output}"),
            )),
        };
        Ok(Task::Files(FilesTask::Diff {
            before,
            after,
            options: reading.options(),
            pictures: output.into_iter().map(picture).collect::<Result<_, _>>()?,
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
    pub(super) fn task(self) -> Task {
        Task::Files(FilesTask::Report {
            files: self.files,
            options: self.reading.options(),
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
