//! A Multiboot kernel that checks all it is handed, against the Multiboot Specification 0.6.96 (section numbers are its own).

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod header;
mod info;

use plinth_pc::map::{self, Map, Pieces};
use plinth_pc::state::{self, state};
use plinth_pc::{Outcome, Why, check, check_eq, machine_file, memory};

use crate::info::{Flags, Info, MemoryEntry, Module, Section};

plinth_pc::start!(main, all_segments: true);

const MACHINE: &str = include_str!("../machine.toml");

/// What EAX holds (3.2).
const MAGIC: u32 = 0x2bad_b002;

/// The modules: their names, which are their strings, and their contents.
const MODULES: [(&str, &[u8]); 2] = [
    ("multiboot/first", include_bytes!("../files/first")),
    ("multiboot/second", include_bytes!("../files/second")),
];

fn main() -> u32 {
    plinth_pc::suite!(
        "multiboot",
        [
            magic,
            control_registers,
            flags,
            segments,
            address_line_20,
            info_place,
            info_flags,
            memory_sizes,
            boot_device,
            command_line,
            module_list,
            module_contents,
            module_strings,
            module_alignment,
            symbols,
            sections,
            map_sizes,
            map_order,
            map_ram,
            map_legacy_hole,
            drives,
            configuration_table,
            boot_loader_name,
            power_management,
            video,
            pieces_apart,
        ]
    )
}

fn magic() -> Outcome {
    check_eq!(state().eax, MAGIC, "EAX");
    Ok(())
}

/// PE is set, PG is clear; the other bits are undefined.
fn control_registers() -> Outcome {
    check_eq!(state().cr0 & (1 << 31 | 1), 1, "PG and PE");
    Ok(())
}

/// VM and IF are clear.
fn flags() -> Outcome {
    check_eq!(state().eflags & (1 << 17 | 1 << 9), 0, "VM and IF");
    Ok(())
}

/// All have base 0 and limit 4 GiB.
fn segments() -> Outcome {
    state::segments_are_flat(0b11_1111)
}

fn address_line_20() -> Outcome {
    state::a20_is_on()
}

/// The information structure (3.3).
fn info() -> Info {
    memory::read(state().ebx.into())
}

/// The part of the structure that only this flag makes valid.
fn valid(flag: Flags, what: &str) -> Result<Info, Why> {
    let info = info();
    check!(
        info.flags & flag as u32 != 0,
        "{what}: the flag is clear, flags {:#x}",
        info.flags
    );
    Ok(info)
}

fn is_absent(flag: Flags, what: &str) -> Outcome {
    let flags = info().flags;
    check!(flags & flag as u32 == 0, "{what} in flags {flags:#x}");
    Ok(())
}

fn info_place() -> Outcome {
    let at = state().ebx;
    check!(at != 0 && at.is_multiple_of(4), "EBX is {at:#x}");
    Ok(())
}

/// Undefined flags are clear, and not both kinds of symbol tables are there.
fn info_flags() -> Outcome {
    let flags = info().flags;
    check_eq!(flags >> 13, 0, "undefined flags");
    let both = Flags::SymbolsAout as u32 | Flags::SymbolsElf as u32;
    check!(flags & both != both, "symbols of a.out and of ELF");
    Ok(())
}

/// In KiB: from 0 to the legacy hole, and from 1 MiB to the first hole above that.
fn memory_sizes() -> Outcome {
    let info = valid(Flags::Memory, "what the header requires")?;
    let bytes = machine_file::memory(MACHINE).unwrap_or_default();
    check_eq!(info.memory_lower, 640, "KiB of lower memory");
    check_eq!(
        u64::from(info.memory_upper),
        (bytes - (1 << 20)) >> 10,
        "KiB of upper memory"
    );
    Ok(())
}

/// No BIOS's disk is where it comes from.
fn boot_device() -> Outcome {
    is_absent(Flags::BootDevice, "a boot device")
}

fn command_line() -> Outcome {
    let info = valid(Flags::CommandLine, "the command line")?;
    let expected = machine_file::string(MACHINE, "command-line").unwrap_or_default();
    check!(!expected.is_empty(), "the machine file has none");
    memory::expect_text(info.command_line.into(), expected, "the command line")
}

/// Every module as it must be, and as it is.
fn modules() -> Result<impl Iterator<Item = (&'static str, &'static [u8], Module)>, Why> {
    let info = valid(Flags::Modules, "the modules")?;
    check_eq!(
        info.module_count,
        MODULES.len() as u32,
        "the number of modules"
    );
    let list = u64::from(info.modules);
    Ok((0u64..).zip(MODULES).map(move |(index, (name, contents))| {
        let module = memory::read(list + index * size_of::<Module>() as u64);
        (name, contents, module)
    }))
}

fn module_list() -> Outcome {
    for (name, contents, module) in modules()? {
        let length = module.end.wrapping_sub(module.start);
        check!(
            length as usize == contents.len(),
            "{name} has {length} bytes, not {}",
            contents.len()
        );
        check_eq!(module.reserved, 0, "the reserved field");
    }
    Ok(())
}

fn module_contents() -> Outcome {
    for (name, contents, module) in modules()? {
        memory::expect(module.start.into(), contents, name)?;
    }
    Ok(())
}

fn module_strings() -> Outcome {
    for (name, _, module) in modules()? {
        memory::expect_text(module.string.into(), name, "a module's string")?;
    }
    Ok(())
}

/// The header asks for it.
fn module_alignment() -> Outcome {
    for (name, _, module) in modules()? {
        check!(
            module.start.is_multiple_of(4096),
            "{name} begins at {:#x}",
            module.start
        );
    }
    Ok(())
}

fn symbols() -> Outcome {
    is_absent(Flags::SymbolsAout, "symbols of a.out")
}

/// The section headers of this ELF file are as it has them, and every section with contents has an address where they are.
fn sections() -> Outcome {
    const NULL: u32 = 0;
    const STRINGS: u32 = 3;
    const NO_BITS: u32 = 8;
    let info = valid(Flags::SymbolsElf, "the ELF section headers")?;
    let [count, size, table, names] = info.symbols;
    check_eq!(size, size_of::<Section>() as u32, "the size of a header");
    check!((2..64).contains(&count), "{count} headers");
    check!(names < count, "the names are in section {names} of {count}");
    let header = |index: u32| -> Section {
        memory::read(u64::from(table) + u64::from(index) * size_of::<Section>() as u64)
    };
    check_eq!(header(0).kind, NULL, "the type of the first header");
    let names = header(names);
    check_eq!(names.kind, STRINGS, "the type of the section of names");
    let mut seen = [false; 3];
    for header in (1..count).map(header) {
        let name = names.address + u64::from(header.name);
        let is = |expected| memory::expect_text(name, expected, "").is_ok();
        let image = memory::image();
        if is(".text") {
            seen[0] = true;
            check_eq!(header.address, image.start, "the address of .text");
            memory::expect(header.address, &header::MAGIC.to_le_bytes(), "the header")?;
        } else if is(".shstrtab") {
            seen[1] = true;
        } else if is(".bss") {
            seen[2] = true;
            check_eq!(header.kind, NO_BITS, "the type of .bss");
            check!(
                header.address + header.size <= image.end,
                ".bss ends beyond the image"
            );
        }
        if header.size > 0 {
            check!(
                header.address != 0 && header.address + header.size <= memory::MAPPED,
                "section {:#x} lies at {:#x}",
                header.name,
                header.address
            );
        }
    }
    check!(seen == [true; 3], ".text, .shstrtab, .bss found: {seen:?}");
    Ok(())
}

/// The memory map. An entry's size is that of what follows it.
fn memory_map() -> Result<Map, Why> {
    let info = valid(Flags::MemoryMap, "the memory map")?;
    let mut map = Map::new();
    let end = u64::from(info.map) + u64::from(info.map_length);
    let mut at = u64::from(info.map);
    while at < end {
        let entry: MemoryEntry = memory::read(at);
        check!(
            (20..1024).contains(&entry.size),
            "an entry of {} bytes",
            entry.size
        );
        let next = at + 4 + u64::from(entry.size);
        check!(next <= end, "an entry ends beyond the map");
        let taken = map.push(map::Entry {
            start: u64::from(entry.address[1]) << 32 | u64::from(entry.address[0]),
            length: u64::from(entry.length[1]) << 32 | u64::from(entry.length[0]),
            kind: entry.kind,
        });
        check!(taken.is_ok(), "more than 64 entries");
        at = next;
    }
    Ok(map)
}

fn map_sizes() -> Outcome {
    memory_map().map(drop)
}

fn map_order() -> Outcome {
    map::is_in_order(&memory_map()?)
}

fn map_ram() -> Outcome {
    let bytes = machine_file::memory(MACHINE).unwrap_or_default();
    map::has_all_ram(&memory_map()?, bytes)
}

fn map_legacy_hole() -> Outcome {
    map::has_legacy_hole(&memory_map()?)
}

/// There are none: a list of them is empty.
fn drives() -> Outcome {
    let info = info();
    if info.flags & Flags::Drives as u32 != 0 {
        check_eq!(info.drives_length, 0, "bytes of drives");
    }
    Ok(())
}

/// No BIOS is there to have one.
fn configuration_table() -> Outcome {
    is_absent(Flags::Configuration, "a BIOS's configuration table")
}

/// Text that can be shown.
fn boot_loader_name() -> Outcome {
    let info = valid(Flags::LoaderName, "the boot loader's name")?;
    let at = u64::from(info.loader_name);
    check!(at != 0, "it is nowhere");
    let length = (0..100u64).find(|index| memory::read::<u8>(at + index) == 0);
    let length = length.ok_or_else(|| Why::from(format_args!("it does not end")))?;
    check!(length > 0, "it is empty");
    let mut bytes = (0..length).map(|index| memory::read::<u8>(at + index));
    check!(
        bytes.all(|byte| (b' '..=b'~').contains(&byte)),
        "it has other than letters"
    );
    Ok(())
}

/// No APM: it is a BIOS's.
fn power_management() -> Outcome {
    is_absent(Flags::Apm, "an APM table")
}

/// The header asks for no video mode, and the machine has no display.
fn video() -> Outcome {
    is_absent(Flags::Vbe, "VBE's information")?;
    is_absent(Flags::Framebuffer, "a framebuffer")
}

/// Everything lies in RAM, not at address 0, and nothing on anything else.
fn pieces_apart() -> Outcome {
    let map = memory_map()?;
    let info = info();
    let mut pieces = Pieces::new(&map)?;
    let mut add = |what, start: u32, length: usize| {
        pieces.add(what, start.into()..u64::from(start) + length as u64)
    };
    add("the information", state().ebx, size_of::<Info>())?;
    add("the memory map", info.map, info.map_length as usize)?;
    add(
        "the list of modules",
        info.modules,
        info.module_count as usize * size_of::<Module>(),
    )?;
    let line = machine_file::string(MACHINE, "command-line").unwrap_or_default();
    add("the command line", info.command_line, line.len() + 1)?;
    add("the boot loader's name", info.loader_name, 1)?;
    for (name, contents, module) in modules()? {
        add("a module", module.start, contents.len())?;
        add("a module's string", module.string, name.len() + 1)?;
    }
    if info.flags & Flags::SymbolsElf as u32 != 0 {
        let [count, size, table, _] = info.symbols;
        add("the section headers", table, (count * size) as usize)?;
        for index in 0..count {
            let section: Section = memory::read(u64::from(table) + u64::from(index * size));
            let range = section.address..section.address + section.size;
            let image = memory::image();
            // What is not part of the program in memory was loaded for this table's sake.
            if section.size > 0 && (range.end <= image.start || range.start >= image.end) {
                add("a section", section.address as u32, section.size as usize)?;
            }
        }
    }
    Ok(())
}
