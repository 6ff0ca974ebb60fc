use proptest::prelude::*;

use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP: u64 = 1_709_251_198;

fn clock_at(seconds: u64) -> Rtc {
    let config = Config {
        epoch: seconds * SECOND,
        memory: MemorySizes::default(),
    };
    Rtc::new(&config, 0)
}

fn read(rtc: &mut Rtc, index: usize, now: u64) -> u8 {
    rtc.write(INDEX, index as u8, now);
    rtc.read(DATA, now)
}

fn write(rtc: &mut Rtc, index: usize, value: u8, now: u64) {
    rtc.write(INDEX, index as u8, now);
    rtc.write(DATA, value, now);
}

/// Century, year, month, day of the month, day of the week, hours, minutes, seconds.
fn time(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [
        CENTURY,
        YEAR,
        MONTH,
        DAY_OF_MONTH,
        DAY_OF_WEEK,
        HOURS,
        MINUTES,
        SECONDS,
    ]
    .map(|index| read(rtc, index, now))
}

#[test]
fn it_tells_the_time_in_bcd() {
    let mut rtc = clock_at(LEAP);
    assert_eq!(
        time(&mut rtc, 0),
        [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]
    );
    assert_eq!(
        time(&mut rtc, 2 * SECOND - 1),
        [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x59]
    );
    assert_eq!(
        time(&mut rtc, 2 * SECOND),
        [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]
    );
}

#[test]
fn it_tells_the_time_in_binary_and_in_twelve_hours() {
    let mut rtc = clock_at(LEAP);
    write(&mut rtc, B, b::DM | b::HOURS_24, 0);
    assert_eq!(time(&mut rtc, 0), [20, 24, 2, 29, 5, 23, 59, 58]);
    write(&mut rtc, B, 0, 0);
    assert_eq!(read(&mut rtc, HOURS, 0), 0x91);
    write(&mut rtc, B, b::DM, 0);
    assert_eq!(read(&mut rtc, HOURS, 0), 0x8b);
    // Midnight and noon are twelve.
    assert_eq!(read(&mut rtc, HOURS, 2 * SECOND), 12);
    assert_eq!(read(&mut rtc, HOURS, (2 + 12 * 3600) * SECOND), 0x80 | 12);
    assert_eq!(read(&mut rtc, HOURS, (2 + 13 * 3600) * SECOND), 0x80 | 1);
}

#[test]
fn registers_after_power_on() {
    let mut rtc = clock_at(0);
    assert_eq!(read(&mut rtc, A, 0), 0x26);
    assert_eq!(read(&mut rtc, B, 0), 0x02);
    assert_eq!(read(&mut rtc, C, 0), 0);
    assert_eq!(read(&mut rtc, D, 0), 0x80);
    assert_eq!(rtc.read(INDEX, 0), 0xff);
    // C and D cannot be written.
    write(&mut rtc, C, 0xff, 0);
    write(&mut rtc, D, 0, 0);
    assert_eq!(read(&mut rtc, C, 0), 0);
    assert_eq!(read(&mut rtc, D, 0), 0x80);
}

#[test]
fn the_guest_sets_it_while_it_stands() {
    let mut rtc = clock_at(0);
    write(&mut rtc, B, b::SET | b::HOURS_24, SECOND / 4);
    let set = [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59];
    for (index, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY_OF_MONTH, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        write(&mut rtc, index, value, SECOND);
    }
    // It stands for as long as it is being set.
    assert_eq!(time(&mut rtc, 100 * SECOND)[5..], set[5..]);
    write(&mut rtc, B, b::HOURS_24, 100 * SECOND + SECOND / 4);
    assert_eq!(time(&mut rtc, 100 * SECOND + SECOND / 2), set);
    // The seconds come when they would have come.
    assert_eq!(time(&mut rtc, 101 * SECOND - 1), set);
    assert_eq!(time(&mut rtc, 101 * SECOND), [0x20, 0, 1, 1, 7, 0, 0, 0]);
}

#[test]
fn the_first_update_after_a_divider_reset_is_half_a_second_later() {
    let mut rtc = clock_at(0);
    // As Linux sets it: SET, the divider in reset, the time, and both back.
    write(&mut rtc, B, b::SET | b::HOURS_24, 0);
    write(&mut rtc, A, 0x76, 0);
    write(&mut rtc, SECONDS, 0x30, 0);
    write(&mut rtc, B, b::HOURS_24, SECOND / 8);
    assert_eq!(read(&mut rtc, SECONDS, 10 * SECOND), 0x30);
    assert_eq!(read(&mut rtc, A, 10 * SECOND), 0x76);
    write(&mut rtc, A, 0x26, 10 * SECOND);
    assert_eq!(read(&mut rtc, SECONDS, 10 * SECOND + SECOND / 2 - 1), 0x30);
    assert_eq!(read(&mut rtc, SECONDS, 10 * SECOND + SECOND / 2), 0x31);
}

#[test]
fn a_register_can_be_set_while_it_goes() {
    let mut rtc = clock_at(LEAP);
    write(&mut rtc, HOURS, 0x12, SECOND / 2);
    assert_eq!(
        time(&mut rtc, SECOND / 2),
        [0x20, 0x24, 0x02, 0x29, 5, 0x12, 0x59, 0x58]
    );
    assert_eq!(read(&mut rtc, SECONDS, SECOND), 0x59);
}

#[test]
fn an_update_is_announced_and_ends_with_the_second() {
    let mut rtc = clock_at(LEAP);
    let uip = |rtc: &mut Rtc, now| read(rtc, A, now) & 0x80 != 0;
    assert!(!uip(&mut rtc, SECOND / 2));
    assert!(!uip(&mut rtc, SECOND - 2_228_001));
    assert!(uip(&mut rtc, SECOND - 2_228_000));
    assert!(uip(&mut rtc, SECOND - 1));
    assert!(!uip(&mut rtc, SECOND));
    // It cannot be written, and there is none while the time is set.
    write(&mut rtc, A, 0xa6, SECOND);
    assert!(!uip(&mut rtc, SECOND));
    write(&mut rtc, B, b::SET | b::HOURS_24, SECOND);
    assert!(!uip(&mut rtc, 2 * SECOND - 1));
}

#[test]
fn an_ended_update_interrupts_until_register_c_is_read() {
    let mut rtc = clock_at(LEAP);
    write(&mut rtc, B, b::UIE | b::HOURS_24, 0);
    assert_eq!(rtc.next_event(0), Some(SECOND));
    assert!(!rtc.interrupt(SECOND - 1));
    assert!(rtc.interrupt(SECOND));
    // There is nothing more to come before it is read.
    assert_eq!(rtc.next_event(SECOND), None);
    assert_eq!(read(&mut rtc, C, SECOND) & !c::PF, 0x90);
    assert!(!rtc.interrupt(SECOND));
    assert_eq!(read(&mut rtc, C, SECOND), 0);
    assert_eq!(rtc.next_event(SECOND), Some(2 * SECOND));
    // SET takes the enable away.
    write(&mut rtc, B, b::SET | b::UIE | b::HOURS_24, SECOND);
    assert_eq!(read(&mut rtc, B, SECOND), b::SET | b::HOURS_24);
}

#[test]
fn flags_are_raised_without_being_enabled() {
    let mut rtc = clock_at(LEAP);
    assert_eq!(read(&mut rtc, C, SECOND), c::UF | c::PF);
    assert!(!rtc.interrupt(SECOND));
    // Enabled later, a flag that is there interrupts.
    rtc.interrupt(2 * SECOND);
    write(&mut rtc, B, b::PIE | b::HOURS_24, 2 * SECOND);
    assert!(rtc.interrupt(2 * SECOND));
}

#[test]
fn the_alarm_comes_at_its_time() {
    let mut rtc = clock_at(LEAP);
    write(&mut rtc, B, b::AIE | b::HOURS_24, 0);
    for (index, value) in [
        (HOURS_ALARM, 0x00),
        (MINUTES_ALARM, 0x00),
        (SECONDS_ALARM, 0x01),
    ] {
        write(&mut rtc, index, value, 0);
    }
    assert_eq!(rtc.next_event(0), Some(3 * SECOND));
    assert!(!rtc.interrupt(3 * SECOND - 1));
    assert!(rtc.interrupt(3 * SECOND));
    assert_eq!(read(&mut rtc, C, 3 * SECOND) & 0xa0, 0xa0);
    assert_eq!(rtc.next_event(3 * SECOND), Some((3 + 86_400) * SECOND));
    // "Don't care": every minute at that second, every second.
    write(&mut rtc, HOURS_ALARM, 0xc0, 3 * SECOND);
    write(&mut rtc, MINUTES_ALARM, 0xff, 3 * SECOND);
    assert_eq!(rtc.next_event(3 * SECOND), Some(63 * SECOND));
    write(&mut rtc, SECONDS_ALARM, 0xc5, 3 * SECOND);
    assert_eq!(rtc.next_event(3 * SECOND), Some(4 * SECOND));
    // What is no time never comes.
    write(&mut rtc, SECONDS_ALARM, 0x60, 3 * SECOND);
    assert_eq!(rtc.next_event(3 * SECOND), None);
}

#[test]
fn the_periodic_interrupt_has_its_rates() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (10, 64), (15, 2)] {
        let mut rtc = clock_at(LEAP);
        write(&mut rtc, A, 0x20 | rate, 0);
        write(&mut rtc, B, b::PIE | b::HOURS_24, 0);
        let (mut now, mut count) = (0, 0);
        while let Some(next) = rtc.next_event(now).filter(|next| *next <= SECOND) {
            assert!(!rtc.interrupt(next - 1));
            assert!(rtc.interrupt(next));
            assert_eq!(read(&mut rtc, C, next) & 0xc0, 0xc0);
            (now, count) = (next, count + 1);
        }
        assert_eq!(count, hertz);
    }
    // Rate 0 is none.
    let mut rtc = clock_at(LEAP);
    write(&mut rtc, A, 0x20, 0);
    write(&mut rtc, B, b::PIE | b::HOURS_24, 0);
    assert_eq!(rtc.next_event(0), None);
    assert!(!rtc.interrupt(10 * SECOND));
}

#[test]
fn the_memory_holds_114_bytes_and_tells_the_memorys_size() {
    let sizes = |below_4g, above_4g| {
        let memory = MemorySizes { below_4g, above_4g };
        Rtc::new(&Config { epoch: 0, memory }, 0)
    };
    let number = |rtc: &mut Rtc, index: usize, bytes: usize| {
        (0..bytes).fold(0u32, |value, byte| {
            value | u32::from(read(rtc, index + byte, 0)) << (8 * byte)
        })
    };
    // 256 MiB.
    let mut rtc = sizes(256 << 20, 0);
    assert_eq!(number(&mut rtc, 0x15, 2), 640);
    assert_eq!(number(&mut rtc, 0x17, 2), 65_535);
    assert_eq!(number(&mut rtc, 0x30, 2), 65_535);
    assert_eq!(number(&mut rtc, 0x34, 2), 240 * 16);
    assert_eq!(number(&mut rtc, 0x5b, 3), 0);
    let sum: u32 = (0x10..0x2e)
        .map(|index| u32::from(read(&mut rtc, index, 0)))
        .sum();
    assert_eq!(
        sum.to_be_bytes()[2..],
        [read(&mut rtc, 0x2e, 0), read(&mut rtc, 0x2f, 0)]
    );
    // 8 MiB; 3 GiB and 5 GiB above; more than fits.
    let mut rtc = sizes(8 << 20, 0);
    assert_eq!(
        (number(&mut rtc, 0x30, 2), number(&mut rtc, 0x34, 2)),
        (7 << 10, 0)
    );
    let mut rtc = sizes(3 << 30, 5 << 30);
    assert_eq!(number(&mut rtc, 0x34, 2), (3 << 14) - 256);
    assert_eq!(number(&mut rtc, 0x5b, 3), 5 << 14);
    let mut rtc = sizes(u64::MAX, u64::MAX);
    assert_eq!(number(&mut rtc, 0x5b, 3), 0xff_ffff);
    // All but the century can be written.
    for index in (0x0e..0x80).filter(|index| *index != CENTURY) {
        write(&mut rtc, index, index as u8 ^ 0x5a, 0);
    }
    for index in (0x0e..0x80).filter(|index| *index != CENTURY) {
        assert_eq!(read(&mut rtc, index, SECOND), index as u8 ^ 0x5a);
    }
    // The index's highest bit is the NMI's.
    assert_eq!(read(&mut rtc, 0x80 | 0x40, 0), 0x40 ^ 0x5a);
}

proptest! {
    #[test]
    fn the_calendar_is_its_own_inverse(seconds in -10_000_000_000i128..300_000_000_000) {
        let calendar = Calendar::from_seconds(seconds);
        prop_assert_eq!(calendar.to_seconds(), seconds);
        prop_assert!((1..=12).contains(&calendar.month));
        prop_assert!((1..=31).contains(&calendar.day));
        prop_assert!((1..=7).contains(&calendar.weekday));
        // Days follow each other.
        let next = Calendar::from_seconds(seconds + DAY);
        prop_assert!(next.day == calendar.day + 1 || (next.day == 1 && calendar.day >= 28));
        prop_assert_eq!(next.weekday, calendar.weekday % 7 + 1);
    }

    /// The alarm is the first second whose registers match, which a search by every second finds as well.
    #[test]
    fn the_alarm_is_the_first_match(
        start in 0..DAY,
        fields in [0..70u8, 0..70u8, 0..30u8],
        any in [any::<bool>(), any::<bool>(), any::<bool>()],
        mode in 0..4u8,
    ) {
        let mut rtc = clock_at(0);
        rtc.b = (mode & 1) << 2 | mode & 2;
        for ((index, value), any) in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].into_iter().zip(fields).zip(any) {
            let shown = if index == HOURS_ALARM { rtc.encode_hour(value.into()) } else { rtc.encode(value.into()) };
            rtc.store(index, if any { 0xc0 } else { shown });
        }
        let expected = (start..=start + DAY).find(|second| {
            let of_day = second % DAY;
            rtc.matches(SECONDS_ALARM, rtc.encode(of_day % 60))
                && rtc.matches(MINUTES_ALARM, rtc.encode(of_day / 60 % 60))
                && rtc.matches(HOURS_ALARM, rtc.encode_hour(of_day / 3600))
        });
        prop_assert_eq!(rtc.next_alarm(start), expected);
    }

    #[test]
    fn what_is_set_is_read(fields in (0..100u8, 1..=12u8, 1..=28u8, 0..24u8, 0..60u8, 0..60u8), mode in 0..4u8) {
        let (year, month, day, hour, minute, second) = fields;
        let mut rtc = clock_at(0);
        let format = (mode & 1) << 2 | mode & 2;
        write(&mut rtc, B, b::SET | format, 0);
        let set = [
            rtc.encode(21),
            rtc.encode(year.into()),
            rtc.encode(month.into()),
            rtc.encode(day.into()),
            rtc.encode_hour(hour.into()),
            rtc.encode(minute.into()),
            rtc.encode(second.into()),
        ];
        let registers = [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS];
        for (index, value) in registers.into_iter().zip(set) {
            write(&mut rtc, index, value, 0);
        }
        write(&mut rtc, B, format, 0);
        prop_assert_eq!(registers.map(|index| read(&mut rtc, index, 0)), set);
    }

    #[test]
    fn a_storm_never_panics(storm in prop::collection::vec((0..4u8, any::<u8>(), any::<u8>(), 0..1u64 << 50), 0..300), end in any::<u64>()) {
        let mut rtc = clock_at(LEAP);
        let mut now = 0u64;
        for (kind, index, value, step) in storm {
            match kind {
                0 => write(&mut rtc, index.into(), value, now),
                1 => write(&mut rtc, usize::from(index & 0xf), value, now),
                2 => { read(&mut rtc, index.into(), now); }
                _ => now = now.saturating_add(step >> (value & 63)),
            }
            let high = rtc.interrupt(now);
            if let Some(next) = rtc.next_event(now) {
                prop_assert!(!high && next >= now);
            }
        }
        rtc.interrupt(end);
        rtc.next_event(end);
    }
}
