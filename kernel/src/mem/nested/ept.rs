//! The entries of Intel's extended page tables (SDM 29.3.2, tables 29-1 to 29-7).

use super::{Access, EntryFormat, MemoryType, PageSize};
use crate::mem::addr::Hpa;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const TYPE_SHIFT: u32 = 3;
const TYPE: u64 = 0b111 << TYPE_SHIFT;
const PAGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Extended page tables. The leaf's type is combined with the guest's PAT (bit 6, "ignore PAT", stays clear): guests have
/// a PAT of their own.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

impl EntryFormat for Ept {
    const NAME: &'static str = "EPT";
    const ACCESSED: u64 = ACCESSED;
    const DIRTY: u64 = DIRTY;

    fn table(hpa: Hpa) -> u64 {
        (hpa.get() & ADDRESS) | READ | WRITE | EXEC
    }

    fn leaf(hpa: Hpa, access: Access, memory_type: MemoryType, size: PageSize) -> u64 {
        let mut entry = hpa.get() & ADDRESS | (memory_type as u64) << TYPE_SHIFT;
        if access.contains(Access::READ) {
            entry |= READ;
        }
        if access.contains(Access::WRITE) {
            entry |= WRITE;
        }
        if access.contains(Access::EXEC) {
            entry |= EXEC;
        }
        if size != PageSize::Size4K {
            entry |= PAGE;
        }
        entry
    }

    fn is_present(entry: u64) -> bool {
        entry & (READ | WRITE | EXEC) != 0
    }

    fn is_leaf(entry: u64, level: u8) -> bool {
        level == 1 || (level <= 3 && entry & PAGE != 0)
    }

    fn address(entry: u64) -> Hpa {
        Hpa::new(entry & ADDRESS)
    }

    fn access(entry: u64) -> Access {
        Access::from_bits_truncate((entry & (READ | WRITE | EXEC)) as u8)
    }

    fn memory_type(entry: u64) -> MemoryType {
        MemoryType::from_bits(((entry & TYPE) >> TYPE_SHIFT) as u8)
            .unwrap_or(MemoryType::Uncacheable)
    }
}
