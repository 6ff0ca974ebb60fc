//! Memory for what the kernel gets, taken from the firmware page by page and never given back.
//!
//! The list of what was taken becomes the `Bootloader` regions of the kernel's memory map. If booting fails, the firmware
//! reclaims the memory with the rest of the machine at the next start.

#![allow(unsafe_code, reason = "allocated memory as slices")]

use alloc::vec::Vec;
use core::ops::Range;
use core::slice;

use plinth_loader::mapping::{FrameSource, Table};
use plinth_loader::{PAGE, page_up};
use uefi::boot::{self, AllocateType, MemoryType};

extern crate alloc;

/// How many frames for page tables are taken at once.
const CHUNK: u64 = 16;

/// The firmware has no memory left for the named thing.
pub struct OutOfMemory(pub &'static str);

/// A run of pages, zeroed when taken.
pub struct Run {
    start: u64,
    len: u64,
}

impl Run {
    /// The physical address; firmware maps all memory at its physical address (UEFI 2.3.4).
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }

    /// The memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the pages were allocated for this run alone, are mapped and were initialised.
        unsafe { slice::from_raw_parts_mut(self.start as *mut u8, self.len as usize) }
    }

    /// The memory, for good.
    pub fn leak(self) -> &'static mut [u8] {
        // SAFETY: as in bytes(); the run, and with it the right to make slices, is gone.
        unsafe { slice::from_raw_parts_mut(self.start as *mut u8, self.len as usize) }
    }
}

/// All pages taken so far.
pub struct Pages {
    taken: Vec<Range<u64>>,
    spare: Range<u64>,
}

impl Pages {
    /// Nothing taken yet.
    pub fn new() -> Self {
        Self {
            taken: Vec::new(),
            spare: 0..0,
        }
    }

    /// Takes zeroed pages for at least `len` bytes, at least one page.
    pub fn take(&mut self, what: &'static str, len: u64) -> Result<Run, OutOfMemory> {
        let len = page_up(len.max(1)).ok_or(OutOfMemory(what))?;
        let start = boot::allocate_pages(
            AllocateType::AnyPages,
            MemoryType::LOADER_DATA,
            (len / PAGE) as usize,
        )
        .map_err(|_| OutOfMemory(what))?;
        // SAFETY: so many bytes were just allocated.
        unsafe { start.write_bytes(0, len as usize) };
        let start = start.as_ptr() as u64;
        self.taken.push(start..start + len);
        Ok(Run { start, len })
    }

    /// Adds pages that were not taken here to what the kernel must not use.
    pub fn keep(&mut self, range: Range<u64>) {
        self.taken.push(range);
    }

    /// Everything that was taken.
    pub fn taken(&self) -> &[Range<u64>] {
        &self.taken
    }
}

impl FrameSource for Pages {
    fn allocate(&mut self) -> Option<u64> {
        if self.spare.is_empty() {
            self.spare = self.take("page tables", CHUNK * PAGE).ok()?.range();
        }
        let frame = self.spare.start;
        self.spare.start += PAGE;
        Some(frame)
    }

    fn table(&mut self, frame: u64) -> &mut Table {
        // SAFETY: the frame was handed out by allocate(), so it is page-aligned, initialised, and used as a table only;
        // the borrow of self ends before another table can be asked for.
        unsafe { &mut *(frame as *mut Table) }
    }
}
