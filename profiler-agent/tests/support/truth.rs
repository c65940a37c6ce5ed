//! Programs whose stacks are known for certain, from `workloads/truth/`, and the check of every sample against them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

use super::{
    picture::{Frame, Otlp},
    tools,
};

/// Flags of C and C++: no frame pointers, and a frame for each call under the name that the source gives it.
const FLAGS: [&str; 11] = [
    "-O2",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-inline",
    "-fno-ipa-icf",
    "-fno-ipa-sra",
    "-fno-ipa-cp",
    "-fno-ipa-ra",
    "-pthread",
    "-Wall",
    "-Wextra",
];

/// Flags of Rust's release builds.
const RUST_FLAGS: [&str; 5] = ["--edition", "2024", "-O", "-C", "force-frame-pointers=no"];

/// The same of Zig's.
const ZIG_FLAGS: [&str; 4] = ["build-exe", "-OReleaseFast", "-fomit-frame-pointer", "-fno-strip"];

/// A truth program: its source, what it is built with, and the chains it may be found in.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What it is called as a process; up to 15 letters.
    pub name: &'static str,
    /// Its file in `workloads/truth/`.
    pub source: &'static str,
    /// Flags beside the usual ones.
    pub flags: &'static [&'static str],
    /// What it is started with; `@name` is the path of another program.
    pub arguments: &'static [&'static str],
    /// Programs and libraries that it needs.
    pub needs: &'static [Program],
    /// See [`Chains`].
    pub chains: &'static [&'static str],
}

impl Program {
    /// A program of its source's name, with nothing special.
    pub const fn new(source: &'static str, name: &'static str, chains: &'static [&'static str]) -> Self {
        Self {
            name,
            source,
            flags: &[],
            arguments: &[],
            needs: &[],
            chains,
        }
    }

    /// The program and what it needs, compiled; or what is lacking.
    pub fn compile(&self) -> Result<PathBuf, &'static str> {
        static COMPILED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
        for need in self.needs {
            need.compile()?;
        }
        let program = folder().join(self.name);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        // Once per test binary: the source may have changed since another run.
        if compiled.contains(self.name) {
            return Ok(program);
        }
        std::fs::create_dir_all(folder()).unwrap();
        let preliminary = folder().join(format!(".{}.{}", self.name, std::process::id()));
        let Output { status, stderr, .. } = self.compiler(&preliminary)?.output().unwrap();
        assert!(
            status.success(),
            "{}:\n{}",
            self.source,
            String::from_utf8_lossy(&stderr)
        );
        // In one step, as another test binary may be running the old one.
        std::fs::rename(preliminary, &program).unwrap();
        compiled.insert(self.name);
        Ok(program)
    }

    fn compiler(&self, output: &Path) -> Result<Command, &'static str> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("workloads/truth")
            .join(self.source);
        let language = source.extension().unwrap().to_str().unwrap().to_owned();
        let (variable, usual, flags, lacking): (_, _, &[&str], _) = match language.as_str() {
            "c" => ("CC", "cc", &FLAGS, "a C compiler (Debian package gcc)"),
            "cpp" => ("CXX", "c++", &FLAGS, "a C++ compiler (Debian package g++)"),
            "rs" => ("RUSTC", "rustc", &RUST_FLAGS, "rustc"),
            "zig" => (
                "PROFILER_TEST_ZIG",
                "zig",
                &ZIG_FLAGS,
                "zig (PyPI package ziglang)",
            ),
            other => panic!("no compiler for .{other}"),
        };
        let mut command = Command::new(tools::find(variable, Some(usual)).ok_or(lacking)?);
        command.args(flags).args(self.flags).arg(source);
        if language == "zig" {
            let caches = folder().join("zig-cache");
            command
                .arg(format!("-femit-bin={}", output.display()))
                .arg("--cache-dir")
                .arg(&caches)
                .arg("--global-cache-dir")
                .arg(&caches);
        } else {
            command.arg("-o").arg(output);
        }
        Ok(command)
    }

    /// What it is started with.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        self.arguments.iter().map(|argument| {
            argument.strip_prefix('@').map_or_else(
                || (*argument).to_owned(),
                |name| folder().join(name).to_str().unwrap().to_owned(),
            )
        })
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("truth")
}

/// The chains of functions, root first, that a program may be found in.
///
/// A chain is a line of words, one for a frame. Functions of the program stand under their names, without paths, parameters and marks of
/// what the compiler split off. What is not the program's stands under its library's name (`libc`, `ld`, `libgcc_s`,
/// `libstdcxx`), and code that was made at run time is `code`: distributions differ in their names. A function of the program that no chain
/// mentions is `other` (the start of Rust's and Zig's programs; in a static one, all of libc). `a|b` is either, `a+` one or
/// more, `a*` any number, `a?` none or one, `a{900}` as many. Above all, `[…]` is the mark of an incomplete stack,
/// `_` for its blanks.
///
/// A chain has a share of the samples as large as the others', or a third of it at least; `~` before it: none is asked. `!` before it: an
/// exception that lies in the program and not in the profiler, for a reason that stands beside it; one sample in fifty at most, or one
/// in ten of a program from its start.
///
/// A stack that stops short of a chain's end at its leaf is fine, as the function on top has not called the next one yet or no more, and
/// may have called libc; what begins short, misses a frame or has one too many is wrong.
#[derive(Debug)]
pub struct Chains {
    chains: Vec<(Share, Vec<Element>)>,
    /// Functions that they mention.
    names: BTreeSet<&'static str>,
    /// Whether the loading of the program is part of what is seen.
    from_start: bool,
}

/// One sample in so many may be in no chain. Ticks hit what programs do once in ten thousand samples: a stub without name, registers that the
/// kernel is putting back. Each is told, and what is understood becomes a chain or an exception.
const STRAY: u64 = 300;

/// And so many whatever their share is: of a capture that got little of a busy machine, one is more than that.
const FEW: u64 = 2;

/// How many samples a chain must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// As many as others.
    Fair,
    /// Any number.
    Any,
    /// Few.
    Exception,
}

/// A word of a chain.
#[derive(Debug)]
struct Element {
    names: Vec<&'static str>,
    optional: bool,
    repeated: bool,
}

/// What a stack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// This chain to its end.
    Whole(usize),
    /// A chain, and the function on top has not called the next one.
    Part,
    /// None.
    Wrong,
}

impl Chains {
    /// One sample in how many may be an exception.
    const fn rarity(&self) -> u64 {
        if self.from_start { 10 } else { 50 }
    }

    pub fn new(chains: &[&'static str], from_start: bool) -> Self {
        let mut names = BTreeSet::new();
        let chains = chains.iter().map(|&chain| {
            let (share, chain) = match chain.split_at(1) {
                ("~", chain) => (Share::Any, chain),
                ("!", chain) => (Share::Exception, chain),
                _ => (Share::Fair, chain),
            };
            let mut elements = Vec::new();
            for word in chain.split_ascii_whitespace() {
                let (word, times) = word.strip_suffix('}').map_or((word, 1), |word| {
                    let (word, times) = word.rsplit_once('{').unwrap();
                    (word, times.parse().unwrap())
                });
                let bare = word.trim_end_matches(['+', '*', '?']);
                let suffix = &word[bare.len()..];
                names.extend(bare.split('|'));
                elements.extend((0..times).map(|_| Element {
                    names: bare.split('|').collect(),
                    optional: matches!(suffix, "*" | "?"),
                    repeated: matches!(suffix, "*" | "+"),
                }));
            }
            (share, elements)
        });
        let chains = chains.collect();
        Self {
            chains,
            names,
            from_start,
        }
    }

    /// The word for a frame.
    fn word(&self, frame: &Frame) -> String {
        let Frame { name, file, .. } = frame;
        if name.starts_with("[anon]") || file.starts_with("/memfd:") {
            return "code".into();
        }
        let is_own = Path::new(file).parent() == Some(&folder());
        // Of the vDSO it is known what is called.
        if !file.is_empty() && file != "[vdso]" && !is_own {
            let base = file.rsplit('/').next().unwrap();
            let base = base.split(".so").next().unwrap();
            return match base {
                "ld-linux-x86-64" => "ld".into(),
                "libstdc++" => "libstdcxx".into(),
                base => base.into(),
            };
        }
        if name.ends_with("@plt") {
            return "libc".into(); // the stub on the way there
        }
        let short = short(name);
        // Without a name it stays what it is: `[unknown]`, or an address.
        if frame.is_marker()
            || name.starts_with('[')
            || name.contains("+0x")
            || self.names.contains(short.as_str())
        {
            // A blank would end the word.
            short.replace(' ', "_")
        } else {
            "other".into()
        }
    }

    fn verdict(&self, words: &[String]) -> Verdict {
        let mut verdict = Verdict::Wrong;
        // The loader begins the program and calls what libraries ask for; its own truth is another's.
        let loads = |word: &String| word == "other" || word == "ld" || word.starts_with("lib");
        if self.from_start && words.first().is_some_and(|word| word == "ld") && words.iter().all(loads) {
            return Verdict::Part;
        }
        for (index, (_, chain)) in self.chains.iter().enumerate() {
            match follow(chain, words) {
                Some(true) => return Verdict::Whole(index),
                Some(false) => verdict = Verdict::Part,
                None => {}
            }
        }
        verdict
    }

    /// Checks every sample of a profile. What is wrong with them, as folded stacks; empty if nothing is.
    pub fn check(&self, otlp: &Otlp) -> String {
        let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
        let mut whole = vec![0; self.chains.len()];
        let (mut total, mut wrong_samples) = (0, 0);
        for (frames, count) in otlp.stacks() {
            total += count;
            let user = frames.iter().rposition(|frame| !frame.is_kernel());
            let user = user.map_or(0, |last| last + 1);
            let words: Vec<String> = frames[..user].iter().map(|frame| self.word(frame)).collect();
            match self.verdict(&words) {
                Verdict::Whole(index) => whole[index] += count,
                Verdict::Part => {}
                Verdict::Wrong => {
                    wrong_samples += count;
                    // And where the kernel was entered.
                    let shown = frames.iter().take(user + 4).map(|frame| frame.name.as_str());
                    *wrong.entry(folded(shown)).or_default() += count;
                }
            }
        }
        let mut said = String::new();
        if wrong_samples > 0 {
            let mut stray = format!("{wrong_samples} of {total} samples are in none of the chains:\n");
            let mut wrong: Vec<_> = wrong.into_iter().collect();
            wrong.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            for (stack, count) in wrong.iter().take(30) {
                stray += &format!("  {stack} {count}\n");
            }
            if wrong_samples > FEW + total / STRAY {
                said += &stray;
            } else {
                eprintln!("{stray}");
            }
        }
        let fair = self.chains.iter().filter(|(share, _)| *share == Share::Fair);
        let fair = fair.count() as u64;
        for ((share, chain), count) in self.chains.iter().zip(&whole) {
            let chain = folded(chain.iter().map(|element| element.names[0]));
            match share {
                // Of a few samples on a busy machine a share says nothing.
                Share::Fair if total > 50 * fair && count * 3 * fair < total => {
                    said += &format!("{count} of {total} samples, where one in {fair} is due: {chain}\n");
                }
                Share::Exception if *count > FEW && count * self.rarity() > total => {
                    said += &format!("{count} of {total} samples are no exception any more: {chain}\n");
                }
                Share::Fair | Share::Any | Share::Exception => {}
            }
        }
        if total < 20 {
            said += &format!("only {total} samples\n");
        }
        said
    }

    /// Samples that are fine, and all of them.
    pub fn count(&self, otlp: &Otlp) -> (u64, u64) {
        let (mut fine, mut total) = (0, 0);
        for (frames, count) in otlp.stacks() {
            let user = frames.iter().rposition(|frame| !frame.is_kernel());
            let words: Vec<String> = frames[..user.map_or(0, |last| last + 1)]
                .iter()
                .map(|frame| self.word(frame))
                .collect();
            total += count;
            fine += if self.verdict(&words) == Verdict::Wrong {
                0
            } else {
                count
            };
        }
        (fine, total)
    }
}

/// Whether words lead into a chain: `true` to its end, `false` to a place on the way.
fn follow(chain: &[Element], words: &[String]) -> Option<bool> {
    // The places in the chain where the next word may be.
    let mut places = BTreeSet::new();
    reach(chain, 0, &mut places);
    for (index, word) in words.iter().enumerate() {
        let mut next = BTreeSet::new();
        for &place in &places {
            let Some(element) = chain.get(place) else { continue };
            if element.names.iter().any(|name| name == word) {
                if element.repeated {
                    reach(chain, place, &mut next);
                }
                reach(chain, place + 1, &mut next);
            }
        }
        if next.is_empty() {
            return (index > 0 && in_libraries(&words[index..])).then_some(false);
        }
        places = next;
    }
    Some(places.contains(&chain.len()))
}

/// Adds a place, and those behind it that can be had by leaving out.
fn reach(chain: &[Element], mut place: usize, places: &mut BTreeSet<usize>) {
    while places.insert(place) && chain.get(place).is_some_and(|element| element.optional) {
        place += 1;
    }
}

/// What any function may call and be seen in. The C library loads `libgcc_s` when a thread ends.
fn in_libraries(words: &[String]) -> bool {
    words
        .iter()
        .all(|word| matches!(word.as_str(), "libc" | "ld" | "libgcc_s"))
}

/// A function's own name: no path, no parameters, no type arguments, nothing that the compiler has added.
fn short(name: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0_u32;
    for letter in name.split(['(', '[']).next().unwrap().chars() {
        match letter {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            letter if depth == 0 => plain.push(letter),
            _ => {}
        }
    }
    let plain = plain.trim_end().trim_end_matches("::");
    let plain = plain
        .split(".cold")
        .next()
        .unwrap()
        .split(".part")
        .next()
        .unwrap();
    let own = plain.rsplit("::").next().unwrap().trim();
    if own.is_empty() {
        name.to_owned()
    } else {
        own.to_owned()
    }
}

/// Names in one line, with repetitions counted.
fn folded<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut runs: Vec<(&str, u32)> = Vec::new();
    for name in names {
        match runs.last_mut() {
            Some((last, times)) if *last == name => *times += 1,
            _ => runs.push((name, 1)),
        }
    }
    let runs = runs.into_iter().map(|(name, times)| match times {
        1 => name.to_owned(),
        times => format!("{name}{{{times}}}"),
    });
    runs.collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(chains: &[&'static str], stack: &str) -> Verdict {
        let words: Vec<String> = stack.split_ascii_whitespace().map(str::to_owned).collect();
        Chains::new(chains, false).verdict(&words)
    }

    #[test]
    fn a_stack_is_a_chain_or_its_beginning() {
        let chains = &["_start libc main a libc+ b", "_start libc main c{3} d* e|f"];
        for (stack, expected) in [
            ("_start libc main a libc b", Verdict::Whole(0)),
            ("_start libc main a libc libc b", Verdict::Whole(0)),
            ("_start libc main a", Verdict::Part),
            ("_start libc main libc ld", Verdict::Part),
            ("_start libc main c c c e", Verdict::Whole(1)),
            ("_start libc main c c c d d f", Verdict::Whole(1)),
            ("", Verdict::Part),
            // A frame is missing: at the root, in the middle, above the leaf.
            ("main a libc b", Verdict::Wrong),
            ("_start libc a libc b", Verdict::Wrong),
            ("_start libc main a b", Verdict::Wrong),
            ("_start libc main b", Verdict::Wrong),
            // One too many.
            ("_start libc main a libc b b", Verdict::Wrong),
            ("_start libc main c c c c e", Verdict::Wrong),
            // A library whose callers are lost, and a stack that says so itself.
            ("libc", Verdict::Wrong),
            ("ld libc", Verdict::Wrong),
            ("[truncated] main a libc b", Verdict::Wrong),
        ] {
            assert_eq!(verdict(chains, stack), expected, "{stack}");
        }
    }

    #[test]
    fn names_are_cut_to_the_function() {
        for (name, expected) in [
            ("main", "main"),
            ("guarded(int) [clone .cold]", "guarded"),
            ("Guard::~Guard()", "~Guard"),
            ("Told::what() const", "what"),
            ("<threads::Object as threads::Work>::work", "work"),
            (
                "threads::call_generic::<threads::one_round::{closure#0}>",
                "call_generic",
            ),
            ("msort_with_tmp.part.0", "msort_with_tmp"),
            ("[truncated]", "[truncated]"),
            ("zig.callPointer", "zig.callPointer"),
        ] {
            assert_eq!(short(name), expected);
        }
    }
}
