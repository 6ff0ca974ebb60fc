//! From the first instruction to the guest's main function.

#![allow(unsafe_code, reason = "the entry point, and calling what entry! names")]

use plinth_abi::StartInfo;
use plinth_abi::system::START_MAGIC;

use crate::Local;
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

unsafe extern "C" {
    static _start: u8;
}

/// The address at which a guest starts.
pub fn entry_point() -> u64 {
    (&raw const _start) as u64
}

static RAM_SIZE: Local<u64> = Local::new(0);

/// Size in bytes of the guest's memory, which begins at guest-physical address 0.
pub fn ram_size() -> u64 {
    RAM_SIZE.get()
}

static START_INFO: Local<u64> = Local::new(0);

/// What the domain has from its start; `None` for one that was given nothing.
pub fn start_info() -> Option<StartInfo> {
    let at = START_INFO.get() as *const StartInfo;
    if at.is_null() {
        return None;
    }
    // SAFETY: the kernel put the structure at this address, in memory of the guest's own.
    let info = unsafe { at.read_unaligned() };
    (info.magic == START_MAGIC).then_some(info)
}

extern "C" fn start(ram_size: u64, start_info: u64) -> ! {
    RAM_SIZE.set(ram_size);
    START_INFO.set(start_info);
    hypercall::init();
    gdt::init();
    trap::init();
    hypercall::end(plinth_guest_main())
}
