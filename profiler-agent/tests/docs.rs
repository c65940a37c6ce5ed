//! The documents keep their word: what they name exists. Cheap; needs no privilege and no tool.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that fails fails, and the files are our own"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use profiler_agent::{export::file::Format, kernel::capabilities::CAPABILITIES, telemetry::Loss};
use profiler_common::Outcome;

/// Written by hand, for people.
const DOCUMENTS: [&str; 12] = [
    "README.md",
    "CONTRIBUTING.md",
    "flamegraphs/README.md",
    "docs/architecture.md",
    "docs/asking.md",
    "docs/completeness.md",
    "docs/configuration.md",
    "docs/delivery.md",
    "docs/deploy.md",
    "docs/kernel-side.md",
    "docs/metrics.md",
    "docs/outputs.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The words of a text that could be flags or file names.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "`\"'()|,;:[]".contains(c))
}

#[test]
fn every_link_leads_to_a_file_or_a_heading() {
    for name in DOCUMENTS {
        let text = read(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            // The figures have an author of their own.
            if link.starts_with("https://") || link.ends_with("performance.md") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = if path.is_empty() {
                root().join(name)
            } else {
                root().join(name).parent().unwrap().join(path)
            };
            assert!(file.exists(), "{name} links to {link}, which is not there");
            if !heading.is_empty() {
                let text = fs::read_to_string(file).unwrap();
                let headings: Vec<String> = text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(anchor)
                    .collect();
                assert!(
                    headings.iter().any(|known| known == heading),
                    "{name} links to {link}, but the headings are {headings:?}"
                );
            }
        }
    }
}

/// The name that a hosting site gives to a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_flag_of_the_agent_is_in_its_help() {
    let help = |verb: Option<&str>| {
        let agent = Command::new(env!("CARGO_BIN_EXE_profiler-agent"))
            .args(verb)
            .arg("--help")
            .output()
            .unwrap();
        String::from_utf8(agent.stdout).unwrap()
    };
    let flags_of = |help: &str| -> BTreeSet<String> {
        let flags = words(help).filter(|word| word.starts_with('-'));
        flags.map(str::to_owned).collect()
    };
    let whole = flags_of(&help(None));
    let verbs = ["top", "render", "diff", "report", "doctor"];
    let of_verbs = verbs.map(|verb| (verb, flags_of(&help(Some(verb)))));
    let mut flags = 0;
    for name in DOCUMENTS {
        for line in read(name).lines() {
            let starts = ["sudo profiler-agent ", "`profiler-agent ", "xtask run -- "];
            let Some(command) = starts.iter().find_map(|start| line.split(start).nth(1)) else {
                continue;
            };
            // What follows is another program's, what stands in `$()` too.
            let command = command.split([';', '`', '#', '|']).next().unwrap();
            let command = command.split(" -- ").next().unwrap();
            // A verb has flags of its own.
            let verb = command.split_whitespace().next();
            let own = of_verbs.iter().find(|(name, _)| Some(*name) == verb);
            let known = own.map_or(&whole, |(_, flags)| flags);
            let (before, within) = command.split_once("$(").unwrap_or((command, ""));
            let after = within.split_once(')').map_or("", |(_, after)| after);
            for word in [before, after].into_iter().flat_map(str::split_whitespace) {
                if word.starts_with('-') && word != "-" {
                    flags += 1;
                    assert!(
                        known.contains(word),
                        "{name} uses {word}, which --help does not know: {line}"
                    );
                }
            }
        }
    }
    assert!(flags > 20, "only {flags} flags were found");
}

#[test]
fn every_chore_exists() {
    let source = read("xtask/src/main.rs");
    for name in DOCUMENTS {
        let text = read(name);
        for verb in text
            .split("cargo xtask ")
            .skip(1)
            .map(|rest| words(rest).next().unwrap())
        {
            let variant: String = verb
                .split('-')
                .map(|part| part[..1].to_uppercase() + &part[1..])
                .collect();
            assert!(
                verb == "VERB" || source.contains(&format!("Verb::{variant}")),
                "{name} names `cargo xtask {verb}`, which does not exist"
            );
        }
    }
}

#[test]
fn tables_are_those_of_the_code() {
    let readme = read("README.md");
    for capability in CAPABILITIES {
        let effect = if capability.required {
            "exit code 3"
        } else {
            "warning, goes on"
        };
        let row = format!("| `{}` | {} | {effect} |", capability.name, capability.purpose);
        assert!(readme.contains(&row), "README.md lacks the row {row}");
    }
    assert_eq!(readme.matches("| `cap_").count(), CAPABILITIES.len());
    let (outputs, kernel, architecture) = (
        read("docs/outputs.md"),
        read("docs/kernel-side.md"),
        read("docs/architecture.md"),
    );
    for format in Format::ALL {
        assert!(
            outputs.contains(&format!("`NAME{}`", format.extension())),
            "{format:?}"
        );
    }
    for outcome in Outcome::ALL {
        assert!(kernel.contains(&format!("`{}`", outcome.name())), "{outcome:?}");
    }
    for loss in Loss::ALL {
        assert!(architecture.contains(&format!("`{}`", loss.name())), "{loss:?}");
    }
}

/// What stands both in the table of messages and in the source, without what comes from a run.
const MESSAGES: [&str; 22] = [
    "so it slept or waited all the while",
    "ring full",
    " is in a pid namespace of its own",
    "no control group ",
    "no container ",
    "no process has pid ",
    " is a thread of process ",
    " has ended; its parent has yet to take note",
    " exists already",
    "cannot tell the format of ",
    " is above the kernel's limit of ",
    "kernel.perf_event_paranoid is ",
    "this process is under a seccomp filter",
    "; is a Collector listening there?",
    " takes no profiles",
    "no trusted connection to ",
    " does not let us in",
    "cannot keep profiles in ",
    "another profiler-agent keeps its profiles in ",
    "the spool is full",
    "the kernel has no type information at ",
    "some names took longer than ",
];

#[test]
fn messages_that_are_explained_are_still_said() {
    let sources = sources(&root().join("profiler-agent/src"));
    let readme = read("README.md");
    let table = readme.split("## When something is wrong").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    for message in MESSAGES {
        let explained = message.trim_start_matches("; ").trim_start_matches("so ");
        assert!(
            table.contains(explained.trim()),
            "README.md does not explain {message:?}"
        );
        // Reasons of more than one word have `_` between them in the source.
        assert!(
            sources.contains(message) || sources.contains(&message.replace(' ', "_")),
            "nothing says {message:?} any more"
        );
    }
}

/// Every source file below a folder.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}
