//! A domain's guest-physical address space: its nested page table, and which Memory object is mapped where.
//!
//! Everything that the table maps belongs to a Memory object that is kept alive here, so no Rust reference to it exists
//! anywhere, and all access goes through bounds-checked copies. What is unmapped comes back as [`Removed`], to be dropped when
//! every CPU has flushed.
#![allow(unsafe_code, reason = "the machine's memory behind a translation")]

use alloc::vec::Vec;

use plinth_abi::Status;

use super::Memory;
use crate::arch::{errata, mtrr};
use crate::mem::guest::{GuestMemory, GuestMemoryError, MachineMemory};
use crate::mem::nested::{
    Access, DomainTables, EntryFormat, MapError, NestedTable, Translation, Unflushed,
};
use crate::mem::{Amounts, Budget, Charge, Flag, Gpa, Hpa, PAGE_SIZE, PageSize, Ref, Window};

// SAFETY: used below only behind tables that map nothing but Memory objects, to whose content no reference is ever made.
const MACHINE: MachineMemory = unsafe { MachineMemory::new() };

/// Pages of any size that one step maps, unmaps or protects.
const STEP: u64 = 64;
/// Pages of 4 KiB that one step looks at for having been written.
const DIRTY_STEP: u64 = 512;

/// Mappings of one domain: each change may move all of the list.
const MOST_MAPPINGS: usize = 4096;

/// A part of a Memory object that is mapped.
#[derive(Debug)]
struct Mapping {
    gpa: u64,
    bytes: u64,
    offset: u64,
    memory: Ref<Memory>,
    /// The most that may be allowed there: what the handle allowed by which it was mapped.
    limit: Access,
    _charge: Charge,
}

impl Mapping {
    fn end(&self) -> u64 {
        self.gpa + self.bytes
    }
}

/// Why an address space was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceError {
    /// The nested table refuses.
    Map(MapError),
    /// More access than the handle had.
    Denied,
    /// The domain's budget does not suffice for the table or the bookkeeping.
    OverBudget,
    /// Too little heap.
    NoMemory,
}

impl From<MapError> for SpaceError {
    fn from(why: MapError) -> Self {
        match why {
            MapError::OutOfFrames => Self::OverBudget,
            _ => Self::Map(why),
        }
    }
}

/// What was taken away, and CPUs may still use: to be dropped by [`Removed::flushed`] when none does any more.
#[must_use = "the TLBs must be flushed, and then this be told so"]
#[derive(Debug)]
pub struct Removed {
    unflushed: Unflushed,
    tables: DomainTables,
    /// The mapping that is gone as a whole.
    _mapping: Option<Mapping>,
}

impl Removed {
    /// Every CPU has flushed since.
    pub fn flushed(mut self) {
        self.unflushed.flushed(&mut self.tables);
    }
}

/// The view of a guest's memory that page walks and copies use.
pub type View<'a, F> = GuestMemory<'a, F, DomainTables, MachineMemory>;

/// An address space.
#[derive(Debug)]
pub struct Space<F> {
    table: NestedTable<F>,
    tables: DomainTables,
    /// By address, none overlapping.
    mappings: Vec<Mapping>,
    budget: Ref<Budget>,
}

impl<F: EntryFormat> Space<F> {
    /// Nothing mapped. `None` where there is no frame for the root table.
    pub fn new(domain: u32, budget: &Ref<Budget>) -> Option<Self> {
        let mut tables = DomainTables::new(domain, budget.clone());
        let table = NestedTable::new(&mut tables).ok()?;
        Some(Self {
            table,
            tables,
            mappings: Vec::new(),
            budget: budget.clone(),
        })
    }

    /// The root of the nested page table.
    pub fn root(&self) -> Hpa {
        self.table.root()
    }

    /// For copies and page walks.
    pub fn view(&self) -> View<'_, F> {
        GuestMemory::new(&self.table, &self.tables, &MACHINE)
    }

    /// Checks that all of `len` bytes from `gpa` on are memory that allows `access`. Takes a step for each page: `len` is to be
    /// small.
    ///
    /// # Errors
    /// As for [`GuestMemory::read_bytes`].
    pub fn check(&self, gpa: Gpa, len: u64, access: Access) -> Result<(), GuestMemoryError> {
        self.view().check(gpa, len, access)
    }

    /// Whether anything is mapped in the range; `end` is behind its last byte.
    pub fn is_any_mapped(&self, start: u64, end: u64) -> bool {
        let first = self
            .mappings
            .partition_point(|mapping| mapping.end() <= start);
        self.mappings
            .get(first)
            .is_some_and(|mapping| mapping.gpa < end)
    }

    /// Copies into one page, whatever the domain may do there itself.
    ///
    /// # Errors
    /// `BAD_ADDRESS` where nothing is mapped.
    pub fn put(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Status> {
        let at = gpa.get();
        let index = self.mappings.partition_point(|mapping| mapping.end() <= at);
        let mapping = self.mappings.get(index).filter(|mapping| mapping.gpa <= at);
        let mapping = mapping.ok_or(Status::BAD_ADDRESS)?;
        mapping
            .memory
            .write(mapping.offset + (at - mapping.gpa), bytes)
    }

    /// Eight bytes at `gpa`, to be looked at again and again; `None` where they are not mapped in one page.
    pub fn window(&self, gpa: Gpa) -> Option<Window> {
        if gpa.offset_in(PAGE_SIZE) > PAGE_SIZE - 8 {
            return None;
        }
        Window::new(self.translate(gpa)?.hpa)
    }

    /// The byte at `gpa`, to be set again and again, as long as no nested table changes; `None` where the domain may not write.
    pub fn flag(&self, gpa: Gpa) -> Option<Flag> {
        self.check(gpa, 1, Access::WRITE).ok()?;
        // SAFETY: what is mapped is memory of guests; the caller sets it no longer when that may have changed.
        unsafe { Flag::new(self.translate(gpa)?.hpa) }
    }

    fn translate(&self, gpa: Gpa) -> Option<Translation> {
        self.table.translate(&self.tables, gpa)
    }

    /// Maps a bounded part of `len` bytes of `memory` from `offset` on; the bytes that are mapped, more than 0. `limit` is the most
    /// that [`Space::protect`] may allow later.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing is mapped then. Addresses are multiples of 4 KiB and within the object.
    pub fn map(
        &mut self,
        gpa: Gpa,
        memory: &Ref<Memory>,
        offset: u64,
        len: u64,
        access: Access,
        limit: Access,
    ) -> Result<u64, SpaceError> {
        if self.is_any_mapped(gpa.get(), gpa.get() + len) {
            return Err(SpaceError::Map(MapError::AlreadyMapped(gpa)));
        }
        let index = self.mapping_for(gpa.get(), memory, offset, limit)?;
        let mut done = 0;
        let mut budget = STEP;
        let result = loop {
            if done == len || budget == 0 {
                break Ok(());
            }
            let Some(run) = memory.run_at(offset + done) else {
                break Err(SpaceError::Map(MapError::OutOfRange));
            };
            let Some(at) = gpa.checked_add(done) else {
                break Err(SpaceError::Map(MapError::OutOfRange));
            };
            let (bytes, pages) = piece(at, run.hpa, run.bytes.min(len - done), budget);
            let mapped = self.table.map(
                &mut self.tables,
                at,
                run.hpa,
                bytes,
                access,
                &mtrr::memory_type,
                errata::largest_guest_page(),
            );
            if let Err(why) = mapped {
                break Err(why.into());
            }
            done += bytes;
            budget -= pages;
        };
        if let Some(mapping) = self.mappings.get_mut(index) {
            mapping.bytes += done;
            if mapping.bytes == 0 {
                self.mappings.remove(index);
            }
        }
        match result {
            Err(why) if done == 0 => Err(why),
            _ => Ok(done),
        }
    }

    /// The index of the mapping that ends at `gpa` and goes on with this part of `memory`; a new one, empty yet, where there
    /// is none.
    fn mapping_for(
        &mut self,
        gpa: u64,
        memory: &Ref<Memory>,
        offset: u64,
        limit: Access,
    ) -> Result<usize, SpaceError> {
        let index = self.mappings.partition_point(|mapping| mapping.gpa < gpa);
        if let Some(before) = index.checked_sub(1)
            && let Some(mapping) = self.mappings.get(before)
            && mapping.end() == gpa
            && mapping.memory.is_same(memory)
            && mapping.offset + mapping.bytes == offset
            && mapping.limit == limit
        {
            return Ok(before);
        }
        let mapping = self.new_mapping(gpa, memory.clone(), offset, limit)?;
        self.mappings.insert(index, mapping);
        Ok(index)
    }

    /// A mapping that is empty yet, with room for it in the list.
    fn new_mapping(
        &mut self,
        gpa: u64,
        memory: Ref<Memory>,
        offset: u64,
        limit: Access,
    ) -> Result<Mapping, SpaceError> {
        if self.mappings.len() >= MOST_MAPPINGS {
            return Err(SpaceError::OverBudget);
        }
        // The list grows by doubling: at most two places for each mapping.
        let charge = Charge::new(&self.budget, Amounts::heap(2 * size_of::<Mapping>() as u64))
            .map_err(|_| SpaceError::OverBudget)?;
        self.mappings
            .try_reserve(1)
            .map_err(|_| SpaceError::NoMemory)?;
        Ok(Mapping {
            gpa,
            bytes: 0,
            offset,
            memory,
            limit,
            _charge: charge,
        })
    }

    /// Whether everything from `start` to `end` is mapped, from the mapping with this index on: as far as a step can look.
    fn is_covered(&self, index: usize, start: u64, end: u64) -> bool {
        let mut covered = start;
        for mapping in self.mappings.iter().skip(index).take(STEP as usize) {
            if mapping.gpa > covered || covered >= end {
                break;
            }
            covered = mapping.end();
        }
        let looked = self.mappings.len().saturating_sub(index) as u64;
        covered >= end || looked > STEP && covered > start
    }

    /// The index of the mapping at `gpa`, and how many bytes from there on one step changes: whole pages of at most `len`
    /// bytes, all in that mapping.
    fn step(&self, gpa: Gpa, len: u64) -> Result<(usize, u64), SpaceError> {
        let missing = SpaceError::Map(MapError::NotMapped(gpa));
        let at = gpa.get();
        let index = self.mappings.partition_point(|mapping| mapping.end() <= at);
        let mapping = self.mappings.get(index).ok_or(missing)?;
        if !self.is_covered(index, at, at + len) {
            return Err(missing);
        }
        let most = len.min(mapping.end() - at);
        let mut done = 0;
        for _ in 0..STEP {
            let next = gpa.checked_add(done).ok_or(missing)?;
            let size = self.translate(next).ok_or(missing)?.size.bytes();
            // A part of a large page makes it be split: that is enough for one step.
            if !next.is_aligned(size) || most - done < size {
                if done == 0 {
                    done = most.min(size - next.offset_in(size));
                }
                break;
            }
            done += size;
            if done == most {
                break;
            }
        }
        Ok((index, done))
    }

    /// Unmaps a bounded part of `len` bytes from `gpa` on; the bytes that are unmapped, more than 0, and what is to be dropped
    /// when all CPUs have flushed.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn unmap(&mut self, gpa: Gpa, len: u64) -> Result<(u64, Removed), SpaceError> {
        let (index, bytes) = self.step(gpa, len)?;
        let missing = SpaceError::Map(MapError::NotMapped(gpa));
        let mapping = self.mappings.get(index).ok_or(missing)?;
        let (start, end) = (gpa.get(), gpa.get() + bytes);
        let (before, behind) = (start - mapping.gpa, mapping.end() - end);
        // What cannot be undone comes last.
        let rest = if before != 0 && behind != 0 {
            let (memory, limit) = (mapping.memory.clone(), mapping.limit);
            let offset = mapping.offset + before + bytes;
            Some(self.new_mapping(end, memory, offset, limit)?)
        } else {
            None
        };
        let unflushed = self.table.unmap(&mut self.tables, gpa, bytes)?;
        let mut removed = None;
        if let Some(mut rest) = rest {
            rest.bytes = behind;
            self.mappings.insert(index + 1, rest);
        }
        match self.mappings.get_mut(index) {
            Some(mapping) if before != 0 => mapping.bytes = before,
            Some(mapping) if behind != 0 => {
                mapping.gpa = end;
                mapping.offset += bytes;
                mapping.bytes = behind;
            }
            Some(_) => removed = Some(self.mappings.remove(index)),
            None => {}
        }
        Ok((bytes, self.removed(unflushed, removed)))
    }

    fn removed(&self, unflushed: Unflushed, mapping: Option<Mapping>) -> Removed {
        Removed {
            unflushed,
            tables: self.tables.clone(),
            _mapping: mapping,
        }
    }

    /// Gives a bounded part of `len` bytes from `gpa` on this access; the bytes that have it, more than 0, and what is to be
    /// dropped when all CPUs have flushed.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn protect(
        &mut self,
        gpa: Gpa,
        len: u64,
        access: Access,
    ) -> Result<(u64, Removed), SpaceError> {
        let (index, bytes) = self.step(gpa, len)?;
        if !self
            .mappings
            .get(index)
            .is_some_and(|mapping| mapping.limit.contains(access))
        {
            return Err(SpaceError::Denied);
        }
        let unflushed = self.table.protect(&mut self.tables, gpa, bytes, access)?;
        Ok((bytes, self.removed(unflushed, None)))
    }

    /// Tells which pages of 4 KiB were written since the last such call, of a bounded part of `len` bytes from `gpa` on: calls
    /// `dirty` with the index of each. The bytes that were looked at, more than 0 and a multiple of 32 KiB where they are
    /// not all, and what is to be flushed.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing has changed then.
    pub fn take_dirty(
        &mut self,
        gpa: Gpa,
        len: u64,
        dirty: &mut dyn FnMut(u64),
    ) -> Result<(u64, Removed), SpaceError> {
        let bytes = len.min(DIRTY_STEP * PAGE_SIZE);
        let unflushed = self.table.take_dirty(&mut self.tables, gpa, bytes, dirty)?;
        Ok((bytes, self.removed(unflushed, None)))
    }

    /// Takes apart a bounded piece of the whole, at its end: no CPU may use it any more. Whether nothing is left but the
    /// root table.
    pub fn reclaim(&mut self) -> bool {
        for _ in 0..STEP {
            if self.mappings.pop().is_none() {
                return self.table.reclaim(&mut self.tables, STEP as usize);
            }
        }
        false
    }

    /// Frees what [`Space::reclaim`] has left.
    pub fn destroy(mut self) {
        self.table.destroy(&mut self.tables);
    }
}

/// How much of `most` bytes one call of the nested table maps, by pages of one size, and how many pages that is: at most
/// `budget`.
fn piece(gpa: Gpa, hpa: Hpa, most: u64, budget: u64) -> (u64, u64) {
    let large = PageSize::Size2M.bytes();
    if errata::largest_guest_page() >= PageSize::Size2M
        && gpa.is_aligned(large)
        && hpa.is_aligned(large)
        && most >= large
    {
        return (large, 1);
    }
    // Up to where large pages can begin.
    let bytes = most.min(budget * PAGE_SIZE).min(large - gpa.get() % large);
    (bytes, bytes / PAGE_SIZE)
}
