//! Segments of ELF executables of either word size, as other systems' loaders see them.

use alloc::vec::Vec;

use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;

use crate::ImageError;
use crate::place::Loading;

/// The kernels that are known have ten at most.
pub(crate) const MOST: usize = 256;

/// Bytes that go to a physical address, and zeros behind them.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    /// Where, and the first address behind the zeros.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Its linear address once the system has its page tables.
    pub(crate) linear: u64,
    pub(crate) bytes: &'a [u8],
}

/// The file's headers, if it is one for a PC.
pub(crate) fn parse(bytes: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, ImageError> {
    let file = ElfBytes::minimal_parse(bytes).map_err(|_| ImageError::NotElf)?;
    match file.ehdr.e_machine {
        EM_386 | EM_X86_64 => Ok(file),
        _ => Err(ImageError::WrongCpu),
    }
}

/// What the file puts into memory, in its order.
pub(crate) fn loads<'a>(file: &ElfBytes<'a, LittleEndian>) -> Result<Vec<Load<'a>>, ImageError> {
    let segments = file.segments().ok_or(ImageError::NoSegments)?;
    let mut loads = Vec::new();
    for header in segments
        .iter()
        .filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0)
    {
        let bytes = file
            .segment_data(&header)
            .map_err(|_| ImageError::SegmentTruncated)?;
        if bytes.len() as u64 > header.p_memsz {
            return Err(ImageError::SegmentOverflows);
        }
        let end = header
            .p_paddr
            .checked_add(header.p_memsz)
            .ok_or(ImageError::SegmentWraps)?;
        if loads.len() == MOST {
            return Err(ImageError::TooManySegments);
        }
        loads.push(Load {
            start: header.p_paddr,
            end,
            linear: header.p_vaddr,
            bytes,
        });
    }
    if loads.is_empty() {
        return Err(ImageError::NoSegments);
    }
    Ok(loads)
}

/// Takes the places of all, and says where the last one ends.
pub(crate) fn place<'a>(loads: &[Load<'a>], loading: &mut Loading<'a>) -> Result<u64, ImageError> {
    // The one that needs the most RAM tells how much is needed.
    let end = loads.iter().map(|load| load.end).max().unwrap_or(0);
    if let Some(last) = loads.iter().find(|load| load.end == end) {
        loading.claim(last.start..last.end)?;
        loading.put(last.start, last.bytes);
        for load in loads.iter().filter(|&load| !core::ptr::eq(load, last)) {
            loading.claim(load.start..load.end)?;
            loading.put(load.start, load.bytes);
        }
    }
    Ok(end)
}

/// The physical address of an entry that is given as a physical one.
pub(crate) fn physical(loads: &[Load<'_>], entry: u64) -> Result<u32, ImageError> {
    loads
        .iter()
        .any(|load| (load.start..load.end).contains(&entry))
        .then_some(entry)
        .and_then(|entry| u32::try_from(entry).ok())
        .ok_or(ImageError::EntryOutside(entry))
}

/// The physical address of an executable's entry, which is a linear address by its own layout. Some executables give the
/// physical one there.
pub(crate) fn linear(loads: &[Load<'_>], entry: u64) -> Result<u32, ImageError> {
    let translated = loads.iter().find_map(|load| {
        let offset = entry.checked_sub(load.linear)?;
        (offset < load.end - load.start).then(|| load.start + offset)
    });
    physical(loads, translated.unwrap_or(entry)).map_err(|_| ImageError::EntryOutside(entry))
}
