//! The end of Memory objects: their frames go back to the machine in bounded steps.
//!
//! Freeing a frame zeroes it, and an object may have a terabyte of them. So whoever drops the last reference to one hands its
//! frames over here, and CPUs free them piece by piece: between slices, when they idle, and when somebody waits for it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use super::frames::{Owner, frames};
use super::{Charge, Hpa, PageSize};

/// Frames of 4 KiB that one step frees; of 2 MiB it frees one.
const STEP: usize = 64;

/// The frames of a Memory object: first pages of 2 MiB, then of 4 KiB.
#[derive(Debug)]
pub struct Pages {
    /// Their addresses.
    pub list: Vec<Hpa>,
    /// How many of the list, from its start on, are of 2 MiB.
    pub large: usize,
    /// Whose they are.
    pub owner: Owner,
    /// What they are charged to.
    pub charge: Charge,
    next: Option<Box<Pages>>,
}

impl Pages {
    /// None yet; room for `count`, of which `large` are of 2 MiB. `None` where the heap is exhausted.
    pub fn new(count: usize, large: usize, owner: Owner, charge: Charge) -> Option<Self> {
        let mut list = Vec::new();
        list.try_reserve_exact(count).ok()?;
        Some(Self {
            list,
            large,
            owner,
            charge,
            next: None,
        })
    }

    /// The size of the page with this index.
    pub fn size_of(&self, index: usize) -> PageSize {
        if index < self.large {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        }
    }

    /// Frees a bounded number of pages; whether some are left.
    fn free_some(&mut self) -> bool {
        for _ in 0..STEP {
            let Some(page) = self.list.pop() else {
                return false;
            };
            let size = self.size_of(self.list.len());
            // A refusal is logged by the allocator; the frame then stays with its owner.
            let _ = frames().free(page, size, self.owner);
            if size != PageSize::Size4K {
                break;
            }
        }
        !self.list.is_empty()
    }
}

/// What waits to be freed.
static WAITING: Mutex<Option<Box<Pages>>> = Mutex::new(None);
/// How many objects have been handed over and not been freed to the end.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Takes over the frames of an object that nobody can reach any more.
pub fn hand_over(mut pages: Box<Pages>) {
    LEFT.fetch_add(1, Ordering::Relaxed);
    let mut waiting = WAITING.lock();
    pages.next = waiting.take();
    *waiting = Some(pages);
}

/// Whether nothing is left to be freed.
pub fn is_done() -> bool {
    LEFT.load(Ordering::Relaxed) == 0
}

/// Frees a bounded number of frames; whether there may be more to do.
pub fn step() -> bool {
    if is_done() {
        return false;
    }
    let mut first = {
        let mut waiting = WAITING.lock();
        let Some(mut first) = waiting.take() else {
            return false;
        };
        *waiting = first.next.take();
        first
    };
    if first.free_some() {
        let mut waiting = WAITING.lock();
        first.next = waiting.take();
        *waiting = Some(first);
    } else {
        drop(first);
        LEFT.fetch_sub(1, Ordering::Relaxed);
    }
    true
}
