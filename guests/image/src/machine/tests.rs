use proptest::prelude::*;

use super::*;
use crate::testing::{ACPI, GIB, MIB, machines};

fn region(start: u64, end: u64, kind: MemoryKind) -> Region {
    Region { start, end, kind }
}

#[test]
fn ram_leaves_the_hole_free() {
    assert_eq!(ram_ranges(GIB), [0..GIB, FOUR_GIB..FOUR_GIB]);
    assert_eq!(ram_ranges(3 * GIB), [0..3 * GIB, FOUR_GIB..FOUR_GIB]);
    assert_eq!(
        ram_ranges(5 * GIB),
        [0..3 * GIB, FOUR_GIB..FOUR_GIB + 2 * GIB]
    );
    // Nobody has that, and nobody ends the machine by asking for it.
    assert_eq!(ram_ranges(u64::MAX)[1].end, u64::MAX);
}

#[test]
fn the_memory_map_is_that_of_a_pc() {
    let machine = Machine {
        ram: &ram_ranges(4 * GIB),
        reserved: &[
            LEGACY,
            ACPI,
            region(0xe000_0000, 0xf000_0000, MemoryKind::RESERVED),
        ],
        ..Machine::default()
    };
    let ram = MemoryKind::RAM;
    assert_eq!(
        e820(&machine),
        [
            region(0, 0xa_0000, ram),
            LEGACY,
            region(MIB, ACPI.start, ram),
            ACPI,
            region(ACPI.end, 3 * GIB, ram),
            region(0xe000_0000, 0xf000_0000, MemoryKind::RESERVED),
            region(FOUR_GIB, 5 * GIB, ram),
        ]
    );
}

#[test]
fn the_later_of_two_reserved_regions_counts_and_neighbours_join() {
    let machine = Machine {
        ram: &[0..8 * MIB, 8 * MIB..16 * MIB],
        reserved: &[
            region(2 * MIB, 4 * MIB, MemoryKind::RESERVED),
            region(3 * MIB, 5 * MIB, MemoryKind::NVS),
            region(5 * MIB, 6 * MIB, MemoryKind::NVS),
            region(9 * MIB, 9 * MIB, MemoryKind::RESERVED),
            region(11 * MIB, 10 * MIB, MemoryKind::RESERVED),
        ],
        ..Machine::default()
    };
    assert_eq!(
        e820(&machine),
        [
            region(0, 2 * MIB, MemoryKind::RAM),
            region(2 * MIB, 3 * MIB, MemoryKind::RESERVED),
            region(3 * MIB, 6 * MIB, MemoryKind::NVS),
            region(6 * MIB, 16 * MIB, MemoryKind::RAM),
        ]
    );
    assert_eq!(e820(&Machine::default()), []);
}

proptest! {
    /// Ascending, disjoint, no neighbours of one kind, and each address is what was said last.
    #[test]
    fn a_memory_map_is_in_order((ram, reserved) in machines(), probe in 0..9 * GIB) {
        let machine = Machine { ram: &ram, reserved: &reserved, ..Machine::default() };
        let map = e820(&machine);
        for pair in map.windows(2) {
            prop_assert!(pair[0].end <= pair[1].start);
            prop_assert!(pair[0].end < pair[1].start || pair[0].kind != pair[1].kind);
        }
        prop_assert!(map.iter().all(|region| region.start < region.end));
        let said = reserved.iter().rev()
            .find(|region| (region.start..region.end).contains(&probe))
            .map(|region| match region.kind {
                MemoryKind::RAM => MemoryKind::RESERVED,
                kind => kind,
            })
            .or(ram.iter().any(|range| range.contains(&probe)).then_some(MemoryKind::RAM));
        let found = map.iter()
            .find(|region| (region.start..region.end).contains(&probe))
            .map(|region| region.kind);
        prop_assert_eq!(found, said);
    }
}
