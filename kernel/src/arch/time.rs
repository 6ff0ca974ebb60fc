//! Time: the TSC, calibrated once, and one timer a CPU that ends slices.

#![allow(unsafe_code, reason = "RDTSC, ports of the PIT and the PM timer")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

use super::alarm::Fired;
use super::apic;
use super::cpu::{self, Cpu};
use super::msr::{self, Msr};
use crate::boot::acpi::PmTimer;

/// TSC ticks a second; 0 until calibrated.
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// The TSC when the kernel began to count time.
static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds a TSC tick, in units of 2^-32.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// The inverse of that, rounded up: TSC ticks a nanosecond, in units of 2^-32.
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(0);
/// APIC timer ticks a TSC tick, in units of 2^-32.
static APIC_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// Whether the APIC timer takes TSC values.
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);

/// Rate of the ACPI PM timer (ACPI 4.8.3.3).
const PM_HZ: u64 = 3_579_545;
/// Rate of the PIT.
const PIT_HZ: u64 = 1_193_182;
/// What the PIT counts down from: the most.
const PIT_COUNT: u16 = u16::MAX;
/// Where chipsets of the i440FX have the PM timer, for machines without ACPI tables.
const PM_PORT_OF_PIIX4: u16 = 0xb008;
/// Length of one measurement: a two-hundredth of a second. A tick of the PM timer is a twentieth of a thousandth of that.
const MEASURE_PER_SECOND: u64 = 200;
/// Readings of the clock of which the quickest counts: something may come between it and the TSC, be it an SMI or whoever runs below.
const READINGS: usize = 8;
/// Measurements taken at most, if none is [`GOOD_ENOUGH`]; the best counts.
const MEASUREMENTS: usize = 5;
/// A measurement is good enough whose readings took no more than this part of it.
const GOOD_ENOUGH: u64 = 1000;
/// TSC ticks after which a clock that has not counted so long is given up: that at the highest plausible rate.
const STANDSTILL: u64 = 20_000_000_000 / MEASURE_PER_SECOND;
/// TSC rates between these are believed, in Hz. Emulators run slowly: Bochs's rate is its `ips`.
const PLAUSIBLE: core::ops::RangeInclusive<u64> = 1_000_000..=20_000_000_000;

/// The TSC. Not ordered with the instructions around it.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is there on every 64-bit CPU, and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The TSC, read after everything before it has been done: for comparing what CPUs see.
pub fn ordered_tsc() -> u64 {
    // SAFETY: as for `tsc`; LFENCE is part of SSE2 and orders RDTSC (SDM vol. 2, RDTSC).
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// TSC ticks a second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// Nanoseconds since the kernel was entered; 0 until the TSC is calibrated.
pub fn ns_since_boot() -> u64 {
    scale(
        tsc().wrapping_sub(START.load(Ordering::Relaxed)),
        NS_PER_TICK.load(Ordering::Relaxed),
    )
}

/// Nanoseconds from the kernel's entry to this value of the TSC.
pub fn ns_at_tsc(tsc: u64) -> u64 {
    ns_of_ticks(tsc.saturating_sub(START.load(Ordering::Relaxed)))
}

/// Nanoseconds that `ticks` of the TSC take.
pub fn ns_of_ticks(ticks: u64) -> u64 {
    scale(ticks, NS_PER_TICK.load(Ordering::Relaxed))
}

/// The TSC when [`ns_since_boot`] will be `ns`, or a little later; `u64::MAX` where that is out of reach.
pub fn tsc_at_ns(ns: u64) -> u64 {
    ticks_until(ns, TICKS_PER_NS.load(Ordering::Relaxed))
        .and_then(|ticks| ticks.checked_add(START.load(Ordering::Relaxed)))
        .unwrap_or(u64::MAX)
}

/// The ticks after which the clock is at `ns`, where a nanosecond has so many in units of 2^-32, rounded up. `None`: too many.
fn ticks_until(ns: u64, ticks_per_ns: u64) -> Option<u64> {
    let ticks = (u128::from(ns) * u128::from(ticks_per_ns)) >> 32;
    u64::try_from(ticks).ok()?.checked_add(1)
}

/// The inverse of a factor in units of 2^-32, in the same, rounded up.
const fn inverse(factor: u64) -> u64 {
    (1u128 << 64).div_ceil(factor as u128) as u64
}

/// TSC ticks in `us` microseconds.
pub fn ticks_of_us(us: u64) -> u64 {
    (u128::from(us) * u128::from(tsc_hz()) / 1_000_000) as u64
}

/// `value` times a factor in units of 2^-32; the product of two 64-bit numbers cannot overflow.
const fn scale(value: u64, factor: u64) -> u64 {
    ((value as u128 * factor as u128) >> 32) as u64
}

/// `to` over `from` in units of 2^-32.
const fn ratio(to: u64, from: u64) -> u64 {
    (((to as u128) << 32) / from as u128) as u64
}

/// Waits at least `us` microseconds.
pub fn delay_us(us: u64) {
    let end = tsc() + ticks_of_us(us);
    while tsc() < end {
        core::hint::spin_loop();
    }
}

/// Notes the beginning of time.
pub fn start() {
    START.store(tsc(), Ordering::Relaxed);
}

/// A clock that runs at a known rate.
enum Reference {
    Pm(PmTimer),
    Pit,
}

/// A reading of a clock, and when it was made.
#[derive(Clone, Copy)]
struct Reading {
    clock: u32,
    /// The TSC in the middle of it.
    tsc: u64,
    /// TSC ticks that it took.
    took: u64,
}

/// How far clocks have come meanwhile.
struct Measured {
    tsc_hz: u64,
    apic_hz: u64,
    /// What the readings took of it, in parts of `u32::MAX`.
    doubt: u64,
}

impl Reference {
    /// Ticks a second.
    const fn hz(&self) -> u64 {
        match self {
            Self::Pm(_) => PM_HZ,
            Self::Pit => PIT_HZ,
        }
    }

    /// Starts it, where it has to be started.
    fn start(&self) {
        if let Self::Pit = self {
            pit_start(PIT_COUNT);
            // It takes the count at its next tick.
            for _ in 0..READINGS {
                pit_left();
            }
        }
    }

    /// What it shows.
    fn read(&self) -> u32 {
        match self {
            Self::Pm(timer) => read_pm(timer),
            Self::Pit => pit_left().into(),
        }
    }

    /// Ticks from one thing that it showed to another; less than what it counts in all.
    const fn ticks(&self, first: u32, now: u32) -> u64 {
        match self {
            Self::Pm(timer) => pm_ticks(first, now, timer.wide),
            // Counts down, and goes on from 65535.
            Self::Pit => (first.wrapping_sub(now) & 0xffff) as u64,
        }
    }

    /// Reads it: the quickest of some readings.
    fn reading(&self) -> Reading {
        let one = || {
            let before = ordered_tsc();
            let clock = self.read();
            let took = ordered_tsc().saturating_sub(before);
            Reading {
                clock,
                tsc: before + took / 2,
                took,
            }
        };
        (1..READINGS).fold(one(), |best, _| {
            let next = one();
            if next.took < best.took { next } else { best }
        })
    }

    /// Measures the TSC and the APIC timer against it, which must not be armed. `None` where it does not count.
    fn measure(&self) -> Option<Measured> {
        let (hz, wanted) = (self.hz(), self.hz() / MEASURE_PER_SECOND);
        self.start();
        apic::timer_masked();
        apic::timer_count(u32::MAX);
        let first = self.reading();
        let apic_first = (apic::timer_left(), ordered_tsc());
        let give_up = first.tsc.saturating_add(STANDSTILL);
        while self.ticks(first.clock, self.read()) < wanted {
            if tsc() > give_up {
                return None;
            }
        }
        let last = self.reading();
        let apic_last = (apic::timer_left(), ordered_tsc());
        apic::timer_count(0);
        let (ticks, gone) = (self.ticks(first.clock, last.clock), last.tsc - first.tsc);
        let tsc_hz = gone.checked_mul(hz)? / ticks;
        let apic_ticks = u64::from(apic_first.0 - apic_last.0);
        let apic_hz = apic_ticks.checked_mul(tsc_hz)? / (apic_last.1 - apic_first.1);
        Some(Measured {
            tsc_hz,
            apic_hz,
            doubt: (first.took + last.took) * u64::from(u32::MAX) / gone.max(1),
        })
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Pm(_) => "the ACPI PM timer",
            Self::Pit => "the PIT",
        }
    }
}

/// Ticks from `first` to `now` of a counter of 24 or 32 bits.
const fn pm_ticks(first: u32, now: u32, wide: bool) -> u64 {
    let gone = now.wrapping_sub(first);
    (if wide { gone } else { gone & 0xff_ffff }) as u64
}

fn read_pm(timer: &PmTimer) -> u32 {
    // SAFETY: reading the PM timer has no effect.
    unsafe { Port::<u32>::new(timer.port).read() }
}

/// Whether a PM timer counts at this port.
fn counts(timer: &PmTimer) -> bool {
    let first = read_pm(timer);
    first != u32::MAX && (0..10_000).any(|_| read_pm(timer) != first)
}

/// Starts channel 2 of the PIT, which is the speaker's, to count down once; the speaker stays silent.
fn pit_start(count: u16) {
    // SAFETY: channel 2 and its gate are used by nobody else; mode 0, binary.
    unsafe {
        let mut gate = Port::<u8>::new(0x61);
        let kept = gate.read() & !3;
        gate.write(kept);
        Port::<u8>::new(0x43).write(0b1011_0000);
        Port::<u8>::new(0x42).write(count as u8);
        Port::<u8>::new(0x42).write((count >> 8) as u8);
        gate.write(kept | 1);
    }
}

/// What channel 2 has left to count.
fn pit_left() -> u16 {
    // SAFETY: latches the count of channel 2 and reads both halves.
    unsafe {
        Port::<u8>::new(0x43).write(0b1000_0000);
        let mut data = Port::<u8>::new(0x42);
        u16::from_le_bytes([data.read(), data.read()])
    }
}

/// Measures the TSC's rate and the APIC timer's, on the boot CPU.
///
/// CPUID leaf 15h, and a hypervisor's leaf 4000_0010h, are exact where they are right; they are believed where the measurement
/// agrees within a hundredth.
pub fn calibrate(pm_timer: Option<PmTimer>) {
    let pm = pm_timer.unwrap_or(PmTimer {
        port: PM_PORT_OF_PIIX4,
        wide: false,
    });
    let reference = if counts(&pm) {
        Reference::Pm(pm)
    } else {
        Reference::Pit
    };
    let Some((measured, apic_hz)) = rates(&reference) else {
        panic!("{} stands still: no clock can be kept", reference.name());
    };
    let (hz, source) = match told() {
        Some((told, source)) if told.abs_diff(measured) <= measured / 100 => (told, source),
        _ => (measured, reference.name()),
    };
    assert!(
        PLAUSIBLE.contains(&hz),
        "the TSC's rate was measured as {hz} Hz against {source}: no clock can be kept"
    );
    TSC_HZ.store(hz, Ordering::Relaxed);
    let ns_per_tick = ratio(1_000_000_000, hz);
    NS_PER_TICK.store(ns_per_tick, Ordering::Relaxed);
    TICKS_PER_NS.store(inverse(ns_per_tick), Ordering::Relaxed);
    APIC_PER_TICK.store(ratio(apic_hz, hz), Ordering::Relaxed);
    let deadline = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_tsc_deadline());
    TSC_DEADLINE.store(deadline, Ordering::Relaxed);
    log::info!(
        "TSC {}.{:03} MHz by {source}; timer: local APIC, {} ({}.{:03} MHz)",
        hz / 1_000_000,
        hz / 1000 % 1000,
        if deadline { "TSC deadline" } else { "one-shot" },
        apic_hz / 1_000_000,
        apic_hz / 1000 % 1000,
    );
}

/// Rates of the TSC and of the APIC timer, in Hz: the best of some measurements. The timer must not be armed. `None` where the
/// reference does not count.
fn rates(reference: &Reference) -> Option<(u64, u64)> {
    let mut best = reference.measure()?;
    for _ in 1..MEASUREMENTS {
        if best.doubt <= u64::from(u32::MAX) / GOOD_ENOUGH {
            break;
        }
        let next = reference.measure()?;
        if next.doubt < best.doubt {
            best = next;
        }
    }
    Some((best.tsc_hz, best.apic_hz))
}

/// The TSC's rate by the PIT, measured anew; `None` where the PIT does not count. Disarms the calling CPU's timer.
pub(crate) fn tsc_hz_by_pit() -> Option<u64> {
    disarm();
    let rates = rates(&Reference::Pit);
    init_cpu();
    rates.map(|(tsc_hz, _)| tsc_hz)
}

/// What the CPU or a hypervisor below says of the TSC's rate.
fn told() -> Option<(u64, &'static str)> {
    let cpuid = CpuId::new();
    if let Some(hz) = cpuid.get_tsc_info().and_then(|info| info.tsc_frequency()) {
        return Some((hz, "CPUID leaf 15h"));
    }
    let khz = cpuid
        .get_hypervisor_info()
        .and_then(|info| info.tsc_frequency())?;
    Some((u64::from(khz) * 1000, "the hypervisor below"))
}

/// Sets up the calling CPU's timer; not armed.
pub(super) fn init_cpu() {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        apic::timer_tsc_deadline();
    } else {
        apic::timer_one_shot();
    }
}

/// Lets the timer set [`cpu::PENDING_RESCHEDULE`] on the calling CPU when its TSC reaches `deadline`. Replaces what was armed.
#[inline(always)]
pub fn arm(deadline: u64) {
    if cpu::cpu().alarm.arm(deadline) {
        program(deadline);
    }
}

/// Disarms the calling CPU's timer. An interrupt that is already pending comes all the same, and does nothing.
pub fn disarm() {
    cpu::cpu().alarm.disarm();
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: the timer has no effect on memory.
        unsafe { msr::write(Msr::IA32_TSC_DEADLINE, 0) };
    } else {
        apic::timer_count(0);
    }
}

/// Whether the CPU's timer should have interrupted it a good while ago, at the time `now` of the TSC.
///
/// No CPU loses an interrupt, but QEMU does: its VMRUN with a virtual interrupt may forget one that comes at the same moment, until
/// the next comes. A guest that never exits would have the CPU until then.
pub fn is_overdue(cpu: &Cpu, now: u64) -> bool {
    // Two milliseconds: the kernel keeps interrupts off for far less.
    cpu.alarm.is_before(now.saturating_sub(tsc_hz() / 500))
}

/// Sets the calling CPU's timer.
#[inline(never)]
fn program(deadline: u64) {
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // A deadline in the past fires at once; 0 would disarm (SDM 12.5.4.1).
        // SAFETY: as in `disarm`.
        unsafe { msr::write(Msr::IA32_TSC_DEADLINE, deadline.max(1)) };
    } else {
        let left = deadline.saturating_sub(tsc());
        apic::timer_count(count_for(left, APIC_PER_TICK.load(Ordering::Relaxed)));
    }
}

/// The one-shot count for `ticks` of the TSC: at least 1, for 0 would stop the timer; a wait too long for the counter is cut,
/// and armed again when it has passed.
fn count_for(ticks: u64, apic_per_tick: u64) -> u32 {
    // One more: the division rounds down, and an interrupt that is early has to be armed again.
    u32::try_from(scale(ticks, apic_per_tick))
        .unwrap_or(u32::MAX)
        .saturating_add(1)
}

/// The timer's interrupt.
pub(super) fn interrupt(cpu: &Cpu) {
    match cpu.alarm.fired(tsc()) {
        Fired::ForNobody => {}
        Fired::Early(deadline) => program(deadline),
        Fired::Due => {
            cpu.pending
                .fetch_or(cpu::PENDING_RESCHEDULE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [50_000_000, 1_000_000_000, 2_595_123_457, 5_000_000_000] {
            let ns = scale(hz, ratio(1_000_000_000, hz));
            assert!(
                (999_999_990..=1_000_000_000).contains(&ns),
                "{ns} at {hz} Hz"
            );
        }
    }

    #[test]
    fn who_waits_for_a_moment_never_wakes_before_it() {
        for hz in [
            1_000_000,
            50_000_000,
            1_000_000_000,
            2_595_123_457,
            5_000_000_000,
        ] {
            let factor = ratio(1_000_000_000, hz);
            // Up to ten years.
            for ns in [
                1,
                999,
                1_000_000_007,
                86_400_000_000_000,
                10 * 365 * 86_400_000_000_000,
            ] {
                let ticks = ticks_until(ns, inverse(factor)).unwrap();
                let late = scale(ticks, factor).checked_sub(ns).unwrap();
                // A tick, and what the factors are not exact by.
                let most = 2 * 1_000_000_000u64.div_ceil(hz) + ns / 1_000_000;
                assert!(late <= most, "{late} ns after {ns} ns at {hz} Hz");
            }
            assert_eq!(ticks_until(u64::MAX, u64::MAX), None);
        }
    }

    #[test]
    fn centuries_do_not_overflow() {
        let hundred_years = 100 * 365 * 86_400 * 2_500_000_000;
        let ns = scale(hundred_years, ratio(1_000_000_000, 2_500_000_000));
        assert!(ns.abs_diff(100 * 365 * 86_400 * 1_000_000_000) < 1_000_000_000);
    }

    #[test]
    fn a_pm_timer_of_24_bits_wraps() {
        assert_eq!(pm_ticks(0xff_fff0, 0x10, false), 0x20);
        assert_eq!(pm_ticks(0xffff_fff0, 0x10, true), 0x20);
    }

    #[test]
    fn counts_are_never_zero_and_long_waits_are_cut() {
        let half = 1 << 31;
        assert_eq!(count_for(0, half), 1);
        assert_eq!(count_for(100, half), 51);
        assert_eq!(count_for(u64::MAX, half), u32::MAX);
    }
}
