//! The note by which a boot loader knows that there is a PVH entry, and where: `ELFNOTE(Xen, XEN_ELFNOTE_PHYS32_ENTRY, ...)`.

#![allow(unsafe_code, reason = "a section of its own")]

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;

core::arch::global_asm!(
    ".section .note.xen, \"a\", @note",
    ".balign 4",
    // Lengths of name and descriptor, the type, the name, the descriptor.
    ".long 4",
    ".long 4",
    ".long {kind}",
    ".asciz \"Xen\"",
    ".long start32",
    ".text",
    kind = const PHYS32_ENTRY,
);
