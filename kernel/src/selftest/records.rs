//! What the kernel keeps to tell: the log, and names of functions.

#![allow(unsafe_code, reason = "looks at the serial port's registers")]

use x86_64::instructions::port::Port;

use super::{check, tests};
use crate::boot::symbols::Named;
use crate::log;

tests!("records":
    the_ring_keeps_the_last_line,
    functions_have_names,
    the_serial_port_runs_at_115200_baud,
);

fn the_ring_keeps_the_last_line() -> super::Outcome {
    const TEXT: &str = "this line is looked for in the ring";
    log::plain_line(format_args!("{TEXT}"));
    let mut kept = alloc::vec![0; log::RING_BYTES];
    let (_, len, _) = log::read_ring(0, &mut kept);
    let kept = kept.get(..len).unwrap_or_default();
    let mut lines = kept.split(|&byte| byte == b'\n').rev();
    check!(
        lines.next() == Some(b"") && lines.next() == Some(TEXT.as_bytes()),
        "it is not the last of {len} bytes"
    );
    Ok(())
}

fn functions_have_names() -> super::Outcome {
    let name = alloc::format!("{}", Named(functions_have_names as *const () as u64));
    check!(
        name == "plinth_kernel::selftest::records::functions_have_names+0x0",
        "the name is {name}"
    );
    Ok(())
}

fn the_serial_port_runs_at_115200_baud() -> super::Outcome {
    const COM1: u16 = 0x3f8;
    const DIVISOR_LATCH: u8 = 1 << 7;
    log::flush();
    let mut line_control = Port::<u8>::new(COM1 + 3);
    // SAFETY: shows the divisor instead of the data for a moment in which nobody sends, and then the data again.
    let (kept, divisor) = unsafe {
        let kept = line_control.read();
        line_control.write(kept | DIVISOR_LATCH);
        let divisor = [COM1, COM1 + 1].map(|port| Port::<u8>::new(port).read());
        line_control.write(kept);
        (kept, u16::from_le_bytes(divisor))
    };
    // All ones: no such port.
    check!(
        kept == 0xff || kept == 0x03,
        "it is not set to 8N1: line control is {kept:#x}"
    );
    check!(
        kept == 0xff || divisor == 1,
        "the divisor of 115200 baud is {divisor}"
    );
    Ok(())
}
