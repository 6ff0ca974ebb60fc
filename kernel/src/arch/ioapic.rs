//! An I/O APIC (82093AA data sheet; Intel's later chipsets keep its registers).

#![allow(unsafe_code, reason = "device registers in memory")]

use bitfield_struct::bitfield;

use super::paging;
use crate::mem::Hpa;

/// Index of the register with the version and the number of inputs.
const VERSION: u32 = 0x01;
/// Index of the first half of the first redirection entry.
const REDIRECTION: u32 = 0x10;
/// Bytes of the registers that are used.
const WINDOW: u64 = 0x20;

/// How a message is delivered to a CPU's local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// As an interrupt with the entry's vector.
    Fixed,
    /// As an NMI; the vector has no meaning.
    Nmi,
}

impl Delivery {
    const fn into_bits(self) -> u8 {
        match self {
            Self::Fixed => 0,
            Self::Nmi => 4,
        }
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            4 => Self::Nmi,
            _ => Self::Fixed,
        }
    }
}

/// An entry of the redirection table (82093AA 3.2.4): what an input becomes. The destination is physical.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Redirection {
    /// Vector.
    pub vector: u8,
    /// Delivery mode.
    #[bits(3)]
    pub delivery: Delivery,
    /// Logical destination mode.
    logical: bool,
    /// Read only: a message has not been accepted yet.
    pending: bool,
    /// Active low.
    pub active_low: bool,
    /// Read only: a level-triggered interrupt waits for its end of interrupt.
    remote_irr: bool,
    /// Level-triggered.
    pub level: bool,
    /// Nothing is sent. Edges that come meanwhile are lost.
    pub masked: bool,
    #[bits(39)]
    __: u64,
    /// APIC id of the CPU; 255 is every CPU.
    pub destination: u8,
}

/// An I/O APIC that was found.
pub(super) struct IoApic {
    /// Where the index register is mapped; the data register lies 16 bytes above.
    window: u64,
    gsi_base: u32,
    inputs: u32,
}

impl IoApic {
    /// Maps the I/O APIC at `address` and masks all its inputs; `None` where no I/O APIC answers.
    pub(super) fn find(address: Hpa, gsi_base: u32) -> Option<Self> {
        let window = paging::map_mmio(address, WINDOW).ok()?;
        let mut this = Self {
            window: window.get(),
            gsi_base,
            inputs: 0,
        };
        this.inputs = inputs(this.read(VERSION))?;
        for input in 0..this.inputs {
            // Edge-triggered, which also clears a remote IRR that the firmware may have left.
            this.set(input, Redirection::new().with_masked(true));
        }
        Some(this)
    }

    /// The input at which a global system interrupt arrives, if it is one of this I/O APIC's.
    pub(super) fn input(&self, gsi: u32) -> Option<u32> {
        gsi.checked_sub(self.gsi_base)
            .filter(|&input| input < self.inputs)
    }

    /// Sets the entry of `input`. Nothing is sent by a mixture of the old entry and the new one.
    pub(super) fn set(&mut self, input: u32, entry: Redirection) {
        self.set_low(input, entry.with_masked(true));
        self.write(high(input), (entry.into_bits() >> 32) as u32);
        if !entry.masked() {
            self.set_low(input, entry);
        }
    }

    /// Sets the half of the entry of `input` that has all but the destination. It has taken effect when this returns: with a
    /// level-triggered input, an end of interrupt may reach the I/O APIC by another way than the write before it.
    pub(super) fn set_low(&mut self, input: u32, entry: Redirection) {
        self.write(low(input), entry.into_bits() as u32);
        self.read(low(input));
    }

    fn read(&mut self, register: u32) -> u32 {
        let index = self.window as *mut u32;
        // SAFETY: `find` mapped both registers, uncached. Reading one of those that are named here has no effect; `&mut self`
        // keeps the index from changing in between.
        unsafe {
            index.write_volatile(register);
            index.byte_add(0x10).read_volatile()
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        let index = self.window as *mut u32;
        // SAFETY: as in `read`. A redirection entry has no effect on memory.
        unsafe {
            index.write_volatile(register);
            index.byte_add(0x10).write_volatile(value);
        }
    }
}

/// Index of the lower half of an input's entry.
const fn low(input: u32) -> u32 {
    REDIRECTION + 2 * input
}

/// Index of the upper half.
const fn high(input: u32) -> u32 {
    low(input) + 1
}

/// The number of inputs by the version register; `None` where it is none of an I/O APIC: bits 31:24 are reserved, and no place
/// that is empty has a version of neither 0 nor all ones.
const fn inputs(version: u32) -> Option<u32> {
    // The index register has 8 bits: that many inputs have entries.
    const MOST: u32 = (0x100 - REDIRECTION) / 2;
    let inputs = (version >> 16 & 0xff) + 1;
    if version >> 24 != 0 || version & 0xff == 0 || inputs > MOST {
        return None;
    }
    Some(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_fields_of_the_data_sheet() {
        let entry = Redirection::new()
            .with_vector(0x34)
            .with_delivery(Delivery::Nmi)
            .with_active_low(true)
            .with_level(true)
            .with_masked(true)
            .with_destination(7);
        assert_eq!(
            entry.into_bits(),
            7 << 56 | 1 << 16 | 1 << 15 | 1 << 13 | 4 << 8 | 0x34
        );
        assert_eq!(
            Redirection::new().with_vector(0x30).into_bits(),
            0x30,
            "fixed, physical, edge, high"
        );
    }

    #[test]
    fn only_a_plausible_version_is_one() {
        assert_eq!(inputs(0x0017_0011), Some(24), "82093AA");
        assert_eq!(inputs(0x0077_8020), Some(120), "a chipset of today");
        assert_eq!(inputs(u32::MAX), None, "nothing there");
        assert_eq!(inputs(0), None);
        assert_eq!(inputs(0x00ff_0020), None, "more than can be named");
    }

    #[test]
    fn inputs_are_numbered_from_the_base() {
        let chip = IoApic {
            window: 0,
            gsi_base: 24,
            inputs: 8,
        };
        assert_eq!(chip.input(23), None);
        assert_eq!(chip.input(24), Some(0));
        assert_eq!(chip.input(31), Some(7));
        assert_eq!(chip.input(32), None);
    }
}
