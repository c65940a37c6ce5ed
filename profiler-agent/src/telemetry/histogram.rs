//! How long things took, by classes.

/// Counts of durations by their upper limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// One more than there are limits: the last is of what is beyond all.
    counts: [u64; Self::LIMITS.len() + 1],
    sum: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; Self::LIMITS.len() + 1],
            sum: 0.0,
        }
    }
}

impl Histogram {
    /// Upper limits of the classes in seconds, as the semantic conventions have them for durations of requests.
    pub const LIMITS: [f64; 14] = [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ];

    /// Counts one.
    pub fn record(&mut self, seconds: f64) {
        let class = Self::LIMITS.partition_point(|limit| *limit < seconds);
        if let Some(count) = self.counts.get_mut(class) {
            *count += 1;
        }
        self.sum += seconds;
    }

    /// All that were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their seconds together.
    pub const fn sum(&self) -> f64 {
        self.sum
    }

    /// For each limit how many took that long or less.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        Self::LIMITS
            .into_iter()
            .zip(&self.counts)
            .map(move |(limit, count)| {
                sum += count;
                (limit, sum)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_belongs_to_its_class() {
        let mut histogram = Histogram::default();
        for seconds in [0.001, 0.005, 0.0051, 10.0, 60.0] {
            histogram.record(seconds);
        }
        let classes: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!(classes[..2], [(0.005, 2), (0.01, 3)]);
        assert_eq!(classes.last(), Some(&(10.0, 4)));
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum() - 70.0111).abs() < 1e-9);
    }
}
