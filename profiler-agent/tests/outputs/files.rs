//! Files: whole under their names, or not there.

use std::{fs, io::Write, os::unix::fs::MetadataExt, path::Path, process::Command};

use profiler_agent::export::file::{
    CreateError, Format, Output, OutputFile, WriteError, Written, write_stream,
};
use tempfile::TempDir;

use crate::support::{profiles, tools};

fn create(path: &Path, force: bool) -> Result<OutputFile, CreateError> {
    OutputFile::create(Output::parse(path).unwrap(), force)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_format_is_written() {
    let folder = TempDir::new().unwrap();
    for format in Format::ALL {
        let path = folder.path().join(format!("x{}", format.extension()));
        let written = create(&path, false).unwrap().write(&profiles::server()).unwrap();
        let bytes = fs::metadata(&path).unwrap().len();
        assert!(bytes > 100);
        assert_eq!(written, Written::File { path, bytes });
    }
    assert_eq!(
        names(folder.path()).len(),
        Format::ALL.len(),
        "and nothing else is left"
    );
}

#[test]
fn mode_follows_the_umask() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.folded");
    create(&path, false).unwrap().write(&profiles::server()).unwrap();
    fs::File::create(folder.path().join("plain")).unwrap();
    let mode = |name| fs::metadata(folder.path().join(name)).unwrap().mode();
    assert_eq!(mode("x.folded"), mode("plain"));
}

#[test]
fn existing_files_stay_unless_forced() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.folded");
    fs::write(&path, "precious").unwrap();
    let error = create(&path, false).unwrap_err();
    assert!(matches!(error, CreateError::Exists(_)));
    assert!(error.to_string().contains("--force"), "{error}");

    let forced = create(&path, true).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        8,
        "not before the new one is complete"
    );
    forced.write(&profiles::server()).unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 8);
    assert_eq!(names(folder.path()), ["x.folded"]);

    std::os::unix::fs::symlink("nowhere", folder.path().join("y.svg")).unwrap();
    assert!(matches!(
        create(&folder.path().join("y.svg"), false),
        Err(CreateError::Exists(_))
    ));
    fs::create_dir(folder.path().join("z.svg")).unwrap();
    assert!(matches!(
        create(&folder.path().join("z.svg"), true),
        Err(CreateError::NotAFile(_))
    ));
}

#[test]
fn a_file_that_appears_meanwhile_stays() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.folded");
    let file = create(&path, false).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(
        file.write(&profiles::server()),
        Err(WriteError::Exists(_))
    ));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8);
    assert_eq!(names(folder.path()), ["x.folded"]);
}

#[test]
fn nothing_is_left_of_a_capture_that_failed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.svg");
    drop(create(&path, false).unwrap());
    assert!(names(folder.path()).is_empty());

    let mut empty = profiles::server();
    empty.samples.clear();
    let error = create(&path, false).unwrap().write(&empty).unwrap_err();
    assert!(matches!(error, WriteError::NoSamples(_)));
    assert!(names(folder.path()).is_empty());
}

#[test]
fn bad_folders_are_told_before_the_capture() {
    let folder = TempDir::new().unwrap();
    let error = create(&folder.path().join("no/such/x.svg"), false).unwrap_err();
    assert!(matches!(error, CreateError::NoFolder(..)));
    assert!(error.to_string().contains("mkdir -p"), "{error}");
    // The kernel refuses files there to everyone, root included.
    let error = create(Path::new("/proc/self/x.svg"), false).unwrap_err();
    assert!(
        matches!(
            error,
            CreateError::NoFolder(..) | CreateError::NoPermission(..) | CreateError::Io { .. }
        ),
        "{error:?}"
    );
}

/// A file system of 64 kB, or a reason why there is none.
struct Mount(TempDir);

impl Mount {
    fn new(test: &str, options: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        tools::skip(test, "the right to mount a file system (root)");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let Some(disk) = Mount::new("a_full_disk_leaves_nothing", "size=64k") else {
        return;
    };
    let mut profile = profiles::server();
    for place in 0..4000 {
        let mut sample = profile.samples[0].clone();
        sample.tid = 100_000 + place;
        profile.samples.push(sample);
    }
    let folder = disk.0.path();
    for format in Format::ALL {
        let path = folder.join(format!("x{}", format.extension()));
        let file = create(&path, false).unwrap();
        // Fills the disk to the last byte, so that even a small file does not fit.
        let mut filler = fs::File::create(folder.join("filler")).unwrap();
        while filler.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        let error = file.write(&profile).unwrap_err();
        assert!(matches!(error, WriteError::Full(_)), "{error:?}");
        assert!(error.to_string().contains("no space left"), "{error}");
        assert_eq!(names(folder), ["filler"]);
        fs::remove_file(folder.join("filler")).unwrap();
    }
}

#[test]
fn a_read_only_disk_is_told_before_the_capture() {
    let Some(disk) = Mount::new("a_read_only_disk_is_told_before_the_capture", "size=64k,ro") else {
        return;
    };
    let error = create(&disk.0.path().join("x.svg"), false).unwrap_err();
    assert!(matches!(error, CreateError::ReadOnly(..)), "{error:?}");
}

#[test]
fn stdout() {
    let profile = profiles::server();
    let mut out = Vec::new();
    let written = write_stream(&profile, &mut out).unwrap();
    assert_eq!(
        written,
        Written::Stdout {
            bytes: out.len() as u64
        }
    );

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(matches!(
        write_stream(&profile, full),
        Err(WriteError::Full(Output::Stdout))
    ));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(write_stream(&profile, writer).unwrap(), Written::ClosedPipe);
}
