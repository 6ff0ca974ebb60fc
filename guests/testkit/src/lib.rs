//! What test guests that make domains have in common: words for what must and must not succeed, and child domains of a few pages.

#![no_std]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

pub mod accounts;
pub mod child;
pub mod kit;
pub mod pc;
pub mod window;
