//! What an output says: how many samples there are, and in which frames. Read by means of the tests' own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::workload::{Report, text};

/// The functions of `split`.
pub const PARTS: [&str; 3] = ["sixty", "thirty", "ten"];

/// A profile as its reader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Stacks, root first, with the name of the process before it, and their samples.
    pub stacks: BTreeMap<Vec<String>, u64>,
}

impl Picture {
    /// Of folded stacks.
    pub fn folded(text: &str) -> Self {
        let mut stacks = BTreeMap::new();
        for line in text.lines() {
            let (stack, count) = line
                .rsplit_once(' ')
                .unwrap_or_else(|| panic!("no count: {line}"));
            let stack = stack.split(';').map(str::to_owned).collect();
            let count: u64 = count.parse().unwrap_or_else(|_| panic!("no count: {line}"));
            assert!(stacks.insert(stack, count).is_none(), "twice: {line}");
        }
        Self { stacks }
    }

    pub fn folded_file(path: &Path) -> Self {
        Self::folded(&text(path))
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Samples whose stack holds these frames, next to each other, caller first.
    pub fn within(&self, path: &[&str]) -> u64 {
        self.stacks
            .iter()
            .filter(|(stack, _)| stack.windows(path.len()).any(|frames| frames == path))
            .map(|(_, count)| count)
            .sum()
    }

    /// Samples of the processes of a name.
    pub fn of_process(&self, name: &str) -> u64 {
        self.stacks
            .iter()
            .filter(|(stack, _)| stack[0] == name)
            .map(|(_, count)| count)
            .sum()
    }

    /// Names of the processes.
    pub fn processes(&self) -> BTreeSet<&str> {
        self.stacks.keys().map(|stack| stack[0].as_str()).collect()
    }

    /// The stacks that hold at least a share of the samples.
    pub fn main_stacks(&self, share: f64) -> BTreeSet<&[String]> {
        let least = self.total() as f64 * share;
        self.stacks
            .iter()
            .filter(|&(_, &count)| count as f64 >= least)
            .map(|(stack, _)| stack.as_slice())
            .collect()
    }

    /// Frames and their samples, callees included, without the marks of kernel and inlined frames. A frame that calls itself counts
    /// twice.
    pub fn frames(&self) -> BTreeMap<String, u64> {
        let mut frames = BTreeMap::new();
        for (stack, count) in &self.stacks {
            for frame in stack {
                let name = ["_[k]", "_[i]", "_[j]"]
                    .iter()
                    .find_map(|mark| frame.strip_suffix(mark));
                *frames.entry(name.unwrap_or(frame).to_owned()).or_default() += count;
            }
        }
        frames
    }
}

/// Frames of a flamegraph and their samples, by the titles that a browser shows; the number of all samples is under
/// `all`.
pub fn svg(path: &Path) -> BTreeMap<String, u64> {
    let svg = text(path);
    let mut frames = BTreeMap::new();
    for title in svg.split("<title>").skip(1) {
        let title = title.split("</title>").next().unwrap();
        let (name, rest) = title.rsplit_once(" (").unwrap();
        let count = rest.split(' ').next().unwrap().replace(',', "");
        let name = name
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&quot;", "\"")
            .replace("&apos;", "'")
            .replace("&amp;", "&");
        *frames.entry(name).or_default() += count.parse::<u64>().unwrap_or_else(|_| panic!("{title}"));
    }
    frames
}

/// Fails unless the samples are divided as the CPU time was, within three standard deviations.
///
/// The deviation is that of a fair draw for every sample, sqrt(p (1 - p) / n). Samples come at regular intervals, and the
/// slices of the workload are longer than these: a slice of length t holds t / period samples rounded up or down. So the
/// true deviation is below 1/2 per slice, a third of the fair draw's at most, and a false alarm lies beyond nine of
/// them: its probability is far below 1e-4.
pub fn assert_split(samples: impl Fn(&str) -> u64, total: u64, report: &Report) {
    for part in PARTS {
        let (share, seen) = (report.share(part), samples(part) as f64 / total as f64);
        let deviation = (share * (1.0 - share) / total as f64).sqrt();
        assert!(
            (seen - share).abs() <= 3.0 * deviation,
            "{part}: {seen:.4} of {total} samples, {share:.4} of the CPU time; 3 sigma are {:.4}",
            3.0 * deviation
        );
    }
}

/// Fails unless there is a sample for each period of CPU time, within three standard deviations.
///
/// Each stretch of time that the target runs without a break is sampled at regular intervals: it holds its length / period samples,
/// rounded up or down by chance. With f the fraction, the variance of that is f (1 - f): at most 1/4, and at most the
/// number of samples. So sqrt(n), the deviation of independent arrivals, is an upper bound whatever else the machine
/// does, and at least twice the truth where stretches are longer than a period: a false alarm lies beyond six true
/// deviations, 1e-8.
///
/// What a bound by chance does not cover is time that the host of a virtual machine takes: the guest accounts it to
/// whoever ran, but no timer fires in it. The workload has seen these gaps, and as many samples may be missing.
pub fn assert_count(samples: u64, report: &Report, frequency: u64) {
    let periods = |nanoseconds: u64| nanoseconds as f64 * frequency as f64 / 1e9;
    let expected = periods(report.get("cpu"));
    let stolen = periods(report.get("stolen"));
    let bound = 3.0 * expected.sqrt();
    let samples = samples as f64;
    assert!(
        samples >= expected - stolen - bound && samples <= expected + bound,
        "{samples} samples; expected {expected:.1}, of which {stolen:.1} the host may have taken; 3 sigma are {bound:.1}"
    );
}
