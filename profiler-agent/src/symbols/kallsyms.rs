//! The running kernel's symbols: `/proc/kallsyms`.
//!
//! ```text
//! ffffffff81001230 T do_one_initcall
//! ffffffffc0203000 t nf_hook  [nf_tables]
//! ```
//! Read here and not by blazesym, which forgets the module. About 120,000 lines, in no strict order, without sizes:
//! a symbol ends where the next one begins.

use std::{
    fmt,
    io::{self, BufRead},
};

/// Farther than this from the start of the nearest symbol, an address has no name: the gaps between the kernel, its
/// modules and its data are no part of the last function before them. The longest functions have some 50 KiB.
const REACH: u64 = 256 << 10;

/// More symbols than this are not kept; six times what a distribution's kernel with all its modules has.
const MOST_SYMBOLS: usize = 1 << 20;

/// No longer line exists: a name has at most 512 bytes (`KSYM_NAME_LEN`), a module's 56.
const LONGEST_LINE: u64 = 1024;

/// Why the kernel's symbols cannot be had.
#[derive(Debug)]
pub enum Error {
    /// Reading failed.
    Read(io::Error),
    /// All addresses read as zero.
    Hidden,
    /// There is no symbol in it.
    Empty,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "kernel symbols: reading /proc/kallsyms: {error}"),
            Self::Hidden => f.write_str(
                "kernel symbols: the kernel hides their addresses (kernel.kptr_restrict): run with CAP_SYSLOG, \
                 or `sysctl kernel.kptr_restrict=1` if it is 2",
            ),
            Self::Empty => f.write_str(
                "kernel symbols: /proc/kallsyms is empty: this kernel was built without CONFIG_KALLSYMS, or a sandbox \
                 hides it (ProtectKernelTunables= of systemd does)",
            ),
        }
    }
}

/// The text symbols of the kernel, by address. 24 bytes each and their names once.
#[derive(Debug)]
pub struct Kallsyms {
    entries: Vec<Entry>,
    /// All names, each with ` [module]` where it is of a module.
    names: String,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    name: u32,
    length: u16,
    /// Length of the name alone, without the module.
    bare: u16,
    global: bool,
}

impl Kallsyms {
    /// Reads the table; 60 ms and 8 MB for a usual kernel.
    ///
    /// # Errors
    /// [`Error::Hidden`] when this process may not see addresses.
    pub fn read(mut input: impl BufRead) -> Result<Self, Error> {
        let mut entries = Vec::new();
        let mut names = String::new();
        let mut hidden = false;
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = io::Read::take(&mut input, LONGEST_LINE);
            if limited.read_until(b'\n', &mut line).map_err(Error::Read)? == 0 {
                break;
            }
            let Some((address, kind, name, module)) = str::from_utf8(&line).ok().and_then(fields) else {
                continue;
            };
            if address == 0 {
                hidden = true;
                continue;
            }
            if !matches!(kind, 't' | 'T' | 'w' | 'W') || entries.len() >= MOST_SYMBOLS {
                continue;
            }
            let Ok(start) = u32::try_from(names.len()) else {
                break;
            };
            names.push_str(name);
            if let Some(module) = module {
                names.push_str(" [");
                names.push_str(module);
                names.push(']');
            }
            let length = u16::try_from(names.len() - start as usize).unwrap_or(u16::MAX);
            let bare = u16::try_from(name.len()).unwrap_or(u16::MAX);
            entries.push(Entry {
                address,
                name: start,
                length,
                bare,
                global: kind == 'T',
            });
        }
        if entries.is_empty() {
            return Err(if hidden { Error::Hidden } else { Error::Empty });
        }
        // Of several names of one address the first global one: aliases for the linker's use are mostly local.
        entries.sort_by_key(|entry| (entry.address, !entry.global));
        entries.dedup_by_key(|entry| entry.address);
        entries.shrink_to_fit();
        names.shrink_to_fit();
        Ok(Self { entries, names })
    }

    /// Name of the function at `address`, with ` [module]` and without.
    pub fn name(&self, address: u64) -> Option<(&str, &str)> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        if address - entry.address > REACH {
            return None;
        }
        let start = entry.name as usize;
        let full = self.names.get(start..start + usize::from(entry.length))?;
        Some((full, full.get(..usize::from(entry.bare))?))
    }
}

fn fields(line: &str) -> Option<(u64, char, &str, Option<&str>)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let kind = fields.next()?.chars().next()?;
    let name = fields.next()?;
    let module = fields.next().map(|module| module.trim_matches(['[', ']']));
    Some((address, kind, name, module))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81001000 t local_alias
ffffffff81001000 T entry
ffffffff81000000 T _text
ffffffff82000000 D data
ffffffffc0000010 t nf_hook\t[nf_tables]
bad line
zz T x
";

    #[test]
    fn nearest_with_module() {
        let table = Kallsyms::read(TABLE.as_bytes()).unwrap();
        assert_eq!(table.name(0xffff_ffff_8100_1000), Some(("entry", "entry")));
        assert_eq!(table.name(0xffff_ffff_8100_0fff), Some(("_text", "_text")));
        assert_eq!(
            table.name(0xffff_ffff_c000_0020),
            Some(("nf_hook [nf_tables]", "nf_hook"))
        );
        assert_eq!(
            table.name(0xffff_ffff_8200_0000),
            None,
            "data is no function, and the last one is far"
        );
        assert_eq!(table.name(0), None);
    }

    #[test]
    fn hidden_names_the_remedy() {
        let error = Kallsyms::read("0000000000000000 T a\n".as_bytes()).unwrap_err();
        assert!(error.to_string().contains("CAP_SYSLOG"), "{error}");
        let error = Kallsyms::read(&b""[..]).unwrap_err();
        assert!(
            error.to_string().contains("CONFIG_KALLSYMS") && error.to_string().contains("sandbox"),
            "{error}"
        );
    }

    #[test]
    fn endless_line_is_cut() {
        let mut long = vec![b'a'; 1 << 20];
        long.extend_from_slice(b"\nffffffff81001000 T entry\n");
        let table = Kallsyms::read(&long[..]).unwrap();
        assert_eq!(table.name(0xffff_ffff_8100_1000), Some(("entry", "entry")));
    }
}
