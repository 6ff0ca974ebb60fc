//! Checks of a memory map, whatever the form in which it was handed over.

use core::ops::Range;

use heapless::Vec;

use crate::{Outcome, Why, check, check_eq, memory};

/// Types of memory (ACPI 6.5 table 15.2).
pub mod kind {
    /// RAM that is the system's.
    pub const RAM: u32 = 1;
    /// Not for the system.
    pub const RESERVED: u32 = 2;
    /// ACPI's tables.
    pub const ACPI: u32 = 3;
    /// To be kept over sleep.
    pub const NVS: u32 = 4;
    /// The last that is defined of those that PVH and Multiboot have in common.
    pub const BAD: u32 = 5;
}

/// Video memory, option ROMs and firmware of a PC.
const LEGACY: Range<u64> = 0xa_0000..0x10_0000;

/// A part of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The first address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub kind: u32,
}

impl Entry {
    fn end(&self) -> Option<u64> {
        self.start.checked_add(self.length)
    }
}

/// A memory map.
pub type Map = Vec<Entry, 64>;

/// Whether it is in order: ascending, no two parts at one place, none empty, no unknown type.
pub fn is_in_order(map: &Map) -> Outcome {
    check!(!map.is_empty(), "it is empty");
    let mut free = 0;
    for (index, entry) in map.iter().enumerate() {
        check!(entry.length > 0, "entry {index} is empty");
        check!(
            (kind::RAM..=kind::BAD).contains(&entry.kind),
            "entry {index} has type {}",
            entry.kind
        );
        check!(
            entry.start >= free,
            "entry {index} begins at {:#x}, before the last one's end",
            entry.start
        );
        free = entry
            .end()
            .ok_or_else(|| Why::from(format_args!("entry {index} wraps")))?;
    }
    Ok(())
}

/// Whether it has all of the machine's RAM, of which there are so many bytes below the hole for devices, and no other.
pub fn has_all_ram(map: &Map, bytes: u64) -> Outcome {
    let mut ram = map.iter().filter(|entry| entry.kind == kind::RAM);
    let sum: u64 = ram.clone().map(|entry| entry.length).sum();
    let hidden = LEGACY.end - LEGACY.start;
    check_eq!(sum, bytes - hidden, "bytes of RAM");
    let last = ram.next_back().and_then(Entry::end);
    check_eq!(last.unwrap_or(0), bytes, "the end of RAM");
    check!(
        map.iter().any(|entry| entry.start == 0
            && entry.kind == kind::RAM
            && entry.end() == Some(LEGACY.start)),
        "the RAM from 0 to 640 KiB is not one entry"
    );
    Ok(())
}

/// Whether the legacy hole is there, all of it, and not RAM.
pub fn has_legacy_hole(map: &Map) -> Outcome {
    let mut next = LEGACY.start;
    for entry in map {
        let end = entry.end().unwrap_or(u64::MAX);
        if end <= LEGACY.start || entry.start >= LEGACY.end {
            continue;
        }
        check!(entry.kind != kind::RAM, "RAM at {:#x}", entry.start);
        check!(entry.start <= next, "a gap at {next:#x}");
        next = end;
    }
    check!(next >= LEGACY.end, "it ends at {next:#x}");
    Ok(())
}

/// Whether all addresses of a range are of that type.
pub fn holds(map: &Map, range: Range<u64>, wanted: u32, what: &str) -> Outcome {
    let mut next = range.start;
    for entry in map.iter().filter(|entry| entry.kind == wanted) {
        if entry.start <= next {
            next = next.max(entry.end().unwrap_or(0));
        }
    }
    check!(
        next >= range.end,
        "{what}, {:#x} to {:#x}: not of type {wanted} from {next:#x} on",
        range.start,
        range.end
    );
    Ok(())
}

/// Pieces of memory that must have nothing in common, and the program's own.
pub struct Pieces<'a> {
    map: &'a Map,
    pieces: Vec<(&'static str, Range<u64>), 32>,
}

impl<'a> Pieces<'a> {
    /// The program alone.
    pub fn new(map: &'a Map) -> Result<Self, Why> {
        let mut pieces = Self {
            map,
            pieces: Vec::new(),
        };
        pieces.add("the kernel", memory::image())?;
        Ok(pieces)
    }

    /// Another one, which must lie in RAM, not at address 0, and apart from all others.
    pub fn add(&mut self, what: &'static str, range: Range<u64>) -> Outcome {
        check!(range.start != 0, "{what} lies at address 0");
        holds(self.map, range.clone(), kind::RAM, what)?;
        for (other, place) in &self.pieces {
            check!(
                range.end <= place.start || place.end <= range.start,
                "{what}, {:#x} to {:#x}, overlaps {other}, {:#x} to {:#x}",
                range.start,
                range.end,
                place.start,
                place.end
            );
        }
        self.pieces
            .push((what, range))
            .map_err(|_| Why::from(format_args!("more than 32 pieces")))
    }
}
