//! Interrupts and exceptions in long mode.

#![allow(unsafe_code, reason = "the interrupt table and its entry code")]

use core::arch::{asm, global_asm};

use crate::Local;
use crate::{power, println};

/// Exit status of a guest that took an exception nobody waited for.
pub const STATUS_TRAP: u32 = 102;
/// The code segment of CPL 0 in long mode.
pub const CODE: u64 = 0x18;
/// The data segment of CPL 0.
pub const DATA: u64 = 0x10;
/// The data segment of CPL 3.
pub const USER_DATA: u64 = 0x23;
/// The 64-bit code segment of CPL 3.
pub const USER_CODE: u64 = 0x2b;

/// What the entry code leaves on the stack: general registers from RAX to R15 without RSP, and what the CPU pushed.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// RAX, RCX, RDX, RSI, RDI, R8 to R11: those that calls do not preserve.
    pub scratch: [u64; 9],
    /// The vector.
    pub vector: u64,
    /// The error code, or 0.
    pub error: u64,
    /// Where it goes on.
    pub rip: u64,
    /// Its code segment.
    pub cs: u64,
    /// Its flags.
    pub rflags: u64,
    /// Its stack.
    pub rsp: u64,
    /// Its stack segment.
    pub ss: u64,
}

/// Looks at an interrupt; false: it is not for it.
pub type Handler = fn(&mut Frame) -> bool;

static HANDLER: Local<Option<Handler>> = Local::new(None);

/// Vectors that have a gate.
const VECTORS: usize = 256;
const GATE: [u64; 2] = [0; 2];
static TABLE: Local<[[u64; 2]; VECTORS]> = Local::new([GATE; VECTORS]);

global_asm!(
    ".globl plinth_pc_stubs",
    ".balign 16",
    "plinth_pc_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // These come with an error code.
    ".if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))",
    "push 0",
    ".endif",
    "push vector",
    "jmp 2f",
    ".set vector, vector + 1",
    ".endr",
    "2:",
    "cld",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rax",
    "mov rdi, rsp",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {on_trap}",
    "mov rsp, rbp",
    "pop rbp",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r11",
    "add rsp, 16",
    "iretq",
    on_trap = sym on_trap,
);

unsafe extern "C" {
    static plinth_pc_stubs: u8;
}

/// Fills the interrupt table and loads it.
pub(crate) fn init() {
    const INTERRUPT_GATE: u64 = 0x8e << 40;
    let mut table = [GATE; VECTORS];
    for (vector, gate) in (0u64..).zip(table.iter_mut()) {
        let handler = (&raw const plinth_pc_stubs) as u64 + vector * 16;
        *gate = [
            handler & 0xffff | CODE << 16 | INTERRUPT_GATE | (handler >> 16 & 0xffff) << 48,
            handler >> 32,
        ];
    }
    TABLE.set(table);
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: size_of_val(&TABLE) as u16 - 1,
        base: &raw const TABLE as u64,
    };
    // SAFETY: the table is a static, and its gates lead to the entry code above.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) }
}

extern "C" fn on_trap(frame: &mut Frame) {
    if HANDLER.get().is_some_and(|handler| handler(frame)) {
        return;
    }
    println!(
        "vector {:#x} with error code {:#x} at {:#x} came unexpectedly",
        frame.vector, frame.error, frame.rip
    );
    power::exit(STATUS_TRAP)
}

/// Who is asked about interrupts and exceptions from now on. What is not for it ends the machine.
pub fn set_handler(handler: Option<Handler>) {
    HANDLER.set(handler);
}
