//! Atomics and locks of what several CPUs share: `core`'s and `spin`'s.
//!
//! In the host's tests they have doubles, so that a model can try the orders in which CPUs may reach them (`models`).

#[cfg(not(test))]
pub use core::hint::spin_loop;
#[cfg(not(test))]
pub use core::sync::atomic;
#[cfg(not(test))]
pub use spin::{Mutex, MutexGuard};

#[cfg(test)]
pub use crate::models::doubles::{Mutex, MutexGuard, atomic, spin_loop};
