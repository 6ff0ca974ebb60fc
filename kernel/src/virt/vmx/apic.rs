//! The virtual-APIC page (SDM vol. 3 30.1): what the CPU keeps of a guest's local APIC. Pure.
//!
//! Of the registers in it the CPU uses TPR, PPR, ISR, IRR and EOI where interrupts are delivered virtually; the others are the model's,
//! and no access to them is virtualised.

use crate::intc::highest;

/// Bytes of the page.
const BYTES: usize = 4096;
/// Offset of TPR.
const TPR: usize = 0x80;
/// Offset of the first eighth of ISR; the others follow, each 16 bytes apart.
const ISR: usize = 0x100;
/// Offset of the first eighth of IRR.
const IRR: usize = 0x200;
/// Offset of SELF IPI, and what the CPU says of a write to it.
pub(super) const SELF_IPI: usize = 0x3f0;

/// A register's 32 bits.
pub(super) fn register(page: &[u8; BYTES], offset: usize) -> u32 {
    page.get(offset..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn set_register(page: &mut [u8; BYTES], offset: usize, value: u32) {
    if let Some(bytes) = page.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        *bytes = value.to_le_bytes();
    }
}

/// TPR.
pub(super) fn task_priority(page: &[u8; BYTES]) -> u8 {
    register(page, TPR) as u8
}

/// Sets TPR.
pub(super) fn set_task_priority(page: &mut [u8; BYTES], value: u8) {
    set_register(page, TPR, value.into());
}

/// Offsets of the halves of the words of a set of vectors.
fn halves(at: usize) -> [(usize, usize); 4] {
    [0, 1, 2, 3].map(|word| (at + word * 0x20, at + word * 0x20 + 0x10))
}

fn vectors(page: &[u8; BYTES], at: usize) -> [u64; 4] {
    halves(at)
        .map(|(low, high)| u64::from(register(page, low)) | u64::from(register(page, high)) << 32)
}

fn set_vectors(page: &mut [u8; BYTES], at: usize, words: [u64; 4]) {
    for ((low, high), word) in halves(at).into_iter().zip(words) {
        set_register(page, low, word as u32);
        set_register(page, high, (word >> 32) as u32);
    }
}

/// ISR.
pub(super) fn in_service(page: &[u8; BYTES]) -> [u64; 4] {
    vectors(page, ISR)
}

/// Sets ISR.
pub(super) fn set_in_service(page: &mut [u8; BYTES], words: [u64; 4]) {
    set_vectors(page, ISR, words);
}

/// IRR.
pub(super) fn requested(page: &[u8; BYTES]) -> [u64; 4] {
    vectors(page, IRR)
}

/// Sets IRR.
pub(super) fn set_requested(page: &mut [u8; BYTES], words: [u64; 4]) {
    set_vectors(page, IRR, words);
}

/// The guest interrupt status (SDM 25.4.2): the highest vector that is requested in bits 7:0, the highest in service in 15:8.
pub(super) fn status(requested: &[u64; 4], in_service: &[u64; 4]) -> u16 {
    let top = |words: &[u64; 4]| u16::from(highest(*words).unwrap_or(0));
    top(requested) | top(in_service) << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_where_the_manual_has_them() {
        let mut page = [0; BYTES];
        // SDM vol. 3 table 11-6: bits 31:0 of IRR at 200H, 63:32 at 210H and so on.
        set_requested(&mut page, [1 << 33, 0, 0, 1 << 63]);
        assert_eq!(register(&page, 0x210), 2);
        assert_eq!(register(&page, 0x270), 1 << 31);
        assert_eq!(requested(&page), [1 << 33, 0, 0, 1 << 63]);
        set_in_service(&mut page, [0, 1, 0, 0]);
        assert_eq!(register(&page, 0x120), 1);
        assert_eq!(in_service(&page), [0, 1, 0, 0]);
        set_task_priority(&mut page, 0xa5);
        assert_eq!((page[0x80], task_priority(&page)), (0xa5, 0xa5));
        let others: u32 = page.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(others, 2 + 1 + 4, "nothing else is written");
    }

    #[test]
    fn the_status_names_the_highest() {
        assert_eq!(status(&[0; 4], &[0; 4]), 0);
        assert_eq!(
            status(&[1 << 32, 0, 1 << 5, 0], &[1 << 49, 0, 0, 0]),
            0x3185
        );
    }
}
