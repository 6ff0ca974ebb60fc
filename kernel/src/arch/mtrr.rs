//! The machine's memory types, read once from the boot CPU's MTRRs.

#![allow(unsafe_code, reason = "sets MTRRs, CR0 and CR4")]

use alloc::vec::Vec;
use core::arch::asm;

use raw_cpuid::CpuId;
use spin::Once;

use super::msr::{self, Msr};
use crate::mem::mtrr::{MTRR_DEF_TYPE, MTRR_FIXED, MTRR_PHYS_BASE0, Mtrrs};
use crate::mem::{Hpa, MemoryType, PageSize};

const CR0_CD: i32 = 1 << 30;
const CR0_NW: i32 = 1 << 29;
const CR4_PGE: i32 = 1 << 7;
/// IA32_MTRR_DEF_TYPE: the ranges are in force.
const MTRRS_ENABLED: u64 = 1 << 11;
/// IA32_MTRRCAP: there are fixed ranges.
const HAS_FIXED: u64 = 1 << 8;

static MTRRS: Once<Mtrrs> = Once::new();

/// Reads the MTRRs. A CPU without them leaves memory types to the page tables: everything counts as write-back.
pub fn init() {
    let there = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_mtrr());
    MTRRS.call_once(|| {
        if there {
            // An MSR that the capability register promises and that is not there reads as an unused range.
            Mtrrs::read(|number| msr::try_read(Msr(number)).unwrap_or(0))
        } else {
            Mtrrs::absent()
        }
    });
}

/// The one type that all of this page has; `None` where it has several. Before [`init`]: uncacheable.
pub fn memory_type(hpa: Hpa, size: PageSize) -> Option<MemoryType> {
    MTRRS.get().map_or(Some(MemoryType::Uncacheable), |mtrrs| {
        mtrrs.uniform(hpa, size)
    })
}

/// The memory-type registers of the calling CPU, by number: all but the capability register. Empty without MTRRs.
pub fn registers() -> Vec<(u32, u64)> {
    let there = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_mtrr());
    if !there {
        return Vec::new();
    }
    let capability = msr::read(Msr::IA32_MTRRCAP);
    let variable = (capability & 0xff) as u32 * 2;
    let fixed = if capability & HAS_FIXED == 0 {
        &[][..]
    } else {
        &MTRR_FIXED
    };
    (MTRR_PHYS_BASE0..MTRR_PHYS_BASE0 + variable)
        .chain(fixed.iter().copied())
        .chain([MTRR_DEF_TYPE])
        .filter_map(|number| Some((number, msr::try_read(Msr(number))?)))
        .collect()
}

/// Gives the calling CPU these memory-type registers, by the procedure of SDM vol. 3 13.11.7.2; how many it had otherwise. Interrupts
/// are off.
///
/// The rendezvous of all CPUs in 13.11.8 is for a change of types that are in use. Here only the calling CPU changes, to the
/// types that memory has for all the others, and it has not yet used anything that they use.
pub(super) fn adopt(wanted: &[(u32, u64)]) -> usize {
    let differ = |&&(number, value): &&(u32, u64)| msr::try_read(Msr(number)) != Some(value);
    let count = wanted.iter().filter(differ).count();
    if count == 0 {
        return 0;
    }
    let default = msr::read(Msr::IA32_MTRR_DEF_TYPE);
    // SAFETY: caches and ranges are off while the types change, and nothing that was cached or translated under the old ones
    // stays. The kernel's memory is mapped throughout, and all types are those that the boot CPU runs with.
    unsafe {
        let cr0 = caches_off();
        msr::write(Msr::IA32_MTRR_DEF_TYPE, default & !MTRRS_ENABLED);
        for &(number, value) in wanted.iter().filter(differ) {
            if number != MTRR_DEF_TYPE {
                msr::try_write(Msr(number), value);
            }
        }
        for &(number, value) in wanted {
            if number == MTRR_DEF_TYPE {
                msr::write(Msr(number), value);
            }
        }
        caches_on(cr0);
    }
    count
}

/// Enters no-fill mode and empties caches and TLB; the value of CR0 before.
///
/// # Safety
/// [`caches_on`] follows.
unsafe fn caches_off() -> u64 {
    let cr0: u64;
    // SAFETY: without caches everything works, slowly.
    unsafe {
        asm!("mov {old}, cr0", "mov {new}, {old}", "or {new}, {disable}", "and {new}, {fill}", "mov cr0, {new}", "wbinvd",
            old = out(reg) cr0, new = out(reg) _, disable = const CR0_CD, fill = const !CR0_NW, options(nostack));
        flush_tlb();
    }
    cr0
}

/// Empties caches and TLB, and goes back to `cr0`.
///
/// # Safety
/// `cr0` is what [`caches_off`] gave.
unsafe fn caches_on(cr0: u64) {
    // SAFETY: the CPU had this value before.
    unsafe {
        asm!("wbinvd", options(nostack));
        flush_tlb();
        asm!("mov cr0, {}", in(reg) cr0, options(nostack));
    }
}

/// Forgets every translation, global ones, too: CR4.PGE is cleared for a moment.
fn flush_tlb() {
    // SAFETY: the same tables go on being used.
    unsafe {
        asm!("mov {old}, cr4", "mov {new}, {old}", "and {new}, {clear}", "mov cr4, {new}", "mov {new}, cr3", "mov cr3, {new}",
            "mov cr4, {old}", old = out(reg) _, new = out(reg) _, clear = const !CR4_PGE, options(nostack));
    }
}
