//! A suite of tests: runs each, survives each, prints a line for each.
//!
//! A suite announces how many tests it has, so that one that dies half-way is noticed: `suite NAME: N tests`, then
//! `test NAME ... ok` or `test NAME ... FAILED: why` for each.

pub use plinth_common::{Outcome, Test, Why};

use crate::trap::{self, Gprs, Trap};
use crate::{Local, Snippet, check_eq, cpu, gdt, println};

impl From<Trap> for Why {
    fn from(trap: Trap) -> Self {
        format_args!("unexpected {trap}").into()
    }
}

/// Runs the named functions as a suite and returns how many failed, at most 100: the guest's exit status.
#[macro_export]
macro_rules! suite {
    ($name:literal, [$($test:path),+ $(,)?]) => {
        $crate::suite::run($name, &[$((stringify!($test), $test as fn() -> $crate::Outcome)),+])
    };
}

/// How many tests the parts of a suite have.
pub const fn count(parts: &[&[Test]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

/// The tests of all parts, one after the other; `N` is their [`count`].
pub const fn joined<const N: usize>(parts: &[&[Test]]) -> [Test; N] {
    let mut all = [parts[0][0]; N];
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            all[count] = parts[part][index];
            count += 1;
            index += 1;
        }
        part += 1;
    }
    all
}

/// What came of running a snippet that must fault: the exception must be `vector` with `error`, and RIP that of the first
/// instruction.
pub fn faulted(
    snippet: &Snippet,
    result: Result<Gprs, Trap>,
    vector: u8,
    error: u64,
) -> Result<Trap, Why> {
    let trap = trapped(result, vector)?;
    check_eq!(trap.error, error, "error code");
    check_eq!(trap.rip(), snippet.start(), "RIP");
    Ok(trap)
}

/// What came of running a snippet that must end in the exception `vector`.
pub fn trapped(result: Result<Gprs, Trap>, vector: u8) -> Result<Trap, Why> {
    match result {
        Ok(_) => Err(format_args!("no exception, expected vector {vector}").into()),
        Err(trap) if trap.vector == vector => Ok(trap),
        Err(trap) => Err(format_args!("{trap}, expected vector {vector}").into()),
    }
}

/// Runs the snippet at CPL 0; it must fault at its first instruction.
pub fn must_fault(snippet: &Snippet, registers: Gprs, vector: u8, error: u64) -> Outcome {
    faulted(snippet, snippet.run(registers), vector, error).map(drop)
}

/// Runs the snippet at CPL 3; it must fault at its first instruction.
pub fn must_fault_user(snippet: &Snippet, registers: Gprs, vector: u8, error: u64) -> Outcome {
    faulted(snippet, snippet.run_user(registers), vector, error).map(drop)
}

static RUNNING: Local<bool> = Local::new(false);

/// Whether a panic should be the failure of a test, not the guest's end.
pub fn is_running() -> bool {
    RUNNING.get()
}

/// Announces the suite and runs it; returns how many failed, at most 100.
pub fn run(name: &str, tests: &[Test]) -> u64 {
    run_some(name, tests, |_| true)
}

/// As [`run`], with the tests that are wanted by their names.
pub fn run_some(name: &str, tests: &[Test], wanted: impl Fn(&str) -> bool) -> u64 {
    let tests = || tests.iter().filter(|(name, _)| wanted(name));
    println!("suite {name}: {} tests", tests().count());
    run_each(name, tests())
}

/// Runs the tests of a suite that has announced itself already; returns how many failed, at most 100.
pub fn run_announced(name: &str, tests: &[Test]) -> u64 {
    run_each(name, tests.iter())
}

fn run_each<'a>(name: &str, tests: impl Iterator<Item = &'a Test>) -> u64 {
    RUNNING.set(true);
    let machine = Machine::capture();
    let (mut passed, mut failed) = (0_u64, 0_u64);
    for (name, test) in tests {
        let outcome = trap::catch(test).unwrap_or_else(|trap| Err(trap.into()));
        machine.restore();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                failed += 1;
                println!("test {name} ... FAILED: {why}");
            }
        }
    }
    RUNNING.set(false);
    println!("suite {name}: {passed} passed, {failed} failed");
    failed.min(100)
}

/// Control registers that a test may leave changed.
struct Machine {
    cr0: u64,
    cr3: u64,
    cr4: u64,
}

impl Machine {
    fn capture() -> Self {
        Self {
            cr0: cpu::cr0().unwrap_or(0),
            cr3: cpu::cr3().unwrap_or(0),
            cr4: cpu::cr4().unwrap_or(0),
        }
    }

    /// Puts the registers back; what cannot be put back shows as the next tests' failure.
    fn restore(&self) {
        cpu::lidt(&trap::table());
        let _ = cpu::set_dr7(0x400);
        let _ = cpu::set_cr0(self.cr0);
        let _ = cpu::set_cr4(self.cr4);
        let _ = cpu::set_cr3(self.cr3);
        let _ = cpu::set_cr8(0);
        gdt::load();
    }
}
