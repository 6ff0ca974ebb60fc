//! Handle tables: what a domain's handles name. Pure.
//!
//! A handle is a place in the table and the count of the place's uses, so that one that was closed does not name what took
//! its place.

use alloc::vec::Vec;

use plinth_abi::{Handle, Status};

const INDEX_BITS: u32 = 16;

#[derive(Debug)]
struct Place<T> {
    /// 1 to 65535: a handle is never 0.
    generation: u16,
    entry: Option<T>,
}

/// A table of `T`s. Looking up, adding and removing take constant time, but for the growth of the table.
#[derive(Debug)]
pub struct HandleTable<T> {
    places: Vec<Place<T>>,
    /// Places that are free.
    free: Vec<u16>,
    used: u32,
    /// Places that are promised: [`HandleTable::reserve`].
    reserved: u32,
    max: u32,
}

impl<T> HandleTable<T> {
    /// Bytes of heap that a place takes.
    pub const PLACE: u64 = (size_of::<Place<T>>() + size_of::<u16>()) as u64;

    /// An empty table for at most `max` (up to 65536) handles.
    pub const fn new(max: u32) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            used: 0,
            reserved: 0,
            max,
        }
    }

    /// Handles in use.
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// The most there can be.
    pub const fn max(&self) -> u32 {
        self.max
    }

    /// Places there are memory for.
    pub fn capacity(&self) -> u64 {
        self.places.capacity() as u64
    }

    /// How many places the table has to grow by before another one can be promised.
    ///
    /// # Errors
    /// `OVER_BUDGET` where all there can be are used or promised.
    pub fn growth(&self) -> Result<usize, Status> {
        let taken = self.used + self.reserved;
        if taken >= self.max {
            return Err(Status::OVER_BUDGET);
        }
        if (taken as usize) < self.places.capacity() {
            return Ok(0);
        }
        let now = self.places.capacity();
        Ok(now.max(8).min((self.max as usize).saturating_sub(now)))
    }

    /// Promises a place, for which there is room.
    pub const fn reserve(&mut self) {
        self.reserved += 1;
    }

    /// Takes a promise back.
    pub const fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Makes room for `growth` more places.
    ///
    /// # Errors
    /// `NO_MEMORY`; nothing has changed then.
    pub fn grow(&mut self, growth: usize) -> Result<(), Status> {
        let all = self.places.capacity() + growth;
        // Both, before either is used: a place that becomes free must find room in the list.
        self.free
            .try_reserve_exact(all - self.free.len())
            .map_err(|_| Status::NO_MEMORY)?;
        self.places
            .try_reserve_exact(all - self.places.len())
            .map_err(|_| Status::NO_MEMORY)
    }

    /// Adds an entry in a place that was promised; `None`, and the entry lost, where none was.
    pub fn add(&mut self, entry: T) -> Option<Handle> {
        self.reserved = self.reserved.checked_sub(1)?;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u16::try_from(self.places.len()).ok()?;
                self.places.push(Place {
                    generation: 1,
                    entry: None,
                });
                index
            }
        };
        let place = self.places.get_mut(usize::from(index))?;
        place.entry = Some(entry);
        self.used += 1;
        Some(Handle(
            u32::from(place.generation) << INDEX_BITS | u32::from(index),
        ))
    }

    /// What a handle names.
    pub fn get(&self, handle: Handle) -> Option<&T> {
        let place = self.places.get((handle.0 & 0xffff) as usize)?;
        place
            .entry
            .as_ref()
            .filter(|_| u32::from(place.generation) == handle.0 >> INDEX_BITS)
    }

    /// Takes out what a handle names; the handle names nothing any more.
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        self.take(handle.0 as u16)
    }

    /// Takes out any entry, for the end of a table. Constant time: the places at the end are given up.
    pub fn pop(&mut self) -> Option<T> {
        // From here on no place is used again.
        self.free.clear();
        self.max = 0;
        while let Some(place) = self.places.pop() {
            if let Some(entry) = place.entry {
                self.used -= 1;
                return Some(entry);
            }
        }
        None
    }

    fn take(&mut self, index: u16) -> Option<T> {
        let place = self.places.get_mut(usize::from(index))?;
        let entry = place.entry.take()?;
        self.used -= 1;
        place.generation = place.generation.checked_add(1).unwrap_or(1);
        // There is room: `grow` made it before the place was made.
        self.free.push(index);
        Some(entry)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn add(table: &mut HandleTable<u32>, value: u32) -> Option<Handle> {
        let growth = table.growth().ok()?;
        table.grow(growth).unwrap();
        table.reserve();
        table.add(value)
    }

    #[test]
    fn a_closed_handle_does_not_name_what_comes_after() {
        let mut table = HandleTable::new(4);
        let first = add(&mut table, 1).unwrap();
        assert_eq!(table.remove(first), Some(1));
        let second = add(&mut table, 2).unwrap();
        assert_eq!(first.0 & 0xffff, second.0 & 0xffff, "the same place");
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&2));
    }

    #[test]
    fn none_is_never_a_handle() {
        let mut table = HandleTable::new(1);
        for round in 0..70_000 {
            let handle = add(&mut table, round).unwrap();
            assert_ne!(handle, Handle::NONE);
            assert_eq!(table.get(Handle::NONE), None);
            table.remove(handle);
        }
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut table = HandleTable::new(9);
        for value in 0..9 {
            assert!(add(&mut table, value).is_some());
        }
        assert_eq!(table.growth(), Err(Status::OVER_BUDGET));
        assert_eq!(add(&mut table, 9), None);
        assert_eq!(table.add(9), None, "no place was promised");
        assert_eq!(table.used(), 9);
        let mut left: Vec<_> = core::iter::from_fn(|| table.pop()).collect();
        left.sort_unstable();
        assert_eq!(left, (0..9).collect::<Vec<_>>());
        assert_eq!(table.used(), 0);
    }

    /// It is a map whose keys are never used again. A step adds a handle, or removes one of those that there are.
    pub fn behaves_like_a_map(steps: Vec<(bool, u8)>) -> Result<(), TestCaseError> {
        let mut table = HandleTable::new(40);
        let mut model = BTreeMap::new();
        for (value, (adds, which)) in steps.into_iter().enumerate() {
            if adds {
                match add(&mut table, value as u32) {
                    Some(handle) => prop_assert!(model.insert(handle.0, value as u32).is_none()),
                    None => prop_assert_eq!(model.len(), 40),
                }
            } else if let Some(&handle) = model.keys().nth(usize::from(which) % model.len().max(1))
            {
                prop_assert_eq!(table.remove(Handle(handle)), model.remove(&handle));
            }
            prop_assert_eq!(table.used() as usize, model.len());
            for (&handle, value) in &model {
                prop_assert_eq!(table.get(Handle(handle)), Some(value));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), any::<u8>()), 0..200)) {
            behaves_like_a_map(steps)?;
        }
    }
}
