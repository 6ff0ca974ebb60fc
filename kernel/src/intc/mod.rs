//! A guest's interrupt controllers: the local APIC of each vCPU and the I/O APIC of a domain.
//!
//! Everything here is a pure state machine. Time comes in as an argument; what has to go elsewhere comes out as a
//! [`Message`], an [`Effect`] or a deadline, and it is for the caller to find the vCPUs that a message names, to wake them
//! and to arm timers. Nothing here touches hardware or guest memory, blocks, or fails for want of memory, and no value that
//! a guest writes can make it panic.
//!
//! What several CPUs touch at once is [`Requests`], atomics only: any CPU may raise an interrupt at any vCPU without a
//! lock. All other state of a local APIC is [`LocalApic`], which one CPU has at a time. An I/O APIC is shared by a
//! domain's vCPUs and its devices; its caller keeps it under a lock.
//!
//! Sections are those of the SDM, vol. 3, chapter "Advanced Programmable Interrupt Controller", where it is chapter 11.

pub mod io;
pub mod local;
pub mod message;
mod registers;
pub mod requests;
mod timer;
mod vectors;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod io_tests;
#[cfg(test)]
mod local_tests;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod storm_tests;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod timer_tests;

pub use io::IoApic;
pub use local::{Effect, Lint, LocalApic, Mode, Origin};
pub use message::{Delivery, Destination, Message};
pub use requests::{Addressing, Requests};
pub(crate) use vectors::highest;

/// The lowest vector that an APIC delivers; those below are illegal (SDM vol. 3 11.5.2).
pub const FIRST_VECTOR: u8 = 16;
