//! The MC146818: the time, and the interrupt at the end of each update, which comes by the second 8259A.

use core::sync::atomic::{AtomicU8, Ordering};

use plinth_pc::{Outcome, Why, check, check_eq, ports};

use crate::{Moment, irq, is_about, pic};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Registers.
const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const A: u8 = 10;
const B: u8 = 11;
const C: u8 = 12;
const D: u8 = 13;
/// Register A: an update is on.
const UIP: u8 = 1 << 7;
/// Register B: interrupt at each update's end, binary numbers, 24 hours.
const UIE: u8 = 1 << 4;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Register C: an interrupt was asked for, by an update's end.
const IRQ_UPDATE: u8 = 1 << 7 | 1 << 4;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// Register C as the last interrupt found it.
static CAUSE: AtomicU8 = AtomicU8::new(0);

fn read(register: u8) -> u8 {
    ports::write(INDEX, register);
    ports::read(DATA)
}

fn set(register: u8, value: u8) {
    ports::write(INDEX, register);
    ports::write(DATA, value);
}

/// Reading register C ends the request.
pub fn on_interrupt() {
    CAUSE.store(read(C), Ordering::Relaxed);
}

/// Seconds of the day, and year, month, day; while no update is on.
fn time() -> Result<(u32, [u8; 3]), Why> {
    while read(A) & UIP != 0 {}
    let modes = read(B);
    let number = |register| {
        let value = read(register);
        if modes & BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    };
    check!(modes & HOURS_24 != 0, "it shows 12 hours");
    let [seconds, minutes, hours] = [SECONDS, MINUTES, HOURS].map(number);
    let date = [YEAR, MONTH, DAY].map(number);
    check!(
        seconds < 60 && minutes < 60 && hours < 24,
        "it is {hours}:{minutes}:{seconds}"
    );
    check!(
        date[0] < 100 && (1..=12).contains(&date[1]) && (1..=31).contains(&date[2]),
        "the date is {date:?}"
    );
    let of_day = (u32::from(hours) * 60 + u32::from(minutes)) * 60 + u32::from(seconds);
    Ok((of_day, date))
}

/// Two updates are a second apart, by this clock and by the other one.
pub fn seconds_by_second_pic() -> Outcome {
    const DAY: u32 = 24 * 60 * 60;
    irq::with_interrupts(|| {
        check!(read(D) & VALID != 0, "its battery is empty");
        pic::open(1 << pic::CLOCK);
        let modes = read(B);
        set(B, modes | UIE);
        read(C);
        let vector = irq::PIC + pic::CLOCK;
        irq::wait_for(vector, 1)?;
        let begin = Moment::now()?;
        let first = time()?;
        irq::wait_for(vector, 1)?;
        let elapsed = begin.elapsed()?;
        let second = time()?;
        set(B, modes);
        pic::close();
        let cause = CAUSE.load(Ordering::Relaxed);
        check_eq!(cause & IRQ_UPDATE, IRQ_UPDATE, "register C");
        check_eq!(
            (second.0 + DAY - first.0) % DAY,
            1,
            "seconds between two updates"
        );
        check!(
            first.1 == second.1 || second.0 == 0,
            "the date changed during the day"
        );
        is_about(elapsed, 1_000_000, "a second")
    })
}
