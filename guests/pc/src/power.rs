//! The machine's end.

use x86_64::instructions::hlt;

use crate::ports;

/// The port that ends the machine with a status, as emulators have it for tests.
const EXIT: u16 = 0xf4;

/// Ends the machine with a status.
pub fn exit(status: u32) -> ! {
    ports::write(EXIT, status);
    // There is no such port.
    loop {
        hlt();
    }
}

/// Switches the machine off: ACPI's S5 by the PM1 control register (ACPI 6.5 4.8.3.2.1) at `port`, with the sleep type that `_S5` names.
pub fn off(port: u16, sleep_type: u8) {
    const SLP_TYP_SHIFT: u32 = 10;
    const SLP_EN: u16 = 1 << 13;
    let kept = ports::read::<u16>(port) & !(7 << SLP_TYP_SHIFT);
    ports::write(
        port,
        kept | u16::from(sleep_type & 7) << SLP_TYP_SHIFT | SLP_EN,
    );
}
