//! The timer of a local APIC (SDM vol. 3 11.5.4).
//!
//! Its clock before the divider is the guest's TSC. While it counts, what is kept is the moment at which the count
//! reaches 0; the count itself follows from the time at which it is asked for.

/// Periods shorter than this are kept in phase, but not every one of their ends is an interrupt: a guest that asks for one
/// every few ticks would do nothing else, and its CPU little. 10 microseconds at 2 GHz.
const LEAST_PERIOD: u64 = 20_000;

/// The timer mode (LVT timer register, bits 18:17; SDM vol. 3 table 11-2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Reserved: it counts and interrupts nobody.
    Reserved,
}

impl TimerMode {
    pub(super) const fn of_bits(bits: u8) -> Self {
        match bits {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn is_deadline(self) -> bool {
        matches!(self, Self::TscDeadline)
    }
}

/// The timer, but for its entry of the local vector table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Timer {
    mode: TimerMode,
    /// The initial-count register.
    initial: u32,
    /// The divide configuration register.
    divide: u32,
    /// When the count reaches 0; `None`: it is 0.
    expiry: Option<u64>,
    /// IA32_TSC_DEADLINE; 0: disarmed.
    tsc_deadline: u64,
}

impl Timer {
    /// After a reset (SDM vol. 3 11.4.7.1).
    pub(super) const RESET: Self = Self {
        mode: TimerMode::OneShot,
        initial: 0,
        divide: 0,
        expiry: None,
        tsc_deadline: 0,
    };

    /// The initial-count register.
    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// The divide configuration register.
    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// IA32_TSC_DEADLINE, which reads 0 in the other modes.
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Ticks of the TSC for one of the count: bits 3, 1 and 0 of the register are the logarithm, less one (SDM vol. 3 figure
    /// 11-10).
    const fn divisor(&self) -> u64 {
        let bits = self.divide & 0b11 | self.divide >> 1 & 0b100;
        1 << ((bits + 1) & 0b111)
    }

    /// Ticks from the initial count to 0; below 2^39.
    const fn period(&self) -> u64 {
        self.initial as u64 * self.divisor()
    }

    /// The mode changes. Between TSC-deadline mode and the others that disarms the timer (SDM vol. 3 11.5.4.1); between
    /// one-shot and periodic the count goes on, as it does on processors.
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if self.mode.is_deadline() != mode.is_deadline() {
            *self = Self {
                divide: self.divide,
                ..Self::RESET
            };
        }
        self.mode = mode;
    }

    /// Writes the initial-count register: counting begins, or with 0 ends. Ignored in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, initial: u32, now: u64) {
        if self.mode.is_deadline() {
            return;
        }
        self.initial = initial;
        self.expiry = (initial != 0).then(|| now.saturating_add(self.period()));
    }

    /// Writes the divide configuration register: the count stays what it is, and goes on at the new rate.
    pub(super) fn set_divide(&mut self, divide: u32, now: u64) {
        let count = u64::from(self.current(now));
        self.divide = divide & 0b1011;
        if self.expiry.is_some() {
            self.expiry = Some(now.saturating_add(count * self.divisor()));
        }
    }

    /// Writes IA32_TSC_DEADLINE; 0 disarms. Ignored in the other modes.
    pub(super) const fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.mode.is_deadline() {
            self.tsc_deadline = deadline;
        }
    }

    /// The guest's TSC jumps forward by `by`, modulo 2^64. What is a number of ticks away stays so; the TSC deadline is a value
    /// of the TSC, and does not move.
    pub(super) fn tsc_moved(&mut self, by: u64) {
        self.expiry = self.expiry.map(|expiry| expiry.wrapping_add(by));
    }

    /// The current-count register.
    pub(super) fn current(&self, now: u64) -> u32 {
        let Some(expiry) = self.expiry else {
            return 0;
        };
        let left = match (self.mode, self.period()) {
            (TimerMode::Periodic, period @ 1..) => match expiry.checked_sub(now) {
                // Where periods are skipped the expiry is more than one away.
                Some(left @ 1..) => (left - 1) % period + 1,
                Some(0) => period,
                None => period - (now - expiry) % period,
            },
            _ => expiry.saturating_sub(now),
        };
        // Not above the initial count, whatever happened to the TSC.
        left.div_ceil(self.divisor()).min(u64::from(self.initial)) as u32
    }

    /// When [`Self::expire`] is to be called. `masked`: counts may then reach 0 unnoticed, and are brought up to date when
    /// they matter; a TSC deadline is cleared.
    pub(super) fn deadline(&self, masked: bool) -> Option<u64> {
        match self.mode {
            TimerMode::TscDeadline => (self.tsc_deadline != 0).then_some(self.tsc_deadline),
            TimerMode::OneShot | TimerMode::Periodic if !masked => self.expiry,
            _ => None,
        }
    }

    /// Brings the timer up to `now`; whether it has expired. Several periods that have ended are one expiry, and the next is
    /// where it would have been.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        if self.mode.is_deadline() {
            let expired = self.tsc_deadline != 0 && self.tsc_deadline <= now;
            if expired {
                self.tsc_deadline = 0;
            }
            return expired;
        }
        let Some(late) = self.expiry.and_then(|expiry| now.checked_sub(expiry)) else {
            return false;
        };
        self.expiry = match (self.mode, self.period()) {
            (TimerMode::Periodic, period @ 1..) => {
                // A guest may have moved its TSC by any amount: no sum is safe.
                let past = late.saturating_add(LEAST_PERIOD.saturating_sub(period));
                let periods = (past / period).saturating_add(1);
                self.expiry
                    .map(|expiry| expiry.saturating_add(periods.saturating_mul(period)))
            }
            _ => None,
        };
        self.mode != TimerMode::Reserved
    }
}
