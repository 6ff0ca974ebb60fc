//! The machine's memory types, read once from the boot CPU's MTRRs.

use raw_cpuid::CpuId;
use spin::Once;

use super::msr::{self, Msr};
use crate::mem::mtrr::Mtrrs;
use crate::mem::{Hpa, MemoryType, PageSize};

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
