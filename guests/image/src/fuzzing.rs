//! The door for the fuzzer, `fuzz/`: the properties that the host's tests check, of files that are anything at all. No guest has this
//! module.
//!
//! The first byte of an input chooses the machine that the rest, the file, is loaded into. The seeds are the kernels of the tests.

use alloc::vec;
use alloc::vec::Vec;

use crate::testing::{ACPI, MIB};
use crate::{
    FOUR_GIB, LEGACY, Machine, Module, executable, image, linux, multiboot, pvh, ram_ranges,
};

/// Has the file of an input loaded.
fn with_machine(input: &[u8], load: impl FnOnce(&[u8], &Machine<'_>)) {
    let Some((choice, file)) = input.split_first() else {
        return;
    };
    let ram = match choice & 0b111 {
        0 => ram_ranges(64 * MIB).to_vec(),
        1 => ram_ranges(1024 * MIB).to_vec(),
        2 => ram_ranges(6144 * MIB).to_vec(),
        3 => ram_ranges(2 * MIB).to_vec(),
        4 => vec![0..0xa_0000, MIB..96 * MIB, FOUR_GIB - MIB..FOUR_GIB + MIB],
        5 => vec![3 * MIB..40 * MIB],
        6 => vec![0..0xa_0000, MIB..0x10_8000, 0x20_0000..0x20_6000],
        _ => vec![],
    };
    let reserved: &[_] = match choice >> 3 & 0b11 {
        0 => &[],
        1 => &[LEGACY],
        _ => &[LEGACY, ACPI],
    };
    let modules = [Module {
        bytes: b"module",
        command_line: "line",
    }; 3];
    let machine = Machine {
        ram: &ram,
        reserved,
        command_line: if choice & 1 << 5 == 0 { "" } else { "a b c" },
        initrd: (choice & 1 << 6 != 0).then_some(&[1; 5000]),
        modules: if choice & 1 << 7 == 0 { &[] } else { &modules },
        ..Machine::default()
    };
    load(file, &machine);
}

/// Files as inputs, each for some machines.
fn inputs(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let choices = [0x09, 0x69, 0xe8, 0x12];
    let input = |file: &Vec<u8>| choices.map(|choice| [&[choice], &file[..]].concat());
    files.iter().flat_map(input).collect()
}

/// A Linux kernel, or what is taken for one.
pub fn linux(input: &[u8]) {
    with_machine(input, linux::tests::check);
}

/// Inputs to begin with.
pub fn linux_seeds() -> Vec<Vec<u8>> {
    inputs(&[linux::tests::kernel()])
}

/// An executable with an entry for Xen's PVH.
pub fn pvh(input: &[u8]) {
    with_machine(input, pvh::tests::check);
}

/// Inputs to begin with.
pub fn pvh_seeds() -> Vec<Vec<u8>> {
    inputs(&[false, true].map(|wide| pvh::tests::kernel(wide).bytes()))
}

/// A Multiboot image.
pub fn multiboot(input: &[u8]) {
    with_machine(input, multiboot::tests::check);
}

/// Inputs to begin with.
pub fn multiboot_seeds() -> Vec<Vec<u8>> {
    use multiboot::tests::{by_addresses, kernel, with_sections};
    inputs(&[
        kernel(false, 3).bytes(),
        with_sections(false).bytes(),
        with_sections(true).bytes(),
        by_addresses(0x40, |fields| fields[3] = 0x30_0000),
    ])
}

/// A file as what it is, and as each format there is: Plinth's own, and firmware's, among them.
pub fn any(input: &[u8]) {
    with_machine(input, image::tests::check);
}

/// Inputs to begin with: Plinth's own executables.
pub fn any_seeds() -> Vec<Vec<u8>> {
    use executable::tests::{Segment, elf};
    let file = |entry, data| {
        elf(
            entry,
            &[
                Segment::load(0x8000, b"code", 0x1000),
                Segment::load(data, b"data", 8),
            ],
        )
    };
    inputs(&[
        file(0x8000, 0x9000),
        file(0xffff_fff0, 0xffff_fff0),
        vec![0; 4096],
    ])
}
