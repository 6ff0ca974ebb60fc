//! What this CPU does wrong, and what is done about it.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use raw_cpuid::CpuId;

use super::msr::{self, Msr};
use crate::mem::PageSize;

/// IA32_ARCH_CAPABILITIES: a change of a page's size raises no machine check.
const IF_PSCHANGE_MC_NO: u64 = 1 << 6;

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
    let tells = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ARCH_CAPABILITIES != 0;
    largest(
        is_intel,
        tells
            .then(|| msr::try_read(Msr::IA32_ARCH_CAPABILITIES))
            .flatten(),
    )
}

/// The decision, by what the CPU says of itself.
const fn largest(is_intel: bool, capabilities: Option<u64>) -> PageSize {
    match (is_intel, capabilities) {
        (false, _) => PageSize::Size1G,
        (true, Some(capabilities)) if capabilities & IF_PSCHANGE_MC_NO != 0 => PageSize::Size1G,
        (true, _) => PageSize::Size4K,
    }
}

/// Whether the CPU is QEMU's TCG. What it lacks, or does otherwise than the manual says, is allowed for where this is asked.
pub fn is_tcg() -> bool {
    const ECX_HYPERVISOR: u32 = 1 << 31;
    let name = __cpuid(0x4000_0000);
    __cpuid(1).ecx & ECX_HYPERVISOR != 0
        && [name.ebx, name.ecx, name.edx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"TCGTCGTCGTCG"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_only_where_the_cpu_says_that_it_bears_them() {
        assert_eq!(largest(true, None), PageSize::Size4K);
        assert_eq!(largest(true, Some(!IF_PSCHANGE_MC_NO)), PageSize::Size4K);
        assert_eq!(largest(true, Some(IF_PSCHANGE_MC_NO)), PageSize::Size1G);
        assert_eq!(largest(false, None), PageSize::Size1G);
    }
}
