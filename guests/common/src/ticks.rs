//! Measuring in ticks of the TSC: executed instructions where the machine counts one tick an instruction (QEMU with `-icount shift=0`,
//! Bochs), cycles elsewhere.

#![allow(unsafe_code, reason = "reads the TSC")]

use core::fmt;

/// How often each operation is measured, after as many runs that warm up what the kernel remembers.
const RUNS: usize = 101;

/// A function that gives the ticks around the instructions given, which may change RAX, RCX and RDX.
#[macro_export]
macro_rules! around {
    ($($line:literal),* $(; $($operand:tt)*)?) => {
        || -> u64 {
            let (start, end): (u64, u64);
            // SAFETY: the caller answers for the instructions; none changes other registers than are named.
            unsafe {
                core::arch::asm!(
                    "rdtsc",
                    "shl rdx, 32",
                    "or rax, rdx",
                    "mov r8, rax",
                    $($line,)*
                    "rdtsc",
                    "shl rdx, 32",
                    "or rax, rdx",
                    out("r8") start,
                    out("rax") end,
                    out("rdx") _,
                    out("rcx") _,
                    $($($operand)*,)?
                );
            }
            end.wrapping_sub(start)
        }
    };
}

/// What an operation costs, without what two readings with nothing between them cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticks {
    /// Of all runs.
    pub median: u64,
    /// Of all runs.
    pub least: u64,
    /// Of all runs.
    pub most: u64,
}

impl Ticks {
    /// Measures an operation that gives its ticks.
    #[must_use]
    pub fn of(operation: &dyn Fn() -> u64) -> Self {
        let [harness, ..] = sorted(&around!());
        let [median, least, most] = sorted(operation).map(|ticks| ticks.saturating_sub(harness));
        Self {
            median,
            least,
            most,
        }
    }
}

/// The form in which `cargo xtask bench` reads it.
impl fmt::Display for Ticks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.median, self.least, self.most)
    }
}

/// Median, least and most of many runs.
fn sorted(operation: &dyn Fn() -> u64) -> [u64; 3] {
    let mut ticks = [0; RUNS];
    for _ in 0..2 {
        for place in &mut ticks {
            *place = operation();
        }
    }
    ticks.sort_unstable();
    [ticks[RUNS / 2], ticks[0], ticks[RUNS - 1]]
}
