//! The end of the kernel by its own fault: says what happened and where, on every sink, with all other CPUs stopped.

#![allow(unsafe_code, reason = "reads the frame pointer")]

use super::{plain_line, take_serial_back};
use crate::arch::{cpu, power, stacks, trap};
use crate::boot::{cmdline, symbols};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The status with which the machine ends after a panic.
pub const PANIC_STATUS: u32 = 101;

/// Nobody panics yet.
const NOBODY: u32 = u32::MAX;

/// The CPU that panics.
static PANICKING: AtomicU32 = AtomicU32::new(NOBODY);
/// Whether it did so again while it reported.
static AGAIN: AtomicBool = AtomicBool::new(false);

/// Deepest backtrace printed.
const MAX_FRAMES: usize = 32;
/// Most frames of a recursion that are passed over as one.
const MAX_REPEATS: usize = 100_000;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    trap::disable_interrupts();
    let me = cpu::id_if_known();
    match PANICKING.compare_exchange(NOBODY, me, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(first) if first == me => {
            // The report itself failed. Say only why, and end; if that fails too, touch nothing more.
            if AGAIN.swap(true, Ordering::SeqCst) {
                trap::halt_forever();
            }
            power::stop_others();
            plain_line(format_args!(
                "plinth: panic during a panic: {}",
                info.message()
            ));
            power::end(cmdline::options().panic, PANIC_STATUS)
        }
        // Another CPU is already reporting; its NMI will stop this one for good.
        Err(_) => trap::stop(),
    }
    power::stop_others();
    take_serial_back();
    let message = info.message();
    match info.location() {
        Some(at) => log::error!("panic at {}:{}: {message}", at.file(), at.line()),
        None => log::error!("panic: {message}"),
    }
    let start = match trap::panicking_frame() {
        Some(frame) => {
            frame.log();
            log::error!("  at {:#018x} {}", frame.rip, symbols::Named(frame.rip));
            frame.rbp
        }
        None => frame_pointer(),
    };
    backtrace(start);
    power::end(cmdline::options().panic, PANIC_STATUS)
}

#[inline(always)]
fn frame_pointer() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Prints the callers found by following frame pointers from `rbp` on.
///
/// A recursion is one line, so that what it was called for stays on the screen.
fn backtrace(rbp: u64) {
    let (mut last, mut repeats, mut printed) = (0, 0, 0);
    for address in stacks::callers(rbp) {
        if printed >= MAX_FRAMES || repeats >= MAX_REPEATS {
            return;
        }
        if address == last {
            repeats += 1;
        } else {
            if repeats != 0 {
                log::error!("  and {repeats} times more");
            }
            // The return address follows the call; the call itself is what is named.
            log::error!("  at {address:#018x} {}", symbols::Named(address - 1));
            (last, repeats) = (address, 0);
            printed += 1;
        }
    }
}
