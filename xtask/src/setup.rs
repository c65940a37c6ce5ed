//! `setup`: what a fresh Debian or Ubuntu needs, installed; or named exactly, where it cannot be.
//!
//! Every step looks first and does nothing when its result is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::collector;
use crate::command;
use crate::page;
use crate::python::Python;
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

/// Debian packages of the compiler of the kernel side.
const COMPILER: &[(&str, &str)] = &[
    ("rustc-web", "the compiler of the kernel side"),
    ("libstd-rust-web-dev-bpf", "its `core` for BPF"),
];

/// The other Debian packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("rust-web-clippy", "its linter"),
    ("gcc", "linker of the user side; C programs that tests profile"),
    ("g++", "C++ programs that tests profile"),
    ("libc6-dev", "headers of both"),
    ("binutils", "`nm` and `readelf`, which tests compare with"),
    ("dwz", "it packs debug information, which tests read"),
    ("nodejs", "JavaScript that tests profile"),
    ("default-jdk-headless", "Java that tests profile"),
    ("python3-venv", "the OTLP decoder of the tests"),
    ("runc", "it runs the container of deploy/"),
    ("git", "lists of the project's files"),
];

/// What virtual machines with other kernels need. Not part of the set-up: only `test vm` asks for it.
const EMULATOR: &[(&str, &str)] = &[
    ("qemu-system-x86", "the machine"),
    ("debian-archive-keyring", "the keys of the kernels' packages"),
    ("gcc", "the programs that are profiled in there"),
    (
        "libc6-dev",
        "headers, and the C library for those that are linked statically",
    ),
    ("binutils", "`strip`"),
];

/// Parts of rustup's stable toolchain, beside cargo and rustc.
const COMPONENTS: &[(&str, &str)] = &[("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")];

/// One thing that the chores need.
struct Need {
    what: String,
    ready: bool,
}

/// Installs what is missing.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    install_packages(&[COMPILER, PACKAGES].concat())?;
    let toolchain = Toolchain::prepare(workspace)?;
    if !toolchain.has_clippy() {
        bail!("the kernel side has no linter; install the package rust-web-clippy");
    }
    for (component, program) in COMPONENTS {
        if command::find_in_path(program).is_none() {
            bail!("{component} is missing; run `rustup component add {component}`");
        }
    }
    let python = Python::of(workspace);
    python.install()?;
    if collector::find_go(workspace)?.is_none() {
        python
            .install_go()
            .context("there is no Go 1.26 or newer here; install it from https://go.dev/dl/")?;
    }
    collector::build(workspace)?;
    if find_zig(workspace)?.is_none() {
        python
            .install_zig()
            .context("there is no Zig here; install it from https://ziglang.org/download/")?;
    }
    page::install(workspace)?;
    println!("setup: everything is here");
    Ok(())
}

/// Tells what is missing, and fails if anything is.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut needs = Vec::new();
    for (package, purpose) in COMPILER.iter().chain(PACKAGES).filter(|_| has_apt()) {
        needs.push(Need {
            what: format!("package {package} ({purpose})"),
            ready: is_installed(package),
        });
    }
    let toolchain = Toolchain::find(workspace)?;
    needs.push(Need {
        what: "a compiler for BPF".to_owned(),
        ready: toolchain.is_some(),
    });
    let linker = toolchain.as_ref().is_some_and(Toolchain::has_linker);
    needs.push(Need {
        what: "bpf-linker".to_owned(),
        ready: linker,
    });
    for (component, program) in COMPONENTS {
        needs.push(Need {
            what: format!("rustup component {component}"),
            ready: command::find_in_path(program).is_some(),
        });
    }
    needs.push(Need {
        what: "Python packages of xtask/requirements.txt".to_owned(),
        ready: Python::of(workspace).is_ready()?,
    });
    needs.push(Need {
        what: "Go 1.26 or newer".to_owned(),
        ready: collector::find_go(workspace)?.is_some(),
    });
    needs.push(Need {
        what: "the OpenTelemetry Collector of the tests".to_owned(),
        ready: collector::is_ready(workspace)?,
    });
    needs.push(Need {
        what: "Zig".to_owned(),
        ready: find_zig(workspace)?.is_some(),
    });
    needs.push(Need {
        what: "Node.js 20 or newer, with npm".to_owned(),
        ready: page::find_node(workspace)?.is_some(),
    });
    needs.push(Need {
        what: "npm packages of profiler-agent/page".to_owned(),
        ready: page::is_ready(workspace)?,
    });
    needs.push(Need {
        what: "Chromium (Debian package chromium-headless-shell), in which the page is tested".to_owned(),
        ready: page::find_browser().is_some(),
    });
    for Need { what, ready } in &needs {
        println!("{}  {what}", if *ready { "here   " } else { "MISSING" });
    }
    let missing = needs.iter().filter(|need| !need.ready).count();
    if missing > 0 {
        bail!(
            "{missing} of {} are missing; run `cargo xtask setup`",
            needs.len()
        );
    }
    Ok(())
}

/// The `zig` of this machine, or the one of the tools. Tests profile a program of its making.
pub(crate) fn find_zig(workspace: &Workspace) -> Result<Option<PathBuf>> {
    match command::find_in_path("zig") {
        Some(zig) => Ok(Some(zig)),
        None => Python::of(workspace).zig(),
    }
}

/// Installs the compiler of the kernel side where apt has it; elsewhere there is nothing to do here.
pub(crate) fn install_compiler() -> Result<()> {
    if has_apt() {
        install_packages(COMPILER)
    } else {
        Ok(())
    }
}

/// Installs what virtual machines with other kernels need, where apt has it.
pub(crate) fn install_emulator() -> Result<()> {
    if !has_apt() {
        return Ok(());
    }
    install_packages(EMULATOR)
}

/// Installs those of these Debian packages that are missing; each comes with what it is for.
pub(crate) fn install_packages(packages: &[(&str, &str)]) -> Result<()> {
    if !has_apt() {
        return if Path::new("/usr/bin/gcc").exists() || command::find_in_path("cc").is_some() {
            Ok(())
        } else {
            bail!(
                "this is neither Debian nor Ubuntu: install gcc, g++, libc headers, binutils, git and python3, then\n{}",
                toolchain::missing()
            )
        };
    }
    let missing: Vec<&str> = packages
        .iter()
        .map(|(package, _)| *package)
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    command::run_quiet(command::privileged("apt-get", &[])?.args(["update", "-q"]))
        .context("cannot refresh the list of packages")?;
    let mut install = command::privileged("env", &[])?;
    install.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-q",
        "--no-install-recommends",
    ]);
    command::run_quiet(install.args(&missing)).with_context(|| {
        format!(
            "install these packages by hand: {}; rustc-web is in Debian 12's security archive and newer",
            missing.join(" ")
        )
    })
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    command::output(&mut query).is_ok_and(|status| status == "installed")
}
