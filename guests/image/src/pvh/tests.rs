use proptest::prelude::*;

use super::*;
use crate::testing::{
    ACPI, Elf, GIB, MIB, Segment, damage, error_on_pc, load, load_as, machines, on_pc,
};
use crate::{Format, Image, LEGACY, e820, ram_ranges};

const ENTRY: u32 = 0x20_0010;

pub(crate) fn kernel(wide: bool) -> Elf {
    let entry = if wide {
        u64::from(ENTRY).to_le_bytes().to_vec()
    } else {
        ENTRY.to_le_bytes().to_vec()
    };
    Elf {
        wide,
        // The entry of the other kind, which is no physical address.
        entry: 0xffff_8000_dead_0000,
        segments: vec![
            Segment::load(0x20_0000, &[0x90; 0x100], 0x1800),
            Segment::load(0x20_2000, b"data", 0x4000),
            Segment::notes(
                4,
                &[
                    (b"GNU\0", 3, &[1; 20]),
                    (b"Xen\0", 6, b"Plinth\0"),
                    (b"Xen\0", 18, &entry),
                ],
            ),
        ],
        sections: vec![],
    }
}

/// The kernel with another segment of notes.
fn noted(notes: Segment) -> Vec<u8> {
    let mut kernel = kernel(true);
    kernel.segments[2] = notes;
    kernel.bytes()
}

fn noted_entry(entry: &[u8]) -> Vec<u8> {
    noted(Segment::notes(4, &[(b"Xen\0", 18, entry)]))
}

#[test]
fn it_starts_in_protected_mode_with_the_start_information_in_ebx() {
    for wide in [false, true] {
        let file = kernel(wide).bytes();
        let image = Image::detect(&file).unwrap();
        assert_eq!((image.format(), image.firmware()), (Format::Pvh, None));
        let (state, memory) = on_pc(&file, 64 * MIB).unwrap();
        let mut expected = VcpuState::protected_mode(ENTRY);
        expected.rbx = state.rbx;
        assert_eq!(state, expected);
        assert_ne!(state.rbx, 0);
        assert_eq!(memory.read(0x20_0000, 0x101)[0xff..], [0x90, 0]);
        assert_eq!(memory.read(0x20_2000, 5), b"data\0");
    }
}

#[test]
fn the_start_information_is_of_version_1() {
    let modules = [
        Module {
            bytes: b"first module",
            command_line: "first with=arguments",
        },
        Module {
            bytes: b"",
            command_line: "",
        },
    ];
    let machine = Machine {
        ram: &ram_ranges(5 * GIB),
        reserved: &[LEGACY, ACPI],
        rsdp: Some(ACPI.start + 0x10),
        command_line: "console=ttyS0",
        initrd: Some(&[0xcd; 9000]),
        modules: &modules,
    };
    let (state, memory) = load(&kernel(true).bytes(), &machine).unwrap();
    let info = state.rbx;
    assert_eq!(memory.u32(info), 0x336e_c578);
    assert_eq!(memory.u32(info + 4), 1, "version");
    assert_eq!(memory.u32(info + 8), 0, "flags");
    assert_eq!(memory.u32(info + 12), 3, "nr_modules");
    assert_eq!(memory.text(memory.u64(info + 24)), "console=ttyS0");
    assert_eq!(memory.u64(info + 32), ACPI.start + 0x10, "rsdp_paddr");
    assert_eq!(memory.u32(info + 52), 0, "reserved");
    // Modules: the initial RAM disk is the first. All are page-aligned, behind the kernel.
    let list = memory.u64(info + 16);
    let expected = [
        (vec![0xcd; 9000], ""),
        (b"first module".to_vec(), "first with=arguments"),
        (vec![], ""),
    ];
    let mut last = 0x20_6000;
    for (entry, (bytes, text)) in (list..).step_by(32).zip(expected) {
        let at = memory.u64(entry);
        assert_eq!(at % 4096, 0);
        assert!(at >= last);
        last = at + 1;
        assert_eq!(memory.u64(entry + 8), bytes.len() as u64);
        assert_eq!(memory.read(at, bytes.len() as u64), bytes);
        assert_eq!(memory.text(memory.u64(entry + 16)), text);
        assert_eq!(memory.u64(entry + 24), 0);
    }
    // The memory map.
    let map = e820(&machine);
    assert_eq!(memory.u32(info + 48) as usize, map.len());
    for (entry, region) in (memory.u64(info + 40)..).step_by(24).zip(map) {
        assert_eq!(memory.u64(entry), region.start);
        assert_eq!(memory.u64(entry + 8), region.end - region.start);
        assert_eq!(memory.u32(entry + 16), region.kind.0);
        assert_eq!(memory.u32(entry + 20), 0);
    }
}

#[test]
fn what_is_not_there_has_address_0() {
    let (state, memory) = on_pc(&kernel(true).bytes(), 64 * MIB).unwrap();
    assert_eq!(memory.u32(state.rbx + 12), 0);
    assert_eq!(memory.u64(state.rbx + 16), 0, "modlist_paddr");
    assert_eq!(memory.u64(state.rbx + 32), 0, "rsdp_paddr");
    // A command line is there, and empty.
    assert_eq!(memory.text(memory.u64(state.rbx + 24)), "");
    assert_ne!(memory.u64(state.rbx + 24), 0);
}

#[test]
fn the_note_is_found_by_name_and_type() {
    let entry = ENTRY.to_le_bytes();
    let format = |file: &[u8]| Image::detect(file).unwrap().format();
    for align in [0, 1, 4, 8] {
        let notes = Segment::notes(align, &[(b"Other\0", 18, b"12345"), (b"Xen\0", 18, &entry)]);
        let file = noted(notes);
        assert_eq!(format(&file), Format::Pvh, "aligned by {align}");
        assert_eq!(on_pc(&file, 64 * MIB).unwrap().0.rip, ENTRY.into());
    }
    for notes in [
        Segment::notes(4, &[]),
        Segment::notes(4, &[(b"Xen\0", 1, &entry)]),
        Segment::notes(4, &[(b"Xem\0", 18, &entry)]),
    ] {
        assert_eq!(format(&noted(notes)), Format::Plinth);
    }
}

#[test]
fn the_entry_is_in_what_is_loaded() {
    let error = |file: &[u8]| error_on_pc(file, 64 * MIB);
    for bytes in [&b""[..], b"123", b"12345", &u64::MAX.to_le_bytes()] {
        assert_eq!(error(&noted_entry(bytes)), ImageError::BadPvhEntry);
    }
    for entry in [0u32, 0x1f_ffff, 0x20_1800, 0x20_6000, u32::MAX] {
        assert_eq!(
            error(&noted_entry(&entry.to_le_bytes())),
            ImageError::EntryOutside(entry.into())
        );
    }
}

#[test]
fn segments_lie_in_ram_and_apart() {
    let second = |segment: Segment| {
        let mut kernel = kernel(true);
        kernel.segments[1] = segment;
        error_on_pc(&kernel.bytes(), 64 * MIB)
    };
    assert_eq!(
        second(Segment::load(60 * MIB, b"data", 5 * MIB)),
        ImageError::NeedsRam {
            needs: 65 * MIB,
            has: 64 * MIB
        }
    );
    // Video memory, and where no RAM can be.
    for (start, end) in [(0x9_f000, 0xa_1000), (4 * GIB - 1, 4 * GIB + 1)] {
        assert_eq!(
            second(Segment::load(start, b"", end - start)),
            ImageError::NotInRam { start, end }
        );
    }
    assert_eq!(
        second(Segment::load(u64::MAX - 1, b"", 16)),
        ImageError::SegmentWraps
    );
    for start in [0x1f_f001, 0x20_0000, 0x20_17ff] {
        assert_eq!(
            second(Segment::load(start, b"", 0x1000)),
            ImageError::SegmentsOverlap
        );
    }
    assert_eq!(
        second(Segment::load(MIB, b"data", 3)),
        ImageError::SegmentOverflows
    );
    let mut none = kernel(true);
    none.segments.drain(..2);
    assert_eq!(error_on_pc(&none.bytes(), 64 * MIB), ImageError::NoSegments);
    let mut many = kernel(true);
    many.segments
        .extend((0..300).map(|index| Segment::load(MIB + index, b"", 1)));
    assert_eq!(
        error_on_pc(&many.bytes(), 64 * MIB),
        ImageError::TooManySegments
    );
    let file = kernel(true).bytes();
    assert_eq!(
        Image::with_format(&file[..file.len() - 200], Format::Pvh).map(|image| image.format()),
        Err(ImageError::NoPvhEntry)
    );
    let mut arm = file;
    arm[18] = 40;
    assert_eq!(
        Image::with_format(&arm, Format::Pvh).map(|image| image.format()),
        Err(ImageError::WrongCpu)
    );
}

#[test]
fn modules_have_room_or_the_user_is_told() {
    let ram = [0..32 * MIB];
    let file = vec![7; 31 * MIB as usize];
    let machine = Machine {
        ram: &ram,
        reserved: &[LEGACY],
        initrd: Some(&file),
        ..Machine::default()
    };
    assert_eq!(
        load(&kernel(true).bytes(), &machine).map(|(state, _)| state),
        Err(ImageError::NoRoom {
            what: "the initial RAM disk",
            bytes: 31 * MIB,
            below: 4 * GIB
        })
    );
    // Behind the kernel there is none, but there is.
    let mut high = kernel(true);
    let entry = 0x180_0010u32.to_le_bytes();
    high.segments = vec![
        Segment::load(24 * MIB, b"", 8 * MIB),
        Segment::notes(4, &[(b"Xen\0", 18, &entry)]),
    ];
    let machine = Machine {
        initrd: Some(&file[..20 * MIB as usize]),
        ..machine
    };
    let (state, memory) = load(&high.bytes(), &machine).unwrap();
    assert_eq!(memory.u64(memory.u64(state.rbx + 16)), MIB);
    // A zero byte would hide the rest of the line.
    let machine = Machine {
        command_line: "a\0b",
        ..machine
    };
    assert_eq!(
        load(&high.bytes(), &machine).map(|(state, _)| state),
        Err(ImageError::CommandLineZero)
    );
}

proptest! {
    #[test]
    fn damaged_kernels_stay_inside(
        wide: bool,
        damage in damage(),
        (ram, reserved) in machines(),
    ) {
        let machine = Machine {
            ram: &ram,
            reserved: &reserved,
            command_line: "a b c",
            initrd: Some(b"initrd"),
            ..Machine::default()
        };
        let file = damage.of(kernel(wide).bytes());
        check(&file, &machine);
    }

    /// Nothing lies in the kernel's memory that it expects to be zero.
    #[test]
    fn all_of_a_segment_is_its_own(
        places in prop::collection::vec((0..64 * MIB, 1..8 * MIB), 1..5),
        initrd in 0usize..100_000,
        (ram, reserved) in machines(),
    ) {
        let mut kernel = kernel(true);
        kernel.segments = places
            .iter()
            .map(|&(start, memory)| Segment::load(start, b"x", memory))
            .chain([Segment::notes(4, &[(b"Xen\0", 18, &(places[0].0 as u32).to_le_bytes())])])
            .collect();
        let initrd = vec![1; initrd];
        let machine = Machine {
            ram: &ram,
            reserved: &reserved,
            initrd: Some(&initrd),
            ..Machine::default()
        };
        if let Ok((_, memory)) = load_as(Format::Pvh, &kernel.bytes(), &machine) {
            for (start, size) in places {
                let inside: Vec<_> = memory.written(start..start + size).collect();
                prop_assert_eq!(inside, vec![start]);
            }
        }
    }
}

/// Loads a kernel; the memory that it is loaded into panics at a write outside, or a second one at the same place.
pub(crate) fn check(file: &[u8], machine: &Machine<'_>) {
    let _ = load_as(Format::Pvh, file, machine);
    let _ = Image::detect(file);
}
