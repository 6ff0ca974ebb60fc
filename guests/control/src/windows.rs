//! Places in the control guest's own address space where memory of others is mapped.

/// What the first page tables map: the low GiB.
const END: u64 = 1 << 30;
/// Places begin at multiples of this, so that large pages can be used: 2 MiB.
const ALIGNMENT: u64 = 2 << 20;

/// A free place of `length` bytes at or above `from`; `taken` are the start and length of what is there already.
pub fn free_place(from: u64, length: u64, taken: &[(u64, u64)]) -> Option<u64> {
    let mut at = from.checked_next_multiple_of(ALIGNMENT)?;
    loop {
        let end = at.checked_add(length).filter(|&end| end <= END)?;
        let obstacle = taken
            .iter()
            .map(|&(start, length)| (start, start.saturating_add(length)))
            .filter(|&(start, behind)| start < end && at < behind)
            .map(|(_, behind)| behind)
            .max();
        match obstacle {
            None => return Some(at),
            Some(behind) => at = behind.checked_next_multiple_of(ALIGNMENT)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn places_avoid_what_is_there() {
        assert_eq!(free_place(64 * MIB, 16 * MIB, &[]), Some(64 * MIB));
        assert_eq!(free_place(63 * MIB, 16 * MIB, &[]), Some(64 * MIB));
        let taken = [(70 * MIB, 3 * MIB), (90 * MIB, 1)];
        assert_eq!(free_place(64 * MIB, 6 * MIB, &taken), Some(64 * MIB));
        assert_eq!(free_place(64 * MIB, 7 * MIB, &taken), Some(74 * MIB));
        assert_eq!(free_place(64 * MIB, 17 * MIB, &taken), Some(92 * MIB));
    }

    #[test]
    fn places_end_with_the_map() {
        assert_eq!(free_place(0, 1 << 30, &[]), Some(0));
        assert_eq!(free_place(0, 1 << 30, &[(0, 1)]), None);
        assert_eq!(free_place(0, 1, &[(0, u64::MAX)]), None);
        assert_eq!(free_place(u64::MAX, 1, &[]), None);
    }
}
