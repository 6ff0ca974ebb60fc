//! Tests of the kernel by itself, on the machine it runs on: what no host test can show. `test=NAME` on the command line
//! chooses one of them instead of running guests.
//!
//! * `cpu` runs the suite: a line a test, and the number of failures is the machine's status.
//! * `panic`, `fault`, `stack` and `again` make the kernel fail on purpose, for what it says then.
//! * `end` ends the machine at once, as `end=` says.
//! * `absent` lets guests run on a machine whose firmware names a CPU that is not there.
//! * `hang` lets guests run, and keeps the first CPU in the kernel for a while as soon as it idles: the watchdog tells of it.
//!
//! Nothing here runs on a machine that was not asked for it, but for a glance at the mailbox by CPUs that have nothing to do.

mod allocation;
mod cpus;
mod entry;
mod exceptions;
mod fatal;
mod hang;
mod interrupts;
mod mailbox;
mod mappings;
mod memory;
mod records;
mod timer;
mod vector;

use alloc::string::String;

use crate::arch::{power, trap};
use crate::boot::acpi::{CpuEntry, Firmware};
use crate::boot::cmdline;
use crate::log;

pub use mailbox::serve;

/// The status of a machine that was asked for a test that does not exist.
const NO_SUCH_TEST: u32 = 1;

/// How a test went: why it failed, if it did.
type Outcome = Result<(), String>;

/// A test.
struct Test {
    name: &'static str,
    run: fn() -> Outcome,
}

/// The tests of a family: functions of the module in which this stands.
macro_rules! tests {
    ($family:literal: $($name:ident),+ $(,)?) => {
        pub(super) const TESTS: &[super::Test] = &[
            $(super::Test { name: concat!($family, "::", stringify!($name)), run: $name }),+
        ];
    };
}

/// Ends the test where a condition does not hold.
macro_rules! check {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($why)+));
        }
    };
}

use {check, tests};

const FAMILIES: [&[Test]; 9] = [
    exceptions::TESTS,
    interrupts::TESTS,
    timer::TESTS,
    cpus::TESTS,
    memory::TESTS,
    vector::TESTS,
    records::TESTS,
    entry::TESTS,
    allocation::TESTS,
];

/// An id that no CPU of the machines on which this is tested has.
const NOBODYS_APIC_ID: u32 = 0x55;

/// Has the firmware say what the test that `test=` asks for needs.
pub fn prepare(name: &str, firmware: &mut Firmware) {
    if name == "absent" {
        // Before the others: they start all the same.
        firmware.cpus.insert(
            0,
            CpuEntry {
                apic_id: NOBODYS_APIC_ID,
                uid: NOBODYS_APIC_ID,
            },
        );
    }
}

/// Does what `test=` asks for, and ends the machine; or returns, where the test goes on while guests run.
pub fn run(name: &str) {
    let how = cmdline::options().end;
    match name {
        "cpu" => power::end(how, suite()),
        "end" => power::end(how, 0),
        "panic" => fatal::on_another_cpu(fatal::panics),
        "fault" => fatal::on_another_cpu(fatal::faults),
        "stack" => fatal::on_another_cpu(fatal::overflows),
        "again" => fatal::on_another_cpu(fatal::panics_again),
        "hang" => hang::arm(),
        // All that is needed was done before.
        "absent" => {}
        _ => {
            ::log::error!("there is no test called `{name}`");
            power::end(how, NO_SUCH_TEST)
        }
    }
}

/// Runs the suite; the number of failures.
fn suite() -> u32 {
    trap::disable_interrupts();
    let count: usize = FAMILIES.iter().map(|tests| tests.len()).sum();
    log::plain_line(format_args!("suite kernel: {count} tests"));
    let mut failures = 0;
    for test in FAMILIES.into_iter().flatten() {
        match (test.run)() {
            Ok(()) => log::plain_line(format_args!("test {} ... ok", test.name)),
            Err(why) => {
                failures += 1;
                log::plain_line(format_args!("test {} ... FAILED: {why}", test.name));
            }
        }
    }
    failures
}
