//! The kernel's heap: a fixed budget, taken from the frames once at boot.
//!
//! It is for what the kernel itself needs, and never grows. Who allocates on behalf of a guest uses the fallible forms
//! (`try_reserve`, `Box::try_new`'s kin) and turns a lack into a status; elsewhere a lack is a panic that says so.
#![allow(
    unsafe_code,
    reason = "a global allocator is unsafe by its trait, and its memory comes from the frames"
)]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use spin::Mutex;

use super::frames::{Owner, frames};
use super::{PageSize, phys};

/// The usual budget in bytes.
pub const DEFAULT_BUDGET: usize = 16 << 20;

/// The heap behind a lock. Not for NMI or machine-check handlers.
struct KernelHeap(Mutex<Heap>);

impl KernelHeap {
    const fn new() -> Self {
        Self(Mutex::new(Heap::empty()))
    }
}

// SAFETY: the inner allocator gives out disjoint blocks of memory that is its own for ever, each at least as large
// and aligned as asked, and the lock makes one call at a time of it.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller promises that this block came from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}

#[cfg_attr(all(not(test), target_os = "none"), global_allocator)]
static HEAP: KernelHeap = KernelHeap::new();

/// Gives the heap `budget` bytes (rounded up to 2 MiB), contiguous. Call once, after [`super::frames::init`].
///
/// # Panics
/// Where so much memory is not free in one run, or when called again: the kernel cannot work then.
pub fn init(budget: usize) {
    let blocks = budget.div_ceil(PageSize::Size2M.bytes() as usize).max(1);
    let Ok(hpa) = frames().allocate_blocks(blocks, Owner::KernelHeap) else {
        panic!("no {blocks} blocks of 2 MiB in a row are free for the kernel's heap");
    };
    let size = blocks * PageSize::Size2M.bytes() as usize;
    let mut heap = HEAP.0.lock();
    assert_eq!(heap.size(), 0, "the heap is set up once");
    // SAFETY: the frames are the heap's from now on, and mapped as long as the kernel runs; the heap is empty.
    unsafe { heap.init(phys::pointer(hpa), size) }
}

/// Bytes in use, bookkeeping included.
pub fn used() -> usize {
    HEAP.0.lock().used()
}

/// Bytes still free, perhaps in many pieces.
pub fn free() -> usize {
    HEAP.0.lock().free()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_is_a_null_and_what_is_freed_can_be_had_again() {
        let heap = KernelHeap::new();
        let memory = Box::leak(vec![0u64; 4096].into_boxed_slice());
        // SAFETY: the memory is leaked, so it is the heap's for ever.
        unsafe { heap.0.lock().init(memory.as_mut_ptr().cast(), 32768) };
        let layout = Layout::from_size_align(20000, 4096).unwrap();
        // SAFETY: the layout is not empty, and blocks are given back with it.
        unsafe {
            assert!(
                heap.alloc(Layout::from_size_align(40000, 8).unwrap())
                    .is_null()
            );
            let block = heap.alloc(layout);
            assert!(!block.is_null() && (block as usize).is_multiple_of(4096));
            assert!(heap.alloc(layout).is_null());
            heap.dealloc(block, layout);
            assert_eq!(heap.0.lock().used(), 0);
            assert!(!heap.alloc(layout).is_null());
        }
    }
}
