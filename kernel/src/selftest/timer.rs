//! The timer and the clock.
//!
//! Emulators run late when their host is busy, so lateness is judged by the best of several tries; earliness never has
//! an excuse.

use core::sync::atomic::Ordering;

use super::interrupts::await_interrupt;
use super::{check, mailbox, tests};
use crate::arch::{apic, cpu, errata, time, trap};

tests!("timer":
    fires_in_time_and_never_early,
    fires_on_every_cpu,
    a_past_deadline_fires_at_once,
    disarming_works,
    arming_again_replaces,
    an_early_interrupt_arms_again,
    ends_a_halt,
    the_clock_agrees_with_the_pit,
    the_clock_is_monotonic,
);

/// Whether the timer has noted that its time has come; the note is taken away.
fn has_fired() -> bool {
    cpu::cpu().take_pending() & cpu::PENDING_RESCHEDULE != 0
}

fn interrupts() -> u64 {
    cpu::cpu().counters.timer.load(Ordering::Relaxed)
}

/// Arms for `us` from now, and waits; how late it was, in microseconds, and how many interrupts came.
fn fire(us: u64) -> Result<(u64, u64), &'static str> {
    has_fired();
    let before = interrupts();
    let deadline = time::tsc() + time::ticks_of_us(us);
    time::arm(deadline);
    let fired = await_interrupt(us + 2_000_000, has_fired);
    let now = time::tsc();
    time::disarm();
    if !fired {
        return Err("it never fired");
    }
    if now < deadline {
        return Err("it fired early");
    }
    Ok((
        (now - deadline) * 1_000_000 / time::tsc_hz(),
        interrupts() - before,
    ))
}

fn fires_in_time_and_never_early() -> super::Outcome {
    // A busy host gives an emulated CPU its turn late.
    let slack = if errata::is_tcg() { 20_000 } else { 500 };
    for us in [100, 1000, 10_000, 50_000] {
        let mut best = u64::MAX;
        for _ in 0..5 {
            let (late, interrupts) = fire(us)?;
            best = best.min(late);
            // One that comes a little early is armed again.
            check!(interrupts <= 3, "{interrupts} interrupts for {us} us");
        }
        check!(
            best <= us / 10 + slack,
            "{best} us late at best, of {us} us"
        );
    }
    Ok(())
}

fn fires_on_every_cpu() -> super::Outcome {
    for (cpu, result) in mailbox::on_each(|| fire(2000))? {
        check!(result.is_ok(), "on cpu{}: {result:?}", cpu.id);
    }
    Ok(())
}

fn a_past_deadline_fires_at_once() -> super::Outcome {
    for deadline in [0, 1, time::tsc() - 1] {
        has_fired();
        time::arm(deadline);
        check!(
            await_interrupt(2_000_000, has_fired),
            "{deadline} never fired"
        );
    }
    Ok(())
}

fn disarming_works() -> super::Outcome {
    has_fired();
    time::arm(time::tsc() + time::ticks_of_us(3000));
    time::disarm();
    check!(!await_interrupt(10_000, has_fired), "it fired all the same");
    Ok(())
}

fn arming_again_replaces() -> super::Outcome {
    has_fired();
    let start = time::tsc();
    let at = |us| start + time::ticks_of_us(us);
    time::arm(at(1000));
    time::arm(at(20_000));
    check!(await_interrupt(2_000_000, has_fired), "it never fired");
    check!(
        time::tsc() >= at(20_000),
        "the first deadline was still in force"
    );
    let start = time::tsc();
    let at = |us| start + time::ticks_of_us(us);
    time::arm(at(30_000));
    time::arm(at(1000));
    check!(
        await_interrupt(2_000_000, has_fired),
        "a nearer deadline never fired"
    );
    check!(
        !await_interrupt(40_000, has_fired),
        "a deadline that was replaced fired, too"
    );
    Ok(())
}

/// As where the counter of the one-shot timer is too short for the wait.
fn an_early_interrupt_arms_again() -> super::Outcome {
    has_fired();
    time::arm(u64::MAX - 1);
    apic::send_ipi(cpu::cpu().apic_id(), apic::TIMER);
    let before = interrupts();
    check!(
        await_interrupt(2_000_000, || interrupts() != before),
        "the interrupt did not come"
    );
    check!(!has_fired(), "a deadline in centuries has fired");
    let deadline = time::tsc() + time::ticks_of_us(5000);
    time::arm(deadline);
    apic::send_ipi(cpu::cpu().apic_id(), apic::TIMER);
    check!(await_interrupt(2_000_000, has_fired), "it never fired");
    check!(time::tsc() >= deadline, "it fired early");
    Ok(())
}

fn ends_a_halt() -> super::Outcome {
    has_fired();
    let deadline = time::tsc() + time::ticks_of_us(5000);
    time::arm(deadline);
    let mut halts = 0;
    while !has_fired() {
        trap::enable_and_halt();
        halts += 1;
    }
    check!(time::tsc() >= deadline, "it ended early");
    check!(halts <= 3, "it was ended {halts} times");
    Ok(())
}

fn the_clock_agrees_with_the_pit() -> super::Outcome {
    let hz = time::tsc_hz();
    let Some(measured) = time::tsc_hz_by_pit() else {
        return Err("the PIT does not count".into());
    };
    // The kernel's clock may go by the PM timer, which has another quartz.
    check!(
        measured.abs_diff(hz) <= hz / 200,
        "{hz} Hz, but {measured} Hz by the PIT"
    );
    Ok(())
}

fn the_clock_is_monotonic() -> super::Outcome {
    let mut last = time::ns_since_boot();
    for _ in 0..10_000 {
        let now = time::ns_since_boot();
        check!(now >= last, "{last} ns, then {now} ns");
        last = now;
    }
    let start = time::ns_since_boot();
    time::delay_us(2000);
    let gone = time::ns_since_boot() - start;
    check!(gone >= 1_999_000, "2 ms took {gone} ns");
    Ok(())
}
