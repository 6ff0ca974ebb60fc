//! The physical map: the one place that turns a host-physical address into a pointer.
//!
//! The loader maps all physical memory at one offset. Nothing here makes a reference: what lies behind a physical address
//! may be a guest's, a device's or another CPU's. Accesses beyond the map are refused or panic; they never fault.
#![allow(unsafe_code, reason = "raw access to physical memory")]

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::addr::Hpa;

/// The loader maps at least this much, memory or not: local APIC, I/O APIC and firmware tables lie there.
const MIN_LIMIT: u64 = 1 << 32;

static OFFSET: AtomicU64 = AtomicU64::new(0);
/// Addresses below are mapped; 0 as long as the offset is unknown.
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Says where the loader has mapped physical memory, the first 4 GiB at least. Done by [`crate::mem::frames::init`].
pub fn set_offset(offset: u64) {
    OFFSET.store(offset, Ordering::Relaxed);
    LIMIT.fetch_max(MIN_LIMIT, Ordering::Release);
}

/// Says that the map reaches up to `limit` bytes at least.
pub fn raise_limit(limit: u64) {
    LIMIT.fetch_max(limit, Ordering::Release);
}

/// The virtual address of physical address 0.
pub fn offset() -> u64 {
    OFFSET.load(Ordering::Relaxed)
}

/// A pointer to `len` bytes at `hpa`, or `None` where they are not all mapped. For addresses that come from outside.
pub fn checked_pointer(hpa: Hpa, len: usize) -> Option<*mut u8> {
    let limit = LIMIT.load(Ordering::Acquire);
    let end = hpa.checked_add(len as u64)?;
    (end.get() <= limit).then(|| hpa.get().wrapping_add(offset()) as *mut u8)
}

/// A pointer to the byte at `hpa`. Making one is harmless; using it needs the reasons that any raw pointer needs.
///
/// # Panics
/// Where the address is beyond the map: a bug of the kernel's own. Addresses from outside go to [`checked_pointer`].
pub fn pointer(hpa: Hpa) -> *mut u8 {
    checked(hpa, 1)
}

fn checked(hpa: Hpa, len: usize) -> *mut u8 {
    match checked_pointer(hpa, len) {
        Some(pointer) => pointer,
        None => panic!("{len} bytes at {hpa} are beyond the physical map"),
    }
}

/// Reads a plain value, with one volatile access.
///
/// # Safety
/// `hpa` is aligned for `T`, what lies there is a valid `T`, and reading it has no effect that matters.
pub unsafe fn read<T: Copy>(hpa: Hpa) -> T {
    // SAFETY: mapped, as just checked; the rest is the caller's promise.
    unsafe { checked(hpa, size_of::<T>()).cast::<T>().read_volatile() }
}

/// Writes a plain value, with one volatile access.
///
/// # Safety
/// `hpa` is aligned for `T`, and the memory is the caller's to change.
pub unsafe fn write<T: Copy>(hpa: Hpa, value: T) {
    // SAFETY: mapped, as just checked; the rest is the caller's promise.
    unsafe {
        checked(hpa, size_of::<T>())
            .cast::<T>()
            .write_volatile(value)
    }
}

/// Fills `len` bytes with zeroes.
///
/// # Safety
/// The memory is the caller's to change, and nobody holds a reference into it.
pub unsafe fn zero(hpa: Hpa, len: usize) {
    // SAFETY: mapped, as just checked; the rest is the caller's promise.
    unsafe { checked(hpa, len).write_bytes(0, len) }
}

/// Copies `source` to `hpa`.
///
/// # Safety
/// The memory is the caller's to change, nobody else uses it meanwhile, and `source` does not lie in it.
pub unsafe fn copy_to(hpa: Hpa, source: &[u8]) {
    // SAFETY: mapped, as just checked, and apart from `source` as the caller promises.
    unsafe {
        core::ptr::copy_nonoverlapping(source.as_ptr(), checked(hpa, source.len()), source.len())
    }
}

/// Copies from memory that others may be changing (a guest's) into `target`; `false` where it is beyond the map. Each
/// byte is read once, aligned 64-bit words as a whole.
///
/// # Safety
/// The memory is ordinary RAM to which no Rust reference exists.
pub unsafe fn load_shared(hpa: Hpa, target: &mut [u8]) -> bool {
    let Some(from) = checked_pointer(hpa, target.len()) else {
        return false;
    };
    let (head, rest) = target.split_at_mut(from.align_offset(8).min(target.len()));
    let (words, tail) = rest.as_chunks_mut::<8>();
    let byte = |at: *mut u8| {
        // SAFETY: a mapped byte; only atomic accesses are made to it, as the caller promises.
        unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Relaxed)
    };
    let mut at = from;
    for value in head {
        *value = byte(at);
        at = at.wrapping_add(1);
    }
    for word in words {
        // SAFETY: eight mapped bytes, aligned; as above.
        let source = unsafe { AtomicU64::from_ptr(at.cast()) };
        *word = source.load(Ordering::Relaxed).to_le_bytes();
        at = at.wrapping_add(8);
    }
    for value in tail {
        *value = byte(at);
        at = at.wrapping_add(1);
    }
    true
}

/// Copies `source` to memory that others may be reading or changing (a guest's); `false` where it is beyond the map. Each
/// byte is written once, aligned 64-bit words as a whole.
///
/// # Safety
/// The memory is ordinary RAM to which no Rust reference exists.
pub unsafe fn store_shared(hpa: Hpa, source: &[u8]) -> bool {
    let Some(to) = checked_pointer(hpa, source.len()) else {
        return false;
    };
    let (head, rest) = source.split_at(to.align_offset(8).min(source.len()));
    let (words, tail) = rest.as_chunks::<8>();
    let byte = |at: *mut u8, value: u8| {
        // SAFETY: a mapped byte; only atomic accesses are made to it, as the caller promises.
        unsafe { AtomicU8::from_ptr(at) }.store(value, Ordering::Relaxed);
    };
    let mut at = to;
    for &value in head {
        byte(at, value);
        at = at.wrapping_add(1);
    }
    for word in words {
        // SAFETY: eight mapped bytes, aligned; as above.
        let target = unsafe { AtomicU64::from_ptr(at.cast()) };
        target.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        at = at.wrapping_add(8);
    }
    for &value in tail {
        byte(at, value);
        at = at.wrapping_add(1);
    }
    true
}

/// Writes one aligned 64-bit word after another to memory that others may be reading or changing (a guest's), the last one so that
/// who sees it sees everything written before it; `false` where it is beyond the map or not aligned.
///
/// # Safety
/// The memory is ordinary RAM to which no Rust reference exists.
#[inline]
pub unsafe fn store_words<const N: usize>(hpa: Hpa, words: &[u64; N]) -> bool {
    let Some(to) = checked_pointer(hpa, N * 8).filter(|to| to.addr().is_multiple_of(8)) else {
        return false;
    };
    let mut at = to.cast::<u64>();
    for word in words {
        // SAFETY: eight mapped bytes, aligned; only atomic accesses are made to them, as the caller promises.
        unsafe { AtomicU64::from_ptr(at) }.store(*word, Ordering::Release);
        at = at.wrapping_add(1);
    }
    true
}

/// Replaces the aligned 64-bit word at `hpa` if it is `old`, atomically; `None` where it is beyond the map or not aligned,
/// else the value that was there.
///
/// # Safety
/// The memory is ordinary RAM to which no Rust reference exists.
pub unsafe fn compare_exchange_shared(hpa: Hpa, old: u64, new: u64) -> Option<u64> {
    let at = checked_pointer(hpa, 8).filter(|_| hpa.is_aligned(8))?;
    // SAFETY: eight mapped bytes, aligned; only atomic accesses are made to them, as the caller promises.
    let word = unsafe { AtomicU64::from_ptr(at.cast()) };
    Some(
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .unwrap_or_else(|seen| seen),
    )
}
