//! From the boot loader's 32-bit protected mode to the guest's main function.
//!
//! The entry code notes the state that it finds before it changes it. It uses no segment but CS, DS and ES until it has its own GDT, and
//! no stack until it has loaded SS, for that is all that PVH promises. A guest whose loader promises more says `all_segments`.
//!
//! A segment is probed by a read of the last byte below 4 GiB, where no memory is, and where a limit that is too low raises an exception;
//! a 32-bit interrupt table catches that. SS is probed before there is a stack, so that its exception is a triple fault.

#![allow(unsafe_code, reason = "the entry point, and calling what start! names")]

use core::mem::offset_of;

use crate::state::{STATE, State};
use crate::{com1, power, trap};

/// Names the guest's main function, a `fn() -> u32`, whose value is the machine's exit status; and says whether the boot loader promises
/// that SS, FS and GS are flat as the other segments are.
#[macro_export]
macro_rules! start {
    ($main:path, all_segments: $all:literal) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn plinth_pc_main() -> u32 {
            let main: fn() -> u32 = $main;
            main()
        }

        #[unsafe(no_mangle)]
        static plinth_pc_all_segments: u32 = $all as u32;
    };
}

/// Puts the note into the guest by which a boot loader knows that it has a PVH entry, and where:
/// `ELFNOTE(Xen, XEN_ELFNOTE_PHYS32_ENTRY, ...)`.
#[macro_export]
macro_rules! pvh_note {
    () => {
        core::arch::global_asm!(
            ".section .note.xen, \"a\", @note",
            ".balign 4",
            // Lengths of name and descriptor, the type (XEN_ELFNOTE_PHYS32_ENTRY), the name, the descriptor.
            ".long 4",
            ".long 4",
            ".long 18",
            ".asciz \"Xen\"",
            ".long start32",
            ".text",
        );
    };
}

unsafe extern "Rust" {
    /// Defined by [`crate::start!`].
    safe fn plinth_pc_main() -> u32;
}

extern "C" fn start() -> ! {
    com1::init();
    trap::init();
    power::exit(plinth_pc_main())
}

core::arch::global_asm!(
    r#"
    # Sets the bits of a segment: it leads where DS leads, it can be written, and its limit is 4 GiB. Changes EAX.
    .macro probe segment, bit, writable
    movl $0x5a000000 + \bit, plinth_pc_cell
    mov %\segment:plinth_pc_cell, %eax
    cmp $0x5a000000 + \bit, %eax
    jne 8f
    .if \writable
    movl $0xa5000000 + \bit, %\segment:plinth_pc_cell
    cmpl $0xa5000000 + \bit, plinth_pc_cell
    jne 8f
    .endif
    orl $1 << \bit, {state} + {bases}
8:  movl $9f, plinth_pc_resume
    movb %\segment:0xffffffff, %al
    orl $1 << \bit, {state} + {limits}
9:
    .endm

    .section .text.start, "ax"
    .code32
    .globl start32
start32:
    mov %eax, {state} + {eax}
    mov %ebx, {state} + {ebx}
    mov %cr0, %eax
    mov %eax, {state} + {cr0}
    mov %cr4, %eax
    mov %eax, {state} + {cr4}
    mov %cs, %eax
    mov %eax, {state} + {selectors}
    mov %ds, %eax
    mov %eax, {state} + {selectors} + 4
    mov %es, %eax
    mov %eax, {state} + {selectors} + 8
    mov %ss, %eax
    mov %eax, {state} + {selectors} + 12
    mov %fs, %eax
    mov %eax, {state} + {selectors} + 16
    mov %gs, %eax
    mov %eax, {state} + {selectors} + 20
    str %eax
    mov %eax, {state} + {selectors} + 24

    cmpl $0, plinth_pc_all_segments
    je 1f
    probe ss, 3, 1
1:  lgdt plinth_pc_gdt_pointer
    mov $0x10, %eax
    mov %eax, %ss
    mov $plinth_pc_stack, %esp
    pushfl
    popl {state} + {eflags}
    call 1f
1:  popl %eax
    sub $1b, %eax
    mov %eax, {state} + {displacement}

    mov $plinth_pc_beyond_limit, %eax
    movw %ax, plinth_pc_idt + 13 * 8
    movw $0x08, plinth_pc_idt + 13 * 8 + 2
    movw $0x8e00, plinth_pc_idt + 13 * 8 + 4
    shr $16, %eax
    movw %ax, plinth_pc_idt + 13 * 8 + 6
    # The handler is entered by the code segment of the new table.
    lidt plinth_pc_idt_pointer
    probe cs, 0, 0
    probe ds, 1, 1
    probe es, 2, 1
    cmpl $0, plinth_pc_all_segments
    je 1f
    probe fs, 4, 1
    probe gs, 5, 1

    # The low 4 GiB to themselves, for CPL 3, too.
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov $plinth_pc_tables, %edi
    lea 0x1007(%edi), %eax
    mov %eax, (%edi)
    lea 0x2007(%edi), %eax
    lea 0x1000(%edi), %edx
    mov $4, %ecx
1:  mov %eax, (%edx)
    add $0x1000, %eax
    add $8, %edx
    loop 1b
    lea 0x2000(%edi), %edx
    mov $0x87, %eax
    mov $2048, %ecx
1:  mov %eax, (%edx)
    add $0x200000, %eax
    add $8, %edx
    loop 1b
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov %edi, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmp $0x18, $1f

    .code64
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $plinth_pc_stack, %esp
    xor %ebp, %ebp
    call {start}
    ud2

    .code32
plinth_pc_beyond_limit:
    add $4, %esp
    push %eax
    mov plinth_pc_resume, %eax
    mov %eax, 4(%esp)
    pop %eax
    iretl
    .code64

    .section .data.plinth_pc, "aw"
    .balign 8
plinth_pc_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 08 32-bit code
    .quad 0x00cf93000000ffff    # 10 data
    .quad 0x00af9b000000ffff    # 18 64-bit code
    .quad 0x00cff3000000ffff    # 20 data for CPL 3
    .quad 0x00affb000000ffff    # 28 64-bit code for CPL 3
plinth_pc_gdt_pointer:
    .word . - plinth_pc_gdt - 1
    .quad plinth_pc_gdt
plinth_pc_idt_pointer:
    .word 14 * 8 - 1
    .long plinth_pc_idt
    .balign 8
plinth_pc_idt:
    .skip 14 * 8
plinth_pc_cell:
    .long 0
plinth_pc_resume:
    .long 0

    .section .bss.plinth_pc, "aw", @nobits
    .balign 4096
plinth_pc_tables:
    .skip 6 * 4096
    .skip 65536
plinth_pc_stack:
    .text
    "#,
    state = sym STATE,
    eax = const offset_of!(State, eax),
    ebx = const offset_of!(State, ebx),
    cr0 = const offset_of!(State, cr0),
    cr4 = const offset_of!(State, cr4),
    eflags = const offset_of!(State, eflags),
    displacement = const offset_of!(State, displacement),
    bases = const offset_of!(State, bases),
    limits = const offset_of!(State, limits),
    selectors = const offset_of!(State, selectors),
    start = sym start,
    options(att_syntax),
);
