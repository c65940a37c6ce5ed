//! A control group of version 2: how it is found, who is in it, and the CPU time that the kernel accounts to it.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{process::container_in, procfs};

/// Most groups that are looked through for a name.
const MAX_GROUPS: usize = 100_000;
/// Most bytes of /proc/PID/mountinfo.
const MOUNTS_LIMIT: u64 = 1 << 20;
/// Most bytes of a file of a group: `cpu.stat` and `cgroup.events` have less than one kilobyte.
const FILE_LIMIT: u64 = 16 << 10;

/// Why a control group cannot be profiled.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The kernel can look after groups of version 2 alone.
    #[error(
        "this host has no control groups of version 2: no file system of type cgroup2 is mounted; use -p"
    )]
    NoHierarchy,
    /// No such group.
    #[error("no control group {} is in {}; `cat /proc/PID/cgroup` shows that of a process behind `0::`", .0.display(), .1.display())]
    NotFound(PathBuf, PathBuf),
    /// No such container.
    #[error("no container {0} is in {path}; it takes the ID or the start of it, as `docker ps`, `podman ps` and `crictl ps` show it", path = .1.display())]
    NoContainer(String, PathBuf),
    /// Several groups.
    #[error("{wanted} is the start of more than one name: {}", .found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Some of what was found.
        found: Vec<PathBuf>,
    },
    /// Nobody is in it.
    #[error("no process runs in the control group {}", .0.display())]
    Empty(PathBuf),
    /// The system would not let it be opened.
    #[error("cannot open the control group {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A group that exists, and those below it. Holds on to it: another one of its name is not taken for it.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its path in /proc/PID/cgroup.
    pub path: PathBuf,
    folder: PathBuf,
    descriptor: Arc<OwnedFd>,
}

impl Group {
    /// By its path, as /proc/PID/cgroup or the file system has it; or by its name alone, such as `nginx.service`, where only one has it.
    ///
    /// # Errors
    ///
    /// [`GroupError`]; an empty group is one too.
    pub fn open(wanted: &Path) -> Result<Self, GroupError> {
        let Hierarchy { mount, root } = Hierarchy::find()?;
        let below = wanted.strip_prefix(&mount).unwrap_or(wanted);
        let below: PathBuf = below
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        if root.join(&below).join("cgroup.procs").exists() {
            return Self::at(&root, &below);
        }
        let found = find(&root, |name| Path::new(name) == below);
        Self::only(&root, found, &wanted.display().to_string())?
            .ok_or_else(|| GroupError::NotFound(wanted.to_owned(), mount))
    }

    /// Of a container, by its ID or the start of it.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn of_container(id: &str) -> Result<Self, GroupError> {
        let Hierarchy { mount, root } = Hierarchy::find()?;
        let found = find(&root, |name| {
            container_in(name).is_some_and(|found| found.starts_with(id))
        });
        Self::only(&root, found, id)?.ok_or_else(|| GroupError::NoContainer(id.to_owned(), mount))
    }

    fn only(root: &Path, found: Vec<PathBuf>, wanted: &str) -> Result<Option<Self>, GroupError> {
        match found.as_slice() {
            [] => Ok(None),
            [path] => Self::at(root, path).map(Some),
            _ => Err(GroupError::Ambiguous {
                wanted: wanted.to_owned(),
                found: found.into_iter().take(4).collect(),
            }),
        }
    }

    fn at(root: &Path, below: &Path) -> Result<Self, GroupError> {
        let folder = root.join(below);
        let path = Path::new("/").join(below);
        match File::open(&folder) {
            Ok(descriptor) => {
                let group = Self {
                    path,
                    folder,
                    descriptor: Arc::new(descriptor.into()),
                };
                if group.is_populated() {
                    Ok(group)
                } else {
                    Err(GroupError::Empty(group.path))
                }
            }
            Err(source) => Err(GroupError::Open { path, source }),
        }
    }

    /// For the kernel programs.
    pub const fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Whether a process is in it, or in one below it.
    pub fn is_populated(&self) -> bool {
        match self.number("cgroup.events", "populated") {
            Some(populated) => populated > 0,
            // The root has no such file, and is there.
            None => self.folder.join("cgroup.procs").exists(),
        }
    }

    /// CPU time of all that was ever in it and below it, by `cpu.stat`, which is there with and without the controller.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.number("cpu.stat", "usage_usec").map(Duration::from_micros)
    }

    /// The number of a line `NAME NUMBER` of one of its files.
    fn number(&self, file: &str, name: &str) -> Option<u64> {
        let text = procfs::read(self.folder.join(file), FILE_LIMIT).ok()?;
        let text = String::from_utf8(text).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }
}

/// The hierarchy of version 2.
struct Hierarchy {
    /// Where it is mounted.
    mount: PathBuf,
    /// How it is reached from here.
    root: PathBuf,
}

impl Hierarchy {
    /// In the view of the host's first process, if that can be had: a container may see its own part alone.
    fn find() -> Result<Self, GroupError> {
        ["1", "self"]
            .iter()
            .find_map(|process| {
                let mounts = procfs::read(format!("/proc/{process}/mountinfo"), MOUNTS_LIMIT).ok()?;
                let mounts = String::from_utf8_lossy(&mounts);
                let mount = mounts.lines().find_map(mount_of_hierarchy)?;
                let root = PathBuf::from(format!("/proc/{process}/root{mount}"));
                root.join("cgroup.procs").exists().then(|| Self {
                    mount: mount.into(),
                    root,
                })
            })
            .ok_or(GroupError::NoHierarchy)
    }
}

/// The folder of a line of mountinfo, if it is one of that type: `36 35 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw`.
fn mount_of_hierarchy(line: &str) -> Option<&str> {
    let (mount, kind) = line.split_once(" - ")?;
    kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
}

/// Paths below the root of the groups whose name is right; what is below one of them is part of it.
fn find(root: &Path, is_right: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut found, mut looked_at) = (Vec::new(), 0);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(root.join(&folder))
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            looked_at += 1;
            if looked_at > MAX_GROUPS {
                tracing::warn!("looked through {MAX_GROUPS} control groups; the others are passed over");
                return found;
            }
            let path = folder.join(entry.file_name());
            if entry.file_name().to_str().is_some_and(&is_right) {
                found.push(path);
            } else {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount() {
        let line = "36 35 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount_of_hierarchy(line), Some("/sys/fs/cgroup"));
        let line = "37 35 0:32 / /sys/fs/cgroup/unified rw - cgroup2 none rw";
        assert_eq!(mount_of_hierarchy(line), Some("/sys/fs/cgroup/unified"));
        for line in [
            "38 35 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "39 35 0:34 / /cgroup2 rw - tmpfs cgroup2 rw",
            "40 - cgroup2 x",
            "",
        ] {
            assert_eq!(mount_of_hierarchy(line), None, "{line}");
        }
    }

    #[test]
    fn names_are_found_wherever_they_are_and_what_is_below_is_part_of_them() {
        let root = tempfile::tempdir().unwrap();
        let id = "3f4e1a0c9b7d2e58a6c4b1f09d8e7c6b5a4f3e2d1c0b9a8f7e6d5c4b3a291807";
        let other = format!("4{}", id.get(1..).unwrap());
        for path in [
            format!("system.slice/docker-{id}.scope/docker-{id}.scope"),
            format!("machine.slice/libpod-{other}.scope/container"),
            "system.slice/nginx.service".to_owned(),
        ] {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        std::fs::write(root.path().join("system.slice/file"), "").unwrap();
        let container = |start: &str| {
            find(root.path(), |name| {
                container_in(name).is_some_and(|found| found.starts_with(start))
            })
        };
        assert_eq!(
            container("3f4e"),
            [Path::new(&format!("system.slice/docker-{id}.scope"))]
        );
        assert_eq!(container("").len(), 2);
        assert!(container("5").is_empty());
        assert_eq!(
            find(root.path(), |name| name == "nginx.service"),
            [Path::new("system.slice/nginx.service")]
        );
        assert!(find(root.path(), |name| name == "file").is_empty());
    }
}
