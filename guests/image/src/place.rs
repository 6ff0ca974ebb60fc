//! Finding places in RAM, and gathering what goes there.
//!
//! All is placed before anything is written, so that an image that turns out to be damaged leaves no trace. A place is
//! handed out once: what is loaded never overlaps, whatever the image says.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{Immutable, IntoBytes};

use crate::machine::{MemoryKind, PAGE};
use crate::{FOUR_GIB, ImageError, LEGACY, Machine, Module, Region, e820};

/// Where small structures go if there is room: above what systems take for real-mode code and for their other CPUs' first
/// instructions without asking, below video memory.
const LOW: Range<u64> = 0x1_0000..0xa_0000;
/// All that is placed lies here. Page 0 has the real mode's vectors, and an address of 0 means none.
const ALL: Range<u64> = PAGE..FOUR_GIB;
/// A gibibyte and an entry of a page directory.
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// What is to be written where.
pub(crate) struct Loading<'a> {
    /// The memory map.
    pub(crate) map: Vec<Region>,
    /// The system's RAM below 4 GiB, and what of it is still free: both ascending and disjoint.
    ram: Vec<Range<u64>>,
    free: Vec<Range<u64>>,
    pieces: Vec<(u64, Cow<'a, [u8]>)>,
}

impl<'a> Loading<'a> {
    pub(crate) fn new(machine: &Machine<'_>) -> Self {
        let map = e820(machine);
        let ram: Vec<_> = map
            .iter()
            .filter(|region| region.kind == MemoryKind::RAM && region.start < FOUR_GIB)
            .map(|region| region.start..region.end.min(FOUR_GIB))
            .collect();
        Self {
            map,
            free: ram.clone(),
            ram,
            pieces: Vec::new(),
        }
    }

    /// The end of RAM below 4 GiB.
    pub(crate) fn end_of_ram(&self) -> u64 {
        self.ram.last().map_or(0, |range| range.end)
    }

    /// Takes a place that the image names.
    pub(crate) fn claim(&mut self, place: Range<u64>) -> Result<(), ImageError> {
        if within(&self.free, &place) {
            self.take(&place);
            Ok(())
        } else if within(&self.ram, &place) {
            Err(ImageError::SegmentsOverlap)
        } else if place.end > self.end_of_ram() && place.end <= FOUR_GIB {
            Err(ImageError::NeedsRam {
                needs: place.end,
                has: self.end_of_ram(),
            })
        } else {
            Err(ImageError::NotInRam {
                start: place.start,
                end: place.end,
            })
        }
    }

    /// Takes the lowest free place for `bytes` in a range. `align` is a power of two; places are whole pages.
    pub(crate) fn lowest(&mut self, bytes: u64, align: u64, range: Range<u64>) -> Option<u64> {
        let align = align.max(PAGE);
        let size = whole_pages(bytes)?;
        let place = self.free.iter().find_map(|free| {
            let start = free
                .start
                .max(range.start)
                .checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            (end <= free.end.min(range.end)).then_some(start..end)
        })?;
        self.take(&place);
        Some(place.start)
    }

    /// Takes the highest free place for `bytes` in a range, in whole pages.
    pub(crate) fn highest(&mut self, bytes: u64, range: Range<u64>) -> Option<u64> {
        let size = whole_pages(bytes)?;
        let place = self.free.iter().rev().find_map(|free| {
            let start = free.end.min(range.end).checked_sub(size)? / PAGE * PAGE;
            (start >= free.start.max(range.start)).then_some(start..start + size)
        })?;
        self.take(&place);
        Some(place.start)
    }

    /// Takes a place for a small structure.
    pub(crate) fn low(&mut self, what: &'static str, bytes: u64) -> Result<u64, ImageError> {
        self.lowest(bytes, PAGE, LOW)
            .or_else(|| self.lowest(bytes, PAGE, ALL))
            .ok_or(ImageError::NoRoom {
                what,
                bytes,
                below: FOUR_GIB,
            })
    }

    /// Takes a place for a file, behind `kernel`, where loaders have always put them, or else anywhere.
    pub(crate) fn behind(
        &mut self,
        kernel: u64,
        what: &'static str,
        bytes: u64,
    ) -> Result<u64, ImageError> {
        self.lowest(bytes, PAGE, kernel.max(LEGACY.end)..FOUR_GIB)
            .or_else(|| self.lowest(bytes, PAGE, ALL))
            .ok_or(ImageError::NoRoom {
                what,
                bytes,
                below: FOUR_GIB,
            })
    }

    /// Takes places behind the kernel for the modules of a system that knows but one kind of file: the initial RAM disk is
    /// the first. Where each is.
    pub(crate) fn modules(
        &mut self,
        machine: &Machine<'a>,
        kernel: u64,
    ) -> Result<Vec<(u64, Module<'a>)>, ImageError> {
        let initrd = machine.initrd.map(|bytes| Module {
            bytes,
            command_line: "",
        });
        let initrd = initrd.map(|module| ("the initial RAM disk", module));
        let modules = machine.modules.iter().map(|module| ("a module", *module));
        let mut places = Vec::new();
        for (what, module) in initrd.into_iter().chain(modules) {
            let at = self.behind(kernel, what, module.bytes.len() as u64)?;
            self.put(at, module.bytes);
            places.push((at, module));
        }
        Ok(places)
    }

    /// Puts what `build` makes for the address where it is to lie, given the memory map; the second value that it gives. What it makes is
    /// of the same size wherever it lies.
    pub(crate) fn put_block(
        &mut self,
        what: &'static str,
        build: impl Fn(&[Region], u64) -> Result<(Block, u64), ImageError>,
    ) -> Result<u64, ImageError> {
        let size = build(&self.map, 0)?.0.len();
        let at = self.low(what, size)?;
        let (block, within) = build(&self.map, at)?;
        self.put(at, block.into_bytes());
        Ok(within)
    }

    /// Notes what goes to a place that has been taken.
    pub(crate) fn put(&mut self, at: u64, bytes: impl Into<Cow<'a, [u8]>>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.pieces.push((at, bytes));
        }
    }

    /// Writes everything.
    pub(crate) fn write(self, write: &mut dyn FnMut(u64, &[u8]) -> bool) -> Result<(), ImageError> {
        let written = self.pieces.iter().all(|(at, bytes)| write(*at, bytes));
        written.then_some(()).ok_or(ImageError::NotWritten)
    }

    /// Marks a place as taken.
    fn take(&mut self, place: &Range<u64>) {
        if place.is_empty() {
            return;
        }
        let around = |free: Range<u64>| {
            [
                free.start..free.end.min(place.start),
                free.start.max(place.end)..free.end,
            ]
        };
        self.free = self
            .free
            .drain(..)
            .flat_map(around)
            .filter(|part| !part.is_empty())
            .collect();
    }
}

/// Whether one of the ranges has all of `place` in it.
pub(crate) fn within(ranges: &[Range<u64>], place: &Range<u64>) -> bool {
    ranges
        .iter()
        .any(|range| range.start <= place.start && place.end <= range.end)
}

/// A size in whole pages, at least one: an empty file has an address of its own too.
fn whole_pages(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(PAGE)
}

/// Structures that name each other's addresses, one behind the other at a place that is found once their size is known.
///
/// Who fills a block does so twice, at address 0 to know its size and then at its place: the size is the same.
pub(crate) struct Block {
    at: u64,
    bytes: Vec<u8>,
}

impl Block {
    pub(crate) const fn new(at: u64) -> Self {
        Self {
            at,
            bytes: Vec::new(),
        }
    }

    /// Appends bytes at a multiple of `align`, a power of two up to a page; where they are.
    pub(crate) fn push(&mut self, bytes: &[u8], align: usize) -> u64 {
        let start = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytes);
        self.at + start as u64
    }

    /// Appends a string and the zero byte that ends it.
    pub(crate) fn text(&mut self, text: &str) -> u64 {
        let at = self.push(text.as_bytes(), 1);
        self.bytes.push(0);
        at
    }

    /// Appends page tables that map the low 4 GiB to itself by 2 MiB pages; where the first is.
    pub(crate) fn identity_map(&mut self) -> u64 {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        const DIRECTORIES: u64 = FOUR_GIB / GIB;
        let page = PAGE as usize;
        let first = self.push(&[], page);
        let table = |index: u64| U64::new((first + index * PAGE) | PRESENT_WRITABLE);
        self.push(table(1).as_bytes(), page);
        let pointers: Vec<_> = (0..DIRECTORIES).map(|index| table(2 + index)).collect();
        self.push(pointers.as_bytes(), page);
        let large = |index| U64::new((index * LARGE_PAGE) | PRESENT_WRITABLE | LARGE);
        let directories: Vec<_> = (0..FOUR_GIB / LARGE_PAGE).map(large).collect();
        self.push(directories.as_bytes(), page);
        first
    }

    /// What it is to be written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its size.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Appends a structure.
    pub(crate) fn structure(&mut self, structure: &(impl IntoBytes + Immutable + ?Sized)) -> u64 {
        self.push(structure.as_bytes(), 8)
    }
}

/// A command line as a system gets it: a zero byte would end it early.
pub(crate) fn checked(text: &str) -> Result<&str, ImageError> {
    if text.contains('\0') {
        return Err(ImageError::CommandLineZero);
    }
    Ok(text)
}
