//! Exceptions and interrupts of the host.
//!
//! A handler of an interrupt sets a flag and counts, no more: the run loop looks at the flags. Those of the machine's lines are
//! in [`irq`]. An exception is the kernel's
//! own fault and ends it, but for a breakpoint, and for an instruction that has an entry in the fixup table.

#![allow(unsafe_code, reason = "entry stubs, and the flags of the CPU")]

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use x86_64::instructions::port::Port;

use super::{apic, cpu, irq, machine_check, nmi_tick, stacks, time, watchdog};

/// What the stubs save, from the lowest address up.
#[derive(Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Where in its stub the common entry was called: tells the vector.
    stub: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// One stub of 16 bytes a vector. Where the CPU pushes no error code the stub pushes a zero (SDM vol. 3 table 7-1). What the call
// pushes lies in the stub, so that it tells the vector.
global_asm!(
    ".macro plinth_stubs count, error",
    ".rept \\count",
    ".balign 16, 0xcc",
    ".if \\error == 0",
    "push 0",
    ".endif",
    "call plinth_trap_entry",
    ".endr",
    ".endm",
    ".section .text.plinth_trap, \"ax\"",
    ".balign 16",
    // Global: who refers to it may be compiled into another object.
    ".globl plinth_kernel_trap_stubs",
    "plinth_kernel_trap_stubs:",
    "plinth_stubs 8, 0",
    "plinth_stubs 1, 1",
    "plinth_stubs 1, 0",
    "plinth_stubs 5, 1",
    "plinth_stubs 2, 0",
    "plinth_stubs 1, 1",
    "plinth_stubs 3, 0",
    "plinth_stubs 1, 1",
    "plinth_stubs 7, 0",
    "plinth_stubs 2, 1",
    "plinth_stubs 225, 0",
    ".balign 16, 0xcc",
    "plinth_trap_entry:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handler}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym handle,
);

/// Bytes of a stub.
const STUB: u64 = 16;

fn stubs() -> u64 {
    let address: u64;
    // SAFETY: computes an address.
    unsafe {
        asm!("lea {}, [rip + plinth_kernel_trap_stubs]", out(reg) address, options(nomem, nostack, preserves_flags));
    }
    address
}

/// The entry of a vector's stub.
pub(super) fn stub(vector: u8) -> u64 {
    stubs() + u64::from(vector) * STUB
}

impl Frame {
    /// The vector.
    pub fn vector(&self) -> u8 {
        ((self.stub - 1 - stubs()) / STUB) as u8
    }

    /// What happened, in words.
    fn what(&self) -> What {
        What {
            vector: self.vector(),
            error_code: self.error_code,
            cr2: cr2(),
        }
    }

    /// Writes the registers to the log.
    pub fn log(&self) {
        if stacks::is_guard(cr2()) && matches!(self.vector(), DOUBLE_FAULT | PAGE_FAULT) {
            log::error!("  the stack has overflowed: cr2 lies in the guard page below it");
        }
        if self.vector() == MACHINE_CHECK {
            machine_check::log();
        }
        log::error!(
            "  rip {:016x} rsp {:016x} rflags {:08x} cr2 {:016x}",
            self.rip,
            self.rsp,
            self.rflags,
            cr2()
        );
        log::error!(
            "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            self.rax,
            self.rbx,
            self.rcx,
            self.rdx
        );
        log::error!(
            "  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            self.rsi,
            self.rdi,
            self.rbp,
            self.r8
        );
        log::error!(
            "  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            self.r9,
            self.r10,
            self.r11,
            self.r12
        );
        log::error!(
            "  r13 {:016x} r14 {:016x} r15 {:016x}",
            self.r13,
            self.r14,
            self.r15
        );
    }
}

/// Prints an exception with its error code in words.
struct What {
    vector: u8,
    error_code: u64,
    cr2: u64,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |index: u32| self.error_code >> index & 1 != 0;
        f.write_str(name(self.vector))?;
        match self.vector {
            // SDM vol. 3 figure 5-12.
            PAGE_FAULT => {
                let access = match (bit(4), bit(1)) {
                    (true, _) => "fetch from",
                    (false, true) => "write to",
                    (false, false) => "read from",
                };
                let why = match (bit(0), bit(3)) {
                    (false, _) => "is not mapped",
                    (true, true) => "has reserved bits set in its tables",
                    (true, false) => "does not allow that",
                };
                write!(
                    f,
                    ": {access} {:#x}, which {why} (error code {:#x})",
                    self.cr2, self.error_code
                )
            }
            // A selector, and whose table it is in (SDM vol. 3 figure 7-7).
            10..=13 if self.error_code != 0 => {
                let table = match self.error_code >> 1 & 3 {
                    0 => "GDT",
                    2 => "LDT",
                    _ => "IDT",
                };
                write!(
                    f,
                    ": entry {:#x} of the {table} (error code {:#x})",
                    self.error_code >> 3 & 0x1fff,
                    self.error_code
                )
            }
            _ if self.error_code != 0 => write!(f, ": error code {:#x}", self.error_code),
            _ => Ok(()),
        }
    }
}

/// The frame of the exception that ends the kernel.
static FATAL: AtomicPtr<Frame> = AtomicPtr::new(core::ptr::null_mut());

/// The registers at the exception that the kernel panics about, if it is one.
pub fn panicking_frame() -> Option<&'static Frame> {
    // SAFETY: set by `handle` before it panics, to a frame on a stack that is never left again.
    unsafe { FATAL.load(Ordering::Acquire).as_ref() }
}

/// The vector of debug exceptions.
const DEBUG: u8 = 1;
/// A PC's port that says what an NMI is for: SERR# in bit 7, IOCHK# in bit 6.
const SYSTEM_CONTROL: u16 = 0x61;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// Vectors below this are the CPU's exceptions.
const EXCEPTIONS: u8 = 32;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;

extern "C" fn handle(frame: &mut Frame) {
    if frame.vector() == DEBUG {
        // The kernel sets no breakpoints and never steps. Bochs lets a guest's single-step trap through to the host right
        // after an SVM exit, when the base of GS is still the guest's: nothing below may run then.
        frame.rflags &= !TRAP_FLAG;
        return;
    }
    let me = cpu::cpu();
    match frame.vector() {
        2 => nmi(frame),
        3 => {
            me.counters.breakpoint.fetch_add(1, Ordering::Relaxed);
        }
        apic::TIMER => {
            me.counters.timer.fetch_add(1, Ordering::Relaxed);
            time::interrupt(me);
            apic::end_of_interrupt();
        }
        apic::KICK => {
            me.counters.kick.fetch_add(1, Ordering::Relaxed);
            me.pending.fetch_or(cpu::PENDING_KICK, Ordering::Relaxed);
            if time::is_overdue(me, time::tsc()) {
                time::interrupt(me);
            }
            apic::end_of_interrupt();
        }
        apic::ERROR => {
            me.counters.apic_error.fetch_add(1, Ordering::Relaxed);
            apic::clear_error();
            apic::end_of_interrupt();
        }
        // A spurious interrupt sets no bit in the ISR and wants no end of interrupt (SDM vol. 3 12.9).
        apic::SPURIOUS => {
            me.counters.spurious.fetch_add(1, Ordering::Relaxed);
        }
        vector if vector < EXCEPTIONS => {
            if let Some(resume) = fixup(vector, frame.rip) {
                frame.rip = resume;
                return;
            }
            FATAL.store(frame, Ordering::Release);
            panic!("{} in the kernel at {:#x}", frame.what(), frame.rip);
        }
        vector if irq::interrupt(vector) => {}
        vector => {
            if me.counters.unexpected.fetch_add(1, Ordering::Relaxed) == 0 {
                log::warn!(
                    "an interrupt came on vector {vector:#x}, which nobody uses; further ones are only counted"
                );
            }
            if apic::in_service(vector) {
                apic::end_of_interrupt();
            }
        }
    }
}

/// A non-maskable interrupt: another CPU wants this one to stop, to look up, or to say where it is. The exit path gets here, too,
/// where the NMI ended a guest's run.
fn nmi(frame: &Frame) {
    let me = cpu::cpu();
    me.counters.nmi.fetch_add(1, Ordering::Relaxed);
    let pending = me.pending.fetch_or(cpu::PENDING_NMI, Ordering::Relaxed);
    if pending & cpu::PENDING_STOP != 0 {
        stop();
    }
    if !me.expects_nmi() && !nmi_tick::is_running() {
        me.counters.stray_nmi.fetch_add(1, Ordering::Relaxed);
    }
    watchdog::interrupted(me, frame);
}

/// Whether an NMI that the kernel did not send has been told of.
static STRAY_TOLD: AtomicBool = AtomicBool::new(false);

/// Tells, once, that the calling CPU got an NMI that no CPU had sent. Not by the handler, for the log's lock may be held.
pub fn tell_stray_nmi(me: &cpu::Cpu) {
    if me.counters.stray_nmi.load(Ordering::Relaxed) == 0
        || STRAY_TOLD.swap(true, Ordering::Relaxed)
    {
        return;
    }
    // SAFETY: reading the port has no effect.
    let reasons = unsafe { Port::<u8>::new(SYSTEM_CONTROL).read() };
    log::warn!(
        "an NMI came that no CPU had sent; system error: {}, I/O check: {}; further ones are only counted",
        reasons >> 7 & 1,
        reasons >> 6 & 1
    );
}

/// An entry of the table that says where to go on when an instruction faults.
#[repr(C)]
struct Fixup {
    /// The instruction, relative to this field.
    instruction: i32,
    /// Where to go on, relative to this field.
    resume: i32,
}

#[cfg(target_os = "none")]
fn fixups() -> &'static [Fixup] {
    unsafe extern "C" {
        #[link_name = "__start_plinth_fixup"]
        static START: Fixup;
        #[link_name = "__stop_plinth_fixup"]
        static STOP: Fixup;
    }
    let (start, stop) = (&raw const START, &raw const STOP);
    let count = (stop as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker puts these symbols around the section, which holds nothing but entries of this form.
    unsafe { core::slice::from_raw_parts(start, count) }
}

#[cfg(not(target_os = "none"))]
fn fixups() -> &'static [Fixup] {
    &[]
}

fn fixup(vector: u8, rip: u64) -> Option<u64> {
    const GENERAL_PROTECTION: u8 = 13;
    if vector != GENERAL_PROTECTION {
        return None;
    }
    let at =
        |field: &i32| (core::ptr::from_ref(field) as u64).wrapping_add_signed(i64::from(*field));
    fixups()
        .iter()
        .find(|entry| at(&entry.instruction) == rip)
        .map(|entry| at(&entry.resume))
}

/// Takes the host interrupts that are pending: interrupts are on for one instruction.
#[inline(always)]
pub fn interrupt_window() {
    // SAFETY: the kernel holds no lock here that a handler would want; handlers save all registers. STI takes effect after
    // the instruction that follows it.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// Halts until an interrupt comes, and takes it. One that is pending already ends the halt at once.
pub fn enable_and_halt() {
    // SAFETY: as for `interrupt_window`; STI's shadow lets no interrupt in between it and HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Switches interrupts off, whatever they were.
pub fn disable_interrupts() {
    // SAFETY: has no effect on memory.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Stops this CPU for good, and lets the one that ends the machine know.
pub fn stop() -> ! {
    cpu::cpu().set_stopped();
    halt_forever()
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: has no effect on memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

fn cr2() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// An exception's name (SDM vol. 3 table 7-1).
const fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "NMI",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        20 => "virtualization exception",
        21 => "control protection exception",
        28 => "hypervisor injection exception",
        29 => "VMM communication exception",
        30 => "security exception",
        _ => "interrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(vector: u8, error_code: u64) -> String {
        let cr2 = 0x1000;
        What {
            vector,
            error_code,
            cr2,
        }
        .to_string()
    }

    #[test]
    fn error_codes_are_put_in_words() {
        for (error_code, words) in [
            (0x0, "read from 0x1000, which is not mapped"),
            (0x2, "write to 0x1000, which is not mapped"),
            (0x3, "write to 0x1000, which does not allow that"),
            (0x11, "fetch from 0x1000, which does not allow that"),
            (
                0x9,
                "read from 0x1000, which has reserved bits set in its tables",
            ),
        ] {
            let all = format!("page fault: {words} (error code {error_code:#x})");
            assert_eq!(said(14, error_code), all);
        }
        assert_eq!(said(13, 0), "general protection fault");
        assert_eq!(
            said(13, 0x18),
            "general protection fault: entry 0x3 of the GDT (error code 0x18)"
        );
        assert_eq!(
            said(11, 0x402),
            "segment not present: entry 0x80 of the IDT (error code 0x402)"
        );
        assert_eq!(said(17, 4), "alignment check: error code 0x4");
        assert_eq!(said(6, 0), "invalid opcode");
    }
}
