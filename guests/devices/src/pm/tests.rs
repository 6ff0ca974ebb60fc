use proptest::prelude::*;

use super::*;
use crate::time::SECOND;

fn read(pm: &mut Pm, port: u16, bytes: u16, now: u64) -> u32 {
    (0..bytes).fold(0, |value, byte| {
        value | u32::from(pm.read(port + byte, now)) << (8 * byte)
    })
}

fn write_word(pm: &mut Pm, port: u16, value: u16, now: u64) -> Option<Power> {
    let [low, high] = value.to_le_bytes();
    let first = pm.write(port, low, now);
    first.or(pm.write(port + 1, high, now))
}

#[test]
fn the_timer_runs_at_its_frequency() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    assert_eq!(read(&mut pm, TIMER, 4, 0), 0);
    assert_eq!(read(&mut pm, TIMER, 4, SECOND), 3_579_545);
    assert_eq!(read(&mut pm, TIMER, 4, 1000 * SECOND), 3_579_545_000);
    // 2^32 ticks are 1199.86 s.
    assert_eq!(
        read(&mut pm, TIMER, 4, 1200 * SECOND),
        (3_579_545u64 * 1200 - (1 << 32)) as u32
    );
    let mut short = Pm::new(TimerWidth::Bits24, 0);
    assert_eq!(
        read(&mut short, TIMER, 4, 5 * SECOND),
        3_579_545 * 5 - (1 << 24)
    );
}

#[test]
fn the_timers_highest_bit_raises_its_status_in_either_direction() {
    for (width, ticks) in [
        (TimerWidth::Bits24, 1u64 << 23),
        (TimerWidth::Bits32, 1 << 31),
    ] {
        let mut pm = Pm::new(width, 0);
        write_word(&mut pm, EVENT + 2, 1, 0);
        for half in 1..4 {
            let due = moment(half * ticks, HZ);
            assert_eq!(pm.next_event(due - 1), Some(due));
            assert!(!pm.sci(due - 1));
            assert!(pm.sci(due));
            assert_eq!(read(&mut pm, EVENT, 2, due), 1);
            // It is there already: nothing more will come.
            assert_eq!(pm.next_event(due), None);
            write_word(&mut pm, EVENT, 1, due);
            assert!(!pm.sci(due));
        }
    }
}

#[test]
fn the_status_is_raised_without_being_enabled() {
    let mut pm = Pm::new(TimerWidth::Bits24, 0);
    assert_eq!(pm.next_event(0), None);
    assert_eq!(read(&mut pm, EVENT, 2, 3 * SECOND), 1);
    assert!(!pm.sci(3 * SECOND));
    write_word(&mut pm, EVENT + 2, 1, 3 * SECOND);
    assert!(pm.sci(3 * SECOND));
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    pm.press();
    assert!(!pm.sci(0));
    write_word(&mut pm, EVENT + 2, 1 << 8, 0);
    assert!(pm.sci(0));
    assert_eq!(read(&mut pm, EVENT, 4, 0), 1 << 24 | 1 << 8);
    // Zeroes and other bits leave it.
    write_word(&mut pm, EVENT, !(1 << 8), 0);
    assert!(pm.sci(0));
    write_word(&mut pm, EVENT, 1 << 8, 0);
    assert!(!pm.sci(0));
}

#[test]
fn only_events_that_exist_can_be_enabled() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    write_word(&mut pm, EVENT + 2, 0xffff, 0);
    assert_eq!(
        read(&mut pm, EVENT + 2, 2, 0),
        1 << 10 | 1 << 8 | 1 << 5 | 1
    );
}

#[test]
fn the_machine_is_in_acpi_mode_for_good() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    assert_eq!(read(&mut pm, CONTROL, 2, 0), 1);
    write_word(&mut pm, CONTROL, 0, 0);
    assert_eq!(read(&mut pm, CONTROL, 2, 0), 1);
    write_word(&mut pm, CONTROL, !(1 << 13), 0);
    // BM_RLD and SLP_TYP hold; GBL_RLS and what is reserved do not.
    assert_eq!(read(&mut pm, CONTROL, 2, 0), 0b1_1100_0000_0011);
}

#[test]
fn sleeping_in_s5_is_off() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    // The type first, then the same with SLP_EN, as drivers do it.
    assert_eq!(write_word(&mut pm, CONTROL, 5 << 10 | 1, 0), None);
    assert_eq!(
        write_word(&mut pm, CONTROL, 1 << 13 | 5 << 10 | 1, 0),
        Some(Power::Off)
    );
    // SLP_EN reads as zero; other types are no states that there are.
    assert_eq!(read(&mut pm, CONTROL, 2, 0), 5 << 10 | 1);
    for other in [0, 1, 2, 3, 4, 6, 7] {
        assert_eq!(write_word(&mut pm, CONTROL, 1 << 13 | other << 10, 0), None);
    }
}

#[test]
fn the_reset_register_resets_when_its_bit_rises() {
    let mut pm = Pm::new(TimerWidth::Bits32, 0);
    assert_eq!(pm.write(RESET, 0x02, 0), None);
    assert_eq!(pm.read(RESET, 0), 0x02);
    assert_eq!(pm.write(RESET, RESET_VALUE, 0), Some(Power::Reset));
    // It is set already.
    assert_eq!(pm.write(RESET, 0x0e, 0), None);
    assert_eq!(pm.write(RESET, 0x00, 0), None);
    assert_eq!(pm.write(RESET, 0x04, 0), Some(Power::Reset));
}

proptest! {
    #[test]
    fn a_storm_never_panics(storm in prop::collection::vec((any::<bool>(), 0..16u16, any::<u8>(), any::<u64>()), 0..200)) {
        let mut pm = Pm::new(TimerWidth::Bits24, 0);
        let mut latest = 0;
        for (write, offset, value, now) in storm {
            let port = if offset == 15 { RESET } else { EVENT + offset };
            if write {
                pm.write(port, value, now);
            } else {
                pm.read(port, now);
            }
            latest = latest.max(now);
            if let Some(next) = pm.next_event(now) {
                prop_assert!(next >= latest);
            }
            prop_assert_eq!(pm.read(CONTROL, now) & 1, 1);
        }
    }

    #[test]
    fn the_timer_does_not_go_back(times in prop::collection::vec(0..SECOND, 1..50)) {
        let mut pm = Pm::new(TimerWidth::Bits32, 0);
        let mut now = 0;
        let mut before = 0;
        for step in times {
            now += step;
            let timer = read(&mut pm, TIMER, 4, now);
            prop_assert!(timer >= before);
            before = timer;
        }
    }
}
