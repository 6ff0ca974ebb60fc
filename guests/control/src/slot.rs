//! What the slot of a device access holds.

use alloc::vec::Vec;

use plinth_abi::Slot;
use plinth_abi::device::DATA;

/// The one element of a write that has no other.
pub fn single(slot: &Slot) -> Option<u32> {
    let [a, b, c, d, ..] = slot.data;
    // OUT has its value elsewhere, and zeroes for data; OUTS is the other way round.
    let value = slot.value as u32 | u32::from_le_bytes([a, b, c, d]);
    (slot.count == 1).then(|| value & mask(width(slot)))
}

/// The elements of a write, each as wide as the slot says.
pub fn elements(slot: &Slot) -> Vec<u32> {
    if let Some(only) = single(slot) {
        return alloc::vec![only];
    }
    slot.data
        .chunks(width(slot))
        .take(slot.count as usize)
        .map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u32::from(byte))
        })
        .collect()
}

/// How many elements a read wants.
pub fn count(slot: &Slot) -> usize {
    (slot.count as usize).min(DATA / width(slot))
}

/// The data and the value with which a read is answered that gave these elements.
pub fn answer(slot: &Slot, elements: &[u32]) -> ([u8; DATA], u64) {
    let size = width(slot);
    let mut data = [0xff; DATA];
    for (to, element) in data.chunks_mut(size).zip(elements) {
        for (to, from) in to.iter_mut().zip(element.to_le_bytes()) {
            *to = from;
        }
    }
    (data, elements.first().copied().unwrap_or(u32::MAX).into())
}

/// Bytes of an element, 1 to 4.
fn width(slot: &Slot) -> usize {
    slot.size.clamp(1, 4) as usize
}

const fn mask(size: usize) -> u32 {
    u32::MAX >> (32 - 8 * size as u32)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_write_has_an_element_for_each_that_it_counts() {
        let mut slot = Slot::new_zeroed();
        slot.count = 1;
        slot.size = 4;
        slot.value = 0x4443_4241;
        assert_eq!(elements(&slot), [0x4443_4241]);
        slot.size = 1;
        assert_eq!(elements(&slot), [0x41]);
        slot.value = 0;
        assert_eq!(elements(&slot), [0]);
        slot.data[0] = b'B';
        assert_eq!(elements(&slot), [u32::from(b'B')]);
        assert_eq!(single(&slot), Some(u32::from(b'B')));
        slot.data[..8].copy_from_slice(b"abcdefgh");
        slot.count = 3;
        slot.size = 2;
        assert_eq!(elements(&slot), [0x6261, 0x6463, 0x6665]);
        assert_eq!(single(&slot), None);
        // More than there is room for, and a size that is none.
        slot.count = u32::MAX;
        slot.size = 0;
        assert_eq!(elements(&slot).len(), slot.data.len());
        assert_eq!(count(&slot), slot.data.len());
    }

    #[test]
    fn a_read_is_answered_by_value_and_by_data() {
        let mut slot = Slot::new_zeroed();
        slot.size = 2;
        slot.count = 2;
        let (data, value) = answer(&slot, &[0x0201, 0x0403]);
        assert_eq!(data[..6], [1, 2, 3, 4, 0xff, 0xff]);
        assert_eq!(value, 0x0201);
        assert_eq!(answer(&slot, &[]).1, u64::from(u32::MAX));
    }
}
