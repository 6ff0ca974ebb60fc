//! Memory objects in the suite's own address space, at addresses that are otherwise empty.

#![allow(unsafe_code, reason = "memory that comes and goes by hypercalls")]

use plinth_rt::abi::call::access;
use plinth_rt::object::Memory;
use plinth_rt::{Why, check};

use crate::kit::{Must, own};

/// The first address: above all RAM that the suite is given, below the modules, inside the GiB that it has mapped to itself.
pub const WINDOW: u64 = 512 << 20;

/// Bytes from one slot to the next. All slots lie in one large page, so that all use the same nested tables.
const SLOT: u64 = 256 << 10;
/// How many there are.
pub const SLOTS: u64 = 8;

/// A Memory object, mapped from its begin on in one of eight slots, until it is dropped.
pub struct Mapped {
    slot: u64,
    length: u64,
}

impl Mapped {
    /// Maps `length` bytes for reading and writing.
    pub fn new(slot: u64, memory: Memory, length: u64) -> Result<Self, Why> {
        Self::with(slot, memory, length, access::READ | access::WRITE)
    }

    /// Maps `length` bytes with this access.
    pub fn with(slot: u64, memory: Memory, length: u64, access: u64) -> Result<Self, Why> {
        check!(slot < SLOTS && length <= SLOT, "no such slot");
        let mapped = Self { slot, length: 0 };
        own()
            .map(mapped.address(), memory, 0, length, access)
            .must("map into the suite")?;
        Ok(Self { slot, length })
    }

    /// Where it is.
    pub const fn address(&self) -> u64 {
        WINDOW + self.slot * SLOT
    }

    /// The first address behind it.
    pub const fn end(&self) -> u64 {
        self.address() + self.length
    }

    /// The byte at an offset, which must be inside.
    pub fn byte(&self, offset: u64) -> u8 {
        assert!(offset < self.length);
        // SAFETY: mapped as long as `self` lives; no reference to it exists. Volatile, as others write it.
        unsafe { ((self.address() + offset) as *const u8).read_volatile() }
    }

    /// The word at an offset, which must be inside and aligned.
    pub fn word(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < self.length);
        // SAFETY: as in `byte`.
        unsafe { ((self.address() + offset) as *const u64).read_volatile() }
    }

    /// Sets the word at an offset, which must be inside and aligned; not for a mapping without WRITE.
    pub fn set_word(&self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(8) && offset < self.length);
        // SAFETY: as in `byte`.
        unsafe { ((self.address() + offset) as *mut u64).write_volatile(value) }
    }

    /// Copies bytes to an offset; not for a mapping without WRITE.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.length);
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `byte`.
            unsafe {
                ((self.address() + offset) as *mut u8)
                    .add(index)
                    .write_volatile(*byte)
            }
        }
    }

    /// A copy of the bytes at an offset.
    pub fn bytes<const N: usize>(&self, offset: u64) -> [u8; N] {
        core::array::from_fn(|index| self.byte(offset + index as u64))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.length != 0 {
            // A test may have unmapped it already.
            let _ = own().unmap(self.address(), self.length);
        }
    }
}
