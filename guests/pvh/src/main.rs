//! A kernel with Xen's PVH entry that checks all it is handed, against the specification: `docs/misc/pvh.pandoc` in Xen for the state
//! of the CPU, `public/arch-x86/hvm/start_info.h` for the structures.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod info;
mod task;

use plinth_pc::map::{self, Map, Pieces, kind};
use plinth_pc::state::{self, state};
use plinth_pc::{Outcome, Why, acpi, check, check_eq, machine_file, memory};

use crate::info::{MemoryEntry, ModuleEntry, StartInfo};

plinth_pc::start!(main, all_segments: false);
plinth_pc::pvh_note!();

const MACHINE: &str = include_str!("../machine.toml");

/// A module as it must come.
struct Module {
    path: &'static str,
    contents: &'static [u8],
}

/// The initial RAM disk, which has no command line, and the modules, whose command lines are their names.
const MODULES: [Module; 3] = [
    Module {
        path: "",
        contents: include_bytes!("../files/initrd"),
    },
    Module {
        path: "pvh/first",
        contents: include_bytes!("../files/first"),
    },
    Module {
        path: "pvh/second",
        contents: include_bytes!("../files/second"),
    },
];

fn main() -> u32 {
    plinth_pc::suite!(
        "pvh",
        [
            control_registers,
            flags,
            segments,
            task_register,
            address_line_20,
            start_info_place,
            start_info_version,
            start_info_flags,
            command_line,
            module_list,
            module_contents,
            module_command_lines,
            root_pointer,
            acpi_tables,
            map_order,
            map_ram,
            map_legacy_hole,
            pieces_apart,
        ]
    )
}

/// PE, and of the other bits only ET, which cannot be written.
fn control_registers() -> Outcome {
    const PE: u32 = 1 << 0;
    const ET: u32 = 1 << 4;
    check_eq!(state().cr0 & !ET, PE, "CR0");
    check_eq!(state().cr4, 0, "CR4");
    Ok(())
}

/// VM, IF and TF are clear.
fn flags() -> Outcome {
    const CLEAR: u32 = 1 << 17 | 1 << 9 | 1 << 8;
    check_eq!(state().eflags & CLEAR, 0, "VM, IF and TF");
    Ok(())
}

/// CS, DS and ES have base 0 and limit 4 GiB; nothing is said of the others.
fn segments() -> Outcome {
    state::segments_are_flat(0b111)
}

fn task_register() -> Outcome {
    task::check()
}

fn address_line_20() -> Outcome {
    state::a20_is_on()
}

/// The start information, of which EBX holds the address.
fn start_info() -> Result<StartInfo, Why> {
    let info: StartInfo = memory::read(state().ebx.into());
    check_eq!(info.magic, info::MAGIC, "the magic number");
    Ok(info)
}

fn start_info_place() -> Outcome {
    let at = u64::from(state().ebx);
    check!(at.is_multiple_of(4), "EBX is {at:#x}");
    start_info().map(drop)
}

fn start_info_version() -> Outcome {
    let info = start_info()?;
    check_eq!(info.version, 1, "the version");
    check_eq!(info.reserved, 0, "the reserved field");
    Ok(())
}

/// This is no privileged domain of Xen's, nor the initial one.
fn start_info_flags() -> Outcome {
    check_eq!(start_info()?.flags, 0, "the flags");
    Ok(())
}

fn command_line() -> Outcome {
    let expected = machine_file::string(MACHINE, "command-line").unwrap_or_default();
    check!(!expected.is_empty(), "the machine file has none");
    memory::expect_text(start_info()?.command_line, expected, "the command line")
}

/// The module of a number.
fn module(number: usize) -> Result<ModuleEntry, Why> {
    let list = start_info()?.modules;
    check!(list != 0, "there is no list of modules");
    Ok(memory::read(
        list + (number * size_of::<ModuleEntry>()) as u64,
    ))
}

/// Every module as it must be, and as it is.
fn modules() -> impl Iterator<Item = Result<(&'static Module, ModuleEntry), Why>> {
    (0..)
        .zip(&MODULES)
        .map(|(number, expected)| Ok((expected, module(number)?)))
}

fn module_list() -> Outcome {
    check_eq!(
        start_info()?.module_count,
        MODULES.len() as u32,
        "the number of modules"
    );
    for pair in modules() {
        let (expected, module) = pair?;
        check_eq!(module.reserved, 0, "the reserved field");
        check_eq!(
            module.size,
            expected.contents.len() as u64,
            "the size of a module"
        );
    }
    Ok(())
}

fn module_contents() -> Outcome {
    for pair in modules() {
        let (expected, module) = pair?;
        check!(module.address != 0, "{}: it is nowhere", expected.path);
        memory::expect(module.address, expected.contents, expected.path)?;
    }
    Ok(())
}

fn module_command_lines() -> Outcome {
    for pair in modules() {
        let (expected, module) = pair?;
        // Nothing is the same as nothing in it.
        if !expected.path.is_empty() || module.command_line != 0 {
            memory::expect_text(
                module.command_line,
                expected.path,
                "a module's command line",
            )?;
        }
    }
    Ok(())
}

fn rsdp() -> Result<u64, Why> {
    let rsdp = start_info()?.rsdp;
    check!(rsdp != 0, "there is none");
    Ok(rsdp)
}

fn root_pointer() -> Outcome {
    acpi::check_root(rsdp()?)
}

/// The tables are whole, and where the map says that no RAM for the system is.
fn acpi_tables() -> Outcome {
    let rsdp = rsdp()?;
    let map = memory_map()?;
    let fixed = acpi::fixed(rsdp)?;
    for (table, length) in [
        (rsdp, 36),
        acpi::table(rsdp, b"FACP")?,
        acpi::table(rsdp, b"APIC")?,
        (fixed.dsdt, 36),
    ] {
        let is = |kind| map::holds(&map, table..table + length, kind, "a table").is_ok();
        check!(
            is(kind::RESERVED) || is(kind::ACPI) || is(kind::NVS),
            "the table at {table:#x} lies in RAM, or in nothing"
        );
    }
    acpi::sleep_type_s5(&fixed).map(drop)
}

fn memory_map() -> Result<Map, Why> {
    let info = start_info()?;
    check!(info.map != 0, "there is no memory map");
    check!(
        (1..64).contains(&info.map_entries),
        "it has {} entries",
        info.map_entries
    );
    let mut map = Map::new();
    for index in 0..u64::from(info.map_entries) {
        let entry: MemoryEntry = memory::read(info.map + index * size_of::<MemoryEntry>() as u64);
        check_eq!(entry.reserved, 0, "an entry's reserved field");
        let entry = map::Entry {
            start: entry.address,
            length: entry.size,
            kind: entry.kind,
        };
        // As many as there is room for.
        let _ = map.push(entry);
    }
    Ok(map)
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

/// Everything lies in RAM, below 4 GiB, not at address 0, and nothing on anything else.
fn pieces_apart() -> Outcome {
    let map = memory_map()?;
    let info = start_info()?;
    let mut pieces = Pieces::new(&map)?;
    let mut add = |what, start: u64, length: usize| {
        let end = start + length as u64;
        check!(end <= memory::MAPPED, "{what} lies at {start:#x}");
        pieces.add(what, start..end)
    };
    add(
        "the start information",
        state().ebx.into(),
        size_of::<StartInfo>(),
    )?;
    add(
        "the memory map",
        info.map,
        info.map_entries as usize * size_of::<MemoryEntry>(),
    )?;
    add(
        "the list of modules",
        info.modules,
        info.module_count as usize * size_of::<ModuleEntry>(),
    )?;
    let line = machine_file::string(MACHINE, "command-line").unwrap_or_default();
    add("the command line", info.command_line, line.len() + 1)?;
    for pair in modules() {
        let (expected, module) = pair?;
        add("a module", module.address, expected.contents.len())?;
        if module.command_line != 0 {
            add(
                "a module's command line",
                module.command_line,
                expected.path.len() + 1,
            )?;
        }
    }
    Ok(())
}
