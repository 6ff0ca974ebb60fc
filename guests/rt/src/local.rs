//! Statics of a guest that has one vCPU. Must not be used for what an exception handler and the code that it interrupts
//! both hold a reference to: values are copied in and out.

#![allow(unsafe_code, reason = "interior mutability of statics without a lock")]

use core::cell::UnsafeCell;

/// A static variable of the only vCPU.
#[repr(transparent)]
pub(crate) struct Local<T>(UnsafeCell<T>);

// SAFETY: a guest of this runtime has one vCPU and so one thread of execution.
unsafe impl<T> Sync for Local<T> {}

impl<T: Copy> Local<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn get(&self) -> T {
        // SAFETY: the pointer is that of a live static; volatile, because exception handlers write such variables
        // between two instructions of the code that reads them.
        unsafe { self.0.get().read_volatile() }
    }

    pub(crate) fn set(&self, value: T) {
        // SAFETY: as in `get`; no reference to the inside is ever given out.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl<T> Local<T> {
    /// Where the variable lies.
    pub(crate) const fn address(&self) -> *mut T {
        self.0.get()
    }

    /// A variable of a type that cannot be copied, reached by its address only.
    pub(crate) const fn raw(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}
