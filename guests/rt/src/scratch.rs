//! Static memory that tests give to instructions by its address.

#![allow(unsafe_code, reason = "memory that the compiler must not reason about")]

use crate::Local;

#[repr(C, align(4096))]
struct Bytes<const SIZE: usize>([u8; SIZE]);

/// Memory of `SIZE` bytes on a page boundary.
pub struct Scratch<const SIZE: usize>(Local<Bytes<SIZE>>);

impl<const SIZE: usize> Scratch<SIZE> {
    /// Zeroed memory.
    #[expect(clippy::new_without_default, reason = "for statics only")]
    pub const fn new() -> Self {
        Self(Local::raw(Bytes([0; SIZE])))
    }

    /// Where it lies.
    pub fn address(&self) -> u64 {
        self.0.address() as u64
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        for offset in 0..SIZE {
            self.set(offset, byte);
        }
    }

    /// The byte at an offset, which must be inside.
    pub fn get(&self, offset: usize) -> u8 {
        assert!(offset < SIZE);
        // SAFETY: inside the static; volatile, because instructions write it that the compiler does not see.
        unsafe { self.0.address().cast::<u8>().add(offset).read_volatile() }
    }

    /// Sets the byte at an offset, which must be inside.
    pub fn set(&self, offset: usize, byte: u8) {
        assert!(offset < SIZE);
        // SAFETY: as in `get`.
        unsafe {
            self.0
                .address()
                .cast::<u8>()
                .add(offset)
                .write_volatile(byte)
        }
    }

    /// The eight bytes at an offset.
    pub fn get_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|index| self.get(offset + index)))
    }

    /// Sets the eight bytes at an offset.
    pub fn set_u64(&self, offset: usize, value: u64) {
        for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.set(offset + index, byte);
        }
    }
}
