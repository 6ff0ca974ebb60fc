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
        // Pages map RAM as a whole or not at all: one byte of each shows whether all can be written.
        self.check(gpa, source.len() as u64, Access::WRITE)?;
        let mut rest = source;
        for (at, len) in pieces(gpa, source.len())? {
            let (piece, tail) = rest.split_at(len);
            rest = tail;
            if !self.memory.store(self.host(at, Access::WRITE)?, piece) {
                return Err(GuestMemoryError::Unreachable(at));
            }
            self.table.mark_dirty(self.frames, at);
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
        self.table.mark_dirty(self.frames, gpa);
        self.memory
            .compare_exchange(hpa, old, new)
            .ok_or(GuestMemoryError::Unreachable(gpa))
    }

    /// Checks that all of `len` bytes from `gpa` on are memory that allows `access`. Takes a step for each page.
    ///
    /// # Errors
    /// As for [`GuestMemory::read_bytes`].
    pub fn check(&self, gpa: Gpa, len: u64, access: Access) -> Result<(), GuestMemoryError> {
        let len = usize::try_from(len).map_err(|_| GuestMemoryError::Wraps)?;
        for (at, _) in pieces(gpa, len)? {
            let hpa = self.host(at, access)?;
            if !self.memory.load(hpa, &mut [0]) {
                return Err(GuestMemoryError::Unreachable(at));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;
    use crate::mem::nested::{Ept, Npt};
    use crate::mem::{MemoryType, PageSize};

    const FRAMES: u64 = 8;

    /// Table frames without end.
    #[derive(Default)]
    struct Tables(Vec<Box<[AtomicU64; 512]>>);

    impl TableFrames for Tables {
        fn allocate(&mut self) -> Option<Hpa> {
            self.0.push(Box::new([const { AtomicU64::new(0) }; 512]));
            Some(Hpa::new(self.0.len() as u64 * PAGE_SIZE))
        }

        fn free(&mut self, _: Hpa) {}

        fn entry(&self, table: Hpa, index: usize) -> &AtomicU64 {
            &self.0[(table.get() / PAGE_SIZE - 1) as usize][index]
        }
    }

    /// Memory from 0 on that counts its accesses.
    struct Ram {
        bytes: RefCell<Vec<u8>>,
        loaded: Cell<usize>,
    }

    impl HostMemory for Ram {
        fn load(&self, hpa: Hpa, target: &mut [u8]) -> bool {
            assert!(
                hpa.offset_in(PAGE_SIZE) + target.len() as u64 <= PAGE_SIZE,
                "crosses a frame"
            );
            self.loaded.set(self.loaded.get() + target.len());
            let bytes = self.bytes.borrow();
            let source = bytes
                .get(hpa.get() as usize..)
                .and_then(|rest| rest.get(..target.len()));
            source.is_some_and(|source| {
                target.copy_from_slice(source);
                true
            })
        }

        fn store(&self, hpa: Hpa, source: &[u8]) -> bool {
            assert!(
                hpa.offset_in(PAGE_SIZE) + source.len() as u64 <= PAGE_SIZE,
                "crosses a frame"
            );
            let mut bytes = self.bytes.borrow_mut();
            let target = bytes
                .get_mut(hpa.get() as usize..)
                .and_then(|rest| rest.get_mut(..source.len()));
            target.is_some_and(|target| {
                target.copy_from_slice(source);
                true
            })
        }

        fn compare_exchange(&self, hpa: Hpa, old: u64, new: u64) -> Option<u64> {
            let mut word = [0; 8];
            self.load(hpa, &mut word).then_some(())?;
            let seen = u64::from_le_bytes(word);
            if seen == old {
                self.store(hpa, &new.to_le_bytes());
            }
            Some(seen)
        }
    }

    fn ram() -> Ram {
        let bytes = (0..FRAMES * PAGE_SIZE)
            .map(|at| (at / PAGE_SIZE * 31 + at * 7) as u8)
            .collect();
        Ram {
            bytes: RefCell::new(bytes),
            loaded: Cell::new(0),
        }
    }

    /// Maps guest page `n` to host frame `map[n]` with this access.
    fn table<F: EntryFormat>(map: &[(u64, Option<(u64, Access)>)]) -> (Tables, NestedTable<F>) {
        let mut tables = Tables::default();
        let mut table = NestedTable::new(&mut tables).unwrap();
        for &(page, target) in map {
            if let Some((frame, access)) = target {
                let (gpa, hpa) = (Gpa::new(page * PAGE_SIZE), Hpa::new(frame * PAGE_SIZE));
                let write_back = |_, _| Some(MemoryType::WriteBack);
                table
                    .map(
                        &mut tables,
                        gpa,
                        hpa,
                        PAGE_SIZE,
                        access,
                        &write_back,
                        PageSize::Size4K,
                    )
                    .unwrap();
            }
        }
        (tables, table)
    }

    const RW: Access = Access::READ.union(Access::WRITE);

    #[test]
    fn a_value_across_two_pages_comes_from_both() {
        let (tables, table) = table::<Ept>(&[(0, Some((5, RW))), (1, Some((2, RW)))]);
        let ram = ram();
        let guest = GuestMemory::new(&table, &tables, &ram);
        guest
            .write(Gpa::new(0xffd), &0x1122_3344_5566_7788_u64)
            .unwrap();
        assert_eq!(&ram.bytes.borrow()[0x5ffd..0x6000], [0x88, 0x77, 0x66]);
        assert_eq!(
            &ram.bytes.borrow()[0x2000..0x2005],
            [0x55, 0x44, 0x33, 0x22, 0x11]
        );
        ram.loaded.set(0);
        assert_eq!(
            guest.read::<u64>(Gpa::new(0xffd)),
            Ok(0x1122_3344_5566_7788)
        );
        assert_eq!(ram.loaded.get(), 8, "each byte is read once");
    }

    #[test]
    fn access_rights_hold_for_the_kernel_too() {
        let (tables, table) = table::<Npt>(&[(0, Some((1, RW))), (1, Some((2, Access::READ)))]);
        let ram = ram();
        let guest = GuestMemory::new(&table, &tables, &ram);
        let before = ram.bytes.borrow().clone();
        assert_eq!(
            guest.write(Gpa::new(0xffe), &0u32),
            Err(GuestMemoryError::Denied(Gpa::new(0x1000)))
        );
        assert_eq!(
            *ram.bytes.borrow(),
            before,
            "not even the page that allows it was written"
        );
        assert!(guest.read::<u32>(Gpa::new(0xffe)).is_ok());
        assert_eq!(
            guest.compare_exchange(Gpa::new(0x1000), 0, 0),
            Err(GuestMemoryError::Denied(Gpa::new(0x1000)))
        );
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let (tables, table) = table::<Ept>(&[(0, Some((1, RW))), (2, Some((FRAMES, RW)))]);
        let ram = ram();
        let guest = GuestMemory::new(&table, &tables, &ram);
        assert_eq!(
            guest.read::<u16>(Gpa::new(0xfff)),
            Err(GuestMemoryError::NotMapped(Gpa::new(0x1000)))
        );
        assert_eq!(
            guest.read::<u8>(Gpa::new(0x2000)),
            Err(GuestMemoryError::Unreachable(Gpa::new(0x2000)))
        );
        assert_eq!(
            guest.write(Gpa::new(0x2000), &0u8),
            Err(GuestMemoryError::Unreachable(Gpa::new(0x2000)))
        );
        assert_eq!(
            guest.read::<u64>(Gpa::new(u64::MAX - 6)),
            Err(GuestMemoryError::Wraps)
        );
        let last = Gpa::new(u64::MAX - 7);
        assert_eq!(
            guest.read::<[u8; 7]>(last),
            Err(GuestMemoryError::NotMapped(last))
        );
        assert_eq!(
            guest.read_bytes(Gpa::new(u64::MAX), &mut []),
            Ok(()),
            "nothing is always possible"
        );
        assert_eq!(
            guest.compare_exchange(Gpa::new(4), 0, 0),
            Err(GuestMemoryError::Unreachable(Gpa::new(4)))
        );
    }

    #[test]
    fn a_word_is_replaced_only_if_it_is_the_old_one() {
        let (tables, table) = table::<Ept>(&[(3, Some((0, RW)))]);
        let ram = ram();
        let guest = GuestMemory::new(&table, &tables, &ram);
        let at = Gpa::new(0x3008);
        guest.write(at, &5u64).unwrap();
        assert_eq!(guest.compare_exchange(at, 4, 6), Ok(5));
        assert_eq!(guest.read::<u64>(at), Ok(5));
        assert_eq!(guest.compare_exchange(at, 5, 6), Ok(5));
        assert_eq!(guest.read::<u64>(at), Ok(6));
    }

    proptest! {
        #[test]
        fn copies_follow_the_map_byte_by_byte(
            targets in prop::array::uniform6(prop::option::weighted(0.9, (0..FRAMES, any::<bool>()))),
            start in 0u64..6 * PAGE_SIZE,
            len in 0usize..3 * PAGE_SIZE as usize,
            seed: u8,
        ) {
            let access = |writable| if writable { RW } else { Access::READ };
            // Frames are used once, so that a write is seen in one place.
            let mut used = std::collections::BTreeSet::new();
            let map: Vec<_> = targets
                .iter()
                .map(|target| target.filter(|&(frame, _)| used.insert(frame)).map(|(frame, w)| (frame, access(w))))
                .enumerate()
                .map(|(page, target)| (page as u64, target))
                .collect();
            let (tables, table) = table::<Npt>(&map);
            let ram = ram();
            let guest = GuestMemory::new(&table, &tables, &ram);
            let host = |gpa: u64, wanted: Access| {
                let (frame, access) = map.get((gpa / PAGE_SIZE) as usize)?.1?;
                access.contains(wanted).then_some((frame * PAGE_SIZE + gpa % PAGE_SIZE) as usize)
            };
            let bytes: Option<Vec<u8>> = (start..start + len as u64)
                .map(|gpa| host(gpa, Access::READ).map(|at| ram.bytes.borrow()[at]))
                .collect();
            let mut target = vec![0; len];
            prop_assert_eq!(guest.read_bytes(Gpa::new(start), &mut target).is_ok(), bytes.is_some());
            if let Some(bytes) = bytes {
                prop_assert_eq!(target, bytes);
            }
            let source: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(13) ^ seed).collect();
            let mut expected = ram.bytes.borrow().clone();
            let allowed = (start..start + len as u64).all(|gpa| host(gpa, Access::WRITE).is_some());
            if allowed {
                for (i, byte) in source.iter().enumerate() {
                    expected[host(start + i as u64, Access::WRITE).unwrap()] = *byte;
                }
            }
            prop_assert_eq!(guest.write_bytes(Gpa::new(start), &source).is_ok(), allowed);
            prop_assert!(*ram.bytes.borrow() == expected);
        }
    }
}
