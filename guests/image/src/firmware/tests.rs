use proptest::prelude::*;

use super::*;
use crate::testing::{GIB, MIB, Memory, machines};
use crate::{Format, Image, LEGACY, Module, ram_ranges};

/// An image whose pages are numbered from its end.
fn raw(size: u64) -> Vec<u8> {
    (0..size).map(|at| ((size - 1 - at) / PAGE) as u8).collect()
}

fn load(bytes: &[u8], machine: &Machine<'_>) -> Result<(VcpuState, Memory), ImageError> {
    let image = Image::with_format(bytes, Format::Firmware)?;
    let mut memory = Memory::new(&[machine.ram, &[image.firmware().unwrap()]].concat());
    let state = image.load(machine, &mut |at, bytes| memory.write(at, bytes))?;
    Ok((state, memory))
}

fn error(bytes: &[u8], machine: &Machine<'_>) -> ImageError {
    load(bytes, machine).map(|(state, _)| state).unwrap_err()
}

#[test]
fn a_raw_image_ends_at_4_gib_and_its_last_part_at_1_mib() {
    let ram = ram_ranges(GIB);
    let machine = Machine {
        ram: &ram,
        reserved: &[LEGACY],
        ..Machine::default()
    };
    for size in [PAGE, 64 << 10, 128 << 10, 132 << 10, 4 * MIB, 16 * MIB] {
        let bytes = raw(size);
        let (state, memory) = load(&bytes, &machine).unwrap();
        assert_eq!(state, VcpuState::RESET);
        let mirrored = size.min(128 << 10);
        let mut pieces = memory.pieces.clone();
        pieces.sort();
        assert_eq!(pieces[0].0, MIB - mirrored);
        assert_eq!(pieces[0].1, bytes[(size - mirrored) as usize..]);
        assert_eq!(pieces[1], (FOUR_GIB - size, bytes));
        assert_eq!(pieces.len(), 2);
    }
}

#[test]
fn it_is_known_only_by_name() {
    let bytes = raw(2 * MIB);
    assert_eq!(
        Image::detect(&bytes).map(|image| image.format()),
        Err(ImageError::UnknownFormat)
    );
    let image = Image::with_format(&bytes, Format::Firmware).unwrap();
    assert_eq!(image.format(), Format::Firmware);
    assert_eq!(image.firmware(), Some(FOUR_GIB - 2 * MIB..FOUR_GIB));
}

#[test]
fn its_size_is_that_of_a_flash_memory() {
    for size in [0, 1, PAGE - 1, PAGE + 1, 16 * MIB + PAGE] {
        let error = Image::with_format(&raw(size), Format::Firmware)
            .map(|image| image.format())
            .unwrap_err();
        assert_eq!(error, ImageError::FirmwareSize(size));
        assert!(error.to_string().contains(&size.to_string()));
    }
}

#[test]
fn it_needs_memory_below_1_mib_and_none_where_it_is() {
    let bytes = raw(MIB);
    let on = |ram: &[Range<u64>]| {
        error(
            &bytes,
            &Machine {
                ram,
                ..Machine::default()
            },
        )
    };
    let no_mirror = ImageError::NotInRam {
        start: 0xe_0000,
        end: 0x10_0000,
    };
    assert_eq!(on(&[]), no_mirror);
    assert_eq!(on(&[0..0xa_0000, MIB..GIB]), no_mirror);
    assert_eq!(on(&[0..FOUR_GIB - MIB + PAGE]), ImageError::FirmwareInRam);
}

#[test]
fn it_takes_nothing_else() {
    let bytes = raw(MIB);
    let ram = ram_ranges(GIB);
    let machine = Machine {
        ram: &ram,
        ..Machine::default()
    };
    let with_line = Machine {
        command_line: "quiet",
        ..machine.clone()
    };
    assert_eq!(error(&bytes, &with_line), ImageError::NoCommandLine);
    let with_initrd = Machine {
        initrd: Some(b"cpio"),
        ..machine.clone()
    };
    assert_eq!(error(&bytes, &with_initrd), ImageError::NoInitrd);
    let with_module = Machine {
        modules: &[Module {
            bytes: b"",
            command_line: "",
        }],
        ..machine
    };
    assert_eq!(error(&bytes, &with_module), ImageError::NoModules);
}

proptest! {
    #[test]
    fn nothing_is_written_elsewhere(pages in 0u64..64, (ram, reserved) in machines()) {
        let machine = Machine { ram: &ram, reserved: &reserved, ..Machine::default() };
        let _ = load(&raw(pages * PAGE), &machine);
    }
}
