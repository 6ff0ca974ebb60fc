//! The machine's clock, an MC146818 behind ports 0x70 and 0x71: read once, at the start.

#![allow(unsafe_code, reason = "ports of the clock")]

use core::arch::asm;

use plinth_guest_control::calendar::Registers;
use plinth_rt::hypercall;

/// The first of its ports.
pub const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Bit 7 of register A: the time is being changed.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// An update lasts two milliseconds at most (MC146818, table 6).
const UPDATE_NS: u64 = 3_000_000;
const NS: u64 = 1_000_000_000;

/// A register. The domain must have been given the ports.
fn register(index: u8) -> u8 {
    let value: u8;
    // SAFETY: reading the clock's registers, C left out, has no effect; nothing else here touches its ports.
    unsafe {
        asm!("out dx, al", in("dx") INDEX, in("al") index, options(nomem, nostack));
        asm!("in al, dx", in("dx") DATA, out("al") value, options(nomem, nostack));
    }
    value
}

fn registers() -> Registers {
    Registers {
        second: register(0x00),
        minute: register(0x02),
        hour: register(0x04),
        day: register(0x07),
        month: register(0x08),
        year: register(0x09),
        century: register(0x32),
        control: register(0x0b),
    }
}

/// The Unix time in nanoseconds when the machine's clock was 0; 0 where its clock has no time.
pub fn wall_clock() -> u64 {
    let start = hypercall::clock();
    while register(0x0a) & UPDATE_IN_PROGRESS != 0 && hypercall::clock() - start < UPDATE_NS {}
    // What changes while it is read is read again.
    let mut seen = registers();
    for _ in 0..3 {
        let again = registers();
        if again == seen {
            break;
        }
        seen = again;
    }
    let now = hypercall::clock();
    let unix = seen.unix().and_then(|seconds| seconds.checked_mul(NS));
    unix.map_or(0, |unix| unix.saturating_sub(now))
}
