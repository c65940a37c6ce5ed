//! Which words are the most frequent? Split, count in a hash table, sort: on two threads, in Rust alone.

use std::{collections::HashMap, fmt::Write as _};

/// Words of the text.
const WORDS: u32 = 400_000;
/// Different words among them, about.
const VOCABULARY: u64 = 20_000;
/// How often everything is done.
const ROUNDS: u64 = 60;

fn main() {
    let threads = [0, ROUNDS].map(|first| std::thread::spawn(move || texts(first)));
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

#[inline(never)]
fn texts(first: u64) {
    for seed in first..first + ROUNDS {
        one_text(seed);
    }
}

fn one_text(seed: u64) {
    let text = write_text(seed);
    let most_frequent = sort(count(&text));
    assert!(!most_frequent.is_empty());
}

#[inline(never)]
fn write_text(seed: u64) -> String {
    let mut text = String::new();
    let mut random = seed + 1;
    for _ in 0..WORDS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let _ = write!(text, "word{} ", random % VOCABULARY);
    }
    text
}

#[inline(never)]
fn count(text: &str) -> HashMap<&str, u32> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

#[inline(never)]
fn sort(counts: HashMap<&str, u32>) -> Vec<(&str, u32)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    counts
}
