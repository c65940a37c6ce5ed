//! The verbs that need no capture: reading profiles that are there already, and telling or writing what is in them.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write as _, stdout},
    path::PathBuf,
};

use profiler_agent::{
    diff::Difference,
    export::file::{Format, Output, OutputFile},
    profile::Profile,
    read::{self, Contents},
    render::difference,
    report::{Report, UNLIMITED},
};

use crate::{cli::FilesTask, tell};

/// Does it.
pub(crate) fn run(task: FilesTask) -> anyhow::Result<()> {
    match task {
        FilesTask::Render {
            files,
            options,
            outputs,
            force,
            quiet,
        } => {
            // What cannot be written is told before anything is read.
            let outputs = crate::open(outputs, force)?;
            let profile = read(&files, &options)?;
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
            pictures,
            force,
            rows,
        } => {
            let pictures = open_pictures(pictures, force)?;
            let (before, after) = (read(&[before], &options)?, read(&[after], &options)?);
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
                let written = picture.write_with(|out| difference::write(&before, &after, out))?;
                tell(&written);
            }
            Ok(())
        }
        FilesTask::Report { files, options, rows } => say(&Report {
            profile: &read(&files, &options)?,
            rows,
            columns: columns(),
        }),
    }
}

fn open_pictures(paths: Vec<PathBuf>, force: bool) -> anyhow::Result<Vec<OutputFile>> {
    let outputs = paths.into_iter().map(|path| Output::File {
        path,
        format: Format::Svg,
    });
    Ok(crate::open(outputs.collect(), force)?)
}

/// Reads files, and tells what was passed over in them.
fn read(files: &[PathBuf], options: &read::Options) -> anyhow::Result<Profile> {
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
fn columns() -> usize {
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
