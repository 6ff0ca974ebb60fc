//! The conformance suite of hypercalls: for every call the good case and every error that `docs/abi.md` names, what rights and
//! budgets allow, races, and that nothing is ever left behind.
//!
//! It needs a system handle and a handle to its own domain: it is the machine's first domain, or one to which the control guest
//! gave them. What it tries out, it tries out on child domains of its own. Every test must leave the accounts of
//! the machine and of the suite as it found them ([`accounts`]).

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code, which runs in child domains"
)]

/// Names the tests of a module. Each must leave the accounts balanced.
macro_rules! tests {
    ($module:literal: $($test:ident),+ $(,)?) => {
        /// The tests of this module.
        pub const TESTS: &[plinth_rt::suite::Test] = &[$((
            concat!($module, "::", stringify!($test)),
            || crate::accounts::balanced($test),
        )),+];
    };
}

mod buffers;
mod core_calls;
mod devices;
mod domains;
mod endings;
mod events;
mod handle_calls;
mod machine_calls;
mod memories;
mod objects;
mod pc;
mod precedence;
mod races;
mod rounds;
mod signatures;
mod states;
mod vcpus;
mod walk;

use plinth_rt::abi::domain::{MAX_VCPUS, platform};
use plinth_rt::abi::{DomainConfig, Handle};
use plinth_rt::suite::{self, Test};
use plinth_rt::{Outcome, println};
use plinth_testkit::options::option;
use plinth_testkit::{accounts, child, kit, warm, window};

plinth_rt::entry!(main);

/// The parts of the suite, in the order in which they run.
const PARTS: [&[Test]; 24] = [
    core_calls::TESTS,
    handle_calls::TESTS,
    signatures::TESTS,
    signatures::TESTS_OF_ANY,
    buffers::TESTS,
    domains::TESTS,
    vcpus::TESTS,
    memories::TESTS,
    events::TESTS,
    devices::TESTS,
    machine_calls::TESTS,
    pc::TESTS,
    pc::local::TESTS,
    pc::cpus::TESTS,
    pc::time::TESTS,
    pc::ends::TESTS,
    pc::io::TESTS,
    states::TESTS,
    states::TESTS_OF_A_PC,
    precedence::TESTS,
    endings::TESTS,
    walk::TESTS,
    races::TESTS,
    rounds::TESTS,
];

/// All tests.
static TESTS: [Test; suite::count(&PARTS)] = suite::joined(&PARTS);

/// Exit status of a suite that was not given what it needs.
const STATUS_NOTHING_GIVEN: u64 = 103;

fn main() -> u64 {
    if kit::system().0 == Handle::NONE || kit::own().0 == Handle::NONE {
        println!("the suite needs a system handle and a handle to its own domain");
        return STATUS_NOTHING_GIVEN;
    }
    if let Err(why) = warm_up().and_then(|()| accounts::open()) {
        println!("the suite cannot begin: {why}");
        return STATUS_NOTHING_GIVEN;
    }
    suite::run_some("conformance", &TESTS, is_wanted)
}

/// Whether the command line wants this test: `tests=` is how its name begins, `skip=` how it does not; either may be several, with commas
/// between.
fn is_wanted(name: &str) -> bool {
    let begins = |prefixes: &str| prefixes.split(',').any(|prefix| name.starts_with(prefix));
    option("tests").is_none_or(begins) && !option("skip").is_some_and(begins)
}

/// What the kernel keeps once it has been needed: besides what [`warm`] knows, CPUID of domains with so many vCPUs, and the binding of an
/// interrupt.
fn warm_up() -> Outcome {
    warm::up()?;
    let _pc = child::Temporary::new(&DomainConfig {
        vcpus: 4,
        platform: platform::PC,
        ..child::config(b"warm")
    })?;
    for vcpus in 1..=MAX_VCPUS {
        child::Temporary::new(&DomainConfig {
            vcpus,
            ..child::config(b"warm")
        })?;
    }
    if let Some(irq) = kit::irq() {
        let event = kit::event()?;
        // Some machines have no such interrupts.
        let _ = irq.bind(*event);
    }
    handle_calls::with_full_table(|| Ok(()))
}
