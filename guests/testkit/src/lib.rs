//! What test guests that make domains have in common: words for what must and must not succeed, child domains of a few pages,
//! attackers that run a copy of the suite, and a neighbour that must not notice.

#![no_std]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

pub mod accounts;
pub mod attacker;
pub mod child;
pub mod kit;
pub mod neighbour;
pub mod options;
pub mod pc;
pub mod runner;
pub mod warm;
pub mod window;
