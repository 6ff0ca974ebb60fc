//! The Plinth microhypervisor: everything but the entry point, so that its pure parts run under `cargo test` on the host.
//!
//! Principles, in the order in which they win: safe where reasonable, simple before clever, fast where it is measured.
//! The kernel holds only what must be privileged; a guest's error is a status code or the end of that guest, never of
//! the machine; every piece of work done with interrupts off is bounded.

#![cfg_attr(not(any(test, feature = "fuzzing")), no_std)]
#![cfg_attr(
    all(feature = "fuzzing", not(test)),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "of the tests' modules the fuzzer uses the properties alone"
    )
)]

extern crate alloc;

pub mod arch;
pub mod boot;
pub mod decode;
pub mod exit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod hypercall;
pub mod intc;
pub mod launch;
pub mod log;
pub mod mem;
#[cfg(test)]
mod models;
pub mod object;
pub mod root;
pub mod rules;
pub mod sched;
pub mod selftest;
pub mod sync;
pub mod trace;
pub mod virt;

#[cfg(test)]
mod compile_fail {
    /// What the types of hardware fields must refuse: one field's value, or a bare number, in another.
    #[test]
    fn mixed_up_fields_do_not_compile() {
        trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
    }
}
