//! Hypercall numbers. One line each in the table of `docs/abi.md`.

/// The number of a hypercall (RAX). Open: what this version does not name is answered with `NO_CALL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct Call(pub u64);

impl Call {
    /// Version of the contract; no arguments. Value: [`crate::ABI_VERSION`]. Also the null call for measurements.
    pub const VERSION: Self = Self(0);
    /// Writes to the caller's console. RDI: guest-physical address of the bytes; RSI: their number, at most
    /// [`CONSOLE_WRITE_MAX`]. Value: bytes taken, which may be fewer: call again with the rest.
    pub const CONSOLE_WRITE: Self = Self(1);
    /// Nanoseconds since the machine's boot, monotonic on and across CPUs; no arguments.
    pub const CLOCK: Self = Self(2);
    /// Gives the rest of the time slice away; no arguments.
    pub const YIELD: Self = Self(3);
    /// Ends the calling domain. RDI: its exit status, 0 meaning success. Does not return.
    pub const END: Self = Self(4);
}

/// Most bytes that one console write takes: a page.
pub const CONSOLE_WRITE_MAX: u64 = 4096;
