//! A suite of tests: a line for each, in the form in which all test guests tell their results.

use plinth_common::Test;

use crate::println;

/// Runs the named functions as a suite and returns how many failed, at most 100: the guest's exit status.
#[macro_export]
macro_rules! suite {
    ($name:literal, [$($test:path),+ $(,)?]) => {
        $crate::suite::run($name, &[$((stringify!($test), $test as fn() -> $crate::Outcome)),+])
    };
}

/// Announces the suite and runs it; returns how many failed, at most 100.
pub fn run(name: &str, tests: &[Test]) -> u32 {
    println!("suite {name}: {} tests", tests.len());
    let mut failed = 0;
    for (name, test) in tests {
        match test() {
            Ok(()) => println!("test {name} ... ok"),
            Err(why) => {
                failed += 1;
                println!("test {name} ... FAILED: {why}");
            }
        }
    }
    let passed = tests.len() as u32 - failed;
    println!("suite {name}: {passed} passed, {failed} failed");
    failed.min(100)
}
