//! What the spool asks of a folder: few operations, so that a test can stand in for a disk that fails at any of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A folder of files. Names are single words.
pub trait Disk {
    /// Every file with its size, which is 0 where it cannot be had.
    ///
    /// # Errors
    /// Those of the system.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// The first bytes of a file, `limit` at most.
    ///
    /// # Errors
    /// Those of the system.
    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// Makes a file of these bytes, or overwrites it. They may still be in memory only.
    ///
    /// # Errors
    /// Those of the system; part of the file may be there then.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Brings the bytes of a file to the disk.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name, in one step.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away.
    ///
    /// # Errors
    /// Those of the system.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Brings the names of the folder to the disk.
    ///
    /// # Errors
    /// Those of the system.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// A real folder, held by one agent at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system says no.
    #[error(
        "cannot keep profiles in {path}: {source}; choose another folder with --spool or --history-folder"
    )]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "another profiler-agent keeps its profiles in {0}; give each its own with --spool and --history-folder"
    )]
    Taken(PathBuf),
}

/// Locks the folder; never removed, or two could hold two of them.
const LOCK: &str = "lock";

impl Folder {
    /// Opens a folder and locks it; makes it, if it is not there.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |source| FolderError::Io {
            path: path.to_owned(),
            source,
        };
        // Profiles tell what runs on a host: nobody else's business.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(FolderError::Taken(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // What the disk does not tell of one file is no reason to do without all others: reading it will show what is wrong.
            let is_file = entry.file_type().map_or(true, |kind| kind.is_file());
            if let Ok(name) = entry.file_name().into_string()
                && is_file
                && name != LOCK
            {
                files.push((name, entry.metadata().map_or(0, |metadata| metadata.len())));
            }
        }
        Ok(files)
    }

    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?
            .take(limit)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.path.join(name))?;
        file.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        File::open(self.path.join(name))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}
