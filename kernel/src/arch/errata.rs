//! What this CPU does wrong, and what is done about it.

#![allow(unsafe_code, reason = "Bochs's port")]

use core::arch::x86_64::{__cpuid, __cpuid_count};

use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

use super::msr::{self, Msr};
use crate::mem::PageSize;
use crate::rules::speculation::ArchCapabilities;

/// A change of a page's size raises no machine check.
const PSCHANGE_MC_NO: u64 = ArchCapabilities::PSCHANGE_MC_NO.bits();

/// CPUID leaf 7 EDX: there is IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 1 << 29;

/// The largest page by which a guest may be given memory that it can execute.
///
/// On Intel's CPUs before 2019 and some after, a guest that changes the size of a page of its own, and keeps executing from it
/// without a flush, raises a machine check that nothing survives (CVE-2018-12207, "iTLB multihit"). It takes a large page in
/// the nested tables, too: such CPUs get none.
pub fn largest_guest_page() -> PageSize {
    let cpuid = CpuId::new();
    let is_intel = cpuid
        .get_vendor_info()
        .is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
    largest(is_intel, arch_capabilities())
}

/// What the CPU says that it is not affected by: IA32_ARCH_CAPABILITIES, where there is one.
pub fn arch_capabilities() -> Option<u64> {
    let tells = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ARCH_CAPABILITIES != 0;
    tells
        .then(|| msr::try_read(Msr::IA32_ARCH_CAPABILITIES))
        .flatten()
}

/// The decision, by what the CPU says of itself.
const fn largest(is_intel: bool, capabilities: Option<u64>) -> PageSize {
    match (is_intel, capabilities) {
        (false, _) => PageSize::Size1G,
        (true, Some(capabilities)) if capabilities & PSCHANGE_MC_NO != 0 => PageSize::Size1G,
        (true, _) => PageSize::Size4K,
    }
}

/// CPUID leaf 1 ECX: there is a hypervisor, or an emulator that says so.
const ECX_HYPERVISOR: u32 = 1 << 31;

/// Whether the CPU is QEMU's TCG. What it lacks, or does otherwise than the manual says, is allowed for where this is asked.
pub fn is_tcg() -> bool {
    let name = __cpuid(0x4000_0000);
    __cpuid(1).ecx & ECX_HYPERVISOR != 0
        && [name.ebx, name.ecx, name.edx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"TCGTCGTCGTCG"
}

/// The debug port of Bochs, which reads its own number.
const DEBUG_PORT: u16 = 0xe9;

/// Whether the machine is Bochs, which does not say so by CPUID. QEMU may have the same port, and says what it is.
pub fn is_bochs() -> bool {
    // SAFETY: a port without a device reads all ones; with Bochs's, reading has no effect.
    let read = || unsafe { Port::<u8>::new(DEBUG_PORT).read() };
    __cpuid(1).ecx & ECX_HYPERVISOR == 0 && read() == DEBUG_PORT as u8
}

/// Whether a CPU that delivers virtual interrupts by itself does not heed that the guest has interrupts off (SDM vol. 3 30.2.2). Bochs 2.7
/// does not when a physical interrupt comes while a virtual one is pending: it takes them for one kind.
pub fn ignores_if() -> bool {
    is_bochs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_only_where_the_cpu_says_that_it_bears_them() {
        assert_eq!(largest(true, None), PageSize::Size4K);
        assert_eq!(largest(true, Some(!PSCHANGE_MC_NO)), PageSize::Size4K);
        assert_eq!(largest(true, Some(PSCHANGE_MC_NO)), PageSize::Size1G);
        assert_eq!(largest(false, None), PageSize::Size1G);
    }
}
