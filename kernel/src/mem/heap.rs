//! The kernel's heap: a fixed size, taken from the frames once at boot.
//!
//! It is for what the kernel itself needs, and never grows. Allocation and freeing take constant time (TLSF), however many
//! objects there are. Who allocates on behalf of a guest uses fallible forms (`try_reserve`, [`super::shared::Ref::new`]) and
//! turns a lack into a status; elsewhere a lack is a panic that says so.
#![allow(
    unsafe_code,
    reason = "a global allocator is unsafe by its trait, and its memory comes from the frames"
)]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use rlsf::Tlsf;
use spin::Mutex;

use super::frames::{Owner, frames};
use super::{PageSize, faults, phys};

/// The least size in bytes.
const LEAST: u64 = 16 << 20;
/// The greatest.
const MOST: u64 = 256 << 20;
/// What part of the machine's memory it is, between these.
const PART: u64 = 64;

/// 26 classes of sizes by powers of two from 32 bytes on, 16 steps each: blocks up to 2 GiB.
type Blocks = Tlsf<'static, u32, u16, 26, 16>;

/// The heap behind a lock. Not for NMI or machine-check handlers.
struct KernelHeap {
    blocks: Mutex<Blocks>,
    size: AtomicUsize,
    used: AtomicUsize,
}

impl KernelHeap {
    const fn new() -> Self {
        Self {
            blocks: Mutex::new(Blocks::new()),
            size: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// Gives it memory.
    ///
    /// # Safety
    /// The memory is the heap's for ever.
    unsafe fn add(&self, start: NonNull<u8>, bytes: usize) {
        let block = NonNull::slice_from_raw_parts(start, bytes);
        // SAFETY: by the caller's promise.
        let added = unsafe { self.blocks.lock().insert_free_block_ptr(block) };
        self.size
            .fetch_add(added.map_or(0, |added| added.get()), Ordering::Relaxed);
    }
}

// SAFETY: the inner allocator gives out disjoint blocks of memory that is its own for ever, each at least as large
// and aligned as asked, and the lock makes one call at a time of it.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if faults::strikes() {
            return core::ptr::null_mut();
        }
        let block = self.blocks.lock().allocate(layout);
        if block.is_some() {
            self.used.fetch_add(layout.size(), Ordering::Relaxed);
        }
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller promises that this block came from `alloc` with this layout.
            unsafe { self.blocks.lock().deallocate(block, layout.align()) };
            self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        }
    }
}

#[cfg_attr(all(not(test), target_os = "none"), global_allocator)]
static HEAP: KernelHeap = KernelHeap::new();

/// The size in bytes for a machine with so much memory.
pub fn size_for(memory: u64) -> u64 {
    (memory / PART)
        .clamp(LEAST, MOST)
        .next_multiple_of(PageSize::Size2M.bytes())
}

/// Gives the heap `bytes` (rounded up to 2 MiB), contiguous. Call once, after [`super::frames::init`].
///
/// # Panics
/// Where so much memory is not free in one run: the kernel cannot work then.
pub fn init(bytes: u64) {
    let blocks = bytes.div_ceil(PageSize::Size2M.bytes()).max(1) as usize;
    let Ok(hpa) = frames().allocate_blocks(blocks, Owner::KernelHeap) else {
        panic!("no {blocks} blocks of 2 MiB in a row are free for the kernel's heap");
    };
    let size = blocks * PageSize::Size2M.bytes() as usize;
    if let Some(start) = NonNull::new(phys::pointer(hpa)) {
        // SAFETY: the frames are the heap's from now on, and mapped as long as the kernel runs.
        unsafe { HEAP.add(start, size) };
    }
}

/// Bytes there are, the allocator's own bookkeeping not included.
pub fn size() -> usize {
    HEAP.size.load(Ordering::Relaxed)
}

/// Bytes in use, as they were asked for.
pub fn used() -> usize {
    HEAP.used.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_is_a_null_and_what_is_freed_can_be_had_again() {
        let heap = KernelHeap::new();
        let memory = Box::leak(vec![0u64; 4096].into_boxed_slice());
        let start = NonNull::new(memory.as_mut_ptr().cast()).unwrap();
        // SAFETY: the memory is leaked, so it is the heap's for ever.
        unsafe { heap.add(start, 32768) };
        let layout = Layout::from_size_align(20000, 4096).unwrap();
        // SAFETY: the layout is not empty, and blocks are given back with it.
        unsafe {
            assert!(
                heap.alloc(Layout::from_size_align(40000, 8).unwrap())
                    .is_null()
            );
            let block = heap.alloc(layout);
            assert!(!block.is_null() && (block as usize).is_multiple_of(4096));
            assert_eq!(heap.used.load(Ordering::Relaxed), 20000);
            assert!(heap.alloc(layout).is_null());
            heap.dealloc(block, layout);
            assert_eq!(heap.used.load(Ordering::Relaxed), 0);
            assert!(!heap.alloc(layout).is_null());
        }
    }

    #[test]
    fn the_size_follows_the_machines_memory() {
        assert_eq!(size_for(1 << 30), 16 << 20);
        assert_eq!(size_for(4 << 30), 64 << 20);
        assert_eq!(size_for(1 << 40), 256 << 20);
    }
}
