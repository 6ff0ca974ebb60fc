//! The kernel's address space: puts what was loaded to where the layout says.

use core::fmt;
use core::ops::Range;

use crate::PAGE;
use crate::elf::Kernel;
use crate::layout::Layout;
use crate::mapping::{Access, AddressSpace, FrameSource, MapError, PAGE_1G, PAGE_2M};

/// Physical addresses of what is mapped. All ranges begin at a page boundary.
#[derive(Clone, Debug)]
pub struct Placement<'a> {
    /// The loaded image, as long as [`Kernel::span`].
    pub kernel: u64,
    /// The stack, [`Layout::stack_len`] long.
    pub stack: u64,
    /// Boot information with the memory regions.
    pub boot_info: Range<u64>,
    /// The framebuffer's pages, if there are any.
    pub framebuffer: Option<Range<u64>>,
    /// The ramdisk, if there is one.
    pub ramdisk: Option<Range<u64>>,
    /// What is mapped at its physical address for the moment of the handover.
    pub identity: &'a [(Range<u64>, Access)],
    /// Where there is RAM: ascending, apart from each other.
    pub ram: &'a [Range<u64>],
    /// How much physical memory is mapped, from address 0.
    pub physical_memory: u64,
    /// The largest page that the CPU has: 2 MiB or 1 GiB.
    pub largest_page: u64,
}

/// Why the address space could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// Something could not be mapped.
    Map(MapError),
    /// Something else is mapped where the stack's guard page should be.
    Guard(u64),
}

impl From<MapError> for SpaceError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Guard(address) => write!(
                f,
                "the guard page of the stack at {address:#x} is used for something else"
            ),
        }
    }
}

impl core::error::Error for SpaceError {}

/// Builds the page tables and returns the physical address of the level-4 table.
///
/// # Errors
/// [`SpaceError`] if there is no memory left, or the configuration puts two things in one place.
pub fn build<F: FrameSource>(
    kernel: &Kernel<'_>,
    layout: &Layout,
    placement: &Placement<'_>,
    frames: &mut F,
) -> Result<u64, SpaceError> {
    let mut space = AddressSpace::new(frames)?;
    let linked = kernel.span().start;
    for (page, access) in kernel.pages() {
        let address = page.wrapping_add(layout.kernel_bias);
        space.map(
            address,
            placement.kernel + (page - linked),
            PAGE,
            access,
            PAGE,
        )?;
    }
    space.map(
        layout.stack_bottom(),
        placement.stack,
        layout.stack_len,
        Access::READ_WRITE,
        PAGE_2M,
    )?;
    let things = [
        (Some(layout.boot_info), Some(&placement.boot_info)),
        (layout.framebuffer, placement.framebuffer.as_ref()),
        (layout.ramdisk, placement.ramdisk.as_ref()),
    ];
    for (address, range) in things {
        if let (Some(address), Some(range)) = (address, range) {
            space.map(
                address,
                range.start,
                range.end - range.start,
                Access::READ_WRITE,
                PAGE_2M,
            )?;
        }
    }
    for (range, access) in placement.identity {
        space.map(
            range.start,
            range.start,
            range.end - range.start,
            *access,
            PAGE,
        )?;
    }
    if let Some(offset) = layout.physical_memory {
        map_physical_memory(&mut space, offset, placement)?;
    }
    if let Some(index) = layout.recursive_index {
        space.map_recursively(index)?;
    }
    if layout.recursive_index.is_none() && space.translate(layout.guard).is_some() {
        return Err(SpaceError::Guard(layout.guard));
    }
    Ok(space.root())
}

/// Maps physical memory at `offset`, writable and not executable.
///
/// A page must not span memory of different types: what the CPU then does is undefined (SDM volume 3, 12.11.9). So a
/// 1 GiB page is taken only where all of it is RAM, or none of it is; and the first 2 MiB, to which the fixed-range
/// MTRRs apply, are mapped in pages of 4 KiB.
fn map_physical_memory<F: FrameSource>(
    space: &mut AddressSpace<'_, F>,
    offset: u64,
    placement: &Placement<'_>,
) -> Result<(), MapError> {
    let end = placement.physical_memory;
    let mut at = 0;
    while at < end {
        let whole = at..at + PAGE_1G;
        let uniform = placement
            .ram
            .iter()
            .any(|ram| ram.start <= whole.start && whole.end <= ram.end)
            || placement
                .ram
                .iter()
                .all(|ram| ram.end <= whole.start || whole.end <= ram.start);
        let (len, largest) = match at {
            0 => (PAGE_2M, PAGE),
            _ if at % PAGE_1G != 0 => (PAGE_1G - at % PAGE_1G, PAGE_2M),
            _ if uniform => (PAGE_1G, placement.largest_page),
            _ => (PAGE_1G, PAGE_2M),
        };
        let len = len.min(end - at);
        space.map(offset + at, at, len, Access::READ_WRITE, largest)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
