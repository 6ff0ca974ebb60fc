//! The two interrupt controllers of a PC: 8259A, the second one's output on input 2 of the first (Intel's 8259A data sheet; quoted
//! headings are its own).
//!
//! They work in 8086 mode, whatever ICW4 says: no CALL instruction ever goes to an x86 that is younger than the 8085. Buffered mode
//! changes pins that nobody looks at. As in all PCs since the EISA ones, two registers say which inputs are level triggered.

/// Ports of the first: command, data.
pub const MASTER: u16 = 0x20;
/// Ports of the second.
pub const SLAVE: u16 = 0xa0;
/// Edge/level control registers, one for each.
pub const ELCR: u16 = 0x4d0;

/// Where the second is connected.
pub const CASCADE: u8 = 2;
/// What a spurious interrupt looks like: "a DEFAULT IR7".
const DEFAULT: u8 = 7;
/// Inputs that are edge triggered for good: the timer, the keyboard, the cascade; and 8 and 13 of the second one, the clock and the FPU.
const MASTER_LEVEL: u8 = 0b1111_1000;
const SLAVE_LEVEL: u8 = 0b1101_1110;

/// Initialisation command word 1, with bit 4 set.
mod icw1 {
    pub(super) const ICW1: u8 = 1 << 4;
    pub(super) const IC4: u8 = 1 << 0;
    pub(super) const SNGL: u8 = 1 << 1;
    pub(super) const LTIM: u8 = 1 << 3;
}

/// Initialisation command word 4.
mod icw4 {
    pub(super) const AEOI: u8 = 1 << 1;
    pub(super) const SFNM: u8 = 1 << 4;
}

/// Operation command word 3: bit 3 set and bit 4 clear tell it from the others.
mod ocw3 {
    pub(super) const OCW3: u8 = 1 << 3;
    pub(super) const RIS: u8 = 1 << 0;
    pub(super) const RR: u8 = 1 << 1;
    pub(super) const P: u8 = 1 << 2;
    pub(super) const SMM: u8 = 1 << 5;
    pub(super) const ESMM: u8 = 1 << 6;
}

/// Which initialisation command word the data port expects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Icw2,
    Icw3,
    Icw4,
    /// None: it is initialised, and takes masks (OCW1).
    Ocw1,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Edges that were seen and not taken.
    edges: u8,
    in_service: u8,
    mask: u8,
    /// The inputs that are level triggered, by the edge/level control register.
    elcr: u8,
    elcr_writable: u8,
    /// All inputs are level triggered.
    ltim: bool,
    /// Bits 7 to 3 of the vectors.
    base: u8,
    /// It was told that there is no other (ICW1, SNGL).
    single: bool,
    wants_icw4: bool,
    expects: Expects,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    /// The input of the lowest priority; the next one has the highest.
    lowest: u8,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    const fn new(elcr_writable: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            in_service: 0,
            mask: 0,
            elcr: 0,
            elcr_writable,
            ltim: false,
            base: 0,
            single: false,
            wants_icw4: false,
            expects: Expects::Ocw1,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            lowest: DEFAULT,
            read_in_service: false,
            poll: false,
        }
    }

    fn level_triggered(&self) -> u8 {
        if self.ltim { 0xff } else { self.elcr }
    }

    /// The interrupt request register.
    fn requests(&self) -> u8 {
        let level = self.level_triggered();
        self.lines & level | self.edges & !level
    }

    /// An input changes. A request whose line falls before it is taken is withdrawn, whatever the trigger: "the IR inputs must
    /// remain high until after the falling edge of the first INTA".
    fn set_line(&mut self, input: u8, high: bool) {
        let bit = bit(input);
        if !high {
            self.lines &= !bit;
            self.edges &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.edges |= bit;
        }
    }

    /// The inputs of a register in the order of priority, the highest first.
    fn by_priority(&self, register: u8) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8u8)
            .map(move |place| (lowest + place) & 7)
            .filter(move |input| register & bit(*input) != 0)
    }

    /// How far an input is from the highest priority.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The request that the CPU is to be told of.
    fn pending(&self, cascade: u8) -> Option<u8> {
        let request = self.by_priority(self.requests() & !self.mask).next()?;
        let mut blocking = self.in_service;
        if self.special_mask {
            // "When a mask bit is set in OCW1, it inhibits further interrupts at that level and enables interrupts from all other
            // levels (lower as well as higher) that are not masked."
            blocking &= !self.mask;
        }
        if self.special_fully_nested {
            // Another one of the second chip, of a higher priority there, is let through.
            blocking &= !cascade;
        }
        match self.by_priority(blocking).next() {
            Some(serving) if self.rank(serving) <= self.rank(request) => None,
            _ => Some(request),
        }
    }

    /// The interrupt is taken: "INTERRUPT SEQUENCE".
    fn take(&mut self, input: u8) {
        self.edges &= !bit(input);
        if !self.auto_eoi {
            self.in_service |= bit(input);
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn vector(&self, input: u8) -> u8 {
        self.base | input
    }

    /// ICW1 to the command port.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            // The edge detectors are reset: what is high must fall before it can rise.
            lines: self.lines,
            elcr: self.elcr,
            elcr_writable: self.elcr_writable,
            base: self.base,
            ltim: value & icw1::LTIM != 0,
            single: value & icw1::SNGL != 0,
            wants_icw4: value & icw1::IC4 != 0,
            expects: Expects::Icw2,
            ..Self::new(0)
        };
    }

    fn write_command(&mut self, value: u8) {
        if value & icw1::ICW1 != 0 {
            self.initialise(value);
        } else if value & ocw3::OCW3 != 0 {
            if value & ocw3::ESMM != 0 {
                self.special_mask = value & ocw3::SMM != 0;
            }
            // "Poll has precedence over a read of a status register."
            self.poll = value & ocw3::P != 0;
            if value & ocw3::RR != 0 {
                self.read_in_service = value & ocw3::RIS != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// OCW2: bits 7 to 5 are rotate, specific, end of interrupt.
    fn end_of_interrupt(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            0b011 => self.in_service &= !bit(named),
            0b111 => {
                self.in_service &= !bit(named);
                self.lowest = named;
            }
            0b110 => self.lowest = named,
            // No operation.
            _ => {}
        }
    }

    /// A non-specific end of interrupt. One that is masked in special mask mode is not ended by it.
    fn end_highest(&mut self) -> Option<u8> {
        let hidden = if self.special_mask { self.mask } else { 0 };
        let ended = self.by_priority(self.in_service & !hidden).next()?;
        self.in_service &= !bit(ended);
        Some(ended)
    }

    fn write_data(&mut self, value: u8) {
        match self.expects {
            Expects::Ocw1 => self.mask = value,
            Expects::Icw2 => {
                self.base = value & 0xf8;
                self.expects = if !self.single {
                    Expects::Icw3
                } else if self.wants_icw4 {
                    Expects::Icw4
                } else {
                    Expects::Ocw1
                };
            }
            // It says where the cascade is; the wiring is what it is.
            Expects::Icw3 => {
                self.expects = if self.wants_icw4 {
                    Expects::Icw4
                } else {
                    Expects::Ocw1
                };
            }
            Expects::Icw4 => {
                self.auto_eoi = value & icw4::AEOI != 0;
                self.special_fully_nested = value & icw4::SFNM != 0;
                self.expects = Expects::Ocw1;
            }
        }
    }

    /// A read without a poll.
    fn read(&self, data: bool) -> u8 {
        if data {
            self.mask
        } else if self.read_in_service {
            self.in_service
        } else {
            self.requests()
        }
    }

    /// The read after a poll command: it acts as an acknowledgement.
    fn polled(&mut self, cascade: u8) -> u8 {
        self.poll = false;
        match self.pending(cascade) {
            Some(input) => {
                self.take(input);
                0x80 | input
            }
            None => 0,
        }
    }
}

const fn bit(input: u8) -> u8 {
    1 << (input & 7)
}

/// The pair.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// As after power-on: not initialised, nothing masked, all edge triggered.
    pub const fn new() -> Self {
        Self {
            master: Chip::new(MASTER_LEVEL),
            slave: Chip::new(SLAVE_LEVEL),
        }
    }

    /// The line of ISA interrupt `line`, 0 to 15, becomes high or low. Line 2 is the cascade, and nobody else's.
    pub fn set_line(&mut self, line: u8, high: bool) {
        match line {
            CASCADE => {}
            0..8 => self.master.set_line(line, high),
            8..16 => self.slave.set_line(line - 8, high),
            _ => {}
        }
        self.cascade();
    }

    /// Whether the CPU is asked for an interrupt: the level of INT.
    pub fn intr(&self) -> bool {
        self.master.pending(self.cascade_bit()).is_some()
    }

    /// The CPU takes the interrupt: its vector. If the request has gone meanwhile the vector is that of input 7, which then is not in
    /// service.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending(self.cascade_bit()) else {
            return self.master.vector(DEFAULT);
        };
        self.master.take(input);
        if bit(input) != self.cascade_bit() {
            return self.master.vector(input);
        }
        let vector = match self.slave.pending(0) {
            Some(input) => {
                self.slave.take(input);
                self.slave.vector(input)
            }
            // The first one has it in service all the same, and waits for its end.
            None => self.slave.vector(DEFAULT),
        };
        self.recascade();
        vector
    }

    /// Whether a port is one of these.
    pub const fn owns(port: u16) -> bool {
        matches!(port & !1, MASTER | SLAVE | ELCR)
    }

    /// A read of a port.
    pub fn read(&mut self, port: u16) -> u8 {
        let data = port & 1 != 0;
        match port & !1 {
            MASTER if self.master.poll => self.master.polled(self.cascade_bit()),
            MASTER => self.master.read(data),
            SLAVE if self.slave.poll => {
                let value = self.slave.polled(0);
                self.recascade();
                value
            }
            SLAVE => self.slave.read(data),
            ELCR if data => self.slave.elcr,
            ELCR => self.master.elcr,
            _ => 0xff,
        }
    }

    /// A write to a port.
    pub fn write(&mut self, port: u16, value: u8) {
        let data = port & 1 != 0;
        match port & !1 {
            MASTER if data => self.master.write_data(value),
            MASTER => self.master.write_command(value),
            SLAVE if data => self.slave.write_data(value),
            SLAVE => self.slave.write_command(value),
            ELCR if data => self.slave.elcr = value & self.slave.elcr_writable,
            ELCR => self.master.elcr = value & self.master.elcr_writable,
            _ => {}
        }
        self.cascade();
    }

    /// The input of the first that is the second's output: none where the first was told that it is alone.
    fn cascade_bit(&self) -> u8 {
        if self.master.single { 0 } else { bit(CASCADE) }
    }

    /// The second's output is the first's input.
    fn cascade(&mut self) {
        self.master
            .set_line(CASCADE, self.slave.pending(0).is_some());
    }

    /// After an acknowledgement the second's output falls, and rises again if there is more: an edge for the first.
    fn recascade(&mut self) {
        self.master.set_line(CASCADE, false);
        self.cascade();
    }
}

#[cfg(test)]
mod tests;
