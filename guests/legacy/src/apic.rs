//! The local APIC and the I/O APIC, at their usual places.

#![allow(unsafe_code, reason = "registers in memory")]

use plinth_pc::memory;

use crate::irq;

/// Where the local APIC's registers are (SDM vol. 3 table 11-1), and those that matter here.
const LOCAL: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const LINT0: u64 = 0x350;
/// Software enable.
const ENABLE: u32 = 1 << 8;
/// In an entry of the local vector table, and in one of the I/O APIC's.
const MASKED: u32 = 1 << 16;
const EXTINT: u32 = 0b111 << 8;

/// The I/O APIC: index, data.
const IO: u64 = 0xfec0_0000;
const DATA: u64 = IO + 0x10;
/// The first of the redirection entries' registers, two for each pin.
const ENTRIES: u32 = 0x10;
/// Where the PIT is connected.
pub const TIMER_PIN: u32 = 2;

fn set_local(register: u64, value: u32) {
    // SAFETY: registers of the local APIC are no memory of the program's.
    unsafe { memory::write(LOCAL + register, value) }
}

/// Switches it on, and passes the interrupts of the 8259A on to the CPU, or not.
pub fn pass_pic(pass: bool) {
    set_local(SPURIOUS, ENABLE | u32::from(irq::SPURIOUS));
    set_local(LINT0, if pass { EXTINT } else { EXTINT | MASKED });
}

pub fn end_of_interrupt() {
    set_local(EOI, 0);
}

fn set_io(register: u32, value: u32) {
    // SAFETY: registers of the I/O APIC are no memory of the program's.
    unsafe {
        memory::write(IO, register);
        memory::write(DATA, value);
    }
}

/// Leads a pin to this CPU as an edge-triggered interrupt with that vector, or nowhere.
pub fn route(pin: u32, vector: Option<u8>) {
    let register = ENTRIES + 2 * pin;
    let id = memory::read::<u32>(LOCAL + ID) >> 24;
    set_io(register, MASKED);
    if let Some(vector) = vector {
        set_io(register + 1, id << 24);
        set_io(register, vector.into());
    }
}
