//! The machine's page frames: who owns each, and which are free.
//!
//! A frame has exactly one state. It is handed out zeroed, but for those of the kernel's heap, and whoever gives it back must
//! name the owner it has: a second free, or one by somebody else, is an error that is logged and changes nothing. Allocation
//! and freeing take bounded work: at most one 2 MiB block is zeroed and at most two blocks split or joined, 512 parts each.
//!
//! The lock is never taken by an NMI or machine-check handler: it may interrupt the holder.

mod allocator;
mod bitset;
mod global;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

use super::addr::Hpa;
use super::nested::PageSize;

pub use allocator::Frames;
pub use global::{KernelFrames, PhysicalMap, frames, init};

/// Who has a frame. Domain identifiers are below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Owner {
    /// The records of the frame allocator itself.
    FrameRecords,
    /// The kernel's heap.
    KernelHeap,
    /// A kernel stack.
    Stack,
    /// A page table of the kernel's own address space.
    PageTable,
    /// A nested page table of a domain.
    NestedTable {
        /// The domain.
        domain: u32,
    },
    /// What the CPU's virtualisation works on: VMXON region, VMCS, VMCB, host save area, bitmaps, XSAVE areas.
    Virt,
    /// Memory of a guest.
    GuestRam {
        /// The domain.
        domain: u32,
    },
    /// A boot module.
    Module,
    /// The real-mode code that starts the other CPUs.
    Trampoline,
    /// Anything else the kernel keeps: per-CPU areas, rings, tables.
    Kernel,
}

/// The kinds of state, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Not usable: firmware's, devices', absent, or what the loader left for good.
    Reserved = 0,
    /// Free.
    Free,
    /// See [`Owner::FrameRecords`].
    FrameRecords,
    /// See [`Owner::KernelHeap`].
    KernelHeap,
    /// See [`Owner::Stack`].
    Stack,
    /// See [`Owner::PageTable`].
    PageTable,
    /// See [`Owner::NestedTable`].
    NestedTable,
    /// See [`Owner::Virt`].
    Virt,
    /// See [`Owner::GuestRam`].
    GuestRam,
    /// See [`Owner::Module`].
    Module,
    /// See [`Owner::Trampoline`].
    Trampoline,
    /// See [`Owner::Kernel`].
    Kernel,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Reserved,
        Self::Free,
        Self::FrameRecords,
        Self::KernelHeap,
        Self::Stack,
        Self::PageTable,
        Self::NestedTable,
        Self::Virt,
        Self::GuestRam,
        Self::Module,
        Self::Trampoline,
        Self::Kernel,
    ];
}

/// The state of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not usable.
    Reserved,
    /// Free.
    Free,
    /// Somebody's.
    Owned(Owner),
}

/// Why there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateError {
    /// No free memory of that size (and below that bound).
    OutOfMemory,
    /// A free 1 GiB page is being zeroed, 2 MiB a call: ask again.
    Again,
    /// The owner's domain identifier is 2^24 or more, or the count of frames is not 1 to 512.
    Invalid,
}

/// Why a frame was not taken back. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The address is no multiple of the size.
    Misaligned,
    /// There is no such frame.
    OutOfRange,
    /// The frame's state is another one: freed before, reserved, or somebody else's.
    NotOwned(State),
    /// The run was allocated in smaller pieces, or is a 1 GiB page, which goes back in pieces.
    WrongSize,
}

/// Zeroes memory for the allocator.
pub trait Zero {
    /// Fills the page of `size` at `hpa` with zeroes.
    fn zero(&mut self, hpa: Hpa, size: PageSize);
}
