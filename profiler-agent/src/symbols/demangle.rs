//! From the name the linker knows to the name a person knows.
//!
//! A few hundred bytes of C++ can demangle into half a gigabyte (255 bytes: 544 MB in 11 s), because substitutions
//! refer to substitutions. So the text goes into a writer that refuses to grow past [`NAME_LIMIT`]; the demangler
//! stops at the refusal.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

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
        let Ok((symbol, [])) = cpp_demangle::BorrowedSymbol::with_tail(name.as_bytes()) else {
            return path(name);
        };
        symbol.structured_demangle(&mut text, &cpp_demangle::DemangleOptions::new())
    };
    match (written, text.full) {
        (_, true) => Some(cut(text.text)),
        (Ok(()), false) => Some(text.text),
        (Err(fmt::Error), false) => None,
    }
}

/// Of a C++ name that is too new for the demangler: the function with its namespaces and classes, without arguments.
///
/// ```text
/// _ZN3foo3bar…   foo::bar        _ZSt4swap…   std::swap        _ZNKSt6vectorI…   None, as what follows the arguments is not known
/// ```
fn path(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix("_Z")?;
    let nested = rest.strip_prefix('N');
    rest = nested
        .unwrap_or(rest)
        .trim_start_matches(['K', 'V', 'r', 'R', 'O']);
    let mut path = String::new();
    if let Some(behind) = rest.strip_prefix("St") {
        path.push_str("std");
        rest = behind;
    }
    let mut names = 0;
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (len, behind) = rest.split_at_checked(digits)?;
        let Ok(len) = len.parse::<usize>() else { break };
        let (part, behind) = behind.split_at_checked(len)?;
        if !path.is_empty() {
            path.push_str("::");
        }
        path.push_str(part);
        if path.len() > NAME_LIMIT {
            return Some(cut(path));
        }
        rest = behind;
        names += 1;
        if nested.is_none() {
            break;
        }
    }
    // The arguments of a function are behind its name, those of a class before it.
    let template = rest.strip_prefix('I').is_some();
    let is_whole = nested.is_none() || rest.starts_with('E') || (template && names > 1);
    (names > 0 && is_whole).then_some(path)
}

/// `text`, cut to [`NAME_LIMIT`] bytes at the border of a character, with `…` for what is missing.
pub(super) fn bounded(text: &str) -> Cow<'_, str> {
    if text.len() <= NAME_LIMIT {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(NAME_LIMIT - '…'.len_utf8());
    let mut kept = text.get(..end).unwrap_or_default().to_owned();
    kept.push('…');
    Cow::Owned(kept)
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
            // What the demangler does not know, and what is no name.
            (
                "_ZSt4swapINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEiENSt9enable_ifIXsrSt6__and_IJSt14__is_swappableIT_ES8_IT0_EEE5valueEvE4typeERSt4pairIS9_SB_ESI_",
                Some("std::swap"),
            ),
            ("_ZN3foo3barE??", Some("foo::bar")),
            ("_ZN3fooI??", None),
            ("_ZN3foo99bar", None),
            ("_Z", None),
            ("_Z99999999999999999999999x", None),
            ("_ZN3foo3barEi@plt", Some("foo::bar")),
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
