//! Images of guests: which format a file has, what it puts into a domain's memory, and how the first vCPU starts.
//!
//! Five [`Format`]s are known:
//!
//! * Plinth's own, a static 64-bit executable ([`Executable`]); `docs/abi.md` tells the same to the authors of guests;
//! * a Linux kernel (bzImage), by the 64-bit entry of the Linux/x86 boot protocol (`Documentation/arch/x86/boot.rst`);
//! * an executable with Xen's PVH entry (`docs/misc/pvh.pandoc` in Xen);
//! * a Multiboot image (Multiboot Specification 0.6.96);
//! * firmware: an executable that is entered at the reset vector, or a raw image of a flash memory that ends at 4 GiB.
//!
//! [`Image::detect`] finds out which, [`Image::load`] copies everything to its place in a [`Machine`] and gives the state
//! of the first vCPU. The kernel, which starts but one domain, uses [`Executable`] alone; that path allocates nothing.
//!
//! An image may hold anything: what is wrong with it is an [`ImageError`], and nothing is written outside the memory that
//! the guest is to have. What an image wants is worked out to the end before the first byte is written.

#![cfg_attr(not(any(test, feature = "fuzzing")), no_std)]
#![cfg_attr(
    all(feature = "fuzzing", not(test)),
    allow(
        dead_code,
        unused_imports,
        reason = "of the tests' modules the fuzzer uses the properties alone"
    )
)]
#![cfg_attr(
    any(test, feature = "fuzzing"),
    allow(
        clippy::single_range_in_vec_init,
        reason = "RAM in one piece is just that"
    )
)]

extern crate alloc;

mod error;
mod executable;
mod firmware;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod image;
mod linux;
mod machine;
mod multiboot;
mod place;
mod pvh;
mod segments;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;

pub use error::ImageError;
pub use executable::{Executable, FIRMWARE};
pub use image::{Format, Image};
pub use machine::{FOUR_GIB, HOLE, LEGACY, Machine, MemoryKind, Module, Region, e820, ram_ranges};
