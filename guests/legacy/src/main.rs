//! A kernel that wants no help: it takes interrupts from the timer, the clock and the serial port of a PC by its pair of 8259A, and by
//! the I/O APIC, as a kernel does that has never heard of hypervisors; and it switches the machine off by ACPI.
//!
//! All time is measured by ACPI's power management timer.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a failure travels by value"
)]

mod apic;
mod clock;
mod irq;
mod pic;
mod pit;
mod serial;

use core::sync::atomic::{AtomicU64, Ordering};

use plinth_pc::acpi::{self, Fixed};
use plinth_pc::state::state;
use plinth_pc::{Outcome, Why, check, memory, ports, power};

plinth_pc::start!(main, all_segments: false);
plinth_pc::pvh_note!();

fn main() -> u32 {
    let failed = plinth_pc::suite!(
        "legacy",
        [
            pic::masks,
            pit::reads_back,
            pit::speaker_channel,
            pit::ticks_by_pic,
            pic::service,
            pic::masked_tick_waits,
            clock::seconds_by_second_pic,
            serial::transmitter_by_pic,
            pit::ticks_by_io_apic,
        ]
    );
    match fixed().and_then(|fixed| Ok((fixed.control, acpi::sleep_type_s5(&fixed)?))) {
        Ok((control, sleep_type)) if failed == 0 => power::off(control, sleep_type),
        Ok(_) => {}
        Err(why) => plinth_pc::println!("the machine cannot be switched off: {why}"),
    }
    // Not switched off: that is a failure, too.
    failed.max(1)
}

/// ACPI's fixed hardware, whose tables the start information names.
fn fixed() -> Result<Fixed, Why> {
    /// The offset of `rsdp_paddr` in `hvm_start_info`.
    const RSDP: u64 = 32;
    acpi::fixed(memory::read(u64::from(state().ebx) + RSDP))
}

/// Where the power management timer is, and its mask above: found once.
static TIMER: AtomicU64 = AtomicU64::new(0);

/// A moment on the power management timer.
#[derive(Clone, Copy)]
struct Moment(u32);

impl Moment {
    fn now() -> Result<Self, Why> {
        let mut timer = TIMER.load(Ordering::Relaxed);
        if timer == 0 {
            let fixed = fixed()?;
            check!(fixed.timer != 0, "there is no power management timer");
            let mask = u32::MAX >> (32 - fixed.timer_bits);
            timer = u64::from(mask) << 32 | u64::from(fixed.timer);
            TIMER.store(timer, Ordering::Relaxed);
        }
        Ok(Self(
            ports::read::<u32>(timer as u16) & (timer >> 32) as u32,
        ))
    }

    /// Microseconds since then: less than 4 seconds.
    fn elapsed(self) -> Result<u64, Why> {
        const HZ: u64 = 3_579_545;
        let mask = (TIMER.load(Ordering::Relaxed) >> 32) as u32;
        let ticks = Self::now()?.0.wrapping_sub(self.0) & mask;
        Ok(u64::from(ticks) * 1_000_000 / HZ)
    }
}

/// Whether a time is the expected one, give or take a tenth; both in microseconds.
fn is_about(elapsed: u64, expected: u64, what: &str) -> Outcome {
    check!(
        elapsed.abs_diff(expected) <= expected / 10,
        "{what} took {elapsed} us, expected {expected} us"
    );
    Ok(())
}
