//! `test vm`: one kernel object on the kernels that it is for, each in a virtual machine under software emulation.
//!
//! Debian's kernels boot with an archive in memory that holds the agent, the libraries it needs and programs whose stacks are
//! known; what is said inside comes over the serial line and is judged here. No hardware is needed, and no right but to run
//! QEMU. There is no PMU inside, so `cpu-clock` ticks; how many samples there are means nothing.

mod checks;
mod initramfs;
mod kernels;
mod serial;
mod service;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::kernels::{KERNELS, Kernel};
use self::serial::Transcript;
pub(crate) use self::service::prove as prove_service;
use crate::setup;
use crate::verifier::{self, Size};
use crate::workspace::Workspace;

/// After this a machine hangs: three times what a slow one has needed.
const PATIENCE: Duration = Duration::from_secs(240);

/// A kernel that has not started its first process by then never will: it takes some 2 s, 10 s on a busy machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(45);

/// The oldest and the newest, for where each minute counts.
pub(crate) fn oldest_and_newest(workspace: &Workspace) -> Result<()> {
    let [oldest, .., newest] = KERNELS;
    boot_all(workspace, &[oldest, newest])
}

/// Boots the kernels of these series, all by default.
pub(crate) fn run(workspace: &Workspace, series: &[String]) -> Result<()> {
    if series.is_empty() {
        return boot_all(workspace, &KERNELS);
    }
    let kernels = series.iter().map(|series| Kernel::named(series));
    boot_all(workspace, &kernels.collect::<Result<Vec<_>>>()?)
}

fn boot_all(workspace: &Workspace, kernels: &[Kernel]) -> Result<()> {
    setup::install_emulator()?;
    let archive = initramfs::make(workspace)?;
    let mut sizes: Vec<(String, Vec<Size>)> = Vec::new();
    let mut failed = Vec::new();
    for kernel in kernels {
        let image = kernel.image(workspace)?;
        let log = workspace.target().join(format!("vm/{}.log", kernel.series));
        let start = Instant::now();
        println!("vm: Linux {} boots", kernel.series);
        boot(&image, &archive, &log).with_context(|| format!("Linux {} did not run", kernel.series))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let transcript = Transcript::parse(&String::from_utf8_lossy(&text));
        let results = checks::judge(&transcript);
        for result in &results {
            println!("vm: {result}");
        }
        let bad = results.iter().filter(|result| result.failed()).count();
        println!(
            "vm: Linux {}: {} checks, {bad} failed, in {:.1} s; all it said is in {}",
            transcript.kernel.as_deref().unwrap_or(kernel.series),
            results.len(),
            start.elapsed().as_secs_f64(),
            log.display()
        );
        if bad > 0 {
            failed.push(kernel.series);
        }
        let said = transcript
            .part("verifier")
            .map_or("", |part| part.stdout.as_str());
        sizes.push((kernel.series.to_owned(), Size::parse_all(said)));
    }
    print!("\n{}", verifier::table(&sizes));
    if !failed.is_empty() {
        bail!("not right on Linux {}", failed.join(", "));
    }
    Ok(())
}

/// Runs a machine until it powers itself off. What it says goes to `log`. One whose kernel stops before the first process has run is
/// started once more: software emulation has its own faults.
fn boot(kernel: &Path, archive: &Path, log: &Path) -> Result<()> {
    if run_machine(kernel, archive, log)? == Ended::BeforeInit {
        println!("vm: the kernel did not come up; once more");
        if run_machine(kernel, archive, log)? == Ended::BeforeInit {
            bail!("its kernel did not come up; what it said is in {}", log.display());
        }
    }
    Ok(())
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ByItself,
    BeforeInit,
}

/// The CPU lacks `cmpxchg16b`: QEMU 7.2 now and then leaves garbage in the flags behind it, and kernels die of that in their
/// allocators. They do without.
fn run_machine(kernel: &Path, archive: &Path, log: &Path) -> Result<Ended> {
    let said = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,-cx16",
            "-smp",
            "2",
            "-m",
            "1024",
        ])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(said)
        .spawn()
        .context("cannot start qemu-system-x86_64; install the package qemu-system-x86")?;
    let start = Instant::now();
    loop {
        if let Some(status) = machine.try_wait().context("cannot wait for QEMU")? {
            if status.success() {
                return Ok(if has_begun(log) {
                    Ended::ByItself
                } else {
                    Ended::BeforeInit
                });
            }
            bail!("QEMU failed ({status}); what it wrote above says why");
        }
        let stuck = start.elapsed() > BOOT_PATIENCE && !has_begun(log);
        if stuck || start.elapsed() > PATIENCE {
            let _ = machine.kill();
            let _ = machine.wait();
            if stuck {
                return Ok(Ended::BeforeInit);
            }
            bail!(
                "it was not done after {} s; how far it came is in {}",
                PATIENCE.as_secs(),
                log.display()
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the first process has said a word.
fn has_begun(log: &Path) -> bool {
    fs::read(log).is_ok_and(|said| String::from_utf8_lossy(&said).contains("@@ kernel "))
}
