//! Statics of a guest that has one CPU. Must not be used for what an exception handler and the code that it interrupts
//! both hold a reference to: values are copied in and out.

#![allow(unsafe_code, reason = "interior mutability of statics without a lock")]

use core::cell::UnsafeCell;

/// A static variable of the only CPU.
#[repr(transparent)]
pub struct Local<T>(UnsafeCell<T>);

// SAFETY: a guest that uses it has one CPU and so one thread of execution.
unsafe impl<T> Sync for Local<T> {}

impl<T: Copy> Local<T> {
    /// A variable with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Its value.
    pub fn get(&self) -> T {
        // SAFETY: the pointer is that of a live static; volatile, because exception handlers write such variables
        // between two instructions of the code that reads them.
        unsafe { self.0.get().read_volatile() }
    }

    /// Gives it another value.
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`; no reference to the inside is ever given out.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl<T> Local<T> {
    /// Where the variable lies.
    pub const fn address(&self) -> *mut T {
        self.0.get()
    }

    /// A variable of a type that cannot be copied, reached by its address only.
    pub const fn raw(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}
