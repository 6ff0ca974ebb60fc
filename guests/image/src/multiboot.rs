//! Multiboot images (Multiboot Specification 0.6.96, that is, version 1).
//!
//! A header in the first 8 KiB of the file says what the image requires. It is an ELF executable, of either word size, or
//! the header itself has the addresses. It is entered in protected mode with the address of the information structure in
//! EBX. All of that structure is filled in, whether the header asks for it or not.

use alloc::vec::Vec;

use elf::abi::{SHF_ALLOC, SHN_XINDEX, SHT_NOBITS, SHT_NULL};
use elf::file::Class;
use elf::section::SectionHeader;
use plinth_abi::VcpuState;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::place::{Block, Loading, checked};
use crate::segments::{self, Load};
use crate::{ImageError, LEGACY, Machine, MemoryKind, Module, Region};

/// What the header begins with, and its sum with flags and checksum.
const HEADER_MAGIC: u32 = 0x1bad_b002;
const SUM: u32 = 0;
/// All of the header lies in so much of the file.
const SEARCHED: usize = 8192;
/// What EAX has at the entry.
const ENTRY_MAGIC: u32 = 0x2bad_b002;
/// Our name.
const LOADER: &str = "Plinth";

/// The header's flags. Modules are always page-aligned, and there is always information about memory.
mod wants {
    pub(super) const ALIGNED_MODULES: u32 = 1 << 0;
    pub(super) const MEMORY: u32 = 1 << 1;
    pub(super) const VIDEO: u32 = 1 << 2;
    /// What must be understood.
    pub(super) const REQUIRED: u32 = 0xffff;
    pub(super) const ADDRESSES: u32 = 1 << 16;
}

/// The information's flags: which of its fields count.
mod has {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const COMMAND_LINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const SECTIONS: u32 = 1 << 5;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const DRIVES: u32 = 1 << 7;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
}

/// `boot_device`: no drive and no partitions. Its flag is clear, as it must be without a BIOS's disk.
const NO_DEVICE: u32 = u32::MAX;

/// The header's magic fields.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    flags: U32,
    checksum: U32,
}

/// The header's address fields, which follow.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Addresses {
    header_addr: U32,
    load_addr: U32,
    load_end_addr: U32,
    bss_end_addr: U32,
    entry_addr: U32,
}

/// The information structure.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Information {
    flags: U32,
    mem_lower: U32,
    mem_upper: U32,
    boot_device: U32,
    cmdline: U32,
    mods_count: U32,
    mods_addr: U32,
    syms: Sections,
    mmap_length: U32,
    mmap_addr: U32,
    drives_length: U32,
    drives_addr: U32,
    config_table: U32,
    boot_loader_name: U32,
    apm_table: U32,
    vbe_control_info: U32,
    vbe_mode_info: U32,
    vbe_mode: U16,
    vbe_interface_seg: U16,
    vbe_interface_off: U16,
    vbe_interface_len: U16,
    framebuffer: [u8; 28],
}

/// `syms` of an ELF file: its section headers.
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Sections {
    num: U32,
    size: U32,
    addr: U32,
    shndx: U32,
}

/// A module.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ModuleEntry {
    mod_start: U32,
    mod_end: U32,
    string: U32,
    reserved: U32,
}

/// An entry of the memory map. `size` does not count itself.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapEntry {
    size: U32,
    base_addr: U64,
    length: U64,
    kind: U32,
}

const _: () = assert!(size_of::<Information>() == 116);
const _: () = assert!(core::mem::offset_of!(Information, mmap_length) == 44);
const _: () = assert!(core::mem::offset_of!(Information, boot_loader_name) == 64);
const _: () = assert!(core::mem::offset_of!(Information, framebuffer) == 88);
const _: () = assert!(size_of::<MapEntry>() == 24);

/// A Multiboot image.
#[derive(Debug)]
pub(crate) struct Multiboot<'a> {
    loads: Vec<Load<'a>>,
    entry: u32,
    symbols: Option<Symbols<'a>>,
}

/// The sections of an ELF file, which its system may want to name its functions.
#[derive(Debug)]
struct Symbols<'a> {
    /// The section headers as in the file, the size of one, and which of them has the names.
    table: &'a [u8],
    entry_size: usize,
    names: u32,
    class: Class,
    /// The contents of those that are in no segment, by the header's number, and their alignment.
    contents: Vec<(usize, &'a [u8], usize)>,
}

/// Whether a file has a valid header.
pub(crate) fn is_multiboot(bytes: &[u8]) -> bool {
    header(bytes).is_some()
}

/// The first valid header: where it is, and its flags.
fn header(bytes: &[u8]) -> Option<(usize, u32)> {
    let searched = bytes.get(..SEARCHED).unwrap_or(bytes);
    (0..searched.len()).step_by(4).find_map(|at| {
        let (header, _) = Header::read_from_prefix(searched.get(at..)?).ok()?;
        let (magic, flags) = (header.magic.get(), header.flags.get());
        let sum = magic
            .wrapping_add(flags)
            .wrapping_add(header.checksum.get());
        (magic == HEADER_MAGIC && sum == SUM).then_some((at, flags))
    })
}

impl<'a> Multiboot<'a> {
    /// Looks at everything but the machine.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let (at, flags) = header(bytes).ok_or(ImageError::NotMultiboot)?;
        let known = wants::ALIGNED_MODULES | wants::MEMORY | wants::VIDEO;
        match flags & wants::REQUIRED & !known {
            0 => {}
            unknown => return Err(ImageError::MultibootFlags(unknown)),
        }
        // A requirement that cannot be fulfilled: who loads has to refuse (3.1.2).
        if flags & wants::VIDEO != 0 {
            return Err(ImageError::MultibootVideo);
        }
        if flags & wants::ADDRESSES != 0 {
            return Self::by_addresses(bytes, at);
        }
        let file = segments::parse(bytes)?;
        let loads = segments::loads(&file)?;
        let entry = segments::linear(&loads, file.ehdr.e_entry)?;
        Ok(Self {
            loads,
            entry,
            symbols: Symbols::parse(bytes, &file)?,
        })
    }

    /// Takes the addresses from the header, which is at that offset (3.1.3).
    fn by_addresses(bytes: &'a [u8], header: usize) -> Result<Self, ImageError> {
        let wrong = ImageError::MultibootAddresses;
        let searched = bytes.get(..SEARCHED).unwrap_or(bytes);
        let (fields, _) = searched
            .get(header + size_of::<Header>()..)
            .and_then(|bytes| Addresses::read_from_prefix(bytes).ok())
            .ok_or(wrong("they are cut off"))?;
        let start = fields.load_addr.get();
        let before = fields
            .header_addr
            .get()
            .checked_sub(start)
            .ok_or(wrong("header_addr is less than load_addr"))?;
        let file = header
            .checked_sub(before as usize)
            .and_then(|offset| bytes.get(offset..))
            .ok_or(wrong("load_addr is that of something before the file"))?;
        let bytes = match fields.load_end_addr.get() {
            // Everything up to the end of the file.
            0 => file,
            end => {
                let length = end
                    .checked_sub(start)
                    .ok_or(wrong("load_end_addr is less than load_addr"))?;
                file.get(..length as usize)
                    .ok_or(wrong("load_end_addr is behind the end of the file"))?
            }
        };
        let start = u64::from(start);
        let loaded = start + bytes.len() as u64;
        let end = match u64::from(fields.bss_end_addr.get()) {
            0 => loaded,
            end if end < loaded => {
                return Err(wrong("bss_end_addr is less than the end of what is loaded"));
            }
            end => end,
        };
        let loads = alloc::vec![Load {
            start,
            end,
            linear: start,
            bytes,
        }];
        let entry = segments::physical(&loads, fields.entry_addr.get().into())?;
        Ok(Self {
            loads,
            entry,
            symbols: None,
        })
    }

    pub(crate) fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        let mut loading = Loading::new(machine);
        let kernel_end = segments::place(&self.loads, &mut loading)?;
        let sections = match &self.symbols {
            Some(symbols) => symbols.place(kernel_end, &mut loading)?,
            None => Sections::default(),
        };
        let modules = loading.modules(machine, kernel_end)?;
        let information = loading.put_block("the Multiboot information", |map, at| {
            information(machine, map, &modules, sections, at)
        })?;
        loading.write(write)?;
        let mut state = VcpuState::protected_mode(self.entry);
        state.rax = ENTRY_MAGIC.into();
        state.rbx = information;
        Ok(state)
    }
}

impl<'a> Symbols<'a> {
    /// What there is besides the segments; none without section headers.
    fn parse(
        bytes: &'a [u8],
        file: &elf::ElfBytes<'a, elf::endian::LittleEndian>,
    ) -> Result<Option<Self>, ImageError> {
        let Some(headers) = file.section_headers().filter(|headers| !headers.is_empty()) else {
            return Ok(None);
        };
        let is_kept = |header: &SectionHeader| {
            let in_segment = header.sh_flags & u64::from(SHF_ALLOC) != 0;
            !in_segment && !matches!(header.sh_type, SHT_NULL | SHT_NOBITS) && header.sh_size > 0
        };
        let range = |start: u64, length: u64| {
            let start = usize::try_from(start).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
        };
        let contents = headers
            .iter()
            .enumerate()
            .filter(|(_, header)| is_kept(header))
            .map(|(index, header)| {
                let bytes = range(header.sh_offset, header.sh_size)?;
                Some((index, bytes, alignment(header.sh_addralign)))
            })
            .collect::<Option<_>>()
            .ok_or(ImageError::SectionTruncated)?;
        let entry_size = usize::from(file.ehdr.e_shentsize);
        let table = range(file.ehdr.e_shoff, (headers.len() * entry_size) as u64)
            .ok_or(ImageError::SectionTruncated)?;
        // A number too large for its field is in the first header.
        let names = match file.ehdr.e_shstrndx {
            SHN_XINDEX => headers.get(0).map_or(0, |first| first.sh_link),
            index => index.into(),
        };
        Ok(Some(Self {
            table,
            entry_size,
            names,
            class: file.ehdr.class,
            contents,
        }))
    }

    /// Takes a place for the sections and their headers behind the kernel. The headers of sections that were in no segment
    /// get their physical addresses.
    fn place(&self, kernel_end: u64, loading: &mut Loading<'a>) -> Result<Sections, ImageError> {
        let what = "the symbols";
        // Nothing is copied to see how much it is: a file may name the same megabytes a thousand times.
        let size = self
            .contents
            .iter()
            .try_fold(0u64, |at, (_, bytes, align)| {
                at.checked_next_multiple_of(*align as u64)?
                    .checked_add(bytes.len() as u64)
            })
            .unwrap_or(u64::MAX);
        let start = if self.contents.is_empty() {
            0
        } else {
            loading.behind(kernel_end, what, size)?
        };
        let mut table = self.table.to_vec();
        let mut at = start;
        for (index, bytes, align) in &self.contents {
            at = at.next_multiple_of(*align as u64);
            loading.put(at, *bytes);
            // `sh_addr` of Elf32_Shdr and of Elf64_Shdr. All that is placed lies below 4 GiB.
            let (offset, address) = match self.class {
                Class::ELF32 => (
                    12,
                    at.to_le_bytes().first_chunk::<4>().map(|low| low.to_vec()),
                ),
                Class::ELF64 => (16, Some(at.to_le_bytes().to_vec())),
            };
            let field = index * self.entry_size + offset;
            if let Some(address) = address
                && let Some(to) = table.get_mut(field..field + address.len())
            {
                to.copy_from_slice(&address);
            }
            at += bytes.len() as u64;
        }
        let (num, size) = (self.table.len() / self.entry_size, self.entry_size);
        let addr = loading.behind(kernel_end, what, table.len() as u64)?;
        loading.put(addr, table);
        Ok(Sections {
            num: low(num as u64),
            size: low(size as u64),
            addr: low(addr),
            shndx: self.names.into(),
        })
    }
}

/// A section's alignment, as far as it is one: pages are enough for what is only read.
fn alignment(align: u64) -> usize {
    match usize::try_from(align) {
        Ok(align @ 1..=4096) if align.is_power_of_two() => align,
        Ok(0) => 1,
        _ => 4096,
    }
}

/// The information and what it points to, for address `at`; where in it the structure itself is.
fn information(
    machine: &Machine<'_>,
    map: &[Region],
    modules: &[(u64, Module<'_>)],
    sections: Sections,
    at: u64,
) -> Result<(Block, u64), ImageError> {
    let mut block = Block::new(at);
    let mut list = Vec::new();
    for (at, module) in modules {
        list.push(ModuleEntry {
            mod_start: low(*at),
            mod_end: low(*at + module.bytes.len() as u64),
            string: low(block.text(checked(module.command_line)?)),
            reserved: U32::ZERO,
        });
    }
    let entries: Vec<_> = map
        .iter()
        .map(|region| MapEntry {
            size: U32::new(size_of::<MapEntry>() as u32 - 4),
            base_addr: region.start.into(),
            length: (region.end - region.start).into(),
            kind: region.kind.0.into(),
        })
        .collect();
    let sections_flag = if sections.num == U32::ZERO {
        0
    } else {
        has::SECTIONS
    };
    let (mem_lower, mem_upper) = memory(map);
    let information = Information {
        flags: U32::new(
            has::MEMORY
                | has::COMMAND_LINE
                | has::MODULES
                | has::MEMORY_MAP
                | has::DRIVES
                | has::LOADER_NAME
                | sections_flag,
        ),
        mem_lower,
        mem_upper,
        boot_device: NO_DEVICE.into(),
        cmdline: low(block.text(checked(machine.command_line)?)),
        boot_loader_name: low(block.text(LOADER)),
        mods_count: low(list.len() as u64),
        mods_addr: low(block.structure(list.as_slice())),
        syms: sections,
        mmap_length: low(size_of_val(entries.as_slice()) as u64),
        mmap_addr: low(block.structure(entries.as_slice())),
        // An empty list is a list.
        drives_length: U32::ZERO,
        drives_addr: low(block.push(&[], 8)),
        // No BIOS, no APM, no display: their flags are clear.
        config_table: U32::ZERO,
        apm_table: U32::ZERO,
        vbe_control_info: U32::ZERO,
        vbe_mode_info: U32::ZERO,
        vbe_mode: U16::ZERO,
        vbe_interface_seg: U16::ZERO,
        vbe_interface_off: U16::ZERO,
        vbe_interface_len: U16::ZERO,
        framebuffer: [0; 28],
    };
    let at = block.structure(&information);
    Ok((block, at))
}

/// KiB of RAM from 0, up to video memory, and from 1 MiB up to the first hole.
fn memory(map: &[Region]) -> (U32, U32) {
    let ram_from = |at: u64| {
        map.iter()
            .find(|region| {
                region.kind == MemoryKind::RAM && (region.start..region.end).contains(&at)
            })
            .map_or(at, |region| region.end)
    };
    let lower = ram_from(0).min(LEGACY.start);
    let upper = ram_from(LEGACY.end) - LEGACY.end;
    (low(lower >> 10), low(upper >> 10))
}

/// A number that is known to have 32 bits: all that is placed lies below 4 GiB.
fn low(number: u64) -> U32 {
    U32::new(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
