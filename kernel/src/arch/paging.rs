//! The kernel's own address space beyond what the loader mapped: stacks with guard pages, and device memory.
//!
//! All of it lies in one slot of the level-4 table that the loader left empty (512 GiB), found at run time, so that any
//! loader's layout will do. All CPUs use the same table. Virtual addresses are given out once and never again, and nothing
//! is unmapped at run time but stacks of CPUs that did not start: no other CPU can have those in its TLB, so there is
//! no shootdown.
#![allow(unsafe_code, reason = "page tables of the running kernel")]

use spin::Mutex;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::mapper::{MapToError, MappedFrame, TranslateResult};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags as Flags, PhysFrame,
    Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::mem::frames::{Owner, frames};
use crate::mem::{Hpa, Hva, PAGE_SIZE, PageSize, device, phys};

/// Bytes that one entry of the level-4 table covers.
const SLOT: u64 = 1 << 39;

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingError {
    /// No frame was left.
    OutOfMemory,
    /// The loader used every slot of the level-4 table, or ours is full.
    OutOfAddresses,
    /// The range is empty or wraps.
    Invalid,
}

/// A kernel stack with an unmapped page below it.
#[derive(Debug)]
pub struct Stack {
    top: u64,
    pages: u64,
}

impl Stack {
    /// The address just above the highest byte, 4 KiB aligned: what the stack pointer starts with.
    pub fn top(&self) -> Hva {
        Hva::new(self.top)
    }

    /// The lowest mapped byte. The page below is the guard.
    pub fn bottom(&self) -> Hva {
        Hva::new(self.top - self.pages * PAGE_SIZE)
    }
}

/// The part of the address space that is given out here.
struct Area {
    /// The next address to give out; 0 as long as no slot was chosen.
    next: u64,
    end: u64,
}

static AREA: Mutex<Area> = Mutex::new(Area { next: 0, end: 0 });

/// Page-table frames from the global allocator.
struct TableSource;

// SAFETY: every frame is fresh, zeroed and owned as a page table from then on.
unsafe impl FrameAllocator<Size4KiB> for TableSource {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let hpa = frames().allocate(PageSize::Size4K, Owner::PageTable).ok()?;
        Some(PhysFrame::containing_address(PhysAddr::new(hpa.get())))
    }
}

impl Area {
    /// The active page tables.
    fn table(&mut self) -> OffsetPageTable<'_> {
        let (root, _) = Cr3::read();
        let root = phys::pointer(Hpa::new(root.start_address().as_u64())).cast::<PageTable>();
        // SAFETY: CR3 holds the root of valid tables, all CPUs the same, mapped at the offset of the physical map. They are
        // changed here only, under the lock whose content this method borrows.
        unsafe { OffsetPageTable::new(&mut *root, VirtAddr::new(phys::offset())) }
    }

    /// Gives out `pages` pages of addresses behind one that is never mapped.
    fn take(&mut self, pages: u64) -> Result<u64, PagingError> {
        if self.next == 0 {
            let table = self.table();
            // From the top half only: the other belongs to user space by custom. The highest, away from the loader's.
            let free = |&slot: &usize| table.level_4_table()[slot].is_unused();
            let slot = (256..512)
                .rev()
                .find(free)
                .ok_or(PagingError::OutOfAddresses)? as u64;
            self.next = 0xffff_0000_0000_0000 | (slot * SLOT);
            // The last page stays out, so that the end does not wrap where the slot is the topmost.
            self.end = self.next + (SLOT - PAGE_SIZE);
        }
        let start = self.next + PAGE_SIZE;
        let left = self.end - start;
        if pages > left / PAGE_SIZE {
            return Err(PagingError::OutOfAddresses);
        }
        self.next = start + pages * PAGE_SIZE;
        Ok(start)
    }

    fn map(&mut self, address: u64, hpa: Hpa, flags: Flags) -> Result<(), PagingError> {
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(address));
        let frame = PhysFrame::containing_address(PhysAddr::new(hpa.get()));
        let flags = flags | Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE;
        // The upper tables allow everything, or a later page in the same table could not.
        let above = Flags::PRESENT | Flags::WRITABLE;
        // SAFETY: the address was given out by `take` and is mapped nowhere else; the frame is the caller's.
        match unsafe {
            self.table()
                .map_to_with_table_flags(page, frame, flags, above, &mut TableSource)
        } {
            Ok(flush) => {
                flush.flush();
                Ok(())
            }
            Err(MapToError::FrameAllocationFailed) => Err(PagingError::OutOfMemory),
            Err(_) => Err(PagingError::OutOfAddresses),
        }
    }

    /// Unmaps a page of a stack and frees its frame.
    fn unmap_stack_page(&mut self, address: u64) {
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(address));
        match self.table().unmap(page) {
            Ok((frame, flush)) => {
                flush.flush();
                // A refusal is logged by the allocator.
                let _ = frames().free(
                    Hpa::new(frame.start_address().as_u64()),
                    PageSize::Size4K,
                    Owner::Stack,
                );
            }
            Err(error) => log::error!("a stack's page at {address:#x} is not mapped: {error:?}"),
        }
    }
}

/// A stack of `pages` 4 KiB pages, zeroed, readable and writable, with an unmapped page below.
///
/// # Errors
/// Any [`PagingError`]; nothing stays allocated then but page tables.
pub fn map_stack(pages: usize) -> Result<Stack, PagingError> {
    let pages = pages as u64;
    if pages == 0 {
        return Err(PagingError::Invalid);
    }
    let mut area = AREA.lock();
    let bottom = area.take(pages)?;
    let top = bottom + pages * PAGE_SIZE;
    for address in (bottom..top).step_by(PAGE_SIZE as usize) {
        let frame = frames().allocate(PageSize::Size4K, Owner::Stack);
        let result = frame
            .map_err(|_| PagingError::OutOfMemory)
            .and_then(|frame| {
                area.map(address, frame, Flags::empty()).inspect_err(|_| {
                    let _ = frames().free(frame, PageSize::Size4K, Owner::Stack);
                })
            });
        if let Err(error) = result {
            (bottom..address)
                .step_by(PAGE_SIZE as usize)
                .for_each(|mapped| area.unmap_stack_page(mapped));
            return Err(error);
        }
    }
    Ok(Stack { top, pages })
}

/// Unmaps a stack and frees its frames. Nobody may run on it, and no other CPU may ever have used it: the TLB of this CPU
/// alone is flushed.
pub fn unmap_stack(stack: Stack) {
    let mut area = AREA.lock();
    (stack.bottom().get()..stack.top)
        .step_by(PAGE_SIZE as usize)
        .for_each(|page| area.unmap_stack_page(page));
}

/// Maps `len` bytes of device memory at `hpa` (any alignment), uncached, readable and writable, for ever: the address of
/// its first byte.
///
/// # Errors
/// Any [`PagingError`].
pub fn map_mmio(hpa: Hpa, len: u64) -> Result<Hva, PagingError> {
    let first = hpa.align_down(PAGE_SIZE);
    let end = hpa
        .checked_add(len)
        .filter(|_| len != 0)
        .ok_or(PagingError::Invalid)?;
    let pages = (end.get() - first.get()).div_ceil(PAGE_SIZE);
    device::keep(first, pages * PAGE_SIZE);
    let mut area = AREA.lock();
    let start = area.take(pages)?;
    for offset in (0..pages).map(|page| page * PAGE_SIZE) {
        area.map(
            start + offset,
            Hpa::new(first.get() + offset),
            Flags::NO_CACHE | Flags::WRITE_THROUGH,
        )?;
    }
    Ok(Hva::new(start + hpa.offset_in(PAGE_SIZE)))
}

/// What a virtual address of the kernel leads to; `None` where nothing is mapped.
pub fn translate(hva: Hva) -> Option<Hpa> {
    let address = VirtAddr::try_new(hva.get()).ok()?;
    match AREA.lock().table().translate(address) {
        TranslateResult::Mapped { frame, offset, .. } => {
            let start = match frame {
                MappedFrame::Size4KiB(frame) => frame.start_address(),
                MappedFrame::Size2MiB(frame) => frame.start_address(),
                MappedFrame::Size1GiB(frame) => frame.start_address(),
            };
            Some(Hpa::new(start.as_u64() + offset))
        }
        _ => None,
    }
}
