//! Never yields: loops with interrupts on, then with interrupts off, for ever. The kernel must preempt it in both, and ends
//! it when the time that it was given is used up.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "STI and CLI")]

use core::arch::asm;

use plinth_rt::abi::cpuid::LEAF_FREQUENCY;
use plinth_rt::{cpu, println};

plinth_rt::entry!(main);

/// Length of the phase with interrupts on, in milliseconds: many time slices.
const PHASE_MS: u64 = 100;

fn main() -> u64 {
    println!("spinning with interrupts on");
    // SAFETY: there is a handler for each vector.
    unsafe { asm!("sti", options(nomem, nostack)) }
    let khz = cpu::cpuid(LEAF_FREQUENCY, 0).eax;
    let start = cpu::rdtsc();
    while cpu::rdtsc().wrapping_sub(start) < u64::from(khz) * PHASE_MS {}
    println!("spinning with interrupts off");
    // SAFETY: nothing waits for an interrupt.
    unsafe { asm!("cli", "2: jmp 2b", options(nomem, nostack, noreturn)) }
}
