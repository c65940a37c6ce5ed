//! The kept kernel object's record: which sources and which tools it came from.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::workspace::Workspace;

/// What the record says, one `name value` line each, and then one line per source file.
#[derive(PartialEq, Eq)]
pub(crate) struct Record {
    /// sha256 of the object.
    pub(crate) object: String,
    /// The compiler, as it names itself.
    pub(crate) compiler: String,
    /// The linker, as it names itself.
    pub(crate) linker: String,
    /// sha256 of each source file.
    pub(crate) files: Files,
}

/// Path (relative to the workspace, `/` between its parts) and sha256 of each source file, sorted.
#[derive(PartialEq, Eq)]
pub(crate) struct Files(Vec<(String, String)>);

const HEADER: &str =
    "# Written by `cargo xtask build-ebpf`, checked by `cargo xtask build-ebpf --check`. Not edited by hand.";

impl Record {
    /// Reads the record beside the object; `None` when there is none yet.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut record = Self {
            object: String::new(),
            compiler: String::new(),
            linker: String::new(),
            files: Files(Vec::new()),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(' ') {
                Some(("object", value)) => value.clone_into(&mut record.object),
                Some(("compiler", value)) => value.clone_into(&mut record.compiler),
                Some(("linker", value)) => value.clone_into(&mut record.linker),
                Some(("sources", _)) | None => {}
                Some((digest, file)) => record.files.0.push((file.trim().to_owned(), digest.to_owned())),
            }
        }
        Ok(Some(record))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{HEADER}\n");
        let Self {
            object,
            compiler,
            linker,
            files,
        } = self;
        writeln!(text, "object {object}")?;
        writeln!(text, "sources {}", files.digest())?;
        writeln!(text, "compiler {compiler}")?;
        writeln!(text, "linker {linker}")?;
        for (file, digest) in &files.0 {
            writeln!(text, "{digest}  {file}")?;
        }
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Files {
    /// The sources as they are now.
    pub(crate) fn now(workspace: &Workspace) -> Result<Self> {
        let mut paths = vec![
            workspace.ebpf().join("Cargo.toml"),
            workspace.ebpf().join("Cargo.lock"),
            workspace.join("profiler-common/Cargo.toml"),
        ];
        walk(&workspace.ebpf().join("src"), &mut paths)?;
        walk(&workspace.join("profiler-common/src"), &mut paths)?;
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let name = path
                .strip_prefix(workspace.root())?
                .to_string_lossy()
                .into_owned();
            files.push((name, digest_of(&path)?));
        }
        files.sort();
        Ok(Self(files))
    }

    /// Names of the files that differ between the two, were added or are gone.
    pub(crate) fn differing(&self, other: &Self) -> Vec<String> {
        let mut names: Vec<String> = self
            .0
            .iter()
            .filter(|file| !other.0.contains(file))
            .map(|(name, _)| name.clone())
            .collect();
        names.extend(
            other
                .0
                .iter()
                .filter(|file| !self.0.contains(file))
                .map(|(name, _)| name.clone()),
        );
        names.sort();
        names.dedup();
        names
    }

    fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for (file, digest) in &self.0 {
            hasher.update(format!("{digest}  {file}\n"));
        }
        hex(&hasher.finalize())
    }
}

/// sha256 of a file, in hex.
pub(crate) fn digest_of(path: &Path) -> Result<String> {
    let bytes = fs::read(path)
        .with_context(|| format!("cannot read {}; check out the file again", path.display()))?;
    Ok(digest(&bytes))
}

/// sha256 in hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        Files(
            entries
                .iter()
                .map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_record_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sources");
        let record = Record {
            object: digest(b"object"),
            compiler: "rustc 1.96.0 (x 2026-01-01)".to_owned(),
            linker: "bpf-linker 0.13.0".to_owned(),
            files: files(&[("a/src/b c.rs", &digest(b"1")), ("d.rs", &digest(b"2"))]),
        };
        record.write(&path).unwrap();
        assert!(Record::read(&path).unwrap().unwrap() == record);
        assert!(Record::read(&folder.path().join("absent")).unwrap().is_none());
    }

    #[test]
    fn differing_names_what_changed_came_or_went() {
        let then = files(&[("changed", "1"), ("gone", "1"), ("same", "1")]);
        let now = files(&[("added", "1"), ("changed", "2"), ("same", "1")]);
        assert_eq!(then.differing(&now), ["added", "changed", "gone"]);
        assert!(then.differing(&then).is_empty());
        assert_ne!(then.digest(), now.digest());
    }
}
