//! Which physical addresses are devices that guests may be given: those that are neither memory nor the kernel's own devices.

use alloc::vec::Vec;

use bootloader_api::info::MemoryRegion;
use spin::Mutex;

use super::Hpa;

/// Ranges that are not to be given away: start and end.
static TAKEN: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// Keeps the machine's memory, and what the firmware reserves. Called once, at boot.
pub fn keep_memory(regions: &[MemoryRegion]) {
    let ranges = regions.iter().map(|region| (region.start, region.end));
    TAKEN.lock().extend(ranges);
}

/// Keeps a device that the kernel drives itself.
pub fn keep(start: Hpa, bytes: u64) {
    let start = start.get();
    TAKEN.lock().push((start, start.saturating_add(bytes)));
}

/// Whether nothing from `start` to before `end` is kept.
pub fn is_free(start: Hpa, end: Hpa) -> bool {
    let (start, end) = (start.get(), end.get());
    TAKEN
        .lock()
        .iter()
        .all(|&(first, last)| end <= first || last <= start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_not_free() {
        keep(Hpa::new(0x7_fee0_0000), 0x1000);
        let free = |start, end| is_free(Hpa::new(start), Hpa::new(end));
        assert!(!free(0x7_fee0_0000, 0x7_fee0_1000));
        assert!(!free(0x7_fedf_f000, 0x7_fee0_2000));
        assert!(free(0x7_fee0_1000, 0x7_fee0_2000));
        assert!(free(0x7_fedf_f000, 0x7_fee0_0000));
    }
}
