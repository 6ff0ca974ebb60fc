use proptest::prelude::*;

use super::*;
use crate::testing::{
    ACPI, Elf, GIB, MIB, Memory, Section, Segment, damage, error_on_pc, load, load_as, machines,
    on_pc,
};
use crate::{Format, Image, e820, ram_ranges};

/// A header with those flags and what follows.
fn header_of(flags: u32, rest: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    [0x1bad_b002, flags, checksum]
        .iter()
        .chain(rest)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A kernel at 1 MiB, with its header at the start of the first segment.
pub(crate) fn kernel(wide: bool, flags: u32) -> Elf {
    let mut code = header_of(flags, &[]);
    code.resize(0x100, 0x90);
    let mut text = Segment::load(0x10_0000, &code, 0x1800);
    text.linear = 0xc010_0000;
    Elf {
        wide,
        entry: 0xc010_0010,
        segments: vec![text, Segment::load(0x10_2000, b"data", 0x4000)],
        sections: vec![],
    }
}

fn section(kind: u32, flags: u64, bytes: &[u8], align: u64) -> Section {
    Section {
        kind,
        flags,
        bytes: bytes.to_vec(),
        align,
    }
}

/// The kernel with sections as a linker leaves them.
pub(crate) fn with_sections(wide: bool) -> Elf {
    let mut kernel = kernel(wide, 0);
    kernel.sections = vec![
        // PROGBITS that is in a segment; NOBITS; SYMTAB; STRTAB, the names.
        section(1, 2, b"code", 16),
        section(8, 3, b"", 16),
        section(2, 0, &[0x51; 0x30], 8),
        section(3, 0, b"\0.symtab\0", 1),
    ];
    kernel
}

/// An image of a format of its own, with a header at `at` that says where it goes: at 2 MiB.
pub(crate) fn by_addresses(at: usize, change: impl Fn(&mut [u32; 5])) -> Vec<u8> {
    let mut fields = [0x20_0000 + at as u32, 0x20_0000, 0, 0, 0x20_0004];
    change(&mut fields);
    let mut file = vec![0xcc; at];
    file.extend(header_of(1 << 16, &fields));
    file.resize(0x3000, 0xdd);
    file
}

#[test]
fn it_starts_in_protected_mode_with_magic_and_information() {
    for wide in [false, true] {
        let file = kernel(wide, 3).bytes();
        let image = Image::detect(&file).unwrap();
        assert_eq!(
            (image.format(), image.firmware()),
            (Format::Multiboot, None)
        );
        let (state, memory) = on_pc(&file, 64 * MIB).unwrap();
        // The entry is a linear address; the kernel is where p_paddr says.
        let mut expected = VcpuState::protected_mode(0x10_0010);
        expected.rax = 0x2bad_b002;
        expected.rbx = state.rbx;
        assert_eq!(state, expected);
        assert_eq!(memory.read(0x10_00ff, 2), [0x90, 0]);
        assert_eq!(memory.read(0x10_2000, 5), b"data\0");
        // An entry that is the physical address already.
        let mut elf = kernel(wide, 3);
        elf.entry = 0x10_0020;
        assert_eq!(on_pc(&elf.bytes(), 64 * MIB).unwrap().0.rip, 0x10_0020);
        elf.entry = 0x1000;
        assert_eq!(
            error_on_pc(&elf.bytes(), 64 * MIB),
            ImageError::EntryOutside(0x1000)
        );
    }
    // So far from a segment's linear address that the sum with the physical one has more than 64 bits.
    let mut elf = kernel(true, 3);
    elf.segments[0].physical = 0xffff_ffff_0000_0000;
    elf.entry = elf.segments[0].linear + (1 << 32);
    assert_eq!(
        error_on_pc(&elf.bytes(), 64 * MIB),
        ImageError::EntryOutside(elf.entry)
    );
}

/// Checks the information structure, which is all there whatever the header asks for.
fn check_information(file: &[u8], machine: &Machine<'_>) -> (u64, Memory) {
    let (state, memory) = load(file, machine).unwrap();
    let info = state.rbx;
    let field = |at: u64| memory.u32(info + at);
    assert_eq!(field(0) & !(1 << 5), 0b10_1100_1101, "flags");
    assert_eq!(field(12), u32::MAX, "boot_device");
    assert_eq!(memory.text(field(16)), machine.command_line);
    assert_eq!(memory.text(field(64)), "Plinth");
    // Modules, the initial RAM disk first.
    let initrd = machine.initrd.map(|bytes| (bytes, ""));
    let modules = machine
        .modules
        .iter()
        .map(|module| (module.bytes, module.command_line));
    let all: Vec<_> = initrd.into_iter().chain(modules).collect();
    assert_eq!(field(20) as usize, all.len());
    assert_ne!(field(24), 0);
    let entries = (u64::from(field(24))..).step_by(16);
    for (entry, (bytes, text)) in entries.zip(all) {
        let (start, end) = (memory.u32(entry), memory.u32(entry + 4));
        assert_eq!(start % 4096, 0);
        assert!(start >= 0x10_6000, "behind the kernel");
        assert_eq!((end - start) as usize, bytes.len());
        assert_eq!(memory.read(start.into(), bytes.len() as u64), bytes);
        assert_eq!(memory.text(memory.u32(entry + 8)), text);
        assert_eq!(memory.u32(entry + 12), 0);
    }
    // The memory map.
    let map = e820(machine);
    assert_eq!(field(44) as usize, 24 * map.len());
    for (entry, region) in (u64::from(field(48))..).step_by(24).zip(map) {
        assert_eq!(memory.u32(entry), 20, "without itself");
        assert_eq!(memory.u64(entry + 4), region.start);
        assert_eq!(memory.u64(entry + 12), region.end - region.start);
        assert_eq!(memory.u32(entry + 20), region.kind.0);
    }
    assert_eq!(field(52), 0, "drives_length");
    assert_ne!(field(56), 0, "drives_addr");
    assert_eq!(field(60), 0, "config_table");
    // APM, VBE, framebuffer.
    assert_eq!(memory.read(info + 68, 48), [0; 48]);
    (info, memory)
}

#[test]
fn all_of_the_information_is_there() {
    let modules = [
        Module {
            bytes: &[7; 5000],
            command_line: "module one",
        },
        Module {
            bytes: b"",
            command_line: "",
        },
        Module {
            bytes: b"last",
            command_line: "three",
        },
    ];
    let full = Machine {
        ram: &ram_ranges(5 * GIB),
        reserved: &[LEGACY, ACPI],
        rsdp: Some(0xe_0000),
        command_line: "kernel arguments",
        initrd: Some(b"disk"),
        modules: &modules,
    };
    let empty = Machine {
        ram: &ram_ranges(16 * MIB),
        reserved: &[LEGACY],
        ..Machine::default()
    };
    for flags in [0, 1, 2, 3, 1 << 17] {
        let file = kernel(false, flags).bytes();
        let (info, memory) = check_information(&file, &full);
        // Up to video memory; from 1 MiB to ACPI's tables.
        assert_eq!(memory.u32(info + 4), 640, "mem_lower");
        assert_eq!(memory.u32(info + 8), (GIB - 3 * MIB) as u32 >> 10);
        // No sections: no symbols.
        assert_eq!(memory.read(info + 28, 16), [0; 16]);
        let (info, memory) = check_information(&file, &empty);
        assert_eq!(memory.u32(info + 4), 640);
        assert_eq!(memory.u32(info + 8), 15 << 10);
    }
}

#[test]
fn lower_and_upper_memory_are_counted_up_to_a_hole() {
    let counted = |ram: &[core::ops::Range<u64>]| {
        let machine = Machine {
            ram,
            ..Machine::default()
        };
        let (lower, upper) = memory(&e820(&machine));
        (lower.get(), upper.get())
    };
    assert_eq!(counted(&[]), (0, 0));
    assert_eq!(counted(&[0..64 << 10]), (64, 0));
    assert_eq!(counted(&[0x1000..16 * MIB]), (0, 15 << 10));
    assert_eq!(
        counted(&[0..0x9_fc00, MIB..2 * MIB, 3 * MIB..8 * MIB]),
        (639, 1 << 10)
    );
}

#[test]
fn sections_are_loaded_and_their_headers_say_where() {
    for wide in [false, true] {
        let file = with_sections(wide).bytes();
        let machine = Machine {
            ram: &ram_ranges(64 * MIB),
            reserved: &[LEGACY],
            initrd: Some(&[1; 5000]),
            ..Machine::default()
        };
        let (info, memory) = check_information(&file, &machine);
        assert_ne!(memory.u32(info) & 1 << 5, 0);
        let size = if wide { 64 } else { 40 };
        assert_eq!(memory.u32(info + 28), 5, "num");
        assert_eq!(memory.u32(info + 32), size, "size");
        assert_eq!(memory.u32(info + 40), 4, "shndx");
        let table = u64::from(memory.u32(info + 36));
        let address = |index: u64| {
            let header = table + index * u64::from(size);
            if wide {
                memory.u64(header + 16)
            } else {
                memory.u32(header + 12).into()
            }
        };
        assert_eq!([address(0), address(1), address(2)], [0; 3]);
        assert_eq!(memory.read(address(3), 0x30), [0x51; 0x30]);
        assert_eq!(memory.read(address(4), 9), b"\0.symtab\0");
        // All but the addresses is as in the file.
        let length = 5 * size as usize;
        let mut headers = memory.read(table, length as u64);
        for index in [3, 4] {
            let at = index * size as usize + if wide { 16 } else { 12 };
            headers[at..at + if wide { 8 } else { 4 }].fill(0);
        }
        assert_eq!(headers, file[file.len() - length..]);
    }
}

#[test]
fn sections_that_are_not_there_are_an_error() {
    let mut elf = with_sections(false);
    elf.sections[2].align = u64::MAX;
    assert!(on_pc(&elf.bytes(), 16 * MIB).is_ok());
    let mut file = with_sections(false).bytes();
    // The size of the third; it is in the headers, which are the end.
    let at = file.len() - 2 * 40 + 20;
    file[at..at + 4].copy_from_slice(&0xffffu32.to_le_bytes());
    assert_eq!(error_on_pc(&file, 16 * MIB), ImageError::SectionTruncated);
    let mut large = with_sections(false);
    large.sections[2].bytes = vec![1; 3 * MIB as usize];
    assert_eq!(
        error_on_pc(&large.bytes(), 3 * MIB),
        ImageError::NoRoom {
            what: "the symbols",
            bytes: 3 * MIB + 9,
            below: 4 * GIB
        }
    );
}

#[test]
fn the_header_is_aligned_whole_and_in_the_first_8_kib() {
    let format = |at: usize| {
        let mut file = vec![0; at];
        file.extend(header_of(0, &[]));
        file.resize(16384, 0);
        Image::with_format(&file, Format::Multiboot)
            .map(|image| image.format())
            .unwrap_err()
    };
    // Found, but there is nothing that says what to load.
    for at in [0, 4, 4096, 8180] {
        assert_eq!(format(at), ImageError::NotElf);
    }
    for at in [1, 2, 8178, 8184, 8192] {
        assert_eq!(format(at), ImageError::NotMultiboot);
    }
    // A wrong sum is no header; the next may be one.
    let mut file = header_of(0, &[]);
    file[8] ^= 1;
    assert!(!is_multiboot(&file));
    file.extend(header_of(0, &[]));
    assert!(is_multiboot(&file));
    assert!(!is_multiboot(&header_of(0, &[])[..11]));
}

#[test]
fn requirements_that_are_not_known_are_refused_and_wishes_are_not() {
    let error = |flags: u32| error_on_pc(&kernel(false, flags).bytes(), 16 * MIB);
    assert_eq!(error(1 << 2), ImageError::MultibootVideo);
    for bit in 3..16 {
        assert_eq!(error(1 << bit | 3), ImageError::MultibootFlags(1 << bit));
    }
    for bit in 17..32 {
        let file = kernel(false, 1 << bit).bytes();
        assert!(on_pc(&file, 16 * MIB).is_ok(), "bit {bit}");
    }
}

#[test]
fn the_header_may_say_where_the_image_goes() {
    for at in [0, 0x1000, 8192 - 32] {
        let file = by_addresses(at, |_| ());
        assert_eq!(Image::detect(&file).unwrap().format(), Format::Multiboot);
        let (state, memory) = on_pc(&file, 16 * MIB).unwrap();
        assert_eq!(state.rip, 0x20_0004);
        assert_eq!(memory.read(0x20_0000, 0x3001), [&file[..], &[0]].concat());
    }
    // From the middle of the file, up to an end, and with a BSS.
    let file = by_addresses(0x1000, |fields| {
        fields[1] += 0x800;
        fields[2] = 0x20_1800;
        fields[3] = 0x28_0000;
        fields[4] = 0x20_1000;
    });
    let machine = Machine {
        ram: &ram_ranges(16 * MIB),
        reserved: &[LEGACY],
        initrd: Some(b"disk"),
        ..Machine::default()
    };
    let (state, memory) = load(&file, &machine).unwrap();
    assert_eq!(memory.read(0x20_0800, 0x1000), file[0x800..0x1800]);
    let inside: Vec<_> = memory.written(0x20_0000..0x28_0000).collect();
    assert_eq!(inside, [0x20_0800]);
    let modules = memory.u32(state.rbx + 24);
    assert_eq!(memory.u32(modules.into()), 0x28_0000);
    assert_eq!(memory.u32(state.rbx) & 1 << 5, 0, "no sections");
}

#[test]
fn addresses_that_contradict_each_other_are_refused() {
    type Change<'a> = &'a dyn Fn(&mut [u32; 5]);
    let error = |at: usize, change: Change<'_>| error_on_pc(&by_addresses(at, change), 16 * MIB);
    let changes: [Change<'_>; 5] = [
        &|fields| fields[0] = fields[1] - 1,
        &|fields| fields[0] += 1,
        &|fields| fields[2] = fields[1] - 1,
        &|fields| fields[2] = fields[1] + 0x3001,
        &|fields| fields[3] = fields[1] + 0x2fff,
    ];
    for change in changes {
        assert!(matches!(
            error(0x1000, change),
            ImageError::MultibootAddresses(_)
        ));
    }
    // Fields that are not all in the first 8 KiB.
    let cut_off = error(8192 - 28, &|_| ());
    assert_eq!(cut_off, ImageError::MultibootAddresses("they are cut off"));
    assert_eq!(
        error(0, &|fields| fields[4] = 0x20_3000),
        ImageError::EntryOutside(0x20_3000)
    );
    assert_eq!(
        error(0, &|fields| fields[3] = 0x200_0000),
        ImageError::NeedsRam {
            needs: 32 * MIB,
            has: 16 * MIB
        }
    );
}

proptest! {
    #[test]
    fn damaged_kernels_stay_inside(
        kind in 0usize..4,
        damage in damage(),
        (ram, reserved) in machines(),
    ) {
        let file = match kind {
            0 => kernel(false, 3).bytes(),
            1 => with_sections(false).bytes(),
            2 => with_sections(true).bytes(),
            _ => by_addresses(0x40, |fields| fields[3] = 0x30_0000),
        };
        let file = damage.of(file);
        let modules = [Module { bytes: b"module", command_line: "line" }; 3];
        let machine = Machine {
            ram: &ram,
            reserved: &reserved,
            command_line: "a b c",
            modules: &modules,
            ..Machine::default()
        };
        check(&file, &machine);
    }

    /// Whatever the addresses are, nothing lies in the kernel's memory but the kernel.
    #[test]
    fn any_addresses_stay_inside(
        fields in prop::array::uniform5(prop_oneof![
            any::<u32>(), 0x20_0000u32..0x20_4000, 0x20_0000u32..0x200_0000, Just(0),
        ]),
        (ram, reserved) in machines(),
        initrd in 0usize..100_000,
    ) {
        let file = by_addresses(0x100, |to| {
            // The entry, the header and the start fit most of the time: else nothing is ever loaded.
            for (to, from) in to.iter_mut().zip(fields) {
                if from % 4 != 0 {
                    *to = from;
                }
            }
        });
        let initrd = vec![1; initrd];
        let machine = Machine {
            ram: &ram,
            reserved: &reserved,
            initrd: Some(&initrd),
            ..Machine::default()
        };
        check(&file, &machine);
    }
}

/// Loads a kernel; if that works, nothing lies in its first part but itself.
pub(crate) fn check(file: &[u8], machine: &Machine<'_>) {
    let _ = Image::detect(file);
    if let Ok((_, memory)) = load_as(Format::Multiboot, file, machine) {
        let image = Multiboot::parse(file).unwrap();
        let kernel = &image.loads[0];
        let inside: Vec<_> = memory.written(kernel.start..kernel.end).collect();
        assert!(inside.is_empty() || inside == vec![kernel.start]);
    }
}
