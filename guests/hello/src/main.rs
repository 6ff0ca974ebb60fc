//! The smallest guest: says where it is, and ends.

#![no_std]
#![no_main]

use plinth_rt::abi::{ABI_VERSION, cpuid};
use plinth_rt::{cpu, hypercall, println};

plinth_rt::entry!(main);

fn main() -> u64 {
    println!("Hello from a guest of Plinth.");

    let version = hypercall::version();
    println!("ABI version {}.{}", version >> 16, version & 0xffff);

    let vendor = cpu::vendor();
    println!(
        "CPU vendor {}",
        core::str::from_utf8(&vendor).unwrap_or("(not text)")
    );

    let leaf = cpu::cpuid(cpuid::LEAF_SIGNATURE, 0);
    let signature = [leaf.ebx, leaf.ecx, leaf.edx];
    let letters = cpu::letters(signature);
    println!(
        "hypervisor {}, leaves to {:#x}",
        core::str::from_utf8(&letters).unwrap_or("(not text)"),
        leaf.eax
    );

    let first = hypercall::clock();
    hypercall::yield_now();
    let second = hypercall::clock();
    println!("clock {first} ns, then {second} ns");
    println!("memory {} KiB", plinth_rt::ram_size() / 1024);

    u64::from(version >> 16 != ABI_VERSION >> 16 || signature != cpuid::SIGNATURE || second < first)
}
