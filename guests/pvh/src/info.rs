//! The structures that the boot loader fills (`start_info.h`, version 1).

use zerocopy::FromBytes;

/// What a start information begins with: "xEn3" with the highest bit of the "E" set.
pub const MAGIC: u32 = u32::from_le_bytes([b'x', b'E' | 0x80, b'n', b'3']);

/// `hvm_start_info`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// Version of this structure.
    pub version: u32,
    /// `SIF_` flags.
    pub flags: u32,
    /// How many modules there are.
    pub module_count: u32,
    /// Where their list is.
    pub modules: u64,
    /// Where the command line is, which ends with a zero.
    pub command_line: u64,
    /// Where ACPI's root pointer is.
    pub rsdp: u64,
    /// Where the memory map is.
    pub map: u64,
    /// How many entries it has.
    pub map_entries: u32,
    /// 0.
    pub reserved: u32,
}

/// `hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct ModuleEntry {
    /// Where it is.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where its command line is.
    pub command_line: u64,
    /// 0.
    pub reserved: u64,
}

/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct MemoryEntry {
    /// The first address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);
const _: () = assert!(size_of::<ModuleEntry>() == 32);
const _: () = assert!(size_of::<MemoryEntry>() == 24);
