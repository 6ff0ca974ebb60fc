//! Crashing on purpose, to see the recovery.

#![allow(unsafe_code, reason = "a write to where no memory is")]

/// An address that the first page tables map, but where nothing is: the last page below 1 GiB. RAM and windows lie far below.
const NOWHERE: u64 = (1 << 30) - 4096;

/// Writes where no memory is, and so ends this domain.
pub fn fault() -> ! {
    loop {
        // SAFETY: no memory is there that the write could change.
        unsafe { (NOWHERE as *mut u64).write_volatile(0) };
    }
}

/// Panics.
pub fn panic() -> ! {
    panic!("a panic on purpose")
}
