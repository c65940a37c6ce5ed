//! What a person is told: while it runs, and at the end.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _, stderr},
    time::Duration,
};

use crate::{
    agent::{Captured, Progress, Totals},
    profile::Unwinding,
    target,
};

/// A line on the terminal that is written over as the capture goes on; nothing where the standard error is no terminal.
#[derive(Debug)]
pub struct ProgressLine {
    visible: bool,
    written: bool,
}

impl ProgressLine {
    /// Not shown yet; never when `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self {
            visible: !quiet && stderr().is_terminal(),
            written: false,
        }
    }

    /// Shows where the capture stands.
    pub fn show(&mut self, progress: Progress) {
        if !self.visible {
            return;
        }
        let Progress {
            elapsed,
            samples,
            lost,
        } = progress;
        let lost = if lost > 0 {
            format!(", {} lost", Thousands(lost))
        } else {
            String::new()
        };
        let _ = write!(
            stderr(),
            "\r{} s, {} samples{lost}\x1b[K",
            elapsed.as_secs(),
            Thousands(samples)
        );
        self.written = true;
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.written) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// The closing words about a capture.
#[derive(Debug)]
pub struct Summary<'a>(pub &'a Captured);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Captured {
            profile: _,
            whole: capture,
            totals,
            counts,
            cpu_time,
            cpu_time_is_whole,
            lost_events,
            unfollowed,
            cost,
            symbolizer_failures,
            command,
        } = self.0;
        let seconds = Duration::from_nanos(capture.duration).as_secs_f64();
        let expected = u128::from(*cpu_time) * u128::from(capture.frequency) / 1_000_000_000;
        if let Some(status) = command {
            writeln!(f, "`{}` {}", one_line(&capture.target), target::describe(*status))?;
        }
        let (least, whose, until) = if *cpu_time_is_whole {
            ("", "its", "")
        } else {
            ("at least ", "the", " that it was seen to use before it was gone")
        };
        writeln!(
            f,
            "{} samples of {} in {seconds:.1} s at {} Hz by {}; expected {least}{} for {whose} {:.2} s of CPU time{until}",
            Thousands(counts.samples),
            one_line(&capture.target),
            capture.frequency,
            capture.clock,
            Thousands(u64::try_from(expected).unwrap_or(u64::MAX)),
            Duration::from_nanos(*cpu_time).as_secs_f64(),
        )?;

        write!(f, "stacks: {} complete", Percent(counts.complete, counts.samples))?;
        let Totals {
            samples: _,
            outcomes,
            unwound,
        } = totals;
        for (outcome, count) in outcomes.iter().filter(|(outcome, _)| !outcome.is_complete()) {
            write!(f, ", {} {}", Thousands(*count), outcome.name().replace('_', " "))?;
        }
        let user: u64 = unwound.values().sum();
        let mut separator = "; unwound";
        for (unwinding, count) in unwound {
            let how = match unwinding {
                Unwinding::Tables => "by tables",
                Unwinding::FramePointers => "by frame pointers",
                Unwinding::Mixed => "by both",
            };
            write!(f, "{separator} {} {how}", Percent(*count, user))?;
            separator = ",";
        }
        if counts.over_budget > 0 {
            write!(
                f,
                "; {} beyond a budget, without their stacks",
                Thousands(counts.over_budget)
            )?;
        }
        write!(f, "\nlost: {}", Thousands(capture.lost_total()))?;
        if !capture.lost.is_empty() {
            let reasons = capture.lost.iter();
            let reasons = reasons
                .map(|(reason, count)| format!("{} {}", Thousands(*count), reason.name().replace('_', " ")));
            write!(f, " ({})", reasons.collect::<Vec<_>>().join(", "))?;
        }
        if *lost_events > 0 {
            write!(
                f,
                "; {} process events (mappings were read again)",
                Thousands(*lost_events)
            )?;
        }
        if *unfollowed > 0 {
            write!(
                f,
                "; {} children were not followed: too many targets",
                Thousands(*unfollowed)
            )?;
        }
        if *symbolizer_failures > 0 {
            write!(
                f,
                "\nnames: reading files failed {} times; what has no name for that is shown by file and offset, and the log says why",
                Thousands((*symbolizer_failures).into())
            )?;
        }
        write!(
            f,
            "\nthe agent itself: {:.3} s of CPU time ({} of one CPU), {:.1} MB of memory at most",
            Duration::from_nanos(cost.cpu).as_secs_f64(),
            Percent(cost.cpu, capture.duration),
            cost.peak_memory as f64 / 1e6,
        )
    }
}

/// Why there is nothing to show.
#[derive(Debug)]
pub struct NoSamples<'a>(pub &'a Captured);

impl fmt::Display for NoSamples<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Captured {
            whole: capture,
            cpu_time,
            cpu_time_is_whole,
            ..
        } = self.0;
        let seconds = Duration::from_nanos(capture.duration).as_secs_f64();
        let cpu = Duration::from_nanos(*cpu_time).as_secs_f64();
        write!(
            f,
            "no samples of {} in {seconds:.1} s: ",
            one_line(&capture.target)
        )?;
        if !*cpu_time_is_whole {
            write!(
                f,
                "it was gone before its CPU time could be read; if it used less than a period of {} Hz, try a higher rate (-F)",
                capture.frequency
            )
        } else if *cpu_time < capture.period() {
            write!(
                f,
                "it used {cpu:.2} s of CPU time, so it slept or waited all the while; profile it while it works, or for longer (-d)"
            )
        } else {
            write!(
                f,
                "although it used {cpu:.2} s of CPU time, which is less than a few periods of {} Hz; try a higher rate (-F) or longer (-d)",
                capture.frequency
            )
        }
    }
}

/// A command or a list of processes as part of a sentence: on one line, whatever it holds, and not too long.
pub fn one_line(text: &str) -> String {
    const MOST: usize = 80;
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let text = words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    if text.chars().count() <= MOST {
        return text;
    }
    text.chars().take(MOST - 1).chain(['…']).collect()
}

/// A number with its digits in groups of three.
struct Thousands(u64);

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A share; never rounded up to the whole.
struct Percent(u64, u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(part, whole) = *self;
        if whole == 0 {
            return f.write_str("0 %");
        }
        let share = part as f64 * 100.0 / whole as f64;
        if part == whole {
            f.write_str("100 %")
        } else if share < 1.0 {
            write!(f, "{share:.3} %")
        } else {
            write!(f, "{:.1} %", (share * 10.0).floor() / 10.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_fits_into_a_sentence() {
        assert_eq!(
            one_line("python3 -c \n\x1b[31mprint(1)\n"),
            "python3 -c [31mprint(1)"
        );
        let long = one_line(&"é".repeat(100));
        assert!(long.ends_with('…') && long.chars().count() == 80, "{long}");
    }

    #[test]
    fn numbers_are_readable_and_shares_honest() {
        assert_eq!(Thousands(0).to_string(), "0");
        assert_eq!(Thousands(999).to_string(), "999");
        assert_eq!(Thousands(1_234_567).to_string(), "1,234,567");
        assert_eq!(Percent(99_999, 100_000).to_string(), "99.9 %");
        assert_eq!(Percent(5, 5).to_string(), "100 %");
        assert_eq!(Percent(1, 1000).to_string(), "0.100 %");
    }
}
