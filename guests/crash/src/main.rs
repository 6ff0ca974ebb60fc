//! Crashes: an exception with an interrupt table of no entries, hence a triple fault.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "an undefined instruction")]

use core::arch::asm;

use plinth_rt::cpu::{self, TablePointer};
use plinth_rt::println;

plinth_rt::entry!(main);

fn main() -> u64 {
    println!("crashing");
    cpu::lidt(&TablePointer { limit: 0, base: 0 });
    // SAFETY: the exception cannot be delivered, and nothing runs after it.
    unsafe { asm!("ud2", options(noreturn)) }
}
