//! The machine that a system is loaded into: its memory, and what the loader hands over.

use alloc::vec::Vec;
use core::ops::Range;

/// A page.
pub(crate) const PAGE: u64 = 4096;
/// 4 GiB: where the hole for devices ends, and with it firmware.
pub const FOUR_GIB: u64 = 1 << 32;
/// Where low RAM ends at the latest: the hole for devices reaches from here to [`FOUR_GIB`].
pub const HOLE: u64 = 3 << 30;
/// On a PC no RAM of the system's: video memory, option ROMs, firmware.
pub const LEGACY: Region = Region {
    start: 0xa_0000,
    end: 0x10_0000,
    kind: MemoryKind::RESERVED,
};

/// The ranges of `bytes` of RAM in a PC: up to [`HOLE`], and what is left from [`FOUR_GIB`] on. The second may be empty.
pub const fn ram_ranges(bytes: u64) -> [Range<u64>; 2] {
    let low = if bytes < HOLE { bytes } else { HOLE };
    [0..low, FOUR_GIB..FOUR_GIB.saturating_add(bytes - low)]
}

/// What memory is, as in the system address map of ACPI (6.5, table 15.2), which firmware's INT 15h function E820h told
/// first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryKind(pub u32);

impl MemoryKind {
    /// RAM that the system may use.
    pub const RAM: Self = Self(1);
    /// Not for the system.
    pub const RESERVED: Self = Self(2);
    /// ACPI's tables: RAM once they have been read.
    pub const ACPI: Self = Self(3);
    /// Firmware's, to be kept over sleep.
    pub const NVS: Self = Self(4);
}

/// A part of guest-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// A file that a system gets beside its kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'a> {
    /// Its contents.
    pub bytes: &'a [u8],
    /// Its command line, by custom beginning with its name.
    pub command_line: &'a str,
}

/// What a system is loaded into.
#[derive(Clone, Debug, Default)]
pub struct Machine<'a> {
    /// Where there is memory; all of it is zero. [`ram_ranges`] gives a PC's.
    pub ram: &'a [Range<u64>],
    /// What in it is not the system's, or lies outside and has to be in its memory map: [`LEGACY`], ACPI's tables. Where
    /// two overlap the later counts; what says that it is RAM is reserved all the same. Nothing is loaded there but
    /// firmware.
    pub reserved: &'a [Region],
    /// Where ACPI's root pointer (RSDP) is; whoever calls puts it there.
    pub rsdp: Option<u64>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The initial RAM disk of a Linux kernel; the first module of others.
    pub initrd: Option<&'a [u8]>,
    /// Modules.
    pub modules: &'a [Module<'a>],
}

/// The memory map that the system is told: ascending, disjoint, neighbours of one kind merged.
pub fn e820(machine: &Machine<'_>) -> Vec<Region> {
    let mut map = Vec::new();
    for range in machine.ram {
        paint(
            &mut map,
            Region {
                start: range.start,
                end: range.end,
                kind: MemoryKind::RAM,
            },
        );
    }
    for &region in machine.reserved {
        let kind = match region.kind {
            MemoryKind::RAM => MemoryKind::RESERVED,
            kind => kind,
        };
        paint(&mut map, Region { kind, ..region });
    }
    map.sort_unstable_by_key(|region| region.start);
    map.dedup_by(|next, before| {
        let joins = before.end == next.start && before.kind == next.kind;
        if joins {
            before.end = next.end;
        }
        joins
    });
    map
}

/// Puts `new` into a map, over what is there.
fn paint(map: &mut Vec<Region>, new: Region) {
    if new.start >= new.end {
        return;
    }
    let below_and_above = |old: Region| {
        let below = Region {
            end: old.end.min(new.start),
            ..old
        };
        let above = Region {
            start: old.start.max(new.end),
            ..old
        };
        [below, above]
    };
    *map = map
        .drain(..)
        .flat_map(below_and_above)
        .filter(|part| part.start < part.end)
        .chain([new])
        .collect();
}

#[cfg(test)]
mod tests;
