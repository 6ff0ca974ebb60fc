//! A CPU that does not leave the kernel: the others notice it, have it say by an NMI where it is, and tell the log.
//!
//! A CPU notes the time whenever it goes on: at the start of a slice, at each look at what is pending, between two steps of
//! work that it does while idle. One that halts notes that nothing is awaited of it. The others look at that note when they look
//! after timers.
//!
//! The NMI's handler writes addresses down, no more: the CPU may be in the middle of a line of the log. Whoever asked prints
//! them. Not noticed are the only CPU of a machine, and a CPU for whose lock all others wait.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::cpu::Cpu;
use super::trap::Frame;
use super::{stacks, time};
use crate::boot::symbols::Named;

/// Callers that are told.
const DEPTH: usize = 16;
/// No moment: the CPU halts, or is not at work yet.
const NEVER: u64 = u64::MAX;

/// Spans in TSC ticks.
struct Limits {
    /// So long a CPU may go without a note.
    patience: u64,
    /// So long it may go on after the NMI before it is told of: one that was in a guest has left it by then.
    grace: u64,
}

impl Limits {
    /// A second, and a hundredth of one.
    fn of_tsc(hz: u64) -> Self {
        Self {
            patience: hz,
            grace: hz / 100,
        }
    }
}

/// What others know of a CPU's progress.
#[derive(Debug)]
pub struct Watch {
    /// The TSC when it went on last. A hang is named by it.
    last: AtomicU64,
    /// The hang about which it was asked, and when that was.
    asked: AtomicU64,
    asked_at: AtomicU64,
    /// The hang for which it has written down where it is.
    answered: AtomicU64,
    /// The hang that is in the log.
    told: AtomicU64,
    addresses: [AtomicU64; DEPTH],
    count: AtomicUsize,
}

/// What is to be done about a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    /// It is to get an NMI.
    Ask,
    /// It has hung for so many ticks; whether it has written down where.
    Tell(u64, bool),
}

impl Watch {
    pub(super) const fn new() -> Self {
        Self {
            last: AtomicU64::new(NEVER),
            asked: AtomicU64::new(NEVER),
            asked_at: AtomicU64::new(NEVER),
            answered: AtomicU64::new(NEVER),
            told: AtomicU64::new(NEVER),
            addresses: [const { AtomicU64::new(0) }; DEPTH],
            count: AtomicUsize::new(0),
        }
    }

    /// The CPU goes on, at this value of the TSC.
    #[inline(always)]
    pub fn goes_on(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
    }

    /// The CPU is about to halt.
    pub fn rests(&self) {
        self.last.store(NEVER, Ordering::Relaxed);
    }

    /// What is to be done at this moment. Of several that ask, one gets each step.
    fn look(&self, now: u64, limits: &Limits) -> Step {
        let last = self.last.load(Ordering::Relaxed);
        if last.saturating_add(limits.patience) >= now {
            return Step::Nothing;
        }
        let asked = self.asked.load(Ordering::Acquire);
        if asked != last {
            // Before anybody can find out that it was asked: who comes next must not believe the moment of the hang before.
            self.asked_at.store(now, Ordering::Relaxed);
            let mine =
                self.asked
                    .compare_exchange(asked, last, Ordering::AcqRel, Ordering::Relaxed);
            return if mine.is_ok() {
                Step::Ask
            } else {
                Step::Nothing
            };
        }
        let waited = now.saturating_sub(self.asked_at.load(Ordering::Relaxed));
        let answered = self.answered.load(Ordering::Acquire) == last;
        let is_time = waited > limits.grace && answered || waited > limits.patience;
        if is_time && self.told.swap(last, Ordering::AcqRel) != last {
            return Step::Tell(now - last, answered);
        }
        Step::Nothing
    }

    /// Writes down where the CPU is, if it was asked. By its own handler of NMIs.
    fn answer(&self, addresses: impl Iterator<Item = u64>) {
        let asked = self.asked.load(Ordering::Acquire);
        if asked == NEVER
            || asked != self.last.load(Ordering::Relaxed)
            || asked == self.answered.load(Ordering::Relaxed)
        {
            return;
        }
        let mut count = 0;
        for (place, address) in self.addresses.iter().zip(addresses) {
            place.store(address, Ordering::Relaxed);
            count += 1;
        }
        self.count.store(count, Ordering::Relaxed);
        self.answered.store(asked, Ordering::Release);
    }
}

/// Looks at another CPU, at this value of the TSC.
pub fn look_at(other: &Cpu, now: u64) {
    match other.watch.look(now, &Limits::of_tsc(time::tsc_hz())) {
        Step::Nothing => {}
        Step::Ask => other.send_nmi(),
        Step::Tell(ticks, answered) => tell(other, ticks, answered),
    }
}

fn tell(other: &Cpu, ticks: u64, answered: bool) {
    let (id, ms) = (other.id, time::ns_of_ticks(ticks) / 1_000_000);
    if !answered {
        log::error!("cpu{id} has been in the kernel for {ms} ms, and does not answer an NMI");
        return;
    }
    log::error!("cpu{id} has been in the kernel for {ms} ms; it was");
    let count = other.watch.count.load(Ordering::Relaxed);
    for (index, address) in other.watch.addresses.iter().take(count).enumerate() {
        let address = address.load(Ordering::Relaxed);
        // The first is where it was. The others are return addresses, and follow the call that is named.
        let named = address.saturating_sub(u64::from(index != 0));
        log::error!("  at {address:#018x} {}", Named(named));
    }
}

/// The calling CPU got an NMI, which interrupted this.
pub(super) fn interrupted(me: &Cpu, frame: &Frame) {
    me.watch
        .answer(core::iter::once(frame.rip).chain(stacks::callers(frame.rbp)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        patience: 1000,
        grace: 10,
    };

    fn noted(watch: &Watch) -> Vec<u64> {
        let count = watch.count.load(Ordering::Relaxed);
        let places = watch.addresses.iter().take(count);
        places.map(|place| place.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn who_goes_on_or_halts_is_left_alone() {
        let watch = Watch::new();
        assert_eq!(watch.look(1 << 60, &LIMITS), Step::Nothing, "not at work");
        watch.goes_on(100);
        assert_eq!(watch.look(50, &LIMITS), Step::Nothing, "an older TSC");
        assert_eq!(watch.look(1100, &LIMITS), Step::Nothing);
        watch.goes_on(1100);
        assert_eq!(watch.look(1101, &LIMITS), Step::Nothing);
        watch.rests();
        assert_eq!(watch.look(1 << 60, &LIMITS), Step::Nothing);
    }

    #[test]
    fn a_hang_is_asked_about_and_told_once() {
        let watch = Watch::new();
        watch.goes_on(100);
        watch.answer([1].into_iter());
        assert!(noted(&watch).is_empty(), "nobody has asked");
        assert_eq!(watch.look(1101, &LIMITS), Step::Ask);
        assert_eq!(watch.look(1200, &LIMITS), Step::Nothing, "no answer yet");
        watch.answer([7, 8, 9].into_iter());
        watch.answer([1].into_iter());
        assert_eq!(noted(&watch), [7, 8, 9], "the first answer counts");
        assert_eq!(watch.look(1111, &LIMITS), Step::Nothing, "it may go on yet");
        assert_eq!(watch.look(1112, &LIMITS), Step::Tell(1012, true));
        assert_eq!(watch.look(9000, &LIMITS), Step::Nothing);
        watch.goes_on(9000);
        assert_eq!(watch.look(9001, &LIMITS), Step::Nothing);
        assert_eq!(watch.look(10_001, &LIMITS), Step::Ask, "another one");
        watch.answer(core::iter::repeat(4));
        assert_eq!(noted(&watch), [4; DEPTH]);
        assert_eq!(watch.look(10_100, &LIMITS), Step::Tell(1100, true));
    }

    #[test]
    fn who_was_in_a_guest_is_not_told_of() {
        let watch = Watch::new();
        watch.goes_on(100);
        assert_eq!(watch.look(2000, &LIMITS), Step::Ask);
        watch.answer([7].into_iter());
        watch.goes_on(2001);
        assert_eq!(watch.look(2100, &LIMITS), Step::Nothing);
        watch.answer([1].into_iter());
        assert_eq!(noted(&watch), [7], "an NMI that is not ours");
    }

    #[test]
    fn silence_is_told_after_as_long_again() {
        let watch = Watch::new();
        watch.goes_on(100);
        assert_eq!(watch.look(1101, &LIMITS), Step::Ask);
        assert_eq!(watch.look(2101, &LIMITS), Step::Nothing);
        assert_eq!(watch.look(2102, &LIMITS), Step::Tell(2002, false));
        assert_eq!(watch.look(5000, &LIMITS), Step::Nothing);
    }
}
