//! All that the live page tables map, read from the tables themselves.

#![allow(unsafe_code, reason = "reads page tables")]

use core::arch::asm;

use crate::mem::{Hpa, phys};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page that is mapped, of whatever size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) writable: bool,
    pub(super) executable: bool,
    pub(super) user: bool,
}

/// Shows every mapping of the calling CPU's page tables to `see`, until it gives an error.
pub(super) fn each<E>(mut see: impl FnMut(Mapping) -> Result<(), E>) -> Result<(), E> {
    let root: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
    walk(root & ADDRESS, 4, 0, WRITABLE | USER, &mut see)
}

/// `allowed` are the rights that the levels above leave (SDM vol. 3 5.6): what one level forbids is forbidden.
fn walk<E>(
    table: u64,
    level: u32,
    start: u64,
    allowed: u64,
    see: &mut impl FnMut(Mapping) -> Result<(), E>,
) -> Result<(), E> {
    let bytes = 1 << (3 + 9 * level);
    for index in 0..512 {
        // SAFETY: the address of a page table that the CPU uses; an entry is 8 bytes.
        let entry: u64 = unsafe { phys::read(Hpa::new(table + index * 8)) };
        if entry & PRESENT == 0 {
            continue;
        }
        let mut address = start + index * bytes;
        if level == 4 && index >= 256 {
            address |= 0xffff_0000_0000_0000;
        }
        let rights = allowed & entry & (WRITABLE | USER) | (allowed | entry) & NO_EXECUTE;
        if level > 1 && (level == 4 || entry & LARGE == 0) {
            walk(entry & ADDRESS, level - 1, address, rights, see)?;
            continue;
        }
        see(Mapping {
            start: address,
            bytes,
            writable: rights & WRITABLE != 0,
            executable: rights & NO_EXECUTE == 0,
            user: rights & USER != 0,
        })?;
    }
    Ok(())
}

/// The mapping that holds `address`.
pub(super) fn of(address: u64) -> Option<Mapping> {
    each(|mapping| {
        if address >= mapping.start && address - mapping.start < mapping.bytes {
            return Err(mapping);
        }
        Ok(())
    })
    .err()
}
