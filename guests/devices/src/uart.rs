//! The serial port: a 16550A (National Semiconductor PC16550D data sheet; section numbers are its own).
//!
//! The line behind it is infinitely fast: what is written is sent at once, so the transmitter is always empty, and what is received waits
//! in the FIFO until the guest reads it. Nothing arrives broken, so of the line's errors only an overrun exists. A modem that is
//! ready is connected.
//!
//! The character timeout of the FIFO (8.4.1) is taken as over at once: no guest waits for four characters' time on a line
//! on which nothing takes time.

use alloc::collections::VecDeque;

use bitflags::bitflags;

/// Registers: offsets from the first port.
pub const PORTS: u16 = 8;

/// Register offsets (table II).
mod register {
    /// Received byte, byte to send; with DLAB the divisor's low byte.
    pub(super) const DATA: u16 = 0;
    /// Interrupt enable; with DLAB the divisor's high byte.
    pub(super) const IER: u16 = 1;
    /// Interrupt identification; FIFO control when written.
    pub(super) const IIR_FCR: u16 = 2;
    pub(super) const LCR: u16 = 3;
    pub(super) const MCR: u16 = 4;
    pub(super) const LSR: u16 = 5;
    pub(super) const MSR: u16 = 6;
    pub(super) const SCR: u16 = 7;
}

bitflags! {
    /// Interrupt enable register (8.7).
    #[derive(Clone, Copy, Debug, Default)]
    struct Ier: u8 {
        const RECEIVED = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }
}

bitflags! {
    /// Modem control register (8.8).
    #[derive(Clone, Copy, Debug, Default)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }
}

bitflags! {
    /// Line status register (8.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const THR_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }
}

bitflags! {
    /// Modem status register (8.9): the inputs, and how they changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Msr: u8 {
        const DELTA_CTS = 1 << 0;
        const DELTA_DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;

        const DELTAS = 0x0f;
        /// What a modem that is ready holds active.
        const READY = Self::CTS.bits() | Self::DSR.bits() | Self::DCD.bits();
    }
}

/// Divisor latch access bit of the line control register (8.1).
const DLAB: u8 = 1 << 7;

/// FIFO control register (8.4).
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVER: u8 = 1 << 1;
    pub(super) const TRIGGER_SHIFT: u8 = 6;
}

/// Interrupt identification register (8.6, table IV), in the order of priority.
mod iir {
    pub(super) const LINE_STATUS: u8 = 0b0110;
    pub(super) const RECEIVED: u8 = 0b0100;
    pub(super) const TIMEOUT: u8 = 0b1100;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0b0010;
    pub(super) const MODEM_STATUS: u8 = 0b0000;
    pub(super) const NONE: u8 = 0b0001;
    /// Both bits say that the FIFOs are on.
    pub(super) const FIFOS: u8 = 0b1100_0000;
}

/// Bytes of the receiver's FIFO.
const FIFO: usize = 16;
/// The divisor for 9600 baud: what firmware leaves.
const DIVISOR: u16 = 12;

/// A 16550A.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: Ier,
    lcr: u8,
    mcr: Mcr,
    scratch: u8,
    divisor: u16,
    fifos: bool,
    /// Bytes in the FIFO at which the interrupt comes.
    trigger: usize,
    received: VecDeque<u8>,
    overrun: bool,
    /// The transmitter became empty, and nobody has been told.
    emptied: bool,
    /// How the modem's lines changed.
    deltas: Msr,
    /// The interrupt line was low for a moment.
    fell: bool,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// As after a reset (table I).
    pub fn new() -> Self {
        Self {
            ier: Ier::default(),
            lcr: 0,
            mcr: Mcr::default(),
            scratch: 0,
            divisor: DIVISOR,
            fifos: false,
            trigger: 1,
            received: VecDeque::new(),
            overrun: false,
            emptied: false,
            deltas: Msr::empty(),
            fell: false,
        }
    }

    /// A read of the register at `offset`.
    pub fn read(&mut self, offset: u16) -> u8 {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            register::DATA if self.dlab() => low,
            register::IER if self.dlab() => high,
            register::DATA => self.received.pop_front().unwrap_or(0),
            register::IER => self.ier.bits(),
            register::IIR_FCR => {
                let cause = self.cause();
                // Being told is what ends this one; the others end when their reason does.
                if cause == iir::TRANSMITTER_EMPTY {
                    self.emptied = false;
                }
                cause | if self.fifos { iir::FIFOS } else { 0 }
            }
            register::LCR => self.lcr,
            register::MCR => self.mcr.bits(),
            register::LSR => {
                let status = self.line_status();
                self.overrun = false;
                status.bits()
            }
            register::MSR => {
                let status = self.modem_lines() | self.deltas;
                self.deltas = Msr::empty();
                status.bits()
            }
            register::SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// A write to the register at `offset`; the byte that goes out on the line, if one does.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            register::DATA if self.dlab() => self.divisor = u16::from_le_bytes([value, high]),
            register::IER if self.dlab() => self.divisor = u16::from_le_bytes([low, value]),
            register::DATA => {
                // The write ends the interrupt; the byte is gone at once, and THR is empty again. A driver that fills THR without
                // reading why it was interrupted relies on the edge in between.
                let before = self.interrupt();
                self.emptied = false;
                self.fell |= before && !self.interrupt();
                self.emptied = true;
                if !self.mcr.contains(Mcr::LOOP) {
                    return Some(value);
                }
                self.loop_back(value);
            }
            register::IER => {
                let before = self.ier;
                self.ier = Ier::from_bits_truncate(value);
                // Enabling the interrupt while THR is empty raises it: drivers start to send that way.
                if (self.ier - before).contains(Ier::TRANSMITTER_EMPTY) {
                    self.emptied = true;
                }
            }
            register::IIR_FCR => self.control_fifos(value),
            register::LCR => self.lcr = value,
            register::MCR => {
                let before = self.modem_lines();
                self.mcr = Mcr::from_bits_truncate(value);
                self.note_changes(before);
            }
            register::SCR => self.scratch = value,
            // The status registers are written in factory tests only (8.3, 8.9).
            _ => {}
        }
        None
    }

    /// A byte arrives on the line: whether there was room. Where there is none it is not lost, for the owner can keep it: an overrun
    /// is something that only a guest can bring about, in loopback.
    pub fn receive(&mut self, byte: u8) -> bool {
        // In loopback the input is disconnected (8.8.1).
        let room = !self.mcr.contains(Mcr::LOOP) && self.received.len() < self.capacity();
        if room {
            self.received.push_back(byte);
        }
        room
    }

    /// The level of the interrupt line. A PC lets INTR through only while OUT2 is active, and loopback makes that pin inactive.
    pub fn interrupt(&self) -> bool {
        self.mcr.contains(Mcr::OUT2) && !self.mcr.contains(Mcr::LOOP) && self.cause() != iir::NONE
    }

    /// Whether the line fell since the last call and, if it is high, rose again.
    pub const fn take_fall(&mut self) -> bool {
        core::mem::replace(&mut self.fell, false)
    }

    fn dlab(&self) -> bool {
        self.lcr & DLAB != 0
    }

    /// Bytes that the receiver holds: with the FIFOs off one.
    fn capacity(&self) -> usize {
        if self.fifos { FIFO } else { 1 }
    }

    /// The interrupt of the highest priority.
    fn cause(&self) -> u8 {
        let enabled = |bit| self.ier.contains(bit);
        if enabled(Ier::LINE_STATUS) && self.overrun {
            iir::LINE_STATUS
        } else if enabled(Ier::RECEIVED) && !self.received.is_empty() {
            if self.received.len() >= self.trigger {
                iir::RECEIVED
            } else {
                iir::TIMEOUT
            }
        } else if enabled(Ier::TRANSMITTER_EMPTY) && self.emptied {
            iir::TRANSMITTER_EMPTY
        } else if enabled(Ier::MODEM_STATUS) && !self.deltas.is_empty() {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn line_status(&self) -> Lsr {
        let mut status = Lsr::THR_EMPTY | Lsr::TRANSMITTER_EMPTY;
        status.set(Lsr::DATA_READY, !self.received.is_empty());
        status.set(Lsr::OVERRUN, self.overrun);
        status
    }

    /// What the modem's inputs are: in loopback the four outputs (8.8.1).
    fn modem_lines(&self) -> Msr {
        if !self.mcr.contains(Mcr::LOOP) {
            return Msr::READY;
        }
        let mut lines = Msr::empty();
        lines.set(Msr::CTS, self.mcr.contains(Mcr::RTS));
        lines.set(Msr::DSR, self.mcr.contains(Mcr::DTR));
        lines.set(Msr::RI, self.mcr.contains(Mcr::OUT1));
        lines.set(Msr::DCD, self.mcr.contains(Mcr::OUT2));
        lines
    }

    fn note_changes(&mut self, before: Msr) {
        let now = self.modem_lines();
        let changed = before ^ now;
        for (line, delta) in [
            (Msr::CTS, Msr::DELTA_CTS),
            (Msr::DSR, Msr::DELTA_DSR),
            (Msr::DCD, Msr::DELTA_DCD),
        ] {
            if changed.contains(line) {
                self.deltas |= delta;
            }
        }
        // Of the ring indicator only the end is told.
        if (before - now).contains(Msr::RI) {
            self.deltas |= Msr::TRAILING_RI;
        }
    }

    fn control_fifos(&mut self, value: u8) {
        let fifos = value & fcr::ENABLE != 0;
        // Turning them on or off empties them (8.4).
        if fifos != self.fifos || (fifos && value & fcr::CLEAR_RECEIVER != 0) {
            self.received.clear();
        }
        self.fifos = fifos;
        // Without the enable bit the others are not programmed.
        self.trigger = match value >> fcr::TRIGGER_SHIFT {
            _ if !fifos => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        };
    }

    /// A byte goes from the transmitter to the receiver within the chip.
    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
            return;
        }
        self.overrun = true;
        // Without FIFOs the new byte replaces the old one; with them it is lost in the shift register (8.3, bit 1).
        if !self.fifos {
            self.received.clear();
            self.received.push_back(byte);
        }
    }
}

#[cfg(test)]
mod tests;
