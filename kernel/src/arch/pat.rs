//! The host's page-attribute table: the one after reset, whatever firmware and loader left.

#![allow(unsafe_code, reason = "writes IA32_PAT")]

use core::arch::asm;

use super::msr::{self, Msr};

/// IA32_PAT after reset (SDM vol. 3 table 13-12): WB, WT, UC-, UC, and again. Nested page tables of AMD's CPUs choose from it.
const RESET: u64 = 0x0007_0406_0007_0406;

/// Sets it on the boot CPU; the others take the boot CPU's.
pub(super) fn init() {
    if msr::read(Msr::IA32_PAT) == RESET {
        return;
    }
    // SAFETY: write-back is entry 0 in any PAT that an operating system is started with, and the loader's tables use no
    // other; the kernel's own mappings of devices come later. Caches and TLB are flushed as SDM vol. 3 13.12.4 asks for.
    unsafe {
        asm!("wbinvd", options(nostack));
        msr::write(Msr::IA32_PAT, RESET);
        asm!("wbinvd", "mov {t}, cr3", "mov cr3, {t}", t = out(reg) _, options(nostack));
    }
}
