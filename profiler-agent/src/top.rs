//! What a host is doing at this moment, as a screen of text: `profiler-agent top`.
//!
//! A [`View`] is what a person has chosen to see; with a profile of the last seconds it becomes lines. Terminals are not known here.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range, time::Duration};

use regex::Regex;

use crate::{
    export::{
        folded::LabelKind,
        text::{Rfc3339, Thousands, fit, plain},
    },
    profile::{Kind, Profile},
    render::text,
    report::Percent,
    tally::Tally,
};

/// Columns of a frame in which no name fits.
const NARROW: usize = 5;

/// Lines above the table.
pub const HEAD: usize = 3;

/// Which of the screens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Screen {
    /// Who uses the CPUs.
    #[default]
    Processes,
    /// In which functions.
    Functions,
    /// By which way.
    Flamegraph,
}

/// What a table is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// Samples in the function itself; of processes, all.
    #[default]
    Own,
    /// Samples in the function and what it called.
    Total,
    /// Its name.
    Name,
    /// The number of the process.
    Pid,
}

/// How a part of a line is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// What stands above.
    Heading,
    /// The line that was chosen.
    Chosen,
    /// A frame.
    Frame(LabelKind),
}

/// A line of the screen: parts of it, from left to right.
pub type Line = Vec<(String, Style)>;

/// What a person has chosen to see.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Which screen.
    pub screen: Screen,
    /// The order.
    pub sort: Sort,
    /// Of one process alone.
    pub pid: Option<u32>,
    /// Names that are shown.
    pub filter: Option<Regex>,
    /// The chosen row.
    pub row: usize,
    /// The first row that is on the screen.
    pub first: usize,
}

/// A row of processes.
struct Process {
    pid: u32,
    name: String,
    samples: u64,
    weight: u64,
}

impl View {
    /// The process of the chosen row.
    pub fn chosen(&self, profile: &Profile) -> Option<u32> {
        match self.screen {
            Screen::Processes => self.processes(profile).get(self.row).map(|process| process.pid),
            Screen::Functions | Screen::Flamegraph => self.pid,
        }
    }

    /// Moves the chosen row.
    pub fn go(&mut self, by: isize, profile: &Profile) {
        let last = self.rows(profile).saturating_sub(1);
        self.row = self.row.saturating_add_signed(by).min(last);
    }

    /// Number of rows that there are.
    fn rows(&self, profile: &Profile) -> usize {
        match self.screen {
            Screen::Processes => self.processes(profile).len(),
            Screen::Functions => self.functions(&Tally::new(&self.part(profile))).len(),
            Screen::Flamegraph => text::flamegraph(&self.part(profile), 1000, usize::MAX).len(),
        }
    }

    /// Shows another screen.
    pub fn show(&mut self, screen: Screen) {
        self.screen = screen;
        (self.row, self.first) = (0, 0);
    }

    /// The next order.
    pub fn sort_on(&mut self) {
        self.sort = match (self.screen, self.sort) {
            (Screen::Processes, Sort::Own | Sort::Total) => Sort::Pid,
            (Screen::Functions, Sort::Own) => Sort::Total,
            (Screen::Processes, Sort::Pid) | (Screen::Functions, Sort::Total | Sort::Pid) => Sort::Name,
            (_, Sort::Name) | (Screen::Flamegraph, _) => Sort::Own,
        };
    }

    /// What is shown of a profile.
    fn part(&self, profile: &Profile) -> Profile {
        let mut profile = profile.clone();
        if let Some(pid) = self.pid {
            let is: Vec<bool> = profile
                .processes
                .iter()
                .map(|process| process.pid == pid)
                .collect();
            let is_of = |process: usize| is.get(process).copied().unwrap_or_default();
            profile.samples.retain(|sample| is_of(sample.process.index()));
        }
        profile
    }

    fn shows(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_match(name))
    }

    fn processes(&self, profile: &Profile) -> Vec<Process> {
        let mut sums: BTreeMap<(u32, &str), (u64, u64)> = BTreeMap::new();
        for sample in &profile.samples {
            if let Some(process) = profile.processes.get(sample.process.index()) {
                let sum = sums
                    .entry((process.pid, profile.string(process.name)))
                    .or_default();
                sum.0 = sum.0.saturating_add(sample.count);
                sum.1 = sum.1.saturating_add(sample.weight);
            }
        }
        let mut rows: Vec<Process> = sums
            .into_iter()
            .map(|((pid, name), (samples, weight))| Process {
                pid,
                name: name.to_owned(),
                samples,
                weight,
            })
            .filter(|process| self.shows(&process.name) && self.pid.is_none_or(|pid| pid == process.pid))
            .collect();
        match self.sort {
            Sort::Own | Sort::Total => rows.sort_by_key(|process| std::cmp::Reverse(process.samples)),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
            Sort::Pid => rows.sort_by_key(|process| process.pid),
        }
        rows
    }

    /// Name, samples in it, samples in it and what it called.
    fn functions<'a>(&self, tally: &'a Tally) -> Vec<(&'a str, u64, u64)> {
        let shown = tally.functions.iter().filter(|(name, _)| self.shows(name));
        let mut rows: Vec<_> = shown
            .map(|(name, share)| (name.as_str(), share.own, share.total))
            .collect();
        match self.sort {
            Sort::Own | Sort::Pid => rows.sort_by_key(|row| std::cmp::Reverse((row.1, row.2))),
            Sort::Total => rows.sort_by_key(|row| std::cmp::Reverse((row.2, row.1))),
            // As they come.
            Sort::Name => {}
        }
        rows
    }

    /// The screen: no more than so many lines of so many columns.
    pub fn lines(&mut self, profile: &Profile, columns: usize, lines: usize) -> Vec<Line> {
        let room = lines.saturating_sub(HEAD);
        let mut screen = vec![line(&summary(profile), Style::Plain, columns)];
        screen.push(line(&self.what(profile), Style::Plain, columns));
        let (heading, rows) = match self.screen {
            Screen::Processes => self.process_rows(profile, columns),
            Screen::Functions => self.function_rows(profile, columns),
            Screen::Flamegraph => self.flame_rows(profile, columns),
        };
        screen.push(line(&heading, Style::Heading, columns));
        self.row = self.row.min(rows.len().saturating_sub(1));
        // The chosen row stays on the screen.
        let highest = (self.row + 1).saturating_sub(room);
        self.first = self.first.clamp(highest, self.row.max(highest));
        let visible = rows.into_iter().skip(self.first).take(room);
        screen.extend(visible);
        screen.truncate(lines);
        screen
    }

    fn what(&self, profile: &Profile) -> String {
        let mut text = match self.screen {
            Screen::Processes => "processes".to_owned(),
            Screen::Functions => "functions".to_owned(),
            Screen::Flamegraph => "flamegraph".to_owned(),
        };
        if let Some(pid) = self.pid {
            let process = profile.processes.iter().find(|process| process.pid == pid);
            let name = process.map_or("", |process| profile.string(process.name));
            // Writing to a string cannot fail.
            let _ = write!(text, " of {} ({pid})", plain(name, 64));
        }
        if self.screen != Screen::Flamegraph {
            text += match (self.screen, self.sort) {
                (Screen::Processes, Sort::Own | Sort::Total) => ", by CPU time",
                (_, Sort::Own) => ", by their own samples",
                (_, Sort::Total) => ", by all samples",
                (_, Sort::Name) => ", by name",
                (Screen::Processes, Sort::Pid) => ", by number",
                (_, Sort::Pid) => ", by their own samples",
            };
            if let Some(filter) = &self.filter {
                let _ = write!(text, ", those with {}", plain(filter.as_str(), 64));
            }
        }
        text
    }

    fn style(&self, row: usize) -> Style {
        if row == self.row {
            Style::Chosen
        } else {
            Style::Plain
        }
    }

    fn process_rows(&self, profile: &Profile, columns: usize) -> (String, Vec<Line>) {
        let seconds = Duration::from_nanos(profile.capture.duration)
            .as_secs_f64()
            .max(1e-9);
        let total = profile.sample_count();
        let rows = self.processes(profile).into_iter().enumerate();
        let rows = rows.map(|(row, process)| {
            let cpus = Duration::from_nanos(process.weight).as_secs_f64() / seconds;
            let share = Percent(process.samples, total);
            let name = if process.name.is_empty() {
                "[unknown]"
            } else {
                &process.name
            };
            let text = format!("{:>8}  {cpus:>6.2}  {share:>7}  {name}", process.pid);
            line(&text, self.style(row), columns)
        });
        (
            format!("{:>8}  {:>6}  {:>7}  {}", "PID", "CPUs", "share", "process"),
            rows.collect(),
        )
    }

    fn function_rows(&self, profile: &Profile, columns: usize) -> (String, Vec<Line>) {
        let tally = Tally::new(&self.part(profile));
        let rows = self.functions(&tally).into_iter().enumerate();
        let rows = rows.map(|(row, (name, own, total))| {
            let (own, total) = (Percent(own, tally.total), Percent(total, tally.total));
            line(&format!("{own:>7}  {total:>7}  {name}"), self.style(row), columns)
        });
        (
            format!("{:>7}  {:>7}  {}", "self", "total", "function"),
            rows.collect(),
        )
    }

    fn flame_rows(&self, profile: &Profile, columns: usize) -> (String, Vec<Line>) {
        let part = self.part(profile);
        let frames = text::flamegraph(&part, columns, usize::MAX);
        let rows = frames.iter().map(|row| flame_line(row));
        (
            format!("all: {} samples", Thousands(part.sample_count())),
            rows.collect(),
        )
    }
}

/// Frames of a line, each with a bar at its left but the first column.
fn flame_line(row: &[text::Frame]) -> Line {
    let mut parts = Line::new();
    let mut end = 0;
    for frame in row {
        let Range { start, end: behind } = frame.columns;
        if start > end {
            parts.push((" ".repeat(start - end), Style::Plain));
        }
        let width = behind - start;
        // Of a name that has no room the first letters say more than a sign that it was cut.
        let name = if width < NARROW {
            fit(&frame.name.chars().take(width - 1).collect::<String>(), width - 1)
        } else {
            fit(&frame.name, width - 1)
        };
        let used = unicode_width::UnicodeWidthStr::width(name.as_str());
        let fill = " ".repeat((width - 1).saturating_sub(used));
        parts.push((format!("│{name}{fill}"), Style::Frame(frame.kind)));
        end = behind;
    }
    parts
}

fn line(text: &str, style: Style, columns: usize) -> Line {
    vec![(fit(text, columns), style)]
}

/// When, how much, and how much not.
fn summary(profile: &Profile) -> String {
    let capture = &profile.capture;
    let seconds = Duration::from_nanos(capture.duration).as_secs_f64();
    let mut text = format!(
        "{}  {seconds:.1} s until {}  {} samples, {} lost",
        plain(&capture.host, 40),
        Rfc3339(capture.start.saturating_add(capture.duration)),
        Thousands(profile.sample_count()),
        Thousands(capture.lost_total()),
    );
    if profile.kind() == Kind::Cpu && capture.duration > 0 {
        let weight = profile
            .samples
            .iter()
            .fold(0_u64, |sum, sample| sum.saturating_add(sample.weight));
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "  {:.2} CPUs in use",
            weight as f64 / capture.duration as f64
        );
    }
    text
}

/// The text of a line.
pub fn text_of(line: &Line) -> String {
    let text: String = line.iter().map(|(text, _)| text.as_str()).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn profile() -> Profile {
        let folded = "web;main;work 60\nweb;main;\u{1b}[31mred 15\ndb;main;\u{202e}scan 20\ndb;main 5\n";
        let mut profile = read::bytes(folded.as_bytes(), &read::Options::default()).unwrap();
        profile.capture.duration = 1_000_000_000;
        profile
    }

    fn shown(view: &mut View, columns: usize, lines: usize) -> Vec<String> {
        let lines = view.lines(&profile(), columns, lines);
        lines.iter().map(text_of).collect()
    }

    #[test]
    fn functions_by_their_own_by_all_and_by_name() {
        let mut view = View {
            screen: Screen::Functions,
            ..View::default()
        };
        let names = |view: &mut View| -> Vec<String> {
            let rows = shown(view, 200, 20).split_off(HEAD);
            rows.iter()
                .map(|row| row.split_whitespace().last().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(names(&mut view)[0], "work");
        view.sort_on();
        assert_eq!(names(&mut view)[0], "main");
        view.sort_on();
        assert!(names(&mut view).len() >= 4);
        view.filter = Some(Regex::new("^wo").unwrap());
        assert_eq!(names(&mut view), ["work"]);
    }

    #[test]
    fn a_screen_is_as_large_as_the_terminal_and_no_name_steers_it() {
        for screen in [Screen::Processes, Screen::Functions, Screen::Flamegraph] {
            for (columns, lines) in [(80, 24), (1, 1), (0, 0), (7, 4), (300, 2)] {
                let mut view = View {
                    screen,
                    row: 100,
                    ..View::default()
                };
                let screen = shown(&mut view, columns, lines);
                assert!(screen.len() <= lines);
                for line in screen {
                    let width = unicode_width::UnicodeWidthStr::width(line.as_str());
                    assert!(width <= columns.max(1), "{columns}: {line:?}");
                    assert!(line.chars().all(crate::export::text::is_plain), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn the_chosen_row_stays_on_the_screen() {
        let mut view = View {
            screen: Screen::Functions,
            ..View::default()
        };
        let profile = profile();
        for _ in 0..10 {
            view.go(1, &profile);
        }
        let lines = view.lines(&profile, 80, HEAD + 2);
        assert_eq!(lines.len(), HEAD + 2);
        assert_eq!(lines.last().unwrap()[0].1, Style::Chosen);
        for _ in 0..10 {
            view.go(-1, &profile);
        }
        assert_eq!(view.lines(&profile, 80, HEAD + 2)[HEAD][0].1, Style::Chosen);
    }
}
