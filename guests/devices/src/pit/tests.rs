use proptest::prelude::*;

use super::*;

/// The first moment of a tick.
fn at(tick: u64) -> u64 {
    moment(tick, HZ)
}

/// A channel is given a mode and, by two bytes, a count.
fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
    pit.write(CONTROL, channel << 6 | 0x30 | mode << 1, now);
    count_to(pit, channel, count, now);
}

fn count_to(pit: &mut Pit, channel: u8, count: u16, now: u64) {
    for byte in count.to_le_bytes() {
        pit.write(PORT + u16::from(channel), byte, now);
    }
}

/// Reads both bytes of a channel's count.
fn read(pit: &mut Pit, channel: u8, now: u64) -> u16 {
    let port = PORT + u16::from(channel);
    u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
}

/// The status of a channel, by the read-back command.
fn status(pit: &mut Pit, channel: u8, now: u64) -> u8 {
    pit.write(CONTROL, 0xe0 | 2 << channel, now);
    pit.read(PORT + u16::from(channel), now)
}

/// The outputs of a channel in the ticks of a range, as a picture.
fn picture(pit: &Pit, channel: usize, ticks: core::ops::Range<u64>) -> String {
    let mut pit = pit.clone();
    ticks
        .map(|tick| {
            if pit.output(channel, at(tick)) {
                '-'
            } else {
                '_'
            }
        })
        .collect()
}

/// The counts of a channel in the ticks of a range.
fn counts(pit: &Pit, channel: u8, ticks: core::ops::Range<u64>) -> Vec<u16> {
    let mut pit = pit.clone();
    ticks
        .map(|tick| read(&mut pit, channel, at(tick)))
        .collect()
}

fn gate(pit: &mut Pit, open: bool, now: u64) {
    pit.write(SPEAKER, open.into(), now);
}

#[test]
fn mode_0_rises_one_tick_after_as_many_as_written() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 4, at(100));
    // Low with the control word, loaded in the next tick, high N + 1 ticks after the write, and it stays.
    assert_eq!(picture(&pit, 0, 100..109), "_____----");
    assert_eq!(counts(&pit, 0, 101..108), [4, 3, 2, 1, 0, 0xffff, 0xfffe]);
    // A new count begins anew.
    count_to(&mut pit, 0, 2, at(110));
    assert_eq!(picture(&pit, 0, 110..116), "___---");
    // Its first byte alone stops it.
    pit.write(PORT, 5, at(111));
    assert_eq!(picture(&pit, 0, 111..119), "________");
}

#[test]
fn mode_0_waits_while_its_gate_is_closed() {
    let mut pit = Pit::new();
    gate(&mut pit, true, 0);
    program(&mut pit, 2, 0, 5, at(100));
    gate(&mut pit, false, at(103));
    assert_eq!(counts(&pit, 2, 103..106), [3, 3, 3]);
    gate(&mut pit, true, at(110));
    assert_eq!(picture(&pit, 2, 110..116), "___---");
    // Written while it is closed: high N ticks after it opens.
    gate(&mut pit, false, at(120));
    count_to(&mut pit, 2, 3, at(120));
    assert_eq!(picture(&pit, 2, 120..126), "______");
    gate(&mut pit, true, at(130));
    assert_eq!(picture(&pit, 2, 130..136), "___---");
}

#[test]
fn mode_1_is_low_for_as_long_as_written_after_a_trigger() {
    let mut pit = Pit::new();
    program(&mut pit, 2, 1, 3, at(100));
    assert_eq!(picture(&pit, 2, 100..110), "----------");
    gate(&mut pit, true, at(110));
    assert_eq!(picture(&pit, 2, 110..117), "-___---");
    // Closing it changes nothing; a trigger while it is low makes it longer.
    gate(&mut pit, false, at(111));
    gate(&mut pit, true, at(113));
    assert_eq!(picture(&pit, 2, 113..120), "____---");
    // A new count waits for the next trigger.
    count_to(&mut pit, 2, 5, at(114));
    assert_eq!(picture(&pit, 2, 114..120), "___---");
    assert_ne!(status(&mut pit, 2, at(115)) & 0x40, 0);
    gate(&mut pit, false, at(120));
    gate(&mut pit, true, at(120));
    assert_eq!(picture(&pit, 2, 120..129), "-_____---");
    assert_eq!(status(&mut pit, 2, at(121)) & 0x40, 0);
}

#[test]
fn mode_2_is_low_for_one_tick_in_each_period() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 3, at(100));
    assert_eq!(picture(&pit, 0, 100..112), "---_--_--_--");
    assert_eq!(counts(&pit, 0, 101..108), [3, 2, 1, 3, 2, 1, 3]);
    // A new count waits for the end of the period that runs.
    count_to(&mut pit, 0, 5, at(104));
    assert_eq!(picture(&pit, 0, 104..118), "--_----_----_-");
    assert_eq!(counts(&pit, 0, 104..112), [3, 2, 1, 5, 4, 3, 2, 1]);
    assert_ne!(status(&mut pit, 0, at(106)) & 0x40, 0);
    assert_eq!(status(&mut pit, 0, at(107)) & 0x40, 0);
}

#[test]
fn mode_2_stops_high_and_is_synchronised_by_its_gate() {
    let mut pit = Pit::new();
    gate(&mut pit, true, 0);
    program(&mut pit, 2, 2, 3, at(100));
    // In the tick in which it is low.
    assert!(!pit.output(2, at(103)));
    gate(&mut pit, false, at(103));
    assert_eq!(picture(&pit, 2, 103..109), "------");
    gate(&mut pit, true, at(110));
    assert_eq!(picture(&pit, 2, 110..118), "---_--_-");
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 3, 4, at(100));
    assert_eq!(picture(&pit, 0, 100..110), "---__--__-");
    assert_eq!(counts(&pit, 0, 101..107), [4, 2, 4, 2, 4, 2]);
    // An odd count is high for one tick more.
    program(&mut pit, 0, 3, 5, at(200));
    assert_eq!(picture(&pit, 0, 200..212), "----__---__-");
    assert_eq!(counts(&pit, 0, 201..208), [4, 2, 0, 4, 2, 4, 2]);
    // A new count waits for the end of the half that runs.
    program(&mut pit, 0, 3, 4, at(300));
    count_to(&mut pit, 0, 6, at(301));
    assert_eq!(picture(&pit, 0, 301..315), "--___---___---");
    program(&mut pit, 0, 3, 4, at(400));
    count_to(&mut pit, 0, 6, at(403));
    assert_eq!(picture(&pit, 0, 403..415), "__---___---_");
}

#[test]
fn mode_4_strobes_once_after_a_count_is_written() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 4, 3, at(100));
    assert_eq!(picture(&pit, 0, 100..110), "----_-----");
    assert_eq!(counts(&pit, 0, 101..106), [3, 2, 1, 0, 0xffff]);
    // Written again it begins again.
    count_to(&mut pit, 0, 3, at(103));
    assert_eq!(picture(&pit, 0, 103..110), "----_--");
}

#[test]
fn mode_5_strobes_once_after_a_trigger() {
    let mut pit = Pit::new();
    program(&mut pit, 2, 5, 3, at(100));
    assert_eq!(picture(&pit, 2, 100..110), "----------");
    gate(&mut pit, true, at(110));
    assert_eq!(picture(&pit, 2, 110..118), "----_---");
    gate(&mut pit, false, at(111));
    gate(&mut pit, true, at(112));
    assert_eq!(picture(&pit, 2, 112..120), "----_---");
}

#[test]
fn a_count_of_zero_is_the_largest() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 0, at(0));
    assert!(pit.tick(at(0)));
    assert_eq!(read(&mut pit, 0, at(1)), 0);
    assert_eq!(read(&mut pit, 0, at(2)), 0xffff);
    assert_eq!(pit.next_event(at(2)), Some(at(65_537)));
    // In BCD that is 10000.
    pit.write(CONTROL, 0x35, at(10));
    count_to(&mut pit, 0, 0, at(10));
    assert_eq!(read(&mut pit, 0, at(11)), 0);
    assert_eq!(read(&mut pit, 0, at(12)), 0x9999);
    assert_eq!(pit.next_event(at(12)), Some(at(10_011)));
}

#[test]
fn binary_coded_decimal_counts_in_decimal() {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x31, 0);
    count_to(&mut pit, 0, 0x0102, at(0));
    assert_eq!(read(&mut pit, 0, at(1)), 0x0102);
    assert_eq!(read(&mut pit, 0, at(4)), 0x0099);
    assert!(!pit.output(0, at(102)));
    assert!(pit.output(0, at(103)));
    assert_eq!(read(&mut pit, 0, at(104)), 0x9999);
}

#[test]
fn one_byte_can_be_all_that_is_written_and_read() {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x14, 0);
    pit.write(PORT, 0x10, at(0));
    assert_eq!(pit.read(PORT, at(1)), 0x10);
    assert_eq!(pit.read(PORT, at(2)), 0x0f);
    pit.write(CONTROL, 0x24, 0);
    pit.write(PORT, 0x10, at(10));
    assert_eq!(pit.read(PORT, at(11)), 0x10);
    assert_eq!(pit.read(PORT, at(12)), 0x0f);
    assert_eq!(pit.next_event(at(12)), Some(at(11 + 0x1000)));
}

#[test]
fn a_latched_count_stays_until_it_is_read() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1000, at(0));
    pit.write(CONTROL, 0x00, at(101));
    // A second latch is ignored.
    pit.write(CONTROL, 0x00, at(201));
    assert_eq!(pit.read(PORT, at(301)), 900u16.to_le_bytes()[0]);
    assert_eq!(pit.read(PORT, at(401)), 900u16.to_le_bytes()[1]);
    assert_eq!(read(&mut pit, 0, at(501)), 500);
    // The other channels are not latched by it.
    program(&mut pit, 1, 2, 1000, at(600));
    pit.write(CONTROL, 0x00, at(601));
    assert_eq!(read(&mut pit, 1, at(701)), 900);
}

#[test]
fn read_back_latches_counts_and_statuses_of_several() {
    let mut pit = Pit::new();
    gate(&mut pit, true, 0);
    program(&mut pit, 0, 2, 1000, at(0));
    program(&mut pit, 2, 3, 500, at(0));
    // Both, of channels 0 and 2: the status comes first.
    pit.write(CONTROL, 0b1100_1010, at(11));
    assert_eq!(pit.read(PORT, at(20)), 0b1011_0100);
    assert_eq!(read(&mut pit, 0, at(30)), 990);
    assert_eq!(pit.read(PORT + 2, at(40)), 0b1011_0110);
    assert_eq!(read(&mut pit, 2, at(50)), 480);
    // Until the count is loaded it is null; the output is in bit 7.
    pit.write(CONTROL, 0x30, at(60));
    assert_eq!(status(&mut pit, 0, at(60)), 0b0111_0000);
    count_to(&mut pit, 0, 1000, at(60));
    assert_eq!(status(&mut pit, 0, at(60)), 0b0111_0000);
    assert_eq!(status(&mut pit, 0, at(61)), 0b0011_0000);
    // Modes 6 and 7 are 2 and 3, and read as they were written.
    pit.write(CONTROL, 0x3c, at(70));
    assert_eq!(status(&mut pit, 0, at(70)) & 0x3f, 0x3c);
}

#[test]
fn port_61_has_the_rest_of_the_speaker() {
    let mut pit = Pit::new();
    pit.write(SPEAKER, 0xff, 0);
    assert_eq!(pit.read(SPEAKER, 0) & !speaker::REFRESH, 0x0f);
    program(&mut pit, 2, 3, 100, at(0));
    assert_eq!(pit.read(SPEAKER, at(1)) & 0x20, 0x20);
    assert_eq!(pit.read(SPEAKER, at(60)) & 0x20, 0);
    // Refreshes come all 15 us.
    let toggles = (0..1000).filter(|us| pit.read(SPEAKER, us * 1000 + 1) & 0x10 != 0);
    assert!((480..520).contains(&toggles.count()));
}

/// How many ticks are given when the owner looks at the times it is told, until `end`.
fn ticks_until(pit: &mut Pit, mut now: u64, end: u64) -> u64 {
    let mut given = 0;
    while now < end {
        given += u64::from(pit.tick(now));
        match pit.next_event(now) {
            // The owner's clock has a resolution of its own.
            Some(next) => now = next.max(now + 1),
            None => break,
        }
    }
    given
}

#[test]
fn a_periodic_timer_ticks_at_its_rate() {
    for mode in [2, 3] {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, 11932, 0);
        // The output has risen by the control word: from low, as after power-on.
        assert!(pit.tick(0));
        // 100 Hz for ten seconds.
        assert_eq!(ticks_until(&mut pit, 0, 10 * SECOND), 999);
        assert!(pit.line());
    }
}

#[test]
fn a_tick_comes_when_it_was_told() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 11932, 0);
    assert!(pit.tick(0));
    let due = pit.next_event(0).unwrap();
    assert_eq!(due, at(11933));
    assert!(!pit.tick(due - 1));
    assert!(pit.tick(due));
    assert!(!pit.tick(due));
}

#[test]
fn a_single_shot_ticks_once_and_its_line_falls_when_it_is_set_again() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 1000, 0);
    assert!(!pit.line());
    assert_eq!(pit.next_event(0), Some(at(1001)));
    assert!(pit.tick(at(1001)));
    assert!(pit.line());
    assert_eq!(pit.next_event(at(1001)), None);
    count_to(&mut pit, 0, 1000, at(2000));
    assert!(!pit.line());
    // One that is over before it was taken is taken back as well.
    pit.next_event(at(4000));
    assert_eq!(pit.owed, 1);
    count_to(&mut pit, 0, 1000, at(4000));
    assert!(!pit.tick(at(4000)));
}

#[test]
fn a_strobe_ticks_when_it_ends() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 4, 1000, 0);
    assert!(pit.tick(0));
    assert_eq!(pit.next_event(0), Some(at(1002)));
    assert!(!pit.tick(at(1001)));
    assert!(pit.tick(at(1002)));
    assert_eq!(pit.next_event(at(1002)), None);
}

#[test]
fn lost_ticks_are_caught_up_to_a_bound() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1193, 0);
    assert!(pit.tick(0));
    // Ten were missed. They come at twice the rate.
    let now = at(1193 * 10 + 2);
    assert!(pit.tick(now));
    assert!(!pit.tick(now));
    assert_eq!(ticks_until(&mut pit, now, now + 8 * SECOND / 1000), 16);
    // The others are there soon, and then it is the usual rate.
    ticks_until(&mut pit, now + 8 * SECOND / 1000, SECOND);
    assert_eq!(ticks_until(&mut pit, SECOND, SECOND + SECOND / 10), 100);
    // A thousand were missed: the bound.
    let now = 3 * SECOND;
    pit.next_event(now);
    assert_eq!(pit.owed, MOST_OWED);
    // A control word forgets them.
    pit.write(CONTROL, 0x34, now);
    assert!(!pit.tick(now));
}

#[test]
fn a_shorter_period_is_not_slowed_by_the_one_before() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 60_000, 0);
    assert!(pit.tick(0));
    // Two are owed, of which one is given late in the period. Its count's end makes the pause before the other shorter.
    assert!(pit.tick(at(179_990)));
    count_to(&mut pit, 0, 1000, at(179_990));
    let told = pit.next_event(at(179_990)).unwrap();
    assert!(told <= at(180_491));
    assert!(!pit.tick(told - 1));
    assert!(pit.tick(told));
}

#[test]
fn a_timer_that_is_too_fast_is_served_at_most_so_often() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1, 0);
    let given = ticks_until(&mut pit, 0, SECOND / 100);
    assert!(given <= SECOND / 100 / SHORTEST + 1, "{given}");
}

proptest! {
    #[test]
    fn a_storm_never_panics(storm in prop::collection::vec((0..4u8, 0..5u16, any::<u8>(), 0..1u64 << 40), 0..300), end in any::<u64>()) {
        let mut pit = Pit::new();
        let mut now = 0u64;
        for (kind, port, value, step) in storm {
            let port = if port == 4 { SPEAKER } else { PORT + port };
            match kind {
                0 => pit.write(port, value, now),
                1 => { pit.read(port, now); }
                2 => { pit.tick(now); }
                _ => now = now.saturating_add(step >> (value & 31)),
            }
            if let Some(next) = pit.next_event(now) {
                prop_assert!(next >= now);
            }
            prop_assert!(pit.owed <= MOST_OWED);
        }
        // Any time, also one that has been.
        pit.tick(end);
        pit.next_event(end);
        pit.read(PORT, end);
    }

    #[test]
    fn reads_go_down_within_a_period(mode in prop::sample::select(vec![0u8, 2, 4]), count in 100..=u16::MAX, steps in prop::collection::vec(1..200u64, 1..60)) {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, count, 0);
        let mut tick = 1;
        let mut before = count;
        for step in steps {
            tick += step;
            if tick > u64::from(count) {
                break;
            }
            let value = read(&mut pit, 0, at(tick));
            prop_assert_eq!(u64::from(before - value), if before == count { tick - 1 } else { step });
            before = value;
        }
    }

    /// The edges that are counted are those that a look at the output in every tick sees.
    #[test]
    fn counted_edges_are_seen_edges(
        mode in 0..6u8,
        writes in prop::collection::vec((2..40u16, 1..120u64), 1..6),
        looks in 1..50u64,
    ) {
        let mut pit = Pit::new();
        let mut model = pit.clone();
        let (mut counted, mut seen, mut tick) = (0, 0, 1);
        pit.write(CONTROL, 0x30 | mode << 1, at(tick));
        model.write(CONTROL, 0x30 | mode << 1, at(tick));
        for (count, wait) in writes {
            pit.owed = 0;
            count_to(&mut pit, 0, count, at(tick));
            count_to(&mut model, 0, count, at(tick));
            let mut output = model.output(0, at(tick));
            pit.owed = 0;
            for step in 1..=wait {
                let now = model.output(0, at(tick + step));
                seen += u64::from(now && !output);
                output = now;
                if step % looks == 0 || step == wait {
                    pit.next_event(at(tick + step));
                }
            }
            counted += pit.owed;
            tick += wait;
        }
        prop_assert_eq!(counted, seen);
    }

    /// Nothing rises before it was told.
    #[test]
    fn no_edge_comes_before_the_next_event(mode in 0..6u8, first in 2..60u16, second in 2..60u16, gap in 0..100u64) {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, first, at(1));
        count_to(&mut pit, 0, second, at(1 + gap));
        let from = 1 + gap;
        let zero = &pit.channels[0];
        let next = zero.next_rise(from as i64).map_or(from + 500, |next| next as u64);
        prop_assert!(next > from);
        let before = picture(&pit, 0, from..next);
        prop_assert!(!before.contains("_-"), "{before}");
    }
}
