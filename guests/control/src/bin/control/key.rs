//! Keys of the events that are bound to the control guest's vCPU.

/// The serial port's interrupt.
pub const SERIAL: u64 = 1 << 33;
/// Set in the key of a device's event.
const DEVICE: u64 = 1 << 32;

/// The key of a domain's output and end.
pub const fn domain(number: u32) -> u64 {
    number as u64
}

/// The key of a domain's device.
pub const fn device(number: u32) -> u64 {
    DEVICE | number as u64
}

/// Whether it is that of a device.
pub const fn is_device(key: u64) -> bool {
    key & DEVICE != 0
}

/// The domain's number.
pub const fn number(key: u64) -> u32 {
    key as u32
}
