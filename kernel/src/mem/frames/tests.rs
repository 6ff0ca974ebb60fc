use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::mem::PAGE_SIZE;

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const RAM: Owner = Owner::GuestRam { domain: 7 };

/// Which frames are zero; all others hold something.
#[derive(Default)]
struct Memory {
    zero: BTreeSet<u64>,
    largest: u64,
}

impl Zero for &mut Memory {
    fn zero(&mut self, hpa: Hpa, size: PageSize) {
        self.zero
            .extend((0..size.frames()).map(|i| hpa.get() / PAGE_SIZE + i));
        self.largest = self.largest.max(size.bytes());
    }
}

fn with_frames<R>(
    limit: u64,
    runs: &[(u64, u64)],
    test: impl FnOnce(&mut Frames<'_, &mut Memory>) -> R,
) -> (R, Memory) {
    let mut memory = Memory::default();
    // The storage's content must not matter.
    let mut storage = vec![0xdead_beef_dead_beef; Frames::<&mut Memory>::storage_words(limit)];
    let result = {
        let mut frames = Frames::new(&mut storage, limit, &mut memory).unwrap();
        runs.iter()
            .for_each(|&(start, end)| frames.add(Hpa::new(start), Hpa::new(end)));
        test(&mut frames)
    };
    (result, memory)
}

fn sum(frames: &Frames<'_, &mut Memory>) -> u64 {
    Kind::ALL.iter().map(|&kind| frames.count(kind)).sum()
}

#[test]
fn records_cost_about_four_bytes_a_frame() {
    let tebibyte = 1u64 << 40;
    let bytes = Frames::<&mut Memory>::storage_words(tebibyte) as u64 * 8;
    assert!((4.0..4.3).contains(&(bytes as f64 / (tebibyte / PAGE_SIZE) as f64)));
}

#[test]
fn too_little_storage_is_refused() {
    let mut memory = Memory::default();
    let mut storage = vec![0; Frames::<&mut Memory>::storage_words(GIB) - 1];
    assert!(Frames::new(&mut storage, GIB, &mut memory).is_none());
}

#[test]
fn what_was_not_added_is_reserved_and_frame_zero_always() {
    with_frames(
        2 * GIB,
        &[(0, 0x9f800), (0x10_0000, 0x100_1000)],
        |frames| {
            assert_eq!(frames.free_frames(), 0x9e + 0xf01);
            assert_eq!(frames.state(Hpa::new(0)), Some(State::Reserved));
            assert_eq!(frames.state(Hpa::new(0x1000)), Some(State::Free));
            assert_eq!(
                frames.state(Hpa::new(0x9f000)),
                Some(State::Reserved),
                "a broken frame"
            );
            assert_eq!(frames.state(Hpa::new(0x100_0000)), Some(State::Free));
            assert_eq!(frames.state(Hpa::new(0x100_1000)), Some(State::Reserved));
            assert_eq!(frames.state(Hpa::new(2 * GIB)), None);
            assert_eq!(sum(frames), frames.total_frames());
        },
    );
}

#[test]
fn a_frame_added_twice_is_there_once() {
    with_frames(
        GIB,
        &[(0x10_0000, MIB2 * 3), (MIB2, MIB2 * 4), (MIB2, MIB2 * 2)],
        |frames| {
            assert_eq!(frames.free_frames(), (4 * MIB2 - 0x10_0000) / PAGE_SIZE);
            let mut seen = BTreeSet::new();
            while let Ok(hpa) = frames.allocate(PageSize::Size4K, RAM) {
                assert!(seen.insert(hpa));
            }
            assert_eq!(seen.len() as u64, (4 * MIB2 - 0x10_0000) / PAGE_SIZE);
        },
    );
}

#[test]
fn low_memory_is_kept_for_those_who_need_it() {
    with_frames(GIB, &[(0x1000, 4 * MIB2)], |frames| {
        assert!(frames.allocate(PageSize::Size4K, RAM).unwrap().get() >= 0x10_0000);
        let low = frames.allocate_below(0x10_0000, Owner::Trampoline).unwrap();
        assert!(low.get() < 0x10_0000 && low.get() > 0);
        assert_eq!(frames.state(low), Some(State::Owned(Owner::Trampoline)));
        // When nothing else is left, low memory is used too.
        while frames.free_frames() > 0xfe {
            frames.allocate(PageSize::Size4K, RAM).unwrap();
        }
        assert!(frames.allocate(PageSize::Size4K, RAM).unwrap().get() < 0x10_0000);
    });
}

#[test]
fn allocation_below_a_bound_opens_large_blocks_but_never_goes_above() {
    with_frames(4 * GIB, &[(GIB, 4 * GIB)], |frames| {
        assert_eq!(
            frames.allocate_below(GIB, RAM),
            Err(AllocateError::OutOfMemory)
        );
        assert_eq!(
            frames.allocate_below(GIB + 0xfff, RAM),
            Err(AllocateError::OutOfMemory)
        );
        assert_eq!(frames.allocate_below(GIB + 0x1000, RAM), Ok(Hpa::new(GIB)));
        assert_eq!(
            frames.allocate_below(GIB + 0x1000, RAM),
            Err(AllocateError::OutOfMemory)
        );
        assert_eq!(
            frames.allocate_below(u64::MAX, RAM),
            Ok(Hpa::new(GIB + 0x1000))
        );
    });
}

#[test]
fn only_the_owner_frees_and_only_once() {
    with_frames(GIB, &[(MIB2, 4 * MIB2)], |frames| {
        let hpa = frames.allocate(PageSize::Size4K, RAM).unwrap();
        let free = frames.free_frames();
        for (at, size, owner, error) in [
            (
                hpa,
                PageSize::Size4K,
                Owner::Stack,
                FreeError::NotOwned(State::Owned(RAM)),
            ),
            (
                hpa,
                PageSize::Size4K,
                Owner::GuestRam { domain: 8 },
                FreeError::NotOwned(State::Owned(RAM)),
            ),
            (
                Hpa::new(hpa.get() + 8),
                PageSize::Size4K,
                RAM,
                FreeError::Misaligned,
            ),
            (
                hpa.align_down(MIB2),
                PageSize::Size2M,
                RAM,
                FreeError::WrongSize,
            ),
            (
                Hpa::new(0),
                PageSize::Size4K,
                RAM,
                FreeError::NotOwned(State::Reserved),
            ),
            (Hpa::new(GIB), PageSize::Size4K, RAM, FreeError::OutOfRange),
            (
                Hpa::new(!0xfff),
                PageSize::Size4K,
                RAM,
                FreeError::OutOfRange,
            ),
        ] {
            assert_eq!(frames.free(at, size, owner), Err(error));
        }
        assert_eq!(frames.free_frames(), free);
        assert_eq!(frames.free(hpa, PageSize::Size4K, RAM), Ok(()));
        assert_eq!(
            frames.free(hpa, PageSize::Size4K, RAM),
            Err(FreeError::NotOwned(State::Free))
        );
        assert_eq!(frames.free_frames(), free + 1);
    });
}

#[test]
fn domains_are_told_apart_up_to_24_bits() {
    with_frames(GIB, &[(MIB2, 4 * MIB2)], |frames| {
        let owner = Owner::NestedTable {
            domain: (1 << 24) - 1,
        };
        let hpa = frames.allocate(PageSize::Size4K, owner).unwrap();
        assert_eq!(frames.state(hpa), Some(State::Owned(owner)));
        let owner = Owner::NestedTable { domain: 1 << 24 };
        assert_eq!(
            frames.allocate(PageSize::Size4K, owner),
            Err(AllocateError::Invalid)
        );
    });
}

#[test]
fn a_gibibyte_is_zeroed_in_bounded_steps_and_freed_in_pieces() {
    let (_, memory) = with_frames(3 * GIB, &[(GIB, 2 * GIB)], |frames| {
        let mut again = 0;
        let hpa = loop {
            match frames.allocate(PageSize::Size1G, RAM) {
                Err(AllocateError::Again) => again += 1,
                other => break other.unwrap(),
            }
        };
        assert_eq!((hpa, again), (Hpa::new(GIB), 512));
        assert_eq!(frames.free_frames(), 0);
        assert_eq!(
            frames.free(hpa, PageSize::Size1G, RAM),
            Err(FreeError::WrongSize)
        );
        assert_eq!(
            frames.free(Hpa::new(GIB + 0x3000), PageSize::Size4K, RAM),
            Ok(())
        );
        assert_eq!(frames.state(Hpa::new(GIB + 0x3000)), Some(State::Free));
        assert_eq!(
            frames.state(Hpa::new(GIB + 0x4000)),
            Some(State::Owned(RAM))
        );
        for i in 1..512 {
            assert_eq!(
                frames.free(Hpa::new(GIB + i * MIB2), PageSize::Size2M, RAM),
                Ok(())
            );
        }
        for i in (0..512).filter(|&i| i != 3) {
            assert_eq!(
                frames.free(Hpa::new(GIB + i * 0x1000), PageSize::Size4K, RAM),
                Ok(())
            );
        }
        // All joined again, and known to be zero.
        assert_eq!(frames.allocate(PageSize::Size1G, RAM), Ok(Hpa::new(GIB)));
    });
    assert_eq!(memory.largest, MIB2, "never more than 2 MiB at once");
}

#[test]
fn a_block_joined_from_parts_is_zero_only_if_all_parts_are() {
    for (part, whole) in [
        (PageSize::Size4K, PageSize::Size2M),
        (PageSize::Size2M, PageSize::Size1G),
    ] {
        let (start, end) = (GIB, GIB + whole.bytes());
        let (_, memory) = with_frames(2 * GIB, &[(start, end)], |frames| {
            // One part goes out and comes back zeroed; the others still hold what the loader left.
            let hpa = frames.allocate(part, RAM).unwrap();
            frames.free(hpa, part, RAM).unwrap();
            while frames.allocate(whole, RAM) == Err(AllocateError::Again) {}
            assert_eq!(frames.free_frames(), 0);
        });
        let zeroed = memory.zero.len() as u64;
        assert_eq!(
            zeroed,
            whole.frames(),
            "{whole:?} handed out with something in it"
        );
    }
}

#[test]
fn a_run_is_contiguous_and_freed_frame_by_frame() {
    with_frames(GIB, &[(0x10_0000, 8 * MIB2)], |frames| {
        let free = frames.free_frames();
        let run = frames.allocate_run(3, Owner::Virt).unwrap();
        assert_eq!(
            (frames.count(Kind::Virt), frames.free_frames()),
            (3, free - 3)
        );
        for i in 0..3 {
            let frame = Hpa::new(run.get() + i * 0x1000);
            assert_eq!(frames.state(frame), Some(State::Owned(Owner::Virt)));
            assert_eq!(frames.free(frame, PageSize::Size4K, Owner::Virt), Ok(()));
        }
        assert_eq!(frames.free_frames(), free);
        for count in [0, 513] {
            assert_eq!(
                frames.allocate_run(count, Owner::Virt),
                Err(AllocateError::Invalid)
            );
        }
    });
}

#[test]
fn blocks_in_a_row_may_span_gibibytes() {
    let (_, memory) = with_frames(
        4 * GIB,
        &[(GIB - MIB2, 2 * GIB), (3 * GIB, 3 * GIB + MIB2)],
        |frames| {
            let taken = frames.allocate_blocks(3, Owner::KernelHeap).unwrap();
            assert_eq!(taken, Hpa::new(GIB - MIB2));
            assert_eq!(frames.count(Kind::KernelHeap), 3 * 512);
            assert_eq!(
                frames.allocate_blocks(511, Owner::KernelHeap),
                Err(AllocateError::OutOfMemory)
            );
            assert_eq!(
                frames.allocate_blocks(510, Owner::KernelHeap),
                Ok(Hpa::new(GIB + 2 * MIB2))
            );
            assert_eq!(sum(frames), frames.total_frames());
        },
    );
    assert!(
        memory.zero.is_empty(),
        "the kernel writes before it reads, and a heap is large"
    );
}

#[test]
fn frames_can_be_adopted_where_they_are() {
    with_frames(GIB, &[(MIB2, 2 * MIB2)], |frames| {
        frames.adopt(Hpa::new(MIB2 - 0x2000), 0x4000, Owner::FrameRecords);
        assert_eq!(
            frames.count(Kind::FrameRecords),
            2,
            "what is free cannot be adopted"
        );
        assert_eq!(
            frames.state(Hpa::new(MIB2 - 0x1000)),
            Some(State::Owned(Owner::FrameRecords))
        );
        assert_eq!(sum(frames), frames.total_frames());
    });
}

#[derive(Clone, Debug)]
pub enum Step {
    Allocate(PageSize, Owner),
    Below(u64),
    Run(usize),
    Free(prop::sample::Index),
    FreePart(prop::sample::Index, u64),
}

/// One of them.
pub fn step() -> impl Strategy<Value = Step> {
    let owner = prop::sample::select(vec![
        RAM,
        Owner::Stack,
        Owner::NestedTable { domain: 1 },
        Owner::Virt,
    ]);
    let size = prop_oneof![6 => Just(PageSize::Size4K), 3 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)];
    prop_oneof![
        4 => (size, owner).prop_map(|(size, owner)| Step::Allocate(size, owner)),
        1 => prop::sample::select(vec![0x10_0000, 4 * MIB2, 5 * GIB]).prop_map(Step::Below),
        1 => (1usize..=512).prop_map(Step::Run),
        3 => any::<prop::sample::Index>().prop_map(Step::Free),
        1 => (any::<prop::sample::Index>(), 0u64..512).prop_map(|(index, part)| Step::FreePart(index, part)),
    ]
}

/// Every frame has the owner that a plain map says, after every step.
/// `runs` are where memory begins and how long it is, in units of half a block, so that blocks are broken.
pub fn follows_the_model(runs: &[(u64, u64)], steps: Vec<Step>) -> Result<(), TestCaseError> {
    let runs: Vec<_> = runs
        .iter()
        .map(|&(at, len)| (at * 0x10_0000, (at + len) * 0x10_0000))
        .collect();
    let usable: BTreeSet<u64> = runs
        .iter()
        .flat_map(|&(start, end)| start / 4096..end / 4096)
        .filter(|&f| f != 0)
        .collect();
    let (result, _) = with_frames(3 * GIB, &runs, |frames| {
        // The pieces that are allocated: first frame to length in frames and owner.
        let mut model: BTreeMap<u64, (u64, Owner)> = BTreeMap::new();
        let mut free = usable.len() as u64;
        prop_assert_eq!(frames.free_frames(), free);
        for step in steps {
            let taken = match step.clone() {
                Step::Allocate(size, owner) => {
                    let result = loop {
                        match frames.allocate(size, owner) {
                            Err(AllocateError::Again) => continue,
                            other => break other,
                        }
                    };
                    prop_assert!(size != PageSize::Size4K || result.is_ok() == (free > 0));
                    result.ok().map(|hpa| (hpa, size.frames(), owner))
                }
                Step::Below(limit) => {
                    let result = frames.allocate_below(limit, Owner::Trampoline);
                    let possible = usable.range(..limit / 4096).any(|frame| {
                        model
                            .range(..=frame)
                            .next_back()
                            .is_none_or(|(first, (len, _))| frame >= &(first + len))
                    });
                    prop_assert_eq!(result.is_ok(), possible);
                    result.ok().map(|hpa| {
                        assert!(hpa.get() < limit);
                        (hpa, 1, Owner::Trampoline)
                    })
                }
                Step::Run(count) => {
                    if let Ok(hpa) = frames.allocate_run(count, Owner::Virt) {
                        for i in 1..count as u64 {
                            model.insert(hpa.get() / 4096 + i, (1, Owner::Virt));
                        }
                        free -= count as u64 - 1;
                        Some((hpa, 1, Owner::Virt))
                    } else {
                        None
                    }
                }
                Step::Free(index) if !model.is_empty() => {
                    let (&first, &(len, owner)) =
                        model.iter().nth(index.index(model.len())).unwrap();
                    let (size, pieces) = match len {
                        1 => (PageSize::Size4K, 1),
                        _ => (PageSize::Size2M, len / 512),
                    };
                    for piece in 0..pieces {
                        let hpa = Hpa::new((first + piece * size.frames()) * 4096);
                        prop_assert_eq!(frames.free(hpa, size, owner), Ok(()));
                    }
                    free += len;
                    model.remove(&first);
                    None
                }
                Step::FreePart(index, part) if !model.is_empty() => {
                    let (&first, &(len, owner)) =
                        model.iter().nth(index.index(model.len())).unwrap();
                    let part = part % len;
                    let hpa = Hpa::new((first + part) * 4096);
                    prop_assert_eq!(frames.free(hpa, PageSize::Size4K, owner), Ok(()));
                    prop_assert_eq!(frames.state(hpa), Some(State::Free));
                    model.remove(&first);
                    // What is left is freed, and so counted, frame by frame or block by block.
                    for frame in
                        (0..len).filter(|&frame| frame / 512 == part / 512 && frame != part)
                    {
                        model.insert(first + frame, (1, owner));
                    }
                    for block in (0..len / 512).filter(|&block| block != part / 512) {
                        model.insert(first + block * 512, (512, owner));
                    }
                    free += 1;
                    None
                }
                _ => None,
            };
            if let Some((hpa, len, owner)) = taken {
                let first = hpa.get() / 4096;
                prop_assert_eq!(first % len, 0);
                prop_assert!((first..first + len).all(|frame| usable.contains(&frame)));
                let before = model.range(..first + len).next_back();
                prop_assert!(
                    before.is_none_or(|(at, (len, _))| at + len <= first),
                    "two owners"
                );
                model.insert(first, (len, owner));
                free -= len;
            }
            prop_assert_eq!(frames.free_frames(), free);
            prop_assert_eq!(sum(frames), frames.total_frames());
            for (&first, &(len, owner)) in model.iter().take(20) {
                for frame in [first, first + len - 1] {
                    prop_assert_eq!(
                        frames.state(Hpa::new(frame * 4096)),
                        Some(State::Owned(owner))
                    );
                }
            }
        }
        // Everything goes back, and is as it was.
        for (first, (len, owner)) in model {
            let size = if len == 1 {
                PageSize::Size4K
            } else {
                PageSize::Size2M
            };
            for at in (first..first + len).step_by(size.frames() as usize) {
                prop_assert_eq!(frames.free(Hpa::new(at * 4096), size, owner), Ok(()));
            }
        }
        prop_assert_eq!(frames.free_frames(), usable.len() as u64);
        prop_assert_eq!(
            frames.count(Kind::Reserved) + frames.free_frames(),
            frames.total_frames()
        );
        Ok(())
    });
    result?;
    Ok(())
}

/// Whatever the order of allocating, writing and freeing, what is handed out is zero. A step of 0 takes a small page, 1 a large one; any
/// other gives back the one with that index.
pub fn hands_out_zeroes(steps: Vec<(u8, prop::sample::Index)>) -> Result<(), TestCaseError> {
    struct Checked(std::rc::Rc<std::cell::RefCell<BTreeSet<u64>>>);
    impl Zero for Checked {
        fn zero(&mut self, hpa: Hpa, size: PageSize) {
            self.0
                .borrow_mut()
                .extend((0..size.frames()).map(|i| hpa.get() / 4096 + i));
        }
    }
    let zero = std::rc::Rc::new(std::cell::RefCell::new(BTreeSet::new()));
    let mut storage = vec![u64::MAX; Frames::<Checked>::storage_words(2 * GIB)];
    let mut frames = Frames::new(&mut storage, 2 * GIB, Checked(zero.clone())).unwrap();
    frames.add(Hpa::new(0x1000), Hpa::new(8 * MIB2 + 0x5000));
    frames.add(Hpa::new(GIB), Hpa::new(2 * GIB));
    let mut taken = Vec::new();
    for (what, index) in steps {
        let size = match what {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => {
                if !taken.is_empty() {
                    let (hpa, size) = taken.swap_remove(index.index(taken.len()));
                    frames.free(hpa, size, RAM).unwrap();
                }
                continue;
            }
        };
        if let Ok(hpa) = frames.allocate(size, RAM) {
            for frame in hpa.get() / 4096..hpa.get() / 4096 + size.frames() {
                // The owner writes to it: it is no longer zero.
                prop_assert!(
                    zero.borrow_mut().remove(&frame),
                    "frame {:#x} holds something",
                    frame
                );
            }
            taken.push((hpa, size));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_allocator_follows_a_model(
        runs in prop::collection::vec((0u64..1100, 1u64..1030), 1..4),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        follows_the_model(&runs, steps)?;
    }

    #[test]
    fn what_is_handed_out_is_zero(steps in prop::collection::vec((0u8..3, any::<prop::sample::Index>()), 1..60)) {
        hands_out_zeroes(steps)?;
    }
}
