//! What the tests of all formats need: a memory that tells on its writer, and a builder of ELF files.

use std::ops::Range;

use plinth_abi::VcpuState;
use proptest::prelude::*;

use crate::{
    FOUR_GIB, Format, Image, ImageError, LEGACY, Machine, MemoryKind, Region, e820, ram_ranges,
};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// What was written; a write outside the memory, or over another, is a panic.
pub(crate) struct Memory {
    ram: Vec<Range<u64>>,
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
}

impl Memory {
    pub(crate) fn new(ram: &[Range<u64>]) -> Self {
        Self {
            ram: ram.to_vec(),
            pieces: Vec::new(),
        }
    }

    /// What the system may use of the machine's RAM.
    pub(crate) fn of(machine: &Machine<'_>) -> Self {
        let ram: Vec<_> = e820(machine)
            .iter()
            .filter(|region| region.kind == MemoryKind::RAM)
            .map(|region| region.start..region.end)
            .collect();
        Self::new(&ram)
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> bool {
        let end = at + bytes.len() as u64;
        assert!(
            self.ram.iter().any(|ram| ram.start <= at && end <= ram.end),
            "{at:#x} to {end:#x} is outside RAM"
        );
        assert!(
            self.written(at..end).next().is_none(),
            "{at:#x} to {end:#x} is written twice"
        );
        self.pieces.push((at, bytes.to_vec()));
        true
    }

    /// Where something was written within a range.
    pub(crate) fn written(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        self.pieces.iter().filter_map(move |(at, bytes)| {
            let end = at + bytes.len() as u64;
            (*at < range.end && range.start < end).then_some(*at)
        })
    }

    /// Bytes of memory, which was zero.
    pub(crate) fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let mut read = vec![0; length as usize];
        for (start, bytes) in &self.pieces {
            let overlap = at.max(*start)..(at + length).min(start + bytes.len() as u64);
            for address in overlap {
                read[(address - at) as usize] = bytes[(address - start) as usize];
            }
        }
        read
    }

    pub(crate) fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    pub(crate) fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at, 4).try_into().unwrap())
    }

    pub(crate) fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().unwrap())
    }

    /// The string at an address, which a zero byte ends.
    pub(crate) fn text(&self, at: impl Into<u64>) -> String {
        let mut bytes = Vec::new();
        for at in at.into().. {
            match self.read(at, 1)[0] {
                0 => break,
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).unwrap()
    }
}

/// Loads an image of a format whose loader writes nothing before it knows that all is well.
pub(crate) fn load_as(
    format: Format,
    image: &[u8],
    machine: &Machine<'_>,
) -> Result<(VcpuState, Memory), ImageError> {
    let mut memory = Memory::of(machine);
    let image = Image::with_format(image, format)?;
    let result = image.load(machine, &mut |at, bytes| memory.write(at, bytes));
    if result.is_err() {
        assert!(memory.pieces.is_empty(), "an error leaves a part");
    }
    Ok((result?, memory))
}

/// Loads whatever `image` is.
pub(crate) fn load(image: &[u8], machine: &Machine<'_>) -> Result<(VcpuState, Memory), ImageError> {
    load_as(Image::detect(image)?.format(), image, machine)
}

/// Loads it into a PC of so much RAM with nothing else.
pub(crate) fn on_pc(image: &[u8], ram: u64) -> Result<(VcpuState, Memory), ImageError> {
    let machine = Machine {
        ram: &ram_ranges(ram),
        reserved: &[LEGACY],
        ..Machine::default()
    };
    load(image, &machine)
}

pub(crate) fn error_on_pc(image: &[u8], ram: u64) -> ImageError {
    on_pc(image, ram).map(|(state, _)| state).unwrap_err()
}

/// ACPI's tables somewhere in a PC of a GiB.
pub(crate) const ACPI: Region = Region {
    start: GIB - 2 * MIB,
    end: GIB - 2 * MIB + 0x8000,
    kind: MemoryKind::ACPI,
};

/// Machines of all sorts, by their RAM and what of it is reserved.
pub(crate) fn machines() -> impl Strategy<Value = (Vec<Range<u64>>, Vec<Region>)> {
    let size = prop_oneof![0..4 * MIB, 0..256 * MIB, 0..8 * GIB];
    let kind = (1u32..5).prop_map(MemoryKind);
    let region = (0..256 * MIB, 0..32 * MIB, kind).prop_map(|(start, length, kind)| Region {
        start,
        end: start + length,
        kind,
    });
    let odd = (any::<u64>(), any::<u64>()).prop_map(|(start, end)| Region {
        start,
        end,
        kind: MemoryKind::RESERVED,
    });
    let reserved = prop_oneof![
        4 => Just(vec![LEGACY]),
        2 => prop::collection::vec(region, 0..6),
        1 => prop::collection::vec(odd, 0..3),
    ];
    let ram = prop_oneof![
        4 => size.prop_map(|size| ram_ranges(size).to_vec()),
        1 => Just(vec![0..0xa_0000, MIB..96 * MIB, FOUR_GIB - MIB..FOUR_GIB + MIB]),
        1 => (0..64 * MIB, 0..128 * MIB).prop_map(|(start, end)| vec![start..end]),
    ];
    (ram, reserved)
}

/// Some bytes of a file changed, by their place in proportion to its length, and the file cut off.
#[derive(Debug)]
pub(crate) struct Damage {
    changes: Vec<(u16, u8)>,
    cut: Option<u16>,
}

/// Any damage. Half of the changes are in the first part of the file, where the headers are.
pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![Just(0u8), Just(0xffu8), Just(0x80u8), any::<u8>()];
    let place = prop_oneof![any::<u16>(), 0..3000u16];
    let changes = prop::collection::vec((place, byte), 0..12);
    let cut = prop_oneof![3 => Just(None), 1 => any::<u16>().prop_map(Some)];
    (changes, cut).prop_map(|(changes, cut)| Damage { changes, cut })
}

impl Damage {
    pub(crate) fn of(&self, mut file: Vec<u8>) -> Vec<u8> {
        let length = file.len();
        let place = |at: u16| (usize::from(at) * length) >> 16;
        for (at, byte) in &self.changes {
            file[place(*at)] = *byte;
        }
        file.truncate(self.cut.map_or(length, place));
        file
    }
}

/// A segment of an ELF file.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) linear: u64,
    pub(crate) physical: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: u64,
    pub(crate) align: u64,
}

impl Segment {
    pub(crate) fn load(physical: u64, bytes: &[u8], memory: u64) -> Self {
        Self {
            kind: elf::abi::PT_LOAD,
            linear: physical.wrapping_add(0xc000_0000),
            physical,
            bytes: bytes.to_vec(),
            memory,
            align: 4096,
        }
    }

    /// A segment of notes: each a name, a type and what it holds.
    pub(crate) fn notes(align: u64, notes: &[(&[u8], u32, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        let step = align.max(4) as usize;
        for (name, kind, description) in notes {
            for word in [name.len() as u32, description.len() as u32, *kind] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(*name);
            bytes.resize(bytes.len().next_multiple_of(step), 0);
            bytes.extend(*description);
            bytes.resize(bytes.len().next_multiple_of(step), 0);
        }
        Self {
            kind: elf::abi::PT_NOTE,
            linear: 0,
            physical: 0,
            memory: bytes.len() as u64,
            bytes,
            align,
        }
    }
}

/// A section of an ELF file that is in no segment.
#[derive(Clone)]
pub(crate) struct Section {
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) align: u64,
}

/// An ELF file (System V ABI, chapters 4 and 5; ELF-64 Object File Format).
#[derive(Clone)]
pub(crate) struct Elf {
    pub(crate) wide: bool,
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
    pub(crate) sections: Vec<Section>,
}

impl Elf {
    /// Where the first segment's bytes are.
    pub(crate) fn first_byte(&self) -> usize {
        let (header, entry) = if self.wide { (64, 56) } else { (52, 32) };
        header + entry * self.segments.len()
    }

    /// The file. The section headers are its end; the one with the names is the last.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut contents: Vec<u8> = Vec::new();
        let first = self.first_byte();
        let mut place = |bytes: &[u8]| {
            let at = first + contents.len();
            contents.extend(bytes);
            at as u64
        };
        let mut headers = Vec::new();
        for segment in &self.segments {
            let offset = place(&segment.bytes);
            let size = segment.bytes.len() as u64;
            let (linear, physical) = (segment.linear, segment.physical);
            headers.extend(segment.kind.to_le_bytes());
            if self.wide {
                headers.extend(7u32.to_le_bytes());
                let words = [
                    offset,
                    linear,
                    physical,
                    size,
                    segment.memory,
                    segment.align,
                ];
                headers.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            } else {
                let words = [
                    offset,
                    linear,
                    physical,
                    size,
                    segment.memory,
                    7,
                    segment.align,
                ];
                headers.extend(words.iter().flat_map(|word| (*word as u32).to_le_bytes()));
            }
        }
        let none = Section {
            kind: 0,
            flags: 0,
            bytes: Vec::new(),
            align: 0,
        };
        let all: Vec<_> = [none].into_iter().chain(self.sections.clone()).collect();
        let mut sections = Vec::new();
        for section in &all {
            let offset = place(&section.bytes);
            let size = section.bytes.len() as u64;
            sections.extend(1u32.to_le_bytes());
            sections.extend(section.kind.to_le_bytes());
            if self.wide {
                let words = [section.flags, 0, offset, size, 0, section.align, 0];
                sections.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            } else {
                let words = [section.flags, 0, offset, size, 0, 0, section.align, 0];
                sections.extend(words.iter().flat_map(|word| (*word as u32).to_le_bytes()));
            }
        }
        let has_sections = !self.sections.is_empty();
        let sections_at = if has_sections {
            (first + contents.len()) as u64
        } else {
            0
        };
        let mut file = b"\x7fELF".to_vec();
        file.extend([1 + u8::from(self.wide), 1, 1]);
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(if self.wide { 62u16 } else { 3 }.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        let header = if self.wide { 64u64 } else { 52 };
        for word in [self.entry, header, sections_at] {
            if self.wide {
                file.extend(word.to_le_bytes());
            } else {
                file.extend((word as u32).to_le_bytes());
            }
        }
        file.extend(0u32.to_le_bytes());
        let sizes = if self.wide {
            (64, 56, 64)
        } else {
            (52, 32, 40)
        };
        let count = if has_sections { all.len() } else { 0 };
        for half in [
            sizes.0,
            sizes.1,
            self.segments.len(),
            sizes.2,
            count,
            count.saturating_sub(1),
        ] {
            file.extend((half as u16).to_le_bytes());
        }
        file.extend(headers);
        assert_eq!(file.len(), first);
        file.extend(contents);
        if has_sections {
            file.extend(sections);
        }
        file
    }
}
