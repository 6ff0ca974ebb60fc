use proptest::prelude::*;

use super::*;
use crate::testing::{ACPI, GIB, MIB, Memory, damage, error_on_pc, load, load_as, machines, on_pc};
use crate::{Format, Image, LEGACY, Module, Region, e820, ram_ranges};

/// Offsets in the file, as boot.rst has them, and of the zero page.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const VID_MODE: usize = 0x1fa;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const MIN_ALIGNMENT: usize = 0x235;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const SETUP_DATA: usize = 0x250;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const KERNEL_INFO: usize = 0x268;

const PREFERRED: u64 = 16 * MIB;
const SIZE: u64 = 20 * MIB;
/// What is loaded: numbered by its pages.
const CODE: u64 = 0x5000;

/// A kernel as a distribution builds it, with little in it.
pub(crate) fn kernel() -> Vec<u8> {
    kernel_behind(3)
}

fn kernel_behind(sectors: u8) -> Vec<u8> {
    let mut file = b"MZ".to_vec();
    // The sentinel and all else that is no part of the header must not be handed over.
    file.resize(HEADER, 0xee);
    file.resize(0x26c, 0);
    file.resize(512 * (usize::from(sectors) + 1), 0xee);
    file.extend((0..CODE).map(|at| 1 + (at / 0x1000) as u8));
    let mut kernel = file;
    kernel[SETUP_SECTS] = sectors;
    put(&mut kernel, SYSSIZE, &(CODE as u32 / 16).to_le_bytes());
    kernel[0x1fe..0x202].copy_from_slice(&[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut kernel, 0x202, b"HdrS");
    put(&mut kernel, VERSION, &0x020fu16.to_le_bytes());
    kernel[LOADFLAGS] = 1;
    put(&mut kernel, CODE32_START, &0x10_0000u32.to_le_bytes());
    put(&mut kernel, INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(&mut kernel, KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    kernel[RELOCATABLE] = 1;
    kernel[MIN_ALIGNMENT] = 21;
    put(&mut kernel, XLOADFLAGS, &0x7fu16.to_le_bytes());
    put(&mut kernel, CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(&mut kernel, PAYLOAD_OFFSET, &0x1234u32.to_le_bytes());
    put(&mut kernel, PREF_ADDRESS, &PREFERRED.to_le_bytes());
    put(&mut kernel, INIT_SIZE, &(SIZE as u32).to_le_bytes());
    put(&mut kernel, KERNEL_INFO, &0x4321u32.to_le_bytes());
    kernel
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The kernel with another value in a field.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = kernel();
    put(&mut file, at, bytes);
    file
}

/// Where the kernel was loaded: 200h bytes before its entry.
fn base(state: &VcpuState) -> u64 {
    state.rip - 0x200
}

#[test]
fn it_starts_in_long_mode_with_the_zero_page_in_rsi() {
    let file = kernel();
    let image = Image::detect(&file).unwrap();
    assert_eq!((image.format(), image.firmware()), (Format::Linux, None));
    let (state, memory) = on_pc(&file, GIB).unwrap();
    assert_eq!(base(&state), PREFERRED);
    assert_eq!(
        memory.read(PREFERRED, CODE),
        file[4 * 512..],
        "nothing of the real-mode part"
    );
    assert_eq!((state.cs.selector, state.cs.attributes), (0x10, 0xa9b));
    for segment in [state.ds, state.es, state.ss] {
        assert_eq!((segment.selector, segment.attributes), (0x18, 0xc93));
        assert_eq!((segment.base, segment.limit), (0, u32::MAX));
    }
    assert_eq!(state.rflags, 2, "interrupts are off");
    assert_eq!(state.cr0 & 0x8000_0001, 0x8000_0001, "PG and PE");
    assert_eq!(state.cr4 & 0x20, 0x20, "PAE");
    assert_eq!(state.efer & 0x500, 0x500, "LMA and LME");
    assert_eq!(state.rsi % 4096, 0);
    assert_eq!([state.rdi, state.rbp, state.rbx], [0; 3]);
    // The descriptors of the segments are in the GDT (SDM vol. 3 figure 3-8).
    let descriptor = |selector: u64| {
        assert!(selector + 7 <= state.gdtr.limit.into());
        memory.u64(state.gdtr.base + selector)
    };
    assert_eq!(descriptor(0), 0);
    assert_eq!(descriptor(0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(descriptor(0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn the_low_4_gib_are_mapped_to_themselves() {
    let (state, memory) = on_pc(&kernel(), GIB).unwrap();
    let table = |at: u64| {
        let entry = memory.u64(at);
        assert_eq!(entry & 0xfff, 3, "present and writable");
        entry & !0xfff
    };
    let pointers = table(state.cr3);
    assert_eq!(state.cr3 % 4096, 0);
    for gib in 0..4 {
        let directory = table(pointers + 8 * gib);
        for page in [0, 1, 255, 511] {
            let address = gib << 30 | page << 21;
            assert_eq!(memory.u64(directory + 8 * page), address | 0x83);
        }
    }
    // Nothing else.
    assert!((1..512).all(|index| memory.u64(state.cr3 + 8 * index) == 0));
    assert!((4..512).all(|index| memory.u64(pointers + 8 * index) == 0));
}

#[test]
fn the_zero_page_is_filled_in() {
    let initrd = vec![0x5a; 3 * MIB as usize + 1];
    let machine = Machine {
        ram: &ram_ranges(5 * GIB),
        reserved: &[LEGACY, ACPI],
        rsdp: Some(0xe_0000),
        command_line: "console=ttyS0 root=/dev/vda",
        initrd: Some(&initrd),
        modules: &[],
    };
    let file = kernel();
    let (state, memory) = load(&file, &machine).unwrap();
    let field = |at: usize| memory.u32(state.rsi + at as u64);
    let byte = |at: usize| memory.read(state.rsi + at as u64, 1)[0];
    // Of the file there is only the header, all of it.
    let page = memory.read(state.rsi, 4096);
    let zero = |range: core::ops::Range<usize>| page[range].iter().all(|byte| *byte == 0);
    assert!(zero(0..0x70), "screen_info, apm_bios_info, ist_info");
    assert!(zero(0x78..0x1e8));
    assert!(zero(0x1e9..0x1f1), "the sentinel too");
    assert!(zero(0x26c..0x2d0));
    assert_eq!(field(PAYLOAD_OFFSET), 0x1234);
    assert_eq!(field(KERNEL_INFO), 0x4321, "newer than what is known");
    assert_eq!(page[SETUP_SECTS], 3);
    assert_eq!(&page[0x1fe..0x208], &file[0x1fe..0x208]);
    // What a loader has to write.
    assert_eq!(memory.u64(state.rsi + 0x70), 0xe_0000, "acpi_rsdp_addr");
    assert_eq!(byte(TYPE_OF_LOADER), 0xff);
    assert_eq!(byte(LOADFLAGS), 1);
    assert_eq!(memory.u16(state.rsi + VID_MODE as u64), 0xffff);
    assert_eq!(u64::from(field(CODE32_START)), PREFERRED);
    assert_eq!(memory.u64(state.rsi + SETUP_DATA as u64), 0);
    assert_eq!(
        memory.text(field(CMD_LINE_PTR)),
        "console=ttyS0 root=/dev/vda"
    );
    assert!(field(CMD_LINE_PTR) < 0xa_0000);
    // As high as ACPI's tables allow, in whole pages.
    assert_eq!(u64::from(field(RAMDISK_SIZE)), initrd.len() as u64);
    assert_eq!(u64::from(field(RAMDISK_IMAGE)), 2 * GIB - 3 * MIB - 4096);
    assert_eq!(
        memory.read(field(RAMDISK_IMAGE).into(), initrd.len() as u64),
        initrd
    );
    // The memory map.
    let map = e820(&machine);
    assert_eq!(usize::from(byte(0x1e8)), map.len());
    for (entry, region) in (state.rsi + 0x2d0..).step_by(20).zip(map) {
        assert_eq!(memory.u64(entry), region.start);
        assert_eq!(memory.u64(entry + 8), region.end - region.start);
        assert_eq!(memory.u32(entry + 16), region.kind.0);
    }
}

#[test]
fn what_the_file_says_of_a_disk_and_more_data_is_not_believed() {
    let mut file = kernel();
    put(&mut file, RAMDISK_IMAGE, &[1; 8]);
    put(&mut file, SETUP_DATA, &[1; 8]);
    put(&mut file, CMD_LINE_PTR, &[1; 4]);
    file[LOADFLAGS] = 0xff;
    let (state, memory) = on_pc(&file, GIB).unwrap();
    assert_eq!(memory.u64(state.rsi + RAMDISK_IMAGE as u64), 0);
    assert_eq!(memory.u64(state.rsi + SETUP_DATA as u64), 0);
    // There is always a command line.
    let line = memory.u32(state.rsi + CMD_LINE_PTR as u64);
    assert_eq!(memory.text(line), "");
    assert_ne!(line, 0x0101_0101);
    assert_eq!(memory.u64(state.rsi + 0x70), 0, "no RSDP");
}

#[test]
fn no_setup_sectors_are_four() {
    let mut file = kernel_behind(4);
    file[SETUP_SECTS] = 0;
    let (_, memory) = on_pc(&file, GIB).unwrap();
    assert_eq!(memory.read(PREFERRED, CODE), file[5 * 512..]);
    // Behind the kernel there may be more, which is not loaded.
    file.extend(b"signature");
    let (_, memory) = on_pc(&file, GIB).unwrap();
    assert_eq!(memory.read(PREFERRED + CODE, 9), [0; 9]);
}

#[test]
fn kernels_that_cannot_be_started_are_told_apart() {
    let error = |at: usize, bytes: &[u8]| error_on_pc(&with(at, bytes), GIB);
    assert_eq!(
        error(VERSION, &0x020bu16.to_le_bytes()),
        ImageError::LinuxTooOld(0x020b)
    );
    assert_eq!(
        on_pc(&with(VERSION, &0x020cu16.to_le_bytes()), GIB).map(drop),
        Ok(())
    );
    assert_eq!(error(LOADFLAGS, &[0x80]), ImageError::LinuxLow);
    assert_eq!(error(XLOADFLAGS, &[0x7e]), ImageError::LinuxNot64Bit);
    assert_eq!(error(0x202, b"HdrX"), ImageError::UnknownFormat);
    for (at, bytes) in [
        (0x1fe, &[0u8][..]),
        (0x200, &[0xe9]),
        // Shorter than what version 2.12 has; longer than the zero page has room for.
        (0x201, &[0x61]),
        (0x201, &[0x8f]),
        (RELOCATABLE - 4, &[1, 0, 0x20, 0]),
        (KERNEL_ALIGNMENT, &[0, 0, 0, 0]),
        (MIN_ALIGNMENT, &[22]),
        (MIN_ALIGNMENT, &[32]),
        (PREF_ADDRESS, &[0xff; 8]),
        (SYSSIZE, &(0x200u32 / 16).to_le_bytes()),
    ] {
        assert!(
            matches!(error(at, bytes), ImageError::LinuxHeader(_)),
            "{at:#x}"
        );
    }
}

#[test]
fn a_file_that_was_cut_off_is_told() {
    let file = kernel();
    let whole = file.len() as u64;
    for length in [whole - 1, whole - CODE, 4 * 512 - 1, 0x264, 0x263, 0x206] {
        let error = error_on_pc(&file[..length as usize], GIB);
        let ImageError::LinuxTruncated { expected, found } = error else {
            panic!("{length:#x}: {error}");
        };
        assert_eq!(found, length);
        assert!(expected > found && expected <= whole);
    }
    assert_eq!(
        error_on_pc(&with(SYSSIZE, &[0xff; 4]), GIB),
        ImageError::LinuxTruncated {
            expected: 4 * 512 + 16 * u64::from(u32::MAX),
            found: whole
        }
    );
}

#[test]
fn init_size_fits_into_ram() {
    let needs = PREFERRED + SIZE;
    assert_eq!(
        error_on_pc(&kernel(), 32 * MIB),
        ImageError::NeedsRam {
            needs,
            has: 32 * MIB
        }
    );
    assert_eq!(
        error_on_pc(&kernel(), needs - 4096).to_string(),
        "it needs 36 MiB of RAM, the domain has 35 MiB that it can have"
    );
    assert_eq!(on_pc(&kernel(), needs).map(drop), Ok(()));
    // Nothing else is placed there, though nothing is written there yet.
    let (_, memory) = on_pc(&kernel(), needs).unwrap();
    let inside: Vec<_> = memory.written(PREFERRED..needs).collect();
    assert_eq!(inside, [PREFERRED]);
    // A kernel that forgot its init_size needs at least its own bytes.
    let file = with(INIT_SIZE, &[0; 4]);
    assert_eq!(on_pc(&file, PREFERRED + CODE).map(drop), Ok(()));
    assert!(on_pc(&file, PREFERRED + CODE - 4096).is_err());
}

/// A machine where something reserved lies in the kernel's preferred place.
fn obstructed(file: &[u8], start: u64, end: u64) -> Result<(VcpuState, Memory), ImageError> {
    let machine = Machine {
        ram: &ram_ranges(GIB),
        reserved: &[
            LEGACY,
            Region {
                start,
                end,
                ..LEGACY
            },
        ],
        ..Machine::default()
    };
    load(file, &machine)
}

#[test]
fn a_kernel_moves_up_only_and_by_its_alignment() {
    let (state, memory) = obstructed(&kernel(), 17 * MIB, 17 * MIB + 4096).unwrap();
    assert_eq!(base(&state), 18 * MIB);
    let field = |at: usize| u64::from(memory.u32(state.rsi + at as u64));
    assert_eq!(field(CODE32_START), 18 * MIB);
    assert_eq!(field(KERNEL_ALIGNMENT), 2 * MIB);
    // One that cannot be moved.
    let file = with(RELOCATABLE, &[0]);
    assert_eq!(
        obstructed(&file, 17 * MIB, 18 * MIB).map(|(state, _)| state),
        Err(ImageError::NotInRam {
            start: PREFERRED,
            end: PREFERRED + SIZE
        })
    );
    assert_eq!(base(&on_pc(&file, GIB).unwrap().0), PREFERRED);
    // Below its preferred place there were room, above there is none.
    let size = with(INIT_SIZE, &(4 * MIB as u32).to_le_bytes());
    assert_eq!(
        obstructed(&size, 17 * MIB, GIB - MIB).map(|(state, _)| state),
        Err(ImageError::NoRoom {
            what: "the kernel",
            bytes: 4 * MIB,
            below: 4 * GIB
        })
    );
}

#[test]
fn a_kernel_without_preference_is_loaded_at_1_mib() {
    let file = with(PREF_ADDRESS, &[0; 8]);
    // The next multiple of its alignment.
    assert_eq!(base(&on_pc(&file, GIB).unwrap().0), 2 * MIB);
    let mut file = file;
    file[RELOCATABLE] = 0;
    assert_eq!(base(&on_pc(&file, GIB).unwrap().0), MIB);
}

#[test]
fn a_lesser_alignment_is_tried_when_the_best_has_no_room() {
    let mut file = kernel();
    put(
        &mut file,
        KERNEL_ALIGNMENT,
        &(512 * MIB as u32).to_le_bytes(),
    );
    let (state, memory) = on_pc(&file, 256 * MIB).unwrap();
    assert_eq!(base(&state), 128 * MIB);
    assert_eq!(
        u64::from(memory.u32(state.rsi + KERNEL_ALIGNMENT as u64)),
        128 * MIB
    );
    file[MIN_ALIGNMENT] = 0;
    assert_eq!(
        error_on_pc(&file, 256 * MIB),
        ImageError::NoRoom {
            what: "the kernel",
            bytes: SIZE,
            below: 4 * GIB
        }
    );
}

#[test]
fn the_initrd_lies_below_its_limit() {
    let initrd = vec![1; 10 * MIB as usize];
    let at = |file: &[u8], ram: u64| {
        let machine = Machine {
            ram: &ram_ranges(ram),
            reserved: &[LEGACY],
            initrd: Some(&initrd),
            ..Machine::default()
        };
        load(file, &machine).map(|(state, memory)| memory.u32(state.rsi + RAMDISK_IMAGE as u64))
    };
    assert_eq!(at(&kernel(), 4 * GIB).unwrap(), 0x8000_0000 - 0xa0_0000);
    assert_eq!(at(&kernel(), GIB).unwrap(), 0x4000_0000 - 0xa0_0000);
    // The limit is the last byte's address; the start is a page's.
    let limited = with(INITRD_ADDR_MAX, &0x37ff_f123u32.to_le_bytes());
    assert_eq!(at(&limited, GIB).unwrap(), 0x37ff_f000 - 0xa0_0000);
    // Below the kernel, if need be.
    assert_eq!(at(&kernel(), 40 * MIB).unwrap(), 6 * MIB as u32);
    let low = with(INITRD_ADDR_MAX, &0xa0_0000u32.to_le_bytes());
    let error = at(&low, GIB).unwrap_err();
    assert_eq!(
        error,
        ImageError::NoRoom {
            what: "the initial RAM disk",
            bytes: 10 * MIB,
            below: 0xa0_0001
        }
    );
    // An empty one is none.
    let machine = Machine {
        ram: &ram_ranges(GIB),
        initrd: Some(&[]),
        ..Machine::default()
    };
    let (state, memory) = load(&kernel(), &machine).unwrap();
    assert_eq!(memory.u64(state.rsi + RAMDISK_IMAGE as u64), 0);
}

#[test]
fn the_command_line_is_as_long_as_the_kernel_takes() {
    let ram = ram_ranges(GIB);
    let error = |line: &str| {
        let machine = Machine {
            ram: &ram,
            command_line: line,
            ..Machine::default()
        };
        load(&kernel(), &machine).map(drop)
    };
    assert_eq!(error(&"x".repeat(2047)), Ok(()));
    assert_eq!(
        error(&"x".repeat(2048)),
        Err(ImageError::CommandLineTooLong {
            length: 2048,
            limit: 2047
        })
    );
    assert_eq!(error("a\0"), Err(ImageError::CommandLineZero));
}

#[test]
fn modules_and_endless_memory_maps_are_refused() {
    let machine = Machine {
        ram: &ram_ranges(GIB),
        modules: &[Module {
            bytes: b"",
            command_line: "",
        }],
        ..Machine::default()
    };
    let error = |machine: &Machine<'_>| load(&kernel(), machine).map(drop);
    assert_eq!(error(&machine), Err(ImageError::NoModules));
    let holes = |count: u64| -> Vec<_> {
        (0..count)
            .map(|index| Region {
                start: 512 * MIB + index * 8192,
                end: 512 * MIB + index * 8192 + 4096,
                ..LEGACY
            })
            .collect()
    };
    let with = |reserved: &[Region]| {
        error(&Machine {
            ram: &ram_ranges(GIB),
            reserved,
            ..Machine::default()
        })
    };
    // Each hole is an entry, and so is each piece of RAM around it, and the last.
    assert_eq!(with(&holes(63)), Ok(()));
    assert_eq!(with(&holes(64)), Err(ImageError::LongMemoryMap));
    assert_eq!(with(&holes(200)), Err(ImageError::LongMemoryMap));
}

#[test]
fn a_write_that_fails_is_an_error() {
    let file = kernel();
    let ram = ram_ranges(GIB);
    let machine = Machine {
        ram: &ram,
        ..Machine::default()
    };
    assert_eq!(
        Image::detect(&file)
            .unwrap()
            .load(&machine, &mut |_, _| false),
        Err(ImageError::NotWritten)
    );
}

proptest! {
    #[test]
    fn damaged_kernels_stay_inside(
        damage in damage(),
        (ram, reserved) in machines(),
        initrd in prop::option::of(0usize..100_000),
    ) {
        let initrd = initrd.map(|size| vec![1; size]);
        check(&damage.of(kernel()), &Machine {
            ram: &ram,
            reserved: &reserved,
            command_line: "a b c",
            initrd: initrd.as_deref(),
            ..Machine::default()
        });
    }

    /// As before, where the damage is in the fields that say where things go.
    #[test]
    fn any_header_stays_inside(
        fields in prop::collection::vec(
            (
                prop::sample::select(vec![
                    SETUP_SECTS, SYSSIZE, INITRD_ADDR_MAX, KERNEL_ALIGNMENT, RELOCATABLE, MIN_ALIGNMENT,
                    CMDLINE_SIZE, PREF_ADDRESS, PREF_ADDRESS + 4, INIT_SIZE,
                ]),
                prop_oneof![
                    any::<u32>(),
                    (0u32..32).prop_map(|shift| 1 << shift),
                    (0u32..256).prop_map(|mib| mib << 20),
                    Just(0),
                ],
            ),
            1..4,
        ),
        (ram, reserved) in machines(),
        initrd in 0usize..100_000,
    ) {
        let mut file = kernel();
        for (at, value) in fields {
            let length = if at == RELOCATABLE || at == MIN_ALIGNMENT || at == SETUP_SECTS { 1 } else { 4 };
            put(&mut file, at, &value.to_le_bytes()[..length]);
        }
        let initrd = vec![1; initrd];
        check(&file, &Machine {
            ram: &ram,
            reserved: &reserved,
            command_line: "quiet",
            initrd: Some(&initrd),
            ..Machine::default()
        });
    }
}

/// Loads a kernel; if that works, nothing lies where the kernel unpacks itself, and all that it is told about is there.
pub(crate) fn check(file: &[u8], machine: &Machine<'_>) {
    let _ = Image::detect(file);
    let Ok((state, memory)) = load_as(Format::Linux, file, machine) else {
        return;
    };
    let field = |at: usize| u64::from(memory.u32(state.rsi + at as u64));
    let kernel = base(&state);
    assert_eq!(field(CODE32_START), kernel);
    let end = kernel + field(INIT_SIZE);
    let inside = memory
        .written(kernel..end)
        .filter(|at| *at != kernel)
        .count();
    assert_eq!(inside, 0);
    assert!(
        machine
            .ram
            .iter()
            .any(|ram| ram.start <= kernel && end <= ram.end)
    );
    assert_eq!(memory.text(field(CMD_LINE_PTR)), machine.command_line);
    let initrd = machine.initrd.unwrap_or(&[]);
    assert_eq!(field(RAMDISK_SIZE), initrd.len() as u64);
    assert_eq!(field(RAMDISK_IMAGE) % 4096, 0);
    assert_eq!(
        memory.read(field(RAMDISK_IMAGE), field(RAMDISK_SIZE)),
        initrd
    );
    if !initrd.is_empty() {
        let last = field(RAMDISK_IMAGE) + field(RAMDISK_SIZE) - 1;
        assert!(last <= field(INITRD_ADDR_MAX));
    }
}
