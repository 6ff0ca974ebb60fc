//! What a CPU's timer is to do, and when its interrupt comes: the decisions, without the hardware. Pure.
//!
//! To set a timer costs an access to a device or to an MSR, and exits where another hypervisor is below. Slices mostly end before
//! their time, and the next ends later: then the timer is left alone. Its interrupt comes too early, and sets it anew.

use core::sync::atomic::{AtomicU64, Ordering};

/// No moment.
const NEVER: u64 = u64::MAX;

/// What is awaited of a CPU's timer. Only that CPU changes it; the handler of its interrupt may come between any two steps.
#[derive(Debug)]
pub(super) struct Alarm {
    /// What is waited for.
    deadline: AtomicU64,
    /// The interrupt comes then or earlier; [`NEVER`] when the timer is stopped, or its interrupt has been taken.
    set: AtomicU64,
}

/// What an interrupt of the timer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fired {
    /// Nothing: nobody waits.
    ForNobody,
    /// It is too early: the timer has to be set to this moment.
    Early(u64),
    /// The moment has come.
    Due,
}

impl Alarm {
    /// Of a timer that is stopped.
    pub(super) const fn new() -> Self {
        Self {
            deadline: AtomicU64::new(NEVER),
            set: AtomicU64::new(NEVER),
        }
    }

    /// Waits for this moment instead of what was waited for; whether the timer has to be set to it.
    #[inline(always)]
    pub(super) fn arm(&self, deadline: u64) -> bool {
        self.deadline.store(deadline, Ordering::Relaxed);
        let too_late = self.set.load(Ordering::Relaxed) > deadline;
        if too_late {
            self.set.store(deadline, Ordering::Relaxed);
        }
        too_late
    }

    /// Waits for nothing: the timer has to be stopped.
    pub(super) fn disarm(&self) {
        self.deadline.store(NEVER, Ordering::Relaxed);
        self.set.store(NEVER, Ordering::Relaxed);
    }

    /// Whether the moment waited for is before this one.
    pub(super) fn is_before(&self, moment: u64) -> bool {
        self.deadline.load(Ordering::Relaxed) < moment
    }

    /// The interrupt has come.
    pub(super) fn fired(&self, now: u64) -> Fired {
        let deadline = self.deadline.load(Ordering::Relaxed);
        if deadline == NEVER {
            self.set.store(NEVER, Ordering::Relaxed);
            Fired::ForNobody
        } else if now < deadline {
            self.set.store(deadline, Ordering::Relaxed);
            Fired::Early(deadline)
        } else {
            self.disarm();
            Fired::Due
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_timer_is_set_only_for_an_earlier_moment() {
        let alarm = Alarm::new();
        assert!(alarm.arm(100), "it was stopped");
        assert!(!alarm.arm(500), "it comes early enough");
        assert!(!alarm.arm(100));
        assert!(alarm.arm(50));
        alarm.disarm();
        assert!(alarm.arm(70), "it was stopped again");
    }

    #[test]
    fn what_is_overdue_is_seen() {
        let alarm = Alarm::new();
        assert!(!alarm.is_before(u64::MAX), "nothing is waited for");
        alarm.arm(100);
        assert!(!alarm.is_before(100));
        assert!(alarm.is_before(101));
        alarm.fired(101);
        assert!(!alarm.is_before(101), "its interrupt was taken");
    }

    #[test]
    fn an_early_interrupt_sets_it_anew() {
        let alarm = Alarm::new();
        alarm.arm(100);
        alarm.arm(500);
        assert_eq!(alarm.fired(100), Fired::Early(500));
        assert!(!alarm.arm(600), "it has been set to 500");
        assert_eq!(alarm.fired(650), Fired::Due);
        assert_eq!(alarm.fired(650), Fired::ForNobody, "once is enough");
        assert!(alarm.arm(700), "its interrupt was taken");
        alarm.disarm();
        assert_eq!(alarm.fired(800), Fired::ForNobody);
    }

    proptest! {
        /// Whatever is armed and disarmed, what is waited for comes when it is due, and nothing else does.
        #[test]
        fn no_moment_is_missed(steps in prop::collection::vec((0u8..4, 0u64..40), 1..200)) {
            let alarm = Alarm::new();
            // The timer's own state, and what the caller waits for.
            let (mut timer, mut waiting) = (None::<u64>, None::<u64>);
            let mut now = 0;
            for (what, by) in steps {
                match what {
                    0 => {
                        waiting = Some(now + by);
                        if alarm.arm(now + by) {
                            timer = waiting;
                        }
                    }
                    1 if by < 5 => {
                        waiting = None;
                        alarm.disarm();
                        timer = None;
                    }
                    _ => now += by,
                }
                while timer.is_some_and(|at| at <= now) {
                    timer = None;
                    match alarm.fired(now) {
                        Fired::ForNobody => prop_assert_eq!(waiting, None),
                        Fired::Early(at) => {
                            prop_assert_eq!(waiting, Some(at));
                            timer = Some(at);
                        }
                        Fired::Due => {
                            prop_assert!(waiting.take().is_some_and(|at| at <= now));
                        }
                    }
                }
                prop_assert!(waiting.is_none_or(|at| at > now && timer.is_some_and(|set| set <= at)));
            }
        }
    }
}
