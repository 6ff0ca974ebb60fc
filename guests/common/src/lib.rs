//! What the runtimes of guests have in common, whatever starts them: statics of a guest with one CPU, and how tests fail, and how is measured.

#![no_std]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod local;
mod ticks;
mod why;

pub use local::Local;
pub use ticks::Ticks;
pub use why::{Outcome, Test, Why};
