//! The time of day as a PC's clock (MC146818) has it.

use plinth_devices::rtc::Calendar;

/// The registers that tell the time: seconds, minutes, hours, day of the month, month, year, century, and register B.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// 0 to 59.
    pub second: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 23, or 1 to 12 with bit 7 set in the afternoon.
    pub hour: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 to 12.
    pub month: u8,
    /// 0 to 99.
    pub year: u8,
    /// 19 or 20; anything else means that there is none.
    pub century: u8,
    /// Register B: bit 1: 24 hours; bit 2: binary, else BCD.
    pub control: u8,
}

impl Registers {
    /// Seconds since 1970, if the clock has a time.
    pub fn unix(&self) -> Option<u64> {
        let number = |value: u8| {
            if self.control & 4 != 0 {
                Some(value)
            } else {
                let (tens, units) = (value >> 4, value & 0xf);
                (tens < 10 && units < 10).then_some(tens * 10 + units)
            }
        };
        let afternoon = self.control & 2 == 0 && self.hour & 0x80 != 0;
        let mut hour = number(self.hour & if self.control & 2 == 0 { 0x7f } else { 0xff })?;
        if self.control & 2 == 0 {
            hour = hour % 12 + if afternoon { 12 } else { 0 };
        }
        let (second, minute) = (number(self.second)?, number(self.minute)?);
        let (day, month) = (number(self.day)?, number(self.month)?);
        let short = u64::from(number(self.year)?);
        let year = match number(self.century) {
            Some(century @ 19..=21) => u64::from(century) * 100 + short,
            _ if short < 70 => 2000 + short,
            _ => 1900 + short,
        };
        let sound = second < 60
            && minute < 60
            && hour < 24
            && (1..=31).contains(&day)
            && (1..=12).contains(&month)
            && short < 100
            && year >= 1970;
        let calendar = Calendar {
            year: year.into(),
            month: month.into(),
            day: day.into(),
            weekday: 1,
            hour: hour.into(),
            minute: minute.into(),
            second: second.into(),
        };
        u64::try_from(calendar.to_seconds()).ok().filter(|_| sound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD: Registers = Registers {
        second: 0x40,
        minute: 0x46,
        hour: 0x01,
        day: 0x09,
        month: 0x09,
        year: 0x01,
        century: 0x20,
        control: 2,
    };

    #[test]
    fn bcd_and_binary_and_twelve_hours() {
        // 2001-09-09 01:46:40 UTC is a round number of seconds.
        assert_eq!(BCD.unix(), Some(1_000_000_000));
        let binary = Registers {
            second: 40,
            minute: 46,
            hour: 1,
            day: 9,
            month: 9,
            year: 1,
            century: 20,
            control: 6,
        };
        assert_eq!(binary.unix(), Some(1_000_000_000));
        let afternoon = Registers {
            hour: 0x81,
            control: 0,
            ..BCD
        };
        assert_eq!(afternoon.unix(), Some(1_000_000_000 + 12 * 3600));
        let midnight = Registers {
            hour: 0x12,
            control: 0,
            ..BCD
        };
        assert_eq!(midnight.unix(), Some(1_000_000_000 - 3600));
    }

    #[test]
    fn leap_years_and_centuries() {
        let date = |century, year, month, day| {
            Registers {
                second: 0,
                minute: 0,
                hour: 0,
                day,
                month,
                year,
                century,
                control: 2,
            }
            .unix()
            .map(|seconds| seconds / 86_400)
        };
        assert_eq!(date(0x19, 0x70, 1, 1), Some(0));
        assert_eq!(date(0x20, 0x00, 3, 1), Some(11_017));
        assert_eq!(date(0x20, 0x24, 2, 0x29), Some(19_782));
        assert_eq!(date(0x21, 0x00, 3, 1), Some(47_541));
        assert_eq!(date(0, 0x24, 2, 0x29), Some(19_782), "without a century");
    }

    #[test]
    fn a_clock_without_a_time_has_none() {
        assert_eq!(Registers::default().unix(), None);
        assert_eq!(
            Registers {
                second: 0x7f,
                ..BCD
            }
            .unix(),
            None
        );
        assert_eq!(Registers { month: 0x13, ..BCD }.unix(), None);
    }
}
