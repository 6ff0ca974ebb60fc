//! A window on a few bytes of a guest's memory.
#![allow(unsafe_code, reason = "loads from the physical map")]

use core::arch::asm;
use core::ptr::NonNull;

use super::{Hpa, phys};

/// Eight bytes of a guest's memory that are read often.
#[derive(Clone, Copy, Debug)]
pub struct Window(NonNull<u64>);

// SAFETY: the pointer is into the physical map, which all CPUs share, and is only read from, by volatile loads.
unsafe impl Send for Window {}

impl Window {
    /// The eight bytes at `hpa`, which lie in one frame; `None` beyond the physical map. What it shows after the frame has changed
    /// hands is of no use, but harmless.
    pub fn new(hpa: Hpa) -> Option<Self> {
        NonNull::new(phys::checked_pointer(hpa, 8)?.cast()).map(Self)
    }

    /// The bytes as they are now, little-endian.
    #[inline(always)]
    pub fn load(self) -> u64 {
        let value: u64;
        // SAFETY: eight bytes within the physical map, which is never unmapped. The guest may change them meanwhile, so
        // this is no load of the language's: any value will do.
        unsafe {
            asm!("mov {}, [{}]", out(reg) value, in(reg) self.0.as_ptr(), options(nostack, readonly, preserves_flags))
        };
        value
    }
}
