//! What this host allows, found by trying: `profiler-agent doctor`.
//!
//! A list of checks, each with what was found, what that means, and what to do about it. A check never guesses by a version: it does what the agent
//! would do.

mod host;
mod receiver;

use std::{fmt, path::Path};

use serde::Serialize;

pub use self::{host::host, receiver::receiver};
use crate::symbols::{Client, Layer};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Something is missing, and the agent goes on without it.
    Degraded,
    /// The agent cannot do its work, or is not safe.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// What was found.
    pub found: String,
    /// What follows from it.
    pub meaning: String,
    /// How that is.
    pub verdict: Verdict,
    /// What to do, where something can be done.
    pub remedy: Option<String>,
}

/// Checks of one matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// The matter.
    pub title: &'static str,
    /// Its checks.
    pub checks: Vec<Check>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Version of the agent.
    pub version: &'static str,
    /// By matter.
    pub sections: Vec<Section>,
}

impl Check {
    fn fine(name: &str, found: &str, meaning: &str) -> Self {
        Self {
            name: name.into(),
            found: found.into(),
            meaning: meaning.into(),
            verdict: Verdict::Fine,
            remedy: None,
        }
    }

    fn wrong(name: &str, found: &str, meaning: &str, verdict: Verdict, remedy: &str) -> Self {
        Self {
            verdict,
            remedy: Some(remedy.into()),
            ..Self::fine(name, found, meaning)
        }
    }
}

impl Diagnosis {
    /// Of what was looked at.
    pub const fn new(sections: Vec<Section>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            sections,
        }
    }

    /// The same for programs.
    ///
    /// # Errors
    /// None that is known: it is made of texts.
    pub fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            diagnosis: &'a Diagnosis,
            verdict: Verdict,
        }
        serde_json::to_string_pretty(&Document {
            diagnosis: self,
            verdict: self.verdict(),
        })
    }

    /// The worst that was found.
    pub fn verdict(&self) -> Verdict {
        let checks = self.sections.iter().flat_map(|section| &section.checks);
        checks.map(|check| check.verdict).max().unwrap_or(Verdict::Fine)
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "profiler-agent {}", self.version)?;
        for Section { title, checks } in &self.sections {
            writeln!(f, "{title}")?;
            let width = checks.iter().map(|check| check.name.chars().count()).max();
            let width = width.unwrap_or_default();
            let mut said = None;
            for Check {
                name,
                found,
                meaning,
                verdict,
                remedy,
            } in checks
            {
                let verdict = match verdict {
                    Verdict::Fine => "ok",
                    Verdict::Degraded => "missing",
                    Verdict::Broken => "BROKEN",
                };
                writeln!(f, "  {verdict:<7}  {name:<width$}  {found}; {meaning}")?;
                // Several may have one cause.
                if let Some(remedy) = remedy
                    && said.replace(remedy) != Some(remedy)
                {
                    writeln!(f, "  {:<7}  {:<width$}  {remedy}", "", "")?;
                }
            }
        }
        match self.verdict() {
            Verdict::Fine => f.write_str("everything is as it should be"),
            Verdict::Degraded => f.write_str("the agent works, without what is missing"),
            Verdict::Broken => f.write_str("something is broken"),
        }
    }
}

/// Starts the process that reads foreign files, and has it try what it must not be able to do. `program` is the agent.
pub fn symbolizer(program: &Path) -> Section {
    Section {
        title: "symbolizer: the process that reads the files of others",
        checks: confinement(program).unwrap_or_else(|reason| {
            vec![Check {
                name: "start".into(),
                found: reason,
                meaning: "frames of programs have no names".into(),
                verdict: Verdict::Broken,
                remedy: Some("allow the agent to run itself (/proc/self/exe)".into()),
            }]
        }),
    }
}

fn confinement(program: &Path) -> Result<Vec<Check>, String> {
    let mut client = Client::start(program).map_err(|error| {
        let source = std::error::Error::source(&error);
        source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
    })?;
    let confinement = client.confinement().clone();
    let mut checks: Vec<Check> = confinement
        .standing
        .iter()
        .map(|layer| {
            let (name, meaning) = layer.describe();
            Check {
                name: name.into(),
                found: "in force".into(),
                meaning: format!("it {meaning}"),
                verdict: Verdict::Fine,
                remedy: None,
            }
        })
        .collect();
    let by_landlock = confinement.standing.contains(&Layer::Landlock);
    for (layer, reason) in &confinement.missing {
        let (name, meaning) = layer.describe();
        let (meaning, verdict, remedy) = match layer {
            Layer::Root if by_landlock => ("Landlock stands in for it".into(), Verdict::Degraded, NAMESPACES),
            Layer::Root | Layer::Processes | Layer::Network | Layer::Ipc | Layer::Names => (
                format!("the other layers stand for it that the symbolizer {meaning}"),
                Verdict::Degraded,
                NAMESPACES,
            ),
            Layer::User => (
                "it runs as the agent's own user, without its capabilities".into(),
                Verdict::Degraded,
                "run the agent as root, or with CAP_SETUID and CAP_SETGID",
            ),
            Layer::Landlock => (
                "a file that takes it over can read what everybody can read".into(),
                Verdict::Degraded,
                "allow namespaces (CAP_SYS_ADMIN), or run Linux 5.13 or later with Landlock",
            ),
            Layer::Limits
            | Layer::Capabilities
            | Layer::NoNewPrivileges
            | Layer::Parent
            | Layer::SystemCalls => (
                format!("nothing sees to it that the symbolizer {meaning}"),
                Verdict::Broken,
                "the kernel must be built with CONFIG_SECCOMP_FILTER=y, and the container must allow seccomp",
            ),
        };
        checks.push(Check {
            name: name.into(),
            found: reason.clone(),
            meaning,
            verdict,
            remedy: Some(remedy.into()),
        });
    }
    let trials = client.try_all().map_err(|failure| failure.to_string())?;
    for trial in trials {
        let (found, meaning, verdict) = match trial.refusal() {
            Some(error) => (error.to_string(), "tried and refused", Verdict::Fine),
            None => (
                "nothing refused it".into(),
                "a file that takes it over could",
                Verdict::Broken,
            ),
        };
        checks.push(Check {
            name: format!("may not {}", trial.attempt()),
            found,
            meaning: meaning.into(),
            verdict,
            remedy: None,
        });
    }
    Ok(checks)
}

const NAMESPACES: &str = "run the agent as root outside of containers, or in one with CAP_SYS_ADMIN whose seccomp profile allows unshare and mount";
