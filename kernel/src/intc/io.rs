//! The I/O APIC of a domain.

use super::message::Message;

/// Pins of the I/O APIC.
pub const PINS: usize = 24;

/// An I/O APIC.
///
/// Every method that may send takes `deliver`: it delivers a message and says whether any APIC has taken it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoApic {
    asserted: u32,
}

impl IoApic {
    /// The state after reset: every pin masked.
    pub const fn new() -> Self {
        Self { asserted: 0 }
    }

    /// Reads up to four bytes of the register page; `offset` in bytes.
    pub fn read_mmio(&self, _offset: u32) -> u32 {
        self.asserted
    }

    /// Writes a register; `offset` in bytes.
    pub fn write_mmio(
        &mut self,
        _offset: u32,
        _value: u32,
        _deliver: impl FnMut(&Message) -> bool,
    ) {
    }

    /// An input is asserted or deasserted. Pins that there are not are ignored.
    pub fn set_line(&mut self, _pin: u8, _asserted: bool, _deliver: impl FnMut(&Message) -> bool) {}

    /// A local APIC tells the end of a level-triggered interrupt.
    pub fn end_of_interrupt(&mut self, _vector: u8, _deliver: impl FnMut(&Message) -> bool) {}

    /// Delivers what no APIC had taken: to be called when one may take what it did not take before.
    pub fn retry(&mut self, _deliver: impl FnMut(&Message) -> bool) {}
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}
