//! Starts at the reset vector in real mode, climbs to long mode by way of every mode between, and tells what worked.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code; what is run, the runtime runs"
)]

mod climb;

use plinth_rt::suite::{self, Test};
use plinth_rt::{Gprs, Outcome, check, snippet};

plinth_rt::entry!(main);

/// What the test of this number left behind.
fn verdict(number: u64) -> Outcome {
    let out = snippet!("movzx eax, byte ptr [rdi]").run(Gprs {
        rdi: climb::RESULTS + number,
        ..Gprs::ZERO
    })?;
    check!(out.rax & 2 != 0, "was not run");
    check!(out.rax == u64::from(climb::PASSED), "wrong result");
    Ok(())
}

/// The test of number `N`, counted from 0.
fn test<const N: u64>() -> Outcome {
    verdict(N)
}

macro_rules! tests {
    ($($number:literal)*) => {
        [$((climb::NAMES[$number], test::<$number> as fn() -> Outcome)),*]
    };
}

const TESTS: [Test; climb::NAMES.len()] = tests!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);

fn main() -> u64 {
    suite::run_announced("realmode", &TESTS)
}
