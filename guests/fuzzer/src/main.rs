//! Fuzzers that run in guests. [`calls`] makes random hypercalls, [`exits`] runs random instructions. Beside both a neighbour must go on
//! and find nothing changed, and the accounts of the machine and of the suite must balance after each round. [`lives`] is a first domain
//! that is killed at random points of its work.
//!
//! All that is random follows from a seed and the number of a round. The word `fuzz=` of the command line says what is run
//! ([`orders`]); who fails tells the word that runs the same again.
//!
//! It needs a system handle and a handle to its own domain, and 16 MiB of memory.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod calls;
mod dice;
mod exits;
mod lists;
mod lives;
mod orders;

use plinth_rt::abi::Handle;
use plinth_rt::{Outcome, println, suite};
use plinth_testkit::{accounts, attacker, kit, neighbour, warm};

use crate::orders::Orders;

plinth_rt::entry!(main);

/// Exit status of a suite that was not given what it needs.
const STATUS_NOTHING_GIVEN: u64 = 103;

fn main() -> u64 {
    attacker::obey();
    attacker::keep_image();
    if kit::system().0 == Handle::NONE || kit::own().0 == Handle::NONE {
        println!("the fuzzers need a system handle and a handle to their own domain");
        return STATUS_NOTHING_GIVEN;
    }
    if Orders::given().only == Some("lives") {
        return lives::live();
    }
    if let Err(why) = warm_up().and_then(|()| accounts::open()) {
        println!("the fuzzers cannot begin: {why}");
        return STATUS_NOTHING_GIVEN;
    }
    suite!("fuzzer", [calls::run, exits::run])
}

fn warm_up() -> Outcome {
    neighbour::move_in()?;
    warm::up()?;
    warm::attackers()?;
    lists::lengthen()
}
