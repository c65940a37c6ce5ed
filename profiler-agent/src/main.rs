//! The command `profiler-agent`: reads the command line, captures, writes, says what happened.

mod cli;
mod terminal;
mod verbs;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{IsTerminal as _, Write as _, stderr, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use profiler_agent::{
    agent::{self, CaptureError, Captured, Options, Stop},
    doctor::{self, Diagnosis, Verdict},
    export::{
        file::{CreateError, Output, OutputFile, create_folder},
        otlp::{
            delivery::{Delivery, Entrance, Report},
            metrics::Metrics,
        },
    },
    http::{ServeError, Server},
    kernel::{
        btf::BtfError,
        capabilities::{self, MissingCapabilities},
        paranoid, seccomp,
    },
    memory,
    profile::Profile,
    sampling::SamplingError,
    service::{self, Service},
    summary::{NoSamples, ProgressLine, Summary, one_line},
    symbols,
    target::Scope,
    telemetry::Telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::{Cli, DoctorTask, Request, Serving, Task, Verbosity, can_change};

/// How often a slice is finished where it is only kept to be asked for.
const SERVED_INTERVAL: Duration = Duration::from_secs(2);

/// How long the last export of metrics may take.
const LAST_METRICS: Duration = Duration::from_secs(2);

/// Exit codes, as `--help` states them.
mod exit {
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const PRIVILEGE: u8 = 3;
    pub(crate) const KERNEL: u8 = 4;
    /// Of a shell for a program ended by SIGINT: the second Ctrl-C.
    pub(crate) const ABORTED: u8 = 130;
}

fn main() -> ExitCode {
    if let Some(code) = symbols::serve() {
        return code;
    }
    memory::share_one_heap();
    let request = match Cli::read() {
        Task::Capture(request) => *request,
        Task::Doctor(task) => return examine(*task),
        Task::Files(task) => {
            start_log(Verbosity::Normal);
            return finished(verbs::run(task));
        }
        Task::Top(task) => {
            // Words on the standard error would stand in the middle of the screen.
            start_log(Verbosity::Quiet);
            return finished(terminal::run(&task));
        }
        Task::Print(text) => return finished(verbs::print(&text)),
        Task::Tell(text) => {
            // Nobody may listen: `| head`.
            let _ = writeln!(stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
    };
    start_log(request.verbosity);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start")),
    };
    let code = match runtime.block_on(run(request)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    };
    // A capture that was aborted is not waited for.
    runtime.shutdown_background();
    code
}

fn finished(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Tells on the standard output what this host allows: it is what was asked for.
fn examine(DoctorTask { json, receiver }: DoctorTask) -> ExitCode {
    let mut sections = vec![doctor::host(), doctor::symbolizer(Path::new(symbols::SELF))];
    if let Some(options) = receiver {
        sections.push(doctor::receiver(
            options.endpoint,
            &options.client,
            options.compression,
        ));
    }
    let diagnosis = Diagnosis::new(sections);
    let text = match json {
        true => diagnosis.json().unwrap_or_else(|error| error.to_string()),
        false => diagnosis.to_string(),
    };
    // Who reads no further (`| head`) has seen enough.
    let _ = writeln!(stdout(), "{text}");
    match diagnosis.verdict() {
        Verdict::Fine | Verdict::Degraded => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::from(exit::FAILED),
    }
}

/// One capture from the first check to the last word.
async fn run(request: Request) -> anyhow::Result<ExitCode> {
    let Request {
        scope,
        frequency,
        duration,
        outputs,
        force,
        delivery,
        is_disabled,
        warnings,
        metrics,
        kernel_stats,
        serving,
        mut settings,
        unwind_memory,
        inlines,
        verbosity,
    } = request;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if is_disabled {
        tell(&"OTEL_SDK_DISABLED is true: nothing is sent");
        if outputs.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    capabilities::check()?;
    let quiet = verbosity == Verbosity::Quiet;
    // Before the first file is made: a signal must not leave it behind.
    let stop = Arc::new(Stop::new().context("cannot start")?);
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt()).context("cannot wait for signals")?,
        signal(SignalKind::terminate())?,
    );
    // An output that cannot be written is told now, not after the capture.
    let default_output = outputs.is_empty() && delivery.is_none() && serving.is_none();
    let mut files = open(outputs, force)?;
    let writes = default_output || !files.is_empty();
    let mut announcement = announce(&scope, frequency, duration.is_none() && writes);
    let telemetry = Arc::new(Telemetry::default());
    let interval = match (&delivery, &serving) {
        (Some(delivery), _) => delivery.interval,
        (None, Some(_)) => Some(SERVED_INTERVAL),
        (None, None) => None,
    };
    let server = serving
        .map(|serving| start_server(serving, interval.unwrap_or(SERVED_INTERVAL), &telemetry))
        .transpose()?
        .flatten();
    if let Some(server) = &server {
        announcement = format!("{announcement} Asked at {}.", server.address());
    }
    let options = Options {
        scope,
        frequency,
        unwind_memory,
        inlines,
        duration,
        interval,
        kernel_stats,
    };
    let delivery = match delivery {
        Some(delivery) => {
            let name = delivery.options.endpoint.to_string();
            if let Some(interval) = interval {
                announcement = format!(
                    "{announcement} Sent to {name} every {}.",
                    humantime::format_duration(interval)
                );
            }
            Some((
                Delivery::start(delivery.options)?,
                name,
                delivery.shutdown_timeout,
            ))
        }
        None => None,
    };
    if let Some((delivery, ..)) = &delivery {
        telemetry.watch_delivery(delivery.watch());
    }
    let mut metrics = metrics
        .map(|options| Metrics::start(&telemetry, &options))
        .transpose()?;
    let way = delivery.as_ref().map(|(delivery, ..)| delivery.entrance());
    let history = server.as_ref().map(Server::entrance);
    let mut capture = tokio::task::spawn_blocking({
        let (options, stop) = (options.clone(), Arc::clone(&stop));
        let telemetry = Arc::clone(&telemetry);
        move || {
            let mut line = ProgressLine::new(quiet);
            let mut service = Service::default();
            let mut announcement = (!quiet).then_some(announcement);
            let progress = |progress, figures| {
                telemetry.note(figures);
                service.samples();
                if let Some(announcement) = announcement.take() {
                    tell(&announcement);
                }
                line.show(progress);
            };
            let hand_out = |slice: Profile| match (&way, &history) {
                (Some(way), Some(history)) => {
                    history.hand_over(slice.clone());
                    way.hand_over(slice);
                }
                (Some(way), None) => way.hand_over(slice),
                (None, Some(history)) => history.hand_over(slice),
                (None, None) => {}
            };
            let captured = agent::capture(&options, &stop, progress, hand_out);
            line.clear();
            captured
        }
    });
    // A service reads its settings again; of a person at a terminal it means that the terminal is gone.
    let is_service = interval.is_some() && duration.is_none() && !stderr().is_terminal();
    let mut hangup = is_service
        .then(|| signal(SignalKind::hangup()))
        .transpose()
        .context("cannot wait for signals")?;
    let entrance = delivery.as_ref().map(|(delivery, ..)| delivery.entrance());
    let captured = loop {
        let reload = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            captured = &mut capture => {
                service::ends();
                match captured.context("the capture died").and_then(|captured| Ok(captured?)) {
                    Ok(captured) => break captured,
                    Err(error) => {
                        // What it had handed out by then is not lost with it.
                        if let Some((delivery, name, _)) = delivery {
                            abandon(delivery, &name, quiet).await?;
                        }
                        return Err(error);
                    }
                }
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = reload => {
                tell(&reloaded(&mut settings, entrance.as_ref(), &telemetry, &mut metrics));
                continue;
            }
        }
        service::ends();
        if stop.request() {
            // The open slice is given up, but not those before it.
            if let Some((delivery, name, _)) = delivery {
                abandon(delivery, &name, quiet).await?;
                return Ok(gave_up(&name));
            }
            return Ok(ExitCode::from(exit::ABORTED));
        }
    };

    // Who runs for ever may have nothing to see.
    if captured.totals.samples == 0 && !(options.interval.is_some() && options.duration.is_none()) {
        tell(&format_args!("profiler-agent: {}", NoSamples(&captured)));
        return Ok(ExitCode::from(exit::FAILED));
    }
    if default_output {
        files.push(default_file(&options.scope, &captured)?);
    }
    let mut code = ExitCode::SUCCESS;
    for file in files {
        match file.write(&captured.profile) {
            Ok(written) if !quiet => tell(&written),
            Ok(_) => {}
            Err(error) => code = failed(&error.into()),
        }
    }
    let summary = (!quiet).then(|| Summary(&captured).to_string());
    if let Some((delivery, name, timeout)) = delivery {
        let last = captured.profile;
        let entrance = delivery.entrance();
        let mut finished = tokio::task::spawn_blocking(move || delivery.finish(last, timeout));
        let mut hurried = false;
        let report = loop {
            tokio::select! {
                report = &mut finished => break report.context("the delivery died")?,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if hurried {
                return Ok(gave_up(&name));
            }
            // The profiles are not given up: they wait on the disk.
            hurried = true;
            entrance.hurry();
        };
        if hurried {
            told_delivery(&name, &report, quiet);
            return Ok(gave_up(&name));
        }
        if !told_delivery(&name, &report, quiet) {
            code = ExitCode::from(exit::FAILED);
        }
    }
    if let Some(mut stopped) = stop_metrics(metrics) {
        tokio::select! {
            _ = &mut stopped => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    if let Some(summary) = summary {
        tell(&summary);
    }
    Ok(code)
}

/// Ends the export of metrics with a last one, beside everything else.
fn stop_metrics(metrics: Option<Metrics>) -> Option<tokio::task::JoinHandle<()>> {
    metrics.map(|metrics| tokio::task::spawn_blocking(move || metrics.stop(LAST_METRICS)))
}

/// The server; `None` when nobody asked for it and its address is taken.
fn start_server(
    Serving {
        options,
        is_asked_for,
    }: Serving,
    interval: Duration,
    telemetry: &Arc<Telemetry>,
) -> Result<Option<Server>, ServeError> {
    match Server::start(options, interval, telemetry) {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_asked_for => Err(error),
        Err(error) => {
            tracing::warn!("{:#}", anyhow::Error::new(error));
            Ok(None)
        }
    }
}

/// Reads the settings again and changes what can be changed, in `before` too. Says what has become of it.
fn reloaded(
    before: &mut BTreeMap<String, Vec<String>>,
    entrance: Option<&Entrance>,
    telemetry: &Arc<Telemetry>,
    metrics: &mut Option<Metrics>,
) -> String {
    let request = match Cli::read_again() {
        Ok(request) => request,
        Err(error) => return format!("profiler-agent: the settings stay as they were: {error}"),
    };
    let (at_once, later): (Vec<_>, Vec<_>) = request
        .settings
        .into_iter()
        .filter(|(flag, values)| before.get(flag) != Some(values))
        .partition(|(flag, _)| can_change(flag));
    let flags = |settings: &[(String, Vec<String>)]| {
        let flags: Vec<&str> = settings.iter().map(|(flag, _)| flag.as_str()).collect();
        flags.join(", ")
    };
    for warning in request.warnings {
        tracing::warn!("{warning}");
    }
    let mut text = String::from("read the settings again");
    match (request.delivery, entrance) {
        (Some(delivery), Some(entrance)) => {
            if !entrance.change(delivery.options) {
                return "profiler-agent: too much is waiting to be encoded; send SIGHUP again".into();
            }
            let restarted = request.metrics.map(|options| Metrics::start(telemetry, &options));
            match restarted.transpose() {
                // It ends after an export of its own, which nobody waits for.
                Ok(restarted) => drop(stop_metrics(std::mem::replace(metrics, restarted))),
                Err(error) => text = format!("{text}; metrics are sent as before: {error}"),
            }
            if !at_once.is_empty() {
                text = format!("{text}; changed: {}", flags(&at_once));
                before.extend(at_once);
            }
        }
        (None, None) => {}
        (None, Some(_)) => text += "; to send nothing any more, end the agent",
        (Some(_), None) => text += "; to send from now on, start the agent anew",
    }
    if !later.is_empty() {
        text = format!("{text}; changed by a restart only: {}", flags(&later));
    }
    text
}

/// Puts what is left on the disk, and tells what has become of it if there was anything.
async fn abandon(delivery: Delivery, name: &str, quiet: bool) -> anyhow::Result<()> {
    let report = tokio::task::spawn_blocking(move || delivery.abandon()).await;
    let report = report.context("the delivery died")?;
    if report.counts.captured > 0 {
        told_delivery(name, &report, quiet);
    }
    Ok(())
}

/// Tells what has become of what was sent; says whether all of it is where it should be.
fn told_delivery(name: &str, report: &Report, quiet: bool) -> bool {
    let Report {
        counts,
        sent,
        failure,
    } = report;
    let dropped = counts.dropped_in_delivery();
    let words = failure.as_deref().unwrap_or("no reason is known");
    if dropped > 0 {
        let all = counts.captured + counts.inherited;
        let mut why = counts.why_dropped();
        // The receiver's words, if it has not taken anything since.
        why.extend(failure.clone());
        tell(&format_args!(
            "profiler-agent: {dropped} of {all} samples were not exported: {}",
            why.join("; ")
        ));
    } else if counts.spooled > 0 {
        tell(&format_args!(
            "profiler-agent: {} samples are kept for the next run: {words}",
            counts.spooled
        ));
    }
    if !quiet {
        if sent.requests > 0 {
            tell(&format_args!(
                "{name} ({} samples in {} requests, {} bytes, {} before compression)",
                counts.exported, sent.requests, sent.packed, sent.bytes
            ));
        }
        tell(&format_args!("delivery: {counts}"));
    }
    dropped == 0
}

/// Files are written by now; a receiver that takes its time is not waited for against anybody's will.
fn gave_up(endpoint: &str) -> ExitCode {
    tell(&format_args!("profiler-agent: stopped sending to {endpoint}"));
    ExitCode::from(exit::ABORTED)
}

fn open(outputs: Vec<Output>, force: bool) -> Result<Vec<OutputFile>, CreateError> {
    outputs
        .into_iter()
        .map(|output| OutputFile::create(output, force))
        .collect()
}

/// `flamegraphs/NAME-PID-TIME.svg` below the working directory, or without a pid where none was asked for.
fn default_file(scope: &Scope, captured: &Captured) -> anyhow::Result<OutputFile> {
    let profile = &captured.profile;
    let process = profile.processes.first();
    let name = match (scope, process) {
        (Scope::Named(name) | Scope::Container(name), _) => name.clone(),
        (Scope::Group(path), _) => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        (Scope::Host, _) | (_, None) => profile.capture.host.clone(),
        (_, Some(process)) => format!("{}-{}", profile.string(process.name), process.pid),
    };
    let name: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let time = UNIX_EPOCH + Duration::from_nanos(profile.capture.start);
    let time = humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH)).to_string();
    let time: String = time.chars().filter(|c| !"-:".contains(*c)).collect();
    let folder = PathBuf::from("flamegraphs");
    create_folder(&folder).context("cannot make the folder flamegraphs; say where to write with -o")?;
    Ok(OutputFile::create(
        Output::parse(folder.join(format!("{name}-{time}.svg")))?,
        false,
    )?)
}

fn announce(scope: &Scope, frequency: u32, writes_at_ctrl_c: bool) -> String {
    let what = match scope {
        Scope::Host => "the whole host".into(),
        Scope::Processes(pids) => {
            let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            format!("process {pids}")
        }
        Scope::Named(name) => format!("processes called {}", one_line(name)),
        Scope::Group(path) => format!("control group {}", one_line(&path.to_string_lossy())),
        Scope::Container(id) => format!("container {}", one_line(id)),
        Scope::Command(command) => {
            let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
            format!("`{}`", one_line(&words.join(" ")))
        }
    };
    let end = if writes_at_ctrl_c {
        " Ctrl-C ends it and writes the result."
    } else {
        ""
    };
    format!("Sampling {what} {frequency} times a second.{end}")
}

/// Tells an error with all its causes; returns the exit code of its kind.
fn failed(error: &anyhow::Error) -> ExitCode {
    let mut text = String::from("profiler-agent");
    for cause in error.chain().map(ToString::to_string) {
        // Some say what their cause says too.
        if !text.ends_with(&cause) {
            text = text + ": " + &cause;
        }
    }
    match remedy(error) {
        Some(remedy) => tell(&format_args!("{text}; {remedy}")),
        None => tell(&text),
    }
    ExitCode::from(exit_code(error))
}

/// What to do when the kernel itself refuses; every other error knows it.
fn remedy(error: &anyhow::Error) -> Option<String> {
    use rustix::io::Errno;

    let Some(CaptureError::Sampling(error)) = error.downcast_ref() else {
        return None;
    };
    let errno = Errno::from_raw_os_error(error.os_error()?);
    let perf_event = matches!(error, SamplingError::PerfEvent { .. });
    if perf_event
        && matches!(errno, Errno::PERM | Errno::ACCESS)
        && let Some(level) = paranoid::refuses()
    {
        return Some(format!(
            "kernel.perf_event_paranoid is {level}, at which kernels of Debian and Ubuntu want CAP_SYS_ADMIN: {}",
            paranoid::REMEDY
        ));
    }
    let words = match (errno, perf_event) {
        (Errno::NOSYS, true) => "the kernel must be built with CONFIG_PERF_EVENTS=y",
        (Errno::NOSYS, false) => "the kernel must be built with CONFIG_BPF_SYSCALL=y",
        (Errno::PERM | Errno::ACCESS, true) => {
            "a security module or lockdown refuses perf_event_open; allow it"
        }
        (Errno::PERM | Errno::ACCESS, false) => {
            "a security module or lockdown refuses bpf; allow it; before Linux 5.11, `ulimit -l unlimited` too"
        }
        _ => return None,
    };
    Some(seccomp::remedy(words))
}

/// Says something on the standard error. That nobody listens any more (`2>&1 | head`) is no reason to lose a profile, which
/// `eprintln!` would by its panic.
fn tell(words: &dyn Display) {
    let _ = writeln!(stderr(), "{words}");
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<MissingCapabilities>() {
        return exit::PRIVILEGE;
    }
    if error.is::<CreateError>() {
        return exit::FAILED;
    }
    let Some(CaptureError::Sampling(error)) = error.downcast_ref::<CaptureError>() else {
        return exit::FAILED;
    };
    match error {
        SamplingError::RateAboveLimit { .. } | SamplingError::TooManyTargets(_) => exit::USAGE,
        SamplingError::Btf(
            BtfError::Missing(_) | BtfError::NoField { .. } | BtfError::NoStructure(_) | BtfError::Malformed,
        )
        | SamplingError::Unproven { .. } => exit::KERNEL,
        SamplingError::Load(_)
        | SamplingError::Program { .. }
        | SamplingError::Map(_)
        | SamplingError::Incomplete(_)
        | SamplingError::PerfEvent { .. }
        | SamplingError::NoCpu => match error.os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => exit::PRIVILEGE,
            Some(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => {
                exit::KERNEL
            }
            _ => exit::FAILED,
        },
    }
}

/// Sends the log to the standard error: `PROFILER_AGENT_LOG` decides what, else the verbosity.
fn start_log(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::ERROR,
        Verbosity::Normal => LevelFilter::WARN,
        Verbosity::Verbose => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var("PROFILER_AGENT_LOG")
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        // It would print, and panic when nobody listens.
        .log_internal_errors(false)
        .with_target(false);
    // The kernel side's warnings come through the `log` crate, which this takes too. It fails when a log is set already, which it is not.
    let _ = subscriber.finish().try_init();
}
