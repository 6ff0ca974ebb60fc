//! Kernels with Xen's PVH entry: the x86/HVM direct boot ABI (`docs/misc/pvh.pandoc` in Xen), start information version 1
//! (`xen/include/public/arch-x86/hvm/start_info.h`).
//!
//! The kernel is an ELF executable of either word size. A note in it names the 32-bit entry, in physical memory. It is
//! entered in protected mode with the address of the start information in EBX.

use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::PT_NOTE;
use elf::endian::LittleEndian;
use elf::note::{Note, NoteIterator};
use plinth_abi::VcpuState;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::place::{Block, Loading, checked};
use crate::segments::{self, Load};
use crate::{ImageError, Machine, Module, Region};

/// The note: its name, and the type of the one that holds the entry (`XEN_ELFNOTE_PHYS32_ENTRY`).
const NAME: &str = "Xen";
const PHYS32_ENTRY: u64 = 18;
/// A kernel has a dozen; a file that lists the same bytes again and again is not read for hours.
const MOST_NOTES: usize = 4096;
/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with bit 7 of the E set.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// `hvm_start_info`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist_paddr: U64,
    cmdline_paddr: U64,
    rsdp_paddr: U64,
    memmap_paddr: U64,
    memmap_entries: U32,
    reserved: U32,
}

/// `hvm_modlist_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ModlistEntry {
    paddr: U64,
    size: U64,
    cmdline_paddr: U64,
    reserved: U64,
}

/// `hvm_memmap_table_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemmapEntry {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);
const _: () = assert!(size_of::<ModlistEntry>() == 32);
const _: () = assert!(size_of::<MemmapEntry>() == 24);

/// A kernel with a PVH entry.
#[derive(Debug)]
pub(crate) struct Pvh<'a> {
    loads: Vec<Load<'a>>,
    entry: u32,
}

/// Whether an ELF file has the note.
pub(crate) fn is_pvh(bytes: &[u8]) -> bool {
    segments::parse(bytes).is_ok_and(|file| note(&file).is_some())
}

/// What the note holds.
fn note<'a>(file: &ElfBytes<'a, LittleEndian>) -> Option<&'a [u8]> {
    file.segments()?
        .iter()
        .take(segments::MOST)
        .filter(|header| header.p_type == PT_NOTE)
        .filter_map(|header| {
            let bytes = file.segment_data(&header).ok()?;
            // Notes are aligned by 4 unless the segment says 8; 0 and 1 are seen and mean nothing.
            let align = if header.p_align == 8 { 8 } else { 4 };
            Some(NoteIterator::new(
                LittleEndian,
                file.ehdr.class,
                align,
                bytes,
            ))
        })
        .flatten()
        .take(MOST_NOTES)
        .find_map(|note| match note {
            Note::Unknown(note)
                if note.n_type == PHYS32_ENTRY
                    && note.name_str().is_ok_and(|name| name == NAME) =>
            {
                Some(note.desc)
            }
            _ => None,
        })
}

impl<'a> Pvh<'a> {
    /// Looks at everything but the machine.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let file = segments::parse(bytes)?;
        // 32 bits by the ABI's text; Linux and others write a word of their own size.
        let entry = match note(&file).ok_or(ImageError::NoPvhEntry)? {
            &[a, b, c, d] | &[a, b, c, d, 0, 0, 0, 0] => u32::from_le_bytes([a, b, c, d]),
            _ => return Err(ImageError::BadPvhEntry),
        };
        let loads = segments::loads(&file)?;
        let entry = segments::physical(&loads, entry.into())?;
        Ok(Self { loads, entry })
    }

    pub(crate) fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        let mut loading = Loading::new(machine);
        let kernel_end = segments::place(&self.loads, &mut loading)?;
        let modules = loading.modules(machine, kernel_end)?;
        let info = loading.put_block("the start information", |map, at| {
            start_info(machine, map, &modules, at)
        })?;
        loading.write(write)?;
        let mut state = VcpuState::protected_mode(self.entry);
        state.rbx = info;
        Ok(state)
    }
}

/// The start information and what it points to, for address `at`; where in it the information itself is.
fn start_info(
    machine: &Machine<'_>,
    map: &[Region],
    modules: &[(u64, Module<'_>)],
    at: u64,
) -> Result<(Block, u64), ImageError> {
    let mut block = Block::new(at);
    let memmap: Vec<_> = map
        .iter()
        .map(|region| MemmapEntry {
            addr: region.start.into(),
            size: (region.end - region.start).into(),
            kind: region.kind.0.into(),
            reserved: U32::ZERO,
        })
        .collect();
    let memmap_paddr = block.structure(memmap.as_slice());
    let mut list = Vec::new();
    for (at, module) in modules {
        list.push(ModlistEntry {
            paddr: (*at).into(),
            size: (module.bytes.len() as u64).into(),
            cmdline_paddr: block.text(checked(module.command_line)?).into(),
            reserved: U64::ZERO,
        });
    }
    let modlist_paddr = if list.is_empty() {
        0
    } else {
        block.structure(list.as_slice())
    };
    let cmdline_paddr = block.text(checked(machine.command_line)?);
    let info = block.structure(&StartInfo {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: U32::ZERO,
        nr_modules: count(list.len()),
        modlist_paddr: modlist_paddr.into(),
        cmdline_paddr: cmdline_paddr.into(),
        rsdp_paddr: machine.rsdp.unwrap_or(0).into(),
        memmap_paddr: memmap_paddr.into(),
        memmap_entries: count(memmap.len()),
        reserved: U32::ZERO,
    });
    Ok((block, info))
}

/// How many there are; each is larger than a byte, and all lie below 4 GiB.
fn count(entries: usize) -> U32 {
    U32::new(u32::try_from(entries).unwrap_or(u32::MAX))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
