//! Device calls: how an access to a claimed port or address reaches the one who claimed it.
//!
//! Each vCPU of the domain has a [`Slot`] in the claim's Memory object, by its index. The kernel writes the slot, signals the
//! claim's event, and lets the vCPU wait; the claimer reads the slot and answers with `DEVICE_COMPLETE`. The kernel reads from
//! the slot nothing but the data of an INS, and that once.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What is claimed: `Claim::kind`.
pub mod kind {
    /// I/O ports.
    pub const PORTS: u32 = 1;
    /// Guest-physical addresses without memory.
    pub const MMIO: u32 = 2;
    /// Interrupt acknowledge cycles, which ask for the vector when [`super::line::INTR`] interrupts a vCPU: the claim's range is 0, 1.
    pub const ACKNOWLEDGE: u32 = 3;
}

/// Lines of `DEVICE_LINE`.
pub mod line {
    /// Inputs of the I/O APIC, from 0.
    pub const PINS: u32 = 24;
    /// The output of a pair of 8259A, which is wired to LINT0 of the local APICs. While it is active and a vCPU takes it, the
    /// claimer of [`super::kind::ACKNOWLEDGE`] is asked for the vector.
    pub const INTR: u32 = 24;
}

/// A claim: `DEVICE_CLAIM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Claim {
    /// [`kind`].
    pub kind: u32,
    /// Handle of the Memory object that holds the slots: populated, with READ and WRITE, [`Slot`] times the domain's most vCPUs long.
    pub memory: u32,
    /// Handle of the event, with SIGNAL.
    pub event: u32,
    /// 0.
    pub reserved: u32,
    /// First port or address.
    pub first: u64,
    /// How many ports or bytes. At least 1, and addresses in multiples of 4 KiB.
    pub length: u64,
    /// Comes back in each slot.
    pub tag: u64,
}

/// Most bytes of data of a string access.
pub const DATA: usize = 64;

/// An access that waits for the claimer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    /// Counts the accesses of this vCPU, from 1. Written last.
    pub sequence: u64,
    /// The claim's tag.
    pub tag: u64,
    /// Port or guest-physical address.
    pub address: u64,
    /// What is written; for a read 0.
    pub value: u64,
    /// Bytes of each element: 1, 2, 4, or 8 (addresses only).
    pub size: u32,
    /// [`kind`].
    pub kind: u32,
    /// 1: a write (OUT); 0: a read (IN).
    pub write: u32,
    /// Elements: 1, or of a string access as many as `data` holds.
    pub count: u32,
    /// Elements of a string access: written by the kernel for OUTS, read by it for INS after `DEVICE_COMPLETE`. Where the access is none,
    /// the first eight bytes are 0, and the rest means nothing.
    pub data: [u8; DATA],
    /// 0.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Claim>() == 40);
const _: () = assert!(size_of::<Slot>() == 128);
