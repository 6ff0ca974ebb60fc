//! The header by which a boot loader knows a Multiboot image (3.1), in the first 8 KiB of the file. The file is ELF, which says where
//! things belong, so the header has no addresses.

#![allow(unsafe_code, reason = "a section of its own")]

/// What it begins with.
pub const MAGIC: u32 = 0x1bad_b002;
/// Modules on page boundaries; the sizes of memory; no video mode, no addresses.
const FLAGS: u32 = 1 << 0 | 1 << 1;

core::arch::global_asm!(
    ".section .multiboot, \"a\"",
    ".balign 4",
    ".long {magic}",
    ".long {flags}",
    ".long {checksum}",
    ".text",
    magic = const MAGIC,
    flags = const FLAGS,
    checksum = const 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS),
);
