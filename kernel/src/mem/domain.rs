//! A domain's memory: its nested page table and the frames behind it, as one thing that can only be right.
//!
//! Everything that the table maps was allocated here as this domain's RAM, so no Rust reference to it exists anywhere,
//! and all access goes through bounds-checked copies.
#![allow(unsafe_code, reason = "the machine's memory behind a translation")]

use alloc::vec::Vec;
use core::arch::asm;

use super::frames::{Owner, frames};
use super::guest::{GuestMemory, MachineMemory};
use super::nested::{Access, DomainTables, EntryFormat, MapError, MemoryType, NestedTable};
use super::{Gpa, Hpa, PAGE_SIZE, PageSize, phys};

// SAFETY: used below only behind tables that map nothing but frames which `add_ram` allocated for guests.
const MACHINE: MachineMemory = unsafe { MachineMemory::new() };

/// The memory of one domain.
#[derive(Debug)]
pub struct DomainMemory<F> {
    domain: u32,
    table: NestedTable<F>,
    tables: DomainTables,
    ram: Vec<(Hpa, PageSize)>,
}

/// Why RAM could not be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddError {
    /// Too few frames.
    NoMemory,
    /// It does not fit into the guest's address space, or something is there already.
    Map(MapError),
}

/// The view of a guest's memory that page walks and copies use.
pub type View<'a, F> = GuestMemory<'a, F, DomainTables, MachineMemory>;

impl<F: EntryFormat> DomainMemory<F> {
    /// Nothing mapped. `None` where no frame is left for the root table.
    pub fn new(domain: u32) -> Option<Self> {
        let mut tables = DomainTables::new(domain);
        let table = NestedTable::new(&mut tables).ok()?;
        Some(Self {
            domain,
            table,
            tables,
            ram: Vec::new(),
        })
    }

    /// The root of the nested page table.
    pub fn root(&self) -> Hpa {
        self.table.root()
    }

    fn owner(&self) -> Owner {
        Owner::GuestRam {
            domain: self.domain,
        }
    }

    /// Adds `len` bytes of zeroed RAM from `gpa` on, in pages of 2 MiB where there is room and alignment, else of 4 KiB.
    /// `memory_type_of` and `largest` are as for [`NestedTable::map`].
    ///
    /// # Errors
    /// [`AddError`]; what was added before stays until [`DomainMemory::free`].
    pub fn add_ram(
        &mut self,
        gpa: Gpa,
        len: u64,
        memory_type_of: &dyn Fn(Hpa, PageSize) -> Option<MemoryType>,
        largest: PageSize,
    ) -> Result<(), AddError> {
        let owner = self.owner();
        let mut done = 0;
        while done < len {
            let at = gpa
                .checked_add(done)
                .ok_or(AddError::Map(MapError::OutOfRange))?;
            let large =
                at.is_aligned(PageSize::Size2M.bytes()) && len - done >= PageSize::Size2M.bytes();
            let size = if large {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            };
            let frame = frames()
                .allocate(size, owner)
                .map_err(|_| AddError::NoMemory)?;
            self.ram.push((frame, size));
            let access = Access::READ | Access::WRITE | Access::EXEC;
            self.table
                .map(
                    &mut self.tables,
                    at,
                    frame,
                    size.bytes(),
                    access,
                    memory_type_of,
                    largest,
                )
                .map_err(AddError::Map)?;
            done += size.bytes();
        }
        Ok(())
    }

    /// For copies and page walks.
    pub fn view(&self) -> View<'_, F> {
        GuestMemory::new(&self.table, &self.tables, &MACHINE)
    }

    /// Whether all of `len` bytes from `gpa` on are mapped. Takes a step for each page: `len` is to be small.
    pub fn is_mapped(&self, gpa: Gpa, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else {
            return false;
        };
        let mut page = gpa.align_down(PAGE_SIZE);
        while page < end {
            if self.table.translate(&self.tables, page).is_none() {
                return false;
            }
            let Some(next) = page.checked_add(PAGE_SIZE) else {
                return false;
            };
            page = next;
        }
        true
    }

    /// Eight bytes at `gpa`, to be looked at again and again; `None` where they are not mapped in one page. The window is
    /// for as long as this memory is: what it shows afterwards is of no use, but harmless.
    pub fn window(&self, gpa: Gpa) -> Option<Window> {
        if gpa.offset_in(PAGE_SIZE) > PAGE_SIZE - 8 {
            return None;
        }
        let hpa = self.table.translate(&self.tables, gpa)?.hpa;
        phys::checked_pointer(hpa, 8).map(|pointer| Window(pointer.cast()))
    }

    /// Gives back every frame. No CPU may run the domain any more.
    pub fn free(mut self) {
        let owner = self.owner();
        self.table.destroy(&mut self.tables);
        for (frame, size) in self.ram {
            // A refusal is logged by the allocator; the frame then stays with its owner.
            let _ = frames().free(frame, size, owner);
        }
    }
}

/// Eight bytes of a guest's memory that are read often.
#[derive(Clone, Copy, Debug)]
pub struct Window(*const u64);

// SAFETY: the pointer is into the physical map, which all CPUs share, and is only read from, by volatile loads.
unsafe impl Send for Window {}

impl Window {
    /// The bytes as they are now, little-endian.
    #[inline(always)]
    pub fn load(self) -> u64 {
        let value: u64;
        // SAFETY: eight bytes within the physical map, which is never unmapped. The guest may change them meanwhile, so
        // this is no load of the language's: any value will do.
        unsafe {
            asm!("mov {}, [{}]", out(reg) value, in(reg) self.0, options(nostack, readonly, preserves_flags))
        };
        value
    }
}
