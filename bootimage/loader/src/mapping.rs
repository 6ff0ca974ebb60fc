//! Builds four-level page tables (SDM volume 3, 4.5; APM volume 2, 5.3) in frames that somebody else provides.
//!
//! No page is ever writable and executable: [`Access`] can say it, [`AddressSpace::map`] refuses it. No page is ever
//! accessible to user mode.

use core::fmt;

use crate::{PAGE, is_canonical};

/// 2 MiB.
pub const PAGE_2M: u64 = 1 << 21;
/// 1 GiB.
pub const PAGE_1G: u64 = 1 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51 to 12: the frame an entry points to.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page table: 512 entries.
pub type Table = [u64; 512];

/// What may be done with a page besides reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It may be written.
    pub writable: bool,
    /// Instructions may be fetched from it.
    pub executable: bool,
}

impl Access {
    /// Reading only.
    pub const READ: Self = Self {
        writable: false,
        executable: false,
    };
    /// Reading and writing.
    pub const READ_WRITE: Self = Self {
        writable: true,
        executable: false,
    };
    /// Reading and executing.
    pub const EXECUTE: Self = Self {
        writable: false,
        executable: true,
    };
}

/// Provides frames for page tables and a way to reach them.
pub trait FrameSource {
    /// The physical address of a zeroed frame that nobody else uses, or `None` if there are no more.
    fn allocate(&mut self) -> Option<u64>;

    /// The table in a frame that [`allocate`](Self::allocate) returned.
    fn table(&mut self, frame: u64) -> &mut Table;
}

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There are no frames left for page tables.
    OutOfFrames,
    /// At this virtual address there is something else already.
    Occupied(u64),
    /// This virtual address is not page-aligned, or what is to be mapped reaches out of its half of the address space.
    Address(u64),
    /// Writable and executable was asked for at this virtual address.
    WritableAndExecutable(u64),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => write!(f, "there is not enough memory for page tables"),
            Self::Occupied(address) => {
                write!(f, "two things are to be mapped at the address {address:#x}")
            }
            Self::Address(address) => {
                write!(f, "nothing can be mapped at the address {address:#x}")
            }
            Self::WritableAndExecutable(address) => {
                write!(
                    f,
                    "the page at {address:#x} is to be writable and executable"
                )
            }
        }
    }
}

impl core::error::Error for MapError {}

/// An address space under construction. It is not the one that is active.
pub struct AddressSpace<'a, F> {
    frames: &'a mut F,
    root: u64,
}

impl<'a, F: FrameSource> AddressSpace<'a, F> {
    /// An empty address space.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`].
    pub fn new(frames: &'a mut F) -> Result<Self, MapError> {
        let root = frames.allocate().ok_or(MapError::OutOfFrames)?;
        Ok(Self { frames, root })
    }

    /// The physical address of the level-4 table.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `len` bytes of physical memory at `physical` to `address`, with the largest pages that alignment permits
    /// and that are not larger than `largest` (4 KiB, 2 MiB or 1 GiB). `len` is rounded up to pages.
    ///
    /// # Errors
    /// See [`MapError`]. What was mapped before the error stays.
    pub fn map(
        &mut self,
        address: u64,
        physical: u64,
        len: u64,
        access: Access,
        largest: u64,
    ) -> Result<(), MapError> {
        if len == 0 {
            return Ok(());
        }
        if access.writable && access.executable {
            return Err(MapError::WritableAndExecutable(address));
        }
        let last = address
            .checked_add(len - 1)
            .ok_or(MapError::Address(address))?;
        let physical_last = physical
            .checked_add(len - 1)
            .ok_or(MapError::Address(address))?;
        let one_half = is_canonical(address) && is_canonical(last) && (address ^ last) >> 63 == 0;
        if !(address | physical).is_multiple_of(PAGE)
            || !one_half
            || physical_last > ADDRESS | (PAGE - 1)
        {
            return Err(MapError::Address(address));
        }
        let mut done = 0;
        while done < len {
            let (at, frame) = (address + done, physical + done);
            let fits = |size| size <= largest && (at | frame) % size == 0 && len - done >= size;
            let size = [PAGE_1G, PAGE_2M]
                .into_iter()
                .find(|&size| fits(size))
                .unwrap_or(PAGE);
            self.map_page(at, frame, access, size)?;
            done = done.saturating_add(size);
        }
        Ok(())
    }

    /// Makes the level-4 entry `index` point to the level-4 table itself.
    ///
    /// # Errors
    /// [`MapError::Occupied`] if the entry is in use.
    pub fn map_recursively(&mut self, index: u16) -> Result<(), MapError> {
        let root = self.root;
        let entry = &mut self.frames.table(root)[usize::from(index) % 512];
        if *entry != 0 {
            return Err(MapError::Occupied(crate::layout::slot_address(index)));
        }
        *entry = root | PRESENT | WRITABLE | NO_EXECUTE;
        Ok(())
    }

    /// What the CPU would find at `address`: the physical address, the access rights and the size of the page.
    pub fn translate(&mut self, address: u64) -> Option<(u64, Access, u64)> {
        let mut table = self.root;
        let mut access = Access {
            writable: true,
            executable: true,
        };
        for level in (1..=4).rev() {
            let entry = self.frames.table(table)[index(address, level)];
            if !is_canonical(address) || entry & PRESENT == 0 {
                return None;
            }
            access.writable &= entry & WRITABLE != 0;
            access.executable &= entry & NO_EXECUTE == 0;
            let size = page_size(level);
            if level == 1 || entry & HUGE != 0 {
                return Some((
                    (entry & ADDRESS & !(size - 1)) | (address & (size - 1)),
                    access,
                    size,
                ));
            }
            table = entry & ADDRESS;
        }
        None
    }

    fn map_page(
        &mut self,
        address: u64,
        frame: u64,
        access: Access,
        size: u64,
    ) -> Result<(), MapError> {
        let mut table = self.root;
        let mut level = 4;
        while page_size(level) > size {
            let entry = self.frames.table(table)[index(address, level)];
            table = if entry == 0 {
                let next = self.frames.allocate().ok_or(MapError::OutOfFrames)?;
                // Rights are decided in the last level; the tables above permit everything.
                self.frames.table(table)[index(address, level)] = next | PRESENT | WRITABLE;
                next
            } else if entry & HUGE != 0 {
                return Err(MapError::Occupied(address));
            } else {
                entry & ADDRESS
            };
            level -= 1;
        }
        let entry = &mut self.frames.table(table)[index(address, level)];
        if *entry != 0 {
            return Err(MapError::Occupied(address));
        }
        *entry = frame
            | PRESENT
            | if access.writable { WRITABLE } else { 0 }
            | if access.executable { 0 } else { NO_EXECUTE }
            | if level > 1 { HUGE } else { 0 };
        Ok(())
    }
}

/// Index of `address` in a table of `level` (1 to 4).
fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize % 512
}

/// How much an entry in a table of `level` (1 to 4) spans.
fn page_size(level: u32) -> u64 {
    PAGE << (9 * (level - 1))
}

#[cfg(test)]
pub(crate) mod tests;
