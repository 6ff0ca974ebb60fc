//! From the reset vector to long mode, down to real mode and up again, with the tests of each mode on the way.
//!
//! The code lies in the last page below 4 GiB and copies itself to the last page below 1 MiB, where the same offsets of
//! segment F000H lead. Every test leaves a byte in [`RESULTS`]: bit 1 says that it ran, bit 0 that it passed.
//!
//! Low memory: 0 interrupt vectors; 500H results; 600H text; 7E0H words of the tests; below 7000H the stack; from 8000H a
//! protected-mode interrupt table and the page tables of three paging modes; 80000H the top of the 64-bit stack.

#![allow(unsafe_code, reason = "the only code that is not 64-bit")]

use core::arch::global_asm;

/// Where the tests leave their results.
pub const RESULTS: u64 = 0x500;

/// Passed and ran.
pub const PASSED: u8 = 3;

/// The tests in the order of their results.
pub const NAMES: [&str; 20] = [
    "reset_state",
    "reset_code_base",
    "hypercall_in_real_mode",
    "software_interrupt",
    "exceptions_in_real_mode",
    "address_line_20",
    "unreal_mode",
    "string_input",
    "string_output",
    "string_input_wraps",
    "cpuid_in_real_mode",
    "msr_in_real_mode",
    "protected_mode_16",
    "protected_mode_32",
    "paging_with_4_mib_page",
    "page_fault_in_32_bits",
    "paging_with_pae",
    "pdpte_reload",
    "long_mode",
    "back_to_real_mode",
];

/// What the guest says its memory's size is: firmware is not told.
const MEMORY: u32 = 4 << 20;

global_asm!(
    r#"
    .section .reset, "ax"
    .code16

    # Sets the result of a test from ZF. DS must have base 0.
    .macro verdict number
        sete {results} + \number
        orb $2, {results} + \number
    .endm

base:
start:
    # Nothing has changed a register yet.
    mov $0x7000, %sp
    pushfl
    popl %eax
    cmp $2, %eax
    jne 1f
    mov %cs, %ax
    cmp $0xf000, %ax
    jne 1f
    mov %ds, %ax
    mov %es, %bx
    or %bx, %ax
    mov %ss, %bx
    or %bx, %ax
    jne 1f
    mov %cr0, %eax
    cmp $0x60000010, %eax
1:  verdict 0

    # The code segment's base is FFFF0000H, not F0000H: the reset vector's jump is there and zeros are here.
    mov $0xf000, %ax
    mov %ax, %es
    cmpw $0, %es:0xfff0
    jne 1f
    cmpb $0xe9, %cs:0xfff0
1:  verdict 1

    # The announcement, by which hypercalls from real mode are tested, too.
    xor %ax, %ax
    mov %ax, %es
    mov $(announcement - base + 0xf000), %si
    mov $0x600, %di
    mov $(announcement_end - announcement), %cx
    .byte 0x2e, 0xf3, 0xa4      # rep movsb from CS:SI
    xor %eax, %eax
    cpuid
    cmp $0x68747541, %ebx       # "Auth"
    sete 0x530
    mov $1, %eax
    mov $0x600, %edi
    mov $(announcement_end - announcement), %esi
    call hypercall
    test %eax, %eax
    jne 1f
    cmp $(announcement_end - announcement), %edx
1:  verdict 2

    # Copy to the last page below 1 MiB, and go there.
    mov $0xf000, %ax
    mov %ax, %es
    mov $0xf000, %si
    mov $0xf000, %di
    mov $0x1000, %cx
    .byte 0x2e, 0xf3, 0xa4
    ljmp $0xf000, $(low - base + 0xf000)

low:
    xor %ax, %ax
    mov %ax, %es
    movw $(on_interrupt - base + 0xf000), 4 * 0x40
    movw $0xf000, 4 * 0x40 + 2
    movw $(on_fault - base + 0xf000), 0
    movw $0xf000, 2
    movw $(on_fault - base + 0xf000), 4 * 6
    movw $0xf000, 4 * 6 + 2

    call interrupt
    verdict 3

    # Both faults push the address of their instruction of two bytes.
    xor %bx, %bx
    xor %cx, %cx
    div %cl
    ud2
    cmp $2, %bx
    verdict 4

    mov $0xffff, %ax
    mov %ax, %fs
    movw $0x1111, 0x7e0
    movw $0x2222, %fs:0x7f0
    cmpw $0x1111, 0x7e0
    jne 1f
    cmpw $0x2222, %fs:0x7f0
1:  verdict 5

    # GS keeps base 0 and limit 4 GiB when protection is switched off again.
    lgdtl %cs:(gdt_pointer - base + 0xf000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    mov $0x10, %bx
    mov %bx, %gs
    and $0xfe, %al
    mov %eax, %cr0
    mov $0x180000, %edi
    movl $0x12345678, %gs:(%edi)
    cmpl $0x12345678, %gs:(%edi)
    jne 1f
    mov %cs, %ax
    cmp $0xf000, %ax
1:  verdict 6

    # Ports that nobody has give ones.
    mov $0x9000, %ax
    mov %ax, %es
    mov $0x5678, %dx
    mov $0x100, %di
    mov $3, %cx
    rep insw
    cmp $0x106, %di
    jne 1f
    test %cx, %cx
    jne 1f
    cmpl $0xffffffff, %es:0x100
    jne 1f
    cmpl $0x0000ffff, %es:0x104
1:  verdict 7

    mov $0x208, %si
    mov $4, %cx
    std
    .byte 0x2e, 0xf3, 0x6e      # rep outsb from CS:SI
    cld
    cmp $0x204, %si
    jne 1f
    test %cx, %cx
    jne 1f
    outsl %ds:(%si), %dx
    cmp $0x208, %si
1:  verdict 8

    # 16-bit addresses wrap within the segment.
    mov $0xfffe, %di
    mov $4, %cx
    rep insb
    cmp $2, %di
    jne 1f
    cmpw $0xffff, %es:0xfffe
    jne 1f
    cmpl $0x0000ffff, %es:0
1:  verdict 9

    mov $1, %eax
    cpuid
    test %ecx, %ecx
    sets %al
    cmp $1, %al
    verdict 10

    mov $0xc0000080, %ecx
    mov $0x11111111, %edx
    rdmsr
    or %edx, %eax
    verdict 11

enter:
    cli
    lgdtl %cs:(gdt_pointer - base + 0xf000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmp $0x18, $(protected16 - base + 0xf000)

protected16:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %esp
    xor %eax, %eax
    xor %edx, %edx
    call hypercall
    test %eax, %eax
    jne 1f
    test %edx, %edx
    je 1f
    mov %cs, %ax
    cmp $0x18, %ax
1:  verdict 12
    ljmpl $0x08, $(protected32 - base + 0xff000)

    # Calls the kernel by the instruction of this CPU. DS has base 0.
hypercall:
    cmpb $0, 0x530
    jne 1f
    vmcall
    ret
1:  vmmcall
    ret

    # ZF says whether INT 40H came, with interrupts off and the right return address, and gave the flags back.
interrupt:
    xor %bx, %bx
    sti
    stc
    int $0x40
after_interrupt:
    pushf
    cli
    pop %ax
    and $0x201, %ax
    cmp $0x201, %ax
    jne 1f
    cmp $0x1234, %bx
    jne 1f
    test $0x200, %dx
    jne 1f
    cmp $(after_interrupt - base + 0xf000), %si
1:  ret

on_interrupt:
    mov $0x1234, %bx
    pushf
    pop %dx
    mov %sp, %bp
    mov (%bp), %si
    iret

on_fault:
    mov %sp, %bp
    addw $2, (%bp)
    inc %bx
    iret

    .code32
protected32:
    # The second time there is nothing new before long mode.
    cmpb $0, 0x531
    jne long
    mov $0x12345678, %eax
    push %eax
    pop %ebx
    cmp $0x12345678, %ebx
    jne 1f
    mov %cs, %eax
    cmp $8, %eax
    jne 1f
    mov $0x40000000, %eax
    cpuid
    cmp $0x6e696c50, %ebx       # "Plin"
1:  verdict 13

    # 4 MiB pages: the first twice, so that what is written here is read there.
    movl $0x83, 0x9000
    movl $0x83, 0x9004
    mov %cr4, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $0x9000, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    movl $0xcafe, 0x7e4
    cmpl $0xcafe, 0x4007e4
    verdict 14

    movw $(on_page_fault - base + 0xf000), 0x8000 + 14 * 8
    movw $0x08, 0x8000 + 14 * 8 + 2
    movw $0x8e00, 0x8000 + 14 * 8 + 4
    movw $0x000f, 0x8000 + 14 * 8 + 6
    movw $0x77, 0x7e8
    movl $0x8000, 0x7ea
    lidt 0x7e8
    xor %ecx, %ecx
    mov %eax, 0x800000
    cmp $2, %ecx
    jne 1f
    cmp $0x800000, %ebx
1:  verdict 15

    # PAE: linear 1 GiB is physical 0 as well.
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    movl $0xb001, 0xa000
    movl $0xb001, 0xa008
    movl $0x83, 0xb000
    movl $0x200083, 0xb008
    movl $0x200083, 0xf000
    mov $0x20, %eax
    mov %eax, %cr4
    mov $0xa000, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    cmpl $0xcafe, 0x400007e4
    verdict 16

    # A changed entry of the first level counts after the next load of CR3.
    movl $0xf001, 0xa008
    mov %cr3, %eax
    mov %eax, %cr3
    mov 0x200000, %eax
    cmp %eax, 0x40000000
    verdict 17

    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0

long:
    movl $0xd003, 0xc000
    movl $0xe003, 0xd000
    mov $0xe000, %edi
    mov $0x83, %eax
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    cmp $0xf000, %edi
    jne 1b
    mov $0x620, %eax
    mov %eax, %cr4
    mov $0xc000, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    rdmsr
    cmp $0xd00, %eax
    ljmp $0x20, $(long64 - base + 0xff000)

on_page_fault:
    pop %ecx
    addl $5, (%esp)
    mov %cr2, %ebx
    iret

    .code64
long64:
    jne 1f
    mov %cs, %eax
    cmp $0x20, %eax
    jne 1f
    movabs $0x123456789abcdef0, %rax
    bswap %rax
    movabs $0xf0debc9a78563412, %rbx
    cmp %rbx, %rax
1:  verdict 18
    cmpb $0, 0x531
    jne up
    movb $1, 0x531
    mov $0x7000, %esp
    push $0x08
    push $(compatibility - base + 0xff000)
    lretq

up:
    mov $0x80000, %esp
    mov ${memory}, %edi
    mov $_start, %eax
    jmp *%rax

    .code32
compatibility:
    # Down: paging, long mode, PAE, 32 bits, protection.
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $0xfffff6ff, %eax
    wrmsr
    xor %eax, %eax
    mov %eax, %cr4
    ljmp $0x18, $(down16 - base + 0xf000)

    .code16
down16:
    mov $0x28, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0xf000, $(real_again - base + 0xf000)

real_again:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    movw $0x3ff, 0x7e8
    movl $0, 0x7ea
    lidtl 0x7e8
    call interrupt
    jne 1f
    mov $0xc0000080, %ecx
    rdmsr
    test %eax, %eax
1:  verdict 19
    jmp enter

announcement:
    .ascii "suite realmode: "
    .byte 0x30 + {tests} / 10, 0x30 + {tests} % 10
    .ascii " tests\n"
announcement_end:

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 08 flat 32-bit code
    .quad 0x00cf93000000ffff    # 10 flat data
    .quad 0x00009b0f0000ffff    # 18 16-bit code at F0000
    .quad 0x00af9b000000ffff    # 20 64-bit code
    .quad 0x000093000000ffff    # 28 data of 64 KiB
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt - base + 0xff000

    .org 0xff0
    .globl reset_vector
reset_vector:
    .byte 0xe9                  # jmp near
    .word start - (reset_vector + 3)
    .org 0x1000
    .text
    .code64
    "#,
    results = const RESULTS,
    tests = const NAMES.len(),
    memory = const MEMORY,
    options(att_syntax),
);
