//! Plinth's own format: a static 64-bit ELF executable.
//!
//! An ordinary guest's segments are copied to their physical addresses in RAM that starts at guest-physical 0, and it
//! starts in long mode over an identity map of the low GiB. An executable whose entry is the reset vector is firmware: what
//! lies at or above [`FIRMWARE`] is copied there, and it starts as a CPU does after reset.
//!
//! The kernel starts the first domain by this module: nothing here allocates memory.

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PT_LOAD};
use elf::endian::LittleEndian;
use elf::segment::{ProgramHeader, SegmentTable};
use plinth_abi::VcpuState;

use crate::ImageError;
use crate::machine::PAGE;

/// Where firmware's RAM begins: 1 MiB below 4 GiB, where it ends.
pub const FIRMWARE: u64 = 0xfff0_0000;
/// The reset vector (SDM vol. 3 11.1.4): an executable that is entered there is firmware.
pub(crate) const RESET_VECTOR: u64 = 0xffff_fff0;

/// The identity map of an ordinary guest: three tables at the end of its RAM.
const TABLES: u64 = 3 * PAGE;
/// What the identity map covers.
const MAPPED: u64 = 1 << 30;

/// An executable that can become a guest.
#[derive(Debug)]
pub struct Executable<'a> {
    file: ElfBytes<'a, LittleEndian>,
    segments: SegmentTable<'a, LittleEndian>,
}

impl<'a> Executable<'a> {
    /// Looks at the headers; the segments are looked at by [`Self::load`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let file =
            ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|_| ImageError::NotElf)?;
        if file.ehdr.e_machine != EM_X86_64 || file.ehdr.e_type != ET_EXEC {
            return Err(ImageError::NotStatic);
        }
        let segments = file.segments().ok_or(ImageError::NoSegments)?;
        Ok(Self { file, segments })
    }

    /// Whether it is firmware: entered at the reset vector, and in need of RAM from [`FIRMWARE`] to 4 GiB.
    pub fn is_firmware(&self) -> bool {
        self.file.ehdr.e_entry == RESET_VECTOR
    }

    /// Copies the segments and, for an ordinary guest, its first page tables into zeroed RAM of `ram` bytes, a multiple of
    /// 4 KiB, at 0, and for firmware into RAM from [`FIRMWARE`] to 4 GiB as well. `write` copies bytes to a
    /// guest-physical address within that RAM and says whether it could.
    ///
    /// Gives the state in which vCPU 0 starts: RDI is `ram` for an ordinary guest. On an error the memory holds a part.
    pub fn load(
        &self,
        ram: u64,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        if !ram.is_multiple_of(PAGE) {
            return Err(ImageError::UnalignedRam);
        }
        if !self.is_firmware() && ram > MAPPED {
            return Err(ImageError::TooMuchRam);
        }
        let tables = ram.checked_sub(TABLES).ok_or(ImageError::TooLittleRam)?;
        for segment in self
            .segments
            .iter()
            .filter(|header| header.p_type == PT_LOAD)
        {
            let bytes = self.checked(&segment, tables)?;
            if !write(segment.p_paddr, bytes) {
                return Err(ImageError::SegmentOutsideRam);
            }
        }
        if self.is_firmware() {
            return Ok(VcpuState::RESET);
        }
        if !identity_map(tables, write) {
            return Err(ImageError::TooLittleRam);
        }
        let mut state = VcpuState::long_mode(self.file.ehdr.e_entry, tables, tables);
        state.rdi = ram;
        Ok(state)
    }

    /// A segment's bytes, when all of it lies below `low_end`, or in firmware's RAM.
    fn checked(&self, segment: &ProgramHeader, low_end: u64) -> Result<&'a [u8], ImageError> {
        let bytes = self
            .file
            .segment_data(segment)
            .map_err(|_| ImageError::SegmentTruncated)?;
        if bytes.len() as u64 > segment.p_memsz {
            return Err(ImageError::SegmentOverflows);
        }
        // The rest of the segment is zero, as all of a new domain's memory is; it must lie in RAM all the same.
        let end = segment
            .p_paddr
            .checked_add(segment.p_memsz)
            .ok_or(ImageError::SegmentWraps)?;
        let limit = if self.is_firmware() && segment.p_paddr >= FIRMWARE {
            1 << 32
        } else {
            low_end
        };
        if end > limit {
            return Err(ImageError::SegmentOutsideRam);
        }
        Ok(bytes)
    }
}

/// Writes page tables at `at` (three pages) that map the low GiB to itself by 2 MiB pages; whether that could be done.
fn identity_map(at: u64, write: &mut dyn FnMut(u64, &[u8]) -> bool) -> bool {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const LARGE_PAGE: u64 = 2 << 20;
    let mut entry = |address: u64, entry: u64| write(address, &entry.to_le_bytes());
    entry(at, (at + PAGE) | PRESENT_WRITABLE)
        && entry(at + PAGE, (at + 2 * PAGE) | PRESENT_WRITABLE)
        && (0..MAPPED / LARGE_PAGE).all(|index| {
            entry(
                at + 2 * PAGE + index * 8,
                (index * LARGE_PAGE) | PRESENT_WRITABLE | LARGE,
            )
        })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
