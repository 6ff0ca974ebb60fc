//! The frames of a domain's nested page tables, in the machine's memory.
#![allow(
    unsafe_code,
    reason = "table entries are reached through the physical map"
)]

use core::sync::atomic::AtomicU64;

use raw_cpuid::CpuId;

use super::TableFrames;
use crate::mem::addr::{Hpa, PAGE_SIZE};
use crate::mem::budget::{Amounts, Budget};
use crate::mem::frames::{Owner, frames};
use crate::mem::shared::Ref;
use crate::mem::{PageSize, phys};

/// Table frames out of the global allocator, owned as [`Owner::NestedTable`] of one domain.
#[derive(Clone, Debug)]
pub struct DomainTables {
    domain: u32,
    budget: Ref<Budget>,
    physical_bits: u32,
}

impl DomainTables {
    /// For the domain with this identifier (below 2^24); each frame is charged to the budget.
    pub fn new(domain: u32, budget: Ref<Budget>) -> Self {
        let physical_bits = CpuId::new()
            .get_processor_capacity_feature_info()
            .map_or(36, |info| u32::from(info.physical_address_bits()));
        Self {
            domain,
            budget,
            physical_bits,
        }
    }

    fn owner(&self) -> Owner {
        Owner::NestedTable {
            domain: self.domain,
        }
    }
}

impl TableFrames for DomainTables {
    fn allocate(&mut self) -> Option<Hpa> {
        self.budget.take(Amounts::frames(1)).ok()?;
        let table = frames().allocate(PageSize::Size4K, self.owner()).ok();
        if table.is_none() {
            self.budget.give_back(Amounts::frames(1));
        }
        table
    }

    fn free(&mut self, table: Hpa) {
        // A refusal is logged by the allocator; the frame then stays with its owner.
        let freed = frames().free(table, PageSize::Size4K, self.owner());
        if freed.is_ok() {
            self.budget.give_back(Amounts::frames(1));
        }
    }

    fn entry(&self, table: Hpa, index: usize) -> &AtomicU64 {
        let entry = Hpa::new(table.get() + (index as u64 * 8) % PAGE_SIZE);
        // SAFETY: `phys::pointer` gives an address within the physical map. The frame is a nested page table's: only
        // this module and the CPUs reach it, both by atomic accesses of aligned 64-bit entries, and it stays mapped for ever.
        unsafe { AtomicU64::from_ptr(phys::pointer(entry).cast()) }
    }

    fn physical_bits(&self) -> u32 {
        self.physical_bits
    }
}
