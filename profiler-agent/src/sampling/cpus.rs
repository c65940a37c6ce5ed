//! Which CPUs are online, now and later.

use std::collections::BTreeSet;

use crate::procfs;

/// The CPUs that are online. Empty when the kernel does not say, which is no reason to give up the CPUs already sampled.
pub(super) fn online() -> BTreeSet<u32> {
    procfs::read("/sys/devices/system/cpu/online", 64 << 10)
        .map(|list| parse(&list))
        .unwrap_or_default()
}

/// How many CPUs there can be at most: no number of one is higher. At least one.
pub(super) fn possible() -> u32 {
    let last = procfs::read("/sys/devices/system/cpu/possible", 64 << 10)
        .map(|list| parse(&list))
        .unwrap_or_else(|_| online())
        .last()
        .copied();
    last.unwrap_or_default().saturating_add(1)
}

/// Reads a list like `0-3,8,10-11`; what is no number is left out.
fn parse(list: &[u8]) -> BTreeSet<u32> {
    let list = String::from_utf8_lossy(list);
    list.trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges_and_single_cpus() {
        assert_eq!(parse(b"0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8].into());
        assert_eq!(parse(b""), [].into());
        assert!(online().contains(&0));
        assert!(online().last().is_none_or(|&last| last < possible()));
    }
}
