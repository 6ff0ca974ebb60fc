//! Nested page tables: guest-physical to host-physical, built by one builder for Intel's EPT and AMD's NPT.
//!
//! The formats differ in the bits of an entry only, so [`EntryFormat`] is all a vendor adds. Everything here is pure: the
//! tables are reached through [`TableFrames`], which on the host is a vector and in the kernel the physical map.
//!
//! Nothing here touches a TLB. What a CPU may still have cached travels in an [`Unflushed`] token, and the tables it
//! names are freed only by passing that token on after the flush. A table never changes from one mapping to another
//! without such a flush between.

mod domain;
mod ept;
mod npt;
mod table;
mod unflushed;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

use core::sync::atomic::AtomicU64;

use bitflags::bitflags;

use super::addr::{Gpa, Hpa};

pub use domain::DomainTables;
pub use ept::Ept;
pub use npt::Npt;
pub use table::NestedTable;
pub use unflushed::{Unflushed, lost_flushes};

/// Guest-physical addresses a four-level table translates: 48 bits.
pub const GPA_LIMIT: u64 = 1 << 48;

bitflags! {
    /// What a guest may do with a page. A mapping always has [`Access::READ`]: EPT faults on write without read as a
    /// misconfiguration (SDM 29.3.3.1), execute-only is optional there, and NPT has no bit to deny reading.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Data reads.
        const READ = 1;
        /// Data writes.
        const WRITE = 2;
        /// Instruction fetches.
        const EXEC = 4;
    }
}

/// A memory type, in the encoding that MTRRs and EPT entries share (SDM 13.11, table 13-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// Strong uncacheable.
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    WriteBack = 6,
}

impl MemoryType {
    /// The type with this encoding; `None` for the reserved ones.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }
}

/// The sizes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl PageSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }

    /// The size in 4 KiB frames.
    pub const fn frames(self) -> u64 {
        self.bytes() >> 12
    }

    /// The size of a leaf at `level` (1 is the lowest); `None` where no leaf can be.
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
}

/// The bits of an entry. Levels count from 1 (4 KiB leaves) to 4 (the root).
pub trait EntryFormat {
    /// The name of the format, for messages.
    const NAME: &'static str;
    /// The bits that the CPU sets by itself in a leaf: accessed and dirty.
    const ACCESSED: u64;
    /// The bit that the CPU sets when it writes through a leaf.
    const DIRTY: u64;

    /// The entry that points to the next lower table at `hpa`. It allows everything; leaves restrict.
    fn table(hpa: Hpa) -> u64;
    /// The entry that maps a page of `size` at `hpa`.
    fn leaf(hpa: Hpa, access: Access, memory_type: MemoryType, size: PageSize) -> u64;
    /// Whether the entry maps anything or points to a table.
    fn is_present(entry: u64) -> bool;
    /// Whether a present entry at `level` maps a page instead of pointing to a table.
    fn is_leaf(entry: u64, level: u8) -> bool;
    /// The page or table that a present entry names.
    fn address(entry: u64) -> Hpa;
    /// What a leaf allows.
    fn access(entry: u64) -> Access;
    /// The memory type a leaf asks for.
    fn memory_type(entry: u64) -> MemoryType;

    /// Whether a CPU has used the leaf.
    fn accessed(entry: u64) -> bool {
        entry & Self::ACCESSED != 0
    }
    /// Whether a CPU has written through the leaf.
    fn dirty(entry: u64) -> bool {
        entry & Self::DIRTY != 0
    }
}

/// Where the frames of tables come from, and how their entries are reached.
pub trait TableFrames {
    /// A zeroed frame, or `None` where there is none left. Never the frame at address 0.
    fn allocate(&mut self) -> Option<Hpa>;
    /// Takes back a frame that `allocate` gave.
    fn free(&mut self, table: Hpa);
    /// Entry `index` (0 to 511) of the table at `table`, a frame that `allocate` gave. CPUs set bits in it by
    /// themselves.
    fn entry(&self, table: Hpa, index: usize) -> &AtomicU64;
    /// Width of the machine's physical addresses in bits; a mapping beyond it is refused.
    fn physical_bits(&self) -> u32 {
        52
    }
}

/// Why a change of a nested page table was refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or the length is no multiple of 4 KiB, or the length is zero.
    Misaligned,
    /// The range ends beyond 48 bits of guest-physical or the machine's width of host-physical addresses.
    OutOfRange,
    /// The access asked for cannot be expressed: it lacks [`Access::READ`].
    Access,
    /// A page of the range is mapped already; the address is that of the mapping or of the part that collides.
    AlreadyMapped(Gpa),
    /// A page of the range is not mapped.
    NotMapped(Gpa),
    /// No frame was left for a table.
    OutOfFrames,
}

/// No frame was left for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

/// What a guest-physical address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The host-physical address, the offset in the page included.
    pub hpa: Hpa,
    /// What the guest may do there.
    pub access: Access,
    /// The size of the page that maps it.
    pub size: PageSize,
    /// The memory type the entry asks for.
    pub memory_type: MemoryType,
}
