//! Lines of a perf map.
//!
//! ```text
//! 3ef414c0 398 JS:*fibonacci /srv/app.js:7:19
//! └ start  └ size, both hexadecimal; the rest of the line is the name
//! ```

/// No longer name is taken: the rest of it is cut.
const LONGEST_NAME: usize = 4096;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) name: &'a str,
}

/// Reads a line without its end; `None` when it is none.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = str::from_utf8(line).ok()?;
    let (start, rest) = line.split_once(' ')?;
    let (len, name) = rest.split_once(' ')?;
    let (start, len) = (hex(start)?, hex(len)?);
    let name = name.trim_end_matches('\r');
    let is_in_user_space = start.checked_add(len).is_some_and(|end| end < 1 << 63);
    (is_in_user_space && !name.is_empty()).then(|| Line {
        start,
        len,
        name: cut(name),
    })
}

/// The beginning of a name that is too long.
pub(super) fn cut(name: &str) -> &str {
    name.get(..name.floor_char_boundary(LONGEST_NAME)).unwrap_or(name)
}

/// Some write `0x` before it. A sign is no digit.
fn hex(digits: &str) -> Option<u64> {
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let valid = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_real_programs() {
        for (line, start, len, name) in [
            (
                &b"3ef414c0 398 JS:*fib /srv/a b.js:7:19"[..],
                0x3ef4_14c0,
                0x398,
                "JS:*fib /srv/a b.js:7:19",
            ),
            (
                b"0x00007f9c5b1a2c20 0x1a0 void java.lang.String.<init>(int[])",
                0x7f9c_5b1a_2c20,
                0x1a0,
                "void java.lang.String.<init>(int[])",
            ),
            (b"7f00 b py::f:/srv/a.py\r", 0x7f00, 0xb, "py::f:/srv/a.py"),
            (b"1 0 empty", 1, 0, "empty"),
        ] {
            assert_eq!(parse(line), Some(Line { start, len, name }));
        }
    }

    #[test]
    fn what_is_no_line_is_none() {
        for line in [
            &b""[..],
            b"\0\0\0",
            b"1",
            b"1 2",
            b"1 2 ",
            b"+1 2 f",
            b"-1 2 f",
            b"x 2 f",
            b"1 x f",
            b"10000000000000000 2 f",
            b"ffffffffffffffff 2 f",
            b"ffffffff81000000 2 f",
            b"1 2 \xff",
            b" 1 2 f",
        ] {
            assert_eq!(parse(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let line = format!("1 2 {}", "é".repeat(LONGEST_NAME));
        let name = parse(line.as_bytes()).unwrap().name;
        assert_eq!(name.len(), LONGEST_NAME);
    }
}
