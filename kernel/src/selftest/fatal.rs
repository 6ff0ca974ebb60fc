//! The kernel fails on purpose. What it says then is looked at from outside; the names of these functions are in it.

#![allow(unsafe_code, reason = "a write to an address where nothing is")]

use core::fmt;
use core::hint::black_box;

use super::mailbox;

/// Fails on another CPU than the first where there is one, so that the others have to be stopped.
pub(super) fn on_another_cpu(fail: fn() -> u64) -> ! {
    match mailbox::others().next() {
        Some(other) => drop(mailbox::start(other.id, fail)),
        None => {
            black_box(fail());
        }
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Panics, three calls deep.
pub(super) fn panics() -> u64 {
    panics_outermost(black_box(1))
}

#[inline(never)]
fn panics_outermost(depth: u64) -> u64 {
    black_box(panics_between(depth + 1)) + 1
}

#[inline(never)]
fn panics_between(depth: u64) -> u64 {
    black_box(panics_innermost(depth + 1)) + 1
}

#[inline(never)]
fn panics_innermost(depth: u64) -> u64 {
    assert!(
        depth == black_box(0),
        "a panic on purpose, at depth {depth}"
    );
    depth
}

/// Writes to an address where nothing is mapped.
#[inline(never)]
pub(super) fn faults() -> u64 {
    let nowhere = black_box(0x0dea_dbee_f008_u64) as *mut u64;
    // SAFETY: none; this is what must be caught.
    unsafe { nowhere.write_volatile(1) };
    0
}

/// Recurses until the stack is full.
pub(super) fn overflows() -> u64 {
    overflows_deeper(black_box(1))
}

#[inline(never)]
fn overflows_deeper(depth: u64) -> u64 {
    if depth == 0 {
        return 0;
    }
    let room = black_box([depth; 64]);
    overflows_deeper(black_box(depth + 1)) + room[7]
}

/// Panics while its panic is told.
pub(super) fn panics_again() -> u64 {
    struct Unprintable;
    impl fmt::Display for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("a second panic on purpose")
        }
    }
    panic!("{}", Unprintable)
}
