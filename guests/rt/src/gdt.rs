//! Segments and the task state: one flat set for CPL 0 and CPL 3 in the order that SYSCALL and SYSRET want, the TSS with the
//! stacks of the exception handlers, and some descriptors that only tests need.

#![allow(
    unsafe_code,
    reason = "loading of descriptor tables and segment registers"
)]

use core::arch::asm;

use crate::Local;
use crate::cpu::{self, TablePointer};

/// Selectors in the table.
pub mod selector {
    /// 64-bit code, CPL 0.
    pub const KERNEL_CODE: u16 = 0x08;
    /// Writable data, DPL 0.
    pub const KERNEL_DATA: u16 = 0x10;
    /// 32-bit code, CPL 3.
    pub const USER_CODE32: u16 = 0x1b;
    /// Writable data, DPL 3.
    pub const USER_DATA: u16 = 0x23;
    /// 64-bit code, CPL 3.
    pub const USER_CODE: u16 = 0x2b;
    /// The TSS: a descriptor of 16 bytes.
    pub const TSS: u16 = 0x30;
    /// An LDT: a descriptor of 16 bytes.
    pub const LDT: u16 = 0x40;
    /// Writable data, not present.
    pub const NOT_PRESENT: u16 = 0x50;
    /// 32-bit code of CPL 0.
    pub const KERNEL_CODE32: u16 = 0x58;
    /// 16-bit code of CPL 0 with base 0 and limit 0xFFFF.
    pub const KERNEL_CODE16: u16 = 0x60;
    /// The first selector beyond the table.
    pub const BEYOND: u16 = 0x68;
}

/// Which interrupt stack the double fault has.
pub const DOUBLE_FAULT_STACK: u8 = 1;

const ENTRIES: usize = selector::BEYOND as usize / 8;
const STACK: usize = 16 * 1024;
const TSS_SIZE: usize = 104;

#[repr(C, align(16))]
struct Stack([u8; STACK]);

#[repr(C, align(16))]
struct TaskState([u8; TSS_SIZE]);

static GDT: Local<[u64; ENTRIES]> = Local::new([0; ENTRIES]);
static TSS: Local<TaskState> = Local::raw(TaskState([0; TSS_SIZE]));
static TRAP_STACK: Local<Stack> = Local::raw(Stack([0; STACK]));
static DOUBLE_FAULT: Local<Stack> = Local::raw(Stack([0; STACK]));

/// The two halves of a 16-byte system descriptor (SDM vol. 3 figure 8-4).
fn system(base: u64, limit: u64, kind: u64) -> [u64; 2] {
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (0x80 | kind) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Address and limit of the table.
pub fn table() -> TablePointer {
    TablePointer {
        limit: selector::BEYOND - 1,
        base: GDT.address() as u64,
    }
}

/// Linear address of the TSS.
pub fn tss_base() -> u64 {
    TSS.address() as u64
}

/// Size of the TSS in bytes; there is no I/O permission bitmap.
pub const fn tss_size() -> u64 {
    TSS_SIZE as u64
}

/// Builds the table and loads it with the segment registers and the task register.
pub(crate) fn init() {
    let tss = system(tss_base(), tss_size() - 1, 0x9);
    let ldt = system(GDT.address() as u64, u64::from(selector::BEYOND) - 1, 0x2);
    GDT.set([
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss[0],
        tss[1],
        ldt[0],
        ldt[1],
        0x00cf_1300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0000_9b00_0000_ffff,
    ]);
    // SAFETY: the TSS is 104 bytes long; RSP0 is at 4, IST1 at 36, the I/O map's base at 102 (SDM vol. 3 figure 8-11).
    unsafe {
        let tss = TSS.address().cast::<u8>();
        let top = |stack: &Local<Stack>| stack.address() as u64 + STACK as u64;
        tss.add(4).cast::<u64>().write_unaligned(top(&TRAP_STACK));
        tss.add(36)
            .cast::<u64>()
            .write_unaligned(top(&DOUBLE_FAULT));
        tss.add(102).cast::<u16>().write_unaligned(TSS_SIZE as u16);
    }
    load();
    // SAFETY: the descriptor of the TSS is present and available.
    unsafe { asm!("ltr {:x}", in(reg) selector::TSS, options(nostack, preserves_flags)) }
}

/// Loads the table and reloads every segment register from it.
pub fn load() {
    cpu::lgdt(&table());
    // SAFETY: the selectors name flat segments of this table. The far return goes to the next instruction.
    unsafe {
        asm!(
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "mov fs, {data:e}",
            "mov gs, {data:e}",
            code = const selector::KERNEL_CODE,
            data = in(reg) u64::from(selector::KERNEL_DATA),
            scratch = out(reg) _,
        );
    }
}
