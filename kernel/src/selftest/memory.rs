//! The kernel's address space, its heap, and the frames.

#![allow(unsafe_code, reason = "looks into frames")]

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{check, mailbox, mappings, tests};
use crate::arch::gdt::IST_STACKS;
use crate::arch::{mtrr, paging, stacks};
use crate::mem::frames::{FreeError, Owner, State, frames};
use crate::mem::{Hpa, Hva, MemoryType, PAGE_SIZE, PageSize, heap, phys};

tests!("memory":
    below_every_stack_is_a_guard,
    nothing_is_writable_and_executable,
    no_page_is_the_users,
    code_is_read_only,
    constants_are_read_only,
    data_is_not_executable,
    the_physical_map_is_not_executable,
    page_zero_is_not_mapped,
    the_heap_gives_back_what_it_took,
    frames_are_counted_exactly,
    freed_frames_come_back_zeroed,
    a_wrong_owner_cannot_free,
    a_frame_is_freed_once,
    all_cpus_allocate_at_once,
    ram_is_write_back,
);

/// The owner of what is allocated here.
const MINE: Owner = Owner::Kernel;

fn below_every_stack_is_a_guard() -> super::Outcome {
    let mut count = 0;
    for (bottom, top) in stacks::all() {
        for address in (bottom..top).step_by(PAGE_SIZE as usize) {
            check!(
                paging::translate(Hva::new(address)).is_some(),
                "{address:#x} of the stack up to {top:#x} is not mapped"
            );
        }
        let guard = bottom - 1;
        check!(
            paging::translate(Hva::new(guard)).is_none(),
            "the byte at {guard:#x} below a stack is mapped"
        );
        count += 1;
    }
    let expected = crate::arch::cpu::cpus().len() * (1 + IST_STACKS);
    check!(
        count >= expected,
        "{count} stacks are known, there should be {expected}"
    );
    Ok(())
}

/// Refuses the first mapping that is `bad`.
fn none(bad: impl Fn(&mappings::Mapping) -> bool) -> super::Outcome {
    let mut count = 0_u64;
    mappings::each(|mapping| {
        count += 1;
        check!(!bad(&mapping), "{mapping:x?}");
        Ok(())
    })?;
    check!(count > 100, "only {count} mappings were found");
    Ok(())
}

fn nothing_is_writable_and_executable() -> super::Outcome {
    none(|mapping| mapping.writable && mapping.executable)
}

fn no_page_is_the_users() -> super::Outcome {
    none(|mapping| mapping.user)
}

fn mapping_of(address: u64) -> Result<mappings::Mapping, String> {
    mappings::of(address).ok_or_else(|| alloc::format!("{address:#x} is not mapped"))
}

fn code_is_read_only() -> super::Outcome {
    let mapping = mapping_of(code_is_read_only as *const () as u64)?;
    check!(mapping.executable && !mapping.writable, "{mapping:x?}");
    Ok(())
}

fn constants_are_read_only() -> super::Outcome {
    static CONSTANT: [u64; 4] = [1, 2, 3, 4];
    let mapping = mapping_of(&raw const CONSTANT as u64)?;
    check!(!mapping.executable && !mapping.writable, "{mapping:x?}");
    Ok(())
}

fn data_is_not_executable() -> super::Outcome {
    use core::sync::atomic::AtomicU64;
    static DATA: AtomicU64 = AtomicU64::new(1);
    let stack = 0_u64;
    let boxed = Box::new(0_u64);
    for address in [
        &raw const DATA as u64,
        &raw const stack as u64,
        &raw const *boxed as u64,
    ] {
        let mapping = mapping_of(address)?;
        check!(!mapping.executable && mapping.writable, "{mapping:x?}");
    }
    Ok(())
}

fn the_physical_map_is_not_executable() -> super::Outcome {
    let offset = phys::offset();
    let code = mapping_of(code_is_read_only as *const () as u64)?;
    check!(
        !(code.start..code.start + code.bytes).contains(&offset),
        "it begins in the code"
    );
    // Code is seen through it, too, at its physical address.
    let Some(hpa) = paging::translate(Hva::new(code.start)) else {
        return Err("code is not mapped".into());
    };
    let mapping = mapping_of(offset + hpa.get())?;
    check!(!mapping.executable && mapping.writable, "{mapping:x?}");
    Ok(())
}

fn page_zero_is_not_mapped() -> super::Outcome {
    let found = mappings::of(0);
    check!(found.is_none(), "{found:x?}");
    Ok(())
}

fn the_heap_gives_back_what_it_took() -> super::Outcome {
    let before = (heap::used(), heap::size());
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    for size in [1, 8, 100, 4096, 70_000, 1 << 20] {
        blocks.push(vec![0x5a; size]);
    }
    let held: usize = blocks.iter().map(Vec::len).sum();
    let during = heap::used() - before.0;
    check!(
        (held..held + 4096).contains(&during),
        "{held} bytes are held, but {during} counted"
    );
    // In another order than they were taken.
    blocks.swap_remove(1);
    blocks.remove(2);
    drop(blocks);
    let after = (heap::used(), heap::size());
    check!(after == before, "{before:?} used and free, then {after:?}");
    Ok(())
}

const SIZES: [(PageSize, u64); 2] = [(PageSize::Size4K, 1), (PageSize::Size2M, 512)];

fn frames_are_counted_exactly() -> super::Outcome {
    for (size, count) in SIZES {
        let before = frames().free_frames();
        let hpa = allocate(size)?;
        let during = frames().free_frames();
        let state = frames().state(hpa);
        let freed = frames().free(hpa, size, MINE);
        let after = frames().free_frames();
        check!(hpa.is_aligned(size.bytes()), "{size:?} at {hpa}");
        check!(
            before - during == count,
            "{size:?} took {}",
            before - during
        );
        check!(state == Some(State::Owned(MINE)), "its state is {state:?}");
        check!(
            freed.is_ok() && after == before,
            "{freed:?}, {before} free before and {after} after"
        );
    }
    Ok(())
}

fn allocate(size: PageSize) -> Result<Hpa, String> {
    let result = frames().allocate(size, MINE);
    result.map_err(|why| alloc::format!("no {size:?}: {why:?}"))
}

fn freed_frames_come_back_zeroed() -> super::Outcome {
    for (size, _) in SIZES {
        let words = || (0..size.bytes()).step_by(8);
        let first = allocate(size)?;
        for offset in words() {
            // SAFETY: the frame is this test's.
            unsafe { phys::write(Hpa::new(first.get() + offset), u64::MAX) };
        }
        let _ = frames().free(first, size, MINE);
        // The allocator may give out another one first.
        let mut held = Vec::new();
        let mut dirty = None;
        for _ in 0..8 {
            let hpa = allocate(size)?;
            held.push(hpa);
            // SAFETY: as above.
            let word = |offset| unsafe { phys::read::<u64>(Hpa::new(hpa.get() + offset)) };
            dirty = dirty.or_else(|| words().find(|&offset| word(offset) != 0));
        }
        let again = held.contains(&first);
        for hpa in held {
            let _ = frames().free(hpa, size, MINE);
        }
        check!(dirty.is_none(), "{size:?} is dirty at {dirty:x?}");
        check!(again, "{size:?} at {first} did not come back");
    }
    Ok(())
}

fn a_wrong_owner_cannot_free() -> super::Outcome {
    let hpa = allocate(PageSize::Size4K)?;
    let before = frames().free_frames();
    let refused = frames().free(hpa, PageSize::Size4K, Owner::Stack);
    let after = frames().free_frames();
    let freed = frames().free(hpa, PageSize::Size4K, MINE);
    check!(
        refused == Err(FreeError::NotOwned(State::Owned(MINE))) && after == before,
        "{refused:?}, {before} free, then {after}"
    );
    check!(freed.is_ok(), "its owner cannot free it: {freed:?}");
    Ok(())
}

fn a_frame_is_freed_once() -> super::Outcome {
    let hpa = allocate(PageSize::Size4K)?;
    let first = frames().free(hpa, PageSize::Size4K, MINE);
    let before = frames().free_frames();
    let second = frames().free(hpa, PageSize::Size4K, MINE);
    let after = frames().free_frames();
    check!(first.is_ok(), "{first:?}");
    check!(
        second == Err(FreeError::NotOwned(State::Free)) && after == before,
        "{second:?}, {before} free, then {after}"
    );
    Ok(())
}

/// Takes and gives back many frames and blocks of the heap; false where something was not its own.
fn churn() -> bool {
    let mark = u64::from(crate::arch::cpu::cpu().id) << 32;
    for round in 0..50 {
        let frames_held: Vec<Hpa> = (0..8)
            .filter_map(|_| frames().allocate(PageSize::Size4K, MINE).ok())
            .collect();
        let boxed = Box::new([mark + round; 16]);
        for &hpa in &frames_held {
            // SAFETY: the frame is this CPU's.
            unsafe { phys::write(hpa, mark + round) };
        }
        core::hint::black_box(&boxed);
        // SAFETY: as above.
        let good = |&hpa: &Hpa| unsafe { phys::read::<u64>(hpa) } == mark + round;
        let all = frames_held.iter().all(good) && boxed.iter().all(|&word| word == mark + round);
        for hpa in frames_held {
            if frames().free(hpa, PageSize::Size4K, MINE).is_err() {
                return false;
            }
        }
        if !all {
            return false;
        }
    }
    true
}

fn all_cpus_allocate_at_once() -> super::Outcome {
    let before = (frames().free_frames(), heap::used());
    let answers: Vec<_> = mailbox::others()
        .map(|other| mailbox::start(other.id, churn))
        .collect();
    let mut good = churn();
    for answer in answers {
        good &= answer.wait()?;
    }
    let after = (frames().free_frames(), heap::used());
    check!(good, "a frame or block was given to two");
    check!(
        before.0 == after.0,
        "{} frames are lost",
        before.0.abs_diff(after.0)
    );
    Ok(())
}

fn ram_is_write_back() -> super::Outcome {
    for (size, _) in SIZES {
        let hpa = allocate(size)?;
        let found = mtrr::memory_type(hpa, size);
        let _ = frames().free(hpa, size, MINE);
        check!(
            found == Some(MemoryType::WriteBack),
            "{size:?} at {hpa} is {found:?}"
        );
    }
    Ok(())
}
