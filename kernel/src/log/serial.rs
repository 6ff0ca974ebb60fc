//! COM1, 115200 baud, 8N1. Every byte waits until the transmitter takes it, for a bounded time: a port that stops answering
//! costs its output, never the machine.

#![allow(unsafe_code, reason = "creates the driver of COM1's ports")]

use super::with_sinks;
use uart_16550::{BaudRate, Config, Uart16550, backend::PioBackend, spec::registers::LSR};

const COM1: u16 = 0x3f8;
/// The first of the port's I/O ports.
pub const FIRST_PORT: u64 = COM1 as u64;

/// The default is 9600 baud.
const SETTINGS: Config = Config {
    baud_rate: BaudRate::Baud115200,
    ..Config::DEFAULT
};

/// Polls of the line status before the port is given up. At 115200 baud a full FIFO takes 1.4 ms; a port read takes about
/// 1 us on hardware, and tens of nanoseconds under an emulator.
const PATIENCE: u32 = 200_000;

/// The port, or nothing where the machine has none.
pub struct Serial {
    uart: Option<Uart16550<PioBackend>>,
}

impl Serial {
    /// No port.
    pub const fn absent() -> Self {
        Self { uart: None }
    }

    /// Looks for the port and sets it up; a port that fails its own test is not used.
    pub fn find() -> Self {
        // SAFETY: COM1 belongs to the kernel on every PC; nobody else drives it once boot services have ended.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(COM1) }) else {
            return Self::absent();
        };
        let found = uart.check_present() && uart.init(SETTINGS).is_ok();
        Self {
            uart: found.then_some(uart),
        }
    }

    /// Sends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(uart) = &mut self.uart else {
            return;
        };
        let mut rest = bytes;
        let mut polls = 0;
        while !rest.is_empty() {
            // Takes bytes only when the transmitter's FIFO has room.
            let sent = uart.send_bytes(rest);
            rest = rest.get(sent..).unwrap_or_default();
            polls = if sent == 0 { polls + 1 } else { 0 };
            if polls == PATIENCE {
                self.uart = None;
                return;
            }
        }
    }

    /// Whether there is one.
    pub const fn is_there(&self) -> bool {
        self.uart.is_some()
    }

    /// Waits until the last byte has left the port.
    pub fn drain(&mut self) {
        let Some(uart) = &mut self.uart else {
            return;
        };
        for _ in 0..PATIENCE {
            if uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

/// Waits until the last byte has left the port.
pub fn flush() {
    with_sinks(|sinks| sinks.serial.drain());
}
