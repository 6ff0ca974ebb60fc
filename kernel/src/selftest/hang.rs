//! A CPU stays in the kernel with interrupts off. What the others say of it then is looked at from outside; the names of these functions
//! are in it.

use core::hint::black_box;

use super::mailbox;
use crate::arch::{cpu, time};

/// How long, in microseconds: longer than the watchdog's second, and shorter than two.
const HANG_US: u64 = 1_800_000;

/// Lets the calling CPU hang as soon as it idles.
pub(super) fn arm() {
    drop(mailbox::start(cpu::cpu().id, hangs));
}

fn hangs() -> u64 {
    let rounds = black_box(spins(time::tsc() + time::ticks_of_us(HANG_US)));
    log::info!("the kernel goes on");
    rounds
}

#[inline(never)]
fn spins(end: u64) -> u64 {
    let mut rounds = 0;
    while time::tsc() < end {
        rounds += 1;
    }
    rounds
}
