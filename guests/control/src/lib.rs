//! The control guest: the paravirtual guest that holds all authority over the machine, as Xen's dom0 does.
//!
//! It keeps the machines that the module archive describes, their domains and consoles, and talks to the operator on the serial
//! port. Here are its pure parts, which run under `cargo test` on the host: what the operator types and sees, machine
//! files, rings, tables. What makes hypercalls is in the program, `src/bin/control`. `docs/control.md` is the operator's manual.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod batch;
pub mod calendar;
pub mod command;
pub mod config;
pub mod ending;
pub mod format;
pub mod line;
pub mod plain;
pub mod report;
pub mod ring;
pub mod slot;
pub mod suggest;
pub mod top;
pub mod windows;
