//! The two 8259 interrupt controllers of the old PC: moved out of the way of exceptions, and silenced.

#![allow(unsafe_code, reason = "writes the controllers' ports")]

use x86_64::instructions::port::Port;

const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];

/// The first vector of the master; the slave's follow. A spurious interrupt can come even when all lines are masked.
const FIRST_VECTOR: u8 = 0x20;

/// Remaps and masks both.
pub fn silence() {
    // What ICW3 says: the slave hangs on line 2 of the master.
    let wiring = [1 << 2, 2];
    for (chip, vector) in [FIRST_VECTOR, FIRST_VECTOR + 8].into_iter().enumerate() {
        let mut data = Port::<u8>::new(DATA[chip]);
        // SAFETY: the 8259s belong to the kernel alone. The sequence is ICW1..ICW4 of their data sheet; then all lines
        // are masked. A machine without them ignores the writes.
        unsafe {
            Port::<u8>::new(COMMAND[chip]).write(0x11);
            data.write(vector);
            data.write(wiring[chip]);
            data.write(0x01);
            data.write(0xff);
        }
    }
}
