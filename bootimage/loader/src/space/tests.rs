//! Tests of the whole address space.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges that happen to have one entry"
)]

use bootloader_api::BootloaderConfig;
use bootloader_api::config::Mapping;

use super::*;
use crate::elf::tests::{BASE, HEADERS, file};
use crate::layout::Lengths;
use crate::mapping::tests::Frames;
use crate::memory::physical_memory_len;

const GIB: u64 = PAGE_1G;
const OFFSET: u64 = 0xffff_8000_0000_0000;
const IDENTITY: [(Range<u64>, Access); 2] = [
    (0x7e00_0000..0x7e00_1000, Access::EXECUTE),
    (0x7e10_0000..0x7e10_1000, Access::READ),
];

fn build_with(
    ram: &[Range<u64>],
    largest_page: u64,
    change: impl FnOnce(&mut BootloaderConfig),
) -> (Result<u64, SpaceError>, Layout, Frames) {
    let mut config = BootloaderConfig::new_default();
    config.mappings.physical_memory = Some(Mapping::FixedAddress(OFFSET));
    change(&mut config);
    let file = file(2, &HEADERS, &config);
    let kernel = Kernel::parse(&file).unwrap();
    let physical_memory = physical_memory_len(ram);
    let lengths = Lengths {
        boot_info: 0x3000,
        framebuffer: 0x30_0000,
        ramdisk: 0x50_0000,
        physical_memory,
    };
    let reserved: Vec<_> = IDENTITY.iter().map(|(range, _)| range.clone()).collect();
    let layout = Layout::choose(&kernel, &lengths, &reserved).unwrap();
    let placement = Placement {
        kernel: 0x200_0000,
        stack: 0x300_0000,
        boot_info: 0x400_0000..0x400_3000,
        framebuffer: Some(0xc000_0000..0xc030_0000),
        ramdisk: Some(0x500_1000..0x550_1000),
        identity: &IDENTITY,
        ram,
        physical_memory,
        largest_page,
    };
    let mut frames = Frames::new();
    let root = build(&kernel, &layout, &placement, &mut frames);
    (root, layout, frames)
}

#[test]
fn everything_is_where_the_layout_says() {
    let (root, layout, frames) = build_with(&[0..0xa_0000, 0x10_0000..2 * GIB], GIB, |_| {});
    let root = root.unwrap();
    let at = |address| {
        frames
            .walk(root, address)
            .map(|(physical, w, x, _)| (physical, w, x))
    };
    assert_eq!(at(BASE + 0x1234), Some((0x200_1234, false, true)));
    assert_eq!(at(BASE + 0x2000), None, "a gap between segments");
    assert_eq!(at(BASE + 0x3010), Some((0x200_3010, false, false)));
    assert_eq!(at(BASE + 0x4100), Some((0x200_4100, false, false)));
    assert_eq!(at(BASE + 0x6fff), Some((0x200_6fff, true, false)));
    assert_eq!(at(BASE + 0x7000), None);
    assert_eq!(at(layout.guard), None);
    assert_eq!(at(layout.guard + 0xfff), None);
    assert_eq!(at(layout.stack_bottom()), Some((0x300_0000, true, false)));
    assert_eq!(
        at(layout.stack_top() - 1),
        Some((0x300_0000 + layout.stack_len - 1, true, false))
    );
    assert_eq!(at(layout.stack_top()), None);
    assert_eq!(
        at(layout.boot_info + 0x2fff),
        Some((0x400_2fff, true, false))
    );
    assert_eq!(
        at(layout.framebuffer.unwrap() + 0x2f_ffff),
        Some((0xc02f_ffff, true, false))
    );
    assert_eq!(
        at(layout.ramdisk.unwrap() + 0x4f_ffff),
        Some((0x550_0fff, true, false))
    );
    assert_eq!(at(layout.ramdisk.unwrap() + 0x50_0000), None);
    assert_eq!(at(0x7e00_0010), Some((0x7e00_0010, false, true)));
    assert_eq!(at(0x7e10_0010), Some((0x7e10_0010, false, false)));
    assert_eq!(at(0x7e20_0000), None);
    assert_eq!(at(0), None);
}

#[test]
fn physical_memory_is_mapped_to_its_end_and_never_executable() {
    let ram = [
        0..0xa_0000,
        0x10_0000..3 * GIB - 0x10_0000,
        4 * GIB..9 * GIB + 0x1234_0000,
    ];
    for largest in [GIB, PAGE_2M] {
        let (root, _, frames) = build_with(&ram, largest, |_| {});
        let root = root.unwrap();
        let end = 9 * GIB + 0x1240_0000;
        for address in (0..end).step_by(0x0123_4000) {
            let (physical, writable, executable, size) =
                frames.walk(root, OFFSET + address).unwrap();
            assert_eq!((physical, writable, executable), (address, true, false));
            assert!(size <= largest);
        }
        assert!(frames.walk(root, OFFSET + end - 1).is_some());
        assert_eq!(frames.walk(root, OFFSET + end), None);
    }
}

#[test]
fn a_large_page_never_mixes_ram_with_something_else() {
    let ram = [
        0..0xa_0000,
        0x10_0000..3 * GIB - 0x10_0000,
        4 * GIB..9 * GIB + 0x1234_0000,
    ];
    let (root, _, frames) = build_with(&ram, GIB, |_| {});
    let root = root.unwrap();
    let size = |address| frames.walk(root, OFFSET + address).unwrap().3;
    assert_eq!(size(0), PAGE, "the fixed-range MTRRs");
    assert_eq!(size(PAGE_2M), PAGE_2M, "the first GiB has a hole");
    assert_eq!(size(GIB), GIB);
    assert_eq!(
        size(2 * GIB),
        PAGE_2M,
        "ends in the middle of the third GiB"
    );
    assert_eq!(size(3 * GIB), GIB, "no RAM at all");
    assert_eq!(size(8 * GIB), GIB);
    assert_eq!(size(9 * GIB), PAGE_2M);
}

#[test]
fn little_memory_still_maps_4_gib_and_a_terabyte_takes_few_tables() {
    let (root, _, frames) = build_with(&[0x1000..256 << 20], GIB, |_| {});
    let root = root.unwrap();
    assert!(frames.walk(root, OFFSET + 0xfee0_0000).is_some());
    assert_eq!(frames.walk(root, OFFSET + 4 * GIB), None);
    let (root, _, frames) = build_with(&[0x1000..0x8000_0000, 4 * GIB..1026 * GIB], GIB, |_| {});
    assert!(
        frames
            .walk(root.unwrap(), OFFSET + 1026 * GIB - 1)
            .is_some()
    );
    assert!(frames.count() < 40, "{} tables", frames.count());
}

#[test]
fn two_things_in_one_place_are_refused() {
    let ram = [0x1000..GIB];
    let stack = 0xffff_9000_0000_0000;
    let at = |address| {
        build_with(&ram, GIB, |config| {
            config.mappings.kernel_stack = Mapping::FixedAddress(stack);
            config.mappings.boot_info = Mapping::FixedAddress(address);
        })
        .0
    };
    assert_eq!(
        at(stack + PAGE),
        Err(SpaceError::Map(MapError::Occupied(stack + PAGE)))
    );
    assert_eq!(
        at(stack - 0x2000),
        Err(SpaceError::Guard(stack)),
        "the third page would be the guard page"
    );
    assert!(at(stack - 0x3000).is_ok());
    assert_eq!(at(BASE), Err(SpaceError::Map(MapError::Occupied(BASE))));
}
