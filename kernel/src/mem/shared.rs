//! Shared ownership of kernel objects: a counted pointer whose making can fail.
//!
//! `alloc::sync::Arc` ends the kernel where the heap is exhausted, and has no fallible form on stable Rust. A guest can
//! exhaust its budget at any moment, so objects are made by [`Ref::new`], which says so.

#![allow(unsafe_code, reason = "a counted pointer")]

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::boxed::Box;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::virt::OutOfMemory;

/// `Box::new`, but fallible.
///
/// # Errors
/// Where the heap is exhausted; the value is dropped then.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    const { assert!(size_of::<T>() != 0, "what is empty needs no box") };
    // SAFETY: the layout is not empty.
    let place = NonNull::new(unsafe { alloc(Layout::new::<T>()) }.cast::<T>());
    let place = place.ok_or(OutOfMemory)?.as_ptr();
    // SAFETY: the place was just allocated by the global allocator with this layout, and is written before it is used.
    unsafe {
        place.write(value);
        Ok(Box::from_raw(place))
    }
}

/// A counted pointer to a `T` on the heap, which is dropped with the last of them. Must not be made part of a cycle that
/// nothing breaks.
pub struct Ref<T>(NonNull<Counted<T>>);

struct Counted<T> {
    count: AtomicUsize,
    value: T,
}

// SAFETY: as for `Arc`: the value is shared by all holders, and dropped by whichever is last.
unsafe impl<T: Send + Sync> Send for Ref<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Ref<T> {}

impl<T> Ref<T> {
    /// Bytes of heap that one takes, the allocator's own included.
    pub const COST: u64 = {
        const GRANULE: usize = 32;
        (size_of::<Counted<T>>() + 8).next_multiple_of(GRANULE) as u64
    };

    /// A new object.
    ///
    /// # Errors
    /// Where the heap is exhausted; the value is dropped then.
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let layout = Layout::new::<Counted<T>>();
        // SAFETY: the layout is not empty, as it has the count.
        let place = NonNull::new(unsafe { alloc(layout) }.cast::<Counted<T>>());
        let place = place.ok_or(OutOfMemory)?;
        let count = AtomicUsize::new(1);
        // SAFETY: the place was just allocated with this layout, and nobody else knows it.
        unsafe { place.write(Counted { count, value }) };
        Ok(Self(place))
    }

    /// Whether both point to the same object.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// How many pointers to the object there are, this one included. Another CPU may change that at any time.
    pub fn count(&self) -> usize {
        self.counted().count.load(Ordering::Acquire)
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: it was written by `new`, and lives while there is a `Ref`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        // The count cannot overflow: each `Ref` takes eight bytes of memory.
        self.counted().count.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T> Deref for Ref<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T> Ref<T> {
    /// Drops the object, to which this was the last pointer.
    #[cold]
    #[inline(never)]
    fn drop_object(&mut self) {
        // Everything that other holders did comes before the drop.
        fence(Ordering::Acquire);
        // SAFETY: this was the last pointer to it; `new` allocated it with this layout.
        unsafe {
            self.0.drop_in_place();
            dealloc(self.0.as_ptr().cast(), Layout::new::<Counted<T>>());
        }
    }
}

impl<T> Drop for Ref<T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.counted().count.fetch_sub(1, Ordering::Release) == 1 {
            self.drop_object();
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_last_one_drops_the_object() {
        static DROPPED: AtomicU32 = AtomicU32::new(0);
        struct Noted;
        impl Drop for Noted {
            fn drop(&mut self) {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        let first = Ref::new(Noted).unwrap();
        let second = first.clone();
        assert!(first.is_same(&second));
        drop(first);
        assert_eq!(DROPPED.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn threads_share_one() {
        let counter = Ref::new(AtomicU32::new(0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let counter = counter.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        counter.clone().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(counter.load(Ordering::Relaxed), 4000);
    }
}
