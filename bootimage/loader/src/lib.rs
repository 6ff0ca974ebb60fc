//! What the loader computes without touching hardware: reading the kernel's ELF file, choosing addresses, building
//! page tables, and turning the firmware's memory map into the kernel's.
//!
//! Nothing here may rely on what a file or the firmware says being true: every length and address is checked, and what
//! is wrong becomes an error that says so in words.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod elf;
pub mod layout;
pub mod mapping;
pub mod memory;
pub mod space;

/// Size of a page and of a frame in bytes.
pub const PAGE: u64 = 4096;

/// `address` rounded down to a page boundary.
pub const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// `address` rounded up to a page boundary, or `None` beyond the end of the address space.
pub const fn page_up(address: u64) -> Option<u64> {
    match address.checked_add(PAGE - 1) {
        Some(sum) => Some(page_down(sum)),
        None => None,
    }
}

/// Whether an address of 48 significant bits is meant: bits 63 to 47 are equal (SDM volume 1, 3.3.7.1).
pub const fn is_canonical(address: u64) -> bool {
    let top = address >> 47;
    top == 0 || top == (1 << 17) - 1
}
