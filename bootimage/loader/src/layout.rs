//! Chooses where things are in the kernel's address space.
//!
//! What the kernel's configuration leaves open ([`Mapping::Dynamic`]) gets one or more level-4 entries (512 GiB each) of
//! its own, from the upper half unless the configuration names a range: nothing can then run into its neighbour.
//! Addresses are not randomised, whether or not the configuration asks for it.

use core::fmt;
use core::ops::Range;

use bootloader_api::config::Mapping;

use crate::elf::Kernel;
use crate::mapping::PAGE_2M;
use crate::{PAGE, is_canonical, page_up};

/// How much one level-4 entry spans.
const SLOT: u64 = 1 << 39;

/// The first address that level-4 entry `index` (0 to 511) translates.
pub const fn slot_address(index: u16) -> u64 {
    let address = (index as u64) << 39;
    if index >= 256 {
        address | 0xffff << 48
    } else {
        address
    }
}

/// The level-4 entry that translates `address`.
const fn slot_index(address: u64) -> usize {
    (address >> 39) as usize % 512
}

/// Lengths in bytes of what is to be placed. Zero means that there is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// Boot information with the memory regions.
    pub boot_info: u64,
    /// The framebuffer, from the beginning of its first page.
    pub framebuffer: u64,
    /// The ramdisk.
    pub ramdisk: u64,
    /// Physical memory, from 0 to the highest address that is mapped.
    pub physical_memory: u64,
}

/// Virtual addresses. All are page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What is added to the kernel's addresses as linked, modulo 2^64.
    pub kernel_bias: u64,
    /// The page that stays unmapped below the stack.
    pub guard: u64,
    /// Length of the stack, a multiple of the page size. It begins after the guard page.
    pub stack_len: u64,
    /// The boot information.
    pub boot_info: u64,
    /// The framebuffer.
    pub framebuffer: Option<u64>,
    /// The ramdisk.
    pub ramdisk: Option<u64>,
    /// Physical address 0.
    pub physical_memory: Option<u64>,
    /// The level-4 entry that points to the level-4 table.
    pub recursive_index: Option<u16>,
}

/// What in the kernel's configuration cannot be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The named thing is to be at an address that is not suitably aligned or not canonical.
    Address(&'static str, u64),
    /// There is no room for the named thing in the permitted range.
    NoRoom(&'static str),
    /// A base address was asked for, but the kernel is linked for another and cannot be relocated.
    NotRelocatable,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(what, address) => write!(
                f,
                "the kernel wants its {what} at {address:#x}, an unusable address"
            ),
            Self::NoRoom(what) => write!(f, "the address space has no room for the {what}"),
            Self::NotRelocatable => write!(
                f,
                "the kernel wants to be relocated, but is linked for a fixed address"
            ),
        }
    }
}

impl core::error::Error for LayoutError {}

impl Layout {
    /// The lowest address of the stack.
    pub fn stack_bottom(&self) -> u64 {
        self.guard + PAGE
    }

    /// The address after the stack.
    pub fn stack_top(&self) -> u64 {
        self.stack_bottom() + self.stack_len
    }

    /// Chooses addresses as the kernel's configuration asks. `reserved` are the virtual addresses that are spoken for:
    /// what is mapped at its physical address for the moment of the handover.
    ///
    /// # Errors
    /// [`LayoutError`] says what is not possible.
    pub fn choose(
        kernel: &Kernel<'_>,
        lengths: &Lengths,
        reserved: &[Range<u64>],
    ) -> Result<Self, LayoutError> {
        let mappings = &kernel.config.mappings;
        let stack_len = page_up(kernel.config.kernel_stack_size.max(1))
            .filter(|&len| len < SLOT)
            .ok_or(LayoutError::NoRoom("stack"))?;
        let span = kernel.span();
        let kernel_len = span.end - span.start;

        // What has a fixed address comes first, so that nothing else is put there.
        let mut slots = Slots::new(mappings.dynamic_range_start, mappings.dynamic_range_end);
        for range in reserved {
            slots.occupy(range.start, range.end - range.start);
        }
        if !kernel.is_relocatable() {
            slots.occupy(span.start, kernel_len);
        }
        let recursive_slot = |mapping| match mapping {
            Mapping::FixedAddress(address) if address % SLOT != 0 || !is_canonical(address) => {
                Err(LayoutError::Address("page tables", address))
            }
            mapping => Ok(mapping),
        };
        let recursive = mappings
            .page_table_recursive
            .map(recursive_slot)
            .transpose()?;
        let physical_memory = mappings.physical_memory.unwrap_or(Mapping::Dynamic);
        let wishes = [
            ("stack", mappings.kernel_stack, stack_len + PAGE, PAGE),
            (
                "boot information",
                mappings.boot_info,
                lengths.boot_info,
                PAGE,
            ),
            (
                "framebuffer",
                mappings.framebuffer,
                lengths.framebuffer,
                PAGE,
            ),
            ("ramdisk", mappings.ramdisk_memory, lengths.ramdisk, PAGE),
            (
                "physical memory",
                physical_memory,
                if mappings.physical_memory.is_some() {
                    lengths.physical_memory
                } else {
                    0
                },
                PAGE_2M,
            ),
            (
                "page tables",
                recursive.unwrap_or(Mapping::Dynamic),
                if recursive.is_some() { SLOT } else { 0 },
                SLOT,
            ),
            (
                "image",
                mappings.kernel_base,
                if kernel.is_relocatable() {
                    kernel_len
                } else {
                    0
                },
                PAGE,
            ),
        ];
        for (what, mapping, len, align) in wishes {
            if let (Mapping::FixedAddress(address), true) = (mapping, len > 0) {
                let last = address
                    .checked_add(len - 1)
                    .ok_or(LayoutError::Address(what, address))?;
                if address % align != 0
                    || !is_canonical(address)
                    || !is_canonical(last)
                    || (address ^ last) >> 63 != 0
                {
                    return Err(LayoutError::Address(what, address));
                }
                slots.occupy(address, len);
            }
        }
        let mut place =
            |(what, mapping, len, _): (&'static str, Mapping, u64, u64)| match (mapping, len) {
                (_, 0) => Ok(None),
                (Mapping::FixedAddress(address), _) => Ok(Some(address)),
                (Mapping::Dynamic, _) => slots.take(len).map(Some).ok_or(LayoutError::NoRoom(what)),
            };
        let [
            stack,
            boot_info,
            framebuffer,
            ramdisk,
            physical_memory,
            page_tables,
            image,
        ] = wishes;
        let image = match (place(image)?, mappings.kernel_base) {
            (Some(base), _) => base,
            (None, Mapping::FixedAddress(base)) if base != span.start => {
                return Err(LayoutError::NotRelocatable);
            }
            (None, _) => span.start,
        };
        Ok(Self {
            kernel_bias: image.wrapping_sub(span.start),
            guard: place(stack)?.ok_or(LayoutError::NoRoom("stack"))?,
            stack_len,
            boot_info: place(boot_info)?.ok_or(LayoutError::NoRoom("boot information"))?,
            framebuffer: place(framebuffer)?,
            ramdisk: place(ramdisk)?,
            physical_memory: place(physical_memory)?,
            recursive_index: place(page_tables)?.map(|address| slot_index(address) as u16),
        })
    }
}

/// The level-4 entries that are still free.
struct Slots {
    free: [bool; 512],
}

impl Slots {
    /// Free is what lies entirely between the two addresses (the second inclusive), the upper half if neither is given.
    fn new(start: Option<u64>, end: Option<u64>) -> Self {
        let mut free = [false; 512];
        let from = start.unwrap_or(if end.is_some() { 0 } else { slot_address(256) });
        let to = end.unwrap_or(u64::MAX);
        for (index, slot) in (0..).zip(free.iter_mut()) {
            let address = slot_address(index);
            // The entry for address 0 is left alone: a null pointer must not work.
            *slot = index > 0 && from <= address && address + (SLOT - 1) <= to;
        }
        Self { free }
    }

    /// Strikes out what `len` bytes at `address` touch.
    fn occupy(&mut self, address: u64, len: u64) {
        if len > 0 {
            let last = slot_index(address.saturating_add(len - 1));
            let first = slot_index(address);
            self.free
                .iter_mut()
                .enumerate()
                .filter(|(index, _)| (first..=last).contains(index))
                .for_each(|(_, slot)| *slot = false);
        }
    }

    /// Takes as many neighbouring entries as `len` bytes need, the lowest possible, all in one half.
    fn take(&mut self, len: u64) -> Option<u64> {
        let count = usize::try_from(len.div_ceil(SLOT))
            .ok()
            .filter(|&count| count <= 256)?;
        let fits = |first: usize| {
            let run = first..first + count;
            (run.end <= 256 || run.start >= 256)
                && self
                    .free
                    .get(run)
                    .is_some_and(|run| run.iter().all(|&free| free))
        };
        let first = (0..512).find(|&first| fits(first))?;
        self.free[first..first + count].fill(false);
        Some(slot_address(first as u16))
    }
}

#[cfg(test)]
mod tests;
