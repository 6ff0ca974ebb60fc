use proptest::prelude::*;

use super::*;
use crate::testing::{Elf, GIB, MIB, Memory, Segment, machines};
use crate::{LEGACY, Module, ram_ranges};

fn executable(entry: u64) -> Vec<u8> {
    Elf {
        wide: true,
        entry,
        segments: vec![Segment::load(0x8000, b"code", 0x1000)],
        sections: vec![],
    }
    .bytes()
}

fn why(result: Result<Image<'_>, ImageError>) -> ImageError {
    result.map(|image| image.format()).unwrap_err()
}

#[test]
fn what_is_nothing_is_said_to_be_nothing() {
    for bytes in [&b""[..], b"MZ", &[0; 8192]] {
        assert_eq!(why(Image::detect(bytes)), ImageError::UnknownFormat);
    }
    for start in COMPRESSED {
        let mut file = start.to_vec();
        file.resize(4096, 7);
        assert_eq!(why(Image::detect(&file)), ImageError::Compressed);
    }
    // Half an ELF file is one that is damaged.
    assert_eq!(why(Image::detect(b"\x7fELF")), ImageError::NotElf);
}

#[test]
fn plinths_own_format_goes_its_old_way() {
    let file = executable(0x8000);
    let image = Image::detect(&file).unwrap();
    assert_eq!((image.format(), image.firmware()), (Format::Plinth, None));
    let machine = Machine {
        ram: &[0..16 * MIB],
        command_line: "of no concern here",
        ..Machine::default()
    };
    let mut memory = Memory::of(&machine);
    let state = image
        .load(&machine, &mut |at, bytes| memory.write(at, bytes))
        .unwrap();
    let expected = Executable::parse(&file)
        .unwrap()
        .load(16 * MIB, &mut |_, _| true)
        .unwrap();
    assert_eq!(state, expected);
    assert_eq!(memory.read(0x8000, 5), b"code\0");
    let load = |machine: &Machine<'_>| image.load(machine, &mut |_, _| true).unwrap_err();
    assert_eq!(load(&Machine::default()), ImageError::TooLittleRam);
    let large = ram_ranges(2 * GIB);
    assert_eq!(
        load(&Machine {
            ram: &large,
            ..Machine::default()
        }),
        ImageError::TooMuchRam
    );
    assert_eq!(
        load(&Machine {
            initrd: Some(b""),
            ..machine.clone()
        }),
        ImageError::NoInitrd
    );
    assert_eq!(
        load(&Machine {
            modules: &[Module {
                bytes: b"",
                command_line: ""
            }],
            ..machine
        }),
        ImageError::NoModules
    );
}

#[test]
fn an_executable_at_the_reset_vector_is_firmware() {
    let file = executable(crate::executable::RESET_VECTOR);
    for image in [
        Image::detect(&file).unwrap(),
        Image::with_format(&file, Format::Firmware).unwrap(),
    ] {
        assert_eq!(image.format(), Format::Firmware);
        assert_eq!(image.firmware(), Some(FIRMWARE..FOUR_GIB));
        let machine = Machine {
            ram: &ram_ranges(GIB),
            reserved: &[LEGACY],
            ..Machine::default()
        };
        assert_eq!(image.load(&machine, &mut |_, _| true), Ok(VcpuState::RESET));
        let refused = Machine {
            command_line: "x",
            ..machine
        };
        assert_eq!(
            image.load(&refused, &mut |_, _| true),
            Err(ImageError::NoCommandLine)
        );
    }
    assert_eq!(
        why(Image::with_format(&executable(0x8000), Format::Firmware)),
        ImageError::NotFirmware
    );
}

#[test]
fn a_format_that_was_asked_for_is_not_another() {
    let file = executable(0x8000);
    for (format, error) in [
        (Format::Linux, ImageError::NotLinux),
        (Format::Pvh, ImageError::NoPvhEntry),
        (Format::Multiboot, ImageError::NotMultiboot),
    ] {
        assert_eq!(why(Image::with_format(&file, format)), error);
    }
    assert_eq!(
        why(Image::with_format(&[0; 4096], Format::Plinth)),
        ImageError::NotElf
    );
}

#[test]
fn formats_have_names() {
    for format in Format::ALL {
        assert_eq!(Format::named(format.name()), Some(format));
    }
    assert_eq!(Format::named("elf"), None);
}

#[test]
fn errors_say_how_much() {
    let needs = ImageError::NeedsRam {
        needs: 52 * MIB - 1,
        has: 33 * MIB - 1,
    };
    assert_eq!(
        needs.to_string(),
        "it needs 52 MiB of RAM, the domain has 32 MiB that it can have"
    );
    let room = ImageError::NoRoom {
        what: "the initial RAM disk",
        bytes: 300 * MIB,
        below: 2 * GIB,
    };
    assert_eq!(
        room.to_string(),
        "no room for the initial RAM disk (307200 KiB) in the domain's RAM below 2048 MiB"
    );
    assert_eq!(
        ImageError::LinuxTooOld(0x0209).to_string(),
        "the kernel's boot protocol is 2.09; 2.12 (Linux 3.8) or later is needed"
    );
    assert_eq!(ImageError::NotElf.to_string(), ImageError::NotElf.text());
}

proptest! {
    /// No bytes panic, whatever they are said to be.
    #[test]
    fn any_bytes_as_any_format(
        start in prop_oneof![
            Just(&b""[..]), Just(ELF), Just(&b"\x7fELF\x01\x01\x01"[..]), Just(&b"\x7fELF\x02\x01\x01"[..]),
        ],
        mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
        magic in 0usize..3,
        (ram, reserved) in machines(),
    ) {
        let length = start.len().min(bytes.len());
        bytes[..length].copy_from_slice(&start[..length]);
        if let (1, Some(to)) = (magic, bytes.get_mut(0x202..0x206)) {
            to.copy_from_slice(b"HdrS");
        }
        let machine = Machine { ram: &ram, reserved: &reserved, ..Machine::default() };
        check(&bytes, &machine);
    }
}

/// Loads bytes as what they are and as every format there is: nothing is written outside.
pub(crate) fn check(bytes: &[u8], machine: &Machine<'_>) {
    let images = Format::ALL
        .iter()
        .map(|format| Image::with_format(bytes, *format))
        .chain([Image::detect(bytes)]);
    for image in images.flatten() {
        // An ordinary guest takes what is reserved, too.
        let firmware = image.firmware().unwrap_or(0..0);
        let mut memory = Memory::new(&[machine.ram, &[firmware]].concat());
        let _ = image.load(machine, &mut |at, bytes| memory.write(at, bytes));
    }
}
