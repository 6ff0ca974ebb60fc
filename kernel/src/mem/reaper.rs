//! The end of Memory objects: their frames go back to the machine in bounded steps.
//!
//! Freeing a frame zeroes it, and an object may have a terabyte of them. So whoever drops the last reference to one hands its
//! frames over here, and CPUs free them piece by piece: between slices, when they idle, and when somebody waits for it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

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

/// What waits to be freed: first in, first out.
struct Queue {
    /// What came in since the others were taken out, the latest first.
    coming: Option<Box<Pages>>,
    /// What is freed next, the earliest first.
    going: Option<Box<Pages>>,
}

static WAITING: Mutex<Queue> = Mutex::new(Queue {
    coming: None,
    going: None,
});
/// Held by the CPU that frees: one at a time, so that they are freed in their order.
static FREEING: Mutex<()> = Mutex::new(());
/// How many objects have been handed over, and how many have been freed to the end.
static HANDED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

impl Queue {
    fn push(list: &mut Option<Box<Pages>>, mut pages: Box<Pages>) {
        pages.next = list.take();
        *list = Some(pages);
    }

    fn pop(list: &mut Option<Box<Pages>>) -> Option<Box<Pages>> {
        let mut first = list.take()?;
        *list = first.next.take();
        Some(first)
    }

    /// Takes the one that came first.
    fn first(&mut self) -> Option<Box<Pages>> {
        if self.going.is_none() {
            while let Some(pages) = Self::pop(&mut self.coming) {
                Self::push(&mut self.going, pages);
            }
        }
        Self::pop(&mut self.going)
    }
}

/// Takes over the frames of an object that nobody can reach any more.
pub fn hand_over(pages: Box<Pages>) {
    let mut waiting = WAITING.lock();
    HANDED.fetch_add(1, Ordering::AcqRel);
    Queue::push(&mut waiting.coming, pages);
}

/// Stands for all that has been handed over so far: see [`is_past`].
pub fn ticket() -> u64 {
    HANDED.load(Ordering::Acquire)
}

/// Whether all that had been handed over when the ticket was drawn is freed.
pub fn is_past(ticket: u64) -> bool {
    FREED.load(Ordering::Acquire) >= ticket
}

/// Whether nothing is left to be freed.
pub fn is_done() -> bool {
    is_past(ticket())
}

/// Frees a bounded number of frames; whether it did. Not, where there are none, or another CPU is at it.
#[inline(always)]
pub fn step() -> bool {
    !is_done() && free_some()
}

#[inline(never)]
fn free_some() -> bool {
    let Some(_only) = FREEING.try_lock() else {
        return false;
    };
    let first = WAITING.lock().first();
    let Some(mut first) = first else {
        return false;
    };
    if first.free_some() {
        Queue::push(&mut WAITING.lock().going, first);
    } else {
        drop(first);
        FREED.fetch_add(1, Ordering::AcqRel);
    }
    true
}
