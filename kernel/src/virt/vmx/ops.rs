//! The instructions of VMX that are about whole VMCSs and cached translations (SDM chapter 31).

#![allow(unsafe_code, reason = "these instructions have no safe form")]

use core::arch::asm;

use super::control::FlushTypes;
use super::vmcs::{EptPointer, Vpid};
use crate::mem::Hpa;

/// VMfail: the CPU refused an instruction (SDM 31.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VmFail;

macro_rules! with_pointer {
    ($($(#[$doc:meta])* $name:ident $instruction:literal;)*) => {$(
        $(#[$doc])*
        pub(super) unsafe fn $name(region: Hpa) -> Result<(), VmFail> {
            let pointer = region.get();
            let failed: u8;
            // SAFETY: by the caller's promise.
            unsafe {
                asm!(concat!($instruction, " [{pointer}]"), "setbe {failed}", pointer = in(reg) &raw const pointer,
                    failed = out(reg_byte) failed, options(nostack));
            }
            if failed == 0 { Ok(()) } else { Err(VmFail) }
        }
    )*};
}

with_pointer! {
    /// Enters VMX operation.
    ///
    /// # Safety
    /// `region` is a frame of this CPU's alone that begins with the revision identifier; CR0, CR4 and IA32_FEATURE_CONTROL
    /// allow VMXON.
    vmxon "vmxon";
    /// Makes a VMCS current.
    ///
    /// # Safety
    /// The CPU is in VMX operation, and the VMCS is active on no other CPU.
    vmptrld "vmptrld";
    /// Writes a VMCS back to its frame and makes its launch state clear.
    ///
    /// # Safety
    /// The CPU is in VMX operation, and the VMCS is active on no other CPU.
    vmclear "vmclear";
}

/// Leaves VMX operation.
///
/// # Safety
/// The CPU is in VMX operation and no VMCS is active on it.
pub(super) unsafe fn vmxoff() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("vmxoff", options(nostack)) }
}

/// INVEPT (SDM 29.4.3.1): of one EPT pointer, or of all contexts.
fn invept(pointer: Option<EptPointer>) {
    let (kind, descriptor) = match pointer {
        Some(pointer) => (1u64, [pointer.0, 0]),
        None => (2, [0, 0]),
    };
    // SAFETY: forgetting cached translations changes nothing but speed. The CPU is in VMX operation.
    unsafe {
        asm!("invept {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack))
    }
}

/// INVVPID: of one VPID, or of all contexts.
fn invvpid(vpid: Option<Vpid>) {
    let (kind, descriptor) = match vpid {
        Some(vpid) => (1u64, [u64::from(vpid.0), 0]),
        None => (2, [0, 0]),
    };
    // SAFETY: as for `invept`.
    unsafe {
        asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack))
    }
}

/// Forgets everything cached for guests, as far as one instruction a kind can; says whether that was everything. Where it
/// was not, what `of` names has been forgotten.
pub(super) fn flush_everything(
    types: FlushTypes,
    has_vpid: bool,
    of: Option<(EptPointer, Vpid)>,
) -> bool {
    if types.ept_all {
        invept(None);
    } else if let Some((pointer, _)) = of {
        invept(Some(pointer));
    }
    if has_vpid {
        if types.vpid_all {
            invvpid(None);
        } else if let Some((_, vpid)) = of {
            invvpid(Some(vpid));
        }
    }
    types.ept_all && (types.vpid_all || !has_vpid)
}

/// Forgets what is cached under one VPID.
pub(super) fn flush_vpid(types: FlushTypes, vpid: Vpid) {
    invvpid(types.vpid_single.then_some(vpid));
}

/// Runs the handler of an NMI or machine check in the host's IDT. The IRET at its end also ends the blocking of NMIs that
/// a VM exit by an NMI leaves behind (SDM 28.5.5).
pub(super) fn raise_nmi() {
    // SAFETY: the handler keeps all registers; it has a stack of its own.
    unsafe { asm!("int 2") }
}

/// As [`raise_nmi`], for a machine check.
pub(super) fn raise_machine_check() {
    // SAFETY: as above.
    unsafe { asm!("int 18") }
}

/// The time-stamp counter.
pub(super) fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}
