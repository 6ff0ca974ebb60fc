//! Guest-physical memory, by bounds-checked copies only.
//!
//! A guest may change its memory on another CPU at any moment. So no reference into it is ever formed, and each value is
//! read once: what was checked is what is used. The nested page table decides what may be reached; its access rights
//! hold for the kernel as they do for the guest.
#![allow(unsafe_code, reason = "the machine's memory behind a translation")]

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::addr::{Gpa, Hpa, PAGE_SIZE};
use super::nested::{Access, EntryFormat, NestedTable, TableFrames};
use super::phys;

/// Why guest memory was not accessed. A write that fails has written nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMemoryError {
    /// The range wraps around the end of the address space.
    Wraps,
    /// Nothing is mapped there.
    NotMapped(Gpa),
    /// Something is mapped, but this access is not allowed.
    Denied(Gpa),
    /// What is mapped there is beyond the machine's memory, or not aligned for an atomic access.
    Unreachable(Gpa),
}

/// The memory behind host-physical addresses, for shared use with running guests.
pub trait HostMemory {
    /// Copies out, each byte read once; `false` where there is no memory. Never crosses a 4 KiB frame.
    fn load(&self, hpa: Hpa, target: &mut [u8]) -> bool;
    /// Copies in; `false` where there is no memory. Never crosses a 4 KiB frame.
    fn store(&self, hpa: Hpa, source: &[u8]) -> bool;
    /// Replaces an aligned word if it is `old`: the value that was there, or `None` where there is no such word.
    fn compare_exchange(&self, hpa: Hpa, old: u64, new: u64) -> Option<u64>;
}

/// The machine's memory, through the physical map.
#[derive(Clone, Copy, Debug)]
pub struct MachineMemory(());

impl MachineMemory {
    /// The machine's memory.
    ///
    /// # Safety
    /// It is used only behind nested page tables that map nothing but memory to which no Rust reference exists: a guest's
    /// RAM, or pages shared with it that the kernel accesses through raw pointers and atomics.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl HostMemory for MachineMemory {
    fn load(&self, hpa: Hpa, target: &mut [u8]) -> bool {
        // SAFETY: promised to `new`.
        unsafe { phys::load_shared(hpa, target) }
    }

    fn store(&self, hpa: Hpa, source: &[u8]) -> bool {
        // SAFETY: promised to `new`.
        unsafe { phys::store_shared(hpa, source) }
    }

    fn compare_exchange(&self, hpa: Hpa, old: u64, new: u64) -> Option<u64> {
        // SAFETY: promised to `new`.
        unsafe { phys::compare_exchange_shared(hpa, old, new) }
    }
}

/// One guest's memory, as its nested page table maps it now.
#[derive(Debug)]
pub struct GuestMemory<'a, F, T, M> {
    table: &'a NestedTable<F>,
    frames: &'a T,
    memory: &'a M,
}

impl<F, T, M> Clone for GuestMemory<'_, F, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F, T, M> Copy for GuestMemory<'_, F, T, M> {}

impl<'a, F: EntryFormat, T: TableFrames, M: HostMemory> GuestMemory<'a, F, T, M> {
    /// The memory that `table` maps; `frames` reaches the table's own frames.
    pub fn new(table: &'a NestedTable<F>, frames: &'a T, memory: &'a M) -> Self {
        Self {
            table,
            frames,
            memory,
        }
    }

    /// Copies from guest memory. Work grows with the length: callers bound it. After an error the target's content is
    /// part old, part new.
    ///
    /// # Errors
    /// Any [`GuestMemoryError`], with the first address that fails.
    pub fn read_bytes(&self, gpa: Gpa, target: &mut [u8]) -> Result<(), GuestMemoryError> {
        let mut rest = target;
        for (at, len) in pieces(gpa, rest.len())? {
            let (piece, tail) = core::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            if !self.memory.load(self.host(at, Access::READ)?, piece) {
                return Err(GuestMemoryError::Unreachable(at));
            }
        }
        Ok(())
    }

    /// Copies to guest memory; nothing is written unless all pages allow it.
    ///
    /// # Errors
    /// Any [`GuestMemoryError`], with the first address that fails.
    pub fn write_bytes(&self, gpa: Gpa, source: &[u8]) -> Result<(), GuestMemoryError> {
        for (at, _) in pieces(gpa, source.len())? {
            let hpa = self.host(at, Access::WRITE)?;
            // A load of one byte shows that there is memory. Pages map RAM as a whole or not at all.
            if !self.memory.load(hpa, &mut [0]) {
                return Err(GuestMemoryError::Unreachable(at));
            }
        }
        let mut rest = source;
        for (at, len) in pieces(gpa, source.len())? {
            let (piece, tail) = rest.split_at(len);
            rest = tail;
            if !self.memory.store(self.host(at, Access::WRITE)?, piece) {
                return Err(GuestMemoryError::Unreachable(at));
            }
        }
        Ok(())
    }

    /// Reads a value. Its bytes are read once each; a value of up to 8 bytes that is naturally aligned is read at once,
    /// a larger or unaligned one may mix old and new bytes if the guest writes meanwhile.
    ///
    /// # Errors
    /// As for [`GuestMemory::read_bytes`].
    pub fn read<V: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<V, GuestMemoryError> {
        let mut value = V::new_zeroed();
        self.read_bytes(gpa, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value.
    ///
    /// # Errors
    /// As for [`GuestMemory::write_bytes`].
    pub fn write<V: IntoBytes + Immutable>(
        &self,
        gpa: Gpa,
        value: &V,
    ) -> Result<(), GuestMemoryError> {
        self.write_bytes(gpa, value.as_bytes())
    }

    /// Replaces the aligned 64-bit word at `gpa` if it is `old`, atomically: the value that was there.
    ///
    /// # Errors
    /// Any [`GuestMemoryError`] but `Wraps`.
    pub fn compare_exchange(&self, gpa: Gpa, old: u64, new: u64) -> Result<u64, GuestMemoryError> {
        if !gpa.is_aligned(8) {
            return Err(GuestMemoryError::Unreachable(gpa));
        }
        let hpa = self.host(gpa, Access::READ | Access::WRITE)?;
        self.memory
            .compare_exchange(hpa, old, new)
            .ok_or(GuestMemoryError::Unreachable(gpa))
    }

    fn host(&self, gpa: Gpa, access: Access) -> Result<Hpa, GuestMemoryError> {
        let translation = self
            .table
            .translate(self.frames, gpa)
            .ok_or(GuestMemoryError::NotMapped(gpa))?;
        if !translation.access.contains(access) {
            return Err(GuestMemoryError::Denied(gpa));
        }
        Ok(translation.hpa)
    }
}

/// The range cut at 4 KiB boundaries.
fn pieces(gpa: Gpa, len: usize) -> Result<impl Iterator<Item = (Gpa, usize)>, GuestMemoryError> {
    let end = gpa
        .get()
        .checked_add(len as u64)
        .ok_or(GuestMemoryError::Wraps)?;
    let mut next = gpa.get();
    Ok(core::iter::from_fn(move || {
        let at = next;
        // The end does not wrap, so a boundary above it may saturate.
        next = (at | (PAGE_SIZE - 1)).saturating_add(1).min(end);
        (at < end).then(|| (Gpa::new(at), (next - at) as usize))
    }))
}
