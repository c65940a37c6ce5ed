//! The verbs that need no capture: reading profiles that are there already, and telling or writing what is in them.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write as _, stdout},
    path::PathBuf,
};

use profiler_agent::{
    diff::Difference,
    export::file::Format,
    http::ask::Asked,
    profile::Profile,
    read::{self, Contents},
    render::{difference, html},
    report::{Report, UNLIMITED},
};

use crate::{
    cli::{FilesTask, Whom},
    tell,
};

/// Does it.
pub(crate) fn run(task: FilesTask) -> anyhow::Result<()> {
    match task {
        FilesTask::Render {
            files,
            options,
            agent,
            outputs,
            force,
            quiet,
        } => {
            // What cannot be written is told before anything is read.
            let outputs = crate::open(outputs, force)?;
            let profile = read(&files, &options, &agent)?;
            for output in outputs {
                let written = output.write(&profile)?;
                if !quiet {
                    tell(&written);
                }
            }
            Ok(())
        }
        FilesTask::Diff {
            before,
            after,
            options,
            agent,
            pictures,
            force,
            rows,
        } => {
            let pictures = crate::open(pictures, force)?;
            let (before, after) = (
                read(&[before], &options, &agent)?,
                read(&[after], &options, &agent)?,
            );
            let (one, other) = (before.kind(), after.kind());
            if one != other && !(one.is_sampled() && other.is_sampled()) {
                anyhow::bail!(
                    "one counts {}, the other {}: they cannot be compared",
                    one.counted(),
                    other.counted()
                );
            }
            say(&Difference {
                before: &before,
                after: &after,
                rows,
                columns: columns(),
            })?;
            for picture in pictures {
                let written = picture.write_with(|format, out| match format {
                    Format::Html => Ok(html::write_difference(&before, &after, out)?),
                    Format::Svg | Format::Folded | Format::Pprof | Format::Otlp | Format::Speedscope => {
                        difference::write(&before, &after, out)
                    }
                })?;
                tell(&written);
            }
            Ok(())
        }
        FilesTask::Report {
            files,
            options,
            agent,
            rows,
        } => say(&Report {
            profile: &read(&files, &options, &agent)?,
            rows,
            columns: columns(),
        }),
    }
}

/// Reads files, and tells what was passed over in them; or asks a running agent for a range of time.
fn read(files: &[PathBuf], options: &read::Options, agent: &Whom) -> anyhow::Result<Profile> {
    if let [range] = files
        && let Some((since, until)) = agent.range(range)
    {
        let agent = Asked::new(agent.address.clone(), agent.token.clone())?;
        let until = [("until", until)];
        let until = until.iter().filter(|(_, until)| !until.is_empty());
        let parameters: Vec<_> = [("since", since)].into_iter().chain(until.copied()).collect();
        return Ok(agent.profile(&parameters)?);
    }
    let Contents { profile, notes } = read::files(files, options)?;
    for note in notes {
        tell(&format_args!("profiler-agent: {note}"));
    }
    Ok(profile)
}

/// Writes text on the standard output. Who reads no further (`| head`) has seen enough.
fn say(text: &impl std::fmt::Display) -> anyhow::Result<()> {
    print(text.to_string().as_bytes())
}

/// Writes on the standard output.
pub(crate) fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write on the standard output"))
        }
        _ => Ok(()),
    }
}

/// Columns of the terminal: as `COLUMNS` says, else as the terminal does. What goes elsewhere is not cut.
pub(crate) fn columns() -> usize {
    let said = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    let asked = || {
        let out = stdout();
        let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out));
        size?.ok().map(|size| usize::from(size.ws_col))
    };
    said.or_else(asked)
        .filter(|columns| *columns > 0)
        .unwrap_or(UNLIMITED)
}
