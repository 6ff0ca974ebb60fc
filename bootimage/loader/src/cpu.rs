//! What the loader needs of the CPU, and the state it brings it into.

#![allow(unsafe_code, reason = "control registers and EFER")]

use core::arch::x86_64::__cpuid;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4};
use x86_64::registers::model_specific::{Efer, EferFlags};

/// CR4: page-global enable. Cleared, so that loading CR3 flushes every translation of the firmware's.
const CR4_PGE: u64 = 1 << 7;
/// CR4: 57-bit linear addresses, five-level paging.
const CR4_LA57: u64 = 1 << 12;
/// CR4: process-context identifiers. Bits 11 to 0 of CR3 would have another meaning.
const CR4_PCIDE: u64 = 1 << 17;
/// CR4: protection keys for user pages.
const CR4_PKE: u64 = 1 << 22;
/// CR4: control-flow enforcement. The kernel has neither shadow stacks nor ENDBR instructions.
const CR4_CET: u64 = 1 << 23;
/// CR4: protection keys for supervisor pages. Bits 62 to 59 of an entry would have a meaning.
const CR4_PKS: u64 = 1 << 24;
/// CR4: linear-address space separation. The code of the handover is in the lower half.
const CR4_LASS: u64 = 1 << 27;
/// CR4: linear-address masking for supervisor addresses.
const CR4_LAM_SUP: u64 = 1 << 28;

/// Says what is missing.
pub fn check() -> Result<(), &'static str> {
    if Cr4::read_raw() & CR4_LA57 != 0 {
        return Err(
            "the firmware runs with five-level paging; switch it off in the firmware's setup",
        );
    }
    if extended_features() & (1 << 20) == 0 {
        return Err(
            "the CPU cannot protect data from being executed (NX); switch it on in the firmware's setup",
        );
    }
    Ok(())
}

/// Whether pages of 1 GiB exist: CPUID 8000_0001h, EDX bit 26.
pub fn has_1g_pages() -> bool {
    extended_features() & (1 << 26) != 0
}

/// CPUID 8000_0001h, EDX.
fn extended_features() -> u32 {
    if __cpuid(0x8000_0000).eax < 0x8000_0001 {
        0
    } else {
        __cpuid(0x8000_0001).edx
    }
}

/// Switches on what the kernel's page tables rely on, NX and write protection in ring 0, and switches off what the kernel
/// does not expect.
///
/// # Safety
/// Boot services have ended, [`check`] has succeeded, and interrupts are off.
pub unsafe fn prepare() {
    // SAFETY: check() found NX. It makes bit 63 of an entry meaningful, which the firmware's tables set only with NX on.
    unsafe { Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE)) };
    let off = CR4_PGE | CR4_PCIDE | CR4_PKE | CR4_CET | CR4_PKS | CR4_LASS | CR4_LAM_SUP;
    // SAFETY: each of these can be cleared in 64-bit mode; none of them makes an address untranslatable that was not.
    unsafe { Cr4::write_raw(Cr4::read_raw() & !off) };
    // SAFETY: from here to the switch of page tables the loader writes only to its stack, which is writable.
    unsafe { Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT)) };
}
