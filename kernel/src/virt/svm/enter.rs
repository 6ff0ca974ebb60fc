//! The way into the guest and back: what is counted in instructions by the benchmark.
//!
//! VMRUN switches RAX, RSP, RIP, RFLAGS, CR0 to CR4, EFER, ES, CS, SS, DS, GDTR and IDTR (APM2 15.5.1); VMLOAD and VMSAVE
//! switch FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER; the general registers are switched here. The host's side of
//! the second group never changes, so it is saved once a CPU and only loaded here.

#![allow(unsafe_code, reason = "VMRUN and its relatives")]

use core::arch::asm;
use core::mem::offset_of;

use plinth_abi::Call;

use super::exit_code::ExitCode;
use super::vmcb::Vmcb;
use crate::arch::msr::Msr;
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
    /// The address of the control block's exit code.
    pub exit_code: usize,
}

const _: () = assert!(offset_of!(Context, guards) == guard::OFFSET);

/// Serves exits in passing: what [`enter`] calls, with what that was given. Each says whether the guest is entered again: [`AGAIN`], else [`enter`] returns
/// what it says.
///
/// # Safety
/// They are called by [`enter`] only. GIF is clear; FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER are the guest's, and RBP and
/// R12 to R15 are not in the [`Context`] yet, where nothing else is said.
pub unsafe trait Serve {
    /// VMMCALL of [`Call::VERSION`].
    ///
    /// # Safety
    /// See above.
    unsafe extern "sysv64" fn hypercall(this: *mut Self) -> u64;
    /// CPUID.
    ///
    /// # Safety
    /// See above.
    unsafe extern "sysv64" fn cpuid(this: *mut Self) -> u64;
    /// RDMSR and WRMSR of a register of an x2APIC.
    ///
    /// # Safety
    /// See above.
    unsafe extern "sysv64" fn msr(this: *mut Self) -> u64;
    /// A nested fault. All general registers are in the [`Context`], which they are loaded from again.
    ///
    /// # Safety
    /// See above.
    unsafe extern "sysv64" fn nested_fault(this: *mut Self) -> u64;
}

/// The guest is entered again. It is the code of an exit that is not among those.
pub const AGAIN: u64 = 0;

/// The general registers that a function may change, into the guest; RDI, where the context is, comes last.
macro_rules! load_scratch {
    () => {
        "mov rcx, [rdi + {rcx}]
        mov rdx, [rdi + {rdx}]
        mov rsi, [rdi + {rsi}]
        mov r8, [rdi + {r8}]
        mov r9, [rdi + {r9}]
        mov r10, [rdi + {r10}]
        mov r11, [rdi + {r11}]"
    };
}

/// The same after the exit, where the guest's RDI is on the stack, above the context; RDI is the context behind it.
macro_rules! save_scratch {
    () => {
        "push rdi
        mov rdi, [rsp + 8]
        mov [rdi + {rcx}], rcx
        mov [rdi + {rdx}], rdx
        mov [rdi + {rsi}], rsi
        mov [rdi + {r8}], r8
        mov [rdi + {r9}], r9
        mov [rdi + {r10}], r10
        mov [rdi + {r11}], r11
        pop qword ptr [rdi + {rdi}]"
    };
}

/// RBX is not among those that a function may change, but CPUID does.
macro_rules! load_rbx {
    () => {
        "mov rbx, [rdi + {rbx}]"
    };
}

macro_rules! save_rbx {
    () => {
        "mov [rdi + {rbx}], rbx"
    };
}

macro_rules! load_rest {
    () => {
        "mov rbp, [rdi + {rbp}]
        mov r12, [rdi + {r12}]
        mov r13, [rdi + {r13}]
        mov r14, [rdi + {r14}]
        mov r15, [rdi + {r15}]"
    };
}

macro_rules! save_rest {
    () => {
        "mov [rdi + {rbp}], rbp
        mov [rdi + {r12}], r12
        mov [rdi + {r13}], r13
        mov [rdi + {r14}], r14
        mov [rdi + {r15}], r15"
    };
}

/// Into the guest and back, by this code; the context is in RDI before it.
///
/// GIF is clear from CLGI to STGI, so nothing of the host's runs on a mixture of both sides' registers. The asm block says which
/// registers it changes; RBX and RBP, which it cannot name, are on the stack. Memory that the guest may write is its own; the
/// control block's fields are read afresh after the block, as it may change memory.
macro_rules! crossing {
    ([$($line:expr),* $(,)?], $context:expr, $($operand:tt)*) => {
        asm!(
            "push rbp",
            "push rbx",
            $($line,)*
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
            out("rcx") _,
            out("rdx") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
            $($operand)*
        )
    };
}

/// Enters the guest, and comes back when it has left: with the code of the exit, or what [`Serve`] says of it. Interrupts are off before and after; one that
/// ended the guest's run is still pending. An NMI that did so has been taken when this returns: it was held until STGI (APM2 15.13, 15.17).
///
/// CPUID, the null call, RDMSR and WRMSR of an x2APIC's registers, and nested faults go to `server` while what VMLOAD loads and the registers that a function keeps are still the
/// guest's: where it serves one, two switches of all that are saved. Interrupts wait meanwhile, and end the next run at once.
///
/// # Safety
/// SVM is on, `context.vmcb` is the frame of a control block that nobody else uses meanwhile and that passes the
/// validator, and whose exit code is at `context.exit_code`; its nested tables and permission maps stay as they are; `context.host` was
/// written by [`save_host`] on this CPU and is still true of it; and `server` is what [`Serve`] expects, which nobody else uses
/// meanwhile.
#[inline(always)]
pub unsafe fn enter<S: Serve>(context: *mut Context, server: *mut S) -> u64 {
    // SAFETY: by the caller's promise.
    if !unsafe { (*context).guards.is_empty() } {
        // SAFETY: by the caller's promise.
        return unsafe { enter_guarded(context) };
    }
    let code;
    // SAFETY: by the caller's promise. The stack is aligned for the calls: four words are on it.
    unsafe {
        crossing!(
            [
                "push rsi",
                "push rdi",
                "clgi",
                // With V_INTR_MASKING it is the host's IF that lets physical interrupts end the guest's run (APM2 15.21.1).
                // Not right before VMRUN: AMD's CPUs carry the shadow of STI into the guest's interrupt state where an exit
                // comes while VMRUN delivers an event. GIF holds the interrupts back meanwhile.
                "sti",
                "mov rax, [rdi + {vmcb}]",
                "vmload rax",
                "9:",
                load_rest!(),
                "2:",
                load_rbx!(),
                load_scratch!(),
                "mov rdi, [rdi + {rdi}]",
                // After it RAX is the host's again: the control block's address.
                "vmrun rax",
                save_scratch!(),
                save_rbx!(),
                "mov rcx, [rdi + {exit_code}]",
                "mov rsi, [rcx]",
                "cmp esi, {vmmcall}",
                "ja 8f",
                "je 3f",
                "cmp esi, {msr}",
                "je 4f",
                "cmp esi, {cpuid}",
                "jne 6f",
                "mov rdi, [rsp + 8]",
                "call {serve_cpuid}",
                "jmp 5f",
                // Of these only one is served in passing.
                "3: cmp qword ptr [rcx + {save_rax} - {exit_code_field}], {null_call}",
                "jne 6f",
                "mov rdi, [rsp + 8]",
                "call {serve_hypercall}",
                "jmp 5f",
                // Of these none but registers of an x2APIC.
                "4: mov edx, [rdi + {rcx}]",
                "sub edx, {first_msr}",
                "cmp edx, {last_msr} - {first_msr}",
                "ja 6f",
                "mov rdi, [rsp + 8]",
                "call {serve_msr}",
                "5: mov rdi, [rsp]",
                "mov rsi, rax",
                "test rax, rax",
                "mov rax, [rdi + {vmcb}]",
                "jz 2b",
                "jmp 6f",
                "8: cmp esi, {nested_fault}",
                "jne 6f",
                save_rest!(),
                "mov rdi, [rsp + 8]",
                "call {serve_nested_fault}",
                "mov rdi, [rsp]",
                "mov rsi, rax",
                "test rax, rax",
                "mov rax, [rdi + {vmcb}]",
                "jz 9b",
                "jmp 7f",
                "6:",
                save_rest!(),
                "7: cli",
                "vmsave rax",
                "mov rax, [rdi + {host}]",
                "vmload rax",
                "stgi",
                "add rsp, 16",
            ],
            context,
            exit_code = const offset_of!(Context, exit_code),
            nested_fault = const ExitCode::NPF.0,
            vmmcall = const ExitCode::VMMCALL.0,
            msr = const ExitCode::MSR.0,
            cpuid = const ExitCode::CPUID.0,
            save_rax = const offset_of!(Vmcb, save.rax),
            exit_code_field = const offset_of!(Vmcb, control.exit_code),
            null_call = const Call::VERSION.0,
            first_msr = const Msr::X2APIC_TPR.0,
            last_msr = const Msr::X2APIC_SELF_IPI.0,
            serve_hypercall = sym S::hypercall,
            serve_cpuid = sym S::cpuid,
            serve_msr = sym S::msr,
            serve_nested_fault = sym S::nested_fault,
            inout("rsi") server => code,
            out("rax") _,
        );
    }
    code
}

/// As [`enter`], with what is done before the entry, right before it, and after the exit; every exit leaves.
///
/// # Safety
/// As for [`enter`].
#[inline(never)]
unsafe fn enter_guarded(context: *mut Context) -> u64 {
    let code;
    // SAFETY: by the caller's promise. The guards' code has the context in RDI, and calls that it does not return from leave
    // the stack as it was.
    unsafe {
        crossing!(
            [
                "push rdi",
                "clgi",
                "sti",
                guard_entry!(),
                "mov rax, [rdi + {vmcb}]",
                "vmload rax",
                load_rest!(),
                load_rbx!(),
                load_scratch!(),
                guard_buffers!(),
                "mov rdi, [rdi + {rdi}]",
                "vmrun rax",
                "cli",
                "vmsave rax",
                save_scratch!(),
                save_rbx!(),
                save_rest!(),
                "mov rcx, [rdi + {exit_code}]",
                "mov rsi, [rcx]",
                guard_exit!(),
                "mov rax, [rdi + {host}]",
                "vmload rax",
                "stgi",
                "pop rdi",
            ],
            context,
            exit_code = const offset_of!(Context, exit_code),
            out("rsi") code,
            out("rax") _,
        );
    }
    code
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
