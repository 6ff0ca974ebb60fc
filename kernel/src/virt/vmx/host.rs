//! The host's state that a VM exit loads (SDM 25.5), taken from the CPU itself: whatever the kernel has set up is what it
//! finds again.

#![allow(
    unsafe_code,
    reason = "control registers and descriptor tables are read from the CPU"
)]

use core::arch::asm;

use super::vmcs::{self, Cr0, Cr3, Cr4, Efer, Linear, Pat, Selector, SysenterCs};
use crate::arch::msr::{self, Msr};

/// What is a CPU's own and stays as it is after bring-up.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostState {
    es: u16,
    cs: u16,
    ss: u16,
    ds: u16,
    fs: u16,
    gs: u16,
    tr: u16,
    tr_base: u64,
    gdt_base: u64,
    idt_base: u64,
}

/// Operand of SGDT and SIDT.
#[repr(C, packed)]
#[derive(Default)]
struct TablePointer {
    limit: u16,
    base: u64,
}

macro_rules! selector {
    ($name:literal) => {{
        let value: u16;
        // SAFETY: reading a selector has no effect.
        unsafe { asm!(concat!("mov {0:x}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

macro_rules! control_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a control register has no effect.
        unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// CR0 of this CPU.
pub(super) fn cr0() -> u64 {
    control_register!("cr0")
}

/// CR4 of this CPU.
pub(super) fn cr4() -> u64 {
    control_register!("cr4")
}

/// Sets CR0.
///
/// # Safety
/// The value differs from the present one only in bits that VMX demands (SDM A.7), none of them about paging.
pub(super) unsafe fn set_cr0(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Sets CR4.
///
/// # Safety
/// The value differs from the present one only in VMXE and in bits that VMX demands (SDM A.8).
pub(super) unsafe fn set_cr4(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// CR2, the guest's while a vCPU is attached.
pub(super) fn cr2() -> u64 {
    control_register!("cr2")
}

/// Sets CR2.
pub(super) fn set_cr2(value: u64) {
    // SAFETY: the kernel survives no page fault of its own, so CR2 says nothing that it needs.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// DR6, the guest's while a vCPU is attached.
pub(super) fn dr6() -> u64 {
    control_register!("dr6")
}

/// Sets DR6; bits 63:32 of `value` are ignored.
pub(super) fn set_dr6(value: u64) {
    // SAFETY: DR6 only reports. The upper half, which would raise #GP, is cut off.
    unsafe {
        asm!("mov dr6, {}", in(reg) value & 0xffff_ffff, options(nomem, nostack, preserves_flags))
    }
}

impl HostState {
    /// Takes it from the calling CPU.
    pub(super) fn read() -> Self {
        let (mut gdt, mut idt) = (TablePointer::default(), TablePointer::default());
        let tr: u16;
        // SAFETY: these store 10 bytes each, or a register.
        unsafe {
            asm!("sgdt [{}]", in(reg) &raw mut gdt, options(nostack, preserves_flags));
            asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack, preserves_flags));
            asm!("str {0:x}", out(reg) tr, options(nomem, nostack, preserves_flags));
        }
        Self {
            es: selector!("es"),
            cs: selector!("cs"),
            ss: selector!("ss"),
            ds: selector!("ds"),
            fs: selector!("fs"),
            gs: selector!("gs"),
            tr,
            tr_base: tss_base(gdt.base, tr),
            gdt_base: gdt.base,
            idt_base: idt.base,
        }
    }

    /// Writes what is this CPU's own into the current VMCS.
    pub(super) fn write(&self) {
        // RPL and TI must be 0 (SDM 27.2.3).
        let selector = |value: u16| Selector(value & !7);
        vmcs::HOST_ES_SELECTOR.write(selector(self.es));
        vmcs::HOST_CS_SELECTOR.write(selector(self.cs));
        vmcs::HOST_SS_SELECTOR.write(selector(self.ss));
        vmcs::HOST_DS_SELECTOR.write(selector(self.ds));
        vmcs::HOST_FS_SELECTOR.write(selector(self.fs));
        vmcs::HOST_GS_SELECTOR.write(selector(self.gs));
        vmcs::HOST_TR_SELECTOR.write(selector(self.tr));
        vmcs::HOST_TR_BASE.write(Linear(self.tr_base));
        vmcs::HOST_GDTR_BASE.write(Linear(self.gdt_base));
        vmcs::HOST_IDTR_BASE.write(Linear(self.idt_base));
        vmcs::HOST_FS_BASE.write(Linear(msr::read(Msr::IA32_FS_BASE)));
        vmcs::HOST_GS_BASE.write(Linear(msr::read(Msr::IA32_GS_BASE)));
        vmcs::HOST_SYSENTER_CS.write(SysenterCs(msr::read(Msr::IA32_SYSENTER_CS) as u32));
        vmcs::HOST_SYSENTER_ESP.write(Linear(msr::read(Msr::IA32_SYSENTER_ESP)));
        vmcs::HOST_SYSENTER_EIP.write(Linear(msr::read(Msr::IA32_SYSENTER_EIP)));
        vmcs::HOST_PAT.write(Pat(msr::read(Msr::IA32_PAT)));
        vmcs::HOST_EFER.write(Efer(msr::read(Msr::IA32_EFER)));
    }

    /// Writes what may change between two attachments on one CPU.
    pub(super) fn write_control_registers() {
        vmcs::HOST_CR0.write(Cr0(cr0()));
        vmcs::HOST_CR3.write(Cr3(control_register!("cr3")));
        vmcs::HOST_CR4.write(Cr4(cr4()));
    }
}

/// Base of the 64-bit TSS that `tr` names: its descriptor has 16 bytes (SDM figure 9-4).
fn tss_base(gdt_base: u64, tr: u16) -> u64 {
    let descriptor = (gdt_base + u64::from(tr & !7)) as *const [u64; 2];
    // SAFETY: TR was loaded from this descriptor, so it lies within the GDT.
    let [low, high] = unsafe { descriptor.read_unaligned() };
    base_of(low, high)
}

const fn base_of(low: u64, high: u64) -> u64 {
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tss_base_is_gathered_from_its_descriptor() {
        // Base 0xffff_8001_2345_6788, limit 0x67, present, busy 64-bit TSS.
        assert_eq!(
            base_of(0x2300_8b45_6788_0067, 0xffff_8001),
            0xffff_8001_2345_6788
        );
    }
}
