//! Raw images of firmware, as they lie in a PC's flash memory.
//!
//! The image ends at 4 GiB, so that the reset vector is 16 bytes before its end. On a PC the last 128 KiB are seen below
//! 1 MiB too, where the old part of firmware runs.

use core::ops::Range;

use plinth_abi::VcpuState;

use crate::machine::PAGE;
use crate::place::within;
use crate::{FOUR_GIB, ImageError, Machine};

/// The largest flash memory that the chip sets of PCs map.
const LARGEST: u64 = 16 << 20;
/// What is seen below 1 MiB.
const MIRROR: usize = 128 << 10;
const MIRROR_END: u64 = 1 << 20;

/// A raw image.
#[derive(Debug)]
pub(crate) struct Firmware<'a> {
    bytes: &'a [u8],
}

impl<'a> Firmware<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let size = bytes.len() as u64;
        if size == 0 || size > LARGEST || !size.is_multiple_of(PAGE) {
            return Err(ImageError::FirmwareSize(size));
        }
        Ok(Self { bytes })
    }

    /// Where it needs memory of its own.
    pub(crate) fn range(&self) -> Range<u64> {
        FOUR_GIB - self.bytes.len() as u64..FOUR_GIB
    }

    pub(crate) fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        let mirror = self
            .bytes
            .last_chunk::<MIRROR>()
            .map_or(self.bytes, |last| last);
        let at = MIRROR_END - mirror.len() as u64;
        // Not the system's RAM, but memory all the same: nothing is asked about `reserved`.
        if !within(machine.ram, &(at..MIRROR_END)) {
            return Err(ImageError::NotInRam {
                start: at,
                end: MIRROR_END,
            });
        }
        if write(self.range().start, self.bytes) && write(at, mirror) {
            Ok(VcpuState::RESET)
        } else {
            Err(ImageError::NotWritten)
        }
    }
}

#[cfg(test)]
mod tests;
