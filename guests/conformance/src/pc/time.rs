//! The timer of the local APIC, and the clock that is told as KVM tells it.

use plinth_rt::abi::{Call, Schedule};
use plinth_rt::{Outcome, Why, check, check_eq};
use plinth_testkit::child::{DATA, Plan};
use plinth_testkit::pc::{
    self as ops, Pc, call, counter, delay, end, get, gives, halt_until, interrupts, put, rdmsr,
    rdmsr_until, spin_until, sti, tsc, when, wrmsr, wrmsr_in,
};

use super::{
    CURRENT, DIVIDE, INITIAL, LVT_TIMER, MASKED, SVR, TSC_DEADLINE, enable, to_x2apic, x2,
};
use crate::kit::{Must, until};

tests!("pc_time":
    one_shot,
    one_shot_while_it_halts,
    one_shot_divided,
    one_shot_stopped,
    count_goes_down,
    periodic,
    deadline,
    deadline_while_it_halts,
    deadline_that_has_passed,
    deadline_disarmed,
    deadline_only_in_its_mode,
    masked_gives_none,
    disabled_gives_none,
    pending_while_it_cannot_be_taken,
    wakes_while_others_spin,
    clock,
    clock_is_off,
    wall_clock,
    wall_clock_where_no_memory_is,
    steal_time,
    steal_time_bad_value,
);

const ONE_SHOT: u64 = 0;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
/// The divide configuration register for 1.
const BY_1: u64 = 0b1011;
const VECTOR: u64 = 0x41;
const COUNTER: u64 = counter(0, VECTOR as u8);
/// Long enough for an operation or two, short enough to wait for.
const TICKS: u64 = 2_000_000;

/// Its interrupt must have come so many ticks after the operation that read the TSC, at least.
fn not_before(pc: &Pc, op: usize, ticks: u64) -> Outcome {
    let (start, came) = (pc.value(0, op)?, pc.word(when(0))?);
    check!(
        came >= start + ticks,
        "it came {} ticks after the start, expected {ticks} at least",
        came.wrapping_sub(start) as i64
    );
    Ok(())
}

fn one_shot() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        sti(),
        tsc(),
        wrmsr(x2(INITIAL), TICKS),
        spin_until(COUNTER, 1),
        rdmsr(x2(CURRENT)).gives(0),
        rdmsr(x2(INITIAL)).gives(TICKS),
        delay(3 * TICKS),
        get(interrupts(0)).gives(1),
        end(),
    ]])?;
    not_before(&pc, 5, TICKS)
}

fn one_shot_while_it_halts() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        tsc(),
        wrmsr(x2(INITIAL), TICKS),
        ops::sti_hlt(),
        get(COUNTER).gives(1),
        end(),
    ]])?;
    not_before(&pc, 4, TICKS)
}

/// SDM vol. 3 figure 11-10: 0 is 2, 0b1010 is 128.
fn one_shot_divided() -> Outcome {
    for (bits, divisor) in [(0, 2), (0b0011, 16), (0b1010, 128)] {
        let pc = gives(&[&[
            to_x2apic(),
            enable(),
            wrmsr(x2(DIVIDE), bits),
            wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
            tsc(),
            wrmsr(x2(INITIAL), TICKS / divisor),
            halt_until(COUNTER, 1),
            end(),
        ]])?;
        not_before(&pc, 4, TICKS)?;
    }
    Ok(())
}

fn one_shot_stopped() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        sti(),
        wrmsr(x2(INITIAL), 100 * TICKS),
        wrmsr(x2(INITIAL), 0),
        rdmsr(x2(CURRENT)).gives(0),
        wrmsr(x2(INITIAL), TICKS),
        wrmsr(x2(INITIAL), 0),
        delay(2 * TICKS),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

/// At the rate of the TSC.
fn count_goes_down() -> Outcome {
    let script = [
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), MASKED | VECTOR),
        tsc(),
        wrmsr(x2(INITIAL), 0xffff_ffff),
        tsc(),
        delay(TICKS),
        tsc(),
        rdmsr(x2(CURRENT)),
        tsc(),
        end(),
    ];
    let pc = gives(&[&script])?;
    let gone = 0xffff_ffff - pc.value(0, 9)?;
    let least = pc.value(0, 8)? - pc.value(0, 6)?;
    let most = pc.value(0, 10)? - pc.value(0, 4)?;
    check!(
        (least..=most).contains(&gone),
        "it went down by {gone} in {least} to {most} ticks"
    );
    Ok(())
}

fn periodic() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), PERIODIC | VECTOR),
        tsc(),
        wrmsr(x2(INITIAL), TICKS),
        halt_until(COUNTER, 3),
        sti(),
        spin_until(COUNTER, 6),
        // Until it is stopped.
        ops::cli(),
        wrmsr(x2(INITIAL), 0),
        // One may have come before that.
        sti(),
        put(COUNTER, 0),
        delay(3 * TICKS),
        get(COUNTER).gives(0),
        end(),
    ]])?;
    not_before(&pc, 4, 6 * TICKS)
}

/// SDM vol. 3 11.5.4.1.
fn deadline() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        sti(),
        wrmsr_in(TSC_DEADLINE, TICKS),
        spin_until(COUNTER, 1),
        // It is disarmed by its interrupt.
        rdmsr(TSC_DEADLINE).gives(0),
        delay(2 * TICKS),
        get(interrupts(0)).gives(1),
        end(),
    ]])?;
    not_before(&pc, 4, 0)
}

fn deadline_while_it_halts() -> Outcome {
    let pc = gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        wrmsr_in(TSC_DEADLINE, 10 * TICKS),
        wrmsr_in(TSC_DEADLINE, TICKS),
        ops::sti_hlt(),
        get(COUNTER).gives(1),
        end(),
    ]])?;
    not_before(&pc, 4, 0)?;
    check!(
        pc.word(when(0))? < pc.value(0, 3)? || pc.word(when(0))? >= pc.value(0, 4)?,
        "by the deadline that was replaced"
    );
    Ok(())
}

fn deadline_that_has_passed() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        sti(),
        wrmsr(TSC_DEADLINE, 1),
        spin_until(COUNTER, 1),
        rdmsr(TSC_DEADLINE).gives(0),
        // Nor does it come too early for HLT.
        ops::cli(),
        wrmsr(TSC_DEADLINE, 1),
        ops::sti_hlt(),
        get(COUNTER).gives(2),
        end(),
    ]])
    .map(drop)
}

/// A host that gives an emulated CPU no time between two operations lets the deadline pass, and the interrupt comes rightly: that is seldom, and
/// not three times in a row.
fn deadline_disarmed() -> Outcome {
    disarms_deadline()
        .or_else(|_| disarms_deadline())
        .or_else(|_| disarms_deadline())
}

fn disarms_deadline() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        sti(),
        wrmsr(TSC_DEADLINE, 1 << 60),
        rdmsr(TSC_DEADLINE).gives(1 << 60),
        wrmsr_in(TSC_DEADLINE, TICKS),
        wrmsr(TSC_DEADLINE, 0),
        rdmsr(TSC_DEADLINE).gives(0),
        delay(2 * TICKS),
        get(interrupts(0)).gives(0),
        // The other modes end it as well.
        wrmsr_in(TSC_DEADLINE, TICKS),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        rdmsr(TSC_DEADLINE).gives(0),
        delay(2 * TICKS),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

fn deadline_only_in_its_mode() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        sti(),
        wrmsr(TSC_DEADLINE, 1),
        rdmsr(TSC_DEADLINE).gives(0),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        wrmsr(x2(INITIAL), TICKS),
        rdmsr(x2(CURRENT)).gives(0),
        delay(2 * TICKS),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

fn masked_gives_none() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), MASKED | ONE_SHOT | VECTOR),
        sti(),
        wrmsr(x2(INITIAL), TICKS),
        delay(2 * TICKS),
        rdmsr(x2(CURRENT)).gives(0),
        wrmsr(x2(LVT_TIMER), MASKED | DEADLINE | VECTOR),
        wrmsr_in(TSC_DEADLINE, TICKS),
        delay(2 * TICKS),
        // What came while it was masked is lost.
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        delay(TICKS),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

fn disabled_gives_none() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), ONE_SHOT | VECTOR),
        sti(),
        wrmsr(x2(INITIAL), TICKS),
        wrmsr(x2(SVR), 0xff),
        delay(2 * TICKS),
        enable(),
        delay(TICKS),
        get(interrupts(0)).gives(0),
        end(),
    ]])
    .map(drop)
}

fn pending_while_it_cannot_be_taken() -> Outcome {
    gives(&[&[
        to_x2apic(),
        enable(),
        wrmsr(x2(LVT_TIMER), DEADLINE | VECTOR),
        wrmsr_in(TSC_DEADLINE, TICKS),
        rdmsr_until(x2(super::IRR + 2), 1 << 1),
        get(interrupts(0)).gives(0),
        rdmsr(TSC_DEADLINE).gives(0),
        sti(),
        get(interrupts(0)).gives(1),
        end(),
    ]])
    .map(drop)
}

/// The timer of a vCPU that halts comes though its CPU is another's.
fn wakes_while_others_spin() -> Outcome {
    let others = [
        crate::child::Child::new(&Plan::new(crate::child::spin()))?,
        crate::child::Child::new(&Plan::new(crate::child::spin()))?,
    ];
    for other in &others {
        other.pin(0, 0)?;
        other.start()?;
    }
    let pc = Pc::new(&Pc::plan(1))?;
    pc.pin(0, 0)?;
    let script = [
        to_x2apic(),
        enable(),
        wrmsr(x2(DIVIDE), BY_1),
        wrmsr(x2(LVT_TIMER), PERIODIC | VECTOR),
        wrmsr(x2(INITIAL), TICKS),
        halt_until(COUNTER, 20),
        end(),
    ];
    pc.load(0, &script)?;
    pc.start()?;
    pc.ends_with(0)
}

const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
const MSR_STEAL_TIME: u32 = 0x4b56_4d03;
/// Where the structures are.
const PLACE: u64 = DATA + 0x400;

/// The nanoseconds that `pvclock_vcpu_time_info` gives for a value of the TSC.
fn told(pc: &Pc, tsc: u64) -> Result<u64, Why> {
    let version = pc.word(PLACE)? as u32;
    check!(
        version != 0 && version.is_multiple_of(2),
        "version {version}"
    );
    let (stamp, ns) = (pc.word(PLACE + 8)?, pc.word(PLACE + 16)?);
    let scale = pc.word(PLACE + 24)?;
    let (multiplier, shift) = (scale as u32, (scale >> 32) as i8);
    // The clocks of all vCPUs agree.
    check!(scale >> 40 & 1 == 1, "flags {:#x}", scale >> 40);
    check!(tsc >= stamp, "a TSC before the time stamp");
    let ticks = if shift < 0 {
        (tsc - stamp) >> -shift
    } else {
        (tsc - stamp) << shift
    };
    Ok(ns + ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64)
}

fn clock() -> Outcome {
    let script = [
        wrmsr(MSR_SYSTEM_TIME, PLACE | 1),
        rdmsr(MSR_SYSTEM_TIME).gives(PLACE | 1),
        tsc(),
        call(Call::CLOCK, 0),
        tsc(),
        delay(20 * TICKS),
        tsc(),
        call(Call::CLOCK, 0),
        tsc(),
        end(),
    ];
    let pc = gives(&[&script])?;
    // What rounding makes of it.
    const SLACK: u64 = 2_000;
    for op in [3, 7] {
        let clock = pc.value(0, op)?;
        let (least, most) = (
            told(&pc, pc.value(0, op - 1)?)?,
            told(&pc, pc.value(0, op + 1)?)?,
        );
        check!(
            clock + SLACK >= least && clock <= most + SLACK,
            "CLOCK {clock}, told {least} to {most}"
        );
    }
    Ok(())
}

fn clock_is_off() -> Outcome {
    let pc = gives(&[&[
        rdmsr(MSR_SYSTEM_TIME).gives(0),
        wrmsr(MSR_SYSTEM_TIME, PLACE),
        rdmsr(MSR_SYSTEM_TIME).gives(PLACE),
        // Nobody's memory is not written, and no harm comes of it.
        wrmsr(MSR_SYSTEM_TIME, 1 << 40 | 1),
        wrmsr(MSR_SYSTEM_TIME, u64::MAX),
        end(),
    ]])?;
    check_eq!(pc.word(PLACE)?, 0, "what is written while it is off");
    Ok(())
}

fn wall_clock() -> Outcome {
    const SECONDS: u64 = 1_700_000_000;
    let pc = Pc::new(&Plan {
        wall_clock: SECONDS * 1_000_000_000 + 123_456_789,
        ..Pc::plan(1)
    })?;
    let script = [
        wrmsr(MSR_WALL_CLOCK, PLACE),
        rdmsr(MSR_WALL_CLOCK).gives(PLACE),
        end(),
    ];
    pc.load(0, &script)?;
    pc.start()?;
    pc.ends_with(0)?;
    pc.gave(0, &script)?;
    let (first, second) = (pc.word(PLACE)?, pc.word(PLACE + 8)?);
    check!(
        first as u32 != 0 && first.is_multiple_of(2),
        "version {first:#x}"
    );
    check_eq!(first >> 32, SECONDS, "seconds");
    check_eq!(second & 0xffff_ffff, 123_456_789, "nanoseconds");
    Ok(())
}

fn wall_clock_where_no_memory_is() -> Outcome {
    gives(&[&[
        wrmsr(MSR_WALL_CLOCK, 1 << 40),
        wrmsr(MSR_WALL_CLOCK, u64::MAX),
        wrmsr(MSR_STEAL_TIME, 1 << 40 | 1),
        delay(TICKS),
        end(),
    ]])
    .map(drop)
}

/// What the cap takes is stolen.
fn steal_time() -> Outcome {
    let pc = Pc::new(&Pc::plan(1))?;
    let schedule = Schedule {
        cap: 20,
        ..Schedule::USUAL
    };
    pc.vcpu(0).schedule(&schedule).must("schedule")?;
    let script = [
        wrmsr(MSR_STEAL_TIME, PLACE | 1),
        rdmsr(MSR_STEAL_TIME).gives(PLACE | 1),
        ops::spin(),
    ];
    pc.load(0, &script)?;
    pc.start()?;
    let mut last = 0;
    for _ in 0..2 {
        until("more steal time", || Ok(pc.word(PLACE)? > last))?;
        last = pc.word(PLACE)?;
    }
    let info = pc.vcpu(0).info().must("info")?;
    check!(
        last <= info.steal_ns,
        "{last} ns told of {} ns",
        info.steal_ns
    );
    let version = pc.word(PLACE + 8)? as u32;
    check!(
        version != 0 && version.is_multiple_of(2),
        "version {version}"
    );
    Ok(())
}

fn steal_time_bad_value() -> Outcome {
    let mut script = [end(); 8];
    for (place, bit) in script.iter_mut().zip(1..6) {
        *place = wrmsr(MSR_STEAL_TIME, PLACE | 1 | 1 << bit).faults();
    }
    script[5] = rdmsr(MSR_STEAL_TIME).gives(0);
    gives(&[&script]).map(drop)
}
