//! The allocator, pure over the storage it is given.
//!
//! A record describes 1 GiB while all of it has one state, else its 512 blocks of 2 MiB have records, else their 512
//! frames. Records of parts are written when the whole is split, so the storage needs no preparation and a terabyte
//! is set up at once. Three bit sets hold what is free at each size. The cost is 4 bytes a frame for the records and
//! 1/8 byte for the sets: about 4.2 bytes a frame, 0.1 % of memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bitset::BitSet;
use super::{AllocateError, FreeError, Kind, Owner, State, Zero};
use crate::mem::addr::{Hpa, PAGE_SIZE};
use crate::mem::faults;
use crate::mem::nested::PageSize;

/// Parts in a split whole, at either level.
const PARTS: usize = 512;
const FRAMES_IN_GIGA: usize = PARTS * PARTS;
/// Frames below 1 MiB are left to [`Frames::allocate_below`] as long as there are others.
const LOW_FRAMES: usize = 256;

/// A record: the kind in bits 7:0, the domain in bits 31:8.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
struct Record(u32);

impl Record {
    const RESERVED: Self = Self(Kind::Reserved as u32);
    /// Free and known to be zero.
    const FREE: Self = Self(Kind::Free as u32);
    /// Free, but holds what the time before the kernel left there.
    const FREE_DIRTY: Self = Self(0xfe);
    /// The parts have records of their own.
    const SPLIT: Self = Self(0xff);

    fn of_owner(owner: Owner) -> Option<Self> {
        let (kind, domain) = match owner {
            Owner::FrameRecords => (Kind::FrameRecords, 0),
            Owner::KernelHeap => (Kind::KernelHeap, 0),
            Owner::Stack => (Kind::Stack, 0),
            Owner::PageTable => (Kind::PageTable, 0),
            Owner::NestedTable { domain } => (Kind::NestedTable, domain),
            Owner::Virt => (Kind::Virt, 0),
            Owner::GuestRam { domain } => (Kind::GuestRam, domain),
            Owner::Module => (Kind::Module, 0),
            Owner::Trampoline => (Kind::Trampoline, 0),
            Owner::Kernel => (Kind::Kernel, 0),
        };
        (domain < 1 << 24).then_some(Self(kind as u32 | domain << 8))
    }

    fn is_free(self) -> bool {
        self == Self::FREE || self == Self::FREE_DIRTY
    }

    fn kind(self) -> Kind {
        if self == Self::FREE_DIRTY {
            return Kind::Free;
        }
        *Kind::ALL
            .get((self.0 & 0xff) as usize)
            .unwrap_or(&Kind::Reserved)
    }

    fn state(self) -> State {
        let domain = self.0 >> 8;
        State::Owned(match self.kind() {
            Kind::Reserved => return State::Reserved,
            Kind::Free => return State::Free,
            Kind::FrameRecords => Owner::FrameRecords,
            Kind::KernelHeap => Owner::KernelHeap,
            Kind::Stack => Owner::Stack,
            Kind::PageTable => Owner::PageTable,
            Kind::NestedTable => Owner::NestedTable { domain },
            Kind::Virt => Owner::Virt,
            Kind::GuestRam => Owner::GuestRam { domain },
            Kind::Module => Owner::Module,
            Kind::Trampoline => Owner::Trampoline,
            Kind::Kernel => Owner::Kernel,
        })
    }
}

/// The record of a 2 MiB or 1 GiB block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Block {
    record: Record,
    /// Of a split block: how many of its parts are free.
    free_parts: u16,
    /// Of a free 1 GiB block: how many of its parts, from the first on, are known to be zero.
    zeroed_parts: u16,
}

impl Block {
    const fn whole(record: Record) -> Self {
        Self {
            record,
            free_parts: 0,
            zeroed_parts: 0,
        }
    }
}

/// The frame allocator.
#[derive(Debug)]
pub struct Frames<'a, Z> {
    small: &'a mut [Record],
    mega: &'a mut [Block],
    giga: &'a mut [Block],
    /// Free frames of split 2 MiB blocks.
    free_small: BitSet<'a>,
    /// Free 2 MiB blocks of split 1 GiB blocks.
    free_mega: BitSet<'a>,
    /// Free 1 GiB blocks.
    free_giga: BitSet<'a>,
    counts: [u64; Kind::ALL.len()],
    zero: Z,
}

impl core::fmt::Debug for Record {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.state())
    }
}

impl core::fmt::Debug for Block {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.record)
    }
}

fn gigas(limit: u64) -> usize {
    limit.div_ceil(PageSize::Size1G.bytes()) as usize
}

impl<'a, Z: Zero> Frames<'a, Z> {
    /// The storage, in 64-bit words, for memory below `limit` bytes.
    pub fn storage_words(limit: u64) -> usize {
        let gigas = gigas(limit);
        let sets = [gigas, gigas * PARTS, gigas * FRAMES_IN_GIGA];
        gigas
            + gigas * PARTS
            + gigas * FRAMES_IN_GIGA / 2
            + sets.map(BitSet::words).iter().sum::<usize>()
    }

    /// An allocator for memory below `limit` bytes, all of it reserved until [`Frames::add`]. The storage's
    /// content does not matter; `None` where it is shorter than [`Frames::storage_words`].
    pub fn new(storage: &'a mut [u64], limit: u64, zero: Z) -> Option<Self> {
        let gigas = gigas(limit);
        let megas = gigas * PARTS;
        let smalls = gigas * FRAMES_IN_GIGA;
        let (giga, rest) = storage.split_at_mut_checked(gigas)?;
        let (mega, rest) = rest.split_at_mut_checked(megas)?;
        let (small, rest) = rest.split_at_mut_checked(smalls / 2)?;
        let (giga_bits, rest) = rest.split_at_mut_checked(BitSet::words(gigas))?;
        let (mega_bits, rest) = rest.split_at_mut_checked(BitSet::words(megas))?;
        let (small_bits, _) = rest.split_at_mut_checked(BitSet::words(smalls))?;
        let giga = <[Block]>::mut_from_bytes(giga.as_mut_bytes()).ok()?;
        giga.fill(Block::whole(Record::RESERVED));
        let mut counts = [0; Kind::ALL.len()];
        counts[Kind::Reserved as usize] = smalls as u64;
        Some(Self {
            small: <[Record]>::mut_from_bytes(small.as_mut_bytes()).ok()?,
            mega: <[Block]>::mut_from_bytes(mega.as_mut_bytes()).ok()?,
            giga,
            free_small: BitSet::new(small_bits, smalls),
            free_mega: BitSet::new(mega_bits, megas),
            free_giga: BitSet::new(giga_bits, gigas),
            counts,
            zero,
        })
    }

    /// Makes the reserved frames from `start` to `end` (rounded inwards) free; what is not reserved stays as it is. They
    /// are zeroed when they are first allocated. Frame 0 stays reserved for ever. For use at boot: work grows with
    /// the length in 1 GiB blocks.
    pub fn add(&mut self, start: Hpa, end: Hpa) {
        let mut frame = (start.get().div_ceil(PAGE_SIZE) as usize).max(1);
        let end = ((end.get() / PAGE_SIZE) as usize).min(self.small.len());
        while frame < end {
            let left = end - frame;
            let giga = frame / FRAMES_IN_GIGA;
            let mega = frame / PARTS;
            if self.giga[giga].record == Record::RESERVED {
                if frame.is_multiple_of(FRAMES_IN_GIGA) && left >= FRAMES_IN_GIGA {
                    self.recount(Kind::Reserved, Kind::Free, PageSize::Size1G);
                    self.release_giga(giga, 0);
                    frame += FRAMES_IN_GIGA;
                    continue;
                }
                self.split_giga(giga);
            } else if self.giga[giga].record != Record::SPLIT {
                frame = (giga + 1) * FRAMES_IN_GIGA;
                continue;
            }
            if self.mega[mega].record == Record::RESERVED {
                if frame.is_multiple_of(PARTS) && left >= PARTS {
                    self.recount(Kind::Reserved, Kind::Free, PageSize::Size2M);
                    self.release_mega(mega, Record::FREE_DIRTY);
                    frame += PARTS;
                    continue;
                }
                self.split_mega(mega);
            } else if self.mega[mega].record != Record::SPLIT {
                frame = (mega + 1) * PARTS;
                continue;
            }
            if self.small[frame] == Record::RESERVED {
                self.recount(Kind::Reserved, Kind::Free, PageSize::Size4K);
                self.release_small(frame, Record::FREE_DIRTY);
            }
            frame += 1;
        }
    }

    /// Says that `owner` has the reserved frames of `bytes` bytes from `start` on already. For use at boot: work grows with
    /// the length.
    pub fn adopt(&mut self, start: Hpa, bytes: u64, owner: Owner) {
        let first = (start.get() / PAGE_SIZE) as usize;
        let end = (first + bytes.div_ceil(PAGE_SIZE) as usize).min(self.small.len());
        let Some(record) = Record::of_owner(owner) else {
            return;
        };
        for frame in first..end {
            if self.state(address(frame)) != Some(State::Reserved) {
                continue;
            }
            if self.giga[frame / FRAMES_IN_GIGA].record != Record::SPLIT {
                self.split_giga(frame / FRAMES_IN_GIGA);
            }
            if self.mega[frame / PARTS].record != Record::SPLIT {
                self.split_mega(frame / PARTS);
            }
            self.small[frame] = record;
            self.recount(Kind::Reserved, record.kind(), PageSize::Size4K);
        }
    }

    /// The frames there are a record for, the reserved ones included: the sum of all counts.
    pub fn total_frames(&self) -> u64 {
        self.small.len() as u64
    }

    /// The free frames.
    pub fn free_frames(&self) -> u64 {
        self.count(Kind::Free)
    }

    /// The frames in states of this kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    /// The state of the frame at `hpa`; `None` where there is no record for it.
    pub fn state(&self, hpa: Hpa) -> Option<State> {
        let frame = usize::try_from(hpa.get() / PAGE_SIZE).ok()?;
        self.small.get(frame)?;
        let giga = self.giga[frame / FRAMES_IN_GIGA].record;
        if giga != Record::SPLIT {
            return Some(giga.state());
        }
        let mega = self.mega[frame / PARTS].record;
        if mega != Record::SPLIT {
            return Some(mega.state());
        }
        Some(self.small[frame].state())
    }

    /// A zeroed page of `size`.
    ///
    /// # Errors
    /// [`AllocateError::OutOfMemory`]; [`AllocateError::Again`] for 1 GiB only, where the page is not zeroed yet: each call
    /// does 2 MiB of it.
    pub fn allocate(&mut self, size: PageSize, owner: Owner) -> Result<Hpa, AllocateError> {
        if faults::strikes() {
            return Err(AllocateError::OutOfMemory);
        }
        let record = Record::of_owner(owner).ok_or(AllocateError::Invalid)?;
        match size {
            PageSize::Size4K => {
                let frame = self.free_small.first_from(LOW_FRAMES).or_else(|| {
                    let mega = self.some_mega()?;
                    Some(self.open_mega(mega))
                });
                let frame = frame.or_else(|| self.free_small.first_from(0));
                Ok(self.take_small(frame.ok_or(AllocateError::OutOfMemory)?, record))
            }
            PageSize::Size2M => {
                let mega = self.some_mega().ok_or(AllocateError::OutOfMemory)?;
                Ok(self.take_mega(mega, record))
            }
            PageSize::Size1G => {
                let giga = self
                    .free_giga
                    .first_from(0)
                    .ok_or(AllocateError::OutOfMemory)?;
                self.take_giga(giga, record)
            }
        }
    }

    /// A zeroed 4 KiB frame that ends at or below `limit`, a host-physical address.
    ///
    /// # Errors
    /// [`AllocateError::OutOfMemory`].
    pub fn allocate_below(&mut self, limit: u64, owner: Owner) -> Result<Hpa, AllocateError> {
        if faults::strikes() {
            return Err(AllocateError::OutOfMemory);
        }
        let record = Record::of_owner(owner).ok_or(AllocateError::Invalid)?;
        let limit = usize::try_from(limit / PAGE_SIZE).unwrap_or(usize::MAX);
        if let Some(frame) = self.free_small.first_from(0).filter(|&frame| frame < limit) {
            return Ok(self.take_small(frame, record));
        }
        let mega = match self
            .free_mega
            .first_from(0)
            .filter(|&mega| mega * PARTS < limit)
        {
            Some(mega) => mega,
            None => {
                let giga = self
                    .free_giga
                    .first_from(0)
                    .filter(|&giga| giga * FRAMES_IN_GIGA < limit);
                self.open_giga(giga.ok_or(AllocateError::OutOfMemory)?)
            }
        };
        let frame = self.open_mega(mega);
        Ok(self.take_small(frame, record))
    }

    /// `count` (1 to 512) zeroed frames in a row, for what hardware wants contiguous: permission maps, XSAVE areas. Takes
    /// them from the start of a 2 MiB block; they are freed one by one.
    ///
    /// # Errors
    /// [`AllocateError::OutOfMemory`] where no 2 MiB block is free, [`AllocateError::Invalid`] for another count.
    pub fn allocate_run(&mut self, count: usize, owner: Owner) -> Result<Hpa, AllocateError> {
        if faults::strikes() {
            return Err(AllocateError::OutOfMemory);
        }
        let record = Record::of_owner(owner).ok_or(AllocateError::Invalid)?;
        if !(1..=PARTS).contains(&count) {
            return Err(AllocateError::Invalid);
        }
        let mega = self.some_mega().ok_or(AllocateError::OutOfMemory)?;
        let first = self.open_mega(mega);
        for frame in first..first + count {
            self.take_small(frame, record);
        }
        Ok(address(first))
    }

    /// `count` free 2 MiB blocks in a row, with whatever they hold: for the kernel's own use. The search is linear: for use at boot.
    ///
    /// # Errors
    /// [`AllocateError::OutOfMemory`].
    pub fn allocate_blocks(&mut self, count: usize, owner: Owner) -> Result<Hpa, AllocateError> {
        let record = Record::of_owner(owner).ok_or(AllocateError::Invalid)?;
        let mut run = 0;
        for mega in 0..self.mega.len() {
            let giga = self.giga[mega / PARTS].record;
            let free = giga.is_free() || giga == Record::SPLIT && self.mega[mega].record.is_free();
            run = if free { run + 1 } else { 0 };
            if run == count {
                let first = mega + 1 - count;
                for mega in first..first + count {
                    if self.giga[mega / PARTS].record.is_free() {
                        self.open_giga(mega / PARTS);
                    }
                    self.claim_mega(mega, record);
                }
                return Ok(address(first * PARTS));
            }
        }
        Err(AllocateError::OutOfMemory)
    }

    /// Takes back 4 KiB or 2 MiB that `owner` has, zeroing it. A part of a larger page may be freed; a 1 GiB page goes
    /// back in 512 or more calls, as zeroing it at once would take too long.
    ///
    /// # Errors
    /// Any [`FreeError`]: a bug of the caller, logged.
    pub fn free(&mut self, hpa: Hpa, size: PageSize, owner: Owner) -> Result<(), FreeError> {
        let result = self.check_free(hpa, size, owner);
        match result {
            Ok(frame) => {
                let mega = frame / PARTS;
                if self.giga[frame / FRAMES_IN_GIGA].record != Record::SPLIT {
                    self.split_giga(frame / FRAMES_IN_GIGA);
                }
                if size == PageSize::Size4K && self.mega[mega].record != Record::SPLIT {
                    self.split_mega(mega);
                }
                let kind = match size {
                    PageSize::Size4K => self.small[frame].kind(),
                    _ => self.mega[mega].record.kind(),
                };
                self.zero.zero(hpa, size);
                self.recount(kind, Kind::Free, size);
                match size {
                    PageSize::Size4K => self.release_small(frame, Record::FREE),
                    _ => self.release_mega(mega, Record::FREE),
                }
                Ok(())
            }
            Err(error) => {
                log::error!("{size:?} at {hpa} not freed for {owner:?}: {error:?}");
                Err(error)
            }
        }
    }

    /// The number of the first frame, if `owner` has all that is to be freed.
    fn check_free(&self, hpa: Hpa, size: PageSize, owner: Owner) -> Result<usize, FreeError> {
        if !hpa.is_aligned(size.bytes()) {
            return Err(FreeError::Misaligned);
        }
        let frame = usize::try_from(hpa.get() / PAGE_SIZE).map_err(|_| FreeError::OutOfRange)?;
        if frame >= self.small.len() {
            return Err(FreeError::OutOfRange);
        }
        if size == PageSize::Size1G {
            return Err(FreeError::WrongSize);
        }
        let mut record = self.giga[frame / FRAMES_IN_GIGA].record;
        if record == Record::SPLIT {
            record = self.mega[frame / PARTS].record;
        }
        if record == Record::SPLIT {
            if size != PageSize::Size4K {
                return Err(FreeError::WrongSize);
            }
            record = self.small[frame];
        }
        match Record::of_owner(owner) {
            Some(expected) if expected == record => Ok(frame),
            _ => Err(FreeError::NotOwned(record.state())),
        }
    }

    fn recount(&mut self, from: Kind, to: Kind, size: PageSize) {
        self.counts[from as usize] -= size.frames();
        self.counts[to as usize] += size.frames();
    }

    /// A free 2 MiB block, splitting a free 1 GiB block if there is no other.
    fn some_mega(&mut self) -> Option<usize> {
        self.free_mega.first_from(0).or_else(|| {
            let giga = self.free_giga.first_from(0)?;
            Some(self.open_giga(giga))
        })
    }

    fn take_small(&mut self, frame: usize, record: Record) -> Hpa {
        self.free_small.remove(frame);
        self.mega[frame / PARTS].free_parts -= 1;
        if self.small[frame] == Record::FREE_DIRTY {
            self.zero.zero(address(frame), PageSize::Size4K);
        }
        self.small[frame] = record;
        self.recount(Kind::Free, record.kind(), PageSize::Size4K);
        address(frame)
    }

    fn take_mega(&mut self, mega: usize, record: Record) -> Hpa {
        let hpa = address(mega * PARTS);
        if self.mega[mega].record == Record::FREE_DIRTY {
            self.zero.zero(hpa, PageSize::Size2M);
        }
        self.claim_mega(mega, record);
        hpa
    }

    /// Gives a free 2 MiB block its owner; it is not zeroed.
    fn claim_mega(&mut self, mega: usize, record: Record) {
        self.free_mega.remove(mega);
        self.giga[mega / PARTS].free_parts -= 1;
        self.mega[mega] = Block::whole(record);
        self.recount(Kind::Free, record.kind(), PageSize::Size2M);
    }

    fn take_giga(&mut self, giga: usize, record: Record) -> Result<Hpa, AllocateError> {
        let block = &mut self.giga[giga];
        if usize::from(block.zeroed_parts) < PARTS {
            let part = giga * PARTS + usize::from(block.zeroed_parts);
            block.zeroed_parts += 1;
            self.zero.zero(address(part * PARTS), PageSize::Size2M);
            return Err(AllocateError::Again);
        }
        *block = Block::whole(record);
        self.free_giga.remove(giga);
        self.recount(Kind::Free, record.kind(), PageSize::Size1G);
        Ok(address(giga * FRAMES_IN_GIGA))
    }

    /// Splits a free 1 GiB block into free parts; the first of them.
    fn open_giga(&mut self, giga: usize) -> usize {
        self.free_giga.remove(giga);
        self.split_giga(giga);
        giga * PARTS
    }

    /// Splits a free 2 MiB block into free frames; the first of them.
    fn open_mega(&mut self, mega: usize) -> usize {
        self.free_mega.remove(mega);
        self.giga[mega / PARTS].free_parts -= 1;
        self.split_mega(mega);
        mega * PARTS
    }

    /// Gives the parts of a 1 GiB block records of their own, equal to its own.
    fn split_giga(&mut self, giga: usize) {
        let Block {
            record,
            zeroed_parts,
            ..
        } = self.giga[giga];
        for (part, block) in self.mega[giga * PARTS..][..PARTS].iter_mut().enumerate() {
            *block = Block::whole(match record.is_free() {
                true if part < usize::from(zeroed_parts) => Record::FREE,
                true => Record::FREE_DIRTY,
                false => record,
            });
            if record.is_free() {
                self.free_mega.insert(giga * PARTS + part);
            }
        }
        let free_parts = if record.is_free() { PARTS as u16 } else { 0 };
        self.giga[giga] = Block {
            record: Record::SPLIT,
            free_parts,
            zeroed_parts: 0,
        };
    }

    fn split_mega(&mut self, mega: usize) {
        let record = self.mega[mega].record;
        self.small[mega * PARTS..][..PARTS].fill(record);
        if record.is_free() {
            for frame in mega * PARTS..(mega + 1) * PARTS {
                self.free_small.insert(frame);
            }
        }
        let free_parts = if record.is_free() { PARTS as u16 } else { 0 };
        self.mega[mega] = Block {
            record: Record::SPLIT,
            free_parts,
            zeroed_parts: 0,
        };
    }

    /// Makes a frame of a split block free, and joins the block when all of it is.
    fn release_small(&mut self, frame: usize, record: Record) {
        let mega = frame / PARTS;
        self.small[frame] = record;
        self.free_small.insert(frame);
        self.mega[mega].free_parts += 1;
        if usize::from(self.mega[mega].free_parts) < PARTS {
            return;
        }
        let first = mega * PARTS;
        let zeroed = self.small[first..][..PARTS]
            .iter()
            .all(|&part| part == Record::FREE);
        for frame in first..first + PARTS {
            self.free_small.remove(frame);
        }
        self.release_mega(
            mega,
            if zeroed {
                Record::FREE
            } else {
                Record::FREE_DIRTY
            },
        );
    }

    /// Makes a 2 MiB part of a split block free, and joins the block when all of it is.
    fn release_mega(&mut self, mega: usize, record: Record) {
        let giga = mega / PARTS;
        self.mega[mega] = Block::whole(record);
        self.free_mega.insert(mega);
        self.giga[giga].free_parts += 1;
        if usize::from(self.giga[giga].free_parts) < PARTS {
            return;
        }
        let first = giga * PARTS;
        let zeroed = self.mega[first..][..PARTS]
            .iter()
            .take_while(|part| part.record == Record::FREE)
            .count();
        for mega in first..first + PARTS {
            self.free_mega.remove(mega);
        }
        self.release_giga(giga, zeroed as u16);
    }

    fn release_giga(&mut self, giga: usize, zeroed_parts: u16) {
        self.giga[giga] = Block {
            record: Record::FREE,
            free_parts: 0,
            zeroed_parts,
        };
        self.free_giga.insert(giga);
    }
}

fn address(frame: usize) -> Hpa {
    Hpa::new(frame as u64 * PAGE_SIZE)
}
