//! Tests of the local APIC's timer, against SDM vol. 3 11.5.4.

use proptest::prelude::*;

use super::timer::{Timer, TimerMode};

/// Divide configuration: by 1.
const BY_1: u32 = 0b1011;

fn timer(mode: TimerMode, divide: u32, initial: u32, now: u64) -> Timer {
    let mut timer = Timer::RESET;
    timer.set_mode(mode);
    timer.set_divide(divide, now);
    timer.set_initial(initial, now);
    timer
}

#[test]
fn a_one_shot_counts_down_once() {
    let mut timer = timer(TimerMode::OneShot, BY_1, 100, 1000);
    assert_eq!(timer.deadline(false), Some(1100));
    assert_eq!(timer.current(1000), 100);
    assert_eq!(timer.current(1001), 99);
    assert!(!timer.expire(1099));
    assert_eq!(timer.current(1099), 1);
    assert_eq!(timer.current(1100), 0);
    assert!(timer.expire(1100));
    assert!(!timer.expire(5000));
    assert_eq!((timer.current(5000), timer.deadline(false)), (0, None));
    assert_eq!(timer.initial(), 100);
}

#[test]
fn the_eight_divisors() {
    let divisors = [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ];
    for (register, divisor) in divisors {
        let timer = timer(TimerMode::OneShot, register, 10, 0);
        assert_eq!(timer.deadline(false), Some(10 * divisor), "{register:#b}");
        assert_eq!(timer.current(divisor - 1), 10);
        assert_eq!(timer.current(divisor), 9);
        assert_eq!(timer.divide(), register);
    }
    assert_eq!(timer(TimerMode::OneShot, 0xf4, 10, 0).divide(), 0);
}

#[test]
fn the_longest_count_does_not_overflow() {
    let timer = timer(TimerMode::Periodic, 0b1010, u32::MAX, u64::MAX - 1);
    assert_eq!(timer.deadline(false), Some(u64::MAX));
    let timer = self::timer(TimerMode::OneShot, 0b1010, u32::MAX, 0);
    assert_eq!(timer.deadline(false), Some(0xffff_ffff * 128));
    assert_eq!(timer.current(0), u32::MAX);
}

#[test]
fn a_tsc_at_its_end_overflows_nothing() {
    for initial in [3, 100_000] {
        let mut timer = timer(TimerMode::Periodic, BY_1, initial, 0);
        assert!(timer.expire(u64::MAX));
        assert_eq!(timer.deadline(false), Some(u64::MAX));
        assert!(timer.current(u64::MAX) <= initial);
        timer.set_divide(0, u64::MAX);
        timer.set_initial(initial, u64::MAX);
        assert_eq!(timer.deadline(false), Some(u64::MAX));
    }
}

#[test]
fn a_periodic_timer_reloads_and_does_not_drift() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 100_000, 0);
    assert!(timer.expire(100_007));
    assert_eq!(timer.deadline(false), Some(200_000));
    assert_eq!(timer.current(100_007), 99_993);
    assert!(!timer.expire(199_999));
    assert!(timer.expire(200_000));
    assert_eq!(timer.current(200_000), 100_000);
}

#[test]
fn periods_that_were_missed_are_one_expiry_in_phase() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 100_000, 0);
    assert!(timer.expire(799_999));
    assert!(!timer.expire(799_999));
    assert_eq!(timer.deadline(false), Some(800_000));
    assert!(
        timer.expire(800_000),
        "the next is not swallowed however near it is"
    );
}

#[test]
fn the_count_of_a_periodic_timer_goes_on_unobserved() {
    let timer = timer(TimerMode::Periodic, 0b0000, 100, 0);
    assert_eq!(timer.current(199), 1);
    assert_eq!(timer.current(200), 100);
    assert_eq!(timer.current(10 * 200 + 50), 75);
}

#[test]
fn very_short_periods_are_no_flood() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 3, 0);
    let (mut now, mut expiries) = (0, 0);
    while now < 1_000_000 {
        now = timer.deadline(false).unwrap().max(now + 1);
        assert_eq!(now % 3, 0, "in phase");
        expiries += u32::from(timer.expire(now));
        assert!((1..=3).contains(&timer.current(now)));
    }
    assert!((40..=53).contains(&expiries), "{expiries}");
}

#[test]
fn an_initial_count_of_zero_stops_it() {
    for mode in [TimerMode::OneShot, TimerMode::Periodic] {
        let mut timer = timer(mode, BY_1, 100, 0);
        timer.set_initial(0, 50);
        assert_eq!((timer.current(50), timer.deadline(false)), (0, None));
        assert!(!timer.expire(100_000));
    }
}

#[test]
fn a_new_initial_count_starts_again() {
    let mut timer = timer(TimerMode::OneShot, BY_1, 100, 0);
    timer.set_initial(100, 99);
    assert!(!timer.expire(100));
    assert!(timer.expire(199));
}

#[test]
fn a_new_divisor_keeps_the_count() {
    let mut timer = timer(TimerMode::OneShot, BY_1, 100, 0);
    timer.set_divide(0b0000, 40);
    assert_eq!(timer.current(40), 60);
    assert_eq!(timer.deadline(false), Some(160));
}

#[test]
fn a_tsc_deadline_expires_once_and_clears_itself() {
    let mut timer = Timer::RESET;
    timer.set_mode(TimerMode::TscDeadline);
    timer.set_tsc_deadline(1000);
    assert_eq!(
        (timer.tsc_deadline(), timer.deadline(false)),
        (1000, Some(1000))
    );
    assert!(!timer.expire(999));
    assert!(timer.expire(1000));
    assert_eq!((timer.tsc_deadline(), timer.deadline(false)), (0, None));
    assert!(!timer.expire(1001));
    timer.set_tsc_deadline(500);
    assert!(timer.expire(1001), "a deadline that is past");
    timer.set_tsc_deadline(2000);
    timer.set_tsc_deadline(0);
    assert!(!timer.expire(3000), "disarmed");
}

#[test]
fn each_mode_ignores_the_others_registers() {
    let mut timer = timer(TimerMode::OneShot, BY_1, 100, 0);
    timer.set_tsc_deadline(50);
    assert_eq!(timer.tsc_deadline(), 0);
    assert!(!timer.expire(50));
    timer.set_mode(TimerMode::TscDeadline);
    timer.set_initial(100, 0);
    assert_eq!((timer.initial(), timer.current(1)), (0, 0));
    assert!(!timer.expire(1000));
}

#[test]
fn going_to_and_from_tsc_deadline_mode_disarms() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 100, 0);
    timer.set_mode(TimerMode::TscDeadline);
    assert_eq!((timer.current(10), timer.deadline(false)), (0, None));
    timer.set_tsc_deadline(500);
    timer.set_mode(TimerMode::OneShot);
    assert_eq!((timer.tsc_deadline(), timer.deadline(false)), (0, None));
    timer.set_mode(TimerMode::TscDeadline);
    assert!(!timer.expire(1000));
    assert_eq!(timer.divide(), BY_1, "it has nothing to do with arming");
}

#[test]
fn between_one_shot_and_periodic_the_count_goes_on() {
    let mut timer = timer(TimerMode::OneShot, BY_1, 100_000, 0);
    timer.set_mode(TimerMode::Periodic);
    assert_eq!(timer.current(60_000), 40_000);
    assert!(timer.expire(100_000));
    assert_eq!(timer.current(100_000), 100_000);
    timer.set_mode(TimerMode::OneShot);
    assert!(timer.expire(200_000));
    assert_eq!((timer.current(200_000), timer.deadline(false)), (0, None));
    timer.set_mode(TimerMode::Periodic);
    assert_eq!(timer.deadline(false), None, "what has stopped stays so");
}

#[test]
fn the_reserved_mode_interrupts_nobody() {
    let mut timer = timer(TimerMode::Reserved, BY_1, 100, 0);
    assert_eq!(timer.deadline(false), None);
    assert!(!timer.expire(1000));
}

#[test]
fn a_masked_timer_needs_no_call_but_to_clear_the_tsc_deadline() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 100, 0);
    assert_eq!(timer.deadline(true), None);
    timer.set_mode(TimerMode::TscDeadline);
    timer.set_tsc_deadline(7);
    assert_eq!(timer.deadline(true), Some(7));
}

#[test]
fn moving_the_tsc_moves_no_count() {
    let mut timer = timer(TimerMode::Periodic, BY_1, 100, 1000);
    timer.tsc_moved(10_u64.wrapping_sub(1000));
    assert_eq!((timer.deadline(false), timer.current(10)), (Some(110), 100));
    timer.set_mode(TimerMode::TscDeadline);
    timer.set_tsc_deadline(500);
    timer.tsc_moved(1000);
    assert_eq!(timer.tsc_deadline(), 500, "it is a value of the TSC");
}

/// A change of the timer, as a guest can make it.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Mode(u8),
    Initial(u32),
    Divide(u32),
    Deadline(u64),
    TscMoved(u64),
    Pass(u64),
    Expire,
}

/// One of them.
pub fn change() -> impl Strategy<Value = Change> {
    let count = prop_oneof![Just(0), Just(1), 0u32..1000, any::<u32>()];
    let ticks = prop_oneof![0u64..1000, 0u64..1 << 41, any::<u64>()];
    prop_oneof![
        (0u8..4).prop_map(Change::Mode),
        count.prop_map(Change::Initial),
        any::<u32>().prop_map(Change::Divide),
        any::<u64>().prop_map(Change::Deadline),
        any::<u64>().prop_map(Change::TscMoved),
        ticks.prop_map(Change::Pass),
        Just(Change::Expire),
    ]
}

/// Whatever a guest does: no overflow, the count is not above the initial count, and after an expiry the next deadline
/// is ahead, so that nobody who waits for it turns in circles.
pub fn deadlines_lie_ahead(changes: Vec<Change>) -> Result<(), TestCaseError> {
    let (mut timer, mut now) = (Timer::RESET, 0u64);
    for change in changes {
        match change {
            Change::Mode(mode) => timer.set_mode(TimerMode::of_bits(mode)),
            Change::Initial(initial) => timer.set_initial(initial, now),
            Change::Divide(divide) => timer.set_divide(divide, now),
            Change::Deadline(deadline) => timer.set_tsc_deadline(deadline),
            Change::TscMoved(by) => {
                timer.tsc_moved(by);
                now = now.wrapping_add(by);
            }
            Change::Pass(ticks) => now = now.saturating_add(ticks).min(u64::MAX - 1),
            Change::Expire => {
                timer.expire(now);
                prop_assert!(timer.deadline(false).is_none_or(|deadline| deadline > now));
                prop_assert!(!timer.expire(now));
            }
        }
        prop_assert!(timer.current(now) <= timer.initial());
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_deadline_lies_ahead_after_an_expiry(changes in prop::collection::vec(change(), 0..60)) {
        deadlines_lie_ahead(changes)?;
    }

    /// A periodic timer expires at multiples of its period and at no other time, and at each of them if it is asked then.
    #[test]
    fn periods_are_exact(
        initial in 1u32..1 << 20,
        divide in 0u32..16,
        start in 0u64..1 << 50,
        steps in prop::collection::vec(0u64..1 << 22, 1..50),
    ) {
        let mut timer = timer(TimerMode::Periodic, divide, initial, start);
        let period = timer.deadline(false).unwrap() - start;
        prop_assume!(period >= 20_000);
        let (mut now, mut periods) = (start, 0);
        for step in steps {
            now += step;
            let ended = (now - start) / period;
            prop_assert_eq!(timer.expire(now), ended > periods);
            periods = ended;
            prop_assert_eq!(timer.deadline(false), Some(start + (ended + 1) * period));
            let into = (now - start) % period;
            let count = (period - into).div_ceil(period / u64::from(initial));
            prop_assert_eq!(u64::from(timer.current(now)), count);
        }
    }

    /// A one-shot timer expires exactly once, and not before its time.
    #[test]
    fn a_one_shot_expires_once(
        initial in 1u32..,
        divide in 0u32..16,
        steps in prop::collection::vec(0u64..1 << 36, 1..50),
    ) {
        let mut timer = timer(TimerMode::OneShot, divide, initial, 0);
        let deadline = timer.deadline(false).unwrap();
        let (mut now, mut expired) = (0, false);
        for step in steps {
            now += step;
            prop_assert_eq!(timer.expire(now), !expired && now >= deadline);
            expired |= now >= deadline;
            prop_assert_eq!(timer.current(now) == 0, expired);
        }
    }
}
