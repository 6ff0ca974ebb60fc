//! The interval timer: an 8254 (Intel's 8254 data sheet; quoted headings are its own), and port 0x61, where a PC/AT has the rest of
//! its speaker.
//!
//! Nothing is counted tick by tick: a channel remembers when its count was loaded, and what it shows follows from the time. Channels 0
//! and 1 always have their gate open; port 0x61 has that of channel 2.
//!
//! # Interrupt 0
//!
//! Rising edges of channel 0's output are ticks. Those that came while nobody looked are owed, at most [`MOST_OWED`], and are given one by
//! one ([`Pit::tick`]), at least [`SHORTEST`] and half a period apart: a guest that counts ticks catches up, and one that programs the
//! timer too fast to be served keeps its CPU. A control word for channel 0 forgets what is owed. The line stays high from a tick to
//! the next, or until the guest makes the output fall: where a real output falls by itself in between, a guest that was not run
//! in that time would lose the interrupt.

use crate::time::{SECOND, moment, ticks};

/// The PC's timer clock, 14.31818 MHz divided by 12.
pub const HZ: u64 = 1_193_182;
/// Ticks that are owed at most.
pub const MOST_OWED: u64 = 100;
/// Nanoseconds between two ticks at least.
pub const SHORTEST: u64 = 100_000;

/// The first of the four ports: the channels', then the control word's.
pub const PORT: u16 = 0x40;
/// The control word register.
pub const CONTROL: u16 = 0x43;
/// System control port B.
pub const SPEAKER: u16 = 0x61;

/// Bits of [`SPEAKER`].
mod speaker {
    /// The gate of channel 2.
    pub(super) const GATE: u8 = 1 << 0;
    /// What a write sets: the gate, the speaker, and two enables of error checks.
    pub(super) const WRITABLE: u8 = 0x0f;
    /// Toggles with each refresh of the memory.
    pub(super) const REFRESH: u8 = 1 << 4;
    pub(super) const OUTPUT: u8 = 1 << 5;
}

/// Nanoseconds between two refreshes of a PC/AT's memory: 18 ticks.
const REFRESH: u64 = 15_086;

/// How a channel's 16 bits pass through its port: "READ/WRITE" bits of the control word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Low,
    High,
    Both,
}

/// "MODE DEFINITIONS".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// 0: interrupt on terminal count.
    TerminalCount,
    /// 1: hardware retriggerable one-shot.
    OneShot,
    /// 2: rate generator.
    Rate,
    /// 3: square wave.
    Square,
    /// 4: software triggered strobe.
    SoftwareStrobe,
    /// 5: hardware triggered strobe.
    HardwareStrobe,
}

impl Mode {
    /// Bits 3 to 1 of a control word; 2 and 3 have bit 3 as they like.
    fn from_control(control: u8) -> Self {
        match control >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            4 => Self::SoftwareStrobe,
            5 => Self::HardwareStrobe,
            even if even & 1 == 0 => Self::Rate,
            _ => Self::Square,
        }
    }

    /// Whether it begins anew at each end.
    fn is_periodic(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }

    /// Whether a rising gate is what starts it.
    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// What the counting element does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Counting {
    /// It waits for a count, or for a trigger.
    Idle,
    /// It was loaded at this tick, which may be the next one.
    Since(i64),
    /// The gate stopped it after so many.
    Held(i64),
}

/// A channel.
#[derive(Clone, Debug)]
struct Channel {
    mode: Mode,
    bcd: bool,
    access: Access,
    /// The mode and access bits as they were written, for the status.
    control: u8,
    gate: bool,
    /// The low byte of a count whose high byte is still to be written.
    low: Option<u8>,
    /// The next read of the port gives the high byte.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The count register: what was written last, 1 to 65536.
    written: u32,
    /// It has not gone to the counting element yet.
    null: bool,
    /// In the periodic modes: when it will.
    switch: Option<i64>,
    /// What the counting element was loaded with.
    count: u32,
    counting: Counting,
    /// The output until the tick in which the count is loaded.
    before: bool,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            bcd: false,
            access: Access::Both,
            control: 0x30,
            gate,
            low: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
            written: 0x1_0000,
            null: true,
            switch: None,
            count: 0x1_0000,
            counting: Counting::Idle,
            before: false,
        }
    }

    /// Ticks since the count was loaded.
    fn elapsed(&self, tick: i64) -> Option<i64> {
        match self.counting {
            Counting::Idle => None,
            Counting::Since(since) => Some(tick.saturating_sub(since)),
            Counting::Held(elapsed) => Some(elapsed),
        }
    }

    /// The count as a period. A count of 1 "is illegal" in mode 2 and makes no wave in mode 3: it is taken for 2.
    fn period(&self) -> i64 {
        i64::from(self.count).max(2)
    }

    /// How long the output is high in each period of mode 3: "(N + 1)/2" for odd counts.
    fn high_half(&self) -> i64 {
        (self.period() + 1) / 2
    }

    fn output(&self, tick: i64) -> bool {
        let idle = self.mode != Mode::TerminalCount;
        let Some(elapsed) = self.elapsed(tick) else {
            return idle;
        };
        if elapsed < 0 {
            return self.before;
        }
        let count = i64::from(self.count);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= count,
            // A closed gate sets it high at once.
            Mode::Rate | Mode::Square if !self.gate => true,
            Mode::Rate => elapsed % self.period() != self.period() - 1,
            Mode::Square => elapsed % self.period() < self.high_half(),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != count,
        }
    }

    /// The counting element, as it is read.
    fn value(&self, tick: i64) -> u16 {
        let count = i64::from(self.count);
        let value = match self.elapsed(tick) {
            None => count,
            Some(elapsed) if elapsed < 0 => count,
            Some(elapsed) => match self.mode {
                Mode::Rate => self.period() - elapsed % self.period(),
                Mode::Square => self.square_value(elapsed % self.period()),
                // They go on past zero.
                _ => count - elapsed,
            },
        };
        if self.bcd {
            to_bcd(value.rem_euclid(10_000) as u16)
        } else {
            value.rem_euclid(0x1_0000) as u16
        }
    }

    /// Mode 3 counts down by two, twice a period. An odd count is loaded less one, and the high half has a tick at zero more.
    fn square_value(&self, phase: i64) -> i64 {
        let loaded = self.period() & !1;
        let half = self.high_half();
        loaded - 2 * if phase < half { phase } else { phase - half }
    }

    /// How often the output rises after tick `from`, up to and including tick `to`. No count may wait for its switch in between.
    fn rises(&self, from: i64, to: i64) -> u64 {
        let Counting::Since(since) = self.counting else {
            return 0;
        };
        if self.mode.is_periodic() {
            let by = |tick: i64| (tick.saturating_sub(since) / self.period()).max(0);
            by(to).abs_diff(by(from))
        } else {
            let rise = self.single_rise(since);
            u64::from(from < rise && rise <= to)
        }
    }

    /// When the output rises in the modes that do it once.
    fn single_rise(&self, since: i64) -> i64 {
        let strobe = matches!(self.mode, Mode::SoftwareStrobe | Mode::HardwareStrobe);
        since + i64::from(self.count) + i64::from(strobe)
    }

    /// A tick after `tick` before which the output does not rise; `None` if it will not.
    fn next_rise(&self, tick: i64) -> Option<i64> {
        let Counting::Since(since) = self.counting else {
            return None;
        };
        if !self.mode.is_periodic() {
            return Some(self.single_rise(since)).filter(|rise| *rise > tick);
        }
        let period = self.period();
        let periods = (tick.saturating_sub(since) / period).max(0) + 1;
        let rise = since + periods * period;
        // A new count changes what comes after: ask again then.
        Some(self.switch.map_or(rise, |switch| rise.min(switch)))
    }

    /// Makes a new count take effect if its time has come by `tick`. How often the output rose after `from`.
    fn advance(&mut self, from: i64, tick: i64) -> u64 {
        let Some(switch) = self.switch.filter(|switch| *switch <= tick) else {
            return self.rises(from, tick);
        };
        let rises = self.rises(from, switch);
        // Mode 3 takes a new count at the end of either half.
        let in_low_half = self.mode == Mode::Square && !self.output(switch);
        self.load();
        let into = if in_low_half { self.high_half() } else { 0 };
        self.counting = Counting::Since(switch - into);
        rises + self.rises(switch, tick)
    }

    /// The count register goes to the counting element.
    fn load(&mut self) {
        self.count = self.written;
        self.null = false;
        self.switch = None;
    }

    fn write_control(&mut self, control: u8) {
        self.mode = Mode::from_control(control);
        self.bcd = control & 1 != 0;
        self.access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.control = control & 0x3f;
        self.low = None;
        self.high_next = false;
        self.latched_count = None;
        self.latched_status = None;
        self.null = true;
        self.switch = None;
        self.counting = Counting::Idle;
    }

    /// A byte of a count.
    fn write(&mut self, value: u8, tick: i64) {
        let raw = match (self.access, self.low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.low = Some(value);
                if self.mode == Mode::TerminalCount {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.counting = Counting::Idle;
                    self.null = true;
                }
                return;
            }
        };
        self.low = None;
        self.written = match (raw, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (raw, true) => from_bcd(raw),
            (raw, false) => raw.into(),
        };
        self.null = true;
        if self.mode.is_triggered() {
            // It is loaded by the next trigger.
        } else if self.mode.is_periodic() && self.counting != Counting::Idle {
            self.plan_switch(tick);
        } else {
            self.start(tick, self.mode != Mode::TerminalCount);
        }
    }

    /// In the periodic modes a new count waits for the end of the period (mode 2), or half period (mode 3), that runs.
    fn plan_switch(&mut self, tick: i64) {
        let Counting::Since(since) = self.counting else {
            // The gate is closed: the trigger loads it.
            return;
        };
        let elapsed = tick.saturating_sub(since);
        if elapsed < 0 {
            // The one before was not even loaded.
            self.load();
            return;
        }
        let begin = since + elapsed / self.period() * self.period();
        let in_high_half = elapsed % self.period() < self.high_half();
        let end = if self.mode == Mode::Square && in_high_half {
            begin + self.high_half()
        } else {
            begin + self.period()
        };
        self.switch = Some(end);
    }

    /// The count is loaded with the next tick, and the output is `before` until then.
    fn start(&mut self, tick: i64, before: bool) {
        self.load();
        self.before = before;
        // A closed gate does not keep it from being loaded, but from being counted.
        self.counting = if self.gate || self.mode.is_triggered() {
            Counting::Since(tick + 1)
        } else {
            Counting::Held(0)
        };
    }

    /// "GATE PIN OPERATIONS SUMMARY".
    fn set_gate(&mut self, open: bool, tick: i64) {
        if open == self.gate {
            return;
        }
        let output = self.output(tick);
        let waits_for_count = self.counting == Counting::Idle;
        self.gate = open;
        match (self.mode, open) {
            (Mode::OneShot, true) => self.start(tick, output),
            (Mode::HardwareStrobe, true) => self.start(tick, true),
            (Mode::OneShot | Mode::HardwareStrobe, false) => {}
            _ if waits_for_count => {}
            (Mode::Rate | Mode::Square, true) => self.start(tick, true),
            (_, true) => {
                if let Counting::Held(elapsed) = self.counting {
                    self.counting = Counting::Since(tick - elapsed);
                }
            }
            (_, false) => {
                self.counting = Counting::Held(self.elapsed(tick).unwrap_or(0).max(0));
                // The trigger will load what waits.
                self.switch = None;
            }
        }
    }

    /// The status byte of the read-back command.
    fn status(&self, tick: i64) -> u8 {
        let loading = matches!(self.counting, Counting::Since(since) if tick < since);
        u8::from(self.output(tick)) << 7 | u8::from(self.null || loading) << 6 | self.control
    }

    /// A latch holds until it is read; a second one is ignored.
    fn latch_count(&mut self, tick: i64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(tick));
        }
    }

    fn latch_status(&mut self, tick: i64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(tick));
        }
    }

    fn read(&mut self, tick: i64) -> u8 {
        // If both are latched the status comes first.
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched_count
            .unwrap_or_else(|| self.value(tick))
            .to_le_bytes();
        let (byte, last) = match (self.access, self.high_next) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.high_next = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }
}

fn from_bcd(bcd: u16) -> u32 {
    (0..4).rev().fold(0, |value, digit| {
        value * 10 + u32::from(bcd >> (4 * digit) & 0xf)
    })
}

fn to_bcd(value: u16) -> u16 {
    [1000, 100, 10, 1]
        .iter()
        .fold(0, |bcd, unit| (bcd << 4) | (value / unit % 10))
}

/// An 8254 with port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    /// Channels 0, 1 and 2.
    channels: [Channel; 3],
    speaker: u8,
    /// The latest tick that was seen: up to it channel 0's edges are counted.
    seen: i64,
    owed: u64,
    line: bool,
    /// When the last tick was given.
    given: Option<u64>,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// As after power-on: no channel counts, and the outputs are low.
    pub const fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: 0,
            seen: 0,
            owed: 0,
            line: false,
            given: None,
        }
    }

    /// Whether a port is one of these.
    pub const fn owns(port: u16) -> bool {
        matches!(port, PORT..=CONTROL | SPEAKER)
    }

    /// A read of a port.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let tick = self.advance(now);
        if port == SPEAKER {
            let mut value = self.speaker;
            if (now / REFRESH) & 1 != 0 {
                value |= speaker::REFRESH;
            }
            if self.channels.get(2).is_some_and(|two| two.output(tick)) {
                value |= speaker::OUTPUT;
            }
            return value;
        }
        let channel = port.checked_sub(PORT).map(usize::from);
        match channel.and_then(|channel| self.channels.get_mut(channel)) {
            Some(channel) => channel.read(tick),
            // The control word cannot be read.
            None => 0xff,
        }
    }

    /// A write to a port.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let tick = self.advance(now);
        let before = self.channel_0_output(tick);
        match port {
            SPEAKER => {
                self.speaker = value & speaker::WRITABLE;
                if let Some(two) = self.channels.get_mut(2) {
                    two.set_gate(value & speaker::GATE != 0, tick);
                }
            }
            CONTROL => self.write_control(value, tick),
            _ => {
                let channel = port.checked_sub(PORT).map(usize::from);
                if let Some(channel) = channel.and_then(|channel| self.channels.get_mut(channel)) {
                    channel.write(value, tick);
                }
            }
        }
        match (before, self.channel_0_output(tick)) {
            (false, true) => self.owed = (self.owed + 1).min(MOST_OWED),
            (true, false) => {
                self.owed = 0;
                self.line = false;
            }
            _ => {}
        }
    }

    /// The output of a channel, 0 to 2.
    pub fn output(&mut self, channel: usize, now: u64) -> bool {
        let tick = self.advance(now);
        self.channels
            .get(channel)
            .is_some_and(|channel| channel.output(tick))
    }

    /// Takes a tick that is owed: ISA interrupt 0 has a rising edge, and its line is high.
    pub fn tick(&mut self, now: u64) -> bool {
        self.advance(now);
        if self.owed == 0 || now < self.earliest() {
            return false;
        }
        self.owed -= 1;
        self.line = true;
        self.given = Some(now);
        true
    }

    /// When the next tick may be given.
    fn earliest(&self) -> u64 {
        // A count that waits for its switch must not make it earlier than the owner was told.
        let half = self.channels.first().map_or(0, |zero| {
            u64::from(zero.count.min(zero.written)) * SECOND / HZ / 2
        });
        self.given
            .map_or(0, |given| given.saturating_add(half.max(SHORTEST)))
    }

    /// The level of ISA interrupt 0.
    pub const fn line(&self) -> bool {
        self.line
    }

    /// When to ask for the next tick. It may not be there yet then.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        let tick = self.advance(now);
        let due = if self.owed > 0 {
            now
        } else {
            let rise = self.channels.first()?.next_rise(tick)?;
            moment(rise.unsigned_abs(), HZ)
        };
        Some(due.max(self.earliest()).max(now))
    }

    /// The tick of `now`, to which everything is brought.
    fn advance(&mut self, now: u64) -> i64 {
        let tick = i64::try_from(ticks(now, HZ)).unwrap_or(i64::MAX);
        let tick = tick.max(self.seen);
        let mut rises = 0;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            let risen = channel.advance(self.seen, tick);
            if index == 0 {
                rises = risen;
            }
        }
        self.owed = self.owed.saturating_add(rises).min(MOST_OWED);
        self.seen = tick;
        tick
    }

    fn channel_0_output(&self, tick: i64) -> bool {
        self.channels.first().is_some_and(|zero| zero.output(tick))
    }

    /// "Control Word Format", the counter latch command, and the read-back command.
    fn write_control(&mut self, value: u8, tick: i64) {
        let selected = value >> 6;
        if selected == 3 {
            for (index, channel) in self.channels.iter_mut().enumerate() {
                if value >> (index + 1) & 1 == 0 {
                    continue;
                }
                // The two bits are active low.
                if value & 1 << 5 == 0 {
                    channel.latch_count(tick);
                }
                if value & 1 << 4 == 0 {
                    channel.latch_status(tick);
                }
            }
            return;
        }
        if let Some(channel) = self.channels.get_mut(usize::from(selected)) {
            if value >> 4 & 3 == 0 {
                channel.latch_count(tick);
                return;
            }
            channel.write_control(value);
            if selected == 0 {
                self.owed = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests;
