//! A periodic NMI to all CPUs, from the PIT through the I/O APIC, for a machine whose ordinary interrupts do not end every run of
//! a guest.
//!
//! On every real CPU they do (APM2 15.21.1: with V_INTR_MASKING the guest's IF is of no account). Bochs 2.7 takes none under SVM
//! while the guest's IF is clear, but it takes NMIs. So this runs on Bochs alone, and bounds a slice there.

#![allow(unsafe_code, reason = "ports of the PIT, registers of the I/O APIC")]

use x86_64::instructions::port::Port;

use super::paging;
use crate::mem::Hpa;

/// Where the first I/O APIC is on a PC, for machines without ACPI tables.
const IO_APIC: Hpa = Hpa::new(0xfec0_0000);
/// Its input that carries the PIT: line 0 of the old controllers is wired to it on every PC since the MP specification.
const PIT_INPUT: u32 = 2;
/// Ticks of the PIT (1.193182 MHz) between two NMIs: a hundredth of a second.
const PERIOD: u16 = 11_932;
/// Redirection: delivery mode NMI, edge, physical destination (82093AA 3.2.4).
const NMI: u32 = 4 << 8;
/// Physical destination: every CPU.
const EVERYBODY: u32 = 0xff << 24;
/// The debug port of Bochs, which reads its own number.
const DEBUG_PORT: u16 = 0xe9;

/// Whether this machine is Bochs.
pub fn is_needed() -> bool {
    // SAFETY: a port without a device reads all ones; with Bochs's, or QEMU's of the same kind, reading has no effect.
    unsafe { Port::<u8>::new(DEBUG_PORT).read() == DEBUG_PORT as u8 }
}

/// Starts the tick. Nothing stops it: the kernel uses the PIT for nothing else after calibration.
pub fn start() {
    let Ok(registers) = paging::map_mmio(IO_APIC, 4096) else {
        log::warn!(
            "the I/O APIC cannot be mapped: a guest that keeps interrupts off may keep its CPU"
        );
        return;
    };
    let write = |register: u32, value: u32| {
        let select = registers.get() as *mut u32;
        // SAFETY: the index and data registers of the I/O APIC (82093AA 3.1), mapped uncached; the kernel uses no other
        // input of it.
        unsafe {
            select.write_volatile(register);
            select.byte_add(0x10).write_volatile(value);
        }
    };
    write(0x10 + 2 * PIT_INPUT + 1, EVERYBODY);
    write(0x10 + 2 * PIT_INPUT, NMI);
    // SAFETY: channel 0 of the PIT is used by nobody else; mode 2, binary.
    unsafe {
        Port::<u8>::new(0x43).write(0b0011_0100);
        Port::<u8>::new(0x40).write(PERIOD as u8);
        Port::<u8>::new(0x40).write((PERIOD >> 8) as u8);
    }
    log::info!(
        "slices are bounded by NMIs: this machine's interrupts do not end every run of a guest"
    );
}
