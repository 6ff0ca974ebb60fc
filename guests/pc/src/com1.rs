//! The console: a 16550A at COM1, by polling, and the panic handler.

use core::fmt::{self, Write};

use crate::ports;

/// The first port.
pub const PORT: u16 = 0x3f8;
/// The interrupt's ISA line.
pub const LINE: u8 = 4;

/// Register offsets.
pub mod register {
    /// Byte to send; the divisor's low byte while [`LINE_CONTROL`] says so.
    pub const DATA: u16 = 0;
    /// Which interrupts come; the divisor's high byte.
    pub const INTERRUPTS: u16 = 1;
    /// Which interrupt came; when written, control of the FIFOs.
    pub const IDENTIFICATION: u16 = 2;
    /// Format, and the divisor's access bit.
    pub const LINE_CONTROL: u16 = 3;
    /// Modem lines; OUT2 lets interrupts through.
    pub const MODEM_CONTROL: u16 = 4;
    /// What there is to read, and whether there is room to write.
    pub const LINE_STATUS: u16 = 5;
}

const THR_EMPTY: u8 = 1 << 5;
/// Exit status of a guest that panicked.
pub const STATUS_PANIC: u32 = 101;

/// 115200 baud, 8N1, FIFOs on, no interrupts.
pub(crate) fn init() {
    let set = |register, value: u8| ports::write(PORT + register, value);
    set(register::INTERRUPTS, 0);
    set(register::LINE_CONTROL, 0x83);
    set(register::DATA, 1);
    set(register::INTERRUPTS, 0);
    set(register::LINE_CONTROL, 0x03);
    set(register::IDENTIFICATION, 0x07);
    set(register::MODEM_CONTROL, 0x0b);
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while ports::read::<u8>(PORT + register::LINE_STATUS) & THR_EMPTY == 0 {}
            ports::write(PORT + register::DATA, byte);
        }
        Ok(())
    }
}

/// Writes formatted text; what [`crate::println!`] calls.
pub fn write(arguments: fmt::Arguments<'_>) {
    // Its write_str does not fail.
    let _ = Com1.write_fmt(arguments);
}

/// Writes a line to COM1.
#[macro_export]
macro_rules! println {
    ($($part:tt)*) => { $crate::com1::write(format_args!("{}\n", format_args!($($part)*))) };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::println!("{info}");
    crate::power::exit(STATUS_PANIC)
}
