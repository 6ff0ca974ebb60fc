//! The MC146818 real-time clock with its CMOS memory, as a PC/AT has it.

/// The domain's memory, which firmware of a PC leaves word of in the CMOS memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemorySizes {
    /// Bytes from 0 to the end of RAM below 4 GiB.
    pub below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub above_4g: u64,
}

/// What the clock starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Nanoseconds since 1970 at the moment in which `now` is 0.
    pub epoch: u64,
    /// The domain's memory.
    pub memory: MemorySizes,
}
