//! The pair of 8259A.

use plinth_pc::{Outcome, check, check_eq, ports};
use x86_64::instructions::interrupts;

use crate::{apic, irq, pit};

/// ISA lines.
pub const TIMER: u8 = 0;
/// The clock's.
pub const CLOCK: u8 = 8;
/// Where the second one is connected to the first.
const CASCADE: u8 = 2;

/// Command ports; data ports are the next.
const FIRST: u16 = 0x20;
const SECOND: u16 = 0xa0;
/// Edge/level control registers.
const ELCR: u16 = 0x4d0;

/// Operation command words: end of interrupt, and which register the command port reads as.
const EOI: u8 = 0x20;
const READ_REQUESTS: u8 = 0x0a;
const READ_IN_SERVICE: u8 = 0x0b;

/// Sets both up: vectors from [`irq::PIC`] on, all edge triggered, all lines masked but those that `open` has bits for; and the local
/// APIC so that it passes their interrupts on ("virtual wire").
pub fn open(open: u16) {
    for (port, base, wiring) in [
        (FIRST, irq::PIC, 1 << CASCADE),
        (SECOND, irq::PIC + 8, CASCADE),
    ] {
        // Initialisation command words 1 to 4: cascaded and with ICW4, vectors, wiring, 8086 mode.
        ports::write(port, 0x11u8);
        ports::write(port + 1, base);
        ports::write(port + 1, wiring);
        ports::write(port + 1, 0x01u8);
    }
    ports::write(ELCR, 0u8);
    ports::write(ELCR + 1, 0u8);
    mask(!open);
    apic::pass_pic(true);
}

/// Masks the lines that have bits, and no others; the cascade when all of the second one are masked.
pub fn mask(mask: u16) {
    let [low, high] = mask.to_le_bytes();
    let cascade = 1 << CASCADE;
    let low = if high == 0xff {
        low | cascade
    } else {
        low & !cascade
    };
    ports::write(FIRST + 1, low);
    ports::write(SECOND + 1, high);
}

/// No interrupt comes from here any more.
pub fn close() {
    mask(!0);
    apic::pass_pic(false);
}

pub fn end_of_interrupt(line: u8) {
    if line >= 8 {
        ports::write(SECOND, EOI);
    }
    ports::write(FIRST, EOI);
}

fn register(command: u8) -> u8 {
    ports::write(FIRST, command);
    ports::read(FIRST)
}

/// The masks are there, and can be read.
pub fn masks() -> Outcome {
    open(0);
    for (first, second) in [(0xffu8, 0xffu8), (0x55, 0xaa), (0xaa, 0x55), (0xff, 0xff)] {
        ports::write(FIRST + 1, first);
        ports::write(SECOND + 1, second);
        check_eq!(ports::read::<u8>(FIRST + 1), first, "the first one's mask");
        check_eq!(
            ports::read::<u8>(SECOND + 1),
            second,
            "the second one's mask"
        );
    }
    close();
    Ok(())
}

/// A tick that waits is a request; taken, it is in service, and after its end neither. Interrupts stay off: it is polled (OCW3, P).
pub fn service() -> Outcome {
    const POLL: u8 = 0x0c;
    open(1 << TIMER);
    // Not to the CPU: what is polled would be taken there as well.
    apic::pass_pic(false);
    pit::periodic(pit::FAST);
    let waits = || register(READ_REQUESTS) & 1 << TIMER != 0;
    while !waits() {}
    check_eq!(register(READ_IN_SERVICE), 0, "in service before");
    ports::write(FIRST, POLL);
    let polled: u8 = ports::read(FIRST);
    check_eq!(polled, 0x80 | TIMER, "what polling gives");
    check_eq!(register(READ_IN_SERVICE), 1 << TIMER, "in service");
    end_of_interrupt(TIMER);
    check_eq!(register(READ_IN_SERVICE), 0, "in service after its end");
    pit::stop();
    close();
    Ok(())
}

/// A tick that comes while its line is masked comes when the mask is gone.
pub fn masked_tick_waits() -> Outcome {
    irq::with_interrupts(|| {
        open(0);
        pit::periodic(pit::FAST);
        while register(READ_REQUESTS) & 1 << TIMER == 0 {}
        let before = irq::count(irq::PIC + TIMER);
        // Time for it to come: it must not.
        interrupts::enable();
        for _ in 0..100 {
            register(READ_IN_SERVICE);
        }
        interrupts::disable();
        check_eq!(irq::count(irq::PIC + TIMER), before, "ticks while masked");
        mask(!(1 << TIMER));
        irq::wait_for(irq::PIC + TIMER, 1)?;
        check!(
            irq::count(irq::PIC + TIMER) > before,
            "none came behind the mask"
        );
        pit::stop();
        close();
        Ok(())
    })
}
