//! A suite of tests: a line for each, in the form in which all test guests tell their results.

use core::fmt::{self, Write};

use heapless::String;

use crate::println;

/// Why a test failed, in up to 200 bytes of text.
#[derive(Clone)]
pub struct Why(String<200>);

/// What a test returns.
pub type Outcome = Result<(), Why>;

/// A test: its name and what it runs.
pub type Test = (&'static str, fn() -> Outcome);

impl From<fmt::Arguments<'_>> for Why {
    fn from(arguments: fmt::Arguments<'_>) -> Self {
        let mut why = Self(String::new());
        // What does not fit is cut off.
        let _ = why.0.write_fmt(arguments);
        why
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fails the test, with a formatted reason, unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::Why::from(format_args!($($why)+)));
        }
    };
}

/// Fails the test unless both are equal; shows both in hexadecimal.
#[macro_export]
macro_rules! check_eq {
    ($seen:expr, $expected:expr, $what:literal) => {{
        let (seen, expected) = ($seen, $expected);
        if seen != expected {
            return Err($crate::Why::from(format_args!(
                "{}: {seen:#x}, expected {expected:#x}",
                $what
            )));
        }
    }};
}

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
