//! The heap: a first part in the control guest's RAM, and more behind it in Memory objects of its own. Those are reserved at the start, so
//! that nobody else can have taken the memory when it is needed, but get their frames, which the kernel clears, only then.

#![allow(unsafe_code, reason = "gives the allocator its memory")]

use core::alloc::Layout;
use core::ptr::NonNull;

use plinth_rt::abi::call::access;
use plinth_rt::object::{Domain, Memory, Result};
use talc::TalcLock;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

/// Bytes of the first part.
const FIRST: usize = 4 << 20;
/// Bytes of each part behind it: large pages.
const PART: u64 = 4 << 20;
/// How many there are.
const PARTS: usize = 11;
/// Bytes of the address space that all parts but the first take.
pub const RESERVED: u64 = PART * PARTS as u64;
/// Bytes of the heap.
pub const SIZE: usize = FIRST + RESERVED as usize;

static mut HEAP: [u8; FIRST] = [0; FIRST];

#[global_allocator]
static ALLOCATOR: TalcLock<spin::Mutex<()>, Parts> = TalcLock::new(Parts {
    is_first_claimed: false,
    own: None,
    at: 0,
    memories: [None; PARTS],
    end: None,
});

/// Where the allocator finds more.
#[derive(Debug)]
struct Parts {
    is_first_claimed: bool,
    /// The control guest.
    own: Option<Domain>,
    /// Where the next part is to be.
    at: u64,
    /// The parts that it may still have.
    memories: [Option<Memory>; PARTS],
    /// The end of those that it has.
    end: Option<NonNull<u8>>,
}

// SAFETY: the pointer is to memory that is the allocator's, whoever has that.
unsafe impl Send for Parts {}

// SAFETY: it makes calls of the kernel and allocates nothing. Its memory is given away once: the array, which nobody else names, and what is
// mapped where `reserve` was promised that nothing else is.
unsafe impl Source for Parts {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _: Layout) -> core::result::Result<(), ()> {
        if !core::mem::replace(&mut talc.source.is_first_claimed, true) {
            // SAFETY: see above.
            let end = unsafe { talc.claim((&raw mut HEAP).cast(), FIRST) };
            return end.map(drop).ok_or(());
        }
        let start = talc.source.at as *mut u8;
        talc.source.map_next().ok_or(())?;
        let end = talc.source.at as *mut u8;
        // SAFETY: see above; the part before ends where this one begins.
        talc.source.end = unsafe {
            match talc.source.end {
                Some(before) => Some(talc.extend(before, end)),
                None => talc.claim(start, PART as usize),
            }
        };
        Ok(())
    }
}

impl Parts {
    /// Gives the next part its frames, and maps it.
    fn map_next(&mut self) -> Option<()> {
        let own = self.own?;
        let next = self.memories.iter_mut().find(|memory| memory.is_some())?;
        let memory = (*next)?;
        memory.populate().ok()?;
        own.map(self.at, memory, 0, PART, access::READ | access::WRITE)
            .ok()?;
        *next = None;
        // The mapping keeps it.
        let _ = memory.any().close();
        self.at += PART;
        Some(())
    }
}

/// Reserves what comes behind the first part, for [`RESERVED`] bytes from `at` on, where nothing is and nothing else will be.
///
/// # Errors
/// Those of making a Memory object: what was reserved before stays so.
pub fn reserve(own: Domain, at: u64) -> Result<()> {
    let mut allocator = ALLOCATOR.lock();
    let parts = &mut allocator.source;
    parts.own = Some(own);
    parts.at = at;
    for memory in &mut parts.memories {
        *memory = Some(own.reserve_memory(PART)?);
    }
    Ok(())
}

/// What is left alone for the shell and the tables, whatever the domains write.
const RESERVE: usize = 4 << 20;

/// Whether there is memory for more domains and more of their output.
pub fn is_ample() -> bool {
    free() > RESERVE
}

/// Bytes that are not allocated. They may be in pieces.
pub fn free() -> usize {
    SIZE.saturating_sub(ALLOCATOR.lock().counters().allocated_bytes)
}
