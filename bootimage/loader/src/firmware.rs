//! What the firmware is asked for, besides files and the screen.

use alloc::vec::Vec;

use plinth_loader::PAGE;
use plinth_loader::memory::Entry;
use uefi::boot;
use uefi::mem::memory_map::{MemoryAttribute, MemoryDescriptor, MemoryMap, MemoryType};
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Status, system};

extern crate alloc;

/// Stops the timer that would reset the machine five minutes after the loader was started.
pub fn disable_watchdog() {
    // The code is one that firmware leaves to applications. Firmware without the timer reports an error: all the better.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
}

/// The physical address of the ACPI root pointer, that of ACPI 2.0 if there are two.
pub fn rsdp() -> Option<u64> {
    system::with_config_table(|tables| {
        [ConfigTableEntry::ACPI2_GUID, ConfigTableEntry::ACPI_GUID]
            .into_iter()
            .find_map(|guid| tables.iter().find(|table| table.guid == guid))
            .map(|table| table.address as u64)
    })
}

/// The memory map as it is now.
pub fn memory_map() -> Result<Vec<Entry>, Status> {
    let map = boot::memory_map(MemoryType::LOADER_DATA).map_err(|error| error.status())?;
    Ok(map.entries().map(entry).collect())
}

/// An entry of the memory map.
pub fn entry(descriptor: &MemoryDescriptor) -> Entry {
    Entry {
        start: descriptor.phys_start,
        end: descriptor
            .phys_start
            .saturating_add(descriptor.page_count.saturating_mul(PAGE)),
        kind: descriptor.ty.0,
        write_back: descriptor.att.contains(MemoryAttribute::WRITE_BACK),
    }
}
