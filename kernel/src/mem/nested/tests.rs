use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const RWX: Access = Access::all();

/// Tables on the host. Allocation number `fail_at` fails, counted from the last reset.
#[derive(Default)]
struct HostTables {
    tables: BTreeMap<u64, Box<[AtomicU64; 512]>>,
    next: u64,
    allocations: usize,
    fail_at: Option<usize>,
}

impl TableFrames for HostTables {
    fn allocate(&mut self) -> Option<Hpa> {
        self.allocations += 1;
        if self.fail_at == Some(self.allocations) {
            return None;
        }
        self.next += 0x1000;
        self.tables
            .insert(self.next, Box::new([const { AtomicU64::new(0) }; 512]));
        Some(Hpa::new(self.next))
    }

    fn free(&mut self, table: Hpa) {
        assert!(
            self.tables.remove(&table.get()).is_some(),
            "freed twice: {table}"
        );
    }

    fn entry(&self, table: Hpa, index: usize) -> &AtomicU64 {
        &self.tables[&table.get()][index]
    }

    fn physical_bits(&self) -> u32 {
        46
    }
}

fn write_back(_: Hpa, _: PageSize) -> Option<MemoryType> {
    Some(MemoryType::WriteBack)
}

fn setup<F: EntryFormat>() -> (HostTables, NestedTable<F>) {
    let mut frames = HostTables::default();
    let table = NestedTable::new(&mut frames).unwrap();
    (frames, table)
}

fn map<F: EntryFormat>(
    frames: &mut HostTables,
    table: &mut NestedTable<F>,
    gpa: u64,
    hpa: u64,
    len: u64,
    largest: PageSize,
) -> Result<(), MapError> {
    table.map(
        frames,
        Gpa::new(gpa),
        Hpa::new(hpa),
        len,
        RWX,
        &write_back,
        largest,
    )
}

/// The value of the entry that maps `gpa`.
fn leaf_of<F: EntryFormat>(frames: &HostTables, table: &NestedTable<F>, gpa: u64) -> u64 {
    let mut at = table.root();
    for level in (1..=4u8).rev() {
        let index = (gpa >> (12 + 9 * (level - 1))) as usize % 512;
        let entry = frames.entry(at, index).load(Ordering::Relaxed);
        assert!(F::is_present(entry));
        if F::is_leaf(entry, level) {
            return entry;
        }
        at = F::address(entry);
    }
    unreachable!()
}

/// SDM table 29-6: the bits of an EPT entry that maps a page.
#[test]
fn ept_leaves_have_the_manuals_bits() {
    let leaf = Ept::leaf(
        Hpa::new(0x1234_5000),
        RWX,
        MemoryType::WriteBack,
        PageSize::Size4K,
    );
    assert_eq!(leaf, 0x1234_5000 | 0b111 | 6 << 3);
    let leaf = Ept::leaf(
        Hpa::new(0x4000_0000),
        Access::READ,
        MemoryType::Uncacheable,
        PageSize::Size1G,
    );
    assert_eq!(leaf, 0x4000_0000 | 0b001 | 1 << 7);
    let leaf = Ept::leaf(
        Hpa::new(MIB2),
        Access::READ | Access::EXEC,
        MemoryType::WriteThrough,
        PageSize::Size2M,
    );
    assert_eq!(leaf, MIB2 | 0b101 | 4 << 3 | 1 << 7);
    assert_eq!(
        Ept::table(Hpa::new(0x7000)),
        0x7007,
        "no memory type, no PAGE bit: both are reserved in a table entry"
    );
    assert!(Ept::accessed(1 << 8) && Ept::dirty(1 << 9) && !Ept::dirty(1 << 8));
}

/// APM2 5.3.3 and 15.25: the long-mode format, every entry a user page.
#[test]
fn npt_leaves_have_the_manuals_bits() {
    let leaf = Npt::leaf(
        Hpa::new(0x1234_5000),
        RWX,
        MemoryType::WriteBack,
        PageSize::Size4K,
    );
    assert_eq!(leaf, 0x1234_5000 | 0b111);
    let leaf = Npt::leaf(
        Hpa::new(MIB2),
        Access::READ,
        MemoryType::Uncacheable,
        PageSize::Size2M,
    );
    assert_eq!(leaf, MIB2 | 0b101 | 0b11 << 3 | 1 << 7 | 1 << 63);
    let leaf = Npt::leaf(
        Hpa::new(0),
        Access::READ | Access::EXEC,
        MemoryType::WriteThrough,
        PageSize::Size1G,
    );
    assert_eq!(leaf, 0b101 | 0b01 << 3 | 1 << 7);
    assert_eq!(Npt::table(Hpa::new(0x7000)), 0x7007);
    assert!(Npt::accessed(1 << 5) && Npt::dirty(1 << 6) && !Npt::dirty(1 << 5));
}

#[test]
fn npt_turns_types_that_the_reset_pat_lacks_into_uncacheable() {
    for memory_type in [MemoryType::WriteCombining, MemoryType::WriteProtected] {
        let leaf = Npt::leaf(Hpa::new(0), RWX, memory_type, PageSize::Size4K);
        assert_eq!(Npt::memory_type(leaf), MemoryType::Uncacheable);
    }
}

#[test]
fn memory_types_have_the_manuals_encodings() {
    let known = (0..=255)
        .filter_map(MemoryType::from_bits)
        .map(|memory_type| memory_type as u8);
    assert_eq!(known.collect::<Vec<_>>(), [0, 1, 4, 5, 6]);
}

#[test]
fn an_empty_table_is_its_root_alone() {
    let (mut frames, table) = setup::<Ept>();
    assert_eq!((table.table_frames(), frames.tables.len()), (1, 1));
    assert_eq!(table.translate(&frames, Gpa::new(0)), None);
    table.destroy(&mut frames);
    assert!(frames.tables.is_empty());
    frames.fail_at = Some(frames.allocations + 1);
    assert_eq!(
        NestedTable::<Ept>::new(&mut frames).unwrap_err(),
        OutOfFrames
    );
}

fn the_largest_pages_that_fit_are_used<F: EntryFormat>() {
    let (mut frames, mut table) = setup::<F>();
    // 4 KiB, then 2 MiB from 2 MiB on, 1 GiB from 1 GiB on, and back down.
    let start = GIB - MIB2 - 0x1000;
    map(
        &mut frames,
        &mut table,
        start,
        start,
        GIB + 2 * MIB2 + 0x2000,
        PageSize::Size1G,
    )
    .unwrap();
    for (gpa, size) in [
        (start, PageSize::Size4K),
        (GIB - MIB2, PageSize::Size2M),
        (GIB, PageSize::Size1G),
        (2 * GIB - 1, PageSize::Size1G),
        (2 * GIB, PageSize::Size2M),
        (2 * GIB + MIB2, PageSize::Size4K),
    ] {
        let found = table.translate(&frames, Gpa::new(gpa)).unwrap();
        assert_eq!(
            (found.hpa, found.size, found.access),
            (Hpa::new(gpa), size, RWX),
            "{gpa:#x}"
        );
        assert_eq!(found.memory_type, MemoryType::WriteBack);
    }
    assert_eq!(table.translate(&frames, Gpa::new(start - 1)), None);
    assert_eq!(
        table.translate(&frames, Gpa::new(2 * GIB + MIB2 + 0x1000)),
        None
    );
    // Root, one level-3 table, two level-2, two level-1.
    assert_eq!((table.table_frames(), frames.tables.len()), (6, 6));
}

#[test]
fn the_largest_pages_that_fit_are_used_in_both_formats() {
    the_largest_pages_that_fit_are_used::<Ept>();
    the_largest_pages_that_fit_are_used::<Npt>();
}

#[test]
fn alignment_of_the_target_and_the_limit_make_pages_smaller() {
    let (mut frames, mut table) = setup::<Ept>();
    map(&mut frames, &mut table, 0, 0x1000, MIB2, PageSize::Size1G).unwrap();
    map(&mut frames, &mut table, GIB, MIB2, GIB, PageSize::Size1G).unwrap();
    map(&mut frames, &mut table, 2 * GIB, 0, GIB, PageSize::Size2M).unwrap();
    let size = |gpa| table.translate(&frames, Gpa::new(gpa)).unwrap().size;
    assert_eq!(
        [size(0), size(GIB), size(2 * GIB)],
        [PageSize::Size4K, PageSize::Size2M, PageSize::Size2M]
    );
}

#[test]
fn pages_of_several_memory_types_are_split() {
    let (mut frames, mut table) = setup::<Ept>();
    // Uncacheable from 3 MiB to 3 MiB + 8 KiB; the frame behind that has two types at once.
    let types = |hpa: Hpa, size: PageSize| {
        let (start, end) = (hpa.get(), hpa.get() + size.bytes());
        if end <= 0x30_0000 || start >= 0x30_3000 {
            Some(MemoryType::WriteBack)
        } else if start >= 0x30_0000 && end <= 0x30_2000 {
            Some(MemoryType::WriteCombining)
        } else {
            None
        }
    };
    let (gpa, hpa) = (Gpa::new(0), Hpa::new(0));
    table
        .map(&mut frames, gpa, hpa, GIB, RWX, &types, PageSize::Size1G)
        .unwrap();
    for (gpa, size, memory_type) in [
        (0x0, PageSize::Size2M, MemoryType::WriteBack),
        (0x2f_f000, PageSize::Size4K, MemoryType::WriteBack),
        (0x30_0000, PageSize::Size4K, MemoryType::WriteCombining),
        (0x30_2000, PageSize::Size4K, MemoryType::Uncacheable),
        (0x30_3000, PageSize::Size4K, MemoryType::WriteBack),
        (0x40_0000, PageSize::Size2M, MemoryType::WriteBack),
    ] {
        let found = table.translate(&frames, Gpa::new(gpa)).unwrap();
        assert_eq!(
            (found.size, found.memory_type),
            (size, memory_type),
            "{gpa:#x}"
        );
    }
}

#[test]
fn impossible_requests_are_refused() {
    let (mut frames, mut table) = setup::<Ept>();
    let mut try_map = |gpa, hpa, len, access| {
        let (gpa, hpa) = (Gpa::new(gpa), Hpa::new(hpa));
        table.map(
            &mut frames,
            gpa,
            hpa,
            len,
            access,
            &write_back,
            PageSize::Size1G,
        )
    };
    for (gpa, hpa, len) in [(1, 0, 0x1000), (0, 0x800, 0x1000), (0, 0, 0xfff), (0, 0, 0)] {
        assert_eq!(try_map(gpa, hpa, len, RWX), Err(MapError::Misaligned));
    }
    let top = GPA_LIMIT - 0x1000;
    for (gpa, hpa, len) in [
        (GPA_LIMIT, 0, 0x1000),
        (top, 0, 0x2000),
        (u64::MAX - 0xfff, 0, 0x1000),
        (0x1000, 0, u64::MAX - 0xfff),
        (0, (1 << 46) - 0x1000, 0x2000),
        (0, u64::MAX - 0xfff, 0x1000),
    ] {
        assert_eq!(
            try_map(gpa, hpa, len, RWX),
            Err(MapError::OutOfRange),
            "{gpa:#x} {hpa:#x} {len:#x}"
        );
    }
    // EPT: write without read is a misconfiguration (SDM 29.3.3.1).
    for access in [
        Access::empty(),
        Access::WRITE,
        Access::EXEC,
        Access::WRITE | Access::EXEC,
    ] {
        assert_eq!(try_map(0, 0, 0x1000, access), Err(MapError::Access));
    }
    assert_eq!(try_map(top, (1 << 46) - 0x1000, 0x1000, RWX), Ok(()));
    assert_eq!(
        table
            .protect(&mut frames, Gpa::new(top), 0x1000, Access::WRITE)
            .unwrap_err(),
        MapError::Access
    );
    assert_eq!(table.translate(&frames, Gpa::new(GPA_LIMIT)), None);
    assert_eq!(
        table.translate(&frames, Gpa::new(u64::MAX)),
        None,
        "an address beyond 48 bits never wraps to one below"
    );
}

#[test]
fn a_collision_anywhere_changes_nothing() {
    let (mut frames, mut table) = setup::<Npt>();
    map(
        &mut frames,
        &mut table,
        4 * MIB2,
        0,
        0x1000,
        PageSize::Size1G,
    )
    .unwrap();
    let tables = frames.tables.len();
    let result = map(&mut frames, &mut table, 0, 0, GIB, PageSize::Size1G);
    assert_eq!(result, Err(MapError::AlreadyMapped(Gpa::new(4 * MIB2))));
    assert_eq!(
        (table.table_frames(), frames.tables.len()),
        (tables, tables)
    );
    assert_eq!(table.translate(&frames, Gpa::new(0)), None);
    assert_eq!(
        table
            .unmap(&mut frames, Gpa::new(4 * MIB2), 0x2000)
            .unwrap_err(),
        MapError::NotMapped(Gpa::new(4 * MIB2 + 0x1000))
    );
    assert!(table.translate(&frames, Gpa::new(4 * MIB2)).is_some());
}

#[test]
fn a_split_keeps_the_rest_as_it_was() {
    let (mut frames, mut table) = setup::<Ept>();
    map(&mut frames, &mut table, 0, GIB, GIB, PageSize::Size1G).unwrap();
    // Bits the CPU has set are not lost.
    frames
        .entry(
            Ept::address(frames.entry(table.root(), 0).load(Ordering::Relaxed)),
            0,
        )
        .fetch_or(Ept::ACCESSED | Ept::DIRTY, Ordering::Relaxed);
    let unflushed = table
        .protect(&mut frames, Gpa::new(MIB2 + 0x1000), 0x1000, Access::READ)
        .unwrap();
    assert_eq!(unflushed.table_frames(), 0);
    unflushed.flushed(&mut frames);
    assert_eq!((table.table_frames(), frames.tables.len()), (4, 4));
    for (gpa, size, access) in [
        (0, PageSize::Size2M, RWX),
        (MIB2, PageSize::Size4K, RWX),
        (MIB2 + 0x1000, PageSize::Size4K, Access::READ),
        (MIB2 + 0x2000, PageSize::Size4K, RWX),
        (2 * MIB2 + 0x5123, PageSize::Size2M, RWX),
        (GIB - 1, PageSize::Size2M, RWX),
    ] {
        let found = table.translate(&frames, Gpa::new(gpa)).unwrap();
        assert_eq!(
            (found.hpa, found.size, found.access),
            (Hpa::new(GIB + gpa), size, access),
            "{gpa:#x}"
        );
        let leaf = leaf_of(&frames, &table, gpa);
        assert!(Ept::accessed(leaf) && Ept::dirty(leaf));
    }
}

#[test]
fn tables_are_freed_only_after_the_flush() {
    let (mut frames, mut table) = setup::<Npt>();
    map(&mut frames, &mut table, 0, 0, 2 * MIB2, PageSize::Size4K).unwrap();
    let before = frames.tables.len();
    let first = table.unmap(&mut frames, Gpa::new(0), MIB2).unwrap();
    assert_eq!(
        (
            first.table_frames(),
            table.table_frames(),
            frames.tables.len()
        ),
        (1, before - 1, before)
    );
    let second = table.unmap(&mut frames, Gpa::new(MIB2), MIB2).unwrap();
    assert_eq!(
        (second.table_frames(), table.table_frames()),
        (3, 1),
        "the last page takes the upper tables with it"
    );
    let both = first.join(second, &frames);
    assert_eq!((both.table_frames(), frames.tables.len()), (4, before));
    // A CPU that still has a pointer to one of these tables finds no mapping in it.
    let root = table.root().get();
    for (_, table) in frames.tables.iter().filter(|(at, _)| **at != root) {
        assert!(
            table
                .iter()
                .all(|entry| !Npt::is_present(entry.load(Ordering::Relaxed)))
        );
        assert!(
            table
                .iter()
                .all(|entry| !Ept::is_present(entry.load(Ordering::Relaxed)))
        );
    }
    both.flushed(&mut frames);
    assert_eq!(frames.tables.len(), 1);
}

#[test]
fn a_lost_flush_is_noticed_and_its_tables_are_not_reused() {
    let (mut frames, mut table) = setup::<Ept>();
    map(&mut frames, &mut table, 0, 0, 0x1000, PageSize::Size4K).unwrap();
    let unflushed = table.unmap(&mut frames, Gpa::new(0), 0x1000).unwrap();
    let before = lost_flushes();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(unflushed)));
    assert!(dropped.is_err(), "in a debug build it is an assertion");
    assert_eq!(lost_flushes(), before + 1);
    assert_eq!(frames.tables.len(), 4);
}

#[test]
fn reclaiming_goes_in_steps() {
    let (mut frames, mut table) = setup::<Ept>();
    map(&mut frames, &mut table, 0, 0, 4 * MIB2, PageSize::Size4K).unwrap();
    map(&mut frames, &mut table, 4 * GIB, 0, GIB, PageSize::Size1G).unwrap();
    let mut steps = 0;
    let mut left = table.table_frames();
    while !table.reclaim(&mut frames, 2) {
        assert_eq!(table.table_frames(), left - 2);
        left -= 2;
        assert_eq!(frames.tables.len(), left);
        steps += 1;
    }
    assert!(steps >= 2);
    assert_eq!((table.table_frames(), frames.tables.len()), (1, 1));
    table.destroy(&mut frames);
    assert!(frames.tables.is_empty());
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Map {
        gpa: u64,
        hpa: u64,
        pages: u64,
        access: Access,
        largest: PageSize,
    },
    Unmap {
        gpa: u64,
        pages: u64,
    },
    Protect {
        gpa: u64,
        pages: u64,
        access: Access,
    },
}

#[cfg(feature = "fuzzing")]
impl Step {
    /// The step with no more pages than these.
    pub fn at_most(mut self, most: u64) -> Self {
        let (Self::Map { pages, .. } | Self::Unmap { pages, .. } | Self::Protect { pages, .. }) =
            &mut self;
        *pages = (*pages).min(most);
        self
    }
}

/// Addresses near the borders of 2 MiB and 1 GiB pages, with lengths up to a few large pages.
fn address() -> impl Strategy<Value = u64> {
    (
        prop::sample::select(vec![0, MIB2, GIB - 2 * MIB2, GIB, 2 * GIB]),
        0u64..3,
        0u64..1024,
    )
        .prop_map(|(base, kind, pages)| match kind {
            0 => base,
            1 => base + pages / 256 * MIB2,
            _ => base + pages * 0x1000,
        })
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        1u64..8,
        500u64..1030,
        Just(512),
        Just(1024),
        Just(GIB >> 12)
    ]
}

fn access() -> impl Strategy<Value = Access> {
    (0u8..4).prop_map(|bits| Access::READ | Access::from_bits_truncate(bits << 1))
}

/// One of them.
pub fn step() -> impl Strategy<Value = Step> {
    let largest = prop::sample::select(vec![PageSize::Size4K, PageSize::Size2M, PageSize::Size1G]);
    prop_oneof![
        3 => (address(), address(), length(), access(), largest).prop_map(|(gpa, hpa, pages, access, largest)| {
            // Mapped one to one half of the time, so that large pages come about.
            let hpa = if hpa % 0x2000 == 0 { gpa } else { hpa };
            // Not a gibibyte of small pages: that only takes time.
            let pages = if hpa == gpa && largest != PageSize::Size4K { pages } else { pages.min(1024) };
            Step::Map { gpa, hpa, pages, access, largest }
        }),
        2 => (address(), length()).prop_map(|(gpa, pages)| Step::Unmap { gpa, pages: pages.min(1024) }),
        2 => (address(), length(), access())
            .prop_map(|(gpa, pages, access)| Step::Protect { gpa, pages: pages.min(1024), access }),
    ]
}

/// The map that the table should be, page by page: the number of the frame, the access.
type Model = BTreeMap<u64, (u64, Access)>;

fn apply_to_model(model: &mut Model, step: Step) -> Result<(), MapError> {
    let absent = |model: &Model, gpa: u64, pages| {
        (gpa >> 12..(gpa >> 12) + pages)
            .find(|page| !model.contains_key(page))
            .map(|page| Gpa::new(page << 12))
    };
    match step {
        Step::Map {
            gpa,
            hpa,
            pages,
            access,
            ..
        } => {
            let first = gpa >> 12;
            if let Some((&page, _)) = model.range(first..first + pages).next() {
                return Err(MapError::AlreadyMapped(Gpa::new(page << 12)));
            }
            model.extend((0..pages).map(|page| (first + page, ((hpa >> 12) + page, access))));
        }
        Step::Unmap { gpa, pages } => {
            if let Some(page) = absent(model, gpa, pages) {
                return Err(MapError::NotMapped(page));
            }
            (gpa >> 12..(gpa >> 12) + pages).for_each(|page| {
                model.remove(&page);
            });
        }
        Step::Protect { gpa, pages, access } => {
            if let Some(page) = absent(model, gpa, pages) {
                return Err(MapError::NotMapped(page));
            }
            model
                .range_mut(gpa >> 12..(gpa >> 12) + pages)
                .for_each(|(_, entry)| entry.1 = access);
        }
    }
    Ok(())
}

fn apply_to_table<F: EntryFormat>(
    frames: &mut HostTables,
    table: &mut NestedTable<F>,
    step: Step,
) -> Result<(), MapError> {
    match step {
        Step::Map {
            gpa,
            hpa,
            pages,
            access,
            largest,
        } => {
            let (gpa, hpa) = (Gpa::new(gpa), Hpa::new(hpa));
            table.map(frames, gpa, hpa, pages << 12, access, &write_back, largest)
        }
        Step::Unmap { gpa, pages } => table
            .unmap(frames, Gpa::new(gpa), pages << 12)
            .map(|unflushed| unflushed.flushed(frames)),
        Step::Protect { gpa, pages, access } => table
            .protect(frames, Gpa::new(gpa), pages << 12, access)
            .map(|unflushed| unflushed.flushed(frames)),
    }
}

/// All that the table maps, by walking it, and the number of its tables; no table but the root may be empty.
fn contents<F: EntryFormat>(
    frames: &HostTables,
    at: Hpa,
    level: u8,
    base: u64,
    out: &mut Model,
) -> usize {
    let mut tables = 1;
    let mut present = 0;
    for index in 0..512 {
        let entry = frames.entry(at, index).load(Ordering::Relaxed);
        let gpa = base + ((index as u64) << (12 + 9 * (level - 1)));
        if !F::is_present(entry) {
            assert_eq!(entry, 0, "what is absent is zero");
            continue;
        }
        present += 1;
        if F::is_leaf(entry, level) {
            let (frame, pages) = (F::address(entry).get() >> 12, 1 << (9 * (level - 1)));
            assert_eq!(frame % pages, 0, "a large page at an address of small ones");
            out.extend(
                (0..pages).map(|page| ((gpa >> 12) + page, (frame + page, F::access(entry)))),
            );
        } else {
            tables += contents::<F>(frames, F::address(entry), level - 1, gpa, out);
        }
    }
    assert!(present > 0 || level == 4, "an empty table was left");
    tables
}

/// The table is what a plain map says after every step, and where a step is refused nothing has changed.
pub fn follows_the_model<F: EntryFormat>(
    steps: &[(Step, Option<usize>)],
) -> Result<(), TestCaseError> {
    let (mut frames, mut table) = setup::<F>();
    let mut model = Model::new();
    for &(step, fail) in steps {
        let before = frames.tables.len();
        (frames.allocations, frames.fail_at) = (0, fail);
        let result = apply_to_table(&mut frames, &mut table, step);
        if result == Err(MapError::OutOfFrames) {
            prop_assert!(fail.is_some_and(|n| n <= frames.allocations));
            prop_assert_eq!(
                frames.tables.len(),
                before,
                "nothing leaks when frames run out"
            );
        } else {
            prop_assert_eq!(result, apply_to_model(&mut model, step), "{:x?}", step);
        }
        let mut found = Model::new();
        let tables = contents::<F>(&frames, table.root(), 4, 0, &mut found);
        prop_assert!(
            found == model,
            "the table is not the model after {:x?}",
            step
        );
        prop_assert_eq!(
            (tables, tables),
            (table.table_frames(), frames.tables.len())
        );
    }
    for (&page, &(frame, access)) in model.iter().take(50) {
        let found = table
            .translate(&frames, Gpa::new(page << 12 | 0x123))
            .unwrap();
        prop_assert_eq!(
            (found.hpa, found.access),
            (Hpa::new(frame << 12 | 0x123), access)
        );
    }
    table.destroy(&mut frames);
    prop_assert!(frames.tables.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn ept_follows_a_plain_map(steps in prop::collection::vec((step(), Just(None)), 1..11)) {
        follows_the_model::<Ept>(&steps)?;
    }

    #[test]
    fn npt_follows_a_plain_map(steps in prop::collection::vec((step(), Just(None)), 1..11)) {
        follows_the_model::<Npt>(&steps)?;
    }

    #[test]
    fn running_out_of_frames_changes_nothing(
        steps in prop::collection::vec((step(), prop::option::of(1usize..6)), 1..11),
        in_ept: bool,
    ) {
        if in_ept {
            follows_the_model::<Ept>(&steps)?;
        } else {
            follows_the_model::<Npt>(&steps)?;
        }
    }
}
