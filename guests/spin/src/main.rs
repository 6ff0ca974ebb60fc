//! Never yields: loops with interrupts on, then with interrupts off, for ever. The kernel must preempt it in both, and ends
//! it when the time that it was given is used up.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "STI and CLI")]

use core::arch::asm;

use plinth_rt::{cpu, println};

plinth_rt::entry!(main);

/// Length of the phase with interrupts on, in TSC ticks: far more than a time slice on any machine.
const PHASE: u64 = 200_000_000;

fn main() -> u64 {
    println!("spinning with interrupts on");
    // SAFETY: there is a handler for each vector.
    unsafe { asm!("sti", options(nomem, nostack)) }
    let start = cpu::rdtsc();
    while cpu::rdtsc().wrapping_sub(start) < PHASE {}
    println!("spinning with interrupts off");
    // SAFETY: nothing waits for an interrupt.
    unsafe { asm!("cli", "2: jmp 2b", options(nomem, nostack, noreturn)) }
}
