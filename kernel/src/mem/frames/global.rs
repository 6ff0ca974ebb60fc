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

#[cfg(test)]
mod tests {
    use bootloader_api::info::MemoryRegionKind;

    use super::*;
    use crate::mem::guest::{GuestMemory, GuestMemoryError, MachineMemory};
    use crate::mem::nested::{Access, DomainTables, Ept, NestedTable};
    use crate::mem::{Amounts, Budget, Gpa, MemoryType, Ref, heap};

    const MIB: usize = 1 << 20;
    const SIZE: usize = 32 * MIB;

    /// The one test of the global state: a piece of this process's memory serves as the machine's.
    #[test]
    fn the_machines_memory_from_map_to_guest() {
        // Aligned to 2 MiB, so that "physical" and virtual alignment agree; full of what firmware leaves behind.
        let memory = Box::leak(vec![0xa5u8; SIZE + 2 * MIB].into_boxed_slice());
        let offset = (memory.as_mut_ptr() as u64).next_multiple_of(2 * MIB as u64);
        let region = |start, end, kind| MemoryRegion { start, end, kind };
        let regions = [
            region(0x10_0000, SIZE as u64, MemoryRegionKind::Usable),
            region(0x40_0000, 0x40_2000, MemoryRegionKind::Bootloader),
            region(0, 0x9_f000, MemoryRegionKind::Usable),
        ];
        init(&regions, offset);
        let usable = (SIZE as u64 - 0x10_0000) / PAGE_SIZE - 2 + 0x9e;
        let records = frames().count(Kind::FrameRecords);
        assert_eq!(
            records,
            (KernelFrames::storage_words(SIZE as u64) as u64 * 8).div_ceil(PAGE_SIZE)
        );
        assert_eq!(frames().free_frames(), usable - records);
        assert_eq!(frames().state(Hpa::new(0x40_1000)), Some(State::Reserved));

        heap::init(3 << 20);
        assert_eq!(
            frames().count(Kind::KernelHeap),
            1024,
            "the budget in whole blocks"
        );
        assert_eq!(heap::used(), 0);
        // The allocator keeps some bytes at the ends of its memory.
        assert!((4 * MIB - 4096..=4 * MIB).contains(&heap::size()));

        let owner = Owner::GuestRam { domain: 3 };
        let page = frames().allocate(PageSize::Size4K, owner).unwrap();
        let budget = Ref::new(Budget::whole(Amounts::frames(8))).unwrap();
        let mut tables = DomainTables::new(3, budget.clone());
        let mut table = NestedTable::<Ept>::new(&mut tables).unwrap();
        let write_back = |_, _| Some(MemoryType::WriteBack);
        let (gpa, rw) = (Gpa::new(0x5000), Access::READ | Access::WRITE);
        table
            .map(
                &mut tables,
                gpa,
                page,
                PAGE_SIZE,
                rw,
                &write_back,
                PageSize::Size1G,
            )
            .unwrap();
        assert_eq!(frames().count(Kind::NestedTable), 4);
        assert_eq!(budget.amounts().0, Amounts::frames(4));

        // SAFETY: the table maps one page, to which there is no reference.
        let machine = unsafe { MachineMemory::new() };
        let guest = GuestMemory::new(&table, &tables, &machine);
        assert_eq!(
            guest.read::<[u8; 4096]>(gpa),
            Ok([0; 4096]),
            "what was there before is gone"
        );
        let bytes: [u8; 37] = core::array::from_fn(|i| i as u8 + 1);
        for start in 0..9 {
            let at = Gpa::new(0x5000 + start);
            guest.write(at, &bytes).unwrap();
            assert_eq!(guest.read::<[u8; 37]>(at), Ok(bytes));
            assert_eq!(guest.read::<u8>(Gpa::new(at.get() + 37)), Ok(0));
        }
        guest.write(gpa, &7u64).unwrap();
        assert_eq!(guest.compare_exchange(gpa, 6, 8), Ok(7));
        assert_eq!(guest.compare_exchange(gpa, 7, 9), Ok(7));
        assert_eq!(guest.read::<u64>(gpa), Ok(9));
        let last = Gpa::new(0x5fff);
        assert_eq!(
            guest.read::<u16>(last),
            Err(GuestMemoryError::NotMapped(Gpa::new(0x6000)))
        );

        table
            .unmap(&mut tables, gpa, PAGE_SIZE)
            .unwrap()
            .flushed(&mut tables);
        frames().free(page, PageSize::Size4K, owner).unwrap();
        table.destroy(&mut tables);
        assert_eq!(budget.amounts().0, Amounts::default());
        assert_eq!(frames().free_frames(), usable - records - 1024);
        // SAFETY: the page is free, and within the buffer above.
        let word = unsafe { phys::read::<u64>(page) };
        assert_eq!(word, 0, "zeroed when it was freed");
        assert!(phys::checked_pointer(Hpa::new(u64::MAX), 2).is_none());
        assert!(phys::checked_pointer(Hpa::new((1 << 32) - 1), 2).is_none());
        assert!(phys::checked_pointer(Hpa::new((1 << 32) - 2), 2).is_some());
    }
}
