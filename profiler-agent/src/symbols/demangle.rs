//! From the name the linker knows to the name a person knows.
//!
//! A few hundred bytes of C++ can demangle into half a gigabyte (255 bytes: 544 MB in 11 s), because substitutions
//! refer to substitutions. So the text goes into a writer that refuses to grow past [`NAME_LIMIT`]; the demangler
//! stops at the refusal.

use std::fmt::{self, Write};

/// Names and paths longer than this many bytes are cut, and end in `…`.
pub(super) const NAME_LIMIT: usize = 4096;

/// Demangles a Rust (v0 and legacy, without hash) or C++ name; `None` when it is neither.
///
/// At most [`NAME_LIMIT`] bytes. Control characters and markup are left as they are: each output escapes its own.
pub(super) fn demangle(name: &str) -> Option<String> {
    // Both demanglers also take names without the underscore, as other systems write them; here they are C.
    if !name.starts_with('_') {
        return None;
    }
    let mut text = Bounded::default();
    // Rust first: a legacy Rust name is a C++ name too, with its hash as a last scope.
    let written = if let Ok(rust) = rustc_demangle::try_demangle(name) {
        write!(text, "{rust:#}")
    } else {
        let symbol = cpp_demangle::BorrowedSymbol::with_tail(name.as_bytes()).ok();
        let (symbol, tail) = symbol?;
        if !tail.is_empty() {
            return None;
        }
        symbol.structured_demangle(&mut text, &cpp_demangle::DemangleOptions::new())
    };
    match (written, text.full) {
        (_, true) => Some(cut(text.text)),
        (Ok(()), false) => Some(text.text),
        (Err(fmt::Error), false) => None,
    }
}

/// Owns `text`, cut to [`NAME_LIMIT`] bytes at the border of a character, with `…` for what is missing.
pub(super) fn bounded(text: &str) -> String {
    if text.len() <= NAME_LIMIT {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(NAME_LIMIT - '…'.len_utf8());
    let mut kept = text.get(..end).unwrap_or_default().to_owned();
    kept.push('…');
    kept
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(NAME_LIMIT - '…'.len_utf8()));
    text.push('…');
    text
}

/// Takes text up to [`NAME_LIMIT`] bytes, then fails.
#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = NAME_LIMIT.saturating_sub(self.text.len());
        if part.len() <= room {
            self.text.push_str(part);
            return Ok(());
        }
        self.full = true;
        let end = part.floor_char_boundary(room);
        self.text.push_str(part.get(..end).unwrap_or_default());
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn languages() {
        for (mangled, name) in [
            ("_RNvC6_123foo3bar", Some("123foo::bar")),
            ("_ZN4core3fmt5write17h0123456789abcdefE", Some("core::fmt::write")),
            ("_ZN3foo3barEi", Some("foo::bar(int)")),
            ("_Z3fooi.isra.0", Some("foo(int) [clone .isra.0]")),
            ("main", None),
            ("i", None),
            ("RNvC6_123foo3bar", None),
            ("_init", None),
            ("_ZN3foo3barEi@plt", None),
            ("", None),
        ] {
            assert_eq!(demangle(mangled).as_deref(), name, "{mangled}");
        }
    }

    #[test]
    fn bomb_is_cut_in_no_time() {
        // Each type argument is a pair of the one before it: 2^n names.
        for depth in [8, 16, 30] {
            let mut name = String::from("_Z1f1AIiiE");
            let mut last = String::from("S0_");
            for step in 0..depth {
                name.push_str(&format!("S_I{last}{last}E"));
                last = format!("S{}_", base36(step + 1));
            }
            let start = Instant::now();
            let text = demangle(&name);
            let text = text.expect(&name);
            assert!(text.len() <= NAME_LIMIT);
            assert!(depth < 16 || text.ends_with("…"));
            assert!(
                start.elapsed() < Duration::from_millis(200),
                "{:?}",
                start.elapsed()
            );
        }
    }

    fn base36(number: usize) -> String {
        let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        match number {
            0..36 => String::from(digits[number] as char),
            _ => base36(number / 36) + &base36(number % 36),
        }
    }

    #[test]
    fn cut_at_a_character() {
        let long = "é".repeat(NAME_LIMIT);
        let kept = bounded(&long);
        assert!(kept.len() <= NAME_LIMIT && kept.ends_with("é…"));
        assert_eq!(bounded("short"), "short");
    }
}
