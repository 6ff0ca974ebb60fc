//! Nanoseconds and the ticks of clocks.

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// The ticks of a clock of `hz` that have come by `now`.
pub const fn ticks(now: u64, hz: u64) -> u64 {
    // Fewer than `now`, for every clock here is slower than 1 GHz.
    (now as u128 * hz as u128 / SECOND as u128) as u64
}

/// The first moment by which so many ticks have come; the last moment there is if it lies beyond that.
pub const fn moment(ticks: u64, hz: u64) -> u64 {
    let moment = (ticks as u128 * SECOND as u128).div_ceil(hz as u128);
    if moment > u64::MAX as u128 {
        u64::MAX
    } else {
        moment as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_moment_is_the_first_of_its_tick(tick in 1u64..1 << 50, hz in 1u64..4_000_000) {
            let at = moment(tick, hz);
            // Else it is a moment that has no number.
            if at < u64::MAX {
                prop_assert_eq!(ticks(at, hz), tick);
                prop_assert_eq!(ticks(at - 1, hz), tick - 1);
            }
        }
    }
}
