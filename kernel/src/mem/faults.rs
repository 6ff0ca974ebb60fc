//! Allocations that fail on purpose. The kernel's tests of itself arm this; on a machine that was not asked for tests it never strikes.

use core::sync::atomic::{AtomicU64, Ordering};

/// Allocations up to the one that fails, itself included; 0: none does.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Lets the `n`-th allocation of heap or frames from now on fail, whichever CPU makes it; 0: none. How many
/// were left to the one that was to fail before this; 0: it has failed, or none was to.
pub(crate) fn arm(n: u64) -> u64 {
    LEFT.swap(n, Ordering::Relaxed)
}

/// Whether this allocation is to fail. Called once for each.
#[inline(always)]
pub(super) fn strikes() -> bool {
    LEFT.load(Ordering::Relaxed) != 0 && LEFT.fetch_sub(1, Ordering::Relaxed) == 1
}
