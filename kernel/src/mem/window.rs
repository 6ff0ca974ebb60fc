//! Windows on a few bytes of a guest's memory.
#![allow(unsafe_code, reason = "loads and stores in the physical map")]

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

/// A byte of a guest's memory that the kernel sets and the guest clears.
#[derive(Clone, Copy, Debug)]
pub struct Flag(NonNull<u8>);

// SAFETY: the pointer is into the physical map, which all CPUs share, and is only used for volatile accesses.
unsafe impl Send for Flag {}

impl Flag {
    /// The byte at `hpa`; `None` beyond the physical map.
    ///
    /// # Safety
    /// As long as [`Flag::set`] is called, the frame is memory of a guest.
    pub unsafe fn new(hpa: Hpa) -> Option<Self> {
        NonNull::new(phys::checked_pointer(hpa, 1)?).map(Self)
    }

    /// Whether it is not 0.
    #[inline(always)]
    pub fn load(self) -> bool {
        // SAFETY: a byte within the physical map, which is never unmapped. The guest may change it meanwhile: any value will do.
        unsafe { self.0.as_ptr().read_volatile() != 0 }
    }

    /// Makes it 1.
    #[inline(always)]
    pub fn set(self) {
        // SAFETY: by the promise of `new`; to guests' memory no reference is ever made.
        unsafe { self.0.as_ptr().write_volatile(1) }
    }
}
