//! The port that ends the machine, as emulators have it for tests: QEMU calls it isa-debug-exit.

/// Where it is by custom.
pub const EXIT: u16 = 0xf4;
