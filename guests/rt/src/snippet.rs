//! Snippets: a few instructions, written in assembly language, that run with chosen registers at CPL 0 or CPL 3 and tell
//! what became of the registers or which exception came. They let a test say what it executes without unsafe code.
//!
//! The snippet must preserve RSP, and may destroy everything else that the test itself does not need: the guest is all that
//! it can harm.

#![allow(
    unsafe_code,
    reason = "running instructions that the compiler does not know"
)]

use core::arch::global_asm;

use crate::Local;
use crate::trap::{self, Gprs, Trap, vector};
use crate::{gdt, paging};

/// A run of instructions that ends with a near return.
#[derive(Clone, Copy, Debug)]
pub struct Snippet {
    start: u64,
    end: u64,
}

/// Assembles the instructions, given as one or several string literals in Intel syntax, into a [`Snippet`].
#[macro_export]
macro_rules! snippet {
    ($($line:expr),+ $(,)?) => {{
        let (start, end): (u64, u64);
        // SAFETY: puts the instructions into a section of their own and takes their addresses; runs none of them.
        unsafe {
            core::arch::asm!(
                ".pushsection .text.snippets, \"ax\", @progbits",
                "771:",
                $($line,)+
                "772: ret",
                ".popsection",
                "lea {start}, [rip + 771b]",
                "lea {end}, [rip + 772b]",
                start = out(reg) start,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
        }
        $crate::snippet::Snippet::new(start, end)
    }};
}

const USER_STACK: usize = 16 * 1024;

#[repr(C, align(4096))]
struct UserStack([u8; USER_STACK]);

static STACK: Local<UserStack> = Local::raw(UserStack([0; USER_STACK]));

global_asm!(
    ".globl plinth_snippet_call, plinth_snippet_user, plinth_snippet_return",
    // plinth_snippet_call(registers, address): loads the registers, calls, stores the registers.
    "plinth_snippet_call:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "push rsi",
    "call 2f",
    "call [rsp]",
    "lea rsp, [rsp + 8]",
    "push rax",
    "mov rax, [rsp + 8]",
    "mov [rax + 8], rbx",
    "mov [rax + 16], rcx",
    "mov [rax + 24], rdx",
    "mov [rax + 32], rsi",
    "mov [rax + 40], rdi",
    "mov [rax + 48], rbp",
    "mov [rax + 56], r8",
    "mov [rax + 64], r9",
    "mov [rax + 72], r10",
    "mov [rax + 80], r11",
    "mov [rax + 88], r12",
    "mov [rax + 96], r13",
    "mov [rax + 104], r14",
    "mov [rax + 112], r15",
    "pop [rax]",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    // Loads all registers but RSP from RDI.
    "2:",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    "mov rcx, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "mov rbp, [rdi + 48]",
    "mov r8, [rdi + 56]",
    "mov r9, [rdi + 64]",
    "mov r10, [rdi + 72]",
    "mov r11, [rdi + 80]",
    "mov r12, [rdi + 88]",
    "mov r13, [rdi + 96]",
    "mov r14, [rdi + 104]",
    "mov r15, [rdi + 112]",
    "mov rdi, [rdi + 40]",
    "ret",
    // plinth_snippet_user(registers, address, stack): goes to CPL 3 and does not return.
    "plinth_snippet_user:",
    "push {data}",
    "push rdx",
    "push 2",
    "push {code}",
    "push rsi",
    "call 2b",
    "iretq",
    // Where a snippet at CPL 3 returns to.
    "plinth_snippet_return:",
    "int {back}",
    data = const gdt::selector::USER_DATA,
    code = const gdt::selector::USER_CODE,
    back = const vector::RETURN,
);

unsafe extern "C" {
    static plinth_snippet_return: u8;
    fn plinth_snippet_call(registers: *mut Gprs, address: u64);
    fn plinth_snippet_user(registers: *const Gprs, address: u64, stack: u64) -> !;
}

impl Snippet {
    /// Instructions that lie at `start`; a near return follows them at `end`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Address of the first instruction.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// Address of the return that follows the last instruction.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes without the return.
    pub const fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Runs it at CPL 0 with these registers; returns them as they are at its end, or the exception.
    pub fn run(&self, registers: Gprs) -> Result<Gprs, Trap> {
        let mut registers = registers;
        let pointer = &raw mut registers;
        let address = self.start;
        trap::catch(move || {
            // SAFETY: the pointer is to a live, exclusive set of registers; the snippet's own deeds are its test's affair,
            // as the module says.
            unsafe { plinth_snippet_call(pointer, address) }
        })?;
        // SAFETY: as above; read by the pointer through which the assembly code wrote.
        Ok(unsafe { pointer.read() })
    }

    /// Runs it at CPL 3 with IOPL 0 and interrupts off.
    pub fn run_user(&self, registers: Gprs) -> Result<Gprs, Trap> {
        paging::open_to_user();
        let address = self.start;
        let result: Result<(), Trap> = trap::catch(move || {
            let stack = STACK.address() as u64 + USER_STACK as u64 - 8;
            // SAFETY: the top word of the stack, which nothing else uses, receives the return address. The interrupt at that
            // address, as any exception, leads back to `catch`.
            unsafe {
                (stack as *mut u64).write_volatile((&raw const plinth_snippet_return) as u64);
                plinth_snippet_user(&registers, address, stack)
            }
        });
        match result {
            Ok(()) => Ok(registers),
            Err(trap) if trap.vector == vector::RETURN => Ok(trap.frame.gprs),
            Err(trap) => Err(trap),
        }
    }

    /// Copies it, with its return, to memory at `address` and names the copy. It must not refer to anything relative to RIP.
    pub fn copy_to(&self, address: u64) -> Self {
        let length = self.length() as usize + 1;
        // SAFETY: the source is the assembled code; the destination is memory of the guest that the test has set aside.
        unsafe { core::ptr::copy(self.start as *const u8, address as *mut u8, length) };
        Self::new(address, address + self.length())
    }
}
