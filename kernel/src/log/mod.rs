//! The kernel's log: one line at a time to every sink, never two lines mixed.
//!
//! Sinks are the serial port, the screen and a ring in memory; a machine that lacks one of the first two still has the
//! others. A line is formatted on the caller's stack first, so that nothing that formats runs under the lock. The lock is
//! only taken with interrupts off, and never from an NMI; a panic breaks it open.

#[cfg(target_os = "none")]
mod panic;
pub mod ring;
pub mod sanitize;
mod screen;
mod serial;

use crate::arch::{cpu, time};
use core::fmt::{self, Write};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use log::{Level, LevelFilter, Log, Metadata, Record};
use ring::Ring;
use spin::Mutex;

pub use serial::flush;

/// The longest text of one log line in bytes; what is longer is cut and marked.
const LINE_BYTES: usize = 1000;

/// Bytes the ring keeps.
pub const RING_BYTES: usize = 64 * 1024;

struct Sinks {
    serial: serial::Serial,
    screen: Option<screen::Screen>,
}

static SINKS: Mutex<Sinks> = Mutex::new(Sinks {
    serial: serial::Serial::absent(),
    screen: None,
});

/// The ring, which whoever has the sinks uses. Apart from them it is all zeroes in the beginning, and takes no room in the kernel's file.
static RING: Mutex<Ring<RING_BYTES>> = Mutex::new(Ring::new());

/// Set once a panic owns the sinks: from then on the lock is ignored, for its holder may have been stopped.
static BROKEN: AtomicBool = AtomicBool::new(false);

struct KernelLog;

/// Finds the serial port and takes over the `log` macros. Lines before this call are lost.
pub fn init() {
    SINKS.lock().serial = serial::Serial::find();
    // Fails only when called twice, and then the first call already did all of it.
    let _ = log::set_logger(&KernelLog);
    log::set_max_level(LevelFilter::Info);
}

/// From now on only messages of `level` and above are kept.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Shows the log on the screen too, beginning with what the ring has kept so far.
pub fn show_on(framebuffer: bootloader_api::info::FrameBuffer) {
    with_sinks(|sinks| {
        let Some(mut screen) = screen::Screen::new(framebuffer) else {
            return;
        };
        let mut from = 0;
        let mut chunk = [0; 256];
        loop {
            let (start, got) = RING.lock().read(from, &mut chunk);
            if got == 0 {
                break;
            }
            screen.write(&chunk[..got]);
            from = start + got as u64;
        }
        screen.present();
        sinks.screen = Some(screen);
    });
}

/// Copies what the ring holds from stream position `from` on (older text is gone) into `out`; returns the stream
/// position of the first byte copied, how many bytes were copied, and the position of the next byte there will be.
pub fn read_ring(from: u64, out: &mut [u8]) -> (u64, usize, u64) {
    with_sinks(|_| {
        let ring = RING.lock();
        let (start, copied) = ring.read(from, out);
        (start, copied, ring.end())
    })
}

/// Whether the log uses one of these I/O ports.
pub fn uses_port(ports: &Range<u64>) -> bool {
    ports.contains(&serial::FIRST_PORT)
}

/// Somebody else drives the serial port from now on: the log leaves it alone until [`take_serial_back`].
pub fn give_serial_away() {
    with_sinks(|sinks| {
        sinks.serial.drain();
        sinks.serial = serial::Serial::absent();
    });
}

/// Whoever drove the serial port is gone: the log uses it again.
pub fn take_serial_back() {
    with_sinks(|sinks| {
        if !sinks.serial.is_there() {
            sinks.serial = serial::Serial::find();
            sinks.serial.write(b"\r\n");
        }
    });
}

/// The line of the first domain's console that is being collected.
static GUEST_LINE: Mutex<heapless::Vec<u8, GUEST_LINE_BYTES>> = Mutex::new(heapless::Vec::new());

/// Longest line of it; a longer one is cut in two.
const GUEST_LINE_BYTES: usize = 240;

/// Takes text of the first domain's console; lines that it completes appear in the log.
pub fn guest_text(name: &str, text: &[u8]) {
    let mut line = GUEST_LINE.lock();
    for &byte in text {
        if byte == b'\n' || line.is_full() {
            guest_line(name, &line);
            line.clear();
        }
        if byte != b'\n' && byte != b'\r' {
            // There is room: a full line has just been shown.
            let _ = line.push(byte);
        }
    }
}

/// Prints one line of a guest's console as `[name] text`, with control bytes made harmless.
fn guest_line(name: &str, line: &[u8]) {
    let mut text = Line::new();
    let _ = write!(text, "[{name}] ");
    for &byte in line {
        let _ = text.write_char(sanitize::harmless(byte));
    }
    emit(&text);
}

/// Prints one line without time or level: the lines that other programs look for.
pub fn plain_line(args: fmt::Arguments<'_>) {
    let mut text = Line::new();
    let _ = text.write_fmt(args);
    emit(&text);
}

/// How long a CPU that stops the others waits for their last line, in microseconds. 1000 bytes take 87 ms at 115200 baud.
const LAST_LINE_US: u64 = 300_000;

/// Runs `stop`, which stops all other CPUs for good, at a moment when none of them is in the middle of a line; but does not
/// wait long for it, for the line may be one in which this CPU failed. Afterwards the lock is open for good.
pub(crate) fn without_others(stop: impl FnOnce()) {
    let end = time::tsc() + time::ticks_of_us(LAST_LINE_US);
    let guard = loop {
        let guard = SINKS.try_lock();
        if guard.is_some() || time::tsc() >= end {
            break guard;
        }
        core::hint::spin_loop();
    };
    stop();
    drop(guard);
    break_lock();
}

/// Opens the lock for good: called after the other CPUs were stopped.
pub(crate) fn break_lock() {
    BROKEN.store(true, Ordering::SeqCst);
}

fn with_sinks<R>(work: impl FnOnce(&mut Sinks) -> R) -> R {
    if BROKEN.load(Ordering::Relaxed) {
        break_open();
    }
    work(&mut SINKS.lock())
}

#[allow(
    unsafe_code,
    reason = "a panic takes the lock from a CPU that was stopped while it held it"
)]
fn break_open() {
    // SAFETY: `BROKEN` is only set by a panic, after all other CPUs were stopped and while this CPU will not return to
    // whatever held the locks, so no other user of the sinks is left.
    unsafe {
        SINKS.force_unlock();
        RING.force_unlock();
    }
}

fn emit(line: &Line) {
    with_sinks(|sinks| {
        sinks.serial.write(line.bytes());
        sinks.serial.write(b"\r\n");
        let mut ring = RING.lock();
        ring.write(line.bytes());
        ring.write(b"\n");
        if let Some(screen) = &mut sinks.screen {
            screen.write(line.bytes());
            screen.write(b"\n");
            screen.present();
        }
    });
}

impl Log for KernelLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = Line::new();
        let ns = time::ns_since_boot();
        let _ = write!(
            line,
            "[{:5}.{:06}] {:5} cpu{} ",
            ns / 1_000_000_000,
            ns / 1000 % 1_000_000,
            level_name(record.level()),
            cpu::id_if_known(),
        );
        let _ = line.write_fmt(*record.args());
        emit(&line);
    }

    fn flush(&self) {
        flush();
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

/// A line under construction; line breaks in it become blanks, so that one message stays one line.
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            let byte = if byte == b'\n' || byte == b'\r' {
                b' '
            } else {
                byte
            };
            if self.len == LINE_BYTES {
                self.bytes[LINE_BYTES - 3..].copy_from_slice(b"...");
                return Err(fmt::Error);
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_one_line() {
        let mut line = Line::new();
        write!(line, "a\nb\r\nc").unwrap();
        assert_eq!(line.bytes(), b"a b  c");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_marked() {
        let mut line = Line::new();
        assert!(line.write_str(&"x".repeat(LINE_BYTES)).is_ok());
        assert!(line.write_str("y").is_err());
        assert_eq!(line.bytes().len(), LINE_BYTES);
        assert!(line.bytes().ends_with(b"xx..."));
    }
}
