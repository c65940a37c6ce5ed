//! Burns on some threads until it is ended, half of the time in inlined Rust code and half in libc.
//!
//! `rustc -g -O -Cforce-frame-pointers=yes mixed.rs && ./mixed THREADS`

use std::hint::black_box;

unsafe extern "C" {
    safe fn lrand48() -> i64;
    safe fn prctl(option: i32, argument: u64) -> i32;
    safe fn alarm(seconds: u32) -> u32;
}

#[inline(always)]
fn mix(x: u64) -> u64 {
    (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[inline(always)]
fn sum_of_mixed(numbers: &[u64]) -> u64 {
    numbers.iter().map(|&number| mix(number)).fold(0, u64::wrapping_add)
}

#[inline(never)]
fn in_rust(numbers: &[u64]) -> u64 {
    let mut sum = 0;
    for _ in 0..black_box(18) {
        sum ^= sum_of_mixed(black_box(numbers));
    }
    sum
}

#[inline(never)]
fn in_libc(count: u32) -> i64 {
    let mut sum = 0;
    for _ in 0..count {
        sum ^= lrand48();
    }
    sum
}

#[inline(never)]
fn work() {
    let numbers: Vec<u64> = (0..4096).collect();
    loop {
        black_box(in_rust(&numbers));
        black_box(in_libc(black_box(6000)));
    }
}

fn main() {
    const PR_SET_PDEATHSIG: i32 = 1;
    prctl(PR_SET_PDEATHSIG, 9);
    // Whatever becomes of who started it.
    alarm(600);
    let threads: usize = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1);
    for _ in 1..threads {
        std::thread::spawn(work);
    }
    work();
}
