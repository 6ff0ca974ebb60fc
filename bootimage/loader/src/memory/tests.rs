//! Tests of the memory regions, among them against a simple model that looks at every page.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges that happen to have one entry"
)]

use bootloader_api::info::MemoryRegionKind::{Bootloader, UnknownUefi, Usable};
use proptest::prelude::*;

use super::*;

fn entry(start: u64, end: u64, kind: u32) -> Entry {
    Entry {
        start,
        end,
        kind,
        write_back: true,
    }
}

fn all(entries: &[Entry], used: &[Range<u64>]) -> Vec<(u64, u64, MemoryRegionKind)> {
    let mut buffer = vec![MemoryRegion::empty(); capacity(entries.len(), used.len())];
    let count = regions(entries.iter().copied(), used, &mut buffer).unwrap();
    buffer[..count]
        .iter()
        .map(|region| (region.start, region.end, region.kind))
        .collect()
}

#[test]
fn kinds_follow_the_specification() {
    let kinds: Vec<_> = (0..16)
        .map(|kind| all(&[entry(0x1000, 0x2000, kind)], &[])[0].2)
        .collect();
    for (number, kind) in (0u32..).zip(kinds) {
        let usable = [1, 2, 3, 4, 7].contains(&number);
        assert_eq!(kind, if usable { Usable } else { UnknownUefi(number) });
    }
    let uncached = Entry {
        write_back: false,
        ..entry(0x1000, 0x2000, 7)
    };
    assert_eq!(all(&[uncached], &[]), [(0x1000, 0x2000, UnknownUefi(7))]);
}

#[test]
fn neighbours_are_joined_and_used_memory_is_cut_out() {
    let entries = [
        entry(0x10_0000, 0x20_0000, 4),
        entry(0x1000, 0xa_0000, 7),
        entry(0x20_0000, 0x30_0000, 7),
        entry(0x30_0000, 0x31_0000, 9),
    ];
    assert_eq!(
        all(
            &entries,
            &[
                0x18_0000..0x18_1000,
                0x18_1000..0x18_3000,
                0x2f_f000..0x30_0000
            ]
        ),
        [
            (0x1000, 0xa_0000, Usable),
            (0x10_0000, 0x18_0000, Usable),
            (0x18_0000, 0x18_3000, Bootloader),
            (0x18_3000, 0x2f_f000, Usable),
            (0x2f_f000, 0x30_0000, Bootloader),
            (0x30_0000, 0x31_0000, UnknownUefi(9)),
        ]
    );
}

#[test]
fn the_first_frame_is_never_usable() {
    assert_eq!(
        all(&[entry(0, 0x9000, 7)], &[]),
        [(0, 0x1000, UnknownUefi(0)), (0x1000, 0x9000, Usable)]
    );
    assert_eq!(
        all(&[entry(0, 0x1000, 7)], &[]),
        [(0, 0x1000, UnknownUefi(0))]
    );
    assert_eq!(
        all(&[entry(0, 0x9000, 6)], &[]),
        [(0, 0x9000, UnknownUefi(6))]
    );
}

#[test]
fn too_little_room_is_an_error() {
    let entries = [entry(0x1000, 0x2000, 7), entry(0x3000, 0x4000, 7)];
    assert_eq!(
        regions(entries.into_iter(), &[], &mut [MemoryRegion::empty(); 1]),
        Err(Full)
    );
}

#[test]
fn ram_is_joined_over_kinds() {
    let entries = [
        entry(0x5000, 0x6000, 6),
        entry(0x1000, 0x3000, 7),
        entry(0x3000, 0x5000, 10),
        entry(0x8000, 0x9000, 11),
    ];
    assert_eq!(ram(entries.into_iter()), [0x1000..0x6000]);
    assert_eq!(physical_memory_len(&[0x1000..0x6000]), 1 << 32);
    assert_eq!(
        physical_memory_len(&[0x1000..0x6000, 1 << 32..(1 << 33) + 1]),
        (1 << 33) + (1 << 21)
    );
}

proptest! {
    #[test]
    fn regions_agree_with_a_model(
        entries in proptest::collection::vec((0u64..60, 0u64..12, 0u32..16, any::<bool>()), 0..20),
        used in proptest::collection::vec((0u64..60, 0u64..6), 0..6)) {
        let entries: Vec<_> = entries.into_iter().map(|(start, len, kind, write_back)|
            Entry { start: start * PAGE, end: (start + len) * PAGE, kind, write_back }).collect();
        let used: Vec<_> = used.into_iter().map(|(start, len)| start * PAGE..(start + len) * PAGE).collect();
        let regions = all(&entries, &used);
        for pair in regions.windows(2) {
            prop_assert!(pair[0].1 <= pair[1].0);
            prop_assert!(pair[0].1 < pair[1].0 || pair[0].2 != pair[1].2, "neighbours that could be joined");
        }
        for address in (0..80).map(|page| page * PAGE) {
            let holds = |entry: &&Entry| entry.start <= address && address < entry.end;
            let taken = entries.iter().rfind(|entry| holds(entry) && !entry.is_usable());
            let free = entries.iter().any(|entry| holds(&entry) && entry.is_usable());
            let expected = match taken {
                _ if used.iter().any(|range| range.contains(&address)) => Some(Bootloader),
                Some(entry) => Some(UnknownUefi(entry.kind)),
                None if free && address == 0 => Some(UnknownUefi(0)),
                None if free => Some(Usable),
                None => None,
            };
            let found = regions.iter().find(|(start, end, _)| (*start..*end).contains(&address)).map(|region| region.2);
            prop_assert_eq!(found, expected, "at {:#x}", address);
        }
    }
}
