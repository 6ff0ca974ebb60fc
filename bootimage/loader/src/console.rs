//! Tells what the loader does: on the firmware's console, and on the first serial port.
//!
//! Where the firmware's console already goes to a serial port, lines are not written there a second time. A machine
//! without that port must not hang: every wait has a bound.

#![allow(
    unsafe_code,
    reason = "port input and output; protocols opened without exclusive access"
)]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams};
use uefi::proto::device_path::{DevicePath, DeviceSubType, DeviceType};
use uefi::proto::unsafe_protocol;
use uefi::{Handle, system};
use x86_64::instructions::port::Port;

/// The first serial port.
const COM1: u16 = 0x3f8;
/// How often a status is read before the port is given up: some milliseconds, a character takes 87 microseconds.
const PATIENCE: u32 = 100_000;

const UNUSED: u8 = 0;
const WITH_CONSOLE: u8 = 1;
const AFTER_CONSOLE: u8 = 2;

/// When lines go to the serial port: never, always, or once the firmware's console is gone.
static SERIAL: AtomicU8 = AtomicU8::new(UNUSED);

/// Whether the firmware's console can be used.
static FIRMWARE: AtomicBool = AtomicBool::new(false);

/// The mark that firmware puts on the devices that are its console, `gEfiConsoleOutDeviceGuid`.
#[derive(Debug)]
#[repr(C)]
#[unsafe_protocol("d3b36f2c-d551-11d4-9a46-0090273fc14d")]
pub struct ConsoleOutDevice {
    _nothing: u8,
}

/// Writes a line like `println!`.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::console::line(::core::format_args!($($arguments)*))
    };
}
pub(crate) use say;

/// Finds the serial port and how to use it.
pub fn start() {
    FIRMWARE.store(true, Ordering::Relaxed);
    if has_com1() {
        let mode = if console_is_serial() {
            AFTER_CONSOLE
        } else {
            WITH_CONSOLE
        };
        if mode == WITH_CONSOLE {
            configure_com1();
        }
        SERIAL.store(mode, Ordering::Relaxed);
    }
}

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    let firmware = FIRMWARE.load(Ordering::Relaxed);
    if firmware {
        // The firmware's console may refuse text that it cannot show; there is nobody else to tell.
        let _ = system::with_stdout(|console| console.write_fmt(format_args!("{text}\n")));
    }
    let mode = SERIAL.load(Ordering::Relaxed);
    if mode == WITH_CONSOLE || (mode == AFTER_CONSOLE && !firmware) {
        let _ = Com1.write_fmt(format_args!("{text}\r\n"));
    }
}

/// From now on lines go to the serial port alone. To be called when boot services have ended.
pub fn firmware_has_gone() {
    FIRMWARE.store(false, Ordering::Relaxed);
}

/// Waits until a key is pressed. Keys pressed before do not count.
pub fn wait_for_key() {
    let event = system::with_stdin(|keys| {
        let _ = keys.reset(false);
        keys.wait_for_key_event()
    });
    if let Ok(event) = event {
        let _ = boot::wait_for_event(&[event]);
    }
}

/// The handles of the firmware's console devices.
pub fn output_devices() -> impl Iterator<Item = Handle> {
    boot::find_handles::<ConsoleOutDevice>()
        .unwrap_or_default()
        .into_iter()
}

/// Whether what is written to the firmware's console is sent to a serial port.
fn console_is_serial() -> bool {
    output_devices().any(|handle| {
        let params = OpenProtocolParams {
            handle,
            agent: boot::image_handle(),
            controller: None,
        };
        // SAFETY: the path is only read, before control returns to the firmware that could remove the device.
        let path = unsafe {
            boot::open_protocol::<DevicePath>(params, OpenProtocolAttributes::GetProtocol)
        };
        path.is_ok_and(|path| {
            path.node_iter().any(|node| {
                node.full_type() == (DeviceType::MESSAGING, DeviceSubType::MESSAGING_UART)
            })
        })
    })
}

fn read(register: u16) -> u8 {
    // SAFETY: reading a register of a serial port changes nothing but that port; without one it gives 0xff.
    unsafe { Port::new(COM1 + register).read() }
}

fn write(register: u16, value: u8) {
    // SAFETY: these ports belong to the first serial port on every PC; without one nothing listens.
    unsafe { Port::new(COM1 + register).write(value) }
}

/// Whether there is a serial port: its scratch register keeps what is written.
fn has_com1() -> bool {
    let keeps = |value| {
        write(7, value);
        read(7) == value
    };
    keeps(0x5a) && keeps(0xa5) && read(5) != 0xff
}

/// 115200 baud, 8 data bits, no parity, 1 stop bit, FIFOs on, no interrupts.
fn configure_com1() {
    write(1, 0);
    write(3, 0x80);
    write(0, 1);
    write(1, 0);
    write(3, 0x03);
    write(2, 0x07);
    write(4, 0x03);
}

/// The serial port as a destination of text.
struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const TRANSMITTER_EMPTY: u8 = 1 << 5;
        for byte in text.bytes() {
            if !(0..PATIENCE).any(|_| read(5) & TRANSMITTER_EMPTY != 0) {
                return Err(fmt::Error);
            }
            write(0, byte);
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("the loader failed: {info}");
    loop {
        x86_64::instructions::hlt();
    }
}
