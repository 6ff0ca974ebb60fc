//! Why a test failed, and how it says so.

use core::fmt::{self, Write};

/// Why a test failed, in up to 200 bytes of text.
#[derive(Clone, Copy)]
pub struct Why {
    text: [u8; 200],
    used: usize,
}

/// What a test returns.
pub type Outcome = Result<(), Why>;

/// A test: its name and what it runs.
pub type Test = (&'static str, fn() -> Outcome);

impl Write for Why {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if let Some(slot) = self.text.get_mut(self.used) {
                *slot = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.get(..self.used).unwrap_or(&[]);
        f.write_str(core::str::from_utf8(text).unwrap_or("(text cut inside a character)"))
    }
}

impl From<fmt::Arguments<'_>> for Why {
    fn from(arguments: fmt::Arguments<'_>) -> Self {
        let mut why = Self {
            text: [0; 200],
            used: 0,
        };
        // Its write_str does not fail.
        let _ = why.write_fmt(arguments);
        why
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
