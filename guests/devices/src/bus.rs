//! The ports of a PC, and who answers at each.
//!
//! The owner claims [`Ports::ranges`] of the domain. It gives every access to [`Ports::read`] or [`Ports::write`]; after each, and
//! when the time of [`Ports::next_event`] has come, it looks at
//!
//! * [`Ports::changed_lines`]: the lines to lower and to raise at the domain's I/O APIC;
//! * [`Ports::intr`]: whether the pair of 8259A wants an interrupt of the CPU, whose vector [`Ports::acknowledge`] gives;
//! * [`Ports::take_output`] and [`Ports::take_power`].
//!
//! All registers here are bytes, as on the ISA bus: an access of two or four is as many accesses to ports that follow each other. Two
//! ports are not so: that of the tests' exit, and PCI's configuration address at 0xcf8, which only an access of four bytes
//! means. There is no PCI, so that one and its data are all ones; the bytes behind it are other registers.
//!
//! What a PC has and does nothing here is not claimed, and costs the domain no more than an exit: the DMA controllers and their
//! page registers, among which 0x80 is written for the time it takes and for POST codes.

use alloc::vec::Vec;

use crate::Power;
use crate::debug;
use crate::i8042::{self, I8042};
use crate::pci::{self, Pci};
use crate::pic::{self, Pic};
use crate::pit::{self, Pit};
use crate::pm::{self, Pm, TimerWidth};
use crate::rtc::{self, Rtc};
use crate::uart::{self, Uart};

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
    /// PCI's configuration space, with a host bridge and nothing else.
    pub pci: bool,
    /// The first of the four ports that end the machine with a status, [`debug::EXIT`] by custom. They must be nobody else's.
    pub debug_exit: Option<u16>,
}

/// ISA interrupts.
pub mod line {
    /// Channel 0 of the timer.
    pub const PIT: u8 = 0;
    /// The keyboard.
    pub const KEYBOARD: u8 = 1;
    /// The first serial port.
    pub const COM1: u8 = 4;
    /// The clock.
    pub const RTC: u8 = 8;
    /// ACPI's system control interrupt.
    pub const SCI: u8 = 9;
    /// The auxiliary device of the keyboard controller.
    pub const AUXILIARY: u8 = 12;
    /// How many there are.
    pub const COUNT: u8 = 16;
}

/// The first port of COM1.
pub const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + uart::PORTS - 1;
/// Bytes of output that are kept.
pub const MOST_OUTPUT: usize = 64 << 10;

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
pub struct Ports {
    uart: Option<Uart>,
    pic: Option<Pic>,
    pit: Option<Pit>,
    rtc: Option<Rtc>,
    pm: Option<Pm>,
    i8042: Option<I8042>,
    pci: Option<Pci>,
    debug_exit: Option<u16>,
    output: Vec<u8>,
    power: Option<Power>,
    /// The lines as they were found last.
    lines: u32,
    /// The lines as the owner knows them.
    told: u32,
    /// Lines that were low since the owner was told.
    fell: u32,
}

impl Ports {
    /// The devices of `config`, as after power-on.
    pub fn new(config: &Config, now: u64) -> Self {
        let mut ports = Self {
            uart: config.com1.then(Uart::new),
            pic: config.pic.then(Pic::new),
            pit: config.pit.then(Pit::new),
            rtc: config.rtc.as_ref().map(|rtc| Rtc::new(rtc, now)),
            pm: config.pm.map(|width| Pm::new(width, now)),
            i8042: config.i8042.then(I8042::new),
            pci: config.pci.then(Pci::default),
            debug_exit: config.debug_exit,
            output: Vec::new(),
            power: None,
            lines: 0,
            told: 0,
            fell: 0,
        };
        if let (Some(pic), Some(_)) = (&mut ports.pic, &ports.pm) {
            // As firmware would have it: the SCI is level triggered (ACPI 6.5 5.2.9, SCI_INT).
            pic.write(pic::ELCR + 1, 1 << (line::SCI - 8));
        }
        ports
    }

    /// The ports to claim, ascending. What is not among them behaves as ports do that nobody claims.
    pub fn ranges(&self) -> Vec<Range> {
        let range = |first, length| Range { first, length };
        let mut ranges = Vec::new();
        if self.pic.is_some() {
            ranges.extend([
                range(pic::MASTER, 2),
                range(pic::SLAVE, 2),
                range(pic::ELCR, 2),
            ]);
        }
        if self.pit.is_some() {
            ranges.extend([range(pit::PORT, 4), range(pit::SPEAKER, 1)]);
        }
        if self.i8042.is_some() {
            let ports = [i8042::DATA, i8042::COMMAND, i8042::CONTROL_A];
            ranges.extend(ports.map(|port| range(port, 1)));
        }
        if self.rtc.is_some() {
            ranges.push(range(rtc::INDEX, 2));
        }
        if self.uart.is_some() {
            ranges.push(range(COM1, uart::PORTS));
        }
        if self.pm.is_some() {
            ranges.extend([
                range(pm::EVENT, 4),
                range(pm::CONTROL, 2),
                range(pm::TIMER, 4),
            ]);
            ranges.push(range(pm::RESET, 1));
        }
        // Its address register comes as a whole, and has the reset register within.
        if self.pci.is_some() {
            ranges.extend([range(pci::ADDRESS, 1), range(pci::DATA, 4)]);
        }
        if let Some(exit) = self.debug_exit {
            ranges.push(range(
                exit,
                debug::PORTS.min((u16::MAX - exit).saturating_add(1)),
            ));
        }
        ranges.sort_unstable_by_key(|range| range.first);
        ranges
    }

    /// An IN of `size` bytes, 1, 2 or 4. Bytes that nobody answers for are all ones.
    pub fn read(&mut self, port: u16, size: u32, now: u64) -> u32 {
        if size == 1 && is_com1(port) {
            let value = self.read_byte(port, now);
            self.refresh_com1();
            return value.into();
        }
        self.refresh(now);
        let mut bytes = [0xff; 4];
        let size = size.min(4);
        if Pci::owns(port, size) {
            let value = self
                .pci
                .as_ref()
                .map_or(u32::MAX, |pci| pci.read(port, size));
            bytes = value.to_le_bytes();
        } else {
            for (offset, byte) in (0..size as u16).zip(&mut bytes) {
                if let Some(port) = port.checked_add(offset) {
                    *byte = self.read_byte(port, now);
                }
            }
        }
        self.refresh(now);
        let unused = 32 - 8 * size;
        u32::from_le_bytes(bytes).checked_shl(unused).unwrap_or(0) >> unused.min(31)
    }

    /// An OUT of the low `size` bytes, 1, 2 or 4, of `value`.
    pub fn write(&mut self, port: u16, size: u32, value: u32, now: u64) {
        if size == 1 && is_com1(port) {
            self.write_byte(port, value as u8, now);
            self.refresh_com1();
            return;
        }
        self.refresh(now);
        let size = size.min(4);
        if self.is_exit(port) {
            self.ask(Some(debug::exit(size, value)));
        } else if Pci::owns(port, size) {
            if let Some(pci) = &mut self.pci {
                pci.write(port, value);
            }
        } else {
            for (offset, byte) in (0..size as u16).zip(value.to_le_bytes()) {
                if let Some(port) = port.checked_add(offset) {
                    self.write_byte(port, byte, now);
                }
            }
        }
        self.refresh(now);
    }

    /// The lines that are high now: bit n is ISA interrupt n.
    pub fn lines(&mut self, now: u64) -> u32 {
        self.refresh(now);
        self.lines
    }

    /// What the lines did since the last call.
    pub fn changed_lines(&mut self, now: u64) -> Edges {
        self.refresh(now);
        self.take_edges()
    }

    /// What the lines did since the last call, as far as the last access showed: the time since then is not looked at.
    pub fn take_edges(&mut self) -> Edges {
        let edges = Edges {
            lowered: self.told & self.fell,
            raised: self.lines & (!self.told | self.fell),
        };
        self.told = self.lines;
        self.fell = 0;
        edges
    }

    /// When a line may change by itself: look again then. `None`: not before the next access.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        self.refresh(now);
        let pit = self.pit.as_mut().and_then(|pit| pit.next_event(now));
        let rtc = self.rtc.as_mut().and_then(|rtc| rtc.next_event(now));
        let pm = self.pm.as_mut().and_then(|pm| pm.next_event(now));
        [pit, rtc, pm].into_iter().flatten().min()
    }

    /// Whether the 8259As ask the CPU for an interrupt.
    pub fn intr(&mut self, now: u64) -> bool {
        self.refresh(now);
        self.has_intr()
    }

    /// As [`Self::intr`], as far as the last access showed.
    pub fn has_intr(&self) -> bool {
        self.pic.as_ref().is_some_and(Pic::intr)
    }

    /// The CPU takes the interrupt that [`Self::intr`] told: its vector. Without a request, or without 8259As, the vector is that of a
    /// spurious interrupt.
    pub fn acknowledge(&mut self, now: u64) -> u8 {
        self.refresh(now);
        // Nobody drives the bus where there is none.
        self.pic.as_mut().map_or(0xff, Pic::acknowledge)
    }

    /// Whether COM1 has sent any bytes since the last call of [`Self::take_output`].
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The bytes that COM1 has sent since the last call: the first [`MOST_OUTPUT`] of them, for an owner that does not listen.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }

    /// Bytes for COM1 to receive; how many there was room for. There is room again after the guest has read. The line may rise.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let Some(uart) = &mut self.uart else {
            return 0;
        };
        bytes.iter().take_while(|byte| uart.receive(**byte)).count()
    }

    /// What the guest asked first of its machine since the last call.
    pub const fn take_power(&mut self) -> Option<Power> {
        self.power.take()
    }

    /// Somebody presses the power button, by which a guest is asked to end. The line may rise.
    pub fn press_power_button(&mut self) {
        if let Some(pm) = &mut self.pm {
            pm.press();
        }
    }

    fn is_exit(&self, port: u16) -> bool {
        self.debug_exit
            .and_then(|exit| port.checked_sub(exit))
            .is_some_and(|offset| offset < debug::PORTS)
    }

    fn ask(&mut self, power: Option<Power>) {
        self.power = self.power.or(power);
    }

    fn read_byte(&mut self, port: u16, now: u64) -> u8 {
        let value = match port {
            COM1..=COM1_LAST => self.uart.as_mut().map(|uart| uart.read(port - COM1)),
            port if Pic::owns(port) => self.pic.as_mut().map(|pic| pic.read(port)),
            port if Pit::owns(port) => self.pit.as_mut().map(|pit| pit.read(port, now)),
            port if Rtc::owns(port) => self.rtc.as_mut().map(|rtc| rtc.read(port, now)),
            port if Pm::owns(port) => self.pm.as_mut().map(|pm| pm.read(port, now)),
            port if I8042::owns(port) => self.i8042.as_mut().map(|i8042| i8042.read(port)),
            _ => None,
        };
        value.unwrap_or(0xff)
    }

    fn write_byte(&mut self, port: u16, value: u8, now: u64) {
        match port {
            COM1..=COM1_LAST => {
                if let Some(uart) = &mut self.uart {
                    let sent = uart.write(port - COM1, value);
                    self.output
                        .extend(sent.filter(|_| self.output.len() < MOST_OUTPUT));
                }
            }
            port if Pic::owns(port) => {
                if let Some(pic) = &mut self.pic {
                    pic.write(port, value);
                }
            }
            port if Pit::owns(port) => {
                if let Some(pit) = &mut self.pit {
                    pit.write(port, value, now);
                }
            }
            port if Rtc::owns(port) => {
                if let Some(rtc) = &mut self.rtc {
                    rtc.write(port, value, now);
                }
            }
            port if Pm::owns(port) => {
                let power = self.pm.as_mut().and_then(|pm| pm.write(port, value, now));
                self.ask(power);
            }
            port if I8042::owns(port) => {
                let power = self
                    .i8042
                    .as_mut()
                    .and_then(|i8042| i8042.write(port, value));
                self.ask(power);
            }
            _ => {}
        }
    }

    /// After an access to COM1, which moves no other line and follows no clock.
    fn refresh_com1(&mut self) {
        let bit = 1 << line::COM1;
        if let Some(uart) = &mut self.uart {
            let pulsed = u32::from(uart.take_fall()) << line::COM1;
            let high = u32::from(uart.interrupt()) << line::COM1;
            if pulsed != 0 || self.lines & bit != high {
                self.set_lines(self.lines & !bit | high, pulsed);
            }
        }
    }

    /// Finds out what the lines are.
    fn refresh(&mut self, now: u64) {
        let mut lines = 0;
        let mut pulsed = 0;
        let mut set = |line: u8, high: bool| lines |= u32::from(high) << line;
        if let Some(pit) = &mut self.pit {
            pulsed |= u32::from(pit.tick(now)) << line::PIT;
            set(line::PIT, pit.line());
        }
        if let Some(i8042) = &self.i8042 {
            set(line::KEYBOARD, i8042.keyboard_interrupt());
            set(line::AUXILIARY, i8042.auxiliary_interrupt());
        }
        if let Some(uart) = &mut self.uart {
            pulsed |= u32::from(uart.take_fall()) << line::COM1;
            set(line::COM1, uart.interrupt());
        }
        if let Some(rtc) = &mut self.rtc {
            set(line::RTC, rtc.interrupt(now));
        }
        if let Some(pm) = &mut self.pm {
            set(line::SCI, pm.sci(now));
        }
        self.set_lines(lines, pulsed);
    }

    /// The lines are so, and those of `pulsed` were low for a moment; the 8259As are told.
    fn set_lines(&mut self, lines: u32, pulsed: u32) {
        let fell = self.lines & (pulsed | !lines);
        let rose = lines & (pulsed | !self.lines);
        self.fell |= fell;
        self.lines = lines;
        let Some(pic) = &mut self.pic else {
            return;
        };
        for (moved, high) in [(fell, false), (rose, true)] {
            for line in (0..line::COUNT).filter(|line| moved >> line & 1 != 0) {
                pic.set_line(line, high);
            }
        }
    }
}

/// Whether a port is one of COM1's.
pub const fn is_com1(port: u16) -> bool {
    port >= COM1 && port <= COM1_LAST
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
