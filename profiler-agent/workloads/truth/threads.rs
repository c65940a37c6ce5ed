//! Threads, closures, generics, trait objects and a panic that is caught, as a release build has them: without frame pointers.

use std::{
    hint::black_box,
    panic::{self, AssertUnwindSafe},
    thread,
    time::Duration,
};

unsafe extern "C" {
    safe fn alarm(seconds: u32) -> u32;
}

// Some 4 ms, and calls nothing. Functions of the same instructions would become one: those below end in numbers of their own.
#[inline(always)]
fn burn() {
    for number in 0..6_000_000_u64 {
        black_box(number);
    }
}

#[inline(never)]
fn burn_in_closure() {
    burn();
    black_box(1);
}

#[inline(never)]
fn burn_in_object() {
    burn();
    black_box(2);
}

#[inline(never)]
fn burn_in_drop() {
    burn();
    black_box(3);
}

#[inline(never)]
fn burn_in_thread() {
    burn();
    black_box(4);
}

#[inline(never)]
fn call_generic<F: Fn(u64)>(function: F) {
    function(black_box(1));
    black_box(());
}

trait Work {
    fn work(&self);
}

struct Object(u64);

impl Work for Object {
    #[inline(never)]
    fn work(&self) {
        burn_in_object();
        black_box(self.0);
    }
}

#[inline(never)]
fn call_object(work: &dyn Work) {
    work.work();
    black_box(());
}

struct Guard;

impl Drop for Guard {
    #[inline(never)]
    fn drop(&mut self) {
        burn_in_drop();
        black_box(());
    }
}

#[inline(never)]
fn panic_with_guard() {
    let _guard = Guard;
    panic::resume_unwind(Box::new(black_box(1)));
}

#[inline(never)]
fn catch() {
    assert!(panic::catch_unwind(AssertUnwindSafe(panic_with_guard)).is_err());
    black_box(());
}

#[inline(never)]
fn one_round() {
    call_generic(|number| {
        burn_in_closure();
        black_box(number);
    });
    call_object(black_box(&Object(1)));
    catch();
    black_box(());
}

#[inline(never)]
fn thread_main() {
    loop {
        burn_in_thread();
        thread::sleep(Duration::from_millis(3));
    }
}

fn main() {
    alarm(120);
    thread::Builder::new().spawn(thread_main).unwrap();
    loop {
        one_round();
    }
}
