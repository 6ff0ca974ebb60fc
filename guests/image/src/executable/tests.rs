use proptest::prelude::*;

use super::*;

const RAM: u64 = 1 << 20;
const ENTRY: u64 = 0x8000;

/// A program header; the bytes lie in the file behind all headers.
#[derive(Clone)]
pub(crate) struct Segment {
    kind: u32,
    address: u64,
    bytes: Vec<u8>,
    /// Size in memory.
    memory: u64,
}

impl Segment {
    pub(crate) fn load(address: u64, bytes: &[u8], memory: u64) -> Self {
        Self {
            kind: PT_LOAD,
            address,
            bytes: bytes.to_vec(),
            memory,
        }
    }
}

/// Offsets in the file header (ELF-64 Object File Format, figure 2).
const TYPE: usize = 16;
const MACHINE: usize = 18;
const PROGRAM_HEADERS: usize = 32;
const COUNT: usize = 56;
/// Offset of the size in the file within a program header, and where the first header lies.
const FILE_SIZE: usize = 32;
const FIRST: usize = 64;

pub(crate) fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = vec![0; FIRST];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[TYPE] = 2;
    file[MACHINE] = 62;
    file[20] = 1;
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[PROGRAM_HEADERS] = FIRST as u8;
    file[52] = 64;
    file[54] = 56;
    file[COUNT] = segments.len() as u8;
    let mut offset = FIRST + 56 * segments.len();
    for segment in segments {
        file.extend(segment.kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        let size = segment.bytes.len();
        for word in [
            offset as u64,
            // Not the linear but the physical address counts.
            0xdead_0000,
            segment.address,
            size as u64,
            segment.memory,
            1,
        ] {
            file.extend(word.to_le_bytes());
        }
        offset += size;
    }
    for segment in segments {
        file.extend(&segment.bytes);
    }
    file
}

/// A domain's memory: low RAM and firmware's.
struct Ram {
    low: Vec<u8>,
    high: Vec<u8>,
}

impl Ram {
    fn new(size: u64) -> Self {
        Self {
            low: vec![0; size as usize],
            high: vec![0; (1 << 20) as usize],
        }
    }

    /// Panics where an image reaches outside.
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let (ram, at) = if gpa >= FIRMWARE {
            (&mut self.high, gpa - FIRMWARE)
        } else {
            (&mut self.low, gpa)
        };
        ram[at as usize..][..bytes.len()].copy_from_slice(bytes);
        true
    }

    fn u64_at(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.low[gpa as usize..][..8].try_into().unwrap())
    }
}

fn load(file: &[u8], ram: u64) -> Result<(VcpuState, Ram), ImageError> {
    let mut memory = Ram::new(ram);
    let state = Executable::parse(file)?.load(ram, &mut |gpa, bytes| memory.write(gpa, bytes))?;
    Ok((state, memory))
}

fn error(file: &[u8], ram: u64) -> ImageError {
    load(file, ram).map(|(state, _)| state).unwrap_err()
}

#[test]
fn an_ordinary_guest_starts_in_long_mode() {
    let note = Segment {
        kind: 4,
        address: u64::MAX,
        bytes: vec![9],
        memory: 1,
    };
    let file = elf(
        ENTRY,
        &[
            Segment::load(ENTRY, b"code", 0x1000),
            note,
            Segment::load(0x9000, b"data", 4),
        ],
    );
    let (state, memory) = load(&file, RAM).unwrap();
    let tables = RAM - 3 * 4096;
    let mut expected = VcpuState::long_mode(ENTRY, tables, tables);
    expected.rdi = RAM;
    assert_eq!(state, expected);
    assert!(!Executable::parse(&file).unwrap().is_firmware());
    assert_eq!(&memory.low[0x8000..0x8006], b"code\0\0");
    assert_eq!(&memory.low[0x9000..0x9006], b"data\0\0");
}

#[test]
fn the_first_page_tables_map_the_low_gib_to_itself() {
    let (state, memory) = load(&elf(ENTRY, &[]), RAM).unwrap();
    let table = |entry: u64| {
        assert_eq!(entry & 0xfff, 3);
        entry & !0xfff
    };
    let directory = table(memory.u64_at(table(memory.u64_at(state.cr3))));
    for index in 0..512 {
        assert_eq!(memory.u64_at(directory + 8 * index), index << 21 | 0x83);
    }
    // Nothing else of the first two tables is there.
    assert_eq!(memory.u64_at(state.cr3 + 8), 0);
    assert_eq!(memory.u64_at(state.cr3 + 4096 + 8), 0);
}

#[test]
fn firmware_starts_after_reset() {
    let file = elf(
        RESET_VECTOR,
        &[
            Segment::load(FIRMWARE, b"first", 5),
            Segment::load(RESET_VECTOR, &[0xeb; 16], 16),
            Segment::load(0x7000, b"low", 3),
        ],
    );
    assert!(Executable::parse(&file).unwrap().is_firmware());
    let (state, memory) = load(&file, RAM).unwrap();
    assert_eq!(state, VcpuState::RESET);
    assert_eq!(&memory.high[..5], b"first");
    assert_eq!(&memory.high[0xf_fff0..], [0xeb; 16]);
    assert_eq!(&memory.low[0x7000..0x7003], b"low");
    // No page tables.
    assert_eq!(memory.u64_at(RAM - 3 * 4096), 0);
}

#[test]
fn what_is_no_static_executable_is_refused() {
    let good = elf(ENTRY, &[Segment::load(ENTRY, b"code", 4)]);
    assert_eq!(error(b"", RAM), ImageError::NotElf);
    assert_eq!(error(&[0; 4096], RAM), ImageError::NotElf);
    assert_eq!(error(&good[..63], RAM), ImageError::NotElf);
    let damaged = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        error(&file, RAM)
    };
    assert_eq!(damaged(0, 0), ImageError::NotElf);
    // Big endian.
    assert_eq!(damaged(5, 2), ImageError::NotElf);
    // ET_DYN; EM_386.
    assert_eq!(damaged(TYPE, 3), ImageError::NotStatic);
    assert_eq!(damaged(MACHINE, 3), ImageError::NotStatic);
    assert_eq!(damaged(PROGRAM_HEADERS, 0), ImageError::NoSegments);
    // More headers than the file has room for.
    assert_eq!(damaged(COUNT + 1, 0xff), ImageError::NotElf);
}

#[test]
fn a_segment_must_be_in_the_file() {
    let file = elf(ENTRY, &[Segment::load(ENTRY, b"code", 0x1000)]);
    assert_eq!(
        error(&file[..file.len() - 1], RAM),
        ImageError::SegmentTruncated
    );
    for size in [5u64, u64::MAX] {
        let mut file = file.clone();
        file[FIRST + FILE_SIZE..][..8].copy_from_slice(&size.to_le_bytes());
        assert_eq!(error(&file, RAM), ImageError::SegmentTruncated, "{size:#x}");
    }
    let file = elf(ENTRY, &[Segment::load(ENTRY, b"code", 3)]);
    assert_eq!(error(&file, RAM), ImageError::SegmentOverflows);
}

#[test]
fn a_segment_must_be_in_ram() {
    let top = RAM - 3 * 4096;
    let try_at = |entry: u64, address: u64, memory: u64| {
        load(&elf(entry, &[Segment::load(address, b"code", memory)]), RAM).map(drop)
    };
    // Up to the page tables, and not a byte further.
    assert_eq!(try_at(ENTRY, top - 4, 4), Ok(()));
    assert_eq!(
        try_at(ENTRY, top - 4, 5),
        Err(ImageError::SegmentOutsideRam)
    );
    assert_eq!(try_at(ENTRY, top, 4), Err(ImageError::SegmentOutsideRam));
    assert_eq!(try_at(ENTRY, 0, top), Ok(()));
    assert_eq!(
        try_at(ENTRY, 0, top + 1),
        Err(ImageError::SegmentOutsideRam)
    );
    // Firmware's RAM is firmware's only, and ends at 4 GiB.
    assert_eq!(
        try_at(ENTRY, FIRMWARE, 4),
        Err(ImageError::SegmentOutsideRam)
    );
    assert_eq!(
        try_at(RESET_VECTOR, FIRMWARE - 1, 4),
        Err(ImageError::SegmentOutsideRam)
    );
    assert_eq!(try_at(RESET_VECTOR, FIRMWARE, 1 << 20), Ok(()));
    assert_eq!(
        try_at(RESET_VECTOR, FIRMWARE, (1 << 20) + 1),
        Err(ImageError::SegmentOutsideRam)
    );
    // Huge ones.
    assert_eq!(
        try_at(ENTRY, u64::MAX - 4, 4),
        Err(ImageError::SegmentOutsideRam)
    );
    assert_eq!(
        try_at(ENTRY, u64::MAX - 3, 4),
        Err(ImageError::SegmentWraps)
    );
    assert_eq!(
        try_at(ENTRY, ENTRY, u64::MAX),
        Err(ImageError::SegmentWraps)
    );
    assert_eq!(
        try_at(RESET_VECTOR, u64::MAX, u64::MAX),
        Err(ImageError::SegmentWraps)
    );
}

#[test]
fn ram_must_hold_the_tables_and_be_mapped_by_them() {
    let ordinary = elf(ENTRY, &[]);
    let firmware = elf(RESET_VECTOR, &[]);
    let on = |file: &[u8], ram: u64| {
        Executable::parse(file)
            .and_then(|file| file.load(ram, &mut |_, _| true))
            .map(drop)
    };
    assert_eq!(on(&ordinary, 0), Err(ImageError::TooLittleRam));
    assert_eq!(on(&ordinary, 8192), Err(ImageError::TooLittleRam));
    assert_eq!(on(&ordinary, 12288), Ok(()));
    assert_eq!(on(&ordinary, RAM + 1), Err(ImageError::UnalignedRam));
    assert_eq!(on(&ordinary, 1 << 30), Ok(()));
    assert_eq!(on(&ordinary, (1 << 30) + 4096), Err(ImageError::TooMuchRam));
    assert_eq!(on(&firmware, 2 << 30), Ok(()));
}

#[test]
fn a_write_that_fails_is_an_error() {
    let refuse = |file: &[u8]| {
        Executable::parse(file)
            .unwrap()
            .load(RAM, &mut |_, _| false)
            .map(drop)
    };
    let with_segment = elf(ENTRY, &[Segment::load(ENTRY, b"code", 4)]);
    assert_eq!(refuse(&with_segment), Err(ImageError::SegmentOutsideRam));
    assert_eq!(refuse(&elf(ENTRY, &[])), Err(ImageError::TooLittleRam));
}

proptest! {
    /// Nothing that a damaged image says makes it panic or write outside (where [`Ram`] panics).
    #[test]
    fn damaged_images_stay_inside(
        firmware: bool,
        damage in prop::collection::vec((0usize..300, any::<u8>()), 0..12),
        length in 0usize..300,
    ) {
        let entry = if firmware { RESET_VECTOR } else { ENTRY };
        let mut file = elf(entry, &[
            Segment::load(ENTRY, b"code", 0x1000),
            Segment::load(if firmware { RESET_VECTOR } else { 0x9000 }, b"data", 8),
        ]);
        for (at, value) in damage {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        file.truncate(length.max(64));
        let _ = load(&file, RAM);
    }

    /// As before, with headers that are whole but say anything.
    #[test]
    fn any_segment_stays_inside(
        firmware: bool,
        address in prop_oneof![any::<u64>(), 0..RAM * 2, FIRMWARE - 16..(1u64 << 32) + 16],
        memory in prop_oneof![any::<u64>(), 0..RAM * 2],
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let entry = if firmware { RESET_VECTOR } else { ENTRY };
        let _ = load(&elf(entry, &[Segment::load(address, &bytes, memory)]), RAM);
    }
}
