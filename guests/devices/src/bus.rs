//! The ports of a PC, and who answers at each.
//!
//! The owner claims [`Ports::ranges`] of the domain. It gives every access to [`Ports::read`] or [`Ports::write`]; after each, and
//! when the time of [`Ports::next_event`] has come, it looks at
//!
//! * [`Ports::changed_lines`]: the lines to lower and to raise at the domain's I/O APIC;
//! * [`Ports::intr`]: whether the pair of 8259A wants an interrupt of the CPU, whose vector [`Ports::acknowledge`] gives;
//! * [`Ports::take_output`] and [`Ports::take_power`].

use alloc::vec::Vec;

use crate::Power;
use crate::pm::TimerWidth;
use crate::rtc;

/// Which devices there are.
#[derive(Clone, Debug)]
pub struct Config {
    /// COM1, a 16550A at 0x3f8 with ISA interrupt 4.
    pub com1: bool,
    /// The pair of 8259A interrupt controllers.
    pub pic: bool,
    /// The 8254 timer with ISA interrupt 0, and port 0x61.
    pub pit: bool,
    /// The MC146818 clock with ISA interrupt 8.
    pub rtc: Option<rtc::Config>,
    /// ACPI's fixed hardware with ISA interrupt 9, and the reset register 0xcf9.
    pub pm: Option<TimerWidth>,
    /// The keyboard controller, without a keyboard.
    pub i8042: bool,
    /// The port that ends the machine with a status, [`debug::EXIT`](crate::debug::EXIT) by custom.
    pub debug_exit: Option<u16>,
}

/// Ports that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first.
    pub first: u16,
    /// How many, at least 1.
    pub length: u16,
}

/// What the lines did since the last look; bit 0 is ISA interrupt 0. A line in both masks was low for a moment: one edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Edges {
    /// Lines to lower, before any is raised.
    pub lowered: u32,
    /// Lines to raise.
    pub raised: u32,
}

/// The global system interrupts of lines, as [`acpi`](crate::acpi) tells them: each its own number, but ISA interrupt 0 is 2.
pub const fn gsis(lines: u32) -> u32 {
    lines & !1 | (lines & 1) << 2
}

/// The devices behind a domain's ports.
#[derive(Clone, Debug)]
pub struct Ports {}

impl Ports {
    /// The devices of `config`, as after power-on.
    pub fn new(_config: &Config, _now: u64) -> Self {
        Self {}
    }

    /// The ports to claim, ascending. What is not among them behaves as ports do that nobody claims.
    pub fn ranges(&self) -> Vec<Range> {
        Vec::new()
    }

    /// An IN of `size` bytes, 1, 2 or 4. Bytes that nobody answers for are all ones.
    pub fn read(&mut self, _port: u16, _size: u32, _now: u64) -> u32 {
        u32::MAX
    }

    /// An OUT of the low `size` bytes, 1, 2 or 4, of `value`.
    pub fn write(&mut self, _port: u16, _size: u32, _value: u32, _now: u64) {}

    /// The lines that are high now: bit n is ISA interrupt n.
    pub fn lines(&mut self, _now: u64) -> u32 {
        0
    }

    /// What the lines did since the last call.
    pub fn changed_lines(&mut self, _now: u64) -> Edges {
        Edges::default()
    }

    /// When a line may change by itself: look again then. `None`: not before the next access.
    pub fn next_event(&mut self, _now: u64) -> Option<u64> {
        None
    }

    /// Whether the 8259As ask the CPU for an interrupt.
    pub fn intr(&mut self, _now: u64) -> bool {
        false
    }

    /// The CPU takes the interrupt that [`Self::intr`] told: its vector. Without a request, or without 8259As, the vector is that of a
    /// spurious interrupt.
    pub fn acknowledge(&mut self, _now: u64) -> u8 {
        0xff
    }

    /// The bytes that COM1 has sent since the last call. The owner calls it after every access: they are kept without bound.
    pub fn take_output(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Bytes for COM1 to receive; how many there was room for. There is room again after the guest has read.
    pub fn type_in(&mut self, _bytes: &[u8]) -> usize {
        0
    }

    /// What the guest asked first of its machine since the last call.
    pub fn take_power(&mut self) -> Option<Power> {
        None
    }

    /// Somebody presses the power button, by which a guest is asked to end.
    pub fn press_power_button(&mut self) {}
}
