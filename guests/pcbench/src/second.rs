//! The second vCPU: it answers interrupts and halts, or it spins and notes for how long it has had the CPU.

use core::arch::{asm, global_asm};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use x86_64::instructions::interrupts;

use crate::{apic, now};

/// Its APIC ID.
pub const ID: u32 = 1;
/// The page where it starts, and where it finds what it needs: the pointers to the first vCPU's tables, and CR3.
const PAGE: u64 = 0x8000;
const GDT: u64 = PAGE + 0xf00;
const IDT: u64 = PAGE + 0xf10;
const CR3: u64 = PAGE + 0xf20;
/// A gap between two readings of the TSC that is more than the loop's: somebody else has had the CPU.
const GAP: u64 = 300;

static READY: AtomicBool = AtomicBool::new(false);
static SPINS: AtomicBool = AtomicBool::new(false);
/// When it got the CPU, and when it had it last.
static SINCE: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".section .rodata.second, \"a\"",
    ".code16",
    "second_start:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    ".byte 0x66",
    "lgdt [{gdt}]",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, [{cr3}]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    // Protection and paging at once: long mode, in a 16-bit segment until the jump.
    "mov eax, 0x80010033",
    "mov cr0, eax",
    // A far jump to selector 18h, by a 32-bit offset.
    ".byte 0x66, 0xea",
    ".long {page} + 2f - second_start",
    ".word 0x18",
    ".code64",
    "2:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "lidt [{idt}]",
    "lea rsp, [{stack} + {stack_bytes}]",
    "xor ebp, ebp",
    "mov rax, offset {main}",
    "call rax",
    "ud2",
    "second_end:",
    ".text",
    gdt = const GDT,
    idt = const IDT,
    cr3 = const CR3,
    page = const PAGE,
    stack = sym STACK,
    stack_bytes = const STACK_BYTES,
    main = sym main,
);

unsafe extern "C" {
    static second_start: u8;
    static second_end: u8;
}

const STACK_BYTES: usize = 16384;
#[repr(C, align(16))]
struct Stack([u8; STACK_BYTES]);
static mut STACK: Stack = Stack([0; STACK_BYTES]);

/// Starts it, and waits until it runs.
pub fn start() {
    // SAFETY: the page is free memory below 640 KiB, which nobody else uses; the code is as long as the labels say.
    unsafe {
        let (from, to) = (&raw const second_start, &raw const second_end);
        let page = PAGE as *mut u8;
        page.copy_from_nonoverlapping(from, to.offset_from_unsigned(from));
        asm!("sgdt [{}]", "sidt [{}]", in(reg) GDT, in(reg) IDT);
        let cr3: u64;
        asm!("mov {}, cr3", out(reg) cr3);
        (CR3 as *mut u64).write_volatile(cr3);
    }
    apic::start(ID, (PAGE >> 12) as u8);
    while !READY.load(Ordering::Acquire) {
        spin_loop();
    }
}

extern "C" fn main() -> ! {
    apic::enable();
    READY.store(true, Ordering::Release);
    loop {
        if SPINS.load(Ordering::Relaxed) {
            let (now, last) = (now(), LAST.load(Ordering::Relaxed));
            if now - last > GAP {
                SINCE.store(now, Ordering::Relaxed);
            }
            LAST.store(now, Ordering::Relaxed);
        } else {
            interrupts::enable_and_hlt();
        }
    }
}

/// Has it spin from now on, or halt.
pub fn spin(spin: bool) {
    SPINS.store(spin, Ordering::Relaxed);
    apic::interrupt(ID, crate::PING);
}

/// For how long it had the CPU when it had it last.
pub fn spun() -> u64 {
    LAST.load(Ordering::Relaxed) - SINCE.load(Ordering::Relaxed)
}
