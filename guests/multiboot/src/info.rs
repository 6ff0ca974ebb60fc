//! The structures that the boot loader fills (3.3).

use zerocopy::FromBytes;

/// The flags that say which parts of [`Info`] are valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Flags {
    /// The sizes of memory.
    Memory = 1 << 0,
    /// The BIOS's disk from which the image comes.
    BootDevice = 1 << 1,
    /// The command line.
    CommandLine = 1 << 2,
    /// Modules.
    Modules = 1 << 3,
    /// The symbol table of an a.out file.
    SymbolsAout = 1 << 4,
    /// The section headers of an ELF file.
    SymbolsElf = 1 << 5,
    /// The memory map.
    MemoryMap = 1 << 6,
    /// The BIOS's disks.
    Drives = 1 << 7,
    /// The BIOS's configuration table.
    Configuration = 1 << 8,
    /// The boot loader's name.
    LoaderName = 1 << 9,
    /// The table of Advanced Power Management.
    Apm = 1 << 10,
    /// VBE's information of the video mode.
    Vbe = 1 << 11,
    /// The framebuffer.
    Framebuffer = 1 << 12,
}

/// The information structure, as far as these tests read it.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct Info {
    /// [`Flags`].
    pub flags: u32,
    /// KiB of memory from 0.
    pub memory_lower: u32,
    /// KiB of memory from 1 MiB.
    pub memory_upper: u32,
    /// Disk and partitions.
    pub boot_device: u32,
    /// Where the command line is.
    pub command_line: u32,
    /// How many modules there are.
    pub module_count: u32,
    /// Where their list is.
    pub modules: u32,
    /// For ELF: how many section headers, the size of each, where they are, which has the names.
    pub symbols: [u32; 4],
    /// Bytes of the memory map.
    pub map_length: u32,
    /// Where it is.
    pub map: u32,
    /// Bytes of the list of drives.
    pub drives_length: u32,
    /// Where it is.
    pub drives: u32,
    /// Where the BIOS's configuration table is.
    pub configuration: u32,
    /// Where the boot loader's name is.
    pub loader_name: u32,
    /// Where the APM table is.
    pub apm: u32,
}

/// A module.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct Module {
    /// The first address.
    pub start: u32,
    /// The first address behind it.
    pub end: u32,
    /// Where its string is.
    pub string: u32,
    /// 0.
    pub reserved: u32,
}

/// An entry of the memory map. Its numbers of 64 bits have no alignment.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MemoryEntry {
    /// Bytes that follow this field.
    pub size: u32,
    /// The first address, its low half first.
    pub address: [u32; 2],
    /// Bytes, the low half first.
    pub length: [u32; 2],
    /// What it is.
    pub kind: u32,
}

/// A section header of a 64-bit ELF file.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct Section {
    /// Its name: an offset in the section of names.
    pub name: u32,
    /// What it is.
    pub kind: u32,
    /// Flags.
    pub flags: u64,
    /// Where it is in memory.
    pub address: u64,
    /// Where it is in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Another section.
    pub link: u32,
    /// More.
    pub info: u32,
    /// Its alignment.
    pub alignment: u64,
    /// Bytes of an entry, if it is a table.
    pub entry_size: u64,
}

const _: () = assert!(size_of::<Info>() == 72);
const _: () = assert!(size_of::<Module>() == 16);
const _: () = assert!(size_of::<MemoryEntry>() == 24);
const _: () = assert!(size_of::<Section>() == 64);
