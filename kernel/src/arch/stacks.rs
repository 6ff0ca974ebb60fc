//! Which stacks exist, so that a backtrace can tell a frame pointer from a damaged one. Stacks are never freed.

#![allow(
    unsafe_code,
    reason = "walks stacks by frame pointers that were checked against the known ones"
)]

use crate::mem::PAGE_SIZE;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many stacks are remembered; a backtrace stops short on those beyond.
const MAX_STACKS: usize = 4096 + 8;

static STACKS: [(AtomicU64, AtomicU64); MAX_STACKS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_STACKS];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Remembers the mapped stack from `bottom` (its lowest address) to `top`.
pub fn remember(bottom: u64, top: u64) {
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some((low, high)) = STACKS.get(index) {
        low.store(bottom, Ordering::Relaxed);
        high.store(top, Ordering::Release);
    }
}

/// Whether the `len` bytes at `address` lie on one known stack.
pub fn holds(address: u64, len: u64) -> bool {
    let count = COUNT.load(Ordering::Relaxed).min(MAX_STACKS);
    let Some(end) = address.checked_add(len) else {
        return false;
    };
    STACKS.iter().take(count).any(|(low, high)| {
        end <= high.load(Ordering::Acquire) && address >= low.load(Ordering::Relaxed)
    })
}

/// Whether the address lies in the page below a known stack: on the kernel's stacks that is the guard page.
pub fn is_guard(address: u64) -> bool {
    all().any(|(low, _)| (low.saturating_sub(PAGE_SIZE)..low).contains(&address))
}

/// All known stacks: each one's lowest address and its end.
pub fn all() -> impl Iterator<Item = (u64, u64)> {
    let count = COUNT.load(Ordering::Relaxed).min(MAX_STACKS);
    STACKS.iter().take(count).map(|(low, high)| {
        let top = high.load(Ordering::Acquire);
        (low.load(Ordering::Relaxed), top)
    })
}

/// The return addresses that are found by following frame pointers from `rbp` on, the innermost first. Every pointer is checked to
/// lie on a known stack before it is followed, and the walk only ever goes up: damaged frames end it, they cannot make it fault
/// or loop.
pub fn callers(rbp: u64) -> impl Iterator<Item = u64> {
    let mut next = Some(rbp);
    core::iter::from_fn(move || {
        let rbp = next.take()?;
        if !rbp.is_multiple_of(8) || !holds(rbp, 16) {
            return None;
        }
        // SAFETY: the 16 bytes at `rbp` lie on a mapped stack, as just checked, and are aligned.
        let (caller, address) = unsafe {
            (
                (rbp as *const u64).read(),
                (rbp as *const u64).add(1).read(),
            )
        };
        next = (caller > rbp).then_some(caller);
        (address != 0).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_wholly_on_a_stack_are_held() {
        remember(0x1000, 0x3000);
        assert!(holds(0x1000, 16));
        assert!(holds(0x2ff0, 16));
        assert!(!holds(0x2ff8, 16));
        assert!(!holds(0xff8, 16));
        assert!(!holds(u64::MAX - 7, 16));
        assert!(is_guard(0xfff) && is_guard(0));
        assert!(!is_guard(0x1000) && !is_guard(0x3000));
    }
}
