//! Addresses as types: host-physical, guest-physical and host-virtual never mix.
//!
//! Arithmetic is checked: a guest chooses many of these numbers, and a wrapped sum would reach memory that is not its own.

use core::fmt;

/// Bytes in the smallest page of the host, of guests and of nested tables.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this numeric value.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The numeric value, in bytes.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` where that wraps.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Bytes from `base` up to this address, or `None` where `base` lies above.
            pub const fn checked_sub(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// Whether the address is a multiple of `size`, a power of two.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The nearest multiple of `size` (a power of two) at or below.
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// Bytes from the last multiple of `size` (a power of two).
            pub const fn offset_in(self, size: u64) -> u64 {
                self.0 & (size - 1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// A host-physical address: what the machine's memory bus sees.
    Hpa
);
address!(
    /// A guest-physical address: chosen by a guest, translated by its nested page table.
    Gpa
);
address!(
    /// A host-virtual address: what the kernel itself dereferences.
    Hva
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_wrap_are_refused() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(1).checked_add(2), Some(Gpa::new(3)));
        assert_eq!(Gpa::new(1).checked_sub(Gpa::new(2)), None);
    }

    #[test]
    fn alignment_is_by_powers_of_two() {
        assert!(Hpa::new(0x20_0000).is_aligned(0x20_0000));
        assert!(!Hpa::new(0x20_1000).is_aligned(0x20_0000));
        assert_eq!(Hpa::new(0x20_1fff).align_down(0x1000), Hpa::new(0x20_1000));
        assert_eq!(Hpa::new(0x20_1fff).offset_in(0x1000), 0xfff);
    }
}
