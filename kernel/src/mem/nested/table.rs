//! The builder: one tree of four levels, changed all or nothing.
//!
//! Every change goes in two steps. The first walks the range, refuses what cannot be done and counts the tables that
//! are missing; they are allocated before anything a CPU could see is touched. The second step cannot fail.
//! Work is proportional to the pages in the range: callers with large ranges go in steps.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use super::unflushed::{Chain, Unflushed};
use super::{
    Access, EntryFormat, GPA_LIMIT, MapError, MemoryType, OutOfFrames, PageSize, TableFrames,
    Translation,
};
use crate::mem::addr::{Gpa, Hpa, PAGE_SIZE};

const ROOT_LEVEL: u8 = 4;
const ENTRIES: usize = 512;

/// Bytes that one entry at `level` covers.
const fn span(level: u8) -> u64 {
    PAGE_SIZE << (9 * (level - 1) as u32)
}

const fn index(address: u64, level: u8) -> usize {
    (address / span(level)) as usize % ENTRIES
}

/// The part of a range that lies within one entry.
#[derive(Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
}

impl Piece {
    /// The parts of the range, one for each entry at `level` that it meets.
    fn each(self, level: u8) -> impl Iterator<Item = Piece> {
        let mut next = self.start;
        core::iter::from_fn(move || {
            if next >= self.end {
                return None;
            }
            let start = next;
            // Ends are at most 2^48, so this sum cannot wrap.
            next = (start - start % span(level) + span(level)).min(self.end);
            Some(Piece { start, end: next })
        })
    }

    /// Whether the part is the whole of its entry.
    fn is_whole(self, level: u8) -> bool {
        self.end - self.start == span(level)
    }

    /// The tables it takes to split a leaf at `level` so that just this part can differ.
    fn splits(self, level: u8, change: Change) -> usize {
        if level == 1 || change.takes_whole(self, level) {
            return 0;
        }
        1 + self
            .each(level - 1)
            .map(|piece| piece.splits(level - 1, change))
            .sum::<usize>()
    }
}

/// A range to be mapped.
struct Mapping<'a> {
    gpa: u64,
    hpa: u64,
    access: Access,
    memory_type_of: &'a dyn Fn(Hpa, PageSize) -> Option<MemoryType>,
    largest: PageSize,
}

impl Mapping<'_> {
    fn hpa_of(&self, piece: Piece) -> Hpa {
        Hpa::new(self.hpa + (piece.start - self.gpa))
    }

    /// The leaf for this part, if one leaf at `level` can map it.
    fn leaf<F: EntryFormat>(&self, level: u8, piece: Piece) -> Option<u64> {
        let size = PageSize::of_level(level).filter(|&size| size <= self.largest)?;
        let hpa = self.hpa_of(piece);
        if !piece.is_whole(level) || !hpa.is_aligned(size.bytes()) {
            return None;
        }
        let memory_type = match (self.memory_type_of)(hpa, size) {
            Some(memory_type) => memory_type,
            // A page cannot be smaller; the strictest type is right for any mixture.
            None if level == 1 => MemoryType::Uncacheable,
            None => return None,
        };
        Some(F::leaf(hpa, self.access, memory_type, size))
    }
}

#[derive(Clone, Copy)]
enum Change {
    Unmap,
    Protect(Access),
    /// Into pages of 4 KiB.
    Split,
}

impl Change {
    /// Whether it changes this part, if that is the whole of a leaf at `level`, without splitting it.
    fn takes_whole(self, piece: Piece, level: u8) -> bool {
        !matches!(self, Self::Split) && piece.is_whole(level)
    }
}

/// A nested page table in the format `F`. Tables below the root are never empty.
///
/// The frames behind it belong to whoever passes `frames`: always the same, or the tree is lost. A table that is dropped
/// without [`NestedTable::destroy`] leaks its frames.
#[derive(Debug)]
pub struct NestedTable<F> {
    root: Hpa,
    table_frames: usize,
    format: PhantomData<fn() -> F>,
}

impl<F: EntryFormat> NestedTable<F> {
    /// An empty table: one frame, nothing mapped.
    ///
    /// # Errors
    /// [`OutOfFrames`] where no frame is left for the root.
    pub fn new(frames: &mut impl TableFrames) -> Result<Self, OutOfFrames> {
        let root = frames.allocate().ok_or(OutOfFrames)?;
        Ok(Self {
            root,
            table_frames: 1,
            format: PhantomData,
        })
    }

    /// The root table, for the EPT pointer or the VMCB's nested CR3.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// The frames the tree consists of, the root included.
    pub fn table_frames(&self) -> usize {
        self.table_frames
    }

    /// Maps `len` bytes from `gpa` on to `hpa`, by the largest pages that alignment, memory type and `largest` allow.
    ///
    /// `memory_type_of` tells the one type a whole page has, or `None` where it has several and must be split (a
    /// 4 KiB page of several types becomes uncacheable). It must tell the same each time it is asked.
    /// Nothing needs to be flushed: CPUs do not cache what was absent (SDM 29.4.2; APM2 5.5.2).
    ///
    /// # Errors
    /// Any [`MapError`] but `NotMapped`; nothing is mapped then.
    #[expect(
        clippy::too_many_arguments,
        reason = "a mapping has this many facts, and each is named at the call"
    )]
    pub fn map(
        &mut self,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        hpa: Hpa,
        len: u64,
        access: Access,
        memory_type_of: &dyn Fn(Hpa, PageSize) -> Option<MemoryType>,
        largest: PageSize,
    ) -> Result<(), MapError> {
        let piece = checked_range(gpa, len)?;
        if !access.contains(Access::READ) {
            return Err(MapError::Access);
        }
        if !hpa.is_aligned(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        let limit = 1 << frames.physical_bits().min(52);
        if hpa.checked_add(len).is_none_or(|end| end.get() > limit) {
            return Err(MapError::OutOfRange);
        }
        let mapping = Mapping {
            gpa: gpa.get(),
            hpa: hpa.get(),
            access,
            memory_type_of,
            largest,
        };
        let missing = Self::missing(frames, Some(self.root), ROOT_LEVEL, &mapping, piece)?;
        let mut reserve = reserve(frames, missing)?;
        let result = self.install(frames, &mut reserve, self.root, ROOT_LEVEL, &mapping, piece);
        reserve.free_all(frames);
        result
    }

    /// Removes the mappings of `len` bytes from `gpa` on, splitting large pages at the ends.
    ///
    /// # Errors
    /// `Misaligned`, `OutOfRange`, `NotMapped` (any page of the range), `OutOfFrames` (for splitting); nothing has changed then.
    pub fn unmap(
        &mut self,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        len: u64,
    ) -> Result<Unflushed, MapError> {
        self.change(frames, gpa, len, Change::Unmap)
    }

    /// Gives the pages of `len` bytes from `gpa` on the access `access`, splitting large pages at the ends. They are not
    /// joined again.
    ///
    /// # Errors
    /// As for [`NestedTable::unmap`], and `Access`.
    pub fn protect(
        &mut self,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        len: u64,
        access: Access,
    ) -> Result<Unflushed, MapError> {
        if !access.contains(Access::READ) {
            return Err(MapError::Access);
        }
        self.change(frames, gpa, len, Change::Protect(access))
    }

    /// Tells which pages of 4 KiB of `len` bytes from `gpa` on were written since the last such call, by their index in the range,
    /// and forgets it. Large pages are split: from then on each part tells of itself.
    ///
    /// # Errors
    /// As for [`NestedTable::unmap`].
    pub fn take_dirty(
        &mut self,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        len: u64,
        dirty: &mut dyn FnMut(u64),
    ) -> Result<Unflushed, MapError> {
        let unflushed = self.change(frames, gpa, len, Change::Split)?;
        for page in 0..len / PAGE_SIZE {
            let leaf = self.leaf(frames, gpa.get() + page * PAGE_SIZE);
            if leaf.is_some_and(|leaf| leaf.fetch_and(!F::DIRTY, Ordering::AcqRel) & F::DIRTY != 0)
            {
                dirty(page);
            }
        }
        Ok(unflushed)
    }

    /// Notes that the page at `gpa` was written, as a CPU does that writes through the table.
    pub fn mark_dirty(&self, frames: &impl TableFrames, gpa: Gpa) {
        if let Some(leaf) = self.leaf(frames, gpa.get()) {
            leaf.fetch_or(F::ACCESSED | F::DIRTY, Ordering::AcqRel);
        }
    }

    /// The leaf that maps an address below 2^48.
    fn leaf<'a>(&self, frames: &'a impl TableFrames, gpa: u64) -> Option<&'a AtomicU64> {
        let mut table = self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let cell = frames.entry(table, index(gpa, level));
            let entry = cell.load(Ordering::Acquire);
            if !F::is_present(entry) {
                return None;
            }
            if F::is_leaf(entry, level) {
                return Some(cell);
            }
            table = F::address(entry);
        }
        None
    }

    /// What `gpa` leads to; `None` where nothing is mapped.
    pub fn translate(&self, frames: &impl TableFrames, gpa: Gpa) -> Option<Translation> {
        if gpa.get() >= GPA_LIMIT {
            return None;
        }
        let mut table = self.root;
        for level in (1..=ROOT_LEVEL).rev() {
            let entry = frames
                .entry(table, index(gpa.get(), level))
                .load(Ordering::Acquire);
            if !F::is_present(entry) {
                return None;
            }
            if F::is_leaf(entry, level) {
                return Some(Translation {
                    hpa: F::address(entry).checked_add(gpa.offset_in(span(level)))?,
                    access: F::access(entry),
                    size: PageSize::of_level(level)?,
                    memory_type: F::memory_type(entry),
                });
            }
            table = F::address(entry);
        }
        None
    }

    /// Frees at most `budget` tables below the root, and with them all they map; `true` when only the root is left.
    /// No CPU may use the table any more, nor have it cached: stop the guest's vCPUs and flush first.
    pub fn reclaim(&mut self, frames: &mut impl TableFrames, budget: usize) -> bool {
        let mut budget = budget;
        self.reclaim_below(frames, self.root, ROOT_LEVEL, &mut budget)
    }

    /// Frees the whole tree at once, under the conditions of [`NestedTable::reclaim`]. For a large tree call that first,
    /// in steps.
    pub fn destroy(mut self, frames: &mut impl TableFrames) {
        self.reclaim(frames, usize::MAX);
        frames.free(self.root);
    }

    fn reclaim_below(
        &mut self,
        frames: &mut impl TableFrames,
        table: Hpa,
        level: u8,
        budget: &mut usize,
    ) -> bool {
        for index in 0..ENTRIES {
            let entry = frames.entry(table, index).load(Ordering::Relaxed);
            if !F::is_present(entry) {
                continue;
            }
            if !F::is_leaf(entry, level) {
                let child = F::address(entry);
                // The lowest tables hold leaves only: no need to look.
                let empty = level == 2 || self.reclaim_below(frames, child, level - 1, budget);
                if !empty || *budget == 0 {
                    return false;
                }
                *budget -= 1;
                self.table_frames -= 1;
                frames.free(child);
            }
            frames.entry(table, index).store(0, Ordering::Relaxed);
        }
        true
    }

    /// The number of tables that mapping this part takes. `table` is `None` below a table that does not exist yet.
    fn missing(
        frames: &impl TableFrames,
        table: Option<Hpa>,
        level: u8,
        mapping: &Mapping<'_>,
        range: Piece,
    ) -> Result<usize, MapError> {
        let mut missing = 0;
        for piece in range.each(level) {
            let entry = table.map_or(0, |table| {
                frames
                    .entry(table, index(piece.start, level))
                    .load(Ordering::Relaxed)
            });
            if !F::is_present(entry) {
                if mapping.leaf::<F>(level, piece).is_none() {
                    missing += 1 + Self::missing(frames, None, level - 1, mapping, piece)?;
                }
            } else if F::is_leaf(entry, level) {
                return Err(MapError::AlreadyMapped(Gpa::new(piece.start)));
            } else {
                missing +=
                    Self::missing(frames, Some(F::address(entry)), level - 1, mapping, piece)?;
            }
        }
        Ok(missing)
    }

    fn install(
        &mut self,
        frames: &mut impl TableFrames,
        reserve: &mut Chain,
        table: Hpa,
        level: u8,
        mapping: &Mapping<'_>,
        range: Piece,
    ) -> Result<(), MapError> {
        for piece in range.each(level) {
            let slot = index(piece.start, level);
            let entry = frames.entry(table, slot).load(Ordering::Relaxed);
            if F::is_present(entry) {
                self.install(
                    frames,
                    reserve,
                    F::address(entry),
                    level - 1,
                    mapping,
                    piece,
                )?;
            } else if let Some(leaf) = mapping.leaf::<F>(level, piece) {
                frames.entry(table, slot).store(leaf, Ordering::Release);
            } else {
                // Runs dry only if `memory_type_of` contradicts itself.
                let child = reserve.pop(frames).ok_or(MapError::OutOfFrames)?;
                self.table_frames += 1;
                let result = self.install(frames, reserve, child, level - 1, mapping, piece);
                frames
                    .entry(table, slot)
                    .store(F::table(child), Ordering::Release);
                result?;
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        frames: &mut impl TableFrames,
        gpa: Gpa,
        len: u64,
        change: Change,
    ) -> Result<Unflushed, MapError> {
        let range = checked_range(gpa, len)?;
        let splits = Self::splits(frames, self.root, ROOT_LEVEL, range, change)?;
        let mut reserve = reserve(frames, splits)?;
        let mut freed = Chain::default();
        self.apply(
            frames,
            &mut reserve,
            &mut freed,
            self.root,
            ROOT_LEVEL,
            range,
            change,
        );
        reserve.free_all(frames);
        Ok(Unflushed::new(freed))
    }

    /// The number of tables that splitting takes, for a range that must be mapped throughout.
    fn splits(
        frames: &impl TableFrames,
        table: Hpa,
        level: u8,
        range: Piece,
        change: Change,
    ) -> Result<usize, MapError> {
        let mut splits = 0;
        for piece in range.each(level) {
            let entry = frames
                .entry(table, index(piece.start, level))
                .load(Ordering::Relaxed);
            if !F::is_present(entry) {
                return Err(MapError::NotMapped(Gpa::new(piece.start)));
            }
            splits += if F::is_leaf(entry, level) {
                piece.splits(level, change)
            } else {
                Self::splits(frames, F::address(entry), level - 1, piece, change)?
            };
        }
        Ok(splits)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of a recursion, private to it"
    )]
    fn apply(
        &mut self,
        frames: &impl TableFrames,
        reserve: &mut Chain,
        freed: &mut Chain,
        table: Hpa,
        level: u8,
        range: Piece,
        change: Change,
    ) {
        for piece in range.each(level) {
            let cell = frames.entry(table, index(piece.start, level));
            let entry = cell.load(Ordering::Relaxed);
            let child = if !F::is_leaf(entry, level) {
                F::address(entry)
            } else if level == 1 || change.takes_whole(piece, level) {
                match (change, PageSize::of_level(level)) {
                    (Change::Protect(access), Some(size)) => {
                        replace(cell, |old| {
                            F::leaf(F::address(old), access, F::memory_type(old), size)
                                | status::<F>(old)
                        });
                    }
                    (Change::Split, _) => {}
                    _ => cell.store(0, Ordering::Release),
                }
                continue;
            } else {
                let (Some(child), Some(size)) =
                    (reserve.pop(frames), PageSize::of_level(level - 1))
                else {
                    debug_assert!(false, "the tables were counted and reserved");
                    return;
                };
                self.table_frames += 1;
                replace(cell, |old| {
                    for i in 0..ENTRIES {
                        let part = Hpa::new(F::address(old).get() + i as u64 * size.bytes());
                        let leaf = F::leaf(part, F::access(old), F::memory_type(old), size)
                            | status::<F>(old);
                        frames.entry(child, i).store(leaf, Ordering::Relaxed);
                    }
                    F::table(child)
                });
                child
            };
            self.apply(frames, reserve, freed, child, level - 1, piece, change);
            if matches!(change, Change::Unmap)
                && (piece.is_whole(level) || Self::is_empty(frames, child))
            {
                cell.store(0, Ordering::Release);
                freed.push(frames, child);
                self.table_frames -= 1;
            }
        }
    }

    fn is_empty(frames: &impl TableFrames, table: Hpa) -> bool {
        (0..ENTRIES).all(|i| !F::is_present(frames.entry(table, i).load(Ordering::Relaxed)))
    }
}

/// The bits of a leaf that CPUs set.
fn status<F: EntryFormat>(entry: u64) -> u64 {
    entry & (F::ACCESSED | F::DIRTY)
}

/// Replaces an entry without losing bits that a CPU sets in it meanwhile. A CPU has two bits to set, so this ends.
fn replace(cell: &AtomicU64, new: impl Fn(u64) -> u64) {
    let mut old = cell.load(Ordering::Acquire);
    while let Err(seen) = cell.compare_exchange(old, new(old), Ordering::AcqRel, Ordering::Acquire)
    {
        old = seen;
    }
}

fn checked_range(gpa: Gpa, len: u64) -> Result<Piece, MapError> {
    if len == 0 || !len.is_multiple_of(PAGE_SIZE) || !gpa.is_aligned(PAGE_SIZE) {
        return Err(MapError::Misaligned);
    }
    match gpa.checked_add(len) {
        Some(end) if end.get() <= GPA_LIMIT => Ok(Piece {
            start: gpa.get(),
            end: end.get(),
        }),
        _ => Err(MapError::OutOfRange),
    }
}

/// Allocates `count` tables, or none.
fn reserve(frames: &mut impl TableFrames, count: usize) -> Result<Chain, MapError> {
    let mut chain = Chain::default();
    for _ in 0..count {
        match frames.allocate() {
            Some(table) => chain.push(frames, table),
            None => {
                chain.free_all(frames);
                return Err(MapError::OutOfFrames);
            }
        }
    }
    Ok(chain)
}
