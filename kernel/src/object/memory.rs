//! Memory objects: runs of memory that can be mapped into several domains.
#![allow(unsafe_code, reason = "the memory behind an object")]

use alloc::boxed::Box;

use plinth_abi::{MemoryInfo, Status};
use spin::Mutex;

use crate::mem::frames::{AllocateError, Owner, frames};
use crate::mem::reaper::{self, Pages};
use crate::mem::{Amounts, Budget, Charge, Hpa, PAGE_SIZE, PageSize, Ref, phys, try_box};

/// Largest object in bytes: 1 TiB.
pub const LARGEST: u64 = 1 << 40;
/// 4 KiB frames that one step of [`Memory::populate`] allocates; of 2 MiB it allocates one.
const STEP: usize = 64;

/// A run of memory. Its frames are handed over to the reaper with the last reference.
#[derive(Debug)]
pub struct Memory {
    bytes: u64,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    /// Frames that are this object's; there from its making to its drop.
    Owned(Mutex<Option<Box<Pages>>>),
    /// Device memory, or what the loader left: nobody's frames.
    Physical { start: Hpa, _charge: Option<Charge> },
}

/// A part of an object that is contiguous in the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where it begins.
    pub hpa: Hpa,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Memory {
    /// What one costs in kernel heap, its frames not included.
    const fn cost(pages: u64) -> u64 {
        Ref::<Self>::COST + (size_of::<Pages>() as u64 + 32) + pages * size_of::<Hpa>() as u64
    }

    /// An object of `bytes` bytes (a multiple of 4 KiB, at most [`LARGEST`]), without frames yet; frames and heap are charged
    /// to the budget of the domain with this number.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn new(bytes: u64, domain: u32, budget: &Ref<Budget>) -> Result<Ref<Self>, Status> {
        let large = bytes / PageSize::Size2M.bytes();
        let small = bytes % PageSize::Size2M.bytes() / PAGE_SIZE;
        let frames = bytes / PAGE_SIZE;
        let charge = Charge::new(
            budget,
            Amounts {
                frames,
                memory_frames: frames,
                heap: Self::cost(large + small),
            },
        )?;
        let owner = Owner::GuestRam { domain };
        let pages = Pages::new((large + small) as usize, large as usize, owner, charge)
            .ok_or(Status::NO_MEMORY)?;
        let pages = try_box(pages).map_err(|_| Status::NO_MEMORY)?;
        Ref::new(Self {
            bytes,
            backing: Backing::Owned(Mutex::new(Some(pages))),
        })
        .map_err(|_| Status::NO_MEMORY)
    }

    /// Memory that is there already and nobody's to free.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn physical(start: Hpa, bytes: u64, budget: &Ref<Budget>) -> Result<Ref<Self>, Status> {
        let charge = Charge::new(budget, Amounts::heap(Ref::<Self>::COST))?;
        Ref::new(Self {
            bytes,
            backing: Backing::Physical {
                start,
                _charge: Some(charge),
            },
        })
        .map_err(|_| Status::NO_MEMORY)
    }

    /// Its size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What `MEMORY_INFO` tells.
    pub fn info(&self) -> MemoryInfo {
        MemoryInfo {
            bytes: self.bytes,
            populated: self.populated(),
            is_physical: u64::from(matches!(self.backing, Backing::Physical { .. })),
        }
    }

    /// Whether it has all its frames.
    pub fn is_populated(&self) -> bool {
        self.populated() == self.bytes
    }

    fn populated(&self) -> u64 {
        match &self.backing {
            Backing::Owned(pages) => pages.lock().as_ref().map_or(0, |pages| {
                let large = pages.list.len().min(pages.large) as u64;
                large * PageSize::Size2M.bytes() + (pages.list.len() as u64 - large) * PAGE_SIZE
            }),
            Backing::Physical { .. } => self.bytes,
        }
    }

    /// Gives it more of its frames, zeroed: a bounded number. The bytes that have frames now.
    ///
    /// # Errors
    /// `NO_MEMORY`; `AGAIN` where frames are on their way back to the machine; `WRONG_STATE` for device memory.
    pub fn populate(&self) -> Result<u64, Status> {
        let Backing::Owned(pages) = &self.backing else {
            return Err(Status::WRONG_STATE);
        };
        let mut pages = pages.lock();
        let Some(pages) = pages.as_mut() else {
            return Err(Status::WRONG_STATE);
        };
        for _ in 0..STEP {
            if pages.list.len() == pages.list.capacity() {
                break;
            }
            let size = pages.size_of(pages.list.len());
            let allocated = frames().allocate(size, pages.owner);
            match allocated {
                // There is room: the list was made for all of them.
                Ok(page) => pages.list.push(page),
                // What is on its way back will do.
                Err(AllocateError::OutOfMemory) if !reaper::is_done() => return Err(Status::AGAIN),
                Err(_) => return Err(Status::NO_MEMORY),
            }
            if size != PageSize::Size4K {
                break;
            }
        }
        let large = pages.list.len().min(pages.large) as u64;
        Ok(large * PageSize::Size2M.bytes() + (pages.list.len() as u64 - large) * PAGE_SIZE)
    }

    /// The contiguous part from `offset` (below the size) on; `None` where there are no frames.
    pub fn run_at(&self, offset: u64) -> Option<Run> {
        let left = self.bytes.checked_sub(offset).filter(|&left| left != 0)?;
        match &self.backing {
            Backing::Physical { start, .. } => Some(Run {
                hpa: start.checked_add(offset)?,
                bytes: left,
            }),
            Backing::Owned(pages) => {
                let pages = pages.lock();
                let pages = pages.as_ref()?;
                let large = PageSize::Size2M.bytes();
                let (index, inside, size) = if offset / large < pages.large as u64 {
                    (offset / large, offset % large, large)
                } else {
                    let behind = offset - pages.large as u64 * large;
                    (
                        pages.large as u64 + behind / PAGE_SIZE,
                        behind % PAGE_SIZE,
                        PAGE_SIZE,
                    )
                };
                let page = *pages.list.get(usize::try_from(index).ok()?)?;
                Some(Run {
                    hpa: page.checked_add(inside)?,
                    bytes: size - inside,
                })
            }
        }
    }
}

impl Memory {
    /// Copies `bytes` to `offset`, within one page.
    ///
    /// # Errors
    /// `BAD_ADDRESS` where there are no such frames.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Status> {
        let run = self
            .run_at(offset)
            .filter(|run| run.bytes >= bytes.len() as u64)
            .ok_or(Status::BAD_ADDRESS)?;
        // SAFETY: to the content of a Memory object no reference is ever made, and its frames are its own.
        let written = unsafe { phys::store_shared(run.hpa, bytes) };
        written.then_some(()).ok_or(Status::BAD_ADDRESS)
    }
}

/// A page of a Memory object, at hand for as long as this is.
pub struct MemoryPage {
    start: Hpa,
    /// Keeps the frame.
    _memory: Ref<Memory>,
}

impl Ref<Memory> {
    /// The page at `offset`, a multiple of [`PAGE_SIZE`]; `None` where there are no frames.
    pub fn page(&self, offset: u64) -> Option<MemoryPage> {
        let run = self.run_at(offset).filter(|run| run.bytes >= PAGE_SIZE)?;
        Some(MemoryPage {
            start: run.hpa,
            _memory: self.clone(),
        })
    }
}

impl MemoryPage {
    /// Writes words from `offset` on, a multiple of eight. Who sees one sees what was written before it.
    ///
    /// # Errors
    /// `BAD_ADDRESS` where they do not lie in the page, or it is no memory that the kernel can reach.
    #[inline]
    pub fn store<const N: usize>(&self, offset: usize, words: &[u64; N]) -> Result<(), Status> {
        let at = self.place(offset, size_of_val(words))?;
        // SAFETY: as in `Memory::write`.
        let stored = unsafe { phys::store_words(at, words) };
        stored.then_some(()).ok_or(Status::BAD_ADDRESS)
    }

    /// Copies from `offset` on.
    ///
    /// # Errors
    /// As [`MemoryPage::store`].
    pub fn load(&self, offset: usize, out: &mut [u8]) -> Result<(), Status> {
        let at = self.place(offset, out.len())?;
        // SAFETY: as in `Memory::write`.
        let loaded = unsafe { phys::load_shared(at, out) };
        loaded.then_some(()).ok_or(Status::BAD_ADDRESS)
    }

    /// Where so many bytes from `offset` on lie.
    fn place(&self, offset: usize, length: usize) -> Result<Hpa, Status> {
        offset
            .checked_add(length)
            .filter(|&end| end as u64 <= PAGE_SIZE)
            .and_then(|_| self.start.checked_add(offset as u64))
            .ok_or(Status::BAD_ADDRESS)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Backing::Owned(pages) = &self.backing
            && let Some(pages) = pages.lock().take()
        {
            reaper::hand_over(pages);
        }
    }
}
