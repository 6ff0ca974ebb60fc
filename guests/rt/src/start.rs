//! From the first instruction to the guest's main function.

#![allow(unsafe_code, reason = "the entry point, and calling what entry! names")]

use crate::local::Local;
use crate::{gdt, hypercall, trap};

core::arch::global_asm!(
    ".section .text.start, \"ax\"",
    ".globl _start",
    "_start:",
    "xor ebp, ebp", // end of the chain of frame pointers
    "call {start}",
    "ud2",
    ".text",
    start = sym start,
);

unsafe extern "Rust" {
    /// Defined by [`crate::entry!`].
    safe fn plinth_guest_main() -> u64;
}

static RAM_SIZE: Local<u64> = Local::new(0);

/// Size in bytes of the guest's memory, which begins at guest-physical address 0.
pub fn ram_size() -> u64 {
    RAM_SIZE.get()
}

extern "C" fn start(ram_size: u64) -> ! {
    RAM_SIZE.set(ram_size);
    hypercall::init();
    gdt::init();
    trap::init();
    hypercall::end(plinth_guest_main())
}
