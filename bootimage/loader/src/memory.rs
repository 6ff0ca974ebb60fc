//! Turns the firmware's memory map into the regions that the kernel gets.
//!
//! After the firmware has been left there is no allocator: regions are made in memory that was set aside before. The
//! rule where entries contradict each other: what is not free wins over what is, and what the loader uses over both.

use alloc::vec::Vec;
use core::ops::Range;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

use crate::PAGE;

/// An entry of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First physical address.
    pub start: u64,
    /// Physical address after the end.
    pub end: u64,
    /// The type, `EFI_MEMORY_TYPE` (UEFI 7.2.1).
    pub kind: u32,
    /// Whether the memory can be cached write-back, `EFI_MEMORY_WB`.
    pub write_back: bool,
}

impl Entry {
    /// Whether it is free once boot services have ended: the loader's own memory, that of boot services, and what was
    /// free before (UEFI 7.2.1, table "Memory Type Usage after ExitBootServices").
    pub fn is_usable(&self) -> bool {
        self.write_back && matches!(self.kind, 1..=4 | 7)
    }

    /// Whether it is RAM, used or not: the usable kinds, runtime services, ACPI tables, ACPI NVS, persistent memory.
    pub fn is_ram(&self) -> bool {
        self.is_usable() || matches!(self.kind, 5 | 6 | 9 | 10 | 14)
    }
}

/// Where there is RAM: ascending, neighbours joined.
pub fn ram(entries: impl Iterator<Item = Entry>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = entries
        .filter(Entry::is_ram)
        .filter(|entry| entry.start < entry.end)
        .map(|entry| entry.start..entry.end)
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// How much physical memory is to be mapped, given where there is RAM: to the end of RAM, and at least 4 GiB, so that
/// the interrupt controllers and most devices can be reached.
pub fn physical_memory_len(ram: &[Range<u64>]) -> u64 {
    // No CPU has more than 52 bits of physical addresses.
    let end = ram.last().map_or(0, |range| range.end).min(1 << 52);
    end.next_multiple_of(crate::mapping::PAGE_2M).max(1 << 32)
}

/// How many regions suffice for a memory map of `entries` entries, of which `used` ranges are in use. Leaving the
/// firmware may add entries.
pub fn capacity(entries: usize, used: usize) -> usize {
    2 * (entries + used) + 64
}

/// There is not enough room for the memory regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The memory regions under construction: always ascending, never overlapping.
struct Regions<'a> {
    buffer: &'a mut [MemoryRegion],
    len: usize,
}

/// Writes the regions to `buffer` and returns how many there are: ascending, not overlapping, neighbours of the same
/// kind joined. `used` is what the loader has taken for itself and the kernel. The first frame is never usable: address
/// 0 cannot be told from a null pointer.
///
/// # Errors
/// [`Full`] if there is not enough room; see [`capacity`].
pub fn regions(
    entries: impl Iterator<Item = Entry> + Clone,
    used: &[Range<u64>],
    buffer: &mut [MemoryRegion],
) -> Result<usize, Full> {
    let mut regions = Regions { buffer, len: 0 };
    for entry in entries.clone().filter(Entry::is_usable) {
        regions.paint(entry.start..entry.end, MemoryRegionKind::Usable)?;
    }
    if regions.buffer[..regions.len]
        .first()
        .is_some_and(|first| first.start < PAGE)
    {
        regions.paint(0..PAGE, MemoryRegionKind::UnknownUefi(0))?;
    }
    for entry in entries.filter(|entry| !entry.is_usable()) {
        regions.paint(
            entry.start..entry.end,
            MemoryRegionKind::UnknownUefi(entry.kind),
        )?;
    }
    for range in used {
        regions.paint(range.clone(), MemoryRegionKind::Bootloader)?;
    }
    Ok(regions.join())
}

impl Regions<'_> {
    /// Makes `range` a region of this kind, whatever was there.
    fn paint(&mut self, range: Range<u64>, kind: MemoryRegionKind) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let mut index = 0;
        while let Some(old) = self.buffer[..self.len].get(index).copied() {
            if old.end <= range.start {
                index += 1;
            } else if old.start >= range.end {
                break;
            } else if old.start < range.start {
                // What remains in front stays here; the rest is looked at in the next round.
                self.buffer[index].end = range.start;
                self.insert(
                    index + 1,
                    MemoryRegion {
                        start: range.start,
                        ..old
                    },
                )?;
                index += 1;
            } else if old.end > range.end {
                self.buffer[index].start = range.end;
                break;
            } else {
                self.buffer.copy_within(index + 1..self.len, index);
                self.len -= 1;
            }
        }
        self.insert(
            index,
            MemoryRegion {
                start: range.start,
                end: range.end,
                kind,
            },
        )
    }

    fn insert(&mut self, index: usize, region: MemoryRegion) -> Result<(), Full> {
        if self.len == self.buffer.len() {
            return Err(Full);
        }
        self.buffer.copy_within(index..self.len, index + 1);
        self.buffer[index] = region;
        self.len += 1;
        Ok(())
    }

    /// Joins neighbours of the same kind and returns how many regions are left.
    fn join(self) -> usize {
        let mut count = 0usize;
        for index in 0..self.len {
            let region = self.buffer[index];
            let last = count
                .checked_sub(1)
                .and_then(|last| self.buffer.get_mut(last));
            match last {
                Some(last) if last.end == region.start && last.kind == region.kind => {
                    last.end = region.end
                }
                _ => {
                    self.buffer[count] = region;
                    count += 1;
                }
            }
        }
        count
    }
}

#[cfg(test)]
mod tests;
