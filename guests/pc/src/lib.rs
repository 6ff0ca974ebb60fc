//! Runtime of test guests that are kernels for a PC: what a boot loader enters in 32-bit protected mode, and what knows nothing of
//! Plinth. No hypercalls: the console is COM1, the end is a port or ACPI's.
//!
//! # How such a guest is started
//! At `start32`, in the state that PVH and Multiboot have in common: 32-bit protected mode, flat segments, no paging. The entry code
//! notes that state ([`state`]) before it changes it, maps the low 4 GiB to themselves, goes to long mode and calls the guest's main
//! function. Whoever owns the machine as a whole has nothing to be protected from, so memory and ports are open to all code here.
//!
//! # Use
//! ```ignore
//! #![no_std]
//! #![no_main]
//! plinth_pc::start!(main, all_segments: false);
//! fn main() -> u32 { plinth_pc::println!("hello"); 0 }
//! ```
//! and a `build.rs` that passes `pc.ld` to the linker.

#![no_std]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

pub mod acpi;
pub mod com1;
pub mod machine_file;
pub mod map;
pub mod memory;
pub mod ports;
pub mod power;
pub mod start;
pub mod state;
pub mod suite;
pub mod trap;

pub(crate) use plinth_common::Local;
pub use plinth_common::{Outcome, Why, check, check_eq};
