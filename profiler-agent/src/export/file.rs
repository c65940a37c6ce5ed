//! A profile in a file, whole or not at all.
//!
//! - What can go wrong before the capture goes wrong before it: the file is made in its folder when the capture
//!   starts, under a name of its own, and takes its final name when its last byte is on the disk.
//! - Under the final name there never is a half file, whatever happens: a crash, a full disk, a signal. A file that
//!   is there already stays, unless it may be replaced; then it is replaced in one step.
//! - Under sudo the file belongs to the person who called it.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use tempfile::NamedTempFile;

use super::{folded, otlp, pprof, speedscope};
use crate::{
    profile::Profile,
    render::{
        html,
        svg::{self, SvgError},
    },
};

/// What a file holds; the end of its name decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Folded stacks, [`folded`].
    Folded,
    /// A flamegraph, [`crate::render::svg`].
    Svg,
    /// A page to explore the profile in, [`crate::render::html`].
    Html,
    /// pprof, gzipped, [`pprof`].
    Pprof,
    /// OTLP Profiles, [`otlp::file`].
    Otlp,
    /// speedscope's own, [`speedscope`].
    Speedscope,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 6] = [
        Self::Svg,
        Self::Html,
        Self::Folded,
        Self::Pprof,
        Self::Otlp,
        Self::Speedscope,
    ];

    /// The end of the file's name, with its dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Folded => ".folded",
            Self::Svg => ".svg",
            Self::Html => ".html",
            Self::Pprof => ".pb.gz",
            Self::Otlp => ".otlp",
            Self::Speedscope => ".json",
        }
    }

    /// The format of a path, by the end of its name; upper case is fine.
    ///
    /// # Errors
    /// [`FormatError`], which lists the known ones.
    pub fn of(path: &Path) -> Result<Self, FormatError> {
        let name = path
            .file_name()
            .map(|name| name.as_encoded_bytes().to_ascii_lowercase());
        Self::ALL
            .into_iter()
            .find(|format| {
                name.as_ref()
                    .is_some_and(|name| name.ends_with(format.extension().as_bytes()))
            })
            .ok_or_else(|| FormatError {
                path: path.to_owned(),
            })
    }

    /// Writes a profile in this format; the pieces are small, so `out` is best buffered.
    ///
    /// # Errors
    /// [`SvgError`]: an empty picture, or what the writer says.
    pub fn write(self, profile: &Profile, out: &mut impl Write) -> Result<(), SvgError> {
        match self {
            Self::Folded => Ok(folded::write(profile, &folded::Options::of(profile), out)?),
            Self::Svg => svg::write(profile, &folded::Options::of(profile), out),
            Self::Html => Ok(html::write(profile, &folded::Options::of(profile), out)?),
            Self::Pprof => Ok(pprof::write(profile, out)?),
            Self::Otlp => Ok(otlp::file::write(profile, out)?),
            Self::Speedscope => Ok(speedscope::write(profile, out)?),
        }
    }
}

/// A file name whose end says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot tell the format of {}: its name must end in one of {}; `-` is folded stacks on stdout",
    path.display(),
    Format::ALL.map(Format::extension).join(" ")
)]
pub struct FormatError {
    /// The path as given.
    pub path: PathBuf,
}

/// Where a profile goes, as `-o` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Folded stacks on standard output.
    Stdout,
    /// A file.
    File {
        /// Where.
        path: PathBuf,
        /// What it holds.
        format: Format,
    },
}

impl Output {
    /// Reads the argument of `-o`: `-`, or a path whose end says the format. Paths need not be UTF-8.
    ///
    /// # Errors
    /// [`FormatError`] for an unknown end.
    pub fn parse(argument: impl AsRef<Path>) -> Result<Self, FormatError> {
        let path = argument.as_ref();
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        Ok(Self::File {
            format: Format::of(path)?,
            path: path.to_owned(),
        })
    }
}

impl FromStr for Output {
    type Err = FormatError;

    fn from_str(argument: &str) -> Result<Self, FormatError> {
        Self::parse(argument)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File { path, .. } => path.display().fmt(f),
        }
    }
}

/// Why a file cannot be written to, known before the capture.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Files are not overwritten unasked.
    #[error("{} exists already; choose another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// A folder, device or pipe has the name; not even force replaces those.
    #[error("{} is not a regular file; choose another name", .0.display())]
    NotAFile(PathBuf),
    /// The folder is not there.
    #[error("the folder {folder} of {file} does not exist; make it with `mkdir -p {folder}`", folder = .0.display(), file = .1.display())]
    NoFolder(PathBuf, PathBuf),
    /// The folder may not be written to.
    #[error("no permission to write in the folder {} of {}; choose another folder", .0.display(), .1.display())]
    NoPermission(PathBuf, PathBuf),
    /// The folder's file system is mounted read-only.
    #[error("the folder {} of {} is on a read-only file system; choose another folder", .0.display(), .1.display())]
    ReadOnly(PathBuf, PathBuf),
    /// The disk is full.
    #[error("no space left for {}; free some, or choose a folder on another disk", .0.display())]
    Full(PathBuf),
    /// Anything else.
    #[error("cannot create {}: {source}", path.display())]
    Io {
        /// The final name.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a file was not written. Nothing is left behind, and nothing has the final name.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The profile is empty; no file says so better than an empty one.
    #[error("no samples were taken, so {0} was not written")]
    NoSamples(Output),
    /// Something else made the file during the capture.
    #[error("{} appeared during the capture and was left alone; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// The disk is full.
    #[error("no space left for {0}, nothing was written; free some, or choose another disk")]
    Full(Output),
    /// Anything else.
    #[error("cannot write {output}: {source}")]
    Io {
        /// Where to.
        output: Output,
        /// What the system said.
        source: io::Error,
    },
}

impl WriteError {
    fn io(output: Output, source: io::Error) -> Self {
        if is_full(&source) {
            Self::Full(output)
        } else {
            Self::Io { output, source }
        }
    }

    fn svg(output: Output, error: SvgError) -> Self {
        match error {
            SvgError::NoSamples => Self::NoSamples(output),
            SvgError::Io(source) => Self::io(output, source),
        }
    }
}

/// What has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// A file of this many bytes; it is on the disk.
    File {
        /// Its name.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// This many bytes on standard output.
    Stdout {
        /// How many.
        bytes: u64,
    },
    /// The reader of standard output had enough (`| head`): a success, as everywhere on Unix.
    ClosedPipe,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, bytes } => write!(f, "{} ({bytes} bytes)", path.display()),
            Self::Stdout { bytes } => write!(f, "standard output ({bytes} bytes)"),
            Self::ClosedPipe => f.write_str("standard output (closed by its reader)"),
        }
    }
}

/// A place for a profile that has been made sure of. Dropped unwritten, it leaves nothing.
#[derive(Debug)]
pub struct OutputFile {
    output: Output,
    /// The file under its preliminary name; `None` on standard output.
    file: Option<NamedTempFile>,
    force: bool,
}

impl OutputFile {
    /// Makes sure that the output can be written: creates a file of another name in its folder.
    ///
    /// With `force` a file that is there will be replaced, but not before the new one is complete.
    ///
    /// # Errors
    /// [`CreateError`], which names the remedy.
    pub fn create(output: Output, force: bool) -> Result<Self, CreateError> {
        let file = match &output {
            Output::Stdout => None,
            Output::File { path, .. } => Some(create_beside(path, force)?),
        };
        Ok(Self { output, file, force })
    }

    /// Where it goes.
    pub const fn output(&self) -> &Output {
        &self.output
    }

    /// Writes the profile, waits until it is on the disk, and gives the file its name.
    ///
    /// # Errors
    /// [`WriteError`]; nothing has the final name then, and a file that was to be replaced is untouched.
    pub fn write(self, profile: &Profile) -> Result<Written, WriteError> {
        if profile.samples.is_empty() {
            return Err(WriteError::NoSamples(self.output));
        }
        match self.output {
            Output::Stdout => write_stream(profile, io::stdout().lock()),
            Output::File { .. } => self.write_with(|format, out| format.write(profile, out)),
        }
    }

    /// Writes a file with what `content` puts into it, which is told its format.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_with(
        self,
        content: impl FnOnce(Format, &mut BufWriter<&fs::File>) -> Result<(), SvgError>,
    ) -> Result<Written, WriteError> {
        let Self { output, file, force } = self;
        let (Output::File { path, format }, Some(file)) = (&output, file) else {
            let source = io::ErrorKind::Unsupported.into();
            return Err(WriteError::Io { output, source });
        };
        write_file(|out| content(*format, out), &file)
            .map_err(|error| WriteError::svg(output.clone(), error))?;
        let bytes = file.as_file().metadata().map_or(0, |metadata| metadata.len());
        persist(file, path, *format, force)?;
        Ok(Written::File {
            path: path.clone(),
            bytes,
        })
    }
}

/// Writes folded stacks to a stream, as `-o -` does.
///
/// # Errors
/// [`WriteError::Full`] and [`WriteError::Io`]; a closed pipe is none, see [`Written::ClosedPipe`].
pub fn write_stream(profile: &Profile, stream: impl Write) -> Result<Written, WriteError> {
    let mut out = Counted {
        inner: BufWriter::new(stream),
        bytes: 0,
    };
    let written = folded::write(profile, &folded::Options::of(profile), &mut out).and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(Written::Stdout { bytes: out.bytes }),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Written::ClosedPipe),
        Err(error) => Err(WriteError::io(Output::Stdout, error)),
    }
}

fn create_beside(path: &Path, force: bool) -> Result<NamedTempFile, CreateError> {
    // A link counts as what it leads to, and a link that leads nowhere still is in the way.
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(CreateError::NotAFile(path.to_owned())),
        Ok(_) if !force => return Err(CreateError::Exists(path.to_owned())),
        Ok(_) => {}
        Err(_) if !force && path.symlink_metadata().is_ok() => {
            return Err(CreateError::Exists(path.to_owned()));
        }
        Err(_) => {}
    }
    let folder = folder(path);
    // Hidden, and with an end that no tool takes for a finished file, should a kill leave it behind.
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".part")
        // What any program that writes a file asks for; the umask takes its share.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|source| {
            use io::ErrorKind as Kind;
            let (folder, path, kind) = (folder.to_owned(), path.to_owned(), source.kind());
            if matches!(kind, Kind::NotFound | Kind::NotADirectory) {
                CreateError::NoFolder(folder, path)
            } else if kind == Kind::PermissionDenied {
                CreateError::NoPermission(folder, path)
            } else if kind == Kind::ReadOnlyFilesystem {
                CreateError::ReadOnly(folder, path)
            } else if is_full(&source) {
                CreateError::Full(path)
            } else {
                CreateError::Io { path, source }
            }
        })
}

fn write_file(
    content: impl FnOnce(&mut BufWriter<&fs::File>) -> Result<(), SvgError>,
    file: &NamedTempFile,
) -> Result<(), SvgError> {
    let mut out = BufWriter::with_capacity(1 << 16, file.as_file());
    content(&mut out)?;
    out.flush()?;
    // Before the name: a rename that reaches the disk before the data leaves an empty file after a crash.
    file.as_file().sync_all()?;
    Ok(())
}

/// Makes a folder for outputs if it is not there, and gives it to whoever called sudo.
///
/// # Errors
/// Those of `mkdir(2)`.
pub fn create_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => {
            hand_over(&fs::File::open(path)?, path);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives a new file or folder to whoever called sudo.
fn hand_over(file: &fs::File, path: &Path) {
    if let Some((uid, gid)) = invoker(rustix::process::geteuid().is_root(), |name| {
        std::env::var(name).ok()
    }) && let Err(error) = std::os::unix::fs::fchown(file, Some(uid), Some(gid))
    {
        // A file of root is better than none; some network file systems refuse.
        tracing::warn!("{} stays with root: {error}", path.display());
    }
}

fn persist(file: NamedTempFile, path: &Path, format: Format, force: bool) -> Result<(), WriteError> {
    hand_over(file.as_file(), path);
    let persisted = if force {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    if let Err(tempfile::PersistError { error, .. }) = persisted {
        return Err(if error.kind() == io::ErrorKind::AlreadyExists {
            WriteError::Exists(path.to_owned())
        } else {
            let path = path.to_owned();
            WriteError::io(Output::File { path, format }, error)
        });
    }
    // The name is an entry of the folder. The file is complete under it whatever comes of this, and not every
    // file system can sync a folder: a failure is no loss.
    if let Err(error) = fs::File::open(folder(path)).and_then(|folder| folder.sync_all()) {
        tracing::debug!("cannot sync the folder of {}: {error}", path.display());
    }
    Ok(())
}

/// The folder of a path; a bare name lies in the current one.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Who called sudo, as (uid, gid).
fn invoker(is_root: bool, variable: impl Fn(&str) -> Option<String>) -> Option<(u32, u32)> {
    let number = |name| variable(name)?.parse().ok();
    is_root
        .then(|| Some((number("SUDO_UID")?, number("SUDO_GID")?)))
        .flatten()
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Counts what goes through it.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_by_the_end_of_the_name() {
        for format in Format::ALL {
            let path = PathBuf::from(format!("some.folder/a.b{}", format.extension()));
            assert_eq!(Format::of(&path), Ok(format));
        }
        assert_eq!(Format::of(Path::new("X.SVG")), Ok(Format::Svg));
        let error = "x.png".parse::<Output>().unwrap_err().to_string();
        for format in Format::ALL {
            assert!(error.contains(format.extension()), "{error}");
        }
        assert_eq!("-".parse(), Ok(Output::Stdout));
    }

    #[test]
    fn owner_is_who_called_sudo() {
        let sudo = |name: &str| match name {
            "SUDO_UID" => Some("1000".to_owned()),
            "SUDO_GID" => Some("100".to_owned()),
            _ => None,
        };
        assert_eq!(invoker(true, sudo), Some((1000, 100)));
        assert_eq!(invoker(false, sudo), None, "no right to give files away");
        assert_eq!(invoker(true, |_| None), None);
        assert_eq!(invoker(true, |_| Some("x".to_owned())), None);
    }
}
