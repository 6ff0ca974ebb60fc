//! The heap: a fixed part of the control guest's RAM.

#![allow(unsafe_code, reason = "gives the allocator its memory")]

use talc::TalcLock;
use talc::source::Claim;

/// Bytes of the heap. RAM is 64 MiB; the rest is for the program and its stack.
pub const SIZE: usize = 48 << 20;

static mut HEAP: [u8; SIZE] = [0; SIZE];

#[global_allocator]
static ALLOCATOR: TalcLock<spin::Mutex<()>, Claim> =
    // SAFETY: nothing but the allocator ever touches the array.
    TalcLock::new(unsafe { Claim::array(&raw mut HEAP) });

/// Bytes that are not allocated. They may be in pieces.
pub fn free() -> usize {
    SIZE.saturating_sub(ALLOCATOR.lock().counters().allocated_bytes)
}
