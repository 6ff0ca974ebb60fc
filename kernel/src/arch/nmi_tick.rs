//! A periodic NMI to all CPUs, from the PIT through the I/O APIC, for a machine whose ordinary interrupts do not end every run of
//! a guest.
//!
//! On every real CPU they do (SDM vol. 3 26.2; APM2 15.21.1: with V_INTR_MASKING the guest's IF is of no account). Bochs 2.7 takes none while the
//! guest's IF is clear, but it takes NMIs. The VMX-preemption timer does not help every guest there: time stands still while a CPU executes a few
//! instructions, and of a guest that exits sooner none may ever be counted. So this runs on Bochs alone, and bounds a slice there.

#![allow(unsafe_code, reason = "ports of the PIT")]

use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::Port;

use super::{errata, irq, smp};

/// The PIT's line.
const PIT_LINE: u8 = 0;
/// Ticks of the PIT (1.193182 MHz) between two NMIs: a hundredth of a second.
const PERIOD: u16 = 11_932;
/// Whether this machine is Bochs.
pub fn is_needed() -> bool {
    errata::is_bochs()
}

static RUNNING: AtomicBool = AtomicBool::new(false);

/// Whether NMIs come by it.
pub(super) fn is_running() -> bool {
    RUNNING.load(Ordering::Relaxed)
}

/// Starts the tick, unless there is a CPU that could not take an NMI. Nothing stops it: the kernel uses the PIT for nothing else after calibration.
pub fn start() {
    if !smp::all_are_up() {
        log::warn!("not every CPU is up: a guest that keeps interrupts off may keep its CPU");
        return;
    }
    RUNNING.store(true, Ordering::Relaxed);
    if !irq::make_nmi(PIT_LINE) {
        log::warn!("there is no I/O APIC: a guest that keeps interrupts off may keep its CPU");
        return;
    }
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
