//! Frames that the CPU works on: owned, reached through the physical map, given back when dropped.

#![allow(unsafe_code, reason = "a typed view of a frame")]

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::mem::frames::{Owner, frames};
use crate::mem::{Hpa, PAGE_SIZE, PageSize, phys};
use crate::virt::OutOfMemory;

/// What may live in frames of its own: any content is a valid value, zeroes included.
///
/// # Safety
/// The type is made of integers, newtypes of integers and arrays of them, and is aligned to 4 KiB at most.
pub unsafe trait Plain {}

// SAFETY: its fields are integers and newtypes of integers.
unsafe impl Plain for super::vmcb::Vmcb {}
// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// A `T` in frames of its own, in a row.
#[derive(Debug)]
pub struct Framed<T: Plain> {
    hpa: Hpa,
    pointer: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: it owns its frames; no other pointer to them exists but the CPU's, which works on them only while `enter` runs.
unsafe impl<T: Plain + Send> Send for Framed<T> {}
// SAFETY: as above; a shared reference only reads.
unsafe impl<T: Plain + Sync> Sync for Framed<T> {}

impl<T: Plain> Framed<T> {
    const FRAMES: usize = size_of::<T>().div_ceil(PAGE_SIZE as usize);

    /// Zeroed frames.
    pub fn zeroed() -> Result<Self, OutOfMemory> {
        let hpa = if Self::FRAMES == 1 {
            frames().allocate(PageSize::Size4K, Owner::Virt)
        } else {
            frames().allocate_run(Self::FRAMES, Owner::Virt)
        };
        let hpa = hpa.map_err(|_| OutOfMemory)?;
        let pointer = NonNull::new(phys::pointer(hpa).cast()).ok_or(OutOfMemory)?;
        Ok(Self {
            hpa,
            pointer,
            owns: PhantomData,
        })
    }

    /// Where it lies.
    pub const fn hpa(&self) -> Hpa {
        self.hpa
    }
}

impl<T: Plain> Deref for Framed<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the frames are owned, mapped, aligned to 4 KiB and large enough, and any content is a valid `T`.
        unsafe { self.pointer.as_ref() }
    }
}

impl<T: Plain> DerefMut for Framed<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes it the only reference.
        unsafe { self.pointer.as_mut() }
    }
}

impl<T: Plain> Drop for Framed<T> {
    fn drop(&mut self) {
        for frame in 0..Self::FRAMES as u64 {
            if let Some(hpa) = self.hpa.checked_add(frame * PAGE_SIZE) {
                // A refusal is logged where it is found; there is nothing else to be done about it here.
                let _ = frames().free(hpa, PageSize::Size4K, Owner::Virt);
            }
        }
    }
}
