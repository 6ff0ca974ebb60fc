//! The loader's memory map as runs of usable memory.
//!
//! Maps come unsorted, and regions may overlap: what any region but a usable one touches is not usable.

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

use super::addr::{Hpa, PAGE_SIZE};

/// A run of memory, from `start` up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first byte, a multiple of 4 KiB.
    pub start: Hpa,
    /// The byte after the last, a multiple of 4 KiB.
    pub end: Hpa,
}

impl Run {
    /// The length in bytes.
    pub const fn len(&self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The usable runs in ascending order, disjoint, in whole frames, without frame 0 (a zero address always means "none").
/// Takes no memory and quadratic time: maps have some hundred regions, and it is for use at boot.
pub fn usable(regions: &[MemoryRegion]) -> impl Iterator<Item = Run> + '_ {
    let mut cursor = PAGE_SIZE;
    core::iter::from_fn(move || {
        loop {
            let (start, end) = regions
                .iter()
                .filter(|region| region.kind == MemoryRegionKind::Usable)
                .filter_map(|region| {
                    let start = region
                        .start
                        .checked_next_multiple_of(PAGE_SIZE)?
                        .max(cursor);
                    let end = region.end & !(PAGE_SIZE - 1);
                    (start < end).then_some((start, end))
                })
                .min()?;
            let taken = regions.iter().filter(|region| {
                region.kind != MemoryRegionKind::Usable && region.start < region.end
            });
            // Where an unusable region covers the start, go on behind it; otherwise stop before the next one.
            if let Some(behind) = taken
                .clone()
                .filter(|r| r.start < start + PAGE_SIZE && r.end > start)
                .map(|r| r.end)
                .max()
            {
                cursor = behind.checked_next_multiple_of(PAGE_SIZE)?;
                continue;
            }
            let end = taken
                .map(|r| r.start & !(PAGE_SIZE - 1))
                .filter(|&s| s > start)
                .fold(end, u64::min);
            cursor = end;
            return Some(Run {
                start: Hpa::new(start),
                end: Hpa::new(end),
            });
        }
    })
}

/// The end of the highest region of any kind: as far as the physical map is sure to reach.
pub fn end(regions: &[MemoryRegion]) -> u64 {
    regions.iter().map(|region| region.end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(start: u64, end: u64, usable: bool) -> MemoryRegion {
        let kind = if usable {
            MemoryRegionKind::Usable
        } else {
            MemoryRegionKind::Bootloader
        };
        MemoryRegion { start, end, kind }
    }

    fn runs(regions: &[MemoryRegion]) -> Vec<(u64, u64)> {
        usable(regions)
            .map(|run| (run.start.get(), run.end.get()))
            .collect()
    }

    #[test]
    fn frame_zero_and_broken_frames_are_left_out() {
        let regions = [region(0x10_0800, 0x10_3800, true), region(0, 0x2000, true)];
        assert_eq!(runs(&regions), [(0x1000, 0x2000), (0x10_1000, 0x10_3000)]);
    }

    #[test]
    fn an_unusable_region_wins_over_a_usable_one() {
        let regions = [region(0x1000, 0x9000, true), region(0x3800, 0x4800, false)];
        assert_eq!(runs(&regions), [(0x1000, 0x3000), (0x5000, 0x9000)]);
    }

    proptest! {
        #[test]
        fn exactly_the_frames_that_are_usable_throughout(
            list in prop::collection::vec((0u64..64 * 4, 0u64..40, any::<bool>()), 0..12),
        ) {
            // In quarters of a frame, so that frames are broken too.
            let regions: Vec<_> =
                list.iter().map(|&(start, len, usable)| region(start * 1024, (start + len) * 1024, usable)).collect();
            let mut last = 0;
            let mut frames = std::collections::BTreeSet::new();
            for (start, end) in runs(&regions) {
                prop_assert!(start < end && start >= last);
                last = end;
                frames.extend((start / 4096)..(end / 4096));
            }
            for frame in 0u64..128 {
                let (start, end) = (frame * 4096, frame * 4096 + 4096);
                let within = |r: &MemoryRegion| r.start <= start && end <= r.end;
                let meets = |r: &MemoryRegion| r.start < r.end && r.start < end && start < r.end;
                let is_usable = |r: &&MemoryRegion| r.kind == MemoryRegionKind::Usable;
                let expected = frame != 0
                    && regions.iter().filter(is_usable).any(within)
                    && !regions.iter().filter(|r| !is_usable(r)).any(meets);
                prop_assert_eq!(frames.contains(&frame), expected, "frame {}", frame);
            }
        }
    }
}
