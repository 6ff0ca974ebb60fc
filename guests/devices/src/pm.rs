//! ACPI's fixed hardware (ACPI 6.5 4.8): the power management timer, the PM1 blocks, the power button, and the reset register.
//!
//! There is no system management mode to leave, so the machine is in ACPI mode from the start: SCI_EN is always set, there is no
//! SMI command port, and the tables say so (5.2.9, SMI_CMD).

use crate::Power;
use crate::time::{moment, ticks};

/// The power management timer's clock (4.8.3.3).
pub const HZ: u64 = 3_579_545;
/// The PM1 event block: status, then enable.
pub const EVENT: u16 = 0x600;
/// The PM1 control block.
pub const CONTROL: u16 = 0x604;
/// The power management timer.
pub const TIMER: u16 = 0x608;
/// The reset register of PCs, and of the tables.
pub const RESET: u16 = 0xcf9;
/// What the tables say to write to [`RESET`]: SYS_RST and RST_CPU.
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type of S5 in the PM1 control register.
pub const SLEEP_S5: u8 = 5;

/// Bits of the PM1 status and enable registers (4.8.3.1): those that something sets here.
mod event {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const GLOBAL: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    /// The clock's alarm, which is not wired to this: it can be enabled, and never comes.
    pub(super) const RTC: u16 = 1 << 10;
    pub(super) const ALL: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
}

/// Bits of the PM1 control register (4.8.3.2.1).
mod control {
    pub(super) const SCI_EN: u8 = 1 << 0;
    pub(super) const BM_RLD: u8 = 1 << 1;
    /// In the high byte.
    pub(super) const SLP_TYP_SHIFT: u8 = 2;
    pub(super) const SLP_TYP: u8 = 0b111 << SLP_TYP_SHIFT;
    pub(super) const SLP_EN: u8 = 1 << 5;
}

/// Bits of [`RESET`] as chip sets have it.
mod reset {
    /// Setting it resets, the other two say how much.
    pub(super) const RST_CPU: u8 = 1 << 2;
    pub(super) const WRITABLE: u8 = 0b1110;
}

/// How many bits of the power management timer count (4.8.3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimerWidth {
    /// It wraps every 4.7 s.
    Bits24,
    /// It wraps every 20 minutes.
    Bits32,
}

impl TimerWidth {
    const fn bits(self) -> u32 {
        match self {
            Self::Bits24 => 24,
            Self::Bits32 => 32,
        }
    }
}

/// The fixed hardware.
#[derive(Clone, Debug)]
pub struct Pm {
    width: TimerWidth,
    status: u16,
    enable: u16,
    /// The bits of the control register that hold what is written: its low byte, its high byte.
    control: [u8; 2],
    reset: u8,
    /// Up to which time the timer's status is right.
    seen: u64,
}

impl Pm {
    /// As after power-on.
    pub const fn new(width: TimerWidth, now: u64) -> Self {
        Self {
            width,
            status: 0,
            enable: 0,
            control: [0; 2],
            reset: 0,
            seen: now,
        }
    }

    /// Whether a port is one of these.
    pub const fn owns(port: u16) -> bool {
        matches!(port & !3, EVENT | TIMER) || port & !1 == CONTROL || port == RESET
    }

    /// A read of a byte of a register.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let now = self.advance(now);
        let [status_low, status_high] = self.status.to_le_bytes();
        let [enable_low, enable_high] = self.enable.to_le_bytes();
        let [control_low, control_high] = self.control;
        match (port & !3, port & 3) {
            (EVENT, 0) => status_low,
            (EVENT, 1) => status_high,
            (EVENT, 2) => enable_low,
            (EVENT, 3) => enable_high,
            (CONTROL, 0) => control_low | control::SCI_EN,
            (CONTROL, 1) => control_high,
            (TIMER, byte) => (self.timer(now) >> (8 * byte)) as u8,
            _ if port == RESET => self.reset,
            _ => 0xff,
        }
    }

    /// A write to a byte of a register; what the guest asks for by it.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Option<Power> {
        self.advance(now);
        let word = u16::from(value);
        let [control_low, control_high] = &mut self.control;
        match (port & !3, port & 3) {
            // Ones clear.
            (EVENT, 0) => self.status &= !word,
            (EVENT, 1) => self.status &= !(word << 8),
            (EVENT, 2) => self.enable = (self.enable & 0xff00 | word) & event::ALL,
            (EVENT, 3) => self.enable = (self.enable & 0x00ff | word << 8) & event::ALL,
            // SCI_EN is the hardware's own, and GBL_RLS has nobody to tell.
            (CONTROL, 0) => *control_low = value & control::BM_RLD,
            (CONTROL, 1) => {
                *control_high = value & control::SLP_TYP;
                let sleep = *control_high >> control::SLP_TYP_SHIFT;
                // Of the sleeping states there is S5 only.
                if value & control::SLP_EN != 0 && sleep == SLEEP_S5 {
                    return Some(Power::Off);
                }
            }
            _ if port == RESET => {
                let rises = value & !self.reset & reset::RST_CPU != 0;
                self.reset = value & reset::WRITABLE;
                if rises {
                    return Some(Power::Reset);
                }
            }
            _ => {}
        }
        None
    }

    /// The power button is pressed (4.8.2.2.1).
    pub const fn press(&mut self) {
        self.status |= event::POWER_BUTTON;
    }

    /// The level of the system control interrupt: active high, and level triggered.
    pub fn sci(&mut self, now: u64) -> bool {
        self.advance(now);
        self.status & self.enable != 0
    }

    /// When the interrupt rises by itself.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        let now = self.advance(now);
        if self.enable & event::TIMER == 0 || self.status & event::TIMER != 0 {
            return None;
        }
        Some(moment(
            (self.halves(now) + 1) << (self.width.bits() - 1),
            HZ,
        ))
    }

    fn timer(&self, now: u64) -> u32 {
        let mask = u64::MAX >> (64 - self.width.bits());
        (ticks(now, HZ) & mask) as u32
    }

    /// How often the timer's highest bit has changed.
    fn halves(&self, now: u64) -> u64 {
        ticks(now, HZ) >> (self.width.bits() - 1)
    }

    /// TMR_STS: the highest bit changes, in either direction.
    fn advance(&mut self, now: u64) -> u64 {
        let now = now.max(self.seen);
        if self.halves(now) != self.halves(self.seen) {
            self.status |= event::TIMER;
        }
        self.seen = now;
        now
    }
}

#[cfg(test)]
mod tests;
