//! The door for the fuzzer, `fuzz/`: a property that the host's tests check, with the strategy that makes its inputs. No guest has
//! this module.

pub use crate::bus::tests::{gust, keeps_the_owner_informed};
