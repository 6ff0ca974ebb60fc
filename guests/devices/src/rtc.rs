//! The real-time clock: a Motorola MC146818 with its CMOS memory (data sheet of 1984; quoted headings are its own), as a PC/AT has it.
//!
//! The clock's time follows from `now`, and the guest sets how far from it. Registers of the time hold something of their own only
//! while the clock stands: while the guest sets it (SET), or holds the divider in reset. The day of the week follows from the date; a guest
//! that sets another one reads the right one.

use crate::time::{SECOND, moment, ticks};

/// The index port; its bit 7 masks NMIs, of which there are none. It cannot be read.
pub const INDEX: u16 = 0x70;
/// The register that the index names.
pub const DATA: u16 = 0x71;

/// The domain's memory, which firmware of a PC leaves word of in the CMOS memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemorySizes {
    /// Bytes from 0 to the end of RAM below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub above_4g: u64,
}

/// What the clock starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Nanoseconds since 1970 at the moment in which `now` is 0.
    pub epoch: u64,
    /// The domain's memory.
    pub memory: MemorySizes,
}

/// "ADDRESS MAP", and what a PC added.
mod register {
    pub(super) const SECONDS: usize = 0x00;
    pub(super) const SECONDS_ALARM: usize = 0x01;
    pub(super) const MINUTES: usize = 0x02;
    pub(super) const MINUTES_ALARM: usize = 0x03;
    pub(super) const HOURS: usize = 0x04;
    pub(super) const HOURS_ALARM: usize = 0x05;
    pub(super) const DAY_OF_WEEK: usize = 0x06;
    pub(super) const DAY_OF_MONTH: usize = 0x07;
    pub(super) const MONTH: usize = 0x08;
    pub(super) const YEAR: usize = 0x09;
    pub(super) const A: usize = 0x0a;
    pub(super) const B: usize = 0x0b;
    pub(super) const C: usize = 0x0c;
    pub(super) const D: usize = 0x0d;
    /// KiB from 0.
    pub(super) const BASE_MEMORY: usize = 0x15;
    /// KiB from 1 MiB, in two places.
    pub(super) const EXTENDED_MEMORY: usize = 0x17;
    pub(super) const EXTENDED_MEMORY_FOUND: usize = 0x30;
    /// The sum of 0x10 to 0x2d, high byte first.
    pub(super) const CHECKSUM: usize = 0x2e;
    pub(super) const CENTURY: usize = 0x32;
    /// Units of 64 KiB from 16 MiB, and from 4 GiB in three bytes.
    pub(super) const MEMORY_ABOVE_16M: usize = 0x34;
    pub(super) const MEMORY_ABOVE_4G: usize = 0x5b;
    pub(super) const COUNT: usize = 0x80;
}
use register::*;

/// What the ACPI tables tell of [`register::CENTURY`].
pub const CENTURY_REGISTER: u8 = CENTURY as u8;

/// Register A.
mod a {
    pub(super) const UIP: u8 = 1 << 7;
    /// The divider is held in reset if both of these are set ("DV2, DV1, DV0").
    pub(super) const DIVIDER_RESET: u8 = 0b110 << 4;
    pub(super) const RATE: u8 = 0x0f;
    /// A time base of 32768 Hz, a periodic interrupt of 1024 Hz: what firmware leaves.
    pub(super) const USUAL: u8 = 0x26;
}

/// Register B.
mod b {
    pub(super) const SET: u8 = 1 << 7;
    pub(super) const PIE: u8 = 1 << 6;
    pub(super) const AIE: u8 = 1 << 5;
    pub(super) const UIE: u8 = 1 << 4;
    /// Binary instead of BCD.
    pub(super) const DM: u8 = 1 << 2;
    pub(super) const HOURS_24: u8 = 1 << 1;
}

/// Register C. Its flags lie where register B has their enables.
mod c {
    pub(super) const IRQF: u8 = 1 << 7;
    pub(super) const PF: u8 = 1 << 6;
    pub(super) const AF: u8 = 1 << 5;
    pub(super) const UF: u8 = 1 << 4;
}

/// Register D: the battery is good.
const VRT: u8 = 1 << 7;

/// The bit of an hour that is after noon, in 12-hour mode.
const PM: u8 = 1 << 7;
/// "Don't care" in an alarm register: any code with both bits set.
const ANY: u8 = 0xc0;

/// The time base.
const HZ: u64 = 32_768;
/// Nanoseconds in which an update is announced and made: 244 us and 1984 us ("UPDATE CYCLE"). The time changes at their end.
const UPDATE: i128 = 2_228_000;
const NANOSECONDS: i128 = SECOND as i128;
const DAY: i128 = 86_400;

/// A day of the calendar and a time of that day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Calendar {
    /// Of the Gregorian calendar.
    pub year: i128,
    /// 1 to 12.
    pub month: i128,
    /// 1 to 31.
    pub day: i128,
    /// 1 is Sunday.
    pub weekday: i128,
    /// 0 to 23.
    pub hour: i128,
    /// 0 to 59.
    pub minute: i128,
    /// 0 to 59.
    pub second: i128,
}

/// Days of 400 years, after which the Gregorian calendar repeats itself.
const CYCLE: i128 = 146_097;
/// Days from 1 March 0 to 1 January 1970.
const TO_1970: i128 = 719_468;

impl Calendar {
    fn from_seconds(seconds: i128) -> Self {
        let of_day = seconds.rem_euclid(DAY);
        let days = seconds.div_euclid(DAY);
        // Years are counted from March, so that the leap day is the last of them.
        let shifted = days + TO_1970;
        let cycle = shifted.div_euclid(CYCLE);
        let in_cycle = shifted.rem_euclid(CYCLE);
        let leaps = in_cycle / 1460 - in_cycle / 36_524 + in_cycle / (CYCLE - 1);
        let year = (in_cycle - leaps) / 365;
        let in_year = in_cycle - (365 * year + year / 4 - year / 100);
        // From March on months have 153 days in every five.
        let from_march = (5 * in_year + 2) / 153;
        let month = (from_march + 2) % 12 + 1;
        Self {
            year: year + 400 * cycle + i128::from(month <= 2),
            month,
            day: in_year - (153 * from_march + 2) / 5 + 1,
            // 1970 began on a Thursday.
            weekday: (days + 4).rem_euclid(7) + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// Seconds from 1970 on, for fields that may hold anything: what lies beyond its range is carried over. The weekday is of no account.
    pub fn to_seconds(self) -> i128 {
        let months = self.year * 12 + self.month - 1;
        let month = months.rem_euclid(12) + 1;
        let year = months.div_euclid(12) - i128::from(month <= 2);
        let from_march = (month + 9) % 12;
        let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
            + year.div_euclid(400)
            + (153 * from_march + 2) / 5
            + self.day
            - 1
            - TO_1970;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }
}

/// The clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: usize,
    /// The CMOS memory, the alarm, and while the clock stands the time.
    memory: [u8; COUNT],
    a: u8,
    b: u8,
    /// Flags that were raised.
    c: u8,
    /// The clock's nanoseconds since 1970, less `now`.
    offset: i128,
    /// Up to when flags are raised.
    seen: u64,
}

impl Rtc {
    /// A clock that goes right.
    pub fn new(config: &Config, now: u64) -> Self {
        let mut rtc = Self {
            index: 0,
            memory: [0; COUNT],
            a: a::USUAL,
            b: b::HOURS_24,
            c: 0,
            offset: config.epoch.into(),
            seen: now,
        };
        rtc.tell_memory(&config.memory);
        rtc
    }

    /// Where firmware would leave word of the memory it has found.
    fn tell_memory(&mut self, sizes: &MemorySizes) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        const UNIT: u64 = 64 * KIB;
        let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        let base = word((sizes.below_4g / KIB).min(640));
        let extended = word(sizes.below_4g.saturating_sub(MIB) / KIB);
        let above_16m = word(sizes.below_4g.saturating_sub(16 * MIB) / UNIT);
        let [low, middle, high, ..] = (sizes.above_4g / UNIT).min(0xff_ffff).to_le_bytes();
        self.put(BASE_MEMORY, &base);
        self.put(EXTENDED_MEMORY, &extended);
        self.put(EXTENDED_MEMORY_FOUND, &extended);
        self.put(MEMORY_ABOVE_16M, &above_16m);
        self.put(MEMORY_ABOVE_4G, &[low, middle, high]);
        let sum = self
            .memory
            .get(0x10..CHECKSUM)
            .unwrap_or_default()
            .iter()
            .fold(0u16, |sum, byte| sum.wrapping_add((*byte).into()));
        self.put(CHECKSUM, &sum.to_be_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (byte, value) in self.memory.iter_mut().skip(at).zip(bytes) {
            *byte = *value;
        }
    }

    /// Whether a port is one of these.
    pub const fn owns(port: u16) -> bool {
        matches!(port, INDEX | DATA)
    }

    /// A read of [`INDEX`] or [`DATA`].
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        if port != DATA {
            return 0xff;
        }
        let now = self.advance(now);
        match self.index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY if !self.stands() => {
                self.shown(self.index, now)
            }
            A => self.a | if self.updating(now) { a::UIP } else { 0 },
            B => self.b,
            C => {
                let flags = self.c | if self.asserted() { c::IRQF } else { 0 };
                // "The flag bits are cleared when read."
                self.c = 0;
                flags
            }
            D => VRT,
            index => self.stored(index),
        }
    }

    /// A write to [`INDEX`] or [`DATA`].
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        if port != DATA {
            self.index = usize::from(value) & (COUNT - 1);
            return;
        }
        let now = self.advance(now);
        match self.index {
            A => self.control(value & !a::UIP, self.b, now),
            B => {
                // Setting the time takes the update-ended interrupt away.
                let without = if value & b::SET != 0 { b::UIE } else { 0 };
                self.control(self.a, value & !without, now);
            }
            // "Registers C and D are read-only."
            C | D => {}
            index @ (SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY)
                if !self.stands() =>
            {
                // Into a clock that goes.
                self.store_time(now);
                self.store(index, value);
                self.load_time(now);
            }
            index => self.store(index, value),
        }
    }

    /// The level of ISA interrupt 8.
    pub fn interrupt(&mut self, now: u64) -> bool {
        self.advance(now);
        self.asserted()
    }

    /// When the line rises, unless the guest does something before.
    pub fn next_event(&mut self, now: u64) -> Option<u64> {
        let now = self.advance(now);
        if self.asserted() {
            return None;
        }
        let enabled = |bit| self.b & bit != 0;
        let periodic = self
            .period()
            .filter(|_| enabled(b::PIE))
            .map(|period| moment((ticks(now, HZ) / period + 1) * period, HZ));
        let clock = self.clock(now);
        let second = clock.div_euclid(NANOSECONDS);
        let at = |second: i128| u64::try_from(second * NANOSECONDS - self.offset).ok();
        let goes = !self.stands();
        let update = Some(second + 1).filter(|_| goes && enabled(b::UIE));
        let alarm = Some(second + 1)
            .filter(|_| goes && enabled(b::AIE))
            .and_then(|from| self.next_alarm(from));
        [periodic, update.and_then(at), alarm.and_then(at)]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.max(now))
    }

    fn asserted(&self) -> bool {
        self.c & self.b & (c::PF | c::AF | c::UF) != 0
    }

    /// Whether the time stands still.
    fn stands(&self) -> bool {
        self.b & b::SET != 0 || self.divider_is_reset()
    }

    fn divider_is_reset(&self) -> bool {
        self.a & a::DIVIDER_RESET == a::DIVIDER_RESET
    }

    /// The clock's nanoseconds since 1970.
    fn clock(&self, now: u64) -> i128 {
        i128::from(now) + self.offset
    }

    fn updating(&self, now: u64) -> bool {
        let left = NANOSECONDS - self.clock(now).rem_euclid(NANOSECONDS);
        !self.stands() && left <= UPDATE
    }

    /// Ticks of the time base between periodic interrupts ("PERIODIC INTERRUPT RATE").
    fn period(&self) -> Option<u64> {
        let rate = match self.a & a::RATE {
            0 => return None,
            // These two repeat what 8 and 9 give.
            slow @ 1..=2 => slow + 7,
            rate => rate,
        };
        (!self.divider_is_reset()).then_some(1 << (rate - 1))
    }

    /// Raises the flags for what has happened by `now`, which it gives back, or the latest it has seen.
    fn advance(&mut self, now: u64) -> u64 {
        let now = now.max(self.seen);
        if let Some(period) = self.period()
            && ticks(now, HZ) / period != ticks(self.seen, HZ) / period
        {
            self.c |= c::PF;
        }
        if !self.stands() {
            let second = |at| self.clock(at).div_euclid(NANOSECONDS);
            let (before, after) = (second(self.seen), second(now));
            if after > before {
                self.c |= c::UF;
                // Most accesses come within one second, and need not ask.
                if self
                    .next_alarm(before + 1)
                    .is_some_and(|alarm| alarm <= after)
                {
                    self.c |= c::AF;
                }
            }
        }
        self.seen = now;
        now
    }

    /// New values for registers A and B, on which depends whether the clock goes.
    fn control(&mut self, a: u8, b: u8, now: u64) {
        let stood = self.stands();
        if !stood {
            self.store_time(now);
        }
        let was_reset = self.divider_is_reset();
        (self.a, self.b) = (a, b);
        if was_reset && !self.divider_is_reset() {
            // "The first update cycle begins one-half second later."
            let second = self.clock(now).div_euclid(NANOSECONDS) * NANOSECONDS;
            self.offset = second + NANOSECONDS / 2 - i128::from(now);
        }
        // A change of the data mode alone does not change the time, and the registers are not converted while it stands.
        if stood && !self.stands() {
            self.load_time(now);
        }
    }

    /// The time goes to the registers.
    fn store_time(&mut self, now: u64) {
        for index in [
            SECONDS,
            MINUTES,
            HOURS,
            DAY_OF_WEEK,
            DAY_OF_MONTH,
            MONTH,
            YEAR,
            CENTURY,
        ] {
            self.store(index, self.shown(index, now));
        }
    }

    /// The registers become the time, in the middle of the second in which the divider is.
    fn load_time(&mut self, now: u64) {
        let read = |index| i128::from(self.decode(self.stored(index)));
        let seconds = Calendar {
            year: read(CENTURY) * 100 + read(YEAR),
            month: read(MONTH),
            day: read(DAY_OF_MONTH),
            weekday: 1,
            hour: self.decode_hour(self.stored(HOURS)).into(),
            minute: read(MINUTES),
            second: read(SECONDS),
        }
        .to_seconds();
        let part = self.clock(now).rem_euclid(NANOSECONDS);
        self.offset = seconds * NANOSECONDS + part - i128::from(now);
    }

    /// A register of the time while the clock goes.
    fn shown(&self, index: usize, now: u64) -> u8 {
        let time = Calendar::from_seconds(self.clock(now).div_euclid(NANOSECONDS));
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            DAY_OF_WEEK => self.encode(time.weekday),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year.rem_euclid(100)),
            _ => self.encode(time.year.div_euclid(100).rem_euclid(100)),
        }
    }

    fn stored(&self, index: usize) -> u8 {
        self.memory.get(index).copied().unwrap_or(0xff)
    }

    fn store(&mut self, index: usize, value: u8) {
        if let Some(register) = self.memory.get_mut(index) {
            *register = value;
        }
    }

    /// A number from 0 to 99 as registers hold it.
    fn encode(&self, value: i128) -> u8 {
        let value = value as u8;
        if self.b & b::DM != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & b::DM != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: i128) -> u8 {
        if self.b & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let of_twelve = self.encode((hour + 11) % 12 + 1);
        of_twelve | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & b::HOURS_24 != 0 {
            return self.decode(value);
        }
        let of_twelve = self.decode(value & !PM) % 12;
        of_twelve + if value & PM != 0 { 12 } else { 0 }
    }

    /// The first second from `from` on that matches the alarm; `None` if none ever does.
    fn next_alarm(&self, from: i128) -> Option<i128> {
        let day = from.div_euclid(DAY);
        let of_day = from.rem_euclid(DAY);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        // The first match from a number on, below a bound.
        let seconds = |from| (from..60).find(|s| self.matches(SECONDS_ALARM, self.encode(*s)));
        let minutes = |from| (from..60).find(|m| self.matches(MINUTES_ALARM, self.encode(*m)));
        let hours = |from| (from..24).find(|h| self.matches(HOURS_ALARM, self.encode_hour(*h)));
        let first_second = seconds(0)?;
        let first_minute = minutes(0)?;
        let first_hour = hours(0)?;
        let (days, hour, minute, second) = if hours(hour) == Some(hour) {
            let within = if minutes(minute) == Some(minute)
                && let Some(second) = seconds(second)
            {
                Some((minute, second))
            } else {
                minutes(minute + 1).map(|minute| (minute, first_second))
            };
            match within {
                Some((minute, second)) => (0, hour, minute, second),
                None => match hours(hour + 1) {
                    Some(hour) => (0, hour, first_minute, first_second),
                    None => (1, first_hour, first_minute, first_second),
                },
            }
        } else {
            match hours(hour) {
                Some(hour) => (0, hour, first_minute, first_second),
                None => (1, first_hour, first_minute, first_second),
            }
        };
        Some((day + days) * DAY + hour * 3600 + minute * 60 + second)
    }

    /// Whether an alarm register matches a register of the time.
    fn matches(&self, alarm: usize, shown: u8) -> bool {
        let alarm = self.stored(alarm);
        alarm & ANY == ANY || alarm == shown
    }
}

#[cfg(test)]
mod tests;
