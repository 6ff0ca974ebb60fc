//! The token that stands between a change of a nested page table and the reuse of its frames.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::TableFrames;
use crate::mem::addr::Hpa;

/// Tables in a chain, linked through their own entry 0. A link is a frame's address with the low twelve bits clear, which
/// both formats read as not present: a CPU that still walks such a table finds nothing.
#[derive(Debug, Default)]
pub(super) struct Chain {
    head: Hpa,
    count: usize,
}

impl Chain {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Puts a table with no present entries in front.
    pub(super) fn push(&mut self, frames: &impl TableFrames, table: Hpa) {
        frames
            .entry(table, 0)
            .store(self.head.get(), Ordering::Release);
        self.head = table;
        self.count += 1;
    }

    /// Takes the first table, all of its entries zero as far as they were when it was put in.
    pub(super) fn pop(&mut self, frames: &impl TableFrames) -> Option<Hpa> {
        self.count = self.count.checked_sub(1)?;
        let table = self.head;
        self.head = Hpa::new(frames.entry(table, 0).swap(0, Ordering::AcqRel));
        Some(table)
    }

    pub(super) fn free_all(mut self, frames: &mut impl TableFrames) {
        while let Some(table) = self.pop(frames) {
            frames.free(table);
        }
    }
}

/// Tokens dropped without [`Unflushed::flushed`], since the start. Each is a bug, and its frames are lost.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// How many [`Unflushed`] tokens were dropped unflushed: zero, unless the kernel has a bug.
pub fn lost_flushes() -> usize {
    LOST.load(Ordering::Relaxed)
}

/// A nested page table was changed and CPUs may still use what it said. Flush it on all CPUs that run or ran the guest
/// (INVEPT, or a new ASID), then call [`Unflushed::flushed`]; only after that may frames that were mapped be freed.
///
/// Dropping the token instead leaks the tables it carries: a leak is harmless where reuse would not be.
#[must_use = "the TLBs must be flushed, and then the token told so"]
#[derive(Debug)]
pub struct Unflushed {
    tables: Chain,
}

impl Unflushed {
    pub(super) fn new(tables: Chain) -> Self {
        Self { tables }
    }

    /// The number of table frames that wait for the flush.
    pub fn table_frames(&self) -> usize {
        self.tables.count()
    }

    /// One token for both, so that several changes share a flush.
    pub fn join(mut self, mut other: Self, frames: &impl TableFrames) -> Self {
        while let Some(table) = other.tables.pop(frames) {
            self.tables.push(frames, table);
        }
        core::mem::forget(other);
        self
    }

    /// Says that every CPU has been flushed since the change, and frees the tables.
    pub fn flushed(mut self, frames: &mut impl TableFrames) {
        core::mem::take(&mut self.tables).free_all(frames);
        core::mem::forget(self);
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        LOST.fetch_add(1, Ordering::Relaxed);
        log::error!(
            "a nested page table change was never flushed; {} table frames are lost",
            self.tables.count()
        );
        debug_assert!(
            false,
            "an unflushed change of a nested page table was dropped"
        );
    }
}
