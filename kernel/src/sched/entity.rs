//! What the scheduler knows of a vCPU: what it is doing, what it may use, and where its time went. Pure: every moment comes
//! from the caller, in TSC ticks.

use plinth_abi::{Schedule, VcpuInfo, VcpuRun};

use super::Place;

/// What a vCPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Activity {
    /// It could run, but is not let: not started, or paused.
    Held,
    /// It waits for a CPU.
    Ready,
    /// It runs.
    Running,
    /// It waits for something else.
    Blocked,
    /// It has used up its cap.
    Capped,
    /// It is over.
    Over,
}

impl Activity {
    const COUNT: usize = 6;

    const fn told(self) -> VcpuRun {
        match self {
            Self::Held => VcpuRun::HELD,
            Self::Ready => VcpuRun::READY,
            Self::Running => VcpuRun::RUNNING,
            Self::Blocked => VcpuRun::BLOCKED,
            Self::Capped => VcpuRun::CAPPED,
            Self::Over => VcpuRun::ENDED,
        }
    }
}

/// TSC ticks of the scheduler's units of time.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    /// What a vCPU of the usual weight runs in one turn.
    pub turn: u64,
    /// The time over which a cap is kept.
    pub cap_period: u64,
    /// How often CPUs compare what they have to do.
    pub balance: u64,
}

impl Units {
    /// A turn of the usual weight, in microseconds.
    const TURN_US: u64 = 10_000;
    /// The period of a cap, in microseconds.
    const CAP_PERIOD_US: u64 = 50_000;
    /// How often CPUs compare what they have to do, in microseconds.
    const BALANCE_US: u64 = 20_000;

    /// For a TSC of this rate.
    pub const fn of_tsc(hz: u64) -> Self {
        Self {
            turn: hz / 1_000_000 * Self::TURN_US,
            cap_period: hz / 1_000_000 * Self::CAP_PERIOD_US,
            balance: hz / 1_000_000 * Self::BALANCE_US,
        }
    }
}

/// The scheduling state of a vCPU.
#[derive(Debug)]
pub struct Entity {
    /// What it is doing.
    pub activity: Activity,
    /// How it is to be scheduled.
    pub schedule: Schedule,
    /// The CPU it runs on, waits for, or ran on last.
    pub cpu: u32,
    /// Counts its places in queues, so that one that is out of date is recognised.
    pub ticket: u32,
    /// It must not run.
    pub held: bool,
    /// It must not run ever again.
    pub finished: bool,
    /// It has halted for good, as far as is known: it is blocked, and its domain counts it.
    pub halted: bool,
    /// What it waits for came before it waited.
    pub woken: bool,
    /// Ticks that it may still run in this turn; below 0 it has run too long.
    pub credit: i64,
    /// How often its slice ended before it gave the CPU away.
    pub preemptions: u64,
    /// How often it took a CPU.
    pub switches: u64,
    /// How often it went to another CPU.
    pub migrations: u64,
    /// Since when it has been doing this.
    since: u64,
    spent: [u64; Activity::COUNT],
    /// Ticks that it ran in the present period of its cap.
    cap_used: u64,
    cap_start: u64,
}

impl Entity {
    /// Of a vCPU that was just made.
    pub const fn new(now: u64) -> Self {
        Self {
            activity: Activity::Held,
            schedule: Schedule::USUAL,
            cpu: 0,
            ticket: 0,
            held: true,
            finished: false,
            halted: false,
            woken: false,
            credit: 0,
            preemptions: 0,
            switches: 0,
            migrations: 0,
            since: now,
            spent: [0; Activity::COUNT],
            cap_used: 0,
            cap_start: 0,
        }
    }

    /// Whether it will never run again.
    pub const fn is_over(&self) -> bool {
        self.finished || matches!(self.activity, Activity::Over)
    }

    /// Its weight.
    pub const fn weight(&self) -> u16 {
        const _: () = assert!(Schedule::MAX_WEIGHT <= u16::MAX as u32);
        self.schedule.weight as u16
    }

    /// Ticks of one turn.
    pub const fn turn(&self, units: &Units) -> i64 {
        (units.turn * self.weight() as u64 / Schedule::USUAL.weight as u64) as i64
    }

    /// From `now` on it does something else; the ticks that it did the old.
    pub fn change(&mut self, activity: Activity, now: u64) -> u64 {
        let ticks = self.account(now);
        self.activity = activity;
        ticks
    }

    /// The time until `now` is accounted for; the ticks since that was done last. What it does may be changed without more ado at
    /// the same moment.
    #[inline(always)]
    pub fn account(&mut self, now: u64) -> u64 {
        // Two CPUs' TSCs may differ by a little.
        if now <= self.since {
            return 0;
        }
        let ticks = now - self.since;
        if let Some(spent) = self.spent.get_mut(self.activity as usize) {
            *spent += ticks;
        }
        self.since = now;
        ticks
    }

    /// It leaves its CPU: what it ran is charged to its turn, and to its cap if it has one.
    #[inline]
    pub const fn charge(&mut self, ticks: u64) {
        self.credit = self.credit.saturating_sub_unsigned(ticks);
        if self.schedule.cap != 0 {
            self.cap_used = self.cap_used.saturating_add(ticks);
        }
    }

    /// It has been blocked for so many ticks, on a CPU that others with this sum of weights want, too: what it could have run
    /// meanwhile is its credit, up to one turn.
    pub fn earn(&mut self, ticks: u64, others: u64, units: &Units) {
        let most = self.turn(units);
        if self.credit >= most {
            self.credit = most;
            return;
        }
        let share = if others == 0 {
            ticks
        } else {
            const _: () = assert!(Schedule::MAX_WEIGHT <= 1 << 15);
            // Nobody has been blocked for so long that it would matter.
            let weight = u64::from(self.weight());
            let product = ticks.min(1 << 48).wrapping_mul(weight);
            product / others.saturating_add(weight)
        };
        self.credit += share.min(most.abs_diff(self.credit)) as i64;
    }

    /// Another CPU is the one for which it waits, or that it runs on.
    #[inline]
    pub fn goes_to(&mut self, cpu: u32) {
        self.migrations += u64::from(self.switches != 0);
        self.cpu = cpu;
    }

    /// It runs from the moment on up to which its time is accounted for.
    #[inline]
    pub const fn starts(&mut self) {
        self.activity = Activity::Running;
        self.woken = false;
        self.switches += 1;
    }

    /// Another turn; whether it may run then. Of a debt no more is paid than 32 turns.
    pub fn next_turn(&mut self, units: &Units) -> bool {
        let turn = self.turn(units);
        self.credit = (self.credit.max(-32 * turn) + turn).min(turn);
        self.credit > 0
    }

    /// How long it may run from `now` on.
    #[inline]
    pub fn slice(&mut self, now: u64, units: &Units) -> u64 {
        let turn = self.credit.max(0) as u64;
        if self.schedule.cap == 0 {
            return turn;
        }
        turn.min(self.cap_left(now, units))
    }

    /// Ticks that its cap leaves it in this period.
    #[inline(never)]
    fn cap_left(&mut self, now: u64, units: &Units) -> u64 {
        let allowance = units.cap_period / 100 * u64::from(self.schedule.cap);
        let periods = now.saturating_sub(self.cap_start) / units.cap_period;
        if periods > 0 {
            self.cap_start += periods * units.cap_period;
            // What it ran too long counts on; what it did not use is lost.
            self.cap_used = self
                .cap_used
                .saturating_sub(allowance.saturating_mul(periods));
        }
        allowance.saturating_sub(self.cap_used)
    }

    /// When it may run again, if its cap is used up at `now`.
    #[inline(always)]
    pub fn capped_until(&mut self, now: u64, units: &Units) -> Option<u64> {
        // A remainder too small for a timer is none.
        const LEAST: u64 = 1000;
        let is_used_up =
            self.schedule.cap != 0 && self.cap_left(now, units) <= units.cap_period / LEAST;
        is_used_up.then(|| self.cap_start + units.cap_period)
    }

    /// A CPU that it must run on.
    pub const fn pin(&self) -> Option<u32> {
        match self.schedule.cpu {
            Schedule::ANY_CPU => None,
            cpu => Some(cpu),
        }
    }

    /// The same, as a [`Place`] has it.
    pub const fn pin_of_place(&self) -> u16 {
        const _: () = assert!(Schedule::ANY_CPU as u16 == Place::<()>::ANY_CPU);
        self.schedule.cpu as u16
    }

    /// Times and counters at `now`.
    pub fn info(&self, now: u64) -> VcpuInfo {
        let spent = |activity: Activity| {
            let ticks = self.spent.get(activity as usize).copied().unwrap_or(0);
            let more = if self.activity == activity {
                now.saturating_sub(self.since)
            } else {
                0
            };
            crate::arch::time::ns_of_ticks(ticks + more)
        };
        let (ready_ns, capped_ns) = (spent(Activity::Ready), spent(Activity::Capped));
        VcpuInfo {
            index: 0,
            run: self.activity.told(),
            cpu: self.cpu,
            reserved: 0,
            schedule: self.schedule,
            run_ns: spent(Activity::Running),
            ready_ns,
            blocked_ns: spent(Activity::Blocked),
            held_ns: spent(Activity::Held),
            capped_ns,
            steal_ns: ready_ns + capped_ns,
            preemptions: self.preemptions,
            switches: self.switches,
            migrations: self.migrations,
            exits: [0; plinth_abi::domain::EXITS],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: Units = Units {
        turn: 10_000,
        cap_period: 50_000,
        balance: 20_000,
    };

    fn entity(weight: u32, cap: u32) -> Entity {
        let mut entity = Entity::new(0);
        entity.schedule.weight = weight;
        entity.schedule.cap = cap;
        entity
    }

    #[test]
    fn time_goes_where_it_was_spent() {
        let mut entity = entity(256, 0);
        assert_eq!(entity.change(Activity::Ready, 10), 10);
        assert_eq!(entity.change(Activity::Running, 25), 15);
        assert_eq!(
            entity.change(Activity::Blocked, 20),
            0,
            "a TSC that is behind"
        );
        entity.change(Activity::Ready, 65);
        assert_eq!(entity.spent, [10, 15, 0, 40, 0, 0]);
    }

    #[test]
    fn turns_are_in_proportion_to_weights() {
        assert_eq!(entity(256, 0).turn(&UNITS), 10_000);
        assert_eq!(entity(512, 0).turn(&UNITS), 20_000);
        assert_eq!(entity(16, 0).turn(&UNITS), 625);
    }

    #[test]
    fn who_runs_too_long_waits_longer() {
        let mut entity = entity(256, 0);
        assert!(entity.next_turn(&UNITS));
        entity.charge(25_000);
        assert_eq!(entity.credit, -15_000);
        assert!(!entity.next_turn(&UNITS));
        assert!(entity.next_turn(&UNITS));
        assert_eq!(entity.credit, 5_000);
        entity.charge(u64::MAX);
        assert!(!entity.next_turn(&UNITS));
        assert_eq!(entity.credit, -310_000, "but not for ever");
    }

    #[test]
    fn who_waits_earns_a_share_up_to_a_turn() {
        let mut entity = entity(256, 0);
        entity.earn(8_000, 3 * 256, &UNITS);
        assert_eq!(entity.credit, 2_000);
        entity.earn(u64::MAX, 0, &UNITS);
        assert_eq!(entity.credit, 10_000);
    }

    #[test]
    fn a_cap_holds_over_its_period_and_debts_are_paid() {
        let mut entity = entity(4096, 25);
        entity.next_turn(&UNITS);
        assert_eq!(entity.slice(0, &UNITS), 12_500);
        assert_eq!(entity.capped_until(0, &UNITS), None);
        entity.charge(13_500);
        assert_eq!(entity.capped_until(13_500, &UNITS), Some(50_000));
        assert_eq!(entity.slice(50_000, &UNITS), 11_500);
        assert_eq!(entity.slice(100_000, &UNITS), 12_500);
    }

    #[test]
    fn without_a_cap_only_the_turn_bounds() {
        let mut entity = entity(256, 0);
        entity.next_turn(&UNITS);
        entity.charge(1_000_000);
        assert_eq!(entity.capped_until(1_000_000, &UNITS), None);
        assert_eq!(entity.slice(1_000_000, &UNITS), 0);
    }
}
