//! Linear addresses: the map of the low 1 GiB that the guest starts with, and a window of 512 pages of 4 KiB above it that
//! tests map as they like.

#![allow(unsafe_code, reason = "editing the page tables that are in use")]

use crate::Local;
use crate::cpu;

/// Entry bits (SDM vol. 3 table 5-20).
#[expect(missing_docs, reason = "the bits' names are their documentation")]
pub mod flag {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Present, writable, for CPL 3 too.
    pub const ALL: u64 = PRESENT | WRITE | USER;
}

/// The first address of the window: 1 GiB.
pub const WINDOW: u64 = 1 << 30;
/// Pages in the window.
pub const WINDOW_PAGES: usize = 512;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static DIRECTORY: Local<Table> = Local::raw(Table([0; 512]));
static PAGES: Local<Table> = Local::raw(Table([0; 512]));
static OPEN: Local<bool> = Local::new(false);

/// Entry `index` of the table at a guest-physical address of the identity map.
fn read(table: u64, index: usize) -> u64 {
    // SAFETY: the callers pass tables that the CPU itself walks, or this module's own; volatile, as the CPU sets bits.
    unsafe { (table as *const u64).add(index & 511).read_volatile() }
}

fn write(table: u64, index: usize, entry: u64) {
    // SAFETY: as in `read`; the map of the guest's own memory is never taken away.
    unsafe { (table as *mut u64).add(index & 511).write_volatile(entry) }
}

fn root() -> u64 {
    cpu::cr3().unwrap_or(0) & ADDRESS
}

/// Lets CPL 3 into the identity map, and hangs the window into the tables. Done once.
pub fn open_to_user() {
    if OPEN.get() {
        return;
    }
    let root = root();
    write(root, 0, read(root, 0) | flag::USER);
    let pointers = read(root, 0) & ADDRESS;
    write(pointers, 0, read(pointers, 0) | flag::USER);
    let directory = read(pointers, 0) & ADDRESS;
    for index in 0..512 {
        let entry = read(directory, index);
        if entry & flag::PRESENT != 0 {
            write(directory, index, entry | flag::USER);
        }
    }
    write(
        DIRECTORY.address() as u64,
        0,
        PAGES.address() as u64 | flag::ALL,
    );
    write(pointers, 1, DIRECTORY.address() as u64 | flag::ALL);
    flush();
    OPEN.set(true);
}

/// Forgets all cached translations that are not global.
pub fn flush() {
    if let Ok(cr3) = cpu::cr3() {
        // The same value that is in use cannot fault.
        let _ = cpu::set_cr3(cr3);
    }
}

/// Maps page `index` of the window to the frame of `target` with these flags, and returns its address.
pub fn map(index: usize, target: u64, flags: u64) -> u64 {
    open_to_user();
    set_entry(index, target & ADDRESS | flags);
    WINDOW + (index as u64 & 511) * PAGE
}

/// The window's page-table entry of page `index`.
pub fn entry(index: usize) -> u64 {
    read(PAGES.address() as u64, index)
}

/// Sets the window's page-table entry of page `index` and leaves the cached translation alone.
pub fn replace_entry(index: usize, entry: u64) {
    write(PAGES.address() as u64, index, entry);
}

/// Sets the window's page-table entry of page `index`.
pub fn set_entry(index: usize, entry: u64) {
    replace_entry(index, entry);
    cpu::invlpg(WINDOW + (index as u64 & 511) * PAGE);
}
