//! The way into the guest and back: what is counted in instructions by the benchmark.
//!
//! VMRUN switches RAX, RSP, RIP, RFLAGS, CR0 to CR4, EFER, ES, CS, SS, DS, GDTR and IDTR (APM2 15.5.1); VMLOAD and VMSAVE
//! switch FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER; the general registers are switched here. The host's side of
//! the second group never changes, so it is saved once a CPU and only loaded here.

#![allow(unsafe_code, reason = "VMRUN and its relatives")]

use core::arch::asm;
use core::mem::offset_of;

use crate::mem::Hpa;
use crate::virt::Gprs;
use crate::virt::guard::{self, Guards, guard_buffers, guard_entry, guard_exit};

/// What the entry code works on.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    /// The guest's general registers; RAX is copied from and to the control block by the caller.
    pub gprs: Gprs,
    /// The guest's control block.
    pub vmcb: Hpa,
    /// Where [`save_host`] saved this CPU's side.
    pub host: Hpa,
    /// What is done around the guest's runs.
    pub guards: Guards,
}

const _: () = assert!(offset_of!(Context, guards) == guard::OFFSET);

/// Into the guest and back, with what is done before the entry, right before it, and after the exit, where the context is at RAX.
///
/// GIF is clear from CLGI to STGI, so nothing of the host's runs on a mixture of both sides' registers. The asm block says which
/// registers it changes; RBX and RBP, which it cannot name, are on the stack. Memory that the guest may write is its own; the
/// control block's fields are read afresh after the block, as it may change memory.
macro_rules! crossing {
    ($context:expr, $entry:expr, $buffers:expr, $exit:expr) => {
        asm!(
            "push rbp",
            "push rbx",
            "push rdi",
            "clgi",
            // With V_INTR_MASKING it is the host's IF that lets physical interrupts end the guest's run (APM2 15.21.1). Not
            // right before VMRUN: AMD's CPUs carry the shadow of STI into the guest's interrupt state where an exit comes
            // while VMRUN delivers an event. GIF holds the interrupts back meanwhile.
            "sti",
            $entry,
            "mov rax, [rdi + {vmcb}]",
            "vmload rax",
            "mov rcx, [rdi + {rcx}]",
            "mov rdx, [rdi + {rdx}]",
            "mov rbx, [rdi + {rbx}]",
            "mov rbp, [rdi + {rbp}]",
            "mov rsi, [rdi + {rsi}]",
            "mov r8, [rdi + {r8}]",
            "mov r9, [rdi + {r9}]",
            "mov r10, [rdi + {r10}]",
            "mov r11, [rdi + {r11}]",
            "mov r12, [rdi + {r12}]",
            "mov r13, [rdi + {r13}]",
            "mov r14, [rdi + {r14}]",
            "mov r15, [rdi + {r15}]",
            $buffers,
            "mov rdi, [rdi + {rdi}]",
            "vmrun rax",
            "cli",
            // RAX is the host's again: the control block's address.
            "vmsave rax",
            "pop rax",
            "mov [rax + {rcx}], rcx",
            "mov [rax + {rdx}], rdx",
            "mov [rax + {rbx}], rbx",
            "mov [rax + {rbp}], rbp",
            "mov [rax + {rsi}], rsi",
            "mov [rax + {rdi}], rdi",
            "mov [rax + {r8}], r8",
            "mov [rax + {r9}], r9",
            "mov [rax + {r10}], r10",
            "mov [rax + {r11}], r11",
            "mov [rax + {r12}], r12",
            "mov [rax + {r13}], r13",
            "mov [rax + {r14}], r14",
            "mov [rax + {r15}], r15",
            $exit,
            "mov rax, [rax + {host}]",
            "vmload rax",
            "stgi",
            "pop rbx",
            "pop rbp",
            vmcb = const offset_of!(Context, vmcb),
            host = const offset_of!(Context, host),
            rcx = const offset_of!(Context, gprs.rcx),
            rdx = const offset_of!(Context, gprs.rdx),
            rbx = const offset_of!(Context, gprs.rbx),
            rbp = const offset_of!(Context, gprs.rbp),
            rsi = const offset_of!(Context, gprs.rsi),
            rdi = const offset_of!(Context, gprs.rdi),
            r8 = const offset_of!(Context, gprs.r8),
            r9 = const offset_of!(Context, gprs.r9),
            r10 = const offset_of!(Context, gprs.r10),
            r11 = const offset_of!(Context, gprs.r11),
            r12 = const offset_of!(Context, gprs.r12),
            r13 = const offset_of!(Context, gprs.r13),
            r14 = const offset_of!(Context, gprs.r14),
            r15 = const offset_of!(Context, gprs.r15),
            inout("rdi") $context => _,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
            out("rsi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        )
    };
}

/// Enters the guest; returns when it has left. Interrupts are off before and after; one that ended the guest's run is
/// still pending. An NMI that did so has been taken when this returns: it was held until STGI (APM2 15.13, 15.17).
///
/// # Safety
/// SVM is on, `context.vmcb` is the frame of a control block that nobody else uses meanwhile and that passes the
/// validator, its nested tables and permission maps stay as they are, and `context.host` was written by [`save_host`] on
/// this CPU and is still true of it.
#[inline(always)]
pub unsafe fn enter(context: &mut Context) {
    let at = core::ptr::from_mut(context);
    if context.guards.is_empty() {
        // SAFETY: by the caller's promise.
        unsafe { crossing!(at, "", "", "") }
    } else {
        // SAFETY: by the caller's promise.
        unsafe { enter_guarded(at) }
    }
}

/// # Safety
/// As for [`enter`].
#[inline(never)]
unsafe fn enter_guarded(context: *mut Context) {
    // SAFETY: by the caller's promise. The guards' code has the context in RDI, and calls that it does not return from leave
    // the stack as it was.
    unsafe {
        crossing!(
            context,
            guard_entry!(),
            guard_buffers!(),
            concat!("mov rdi, rax\n", guard_exit!(), "\nmov rax, rdi")
        )
    }
}

/// Saves what VMLOAD brings back after each run: FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER of this CPU.
///
/// # Safety
/// SVM is on, and `area` is a frame that nobody else uses.
pub unsafe fn save_host(area: Hpa) {
    // SAFETY: by the caller's promise; VMSAVE changes nothing but the frame.
    unsafe { asm!("vmsave rax", in("rax") area.get(), options(nostack, preserves_flags)) }
}

/// Has the host's handler look at a machine check that ended a guest's run. An intercepted #MC is not raised again by the
/// CPU (APM2 15.12.18), and the banks still hold what happened.
pub fn raise_machine_check() {
    // SAFETY: INT 18 goes through the host's own gate, whose handler keeps all registers; #MC pushes no error code, and
    // neither does INT.
    unsafe { asm!("int 18") }
}
