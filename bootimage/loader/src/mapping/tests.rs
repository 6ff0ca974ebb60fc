//! Tests that walk the tables as the CPU would, with a walker that shares no code with the builder.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Frames in a map, as many as allowed.
pub(crate) struct Frames {
    tables: HashMap<u64, Box<Table>>,
    pub(crate) limit: usize,
}

impl Frames {
    pub(crate) fn new() -> Self {
        Self {
            tables: HashMap::new(),
            limit: usize::MAX,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.tables.len()
    }

    /// The physical address, whether it is writable, whether it is executable, and the size of the page.
    pub(crate) fn walk(&self, root: u64, address: u64) -> Option<(u64, bool, bool, u64)> {
        let (mut table, mut writable, mut executable) = (root, true, true);
        for shift in [39, 30, 21, 12] {
            let entry = self.tables[&table][(address >> shift) as usize & 0x1ff];
            if entry & 1 == 0 {
                return None;
            }
            assert_eq!(entry & 4, 0, "nothing is for user mode");
            writable &= entry >> 1 & 1 == 1;
            executable &= entry >> 63 == 0;
            let frame = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry >> 7 & 1 == 1 {
                assert!(shift < 39, "there are no pages of 512 GiB");
                let mask = (1u64 << shift) - 1;
                assert_eq!(frame & mask, 0, "reserved bits of a large page");
                return Some((frame | address & mask, writable, executable, mask + 1));
            }
            table = frame;
        }
        None
    }
}

impl FrameSource for Frames {
    fn allocate(&mut self) -> Option<u64> {
        if self.tables.len() == self.limit {
            return None;
        }
        let frame = 0x10_0000 + self.tables.len() as u64 * PAGE;
        self.tables.insert(frame, Box::new([0; 512]));
        Some(frame)
    }

    fn table(&mut self, frame: u64) -> &mut Table {
        self.tables
            .get_mut(&frame)
            .expect("a frame that was allocated")
    }
}

const HIGH: u64 = 0xffff_8000_0000_0000;

proptest! {
    #[test]
    fn every_address_translates_to_what_was_asked(
        address in (0u64..1 << 35).prop_map(|page| page << 12), physical in (0u64..1 << 28).prop_map(|page| page << 12),
        pages in 1u64..3000, aligned: bool, upper: bool, writable: bool, executable: bool,
        largest in prop_oneof![Just(PAGE), Just(PAGE_2M), Just(PAGE_1G)]) {
        let mask = if aligned { !(PAGE_2M - 1) } else { !0 };
        let address = (address & mask) | if upper { HIGH } else { 0 };
        let (physical, len) = (physical & mask, pages * PAGE);
        let access = Access { writable, executable };
        let mut frames = Frames::new();
        let mut space = AddressSpace::new(&mut frames).unwrap();
        let root = space.root();
        let result = space.map(address, physical, len, access, largest);
        if writable && executable {
            prop_assert_eq!(result, Err(MapError::WritableAndExecutable(address)));
            return Ok(());
        }
        result.unwrap();
        for offset in (0..len).step_by(PAGE as usize).chain([len - 1]) {
            let (found, w, x, size) = frames.walk(root, address + offset).unwrap();
            prop_assert_eq!((found, w, x), (physical + offset, writable, executable));
            prop_assert!(size <= largest);
        }
        prop_assert_eq!(frames.walk(root, address.wrapping_sub(1)), None);
        prop_assert_eq!(frames.walk(root, address + len), None);
        prop_assert_eq!(AddressSpace { frames: &mut frames, root }.translate(address + 5).map(|found| found.0), Some(physical + 5));
    }
}

#[test]
fn the_largest_page_that_fits_is_taken() {
    let mut frames = Frames::new();
    let mut space = AddressSpace::new(&mut frames).unwrap();
    let root = space.root();
    space
        .map(
            HIGH + PAGE_1G - PAGE_2M,
            PAGE_1G - PAGE_2M,
            2 * PAGE_1G + PAGE,
            Access::READ,
            PAGE_1G,
        )
        .unwrap();
    let size = |address| frames.walk(root, address).unwrap().3;
    assert_eq!(size(HIGH + PAGE_1G - PAGE_2M), PAGE_2M);
    assert_eq!(size(HIGH + PAGE_1G), PAGE_1G);
    assert_eq!(size(HIGH + 2 * PAGE_1G), PAGE_2M);
    assert_eq!(size(HIGH + 3 * PAGE_1G - PAGE_2M), PAGE);
}

#[test]
fn a_terabyte_takes_a_few_frames() {
    let mut frames = Frames::new();
    AddressSpace::new(&mut frames)
        .unwrap()
        .map(HIGH, 0, 1 << 40, Access::READ_WRITE, PAGE_1G)
        .unwrap();
    assert_eq!(frames.count(), 3, "the level-4 table and two of level 3");
}

#[test]
fn nothing_is_mapped_twice() {
    let mut frames = Frames::new();
    let mut space = AddressSpace::new(&mut frames).unwrap();
    space.map(HIGH, 0, PAGE_2M, Access::READ, PAGE_2M).unwrap();
    assert_eq!(
        space.map(HIGH + PAGE, 0, PAGE, Access::READ, PAGE),
        Err(MapError::Occupied(HIGH + PAGE))
    );
    space
        .map(HIGH + PAGE_1G, 0, PAGE, Access::READ, PAGE)
        .unwrap();
    let again = space.map(HIGH + PAGE_1G, 0, PAGE_1G, Access::READ, PAGE_1G);
    assert_eq!(again, Err(MapError::Occupied(HIGH + PAGE_1G)));
}

#[test]
fn impossible_addresses_are_refused() {
    let mut frames = Frames::new();
    let mut space = AddressSpace::new(&mut frames).unwrap();
    for (address, physical, len) in [
        (HIGH + 1, 0, PAGE),
        (HIGH, 8, PAGE),
        (1 << 47, 0, PAGE),
        ((1 << 47) - PAGE, 0, 2 * PAGE),
        (0u64.wrapping_sub(PAGE), 0, 2 * PAGE),
        (HIGH, 1 << 52, PAGE),
    ] {
        let result = space.map(address, physical, len, Access::READ, PAGE);
        assert_eq!(
            result,
            Err(MapError::Address(address)),
            "{address:#x} {physical:#x} {len:#x}"
        );
    }
    space
        .map(0u64.wrapping_sub(PAGE), 0, PAGE, Access::READ, PAGE)
        .unwrap();
}

#[test]
fn running_out_of_frames_is_an_error() {
    let mut frames = Frames::new();
    frames.limit = 3;
    let mut space = AddressSpace::new(&mut frames).unwrap();
    assert_eq!(
        space.map(HIGH, 0, PAGE, Access::READ, PAGE),
        Err(MapError::OutOfFrames)
    );
}

#[test]
fn the_recursive_entry_reaches_the_tables() {
    let mut frames = Frames::new();
    let mut space = AddressSpace::new(&mut frames).unwrap();
    let root = space.root();
    space.map_recursively(300).unwrap();
    assert!(matches!(
        space.map_recursively(300),
        Err(MapError::Occupied(_))
    ));
    let table = 0xffff_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12;
    assert_eq!(frames.walk(root, table), Some((root, true, false, PAGE)));
}
