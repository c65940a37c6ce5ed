//! Where a value comes from: the command line, a variable, the file, or the default. The first that has one wins:
//!
//! ```text
//! flag > PROFILER_AGENT_* > OTEL_EXPORTER_OTLP_PROFILES_* > OTEL_EXPORTER_OTLP_* > file > default
//! ```
//! What the command line does not say is put before it as if it had been said there, so that every value goes through the same checks.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{
    ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use profiler_agent::export::otlp::environment::Environment;

use super::{Cli, file};

/// Begins the names of the agent's own variables.
const PREFIX: &str = "PROFILER_AGENT_";

/// Of which `config show` tells no value.
const SECRETS: [&str; 2] = ["otlp-header", "serve-token"];

/// Flags that say nothing about what is done.
const NO_SETTINGS: [&str; 3] = ["config", "help", "version"];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// A variable.
    Variable(String),
    /// The file.
    File(PathBuf, usize),
    /// Nobody has said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("the command line"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value that the command line has not.
#[derive(Debug, Clone)]
struct Layer {
    origin: Origin,
    values: Vec<String>,
}

/// The command line with everything below it.
#[derive(Debug)]
pub(crate) struct Layered {
    pub(super) cli: Cli,
    /// Of the `OTEL_*` variables.
    pub(super) environment: Environment,
    /// Every setting by its flag, with its values and where they come from.
    pub(super) settings: BTreeMap<String, (Vec<String>, Origin)>,
}

/// Reads all layers.
pub(super) fn read(
    arguments: &[OsString],
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Layered, clap::Error> {
    let said = Cli::command().try_get_matches_from(arguments)?;
    let file = said
        .get_one::<PathBuf>("config")
        .cloned()
        .or_else(|| get(&format!("{PREFIX}CONFIG")).map(PathBuf::from));
    let environment = Environment::read(get);
    let layers = layers(file.as_deref(), &environment, get)?;

    let mut arguments = arguments.to_vec();
    let (mut added, mut origins) = (Vec::new(), BTreeMap::new());
    for arg in Cli::command().get_arguments() {
        let Some(flag) = arg.get_long() else { continue };
        if is_said(&said, arg.get_id().as_str()) || is_overruled(&said, flag) {
            continue;
        }
        let Some(layer) = layers.get(flag) else { continue };
        for value in &layer.values {
            added.extend(as_argument(flag, value, arg.get_action(), &layer.origin)?);
        }
        origins.insert(flag.to_owned(), layer.origin.clone());
    }
    let behind_name = arguments.len().min(1);
    arguments.splice(behind_name..behind_name, added);
    let matches = Cli::command()
        .try_get_matches_from(&arguments)
        .map_err(|error| with_origin(error, &origins))?;
    let mut settings = BTreeMap::new();
    for arg in Cli::command().get_arguments() {
        let Some(flag) = arg.get_long().filter(|flag| !NO_SETTINGS.contains(flag)) else {
            continue;
        };
        let id = arg.get_id().as_str();
        let origin = match origins.remove(flag) {
            Some(origin) => origin,
            None if is_said(&said, id) => Origin::Flag,
            None => Origin::Default,
        };
        let values = if SECRETS.contains(&flag) {
            let count = matches.get_raw(id).map_or(0, Iterator::count);
            vec!["…".to_owned(); count]
        } else if matches!(arg.get_action(), ArgAction::Count) {
            vec![matches.get_count(id).to_string()]
        } else {
            let raw = matches.get_raw(id).into_iter().flatten();
            raw.map(|value| value.to_string_lossy().into_owned()).collect()
        };
        settings.insert(flag.to_owned(), (values, origin));
    }
    Ok(Layered {
        cli: Cli::from_arg_matches(&matches)?,
        environment,
        settings,
    })
}

/// The names of all keys.
fn keys(command: &Command) -> Vec<&str> {
    let flags = command.get_arguments().filter_map(|arg| arg.get_long());
    flags.filter(|flag| !NO_SETTINGS.contains(flag)).collect()
}

/// What is below the command line, the highest layer of each flag.
fn layers(
    file: Option<&Path>,
    environment: &Environment,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Layer>, clap::Error> {
    let mut layers = BTreeMap::new();
    let command = Cli::command();
    let keys = keys(&command);
    if let Some(path) = file {
        let entries = file::read(path, &keys)
            .map_err(|error| Cli::command().error(ErrorKind::ValueValidation, error))?;
        for entry in entries {
            let origin = Origin::File(path.to_owned(), entry.line);
            let values = entry.values;
            layers.insert(entry.key, Layer { origin, values });
        }
    }
    for setting in &environment.settings {
        let origin = Origin::Variable(setting.variable.clone());
        let values = setting.values.clone();
        layers.insert(setting.flag.to_owned(), Layer { origin, values });
    }
    for key in keys {
        let variable = format!("{PREFIX}{}", key.replace('-', "_").to_uppercase());
        // A list has one value a line.
        let value = get(&variable).filter(|value| !value.is_empty());
        if let Some(value) = value {
            let values = value.lines().map(str::to_owned).collect();
            let origin = Origin::Variable(variable);
            layers.insert(key.to_owned(), Layer { origin, values });
        }
    }
    Ok(layers)
}

/// Whether a flag was given on the command line.
fn is_said(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// What says whom to profile; each leaves no room for another.
const TARGETS: [&str; 5] = ["pid", "comm", "cgroup", "container", "command"];

/// Whether the command line says something else that leaves no room for this flag.
fn is_overruled(said: &ArgMatches, flag: &str) -> bool {
    match flag {
        "pid" | "comm" | "cgroup" | "container" => TARGETS
            .iter()
            .any(|target| *target != flag && is_said(said, target)),
        "quiet" | "verbose" => is_said(said, "quiet") || is_said(said, "verbose"),
        _ => false,
    }
}

/// A value as it would stand on the command line.
fn as_argument(
    flag: &str,
    value: &str,
    action: &ArgAction,
    origin: &Origin,
) -> Result<Vec<OsString>, clap::Error> {
    let wrong = |words: &str| {
        Cli::command().error(
            ErrorKind::ValueValidation,
            format!("{origin}: {flag} must be {words}"),
        )
    };
    if matches!(action, ArgAction::SetTrue) {
        match value {
            "true" => Ok(vec![format!("--{flag}").into()]),
            "false" => Ok(Vec::new()),
            _ => Err(wrong("true or false")),
        }
    } else if matches!(action, ArgAction::Count) {
        let count: usize = value.parse().map_err(|_| wrong("0, 1 or 2"))?;
        Ok(vec![format!("--{flag}").into(); count.min(2)])
    } else {
        Ok(vec![format!("--{flag}={value}").into()])
    }
}

/// Says of a wrong value where it comes from.
fn with_origin(error: clap::Error, origins: &BTreeMap<String, Origin>) -> clap::Error {
    let (Some(ContextValue::String(argument)), value) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) else {
        return error;
    };
    let flag = argument.trim_start_matches("--").split([' ', '=']).next();
    let Some((flag, origin)) = flag.and_then(|flag| Some((flag, origins.get(flag)?))) else {
        return error;
    };
    let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
    let message = match value {
        Some(ContextValue::String(value)) => format!("{origin}: {flag} cannot be {value:?}: {reason}"),
        _ => format!("{origin}: {flag}: {reason}"),
    };
    Cli::command().error(ErrorKind::ValueValidation, message)
}
