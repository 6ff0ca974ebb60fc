//! A frame that the CPU works on: VMXON region, VMCS or bitmap. Owned, zeroed, given back when dropped.

#![allow(unsafe_code, reason = "the frame is reached through the physical map")]

use crate::mem::frames::{Owner, frames};
use crate::mem::nested::PageSize;
use crate::mem::{Hpa, phys};
use crate::virt::OutOfMemory;

/// One 4 KiB frame that nobody else has.
#[derive(Debug)]
pub(super) struct Frame(Hpa);

impl Frame {
    /// A zeroed frame.
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        match frames().allocate(PageSize::Size4K, Owner::Virt) {
            Ok(hpa) => Ok(Self(hpa)),
            Err(_) => Err(OutOfMemory),
        }
    }

    /// Its address.
    pub(super) fn hpa(&self) -> Hpa {
        self.0
    }

    /// Its content, while the CPU does not use it.
    pub(super) fn bytes(&self) -> &[u8; 4096] {
        // SAFETY: as in `bytes_mut`.
        unsafe { &*phys::pointer(self.0).cast::<[u8; 4096]>() }
    }

    /// As [`Frame::bytes`], to be changed.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        // SAFETY: the frame is 4096 mapped, initialised bytes that only `self` names.
        unsafe { &mut *phys::pointer(self.0).cast::<[u8; 4096]>() }
    }

    /// Writes the revision identifier that VMXON and VMPTRLD look for (SDM 25.11.5).
    pub(super) fn set_revision(&mut self, revision: u32) {
        let [a, b, c, d, ..] = self.bytes_mut();
        [*a, *b, *c, *d] = revision.to_le_bytes();
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Err(error) = frames().free(self.0, PageSize::Size4K, Owner::Virt) {
            log::error!("vmx: frame {} was not taken back: {error:?}", self.0);
        }
    }
}
