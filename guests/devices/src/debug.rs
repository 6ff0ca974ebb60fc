//! The port that ends the machine with a status, as emulators have it for tests: QEMU calls it isa-debug-exit.

use crate::Power;

/// Where it is by custom.
pub const EXIT: u16 = 0xf4;
/// How many ports answer to it.
pub const PORTS: u16 = 4;

/// What a write of `size` bytes asks for.
pub const fn exit(size: u32, value: u32) -> Power {
    let mask = match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    };
    Power::Exit(value & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_what_the_access_carries() {
        assert_eq!(exit(1, 0x1234_5678), Power::Exit(0x78));
        assert_eq!(exit(2, 0x1234_5678), Power::Exit(0x5678));
        assert_eq!(exit(4, 0x1234_5678), Power::Exit(0x1234_5678));
    }
}
