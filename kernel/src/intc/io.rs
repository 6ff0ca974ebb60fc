//! The I/O APIC of a domain (82093AA I/O APIC datasheet; Intel's I/O controller hubs for the EOI register).
//!
//! The lines come as asserted or deasserted: what a pin's polarity says is for those who drive it. Several devices on one
//! line, and the ISA interrupts' overrides, are the caller's affair as well.
//!
//! A level-triggered interrupt is sent while its line is asserted, once until it ends. An edge at a masked pin is lost.
//! Both are as the datasheet has it (3.2.4).

use bitfield_struct::bitfield;

use super::message::{Delivery, Destination, Message};

/// Pins of the I/O APIC.
pub const PINS: usize = 24;

/// Offsets in the register page.
const SELECT: u32 = 0x00;
const WINDOW: u32 = 0x10;
const END_OF_INTERRUPT: u32 = 0x40;

/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;

/// Identifier and arbitration priority are four bits, 27:24.
const ID_BITS: u32 = 0xf << 24;
/// Version 0x20, which has the EOI register; the highest entry of the redirection table.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// An entry of the redirection table (82093AA 3.2.4), with the upper bits of the destination where KVM and Hyper-V have
/// them.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct Redirection {
    vector: u8,
    #[bits(3)]
    delivery: u8,
    logical: bool,
    /// Read-only: the interrupt waits for an APIC to take it.
    pending: bool,
    active_low: bool,
    /// Read-only: the level-triggered interrupt has not ended.
    remote_irr: bool,
    level: bool,
    masked: bool,
    #[bits(32)]
    __: u32,
    #[bits(7)]
    destination_high: u8,
    destination: u8,
}

impl Redirection {
    const RESET: Self = Self::new().with_masked(true);
    const WRITABLE: u64 = Self::new()
        .with_vector(u8::MAX)
        .with_delivery(0b111)
        .with_logical(true)
        .with_active_low(true)
        .with_level(true)
        .with_masked(true)
        .with_destination_high(0x7f)
        .with_destination(u8::MAX)
        .into_bits();

    /// What remains of this when `value` is written. An entry that is made edge-triggered has nothing to wait for: that is
    /// how systems end an interrupt where there is no EOI register.
    const fn written(self, value: u64) -> Self {
        let new = Self::from_bits(self.into_bits() & !Self::WRITABLE | value & Self::WRITABLE);
        new.with_remote_irr(new.remote_irr() && new.level())
    }

    /// What it sends; `None`: the delivery mode is reserved.
    const fn message(self) -> Option<Message> {
        let Some(delivery) = Delivery::of_bits(self.delivery(), self.vector()) else {
            return None;
        };
        let id = (self.destination_high() as u16) << 8 | self.destination() as u16;
        Some(Message {
            destination: Destination::of_device(id, self.logical()),
            delivery,
            level: self.level() && delivery.vector().is_some(),
        })
    }

    /// What it sends as long as the line is asserted; others are edges, whatever the trigger mode says.
    const fn level_message(self) -> Option<Message> {
        match self.message() {
            Some(message) if message.level => Some(message),
            _ => None,
        }
    }
}

/// An I/O APIC.
///
/// Every method that may send takes `deliver`: it delivers a message and says whether any APIC has taken it. No method sends
/// more than one message for each pin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// IOREGSEL.
    select: u8,
    id: u32,
    table: [Redirection; PINS],
    /// A bit for each pin.
    asserted: u32,
}

impl IoApic {
    /// The state after reset: every pin masked, no line asserted.
    pub const fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            table: [Redirection::RESET; PINS],
            asserted: 0,
        }
    }

    /// Reads up to four bytes of the register page; `offset` in bytes.
    pub fn read_mmio(&self, offset: u32) -> u32 {
        let value = match offset & !0b11 {
            SELECT => u32::from(self.select),
            WINDOW => self.read(self.select),
            _ => 0,
        };
        value >> (8 * (offset & 0b11))
    }

    /// Writes a register; `offset` in bytes. A value that is narrower than 32 bits is extended with zeros.
    pub fn write_mmio(&mut self, offset: u32, value: u32, deliver: impl FnMut(&Message) -> bool) {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => self.write(self.select, value, deliver),
            END_OF_INTERRUPT => self.end_of_interrupt(value as u8, deliver),
            _ => {}
        }
    }

    fn read(&self, register: u8) -> u32 {
        match register {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            _ => match redirection(register) {
                Some((pin, high)) => (self.shown(pin) >> (32 * u32::from(high))) as u32,
                None => 0,
            },
        }
    }

    fn write(&mut self, register: u8, value: u32, deliver: impl FnMut(&Message) -> bool) {
        if register == ID {
            self.id = value & ID_BITS;
        }
        let Some((pin, high)) = redirection(register) else {
            return;
        };
        let Some(entry) = self.table.get_mut(pin) else {
            return;
        };
        let (old, value) = (entry.into_bits(), u64::from(value));
        *entry = entry.written(if high {
            old & 0xffff_ffff | value << 32
        } else {
            old & !0xffff_ffff | value
        });
        self.serve(pin, deliver);
    }

    /// An entry as it is read.
    fn shown(&self, pin: usize) -> u64 {
        let entry = self.table.get(pin).copied().unwrap_or_default();
        entry.with_pending(self.waiting(pin).is_some()).into_bits()
    }

    /// The message of a level-triggered interrupt that is due: its line is asserted and its pin open, and it was not taken
    /// since it ended last.
    fn waiting(&self, pin: usize) -> Option<Message> {
        let entry = self.table.get(pin)?;
        if self.asserted >> pin & 1 == 0 || entry.masked() || entry.remote_irr() {
            return None;
        }
        entry.level_message()
    }

    /// Sends the level-triggered interrupt of a pin, if it is due.
    fn serve(&mut self, pin: usize, mut deliver: impl FnMut(&Message) -> bool) {
        let Some(message) = self.waiting(pin) else {
            return;
        };
        if deliver(&message)
            && let Some(entry) = self.table.get_mut(pin)
        {
            entry.set_remote_irr(true);
        }
    }

    /// An input is asserted or deasserted. Pins that there are not are ignored.
    pub fn set_line(&mut self, pin: u8, asserted: bool, mut deliver: impl FnMut(&Message) -> bool) {
        let pin = usize::from(pin);
        let Some(&entry) = self.table.get(pin) else {
            return;
        };
        let rises = asserted && self.asserted >> pin & 1 == 0;
        self.asserted = self.asserted & !(1 << pin) | u32::from(asserted) << pin;
        if entry.level_message().is_some() {
            self.serve(pin, deliver);
        } else if rises
            && !entry.masked()
            && let Some(message) = entry.message()
        {
            deliver(&message);
        }
    }

    /// The end of a level-triggered interrupt: a local APIC tells it, or the guest writes the EOI register.
    pub fn end_of_interrupt(&mut self, vector: u8, mut deliver: impl FnMut(&Message) -> bool) {
        for pin in 0..PINS {
            if let Some(entry) = self.table.get_mut(pin)
                && entry.remote_irr()
                && entry.vector() == vector
            {
                entry.set_remote_irr(false);
                self.serve(pin, &mut deliver);
            }
        }
    }

    /// Sends again what no APIC has taken: to be called when one may take what it did not take before.
    pub fn retry(&mut self, mut deliver: impl FnMut(&Message) -> bool) {
        for pin in 0..PINS {
            self.serve(pin, &mut deliver);
        }
    }
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

/// The pin of a register of the redirection table, and whether it is the entry's upper half.
fn redirection(register: u8) -> Option<(usize, bool)> {
    let at = register.checked_sub(REDIRECTION)?;
    let pin = usize::from(at / 2);
    (pin < PINS).then_some((pin, at % 2 != 0))
}
