//! Statics of a guest that has one CPU: values are copied in and out, so that an interrupt handler may change them between.

#![allow(unsafe_code, reason = "interior mutability of statics without a lock")]

use core::cell::UnsafeCell;

/// A static variable of the only CPU.
#[repr(transparent)]
pub(crate) struct Single<T>(UnsafeCell<T>);

// SAFETY: a guest of this runtime has one CPU, and so one thread of execution.
unsafe impl<T> Sync for Single<T> {}

impl<T: Copy> Single<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn get(&self) -> T {
        // SAFETY: a live static, no reference to whose inside is ever given out; volatile, for the entry code and interrupt handlers
        // write to it, too.
        unsafe { self.0.get().read_volatile() }
    }

    pub(crate) fn set(&self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }
}
