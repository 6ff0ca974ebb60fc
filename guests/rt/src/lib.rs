//! Runtime of Plinth guests written in Rust: entry, console, hypercalls, exception handling, and a harness for suites of
//! tests.
//!
//! A guest has one vCPU, lives at the linear addresses that are its guest-physical ones, and owns the whole of its small
//! machine: nothing here protects the guest from itself. What a guest does wrong is the kernel's business to survive.
//!
//! # How a guest is started
//! A guest is a static ELF64 executable linked at 1 MiB by `guest.ld`. It starts in long mode at CPL 0 at `_start`, with
//! the low 1 GiB mapped to itself, RDI holding the size of its memory in bytes, RSI the address of its start information or 0, a stack, no descriptor tables and interrupts
//! off. An executable whose entry point is 0xFFFF_FFF0 is firmware instead: its vCPU starts in the state after reset, and
//! the segment that holds the entry point lies at the top of the first 4 GiB.
//!
//! # Use
//! ```ignore
//! #![no_std]
//! #![no_main]
//! plinth_rt::entry!(main);
//! fn main() -> u64 { plinth_rt::println!("hello"); 0 }
//! ```
//! and a `build.rs` that passes `guest.ld` to the linker.

#![no_std]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a trap and a failure travel by value"
)]

pub mod console;
pub mod cpu;
pub mod gdt;
pub mod hypercall;
pub mod object;
pub mod paging;
pub mod quirks;
pub mod scratch;
pub mod snippet;
mod start;
pub mod suite;
pub mod trap;

pub use plinth_abi as abi;
pub(crate) use plinth_common::Local;
pub use plinth_common::{check, check_eq};
pub use scratch::Scratch;
pub use snippet::Snippet;
pub use start::{entry_point, ram_size, start_info};
pub use suite::{Outcome, Why};
pub use trap::{Gprs, Trap};

/// Names the guest's main function, a `fn() -> u64`. What it returns is the domain's exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn plinth_guest_main() -> u64 {
            let main: fn() -> u64 = $main;
            main()
        }
    };
}
