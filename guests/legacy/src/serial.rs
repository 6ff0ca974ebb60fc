//! The 16550A: a line sent by its transmitter's interrupts.

use core::sync::atomic::{AtomicUsize, Ordering};

use plinth_pc::com1::{self, register};
use plinth_pc::{Outcome, check, check_eq, ports};

use crate::{irq, pic};

pub use com1::LINE;

const TEXT: &[u8] = b"(this line was sent by interrupts)\n";
/// Interrupt enable register: the transmitter is empty.
const ETBEI: u8 = 1 << 1;
/// Interrupt identification register, without the bits for the FIFOs.
const THR_EMPTY: u8 = 0b0010;
const IDENTIFICATION: u8 = 0b1111;

/// How much was sent, and how many interrupts had another cause.
static SENT: AtomicUsize = AtomicUsize::new(0);
static OTHERS: AtomicUsize = AtomicUsize::new(0);

fn set(register: u16, value: u8) {
    ports::write(com1::PORT + register, value);
}

/// Sends the next byte.
pub fn on_interrupt() {
    let cause: u8 = ports::read(com1::PORT + register::IDENTIFICATION);
    if cause & IDENTIFICATION != THR_EMPTY {
        OTHERS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let index = SENT.fetch_add(1, Ordering::Relaxed);
    match TEXT.get(index) {
        Some(&byte) => set(register::DATA, byte),
        None => set(register::INTERRUPTS, 0),
    }
}

/// An interrupt when it is enabled, for the transmitter is empty then, and one for each byte.
pub fn transmitter_by_pic() -> Outcome {
    irq::with_interrupts(|| {
        pic::open(1 << LINE);
        set(register::INTERRUPTS, ETBEI);
        irq::wait_for(irq::PIC + LINE, TEXT.len() as u32 + 1)?;
        pic::close();
        let sent = SENT.load(Ordering::Relaxed);
        check!(
            sent == TEXT.len() + 1,
            "{sent} interrupts of the transmitter for {} bytes",
            TEXT.len()
        );
        check_eq!(
            OTHERS.load(Ordering::Relaxed),
            0,
            "interrupts without a cause"
        );
        Ok(())
    })
}
