//! Kernels to boot: Debian's own for virtual machines, with the drivers that QEMU needs built in.
//!
//! They are fetched and unpacked, never installed, by an apt that has lists of its own: whatever release this machine is, its
//! own lists and packages stay as they are. Debian's signatures are checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::sources;
use crate::workspace::Workspace;

/// A series of kernels, and the release of Debian that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) series: &'static str,
    release: &'static str,
}

/// From the oldest that the agent runs on to the newest that Debian has packaged.
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel {
        series: "5.10",
        release: "bullseye",
    },
    Kernel {
        series: "6.1",
        release: "bookworm",
    },
    Kernel {
        series: "6.12",
        release: "trixie",
    },
    Kernel {
        series: "7.2",
        release: "trixie-backports",
    },
];

/// Where busybox comes from.
const SHELL_RELEASE: &str = "bookworm";
const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Kernel {
    pub(crate) fn named(series: &str) -> Result<Self> {
        KERNELS
            .into_iter()
            .find(|kernel| kernel.series == series)
            .with_context(|| {
                let known = KERNELS.map(|kernel| kernel.series).join(", ");
                format!("there is no kernel {series} here; those are {known}")
            })
    }

    /// The kernel, fetched if it is not here yet.
    pub(crate) fn image(self, workspace: &Workspace) -> Result<PathBuf> {
        let image = folder(workspace).join(self.series).join("vmlinuz");
        fetched(&image, || {
            let apt = Apt::of(workspace, self.release)?;
            // Newer packages keep the image apart from what installs it.
            let package = apt
                .newest(&format!("linux-binary-{}.", self.series))?
                .or(apt.newest(&format!("linux-image-{}.", self.series))?);
            let Some(package) = package else {
                bail!(
                    "Debian {} has no kernel {} any more; take a series that it has into xtask/src/vm/kernels.rs",
                    self.release,
                    self.series
                );
            };
            eprintln!("fetching {package}");
            let unpacked = apt.unpack(&package)?;
            let version = package
                .split_once('-')
                .and_then(|(_, rest)| rest.split_once('-'))
                .map_or("", |(_, version)| version);
            let places = [
                format!("boot/vmlinuz-{version}"),
                format!("usr/lib/modules/{version}/vmlinuz"),
            ];
            places
                .iter()
                .map(|place| unpacked.join(place))
                .find(|file| file.is_file())
                .with_context(|| format!("{package} holds no kernel at {}", places.join(" or ")))
        })?;
        Ok(image)
    }
}

/// A shell that needs nothing else. Not installed, since Debian's package wants to replace other ones.
pub(crate) fn busybox(workspace: &Workspace) -> Result<PathBuf> {
    let program = folder(workspace).join("busybox");
    fetched(&program, || {
        let apt = Apt::of(workspace, SHELL_RELEASE)?;
        eprintln!("fetching busybox-static");
        Ok(apt.unpack("busybox-static")?.join("bin/busybox"))
    })?;
    Ok(program)
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("kernels")
}

/// Has `fetch` make `file`, unless it is here as it was left: its digest stands beside it, written last.
fn fetched(file: &Path, fetch: impl FnOnce() -> Result<PathBuf>) -> Result<()> {
    let stamp = file.with_extension("sha256");
    let digest = || sources::digest_of(file).ok();
    if digest().is_some() && digest() == fs::read_to_string(&stamp).ok() {
        return Ok(());
    }
    let source = fetch()?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::copy(&source, file).with_context(|| format!("cannot copy {}", source.display()))?;
    fs::write(&stamp, digest().unwrap_or_default())
        .with_context(|| format!("cannot write {}", stamp.display()))
}

/// An apt with lists of one release, in a folder that can be deleted.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn of(workspace: &Workspace, release: &str) -> Result<Self> {
        if command::find_in_path("apt-get").is_none() {
            bail!("kernels are fetched by apt-get, which is not here; run this on Debian or Ubuntu");
        }
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is missing; install the package debian-archive-keyring");
        }
        let apt = Self {
            folder: folder(workspace).join("apt").join(release),
        };
        for part in ["lists/partial", "cache/archives/partial", "unpacked"] {
            let part = apt.folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let list = format!("deb [arch=amd64 signed-by={KEYRING}] {ARCHIVE} {release} main\n");
        fs::write(apt.folder.join("sources.list"), list)
            .with_context(|| format!("cannot write to {}", apt.folder.display()))?;
        command::run_quiet(apt.command("apt-get").args(["update", "-q"]))
            .with_context(|| format!("cannot fetch the list of packages of Debian {release}"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let place = |option: &str, name: &str| format!("{option}={}", self.folder.join(name).display());
        let mut command = Command::new(program);
        command
            .arg("-o")
            .arg(place("Dir::State", ""))
            .arg("-o")
            .arg(place("Dir::State::lists", "lists"))
            .arg("-o")
            .arg(place("Dir::Cache", "cache"))
            .arg("-o")
            .arg(place("Dir::Etc::sourcelist", "sources.list"));
        for option in [
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::State::status=/dev/null",
            "APT::Architecture=amd64",
            "APT::Sandbox::User=",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The newest package of a kernel for virtual machines whose name begins so.
    fn newest(&self, start: &str) -> Result<Option<String>> {
        let names = command::output(self.command("apt-cache").args(["pkgnames", start]))?;
        Ok(newest(&names))
    }

    /// Fetches a package and unpacks it.
    fn unpack(&self, package: &str) -> Result<PathBuf> {
        let archives = self.folder.join("cache");
        command::run_quiet(
            self.command("apt-get")
                .args(["download", "-q", package])
                .current_dir(&archives),
        )
        .with_context(|| format!("cannot fetch {package}"))?;
        let archive = fs::read_dir(&archives)
            .with_context(|| format!("cannot read {}", archives.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            })
            .with_context(|| format!("apt-get left no {package} in {}", archives.display()))?;
        let unpacked = self.folder.join("unpacked");
        command::run_quiet(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
        Ok(unpacked)
    }
}

/// The one with the highest version among names of packages.
fn newest(names: &str) -> Option<String> {
    names
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64"))
        .max_by_key(|name| {
            name.split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse::<u32>().ok())
                .collect::<Vec<_>>()
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_highest_number_and_not_the_last_word() {
        let names = "linux-image-5.10.0-9-cloud-amd64\nlinux-image-5.10.0-32-cloud-amd64\n\
                     linux-image-5.10.0-32-cloud-amd64-unsigned\nlinux-image-5.10.0-33-amd64\n";
        assert_eq!(
            newest(names).as_deref(),
            Some("linux-image-5.10.0-32-cloud-amd64")
        );
        assert_eq!(
            newest("linux-binary-7.2.9+deb13-cloud-amd64\nlinux-binary-7.2.12+deb13-cloud-amd64").as_deref(),
            Some("linux-binary-7.2.12+deb13-cloud-amd64")
        );
        assert_eq!(newest("linux-image-6.1.0-50-amd64"), None);
    }
}
