//! The console: `print!` and `println!`, gathered to lines before they are written, and the panic handler.

use core::fmt::{self, Write};

use crate::Local;
use crate::{hypercall, suite, trap};

const LINE: usize = 240;

/// Exit status of a guest that panicked.
pub const STATUS_PANIC: u64 = plinth_abi::domain::status::PANIC;

static BUFFER: Local<([u8; LINE], usize)> = Local::new(([0; LINE], 0));

/// The console as a formatter's target.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let (mut buffer, mut used) = BUFFER.get();
        for &byte in text.as_bytes() {
            if let Some(slot) = buffer.get_mut(used) {
                *slot = byte;
                used += 1;
            }
            if byte == b'\n' || used == LINE {
                hypercall::console_write(&buffer[..used]);
                used = 0;
            }
        }
        BUFFER.set((buffer, used));
        Ok(())
    }
}

/// Writes formatted text; what [`crate::print!`] calls.
pub fn write(arguments: fmt::Arguments<'_>) {
    // The console's write_str does not fail.
    let _ = Console.write_fmt(arguments);
}

/// Writes formatted text to the console; it arrives with the next end of a line.
#[macro_export]
macro_rules! print {
    ($($part:tt)*) => { $crate::console::write(format_args!($($part)*)) };
}

/// Writes a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($part:tt)*) => { $crate::console::write(format_args!("{}\n", format_args!($($part)*))) };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::println!();
    crate::println!("{info}");
    if suite::is_running() {
        trap::give_up();
    }
    hypercall::end(STATUS_PANIC)
}
