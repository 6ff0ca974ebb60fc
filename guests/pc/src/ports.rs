//! I/O ports. All are the guest's own: no port of a PC reaches the program's memory.

#![allow(unsafe_code, reason = "port instructions")]

use x86_64::instructions::port::{Port, PortRead, PortWrite};

/// IN.
pub fn read<T: PortRead>(port: u16) -> T {
    // SAFETY: there is no DMA in these machines, so that no port changes memory.
    unsafe { Port::new(port).read() }
}

/// OUT.
pub fn write<T: PortWrite>(port: u16, value: T) {
    // SAFETY: as in `read`.
    unsafe { Port::new(port).write(value) }
}
