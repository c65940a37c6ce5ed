//! A profile as text for a person: who has most of it, and by which way.

use std::{collections::BTreeMap, fmt};

use crate::{
    export::{
        folded::LabelKind,
        text::{Thousands, fit},
    },
    profile::{Kind, Profile},
    render::{Amount, incomplete, subtitle, title},
    tally::{Step, Tally},
};

/// Columns of a name where nobody says how wide the terminal is.
pub const UNLIMITED: usize = 1000;

/// Frames of the hottest path that have as many samples as the frame before are told as a number when there are more than these.
const ALIKE: usize = 3;

/// The text. Names are cleaned for a terminal.
#[derive(Debug)]
pub struct Report<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// Most rows of a table.
    pub rows: usize,
    /// Columns of the terminal.
    pub columns: usize,
}

/// A share in percent; never rounded up to the whole, nor down to nothing.
pub(crate) struct Percent(pub(crate) u64, pub(crate) u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(part, whole) = *self;
        let share = part as f64 * 100.0 / whole.max(1) as f64;
        let text = if part > 0 && share < 0.1 {
            "<0.1 %".to_owned()
        } else if part < whole && share > 99.9 {
            ">99.9 %".to_owned()
        } else {
            format!("{share:.1} %")
        };
        f.pad(&text)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            profile,
            rows,
            columns,
        } = *self;
        let tally = Tally::new(profile);
        writeln!(f, "{}", fit(&title(&profile.capture), columns))?;
        writeln!(
            f,
            "{}",
            fit(&subtitle(&profile.capture, Amount::of(profile)), columns)
        )?;
        let capture = &profile.capture;
        if profile.kind() == Kind::Cpu && capture.duration > 0 {
            let weight = profile
                .samples
                .iter()
                .fold(0_u64, |sum, sample| sum.saturating_add(sample.weight));
            let busy = weight as f64 / capture.duration as f64;
            writeln!(f, "{busy:.2} CPUs busy on average")?;
        }
        let of = |kind| tally.kinds.get(&kind).copied().unwrap_or(0);
        write!(f, "in the kernel {}", Percent(of(LabelKind::Kernel), tally.total))?;
        for (kind, words) in [
            (LabelKind::Jit, "generated code"),
            (LabelKind::Unnamed, "code without a name"),
        ] {
            if of(kind) > 0 {
                write!(f, ", in {words} {}", Percent(of(kind), tally.total))?;
            }
        }
        let incomplete = incomplete(profile);
        if incomplete > 0 {
            write!(
                f,
                ", stacks that are not whole {}",
                Percent(incomplete, tally.total)
            )?;
        }
        writeln!(f)?;

        let mut functions: Vec<_> = tally.functions.iter().collect();
        functions.sort_by(|(a, one), (b, other)| {
            (other.own, other.total).cmp(&(one.own, one.total)).then(a.cmp(b))
        });
        writeln!(f, "\n    own    total  functions by themselves")?;
        for (name, share) in functions.iter().take(rows).filter(|(_, share)| share.own > 0) {
            row(f, columns, tally.total, share.own, Some(share.total), name)?;
        }
        functions.retain(|(_, share)| !share.passes_on());
        functions.sort_by(|(a, one), (b, other)| {
            (other.total, other.own).cmp(&(one.total, one.own)).then(a.cmp(b))
        });
        writeln!(f, "\n    own    total  functions with callees, without wrappers")?;
        for (name, share) in functions.iter().take(rows) {
            row(f, columns, tally.total, share.own, Some(share.total), name)?;
        }
        writeln!(f, "\n  share  the hottest path, from the root")?;
        path(f, &tally.hottest_path(), tally.total, columns)?;
        by_process(f, profile, tally.total, self)
    }
}

/// One row of a table.
fn row(
    f: &mut fmt::Formatter<'_>,
    columns: usize,
    whole: u64,
    first: u64,
    second: Option<u64>,
    name: &str,
) -> fmt::Result {
    write!(f, "{:>7}", Percent(first, whole))?;
    let mut used = 9;
    if let Some(second) = second {
        write!(f, "  {:>7}", Percent(second, whole))?;
        used += 9;
    }
    writeln!(f, "  {}", fit(name, columns.saturating_sub(used).max(1)))
}

/// The path; frames that nothing branches off from are told in one line.
fn path(f: &mut fmt::Formatter<'_>, path: &[Step], whole: u64, columns: usize) -> fmt::Result {
    let mut rest = path;
    while let Some(first) = rest.first() {
        let alike = rest.iter().take_while(|step| step.count == first.count).count();
        let (group, others) = rest.split_at(alike);
        if group.len() > ALIKE {
            row(f, columns, whole, first.count, None, &first.name)?;
            writeln!(f, "{:>7}  … {} frames more", "", group.len() - 2)?;
            if let Some(last) = group.last() {
                row(f, columns, whole, last.count, None, &last.name)?;
            }
        } else {
            for step in group {
                row(f, columns, whole, step.count, None, &step.name)?;
            }
        }
        rest = others;
    }
    Ok(())
}

/// Processes, or threads where there is one process.
fn by_process(f: &mut fmt::Formatter<'_>, profile: &Profile, whole: u64, report: &Report<'_>) -> fmt::Result {
    let (mut processes, mut threads) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
    for sample in &profile.samples {
        let process = profile.processes.get(sample.process.index());
        let identity = process.map(|process| (profile.string(process.name), process.pid));
        let counts = [
            processes.entry(identity.unwrap_or_default()).or_default(),
            threads
                .entry((profile.string(sample.thread_name), sample.tid))
                .or_default(),
        ];
        for count in counts {
            *count = count.saturating_add(sample.count);
        }
    }
    let (what, counts) = match (processes.len(), threads.len()) {
        (2.., _) => ("processes", processes),
        (_, 2..) => ("threads", threads),
        _ => return Ok(()),
    };
    writeln!(f, "\n  share  {what}")?;
    let number = counts.len();
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, one), (b, other)| other.cmp(one).then(a.cmp(b)));
    for ((name, id), count) in counts.into_iter().take(report.rows) {
        let name = if name.is_empty() { "[unknown]" } else { name };
        let name = match id {
            0 => name.to_owned(),
            id => format!("{} ({id})", fit(name, report.columns.saturating_sub(24).max(16))),
        };
        row(f, report.columns, whole, count, None, &name)?;
    }
    if number > report.rows {
        let more = u64::try_from(number - report.rows).unwrap_or(u64::MAX);
        writeln!(f, "{:>7}  … {} more", "", Thousands(more))?;
    }
    Ok(())
}
