//! Crashes: an exception with an interrupt table of no entries, hence a triple fault.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "a software interrupt without a gate")]

use core::arch::asm;

use plinth_rt::cpu::{self, TablePointer};
use plinth_rt::println;

plinth_rt::entry!(main);

fn main() -> u64 {
    println!("crashing");
    cpu::lidt(&TablePointer { limit: 0, base: 0 });
    // #GP for want of a gate, whose own delivery raises #GP: #DF, and then there is no gate either. An exception before these, such
    // as #UD, would be one more than Bochs counts.
    // SAFETY: the exception cannot be delivered, and nothing runs after it.
    unsafe { asm!("int 0x20", "2: jmp 2b", options(noreturn)) }
}
