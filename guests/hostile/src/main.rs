//! Attacks by class. Each case makes an attacker, a domain of its own, and says what the manuals or `docs/abi.md` promise it: an
//! exception, a value, a status, an end. Around every case ([`plinth_testkit::runner`]) a neighbour must go on computing and find nothing changed, and
//! the accounts of the machine and of the suite must balance once the attacker is gone.
//!
//! The suite needs a system handle and a handle to its own domain, and 16 MiB of memory.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in attackers"
)]

/// Names the cases of a module.
macro_rules! cases {
    ($module:literal: $($case:ident),+ $(,)?) => {
        /// The cases of this module.
        pub const CASES: &[plinth_rt::suite::Test] = &[$((
            concat!($module, "::", stringify!($case)),
            || plinth_testkit::runner::watched($case),
        )),+];
    };
}

mod budgets;
mod claimers;
mod double_fetches;
mod entry_states;
mod exits;
mod handles;
mod leftovers;
mod local_apics;
mod msrs;
mod nested_faults;
mod ports;
mod stale_translations;
mod tasks;
mod virtualisation;

use plinth_rt::abi::Handle;
use plinth_rt::suite::{self, Test};
use plinth_rt::{Outcome, println};
use plinth_testkit::{accounts, attacker, kit, neighbour, warm};

plinth_rt::entry!(main);

/// The classes of attacks, in the order in which they run.
const CLASSES: [&[Test]; 14] = [
    entry_states::CASES,
    nested_faults::CASES,
    virtualisation::CASES,
    tasks::CASES,
    msrs::CASES,
    ports::CASES,
    exits::CASES,
    local_apics::CASES,
    leftovers::CASES,
    stale_translations::CASES,
    double_fetches::CASES,
    claimers::CASES,
    handles::CASES,
    budgets::CASES,
];

/// All cases.
static CASES: [Test; suite::count(&CLASSES)] = suite::joined(&CLASSES);

/// Exit status of a suite that was not given what it needs.
const STATUS_NOTHING_GIVEN: u64 = 103;

fn main() -> u64 {
    attacker::obey();
    attacker::keep_image();
    if kit::system().0 == Handle::NONE || kit::own().0 == Handle::NONE {
        println!("the suite needs a system handle and a handle to its own domain");
        return STATUS_NOTHING_GIVEN;
    }
    if let Err(why) = warm_up().and_then(|()| accounts::open()) {
        println!("the suite cannot begin: {why}");
        return STATUS_NOTHING_GIVEN;
    }
    suite::run("hostile", &CASES)
}

/// What the cases need, needed once before the accounts are opened.
fn warm_up() -> Outcome {
    neighbour::move_in()?;
    warm::up()?;
    warm::attackers()
}
