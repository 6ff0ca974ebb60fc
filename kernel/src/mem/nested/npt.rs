//! The entries of AMD's nested page tables: the host's long-mode format (APM2 5.3, 15.25).
//!
//! Every nested access counts as a user access (APM2 15.25.5), so each entry has U/S set. The memory type goes through the
//! host's PAT as reset leaves it (PAT0 to PAT3: WB, WT, UC-, UC; APM2 7.8.1), which has neither WC nor WP: both become
//! UC. Little depends on it, as the host's MTRRs apply to system-physical addresses by hardware (APM2 15.25.8): what they
//! say is uncacheable stays so whatever an entry asks for.

use super::{Access, EntryFormat, MemoryType, PageSize};
use crate::mem::addr::Hpa;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Nested page tables. EFER.NXE must be set on the host, or bit 63 is reserved.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

impl EntryFormat for Npt {
    const NAME: &'static str = "NPT";
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;

    fn table(hpa: Hpa) -> u64 {
        (hpa.get() & ADDRESS) | PRESENT | WRITE | USER
    }

    fn leaf(hpa: Hpa, access: Access, memory_type: MemoryType, size: PageSize) -> u64 {
        let mut entry = (hpa.get() & ADDRESS) | PRESENT | USER;
        entry |= match memory_type {
            MemoryType::WriteBack => 0,
            MemoryType::WriteThrough => WRITE_THROUGH,
            MemoryType::Uncacheable | MemoryType::WriteCombining | MemoryType::WriteProtected => {
                CACHE_DISABLE | WRITE_THROUGH
            }
        };
        if access.contains(Access::WRITE) {
            entry |= WRITE;
        }
        if !access.contains(Access::EXEC) {
            entry |= NO_EXECUTE;
        }
        if size != PageSize::Size4K {
            entry |= PAGE;
        }
        entry
    }

    fn is_present(entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn is_leaf(entry: u64, level: u8) -> bool {
        level == 1 || (level <= 3 && entry & PAGE != 0)
    }

    fn address(entry: u64) -> Hpa {
        Hpa::new(entry & ADDRESS)
    }

    fn access(entry: u64) -> Access {
        let mut access = Access::READ;
        access.set(Access::WRITE, entry & WRITE != 0);
        access.set(Access::EXEC, entry & NO_EXECUTE == 0);
        access
    }

    fn memory_type(entry: u64) -> MemoryType {
        match entry & (WRITE_THROUGH | CACHE_DISABLE) {
            0 => MemoryType::WriteBack,
            WRITE_THROUGH => MemoryType::WriteThrough,
            _ => MemoryType::Uncacheable,
        }
    }
}
