//! Text that every output needs: points in time as people read them, and names that cannot do harm.

use std::fmt;

/// A point in time as RFC 3339 in UTC, e.g. `2026-11-21T04:11:53Z`; with `{:.3}` milliseconds, up to `{:.9}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rfc3339(
    /// Nanoseconds since the Unix epoch.
    pub u64,
);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let nanos = self.0 % 1_000_000_000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days to a date of the proleptic Gregorian calendar, with years that begin in March, so that the leap
        // day comes last: https://howardhinnant.github.io/date_algorithms.html#civil_from_days
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if let Some(digits @ 1..) = f.precision() {
            let digits = digits.min(9);
            let left_out = u32::try_from(9 - digits).unwrap_or(0);
            write!(f, ".{:0digits$}", nanos / 10_u64.pow(left_out))?;
        }
        f.write_str("Z")
    }
}

/// A whole number with commas between its thousands: `1,234,567`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thousands(
    /// The number.
    pub u64,
);

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.char_indices() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Whether a character may stand in a line of text and in an XML document.
///
/// Refused are the control characters (C0, DEL, C1; XML 1.0 forbids most of them even escaped), the line and
/// paragraph separators, the two code points that XML forbids, and the marks that change the direction of the
/// text around them, with which a name could make its neighbours read as something else.
pub fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{2028}' | '\u{2029}'
            | '\u{fffe}' | '\u{ffff}'
            | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with `?` for every character that is not [plain](is_plain), cut to `limit` characters with a `…`.
pub fn plain(text: &str, limit: usize) -> String {
    let mut out: String = text
        .chars()
        .take(limit)
        .map(|c| if is_plain(c) { c } else { '?' })
        .collect();
    if text.chars().nth(limit).is_some() {
        out.pop();
        out.push('…');
    }
    out
}

/// The text with `?` for every character that is not [plain](is_plain), cut to what fits `columns` of a terminal with a `…`.
pub fn fit(text: &str, columns: usize) -> String {
    use unicode_width::UnicodeWidthChar as _;

    let (mut out, mut used, mut fits) = (String::new(), 0_usize, 0);
    for c in text.chars().map(|c| if is_plain(c) { c } else { '?' }) {
        used += c.width().unwrap_or(0);
        if used > columns {
            out.truncate(fits);
            out.push('…');
            return out;
        }
        out.push(c);
        if used < columns {
            // Up to here there is room for the `…`.
            fits = out.len();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // From `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_234_313, "2026-11-21T04:11:53Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Rfc3339(seconds * 1_000_000_000).to_string(), text);
        }
        assert_eq!(
            format!("{:.3}", Rfc3339(1_999_999_999)),
            "1970-01-01T00:00:01.999Z"
        );
        assert_eq!(format!("{:.20}", Rfc3339(1)), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(Rfc3339(u64::MAX).to_string(), "2554-07-21T23:34:33Z");
    }

    #[test]
    fn thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(Thousands(number).to_string(), text);
        }
    }

    #[test]
    fn columns() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
        assert_eq!(fit("漢字漢字", 5), "漢字…");
        assert_eq!(fit("漢字漢字", 4), "漢…");
        assert_eq!(fit("\u{1b}[31m", 9), "?[31m");
        assert_eq!(fit("", 0), "");
        assert_eq!(fit("a", 0), "…");
    }

    #[test]
    fn harmless() {
        assert_eq!(plain("a\u{1b}[2J\n\u{202e}b\u{ffff}é<", 99), "a?[2J??b?é<");
        assert_eq!(plain("abcdef", 3), "ab…");
        assert_eq!(plain("abc", 3), "abc");
    }
}
