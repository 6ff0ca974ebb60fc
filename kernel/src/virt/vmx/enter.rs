//! Into the guest and out again: the only code that runs with a guest's general registers.
//!
//! Counted in instructions, because every exit pays for it. HOST_RSP points into the vCPU itself, just past the saved
//! registers: the exit pushes the guest's registers where they belong, and no register is needed to find the place. The
//! host's stack is not used until RSP is the host's again; NMI, #DF and #MC have stacks of their own (IST), interrupts are
//! off, and any other exception here would be a defect of the kernel.
//!
//! CR2 is not switched here but when a vCPU is attached and detached: the kernel takes no page fault that it survives.

#![allow(
    unsafe_code,
    reason = "VMLAUNCH, VMRESUME and a calling convention of its own"
)]

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use super::vmcs::{EXIT_REASON, ExitReason, HOST_RSP, Linear};
use crate::virt::Gprs;
use crate::virt::guard::{self, Guards, guard_buffers, guard_entry, guard_exit};

/// What the entry code reads and writes. The VMCS holds its address while the vCPU is attached, so it must not move then.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct EntryArea {
    /// The guest's general registers.
    pub(super) gprs: Gprs,
    /// The host's stack pointer while the guest runs.
    host_stack: u64,
    /// Whether the launch state of the VMCS is "launched" (SDM 25.1).
    pub(super) launched: u64,
    /// What is done around the guest's runs. HOST_RIP follows it: [`EntryArea::exit_address`].
    pub(super) guards: Guards,
}

impl EntryArea {
    /// What HOST_RSP has to be while this area is entered through.
    pub(super) fn stack_top(&self) -> u64 {
        (&raw const self.gprs).addr() as u64 + size_of::<Gprs>() as u64
    }

    /// What HOST_RIP has to be.
    pub(super) fn exit_address(&self) -> Linear {
        let exit: unsafe extern "C" fn() = if self.guards.is_empty() {
            exited
        } else {
            exited_guarded
        };
        Linear(exit as usize as u64)
    }
}

/// What [`enter`] gives where neither VMLAUNCH nor VMRESUME worked: no exit has this reason.
pub(super) const NOT_ENTERED: ExitReason = ExitReason(u32::MAX);

const _: () = assert!(offset_of!(EntryArea, gprs) == 0);
const _: () = assert!(offset_of!(EntryArea, host_stack) == 128 && size_of::<Gprs>() == 128);
const _: () = assert!(offset_of!(Gprs, rbp) == 40 && offset_of!(Gprs, rbx) == 24);
const _: () = assert!(offset_of!(EntryArea, guards) == guard::OFFSET);

/// Runs the guest of the current VMCS until it exits.
///
/// # Safety
/// The current VMCS belongs to `area`: its HOST_RSP is [`EntryArea::stack_top`], its HOST_RIP is [`EntryArea::exit_address`], the
/// rest of its host state is this CPU's, and its controls and nested tables confine the guest. Interrupts are off.
#[inline(always)]
pub(super) unsafe fn enter(area: *mut EntryArea) -> ExitReason {
    let reason: u64;
    // SAFETY: `cross` saves the guest's registers in `area` and comes back with the host's stack pointer; every other
    // general register is declared as clobbered, or saved here. No vector register is used by the kernel.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "call {cross}",
            "pop rbx",
            "pop rbp",
            cross = sym cross,
            inout("rdi") area => _,
            out("rax") reason,
            out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    ExitReason(reason as u32)
}

/// Loads the guest's general registers from the area at RDI, but RDI, which [`load_rdi`] loads last.
macro_rules! load_gprs {
    () => {
        "mov rax, [rdi]
        mov rcx, [rdi + 8]
        mov rdx, [rdi + 16]
        mov rbx, [rdi + 24]
        mov rbp, [rdi + 40]
        mov rsi, [rdi + 48]
        mov r8, [rdi + 64]
        mov r9, [rdi + 72]
        mov r10, [rdi + 80]
        mov r11, [rdi + 88]
        mov r12, [rdi + 96]
        mov r13, [rdi + 104]
        mov r14, [rdi + 112]
        mov r15, [rdi + 120]"
    };
}

macro_rules! load_rdi {
    () => {
        "mov rdi, [rdi + 56]"
    };
}

/// Takes the area in RDI, gives the exit reason in RAX, keeps RSP and nothing else.
///
/// Nearly always the VMCS is launched, so VMRESUME is tried first and asked why only when it failed; that costs the many
/// resumes nothing. The area is found again through HOST_RSP, for RDI is the guest's by then.
#[unsafe(naked)]
unsafe extern "C" fn cross() {
    naked_asm!(
        "cmp dword ptr [rdi + {actions}], 0",
        "jne {guarded}",
        "mov [rdi + {host_stack}], rsp",
        load_gprs!(),
        load_rdi!(),
        "vmresume",
        // Only failures come here; RSP is still the host's.
        "mov eax, {host_rsp}",
        "vmread rdi, rax",
        "jbe 2f",
        "sub rdi, 128",
        "cmp qword ptr [rdi + {launched}], 0",
        "jne 2f",
        "mov qword ptr [rdi + {launched}], 1",
        load_gprs!(),
        load_rdi!(),
        "vmlaunch",
        "mov eax, {host_rsp}",
        "vmread rdi, rax",
        "mov qword ptr [rdi - 128 + {launched}], 0",
        "2:",
        "mov eax, {not_entered}",
        "ret",
        host_stack = const offset_of!(EntryArea, host_stack),
        launched = const offset_of!(EntryArea, launched),
        host_rsp = const HOST_RSP.encoding().number(),
        not_entered = const NOT_ENTERED.0,
        actions = const guard::OFFSET,
        guarded = sym cross_guarded,
    )
}

/// As [`cross`], which goes on here, for an area that has guards. The area is on the stack meanwhile, where a failure finds it: the
/// kernel's SPEC_CTRL has to come back then, too.
#[unsafe(naked)]
unsafe extern "C" fn cross_guarded() {
    naked_asm!(
        "mov [rdi + {host_stack}], rsp",
        "push rdi",
        guard_entry!(),
        load_gprs!(),
        guard_buffers!(),
        load_rdi!(),
        "vmresume",
        "mov rdi, [rsp]",
        "cmp qword ptr [rdi + {launched}], 0",
        "jne 2f",
        "mov qword ptr [rdi + {launched}], 1",
        load_gprs!(),
        guard_buffers!(),
        load_rdi!(),
        "vmlaunch",
        "mov rdi, [rsp]",
        "mov qword ptr [rdi + {launched}], 0",
        "2:",
        "pop rdi",
        guard_exit!(),
        "mov eax, {not_entered}",
        "ret",
        host_stack = const offset_of!(EntryArea, host_stack),
        launched = const offset_of!(EntryArea, launched),
        not_entered = const NOT_ENTERED.0,
    )
}

/// Saves the guest's general registers. RSP is at the saved RBP then; the place of RSP is left alone.
macro_rules! save_gprs {
    () => {
        "push r15
        push r14
        push r13
        push r12
        push r11
        push r10
        push r9
        push r8
        push rdi
        push rsi
        push rbp
        mov [rsp - 16], rbx
        mov [rsp - 24], rdx
        mov [rsp - 32], rcx
        mov [rsp - 40], rax"
    };
}

/// Where a VM exit arrives: HOST_RIP. Returns to the caller of [`cross`].
#[unsafe(naked)]
unsafe extern "C" fn exited() {
    naked_asm!(
        save_gprs!(),
        "mov rsp, [rsp + {host_stack}]",
        "mov eax, {reason}",
        "vmread rax, rax",
        "ret",
        host_stack = const offset_of!(EntryArea, host_stack) - offset_of!(Gprs, rbp),
        reason = const EXIT_REASON.encoding().number(),
    )
}

/// As [`exited`], for an area that has guards.
#[unsafe(naked)]
unsafe extern "C" fn exited_guarded() {
    naked_asm!(
        save_gprs!(),
        "lea rdi, [rsp - {rbp}]",
        "mov rsp, [rdi + {host_stack}]",
        guard_exit!(),
        "mov eax, {reason}",
        "vmread rax, rax",
        "ret",
        rbp = const offset_of!(Gprs, rbp),
        host_stack = const offset_of!(EntryArea, host_stack),
        reason = const EXIT_REASON.encoding().number(),
    )
}
