//! Interrupts: counters, and waiting for them by HLT.

use core::sync::atomic::{AtomicU32, Ordering};

use plinth_pc::trap::{self, Frame};
use plinth_pc::{Outcome, check};
use x86_64::instructions::interrupts;

use crate::{Moment, apic, clock, pic, serial};

/// The vector of the first 8259A's first input. Those of the second follow.
pub const PIC: u8 = 0x20;
/// The vector of the timer by the I/O APIC.
pub const IO_APIC: u8 = 0x40;
/// The local APIC's spurious interrupt.
pub const SPURIOUS: u8 = 0xff;

/// How often each vector came.
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// How often a vector came.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

fn on_interrupt(frame: &mut Frame) -> bool {
    let vector = frame.vector as u8;
    match vector {
        PIC..IO_APIC => {
            let line = vector - PIC;
            match line {
                pic::CLOCK => clock::on_interrupt(),
                serial::LINE => serial::on_interrupt(),
                _ => {}
            }
            pic::end_of_interrupt(line);
        }
        IO_APIC => apic::end_of_interrupt(),
        SPURIOUS => {}
        _ => return false,
    }
    COUNTS[usize::from(vector)].fetch_add(1, Ordering::Relaxed);
    true
}

/// Takes interrupts while `code` runs, which begins with interrupts off.
pub fn with_interrupts(code: impl FnOnce() -> Outcome) -> Outcome {
    trap::set_handler(Some(on_interrupt));
    let outcome = code();
    interrupts::disable();
    trap::set_handler(None);
    outcome
}

/// Halts until a vector has come so often more. Interrupts are off before and after.
pub fn wait_for(vector: u8, times: u32) -> Outcome {
    /// An interrupt that does not come is waited for as long as others wake the CPU.
    const LIMIT: u64 = 3_000_000;
    let begin = Moment::now()?;
    let first = count(vector);
    while count(vector).wrapping_sub(first) < times {
        let elapsed = begin.elapsed()?;
        check!(
            elapsed < LIMIT,
            "vector {vector:#x} came {} times in {elapsed} us, not {times} times",
            count(vector).wrapping_sub(first)
        );
        // Nothing comes between the two instructions.
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
    Ok(())
}
