//! Tests of the choice of addresses.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges that happen to have one entry"
)]

use bootloader_api::BootloaderConfig;

use super::*;
use crate::elf::tests::{BASE, HEADERS, file};

const LENGTHS: Lengths = Lengths {
    boot_info: 0x5000,
    framebuffer: 0x40_0000,
    ramdisk: 0x30_0000,
    physical_memory: 1 << 40,
};

fn choose(kind: u16, change: impl FnOnce(&mut BootloaderConfig)) -> Result<Layout, LayoutError> {
    let mut config = BootloaderConfig::new_default();
    change(&mut config);
    let mut headers = HEADERS;
    if kind == 3 {
        headers.iter_mut().for_each(|header| header.2 -= BASE);
    }
    let file = file(kind, &headers, &config);
    Layout::choose(&Kernel::parse(&file).unwrap(), &LENGTHS, &[0x1000..0x3000])
}

#[test]
fn dynamic_things_are_in_the_upper_half_and_apart() {
    let layout = choose(2, |config| {
        config.mappings.physical_memory = Some(Mapping::Dynamic)
    })
    .unwrap();
    let memory = layout.physical_memory.unwrap();
    let mut slots: Vec<_> = [
        layout.guard,
        layout.boot_info,
        layout.framebuffer.unwrap(),
        layout.ramdisk.unwrap(),
        memory,
        memory + SLOT,
        BASE,
    ]
    .into_iter()
    .inspect(|address| assert!(*address >= 1 << 63))
    .map(slot_index)
    .collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), 7);
    assert_eq!(layout.kernel_bias, 0);
    assert_eq!(layout.stack_top() - layout.stack_bottom(), 80 * 1024);
    assert_eq!(layout.stack_bottom(), layout.guard + PAGE);
}

#[test]
fn fixed_addresses_are_kept() {
    let at = |number: u64| 0xffff_9000_0000_0000 + number * 0x4000_0000;
    let layout = choose(2, |config| {
        config.kernel_stack_size = 5000;
        config.mappings.kernel_stack = Mapping::FixedAddress(at(0));
        config.mappings.boot_info = Mapping::FixedAddress(at(1));
        config.mappings.framebuffer = Mapping::FixedAddress(at(2));
        config.mappings.ramdisk_memory = Mapping::FixedAddress(at(3));
        config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000));
        config.mappings.page_table_recursive = Some(Mapping::FixedAddress(slot_address(400)));
    })
    .unwrap();
    assert_eq!((layout.guard, layout.stack_len), (at(0), 0x2000));
    assert_eq!(
        (layout.boot_info, layout.framebuffer, layout.ramdisk),
        (at(1), Some(at(2)), Some(at(3)))
    );
    assert_eq!(
        (layout.physical_memory, layout.recursive_index),
        (Some(0xffff_8000_0000_0000), Some(400))
    );
}

#[test]
fn dynamic_things_avoid_fixed_ones() {
    let layout = choose(2, |config| {
        // A terabyte from here covers the two lowest entries of the upper half.
        config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000));
    })
    .unwrap();
    assert!(
        [layout.guard, layout.boot_info]
            .iter()
            .all(|address| slot_index(*address) >= 258)
    );
}

#[test]
fn the_dynamic_range_is_honoured() {
    let (start, end) = (slot_address(300), slot_address(304) - 1);
    let range = |config: &mut BootloaderConfig| {
        config.mappings.dynamic_range_start = Some(start);
        config.mappings.dynamic_range_end = Some(end);
    };
    let layout = choose(2, range).unwrap();
    for address in [
        layout.guard,
        layout.boot_info,
        layout.framebuffer.unwrap(),
        layout.ramdisk.unwrap(),
    ] {
        assert!((start..=end).contains(&address), "{address:#x}");
    }
    let too_much = choose(2, |config| {
        range(config);
        config.mappings.physical_memory = Some(Mapping::Dynamic);
    });
    assert_eq!(too_much, Err(LayoutError::NoRoom("physical memory")));
}

#[test]
fn only_a_relocatable_kernel_is_moved() {
    let base = Mapping::FixedAddress(0xffff_a000_0000_0000);
    assert_eq!(
        choose(3, |config| config.mappings.kernel_base = base)
            .unwrap()
            .kernel_bias,
        0xffff_a000_0000_0000
    );
    assert!(choose(3, |_| {}).unwrap().kernel_bias >= 1 << 63);
    assert_eq!(
        choose(2, |config| config.mappings.kernel_base = base),
        Err(LayoutError::NotRelocatable)
    );
    assert_eq!(
        choose(2, |config| config.mappings.kernel_base =
            Mapping::FixedAddress(BASE))
        .unwrap()
        .kernel_bias,
        0
    );
}

#[test]
fn unusable_addresses_are_refused() {
    let bad = |address| {
        choose(2, |config| {
            config.mappings.boot_info = Mapping::FixedAddress(address)
        })
    };
    for address in [
        0xffff_9000_0000_0800,
        1 << 50,
        (1 << 47) - PAGE,
        0u64.wrapping_sub(PAGE),
    ] {
        assert_eq!(
            bad(address),
            Err(LayoutError::Address("boot information", address)),
            "{address:#x}"
        );
    }
    let memory = Mapping::FixedAddress(0xffff_8000_0000_1000);
    let result = choose(2, |config| config.mappings.physical_memory = Some(memory));
    assert!(
        matches!(result, Err(LayoutError::Address("physical memory", _))),
        "pages of 2 MiB need alignment"
    );
    let stack = choose(2, |config| config.kernel_stack_size = u64::MAX);
    assert_eq!(stack, Err(LayoutError::NoRoom("stack")));
}

#[test]
fn without_a_length_there_is_no_address() {
    let file = crate::elf::tests::good();
    let lengths = Lengths {
        framebuffer: 0,
        ramdisk: 0,
        ..LENGTHS
    };
    let layout = Layout::choose(&Kernel::parse(&file).unwrap(), &lengths, &[]).unwrap();
    assert_eq!(
        (layout.framebuffer, layout.ramdisk, layout.physical_memory),
        (None, None, None)
    );
}
