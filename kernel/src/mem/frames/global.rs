//! The one allocator of the machine.
#![allow(
    unsafe_code,
    reason = "the allocator's records live in memory carved out of the memory map"
)]

use core::ops::DerefMut;

use bootloader_api::info::MemoryRegion;
use spin::{Mutex, Once};

use super::{Frames, Kind, Owner, State, Zero};
use crate::mem::addr::{Hpa, PAGE_SIZE};
use crate::mem::nested::PageSize;
use crate::mem::{phys, regions};

/// Zeroes frames through the physical map.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalMap;

impl Zero for PhysicalMap {
    fn zero(&mut self, hpa: Hpa, size: PageSize) {
        // SAFETY: the allocator asks for it only while nobody owns the page.
        unsafe { phys::zero(hpa, size.bytes() as usize) }
    }
}

/// The allocator of the machine's memory.
pub type KernelFrames = Frames<'static, PhysicalMap>;

static FRAMES: Once<Mutex<KernelFrames>> = Once::new();

/// Sets up the physical map and the allocator from the loader's memory map. Call once, on the boot CPU, before anything
/// else here.
///
/// # Panics
/// Where no run of usable memory can hold the allocator's records, 0.1 % of the memory: the machine cannot be used then.
pub fn init(memory_regions: &[MemoryRegion], physical_memory_offset: u64) {
    phys::set_offset(physical_memory_offset);
    phys::raise_limit(regions::end(memory_regions));
    FRAMES.call_once(|| {
        let limit = regions::usable(memory_regions).map(|run| run.end.get()).max().unwrap_or(0);
        let words = KernelFrames::storage_words(limit);
        let bytes = (words as u64 * 8).next_multiple_of(PAGE_SIZE);
        // From the end of the highest run that is large enough: low memory is worth more.
        let Some(home) = regions::usable(memory_regions).filter(|run| run.len() >= bytes).last() else {
            panic!("no usable run of memory holds the {bytes} bytes of frame records for {limit:#x} bytes");
        };
        let at = Hpa::new(home.end.get() - bytes);
        // SAFETY: the loader says this memory is usable, so nobody else has it; it lies within the physical map, is
        // aligned to a frame, holds `words` words, and is given to nobody else below. Any content is a valid u64.
        let storage = unsafe { core::slice::from_raw_parts_mut(phys::pointer(at).cast::<u64>(), words) };
        let Some(mut frames) = Frames::new(storage, limit, PhysicalMap) else {
            panic!("the storage was measured to fit");
        };
        for run in regions::usable(memory_regions) {
            frames.add_around(run.start, run.end, at, bytes);
        }
        Mutex::new(frames)
    });
    let frames = frames();
    log::info!(
        "memory: {} MiB free, {} KiB of frame records",
        frames.free_frames() >> 8,
        frames.count(Kind::FrameRecords) << 2
    );
}

impl KernelFrames {
    /// Adds a run, but keeps the records' own frames out of it and says whose they are.
    fn add_around(&mut self, start: Hpa, end: Hpa, records: Hpa, bytes: u64) {
        if start <= records && records < end {
            self.add(start, records);
            self.adopt(records, bytes, Owner::FrameRecords);
            debug_assert_eq!(self.state(records), Some(State::Owned(Owner::FrameRecords)));
        } else {
            self.add(start, end);
        }
    }
}

/// The allocator, locked. Interrupts are off in the kernel, so nobody on this CPU can want it meanwhile; a handler of
/// NMIs or machine checks must not call this.
///
/// # Panics
/// Before [`init`].
pub fn frames() -> impl DerefMut<Target = KernelFrames> {
    FRAMES
        .get()
        .expect("the frame allocator is set up first")
        .lock()
}
