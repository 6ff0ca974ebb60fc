//! What an access to a debug console, port 0xe9, means.

use alloc::vec::Vec;

use plinth_abi::Slot;

/// The port.
pub const PORT: u16 = 0xe9;
/// What a read gives: the port's number, by which guests find it.
pub const ANSWER: u8 = PORT as u8;

/// The bytes of a write: of each element the lowest, for the port is a byte wide.
pub fn written(slot: &Slot) -> Vec<u8> {
    let mut bytes: Vec<u8> = slot
        .data
        .iter()
        .step_by(slot.size.max(1) as usize)
        .take(slot.count as usize)
        .copied()
        .collect();
    // OUT has its value elsewhere, and zeroes for data; OUTS is the other way round.
    if let [only] = bytes.as_mut_slice() {
        *only |= slot.value as u8;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_write_is_a_byte_for_each_element() {
        let mut slot = Slot::new_zeroed();
        slot.count = 1;
        slot.size = 4;
        slot.value = 0x4443_4241;
        assert_eq!(written(&slot), b"A");
        slot.value = 0;
        assert_eq!(written(&slot), b"\0");
        slot.data[0] = b'B';
        assert_eq!(written(&slot), b"B");
        slot.data[..8].copy_from_slice(b"abcdefgh");
        slot.count = 3;
        slot.size = 2;
        assert_eq!(written(&slot), b"ace");
        // More than there is room for, and a size that is none.
        slot.count = u32::MAX;
        slot.size = 0;
        assert_eq!(written(&slot).len(), slot.data.len());
    }
}
