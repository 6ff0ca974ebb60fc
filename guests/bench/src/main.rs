//! Measures what an exit costs, in ticks of the TSC: executed instructions where the machine counts one tick an instruction (QEMU
//! with `-icount shift=0`, Bochs), cycles elsewhere.
//!
//! Each operation runs many times, each time between two readings of the TSC; what two readings with nothing between them cost is
//! taken off. A line each: `bench NAME: MEDIAN (LEAST to MOST)`. The names are those of kvm-unit-tests' `vmexit` where it
//! has the operation.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "executes the instructions that are measured")]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod domains;

use plinth_common::{Ticks, around};
use plinth_rt::{hypercall, println};
use plinth_testkit::kit::system;

plinth_rt::entry!(main);

/// A port that nobody claims.
const PORT: u16 = 0x5678;
/// A loop of so many times two instructions, which shows whether a tick is an instruction.
const LOOPS: u32 = 500;

fn main() -> u64 {
    // First of all: since the kernel's first instruction, for its clock starts there.
    let since_entry = hypercall::clock();
    if let Some(hz) = system_hz() {
        let ticks = u128::from(since_entry) * u128::from(hz) / 1_000_000_000;
        println!("bench entry_to_guest: {ticks} ({ticks} to {ticks})");
    }
    report(
        "loop_of_1000",
        "",
        &around!("mov ecx, {loops}", "2: dec ecx", "jnz 2b"; loops = const LOOPS),
    );
    calls("");
    exits();
    if plinth_rt::start_info().is_none() {
        println!("note: without the machine's handles nothing is measured of domains");
        return 0;
    }
    match domains::measure(&calls) {
        Ok(()) => 0,
        Err(why) => {
            println!("domains cannot be measured: {why}");
            1
        }
    }
}

/// TSC ticks a second, for who has the machine's handles.
fn system_hz() -> Option<u64> {
    plinth_rt::start_info()?;
    system().info().ok().map(|info| info.tsc_hz)
}

/// Measures one operation, and prints a line.
fn report(name: &str, suffix: &str, operation: &dyn Fn() -> u64) {
    println!("bench {name}{suffix}: {}", Ticks::of(operation));
}

/// What must not depend on how many domains there are.
fn calls(suffix: &str) {
    if hypercall::is_vmmcall() {
        report("vmcall", suffix, &around!("xor eax, eax", "vmmcall"));
    } else {
        report("vmcall", suffix, &around!("xor eax, eax", "vmcall"));
    }
    report(
        "cpuid",
        suffix,
        &around!("mov r9, rbx", "xor eax, eax", "cpuid", "mov rbx, r9"; out("r9") _),
    );
}

fn exits() {
    let report = |name: &str, operation: &dyn Fn() -> u64| report(name, "", operation);
    report("rdmsr_efer", &around!("mov ecx, 0xc0000080", "rdmsr"));
    report("wrmsr_pat", &around!("mov ecx, 0x277", "rdmsr", "wrmsr"));
    report(
        "inl_from_kernel",
        &around!("mov dx, {port}", "in eax, dx"; port = const PORT),
    );
    report(
        "outl_to_kernel",
        &around!("mov dx, {port}", "out dx, eax"; port = const PORT),
    );
    report("mov_to_cr4", &around!("mov rax, cr4", "mov cr4, rax"));
    report("wbinvd", &around!("wbinvd"));
}
