//! The command line, and the variables and the file that say what it does not. Nothing outside this module sees clap.

mod file;
mod layers;
mod secret;
mod verbs;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use profiler_agent::{
    agent::MIN_INTERVAL,
    export::{
        file::Output,
        otlp::{
            client, delivery,
            encode::{self, Names, Times},
            endpoint::{Endpoint, Protocol},
            environment::{Environment, Setting},
            headers::Header,
            metrics,
            parcel::{Compression, UnknownCompression},
            tls,
        },
    },
    history,
    http::{self, Address},
    resource, spool,
    target::Scope,
};
pub(crate) use verbs::{FilesTask, TopSource, TopTask, Whom};

use profiler_common::arena::{MAX_SEGMENTS, SEGMENT_LEN};

const EXAMPLES: &str = "\
Examples:
  Where does process 1234 spend its time? Until Ctrl-C, then a flamegraph in flamegraphs/:
      sudo profiler-agent --pid 1234
  Thirty seconds of it, as a picture and for `go tool pprof`:
      sudo profiler-agent -p 1234 -d 30s -o out.svg -o out.pb.gz
  Two processes and the children they start; a service of systemd; a container:
      sudo profiler-agent -p 1234,1300 -d 1m
      sudo profiler-agent --cgroup nginx.service -d 1m
      sudo profiler-agent --container 3f4e1a -d 1m
  A command from its first instruction to its end:
      sudo profiler-agent -- ./bench --size 1000
  The whole host for ten seconds, as folded stacks for other tools:
      sudo profiler-agent -d 10s -o - | grep nginx
  Thirty seconds of it to an OpenTelemetry Collector:
      sudo profiler-agent -d 30s --otlp-endpoint http://localhost:4317
  The whole host for ever, sent every 10 seconds, kept on the disk while the Collector is away:
      sudo profiler-agent --otlp-endpoint http://localhost:4317
  The whole host for ever, to be asked: curl -s 'localhost:7979/flamegraph.svg?last=5m' > now.svg
      sudo profiler-agent --serve 127.0.0.1:7979
  What does this host allow, and what is missing?
      sudo profiler-agent doctor
  What is this host doing at this moment? Of the agent that runs here, or by itself:
      sudo profiler-agent top
  Where does the time of a capture go, in text? What has changed since another one?
      profiler-agent report out.pb.gz
      profiler-agent diff yesterday.pb.gz out.pb.gz -o changed.svg
  A flamegraph of what perf recorded:
      perf script | profiler-agent render - -o perf.svg

Exit codes: 0 fine, 1 failed or saw no sample, 2 wrong usage, 3 a privilege is missing,
4 this kernel cannot, 130 aborted by a second Ctrl-C.";

/// Where does the time go? Samples stacks in the kernel and draws a flamegraph.
///
/// Every stack of the target is sampled 99 times a second while it runs on a CPU, by a program in the kernel: no restart, no debug
/// build, no change of the target. Without a target the whole host is sampled.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
#[command(
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Profile these processes with all their threads, and the children they start. Ends when they all have ended.
    #[arg(short, long, value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pid: Vec<u32>,

    /// Profile the processes of this name, also those that start meanwhile. It is the name of the main thread, of which the kernel keeps 15 bytes.
    #[arg(long, value_name = "NAME", conflicts_with = "pid", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    comm: Option<String>,

    /// Profile what runs in this control group (version 2) and below it: its path as /proc/PID/cgroup has it, or its name alone, e.g. nginx.service.
    /// Ends with its last process.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["pid", "comm"])]
    cgroup: Option<PathBuf>,

    /// Profile what runs in this container: its ID, or the start of it. Ends with its last process.
    #[arg(long, value_name = "ID", conflicts_with_all = ["pid", "comm", "cgroup"], value_parser = container)]
    container: Option<String>,

    /// Samples per second and CPU. Odd rates do not run in step with what happens every 10 ms.
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..))]
    frequency: u32,

    /// How long, e.g. 30s, 5m, 1h30m. Default: until Ctrl-C, SIGTERM, or the end of the target.
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,

    /// Write this file; repeatable. The extension decides: .svg (flamegraph), .html (page to explore: time line, search, differences),
    /// .folded (stacks as text), .pb.gz (pprof), .otlp (OpenTelemetry), .json (speedscope). `-` is folded stacks on the standard
    /// output. Default: an .svg in flamegraphs/.
    #[arg(short, long, value_name = "FILE", value_parser = clap::value_parser!(Output))]
    output: Vec<Output>,

    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,

    /// Send profiles to this OpenTelemetry Collector, e.g. http://localhost:4317 (gRPC) or https://collector:4318 (HTTP). Without -d and
    /// --output this goes on until it is ended.
    #[arg(long, value_name = "URL", help_heading = DELIVERY)]
    otlp_endpoint: Option<String>,

    /// How to send: grpc or http/protobuf. Default: by the port of the endpoint, 4318 is http/protobuf, any other grpc.
    #[arg(long, value_name = "PROTOCOL", help_heading = DELIVERY)]
    otlp_protocol: Option<Protocol>,

    /// gzip, which every receiver takes; zstd, which Collectors take; or none.
    #[arg(long, value_name = "NAME", default_value_t, help_heading = DELIVERY)]
    otlp_compression: Compression,

    /// Send this header with every request, e.g. "x-tenant=7"; repeatable. One with a secret is better in a file of its own, since every user
    /// of the host can read what stands here.
    #[arg(long, value_name = "NAME=VALUE", help_heading = DELIVERY)]
    otlp_header: Vec<String>,

    /// Send the headers in this file too, one a line: "authorization=Bearer TOKEN". SIGHUP has it read again.
    #[arg(long, value_name = "FILE", help_heading = DELIVERY)]
    otlp_header_file: Option<PathBuf>,

    /// When each event was: exact; rounded to less than a hundredth of the sampling period, which is half of the size; or none, only their number.
    #[arg(long, value_name = "HOW", default_value = "rounded", help_heading = DELIVERY)]
    otlp_times: Times,

    /// Names of functions: all, with mangled ones; readable ones; or none where the build ID or hash of its file tells the receiver where to look.
    #[arg(long, value_name = "WHICH", default_value = "readable", help_heading = DELIVERY)]
    otlp_names: Names,

    /// Longest time for one request.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = DELIVERY)]
    otlp_timeout: Duration,

    /// Trust the certificate authorities in this file (PEM) instead of the system's.
    #[arg(long, value_name = "FILE", help_heading = DELIVERY)]
    otlp_ca: Option<PathBuf>,

    /// Show this certificate (PEM) to a receiver that asks for one.
    #[arg(long, value_name = "FILE", requires = "otlp_key", help_heading = DELIVERY)]
    otlp_cert: Option<PathBuf>,

    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "otlp_cert", help_heading = DELIVERY)]
    otlp_key: Option<PathBuf>,

    /// How often a finished profile is sent.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = interval, help_heading = DELIVERY)]
    interval: Duration,

    /// Keep in this folder what the receiver does not take, and send it later, also after a restart. Default: the spool folder below
    /// STATE_DIRECTORY, or else /var/lib/profiler-agent, when the profile has no end; none for one with -d or --output.
    #[arg(long, value_name = "FOLDER", help_heading = DELIVERY)]
    spool: Option<PathBuf>,

    /// Most bytes in that folder; the oldest profiles make way. 0 keeps nothing there.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size, help_heading = DELIVERY)]
    spool_limit: u64,

    /// Most bytes that wait in memory where there is no folder, or its disk is full.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size, help_heading = DELIVERY)]
    queue_limit: u64,

    /// How long the end may take to send what is left, from the last success on. What is not sent by then stays in the folder.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = DELIVERY)]
    shutdown_timeout: Duration,

    /// How often the agent's own metrics are sent where its profiles are, e.g. 60s, or off. Default: 60s for a profile that is sent and has
    /// no end, else off.
    #[arg(long, value_name = "TIME", value_parser = metrics_interval, help_heading = DELIVERY)]
    metrics_interval: Option<MetricsInterval>,

    /// Have the kernel account for the time of BPF programs, for the metrics: it costs each of them on this host two readings of the clock a
    /// run, and takes CAP_SYS_ADMIN.
    #[arg(long, help_heading = DELIVERY)]
    kernel_stats: bool,

    /// Answer over HTTP what this host has been doing: 127.0.0.1:7979, unix:/run/profiler-agent.sock, or off. Other addresses than this
    /// host's own take a token. Default: 127.0.0.1:7979 for a profile that is sent and has no end, else off.
    #[arg(long, value_name = "ADDR", value_parser = serve, conflicts_with = "output", help_heading = SERVING)]
    serve: Option<Serve>,

    /// What a request has to show as "Authorization: Bearer TOKEN". Better in a file than here, where every user of the host can read it.
    #[arg(long, value_name = "TOKEN", help_heading = SERVING)]
    serve_token: Option<String>,

    /// The same, as the one line of this file.
    #[arg(long, value_name = "FILE", help_heading = SERVING)]
    serve_token_file: Option<PathBuf>,

    /// Answer whoever reaches the address, without a token.
    #[arg(long, help_heading = SERVING)]
    insecure: bool,

    /// How much of the past is kept for that, by age and by size.
    #[arg(long, value_name = "TIME,SIZE", default_value = "1h,64MiB", value_parser = history, help_heading = SERVING)]
    history: history::Limits,

    /// Keep that in this folder too, with as much age and size, so that it is still there after a restart.
    #[arg(long, value_name = "FOLDER", help_heading = SERVING)]
    history_folder: Option<PathBuf>,

    /// Kernel memory for unwind tables, e.g. 64MiB. They are built of what is sampled; when they do not fit, those not used lately make
    /// room.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = unwind_memory)]
    unwind_memory: usize,

    /// No inlined functions and no source lines: names come from symbol tables alone, which takes a small part of the time when
    /// there is much debug information.
    #[arg(long)]
    no_inlines: bool,
    /// Read settings from this TOML file: each key is the name of a flag without its dashes. Every flag is a variable too:
    /// PROFILER_AGENT_FREQUENCY. A flag beats a variable, a variable beats the file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,

    /// Say more: what was probed, what was missing. Twice: everything.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Profile this command, which is asked to end (SIGTERM) when the profile ends before it does.
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pid", "comm", "cgroup", "container"])]
    command: Vec<OsString>,
}

/// What is done instead of a capture.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows what the host is doing at this moment, like top: processes, functions, a flamegraph as text.
    Top(verbs::TopArgs),
    /// Draws or converts profiles that were taken before, or by other tools; several are added up.
    Render(verbs::RenderArgs),
    /// Says and draws what has changed between two profiles, and what may be chance.
    Diff(verbs::DiffArgs),
    /// Says in text who has most of a profile: functions, the hottest path, processes.
    Report(verbs::ReportArgs),
    /// Writes the completions of this command line for a shell.
    Completions(verbs::CompletionsArgs),
    /// Writes the manual page, or that of a verb.
    Man(verbs::ManArgs),
    /// Says what this host allows and what is missing, each with what it means and what to do; with --otlp-endpoint before it, or one in the
    /// settings, whether profiles are taken there. Exit code 1 if something is broken.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at the settings, and do nothing else.
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Say whether a file is fine; exit code 2 if not.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Show every setting and where it comes from. Values of headers are not shown.
    Show,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Task {
    /// A capture.
    Capture(Box<Request>),
    /// An examination of this host.
    Doctor(Box<DoctorTask>),
    /// Something with profiles that are there already.
    Files(FilesTask),
    /// A look at the host as it is.
    Top(Box<TopTask>),
    /// Writes this on the standard output.
    Print(Vec<u8>),
    /// A text.
    Tell(String),
}

/// What to look at.
#[derive(Debug)]
pub(crate) struct DoctorTask {
    /// Whether a program reads it.
    pub(crate) json: bool,
    /// Where profiles would be sent.
    pub(crate) receiver: Option<delivery::Options>,
}

/// What to capture, and what to do with it.
#[derive(Debug)]
pub(crate) struct Request {
    /// What to profile.
    pub(crate) scope: Scope,
    /// Samples per second and CPU.
    pub(crate) frequency: u32,
    /// How long.
    pub(crate) duration: Option<Duration>,
    /// Where to write; empty is the default file.
    pub(crate) outputs: Vec<Output>,
    /// Whether files that exist are overwritten.
    pub(crate) force: bool,
    /// Where to send, and how.
    pub(crate) delivery: Option<Delivery>,
    /// Whether there is an endpoint, but `OTEL_SDK_DISABLED` says that nothing is to be sent.
    pub(crate) is_disabled: bool,
    /// What is wrong with the settings, and does not keep it from running.
    pub(crate) warnings: Vec<String>,
    /// Where to send metrics, and how.
    pub(crate) metrics: Option<metrics::Options>,
    /// Whether the kernel is to account for the time of its programs.
    pub(crate) kernel_stats: bool,
    /// Where to answer.
    pub(crate) serving: Option<Serving>,
    /// Every setting as it was given, by its flag; of secrets what tells whether they have changed.
    pub(crate) settings: BTreeMap<String, Vec<String>>,
    /// Bytes of kernel memory for unwind tables.
    pub(crate) unwind_memory: usize,
    /// Whether inlined functions and lines are wanted.
    pub(crate) inlines: bool,
    /// How much to say.
    pub(crate) verbosity: Verbosity,
}

/// Where to send, and how.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The way.
    pub(crate) options: delivery::Options,
    /// How often; `None` is one profile of the whole capture.
    pub(crate) interval: Option<Duration>,
    /// How long the end may take.
    pub(crate) shutdown_timeout: Duration,
}

/// Where to answer, and how.
#[derive(Debug)]
pub(crate) struct Serving {
    /// The way.
    pub(crate) options: http::Options,
    /// Whether somebody asked for it; what is only a default may be missing.
    pub(crate) is_asked_for: bool,
}

/// What `--serve` says.
#[derive(Debug, Clone)]
enum Serve {
    Off,
    At(Address),
}

/// What requests have to show, where the command line does not say it.
const TOKEN_VARIABLE: &str = "PROFILER_AGENT_SERVE_TOKEN";
/// The file that it is in.
const TOKEN_FILE_VARIABLE: &str = "PROFILER_AGENT_SERVE_TOKEN_FILE";
/// Kernel memory for unwind tables where nobody says otherwise.
const DEFAULT_UNWIND_MEMORY: usize = 32 << 20;
/// Where a running agent is asked when nobody says otherwise.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7979);

/// Whether a setting can be changed while the agent runs.
pub(crate) fn can_change(flag: &str) -> bool {
    flag.starts_with("otlp-") || ["queue-limit", "metrics-interval"].contains(&flag)
}

/// Heading of the flags about sending.
const DELIVERY: &str = "Delivery";
/// Heading of the flags about answering.
const SERVING: &str = "Asking the running agent";

/// How much the agent says on the standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors.
    Quiet,
    /// Progress, the summary and warnings.
    Normal,
    /// What was probed and found.
    Verbose,
    /// Everything.
    Debug,
}

impl Cli {
    /// Reads the command line of this process. Wrong usage ends it with exit code 2 and the remedy.
    pub(crate) fn read() -> Task {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Self::task(&arguments, &|name| std::env::var(name).ok()).unwrap_or_else(|error| error.exit())
    }

    /// Reads everything again: the file may have changed. The error is for people.
    pub(crate) fn read_again() -> Result<Request, String> {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        match Self::task(&arguments, &|name| std::env::var(name).ok()) {
            Ok(Task::Capture(request)) => Ok(*request),
            Ok(Task::Doctor(_) | Task::Files(_) | Task::Top(_) | Task::Print(_) | Task::Tell(_)) => {
                Err("there is nothing to profile".into())
            }
            Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
        }
    }

    /// What arguments and variables ask for.
    fn task(arguments: &[OsString], get: &dyn Fn(&str) -> Option<String>) -> Result<Task, clap::Error> {
        // What works with files has no settings, and is not kept from it by wrong ones.
        let matches = Self::command().try_get_matches_from(arguments)?;
        refuse_flags_of_captures(&matches)?;
        match Self::from_arg_matches(&matches)?.verb {
            Some(Verb::Top(args)) => return args.task(get),
            Some(Verb::Render(args)) => return args.task(get),
            Some(Verb::Diff(args)) => return args.task(get),
            Some(Verb::Report(args)) => return Ok(args.task(get)),
            Some(Verb::Completions(args)) => return Ok(args.task()),
            Some(Verb::Man(args)) => return args.task(),
            Some(Verb::Doctor { .. } | Verb::Config(_)) | None => {}
        }
        let mut layered = layers::read(arguments, get)?;
        match layered.cli.verb.take() {
            Some(Verb::Config(ConfigVerb::Show)) => Ok(Task::Tell(shown(&layered))),
            Some(Verb::Doctor { json }) => Ok(Task::Doctor(Box::new(DoctorTask {
                json,
                receiver: layered
                    .cli
                    .request(layered.environment)?
                    .delivery
                    .map(|delivery| delivery.options),
            }))),
            Some(Verb::Config(ConfigVerb::Check { file })) => {
                // With nothing but the file, as if it were given in an environment without variables; but a token is better there than in it.
                let get =
                    |name: &str| get(name).filter(|_| [TOKEN_VARIABLE, TOKEN_FILE_VARIABLE].contains(&name));
                let arguments = ["profiler-agent".into(), "--config".into(), file.clone().into()];
                let layered = layers::read(&arguments, &get)?;
                let settings = layered.settings.values();
                let count = settings
                    .filter(|(_, origin)| matches!(origin, layers::Origin::File(..)))
                    .count();
                layered.cli.request(layered.environment)?;
                Ok(Task::Tell(format!(
                    "{}: {count} settings, all fine",
                    file.display()
                )))
            }
            Some(
                Verb::Top(_)
                | Verb::Render(_)
                | Verb::Diff(_)
                | Verb::Report(_)
                | Verb::Completions(_)
                | Verb::Man(_),
            )
            | None => {
                let mut request = layered.cli.request(layered.environment)?;
                for (flag, (values, _)) in layered.settings {
                    request.settings.entry(flag).or_default().extend(values);
                }
                Ok(Task::Capture(Box::new(request)))
            }
        }
    }

    /// The checked request.
    fn request(self, mut environment: Environment) -> Result<Request, clap::Error> {
        let Self {
            verb: _,
            mut pid,
            comm,
            cgroup,
            container,
            frequency,
            duration,
            output,
            force,
            otlp_endpoint,
            otlp_protocol,
            otlp_compression,
            otlp_header,
            otlp_header_file,
            otlp_times,
            otlp_names,
            otlp_timeout,
            otlp_ca,
            otlp_cert,
            otlp_key,
            interval,
            spool,
            spool_limit,
            queue_limit,
            shutdown_timeout,
            metrics_interval,
            kernel_stats,
            serve,
            serve_token,
            serve_token_file,
            insecure,
            history,
            history_folder,
            unwind_memory,
            no_inlines,
            config: _,
            quiet,
            verbose,
            command,
        } = self;
        let wrong = |message: String| Self::command().error(ErrorKind::ValueValidation, message);
        let endpoint = otlp_endpoint
            .as_ref()
            .map(|url| Endpoint::parse(url, otlp_protocol))
            .transpose()
            .map_err(|error| wrong(format!("--otlp-endpoint: {error}")))?;
        // The same text from the variable of the signal means another thing.
        let variable = environment
            .settings
            .iter()
            .find(|setting| setting.flag == "otlp-endpoint");
        let is_variable = variable.is_some_and(|setting| setting.values.first() == otlp_endpoint.as_ref());
        let endpoint = endpoint.map(|endpoint| match environment.exact_endpoint && is_variable {
            true => endpoint.exactly(),
            false => endpoint,
        });
        let mut warnings: Vec<String> = environment.warnings.drain(..).collect();
        for warning in &mut warnings {
            warning.push_str("; it is passed over");
        }
        let headers = headers(&otlp_header, otlp_header_file.as_deref(), &mut warnings).map_err(wrong)?;
        let of_file: Vec<&Header> = headers.iter().skip(otlp_header.len()).collect();
        let secrets = [
            ("otlp-header", secret::fingerprint(&otlp_header)),
            ("otlp-header-file", secret::fingerprint(of_file)),
        ];
        let token_flag = match &serve_token_file {
            Some(_) => "serve-token-file",
            None => "serve-token",
        };
        let serve_token = token(serve_token, serve_token_file.as_deref(), &mut warnings).map_err(wrong)?;
        let secrets = secrets
            .into_iter()
            .chain([(token_flag, secret::fingerprint(&serve_token))]);
        let secrets = secrets.map(|(flag, secret)| (flag.to_owned(), vec![secret]));
        let is_endless = duration.is_none() && output.is_empty();
        let folder = spool.or_else(|| is_endless.then(spool::default_folder));
        let delivery = endpoint.map(|endpoint| Delivery {
            options: delivery::Options {
                endpoint,
                client: client::Options {
                    timeout: otlp_timeout,
                    headers,
                    tls: tls::Files {
                        authority: otlp_ca,
                        identity: otlp_cert.zip(otlp_key),
                    },
                },
                compression: otlp_compression,
                encode: encode::Options {
                    times: otlp_times,
                    names: otlp_names,
                    resource: resource::of_this_host(&environment.resource),
                    ..encode::Options::default()
                },
                spool: folder.filter(|_| spool_limit > 0).map(|folder| spool::Options {
                    folder,
                    limit: spool_limit,
                }),
                memory: usize::try_from(queue_limit).unwrap_or(usize::MAX),
            },
            // A file is one profile of everything, and what is sent beside it the same one.
            interval: output.is_empty().then_some(interval),
            shutdown_timeout,
        });
        let metrics = match (metrics_interval, &delivery) {
            (Some(MetricsInterval::Every(interval)), Some(delivery)) => Some((interval, delivery)),
            (None, Some(delivery)) if is_endless => Some((metrics::DEFAULT_INTERVAL, delivery)),
            (Some(MetricsInterval::Off), _) | (_, None) | (None, Some(_)) => None,
        };
        let metrics = metrics.filter(|_| !environment.is_disabled);
        let metrics = metrics
            .map(|(interval, delivery)| metrics_options(&delivery.options, &environment, interval))
            .transpose()
            .map_err(wrong)?;
        once_each(&output)?;
        let serving = match serve {
            Some(Serve::Off) => None,
            Some(Serve::At(address)) => Some((address, true)),
            None if is_endless && delivery.is_some() => Some((Address::Tcp(DEFAULT_ADDRESS), false)),
            None => None,
        };
        let serving = serving.map(|(address, is_asked_for)| Serving {
            options: http::Options {
                address,
                token: serve_token,
                limits: history,
                folder: history_folder,
            },
            is_asked_for,
        });
        if let Some(Serving { options, .. }) = &serving
            && !options.address.is_local()
            && options.token.is_none()
            && !insecure
        {
            return Err(wrong(format!(
                "--serve: everybody who reaches {} could see what this host does; say --serve-token-file, set PROFILER_AGENT_SERVE_TOKEN, or say --insecure",
                options.address
            )));
        }
        pid.sort_unstable();
        pid.dedup();
        Ok(Request {
            scope: match (comm, cgroup, container) {
                (Some(name), _, _) => Scope::Named(name),
                (_, Some(path), _) => Scope::Group(path),
                (_, _, Some(id)) => Scope::Container(id),
                (None, None, None) if !pid.is_empty() => Scope::Processes(pid),
                (None, None, None) if !command.is_empty() => Scope::Command(command),
                (None, None, None) => Scope::Host,
            },
            frequency,
            duration,
            outputs: output,
            force,
            delivery: delivery.filter(|_| !environment.is_disabled),
            is_disabled: environment.is_disabled && otlp_endpoint.is_some(),
            warnings,
            metrics,
            kernel_stats,
            serving,
            settings: secrets.collect(),
            unwind_memory,
            inlines: !no_inlines,
            verbosity: match (quiet, verbose) {
                (true, _) => Verbosity::Quiet,
                (false, 0) => Verbosity::Normal,
                (false, 1) => Verbosity::Verbose,
                (false, _) => Verbosity::Debug,
            },
        })
    }
}

/// The headers that were said, then those of a file.
fn headers(said: &[String], file: Option<&Path>, warnings: &mut Vec<String>) -> Result<Vec<Header>, String> {
    // Here and not by clap, whose message would repeat the value.
    let mut headers = said
        .iter()
        .map(|header| header.parse())
        .collect::<Result<Vec<Header>, _>>()
        .map_err(|error| format!("--otlp-header: {error}"))?;
    if let Some(path) = file {
        let of_file =
            secret::headers(path, warnings).map_err(|error| format!("--otlp-header-file: {error}"))?;
        let is_said = |header: &&Header| headers.iter().any(|said| said.name() == header.name());
        if let Some(twice) = of_file.iter().find(is_said) {
            let name = twice.name();
            return Err(format!(
                "--otlp-header-file: {name} is set by --otlp-header too; leave one of them out"
            ));
        }
        headers.extend(of_file);
    }
    Ok(headers)
}

/// What requests have to show.
fn token(
    said: Option<String>,
    file: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Result<Option<String>, String> {
    match (said, file) {
        (Some(_), Some(_)) => {
            Err("--serve-token-file: there is --serve-token too; leave one of them out".into())
        }
        (Some(token), None) if token.trim().is_empty() => {
            Err("--serve-token: it is empty, which keeps nobody out; say one, or leave it out".into())
        }
        (said, None) => Ok(said),
        (None, Some(path)) => secret::token(path, warnings)
            .map(Some)
            .map_err(|error| format!("--serve-token-file: {error}")),
    }
}

/// Metrics go where profiles go, but for what variables say of metrics alone.
fn metrics_options(
    profiles: &delivery::Options,
    environment: &Environment,
    interval: Duration,
) -> Result<metrics::Options, String> {
    let say = |setting: &Setting, error: &dyn std::fmt::Display| format!("{}: {error}", setting.variable);
    let mut options = metrics::Options {
        endpoint: profiles.endpoint.clone().of_any_signal(),
        client: profiles.client.clone(),
        compression: profiles.compression,
        interval,
        resource: resource::of_the_agent(&environment.resource),
    };
    let protocol = environment
        .metrics
        .iter()
        .find(|setting| setting.flag == "otlp-protocol");
    let protocol = protocol.and_then(|setting| setting.values.first()?.parse().ok());
    let client::Options {
        timeout,
        headers,
        tls,
    } = &mut options.client;
    for setting in &environment.metrics {
        let Some(value) = setting.values.first() else {
            continue;
        };
        match setting.flag {
            "otlp-endpoint" => {
                let endpoint = Endpoint::parse(value, protocol).map_err(|error| say(setting, &error))?;
                options.endpoint = match environment.exact_metrics_endpoint {
                    true => endpoint.exactly(),
                    false => endpoint,
                };
            }
            "otlp-compression" => {
                options.compression = value
                    .parse()
                    .map_err(|error: UnknownCompression| say(setting, &error))?;
            }
            "otlp-timeout" => *timeout = duration(value).map_err(|error| say(setting, &error))?,
            "otlp-header" => {
                let parsed = setting.values.iter().map(|value| value.parse::<Header>());
                *headers = parsed
                    .collect::<Result<_, _>>()
                    .map_err(|error| say(setting, &error))?;
            }
            "otlp-ca" => tls.authority = Some(value.into()),
            "otlp-cert" => {
                let key = tls.identity.take().map(|(_, key)| key);
                tls.identity = Some((value.into(), key.unwrap_or_else(|| value.into())));
            }
            "otlp-key" => {
                let certificate = tls.identity.take().map(|(certificate, _)| certificate);
                tls.identity = Some((certificate.unwrap_or_else(|| value.into()), value.into()));
            }
            // The protocol; without an endpoint of its own it changes how the one of profiles is spoken to.
            _ => {}
        }
    }
    if let Some(protocol) = protocol {
        options.endpoint = options.endpoint.spoken_to_by(protocol);
    }
    Ok(options)
}

/// Refuses an output that is given twice: the second would find the first in its way, after the work.
fn once_each(outputs: &[Output]) -> Result<(), clap::Error> {
    let mut others = outputs.iter().enumerate();
    match others.find(|(place, this)| outputs.iter().take(*place).any(|other| other == *this)) {
        None => Ok(()),
        Some((_, twice)) => {
            let message = format!("--output: {twice} is given twice");
            Err(Cli::command().error(ErrorKind::ValueValidation, message))
        }
    }
}

/// A flag of captures before a verb would say nothing, and be taken for one that does.
fn refuse_flags_of_captures(matches: &ArgMatches) -> Result<(), clap::Error> {
    // `config` tells what the flags would do, `doctor` looks whether it can be done.
    let Some(verb) = matches
        .subcommand_name()
        .filter(|verb| !["config", "doctor"].contains(verb))
    else {
        return Ok(());
    };
    let command = Cli::command();
    let mut said = command.get_arguments().filter(|argument| {
        let id = argument.get_id().as_str();
        matches.value_source(id) == Some(ValueSource::CommandLine) && !argument.is_global_set()
    });
    let Some(flag) = said.next() else { return Ok(()) };
    let name = flag
        .get_long()
        .map_or_else(|| flag.get_id().to_string(), |long| format!("--{long}"));
    Err(Cli::command().error(
        ErrorKind::ArgumentConflict,
        format!("{name} before `{verb}` says how to capture, which `{verb}` does not; flags of a verb stand behind it"),
    ))
}

/// Every setting, its values and where they come from, as a file would have them.
fn shown(layered: &layers::Layered) -> String {
    let mut text = String::new();
    for (flag, (values, origin)) in &layered.settings {
        let line = match values.as_slice() {
            [] => format!("# {flag}"),
            [value] => format!("{flag} = {value:?}"),
            values => format!("{flag} = {values:?}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line:<40} # {origin}");
    }
    text.trim_end().to_owned()
}

fn serve(text: &str) -> Result<Serve, String> {
    if text == "off" {
        return Ok(Serve::Off);
    }
    text.parse().map(Serve::At)
}

/// What `--metrics-interval` says.
#[derive(Debug, Clone, Copy)]
enum MetricsInterval {
    Off,
    Every(Duration),
}

fn metrics_interval(text: &str) -> Result<MetricsInterval, String> {
    if text == "off" {
        return Ok(MetricsInterval::Off);
    }
    interval(text).map(MetricsInterval::Every)
}

/// Reads `1h,64MiB`, or one of the two.
fn history(text: &str) -> Result<history::Limits, String> {
    let mut limits = history::Limits::default();
    for part in text.split(',') {
        if let Ok(age) = humantime::parse_duration(part) {
            limits.age = age;
        } else {
            let bytes = size(part)
                .map_err(|_| format!("{part} is neither a time nor a size; write it like 1h,64MiB"))?;
            limits.bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
    }
    Ok(limits)
}

/// Reads `30s`, `5m`, `1h30m`. A bare number is refused: some tools take it for seconds, others for milliseconds.
fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("say which unit: {text}s, {text}m or {text}ms"));
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 30s, 5m or 1h30m")),
    }
}

/// Reads the ID of a container, or the start of it; Kubernetes shows it as `containerd://ID`.
fn container(text: &str) -> Result<String, String> {
    let id = text.split_once("://").map_or(text, |(_, id)| id);
    let is_id = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if id.is_empty() || id.len() > 64 || !id.bytes().all(is_id) {
        return Err("must be an ID, which has the digits 0 to 9 and a to f, and no name".into());
    }
    Ok(id.to_owned())
}

/// Reads the time between two slices.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < MIN_INTERVAL {
        return Err(format!("must be {MIN_INTERVAL:?} or longer"));
    }
    Ok(interval)
}

/// Reads `256MiB`, `1G`.
fn size(text: &str) -> Result<u64, String> {
    let bytes: ByteSize = text
        .parse()
        .map_err(|error| format!("{error}; write it like 256MiB"))?;
    Ok(bytes.as_u64())
}

/// Reads `32MiB`, `16M`, within what the kernel side can hold.
fn unwind_memory(text: &str) -> Result<usize, String> {
    let range = 2 << 20..=MAX_SEGMENTS * SEGMENT_LEN;
    let bytes: ByteSize = text
        .parse()
        .map_err(|error| format!("{error}; write it like 32MiB"))?;
    usize::try_from(bytes.as_u64())
        .ok()
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| format!("must be from 2MiB to {}MiB", range.end() >> 20))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Request, clap::Error> {
        with(arguments, &[])
    }

    fn task(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Task, clap::Error> {
        let arguments: Vec<OsString> = ["profiler-agent"]
            .iter()
            .chain(arguments)
            .map(OsString::from)
            .collect();
        Cli::task(&arguments, &|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Request, clap::Error> {
        match task(arguments, variables)? {
            Task::Capture(request) => Ok(*request),
            other @ (Task::Doctor(_) | Task::Top(_) | Task::Tell(_) | Task::Files(_) | Task::Print(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn a_flag_beats_a_variable_and_a_variable_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let file = path.to_str().unwrap();
        std::fs::write(
            &path,
            "frequency = 11\ninterval = \"1m\"\notlp-endpoint = \"http://file:4317\"\notlp-header = [\"a=file\", \"b=file\"]\npid = [7, 8]\nverbose = 1\n",
        )
        .unwrap();
        let config = ["--config", file];
        let request = with(&config, &[]).unwrap();
        assert_eq!((request.frequency, request.verbosity), (11, Verbosity::Verbose));
        assert_eq!(request.scope, Scope::Processes(vec![7, 8]));
        let delivery = request.delivery.unwrap();
        assert_eq!(delivery.interval, Some(Duration::from_secs(60)));
        assert_eq!(delivery.options.client.headers.len(), 2);

        let variables = [
            ("PROFILER_AGENT_CONFIG", file),
            ("PROFILER_AGENT_FREQUENCY", "22"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ];
        let endpoint = |request: Request| request.delivery.unwrap().options.endpoint.url().to_string();
        let request = with(&["-q", "--", "ls"], &variables).unwrap();
        assert_eq!((request.frequency, request.verbosity), (22, Verbosity::Quiet));
        assert_eq!(request.scope, Scope::Command(vec!["ls".into()]));
        assert_eq!(
            request.delivery.as_ref().unwrap().options.client.timeout,
            Duration::from_millis(1500)
        );
        assert_eq!(endpoint(request), "http://general:4318/v1development/profiles");
        let request = with(&["-F", "33"], &variables).unwrap();
        assert_eq!(request.frequency, 33);

        let signal = [
            &variables[..],
            &[("OTEL_EXPORTER_OTLP_PROFILES_ENDPOINT", "http://signal:4318/in")],
        ]
        .concat();
        assert_eq!(endpoint(with(&[], &signal).unwrap()), "http://signal:4318/in");
        let own = [
            &signal[..],
            &[("PROFILER_AGENT_OTLP_ENDPOINT", "http://own:4318")],
        ]
        .concat();
        assert_eq!(
            endpoint(with(&[], &own).unwrap()),
            "http://own:4318/v1development/profiles"
        );
        assert_eq!(
            endpoint(with(&["--otlp-endpoint", "http://flag:4318"], &own).unwrap()),
            "http://flag:4318/v1development/profiles"
        );
        let disabled = [&own[..], &[("OTEL_SDK_DISABLED", "true")]].concat();
        let request = with(&[], &disabled).unwrap();
        assert!(request.delivery.is_none() && request.is_disabled);
    }

    #[test]
    fn a_wrong_value_says_where_it_comes_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let file = path.to_str().unwrap();
        for (text, words) in [
            (
                "\nfrequency = 0",
                "agent.toml, line 2: frequency cannot be \"0\": 0 is not in 1..",
            ),
            (
                "interval = 10",
                "agent.toml, line 1: interval cannot be \"10\": say which unit",
            ),
            (
                "intervall = '10s'",
                "line 1: there is no key \"intervall\"; is \"interval\" meant?",
            ),
            ("force = 1", "agent.toml, line 1: force must be true or false"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = task(&["config", "check", file], &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = with(&[], &[("PROFILER_AGENT_OTLP_HEADER", "secret")]).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        let error = with(&[], &[("PROFILER_AGENT_DURATION", "soon")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("PROFILER_AGENT_DURATION: duration cannot be \"soon\""),
            "{error}"
        );
        let missing = with(&["--config", "/no/such/file"], &[]).unwrap_err().to_string();
        assert!(missing.contains("cannot read /no/such/file"), "{missing}");
    }

    #[test]
    fn settings_are_shown_with_their_origin_and_without_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, "frequency = 11\notlp-header = 'token=secret'").unwrap();
        let file = path.to_str().unwrap();
        let variables = [("PROFILER_AGENT_INTERVAL", "20s")];
        let show = task(&["--config", file, "--spool", "/x", "config", "show"], &variables).unwrap();
        let Task::Tell(text) = show else { panic!() };
        for line in [
            format!("frequency = \"11\" # {file}, line 1"),
            format!("otlp-header = \"…\" # {file}, line 2"),
            "interval = \"20s\" # PROFILER_AGENT_INTERVAL".into(),
            "spool = \"/x\" # the command line".into(),
            "unwind-memory = \"32MiB\" # default".into(),
            "# duration # default".into(),
        ] {
            let lines = text
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            assert!(
                lines.into_iter().any(|other| other == line),
                "{line} is missing:\n{text}"
            );
        }
        assert!(!text.contains("secret"));
        let check = task(&["config", "check", file], &[]).unwrap();
        assert!(matches!(check, Task::Tell(text) if text.ends_with("2 settings, all fine")));
    }

    #[test]
    fn secrets_come_from_files_and_their_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (headers, token, config) = (path("headers"), path("token"), path("agent.toml"));
        let write = |path: &str, text: &str| {
            std::fs::write(path, text).unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        write(&headers, "authorization=Bearer one\n");
        write(&token, "one\n");
        let text = "otlp-endpoint = 'http://localhost:4317'\nserve = '0.0.0.0:7979'\n";
        let files = format!("{text}otlp-header-file = {headers:?}\nserve-token-file = {token:?}\n");
        write(&config, &files);
        let arguments = ["--config", &config, "--otlp-header", "x-tenant=7"];
        let before = with(&arguments, &[]).unwrap();
        let sent = &before.delivery.unwrap().options.client.headers;
        let expected = ["x-tenant=7", "authorization=Bearer one"].map(|text| text.parse().unwrap());
        assert_eq!(*sent, expected);
        assert_eq!(before.serving.unwrap().options.token.as_deref(), Some("one"));
        assert_eq!(before.warnings, [""; 0]);
        write(&headers, "authorization=Bearer two\n");
        write(&token, "two\n");
        std::fs::set_permissions(&token, PermissionsExt::from_mode(0o644)).unwrap();
        let after = with(&arguments, &[]).unwrap();
        let changed: Vec<&String> = after
            .settings
            .iter()
            .filter(|(flag, values)| before.settings.get(*flag) != Some(values))
            .map(|(flag, _)| flag)
            .collect();
        assert_eq!(changed, ["otlp-header-file", "serve-token-file"]);
        assert!(!format!("{:?}{:?}", after.settings, after.warnings).contains("two"));
        assert_eq!(after.warnings.len(), 1);
        // A token in the environment is one of a file that is checked, and two are one too many.
        let check = |variables: &[(&str, &str)]| task(&["config", "check", &config], variables);
        let variable = [("PROFILER_AGENT_SERVE_TOKEN", "three")];
        let error = check(&variable).unwrap_err().to_string();
        assert!(error.contains("leave one of them out"), "{error}");
        write(&config, text);
        assert!(check(&[]).is_err() && check(&variable).is_ok());
        assert!(check(&[("PROFILER_AGENT_SERVE_TOKEN_FILE", &token)]).is_ok());
        write(&config, &format!("{text}serve-token = ' '"));
        let error = check(&[]).unwrap_err().to_string();
        assert!(error.contains("--serve-token: it is empty"), "{error}");
        let twice = ["--otlp-header", "authorization=x", "--otlp-header-file", &headers];
        let error = parse(&twice).unwrap_err().to_string();
        assert!(
            error.contains("authorization is set by --otlp-header too"),
            "{error}"
        );
    }

    #[test]
    fn clap_finds_nothing_wrong() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pids_come_in_lists_and_repeated() {
        let request = parse(&["-p", "3,1", "--pid", "2", "-p1"]).unwrap();
        assert_eq!(request.scope, Scope::Processes(vec![1, 2, 3]));
        assert_eq!(parse(&[]).unwrap().scope, Scope::Host);
        assert_eq!(
            parse(&["--", "ls", "-l"]).unwrap().scope,
            Scope::Command(vec!["ls".into(), "-l".into()])
        );
    }

    #[test]
    fn a_profile_without_an_end_has_a_spool_and_an_interval() {
        let delivery = |arguments: &[&str]| {
            let endpoint = ["--otlp-endpoint", "http://localhost:4317"];
            parse(&[&endpoint, arguments].concat()).unwrap().delivery.unwrap()
        };
        let endless = delivery(&[]);
        assert_eq!(endless.interval, Some(Duration::from_secs(10)));
        assert!(endless.options.spool.is_some());
        assert!(delivery(&["--spool-limit", "0"]).options.spool.is_none());
        let short = delivery(&["-d", "30s"]);
        assert!(short.interval.is_some() && short.options.spool.is_none());
        let with_file = delivery(&["-o", "x.svg", "--spool", "/x"]);
        assert_eq!(with_file.interval, None);
        assert_eq!(with_file.options.spool.unwrap().folder, PathBuf::from("/x"));
        assert!(parse(&[]).unwrap().delivery.is_none());
    }

    #[test]
    fn wrong_usage_names_the_remedy() {
        for (arguments, remedy) in [
            (&["-F", "0"][..], "0 is not in 1.."),
            (&["-p", "0"], "0 is not in 1.."),
            (&["-p", "x"], "invalid digit"),
            (&["-d", "30"], "say which unit: 30s, 30m or 30ms"),
            (&["-d", "0s"], "longer than nothing"),
            (&["-d", "soon"], "write it like 30s"),
            (&["-o", "x.png"], ".svg"),
            (&["-o", "x.svg", "-o", "-", "-o", "x.svg"], "x.svg is given twice"),
            (&["-p", "1", "--", "ls"], "cannot be used with"),
            (&["--otlp-endpoint", "collector"], "http://"),
            (&["--interval", "10"], "say which unit"),
            (&["--interval", "500ms"], "1s or longer"),
            (&["--otlp-compression", "brotli"], "choose gzip, zstd or none"),
            (&["--otlp-header", "token"], "NAME=VALUE"),
            (&["--otlp-cert", "x"], "--otlp-key"),
            (&["--spool-limit", "much"], "256MiB"),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(remedy), "{arguments:?}: {error}");
        }
    }
}
