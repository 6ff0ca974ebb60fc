//! Models of a PC's devices: what an unmodified operating system or firmware expects to find at its I/O ports, and the ACPI tables
//! that tell it of them.
//!
//! Every model is a state machine and nothing else. It does no I/O and has no clock: time comes in as `now`, nanoseconds since a
//! moment that the owner chose, and must not go backwards (a model takes an earlier time for the latest it has seen). Interrupts
//! go out as levels of lines. Who serves a domain's accesses owns a [`Ports`], which puts the models together as a PC does, and
//! carries what they say to where it belongs: bytes to a console, lines to the domain's I/O APIC, the end to the domain.
//!
//! A guest may write anything anywhere. Nothing here panics for it, allocates for it without bound, or takes longer than a few
//! hundred steps for an access.

#![cfg_attr(not(any(test, feature = "fuzzing")), no_std)]
#![cfg_attr(
    all(feature = "fuzzing", not(test)),
    allow(
        dead_code,
        unused_imports,
        reason = "of the tests' modules the fuzzer uses the properties alone"
    )
)]

extern crate alloc;

pub mod acpi;
pub mod bus;
pub mod debug;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod i8042;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
mod time;
pub mod uart;

pub use bus::{Config, Edges, Ports, Range};

/// What a guest asked of its machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// Off: ACPI's sleeping state S5.
    Off,
    /// Start again, as after power-on.
    Reset,
    /// End with this status: what was written to the port that exists for tests.
    Exit(u32),
}
