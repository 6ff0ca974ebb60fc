//! Reads the kernel's ELF64 file and puts its image into memory.
//!
//! Field offsets are those of the System V ABI, chapters 4 and 5, and of its x86-64 supplement. The whole file is
//! checked before anything is used: [`Kernel::parse`] fails, or every later step works.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use bootloader_api::BootloaderConfig;
use bootloader_api::info::TlsTemplate;

use crate::mapping::Access;
use crate::{PAGE, is_canonical, page_down, page_up};

/// The section into which `bootloader_api::entry_point!` writes the configuration.
const CONFIG_SECTION: &[u8] = b".bootloader-config";

/// The loaded image must fit in as many bytes: what is larger is a damaged file.
const SPAN_LIMIT: u64 = 1 << 30;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_TLS: u32 = 7;
const PT_GNU_RELRO: u32 = 0x6474_e552;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const DT_NULL: u64 = 0;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;
const DT_REL: u64 = 17;
const DT_JMPREL: u64 = 23;
const DT_RELR: u64 = 36;
const R_X86_64_NONE: u64 = 0;
const R_X86_64_RELATIVE: u64 = 8;

/// What is wrong with a kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// The file does not begin with the ELF magic number.
    NotElf,
    /// It is an ELF file for something else; the text says what was expected.
    Wrong(&'static str),
    /// A table reaches beyond the end of the file.
    Truncated(&'static str),
    /// A program header (counted from 0) is wrong.
    Segment(usize, &'static str),
    /// Something else in it contradicts itself.
    Damaged(&'static str),
    /// There is no usable configuration.
    Config(&'static str),
    /// Kernel and loader were built with different versions (major, minor) of `bootloader_api`.
    ApiVersion {
        /// The kernel's version.
        kernel: (u16, u16),
        /// The loader's version.
        loader: (u16, u16),
    },
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotElf => write!(f, "is not an ELF file"),
            Self::Wrong(what) => write!(f, "is not a kernel: {what}"),
            Self::Truncated(what) => write!(f, "is damaged: {what} beyond the end of the file"),
            Self::Segment(index, what) => write!(f, "is damaged: segment {index} {what}"),
            Self::Damaged(what) => write!(f, "is damaged: {what}"),
            Self::Config(what) => write!(f, "has no usable boot configuration: {what}"),
            Self::ApiVersion { kernel, loader } => write!(
                f,
                "was built with version {}.{} of bootloader_api, the loader with {}.{}",
                kernel.0, kernel.1, loader.0, loader.1
            ),
        }
    }
}

impl core::error::Error for ElfError {}

/// A part of the file that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    /// Its address as linked.
    address: u64,
    /// Its bytes in the file.
    file: Range<usize>,
    /// Its length in memory; what exceeds the bytes in the file is zero.
    len: u64,
    access: Access,
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + self.len
    }

    fn contains(&self, range: &Range<u64>) -> bool {
        self.address <= range.start && range.end <= self.end()
    }
}

/// A checked kernel file.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    file: &'a [u8],
    entry: u64,
    relocatable: bool,
    segments: Vec<Segment>,
    relro: Option<Range<u64>>,
    tls: Option<TlsTemplate>,
    relocations: Range<usize>,
    /// How the kernel asks to be loaded.
    pub config: BootloaderConfig,
}

impl<'a> Kernel<'a> {
    /// Checks a kernel file.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        if file.get(..4) != Some(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let header = bytes(file, 0, 64).ok_or(ElfError::Truncated("the file header reaches"))?;
        if header[4..7] != [2, 1, 1] {
            return Err(ElfError::Wrong("it is not a 64-bit little-endian file"));
        }
        if u16_at(header, 18) != 62 {
            return Err(ElfError::Wrong("it is not for x86-64"));
        }
        let relocatable = match u16_at(header, 16) {
            2 => false,
            3 => true,
            _ => return Err(ElfError::Wrong("it is not an executable")),
        };
        let mut kernel = Self {
            file,
            entry: u64_at(header, 24),
            relocatable,
            segments: Vec::new(),
            relro: None,
            tls: None,
            relocations: 0..0,
            config: config(file, header)?,
        };
        kernel.read_program_headers(header)?;
        let entry = kernel.entry..kernel.entry.saturating_add(1);
        if !kernel
            .segments
            .iter()
            .any(|segment| segment.access.executable && segment.contains(&entry))
        {
            return Err(ElfError::Damaged("the entry point is outside of the code"));
        }
        Ok(kernel)
    }

    /// The entry point as linked.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Whether the image may be loaded elsewhere than linked.
    pub fn is_relocatable(&self) -> bool {
        self.relocatable
    }

    /// The pages that the image fills, as linked: first address and address after the end, page-aligned. There may be
    /// gaps in it.
    pub fn span(&self) -> Range<u64> {
        match (self.segments.first(), self.segments.last()) {
            // `read_program_headers` checked that the end can be rounded up.
            (Some(first), Some(last)) => page_down(first.address)..page_down(last.end() - 1) + PAGE,
            _ => 0..0,
        }
    }

    /// The template of thread-local storage, at an address as linked.
    pub fn tls(&self) -> Option<TlsTemplate> {
        self.tls
    }

    /// The pages of the image with their access rights, ascending, by the address as linked.
    ///
    /// A page is read-only after loading if all that a segment has in it lies within the part named by `PT_GNU_RELRO`.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Access)> + '_ {
        self.segments.iter().flat_map(move |segment| {
            let first = page_down(segment.address);
            let count = (page_down(segment.end() - 1) - first) / PAGE + 1;
            (0..count).map(move |index| {
                let page = first + index * PAGE;
                let used =
                    page.max(segment.address)..(page + (PAGE - 1)).min(segment.end() - 1) + 1;
                let sealed = self
                    .relro
                    .as_ref()
                    .is_some_and(|relro| relro.start <= used.start && used.end <= relro.end);
                (page, if sealed { Access::READ } else { segment.access })
            })
        })
    }

    /// Writes the image to `memory`, which is as long as [`span`](Self::span) and stands for it, relocated so that it
    /// runs `bias` bytes above where it was linked. Bytes between the segments become zero.
    ///
    /// # Errors
    /// [`ElfError::Damaged`] if a relocation is unknown or points outside of the image, or the lengths differ.
    pub fn load(&self, memory: &mut [u8], bias: u64) -> Result<(), ElfError> {
        let span = self.span();
        if memory.len() as u64 != span.end - span.start {
            return Err(ElfError::Damaged("the memory for it has another length"));
        }
        memory.fill(0);
        for segment in &self.segments {
            let data = &self.file[segment.file.clone()];
            let at = (segment.address - span.start) as usize;
            memory[at..at + data.len()].copy_from_slice(data);
        }
        for entry in self.file[self.relocations.clone()].chunks_exact(24) {
            match u64_at(entry, 8) {
                R_X86_64_NONE => {}
                R_X86_64_RELATIVE => {
                    let target = u64_at(entry, 0);
                    let range = target..target.checked_add(8).ok_or(OUTSIDE)?;
                    if !self.segments.iter().any(|segment| segment.contains(&range)) {
                        return Err(OUTSIDE);
                    }
                    let at = (target - span.start) as usize;
                    let value = u64_at(entry, 16).wrapping_add(bias);
                    memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => return Err(ElfError::Damaged("it has a relocation of an unknown kind")),
            }
        }
        Ok(())
    }

    fn read_program_headers(&mut self, header: &[u8]) -> Result<(), ElfError> {
        let table = table(
            self.file,
            u64_at(header, 32),
            u16_at(header, 54),
            56,
            u16_at(header, 56),
        )
        .ok_or(ElfError::Truncated("the program headers reach"))?;
        let mut dynamic = None;
        for (index, entry) in table.chunks_exact(56).enumerate() {
            let wrong = |what| ElfError::Segment(index, what);
            let kind = u32_at(entry, 0);
            if ![PT_LOAD, PT_DYNAMIC, PT_TLS, PT_GNU_RELRO].contains(&kind) {
                continue;
            }
            let address = u64_at(entry, 16);
            let (file_len, len) = (u64_at(entry, 32), u64_at(entry, 40));
            let end = address
                .checked_add(len)
                .ok_or(wrong("reaches beyond the end of the address space"))?;
            match kind {
                PT_GNU_RELRO => {
                    self.relro = Some(address..end);
                    continue;
                }
                PT_LOAD if len == 0 => continue,
                _ => {}
            }
            if file_len > len {
                return Err(wrong("is longer in the file than in memory"));
            }
            let file = range(self.file, u64_at(entry, 8), file_len)
                .ok_or(wrong("reaches beyond the end of the file"))?;
            match kind {
                PT_DYNAMIC => dynamic = Some(file),
                PT_TLS => {
                    self.tls = Some(TlsTemplate {
                        start_addr: address,
                        file_size: file_len,
                        mem_size: len,
                    });
                }
                _ => {
                    let flags = u32_at(entry, 4);
                    let access = Access {
                        writable: flags & PF_W != 0,
                        executable: flags & PF_X != 0,
                    };
                    if access.writable && access.executable {
                        return Err(wrong("is both writable and executable"));
                    }
                    if page_up(end).is_none() || !is_canonical(address) || !is_canonical(end - 1) {
                        return Err(wrong("is at an impossible address"));
                    }
                    self.segments.push(Segment {
                        address,
                        file,
                        len,
                        access,
                    });
                }
            }
        }
        self.segments
            .sort_unstable_by_key(|segment| segment.address);
        if self.segments.is_empty() {
            return Err(ElfError::Damaged("there is nothing to load"));
        }
        if self
            .segments
            .windows(2)
            .any(|pair| page_down(pair[0].end() - 1) >= page_down(pair[1].address))
        {
            return Err(ElfError::Damaged("two segments share a page"));
        }
        let span = self.span();
        if span.end - span.start > SPAN_LIMIT || (span.start ^ (span.end - 1)) >> 63 != 0 {
            return Err(ElfError::Damaged("its segments are too far apart"));
        }
        if let Some(tls) = self.tls {
            // Only what the file holds is loaded; the zeros behind it exist in each thread's copy.
            let template = tls.start_addr..tls.start_addr + tls.file_size;
            if tls.file_size > 0
                && !self
                    .segments
                    .iter()
                    .any(|segment| segment.contains(&template))
            {
                return Err(ElfError::Damaged(
                    "its thread-local data is outside of what is loaded",
                ));
            }
        }
        if let (true, Some(dynamic)) = (self.relocatable, dynamic) {
            self.relocations = self.find_relocations(dynamic)?;
        }
        Ok(())
    }

    /// Where the file holds the relocation table named by the dynamic section.
    fn find_relocations(&self, dynamic: Range<usize>) -> Result<Range<usize>, ElfError> {
        let (mut address, mut len, mut entry_len) = (0, 0, 24);
        for entry in self.file[dynamic].chunks_exact(16) {
            let value = u64_at(entry, 8);
            match u64_at(entry, 0) {
                DT_NULL => break,
                DT_RELA => address = value,
                DT_RELASZ => len = value,
                DT_RELAENT => entry_len = value,
                DT_REL | DT_JMPREL | DT_RELR => {
                    return Err(ElfError::Damaged(
                        "it has a relocation table of an unknown kind",
                    ));
                }
                _ => {}
            }
        }
        if len == 0 {
            return Ok(0..0);
        }
        if entry_len != 24 || len % 24 != 0 {
            return Err(ElfError::Damaged(
                "its relocation entries have a wrong length",
            ));
        }
        let range = address..address.checked_add(len).ok_or(OUTSIDE)?;
        let segment = self
            .segments
            .iter()
            .find(|segment| segment.contains(&range))
            .ok_or(OUTSIDE)?;
        let start = segment.file.start + (address - segment.address) as usize;
        let end = start + len as usize;
        if end > segment.file.end {
            return Err(OUTSIDE);
        }
        Ok(start..end)
    }
}

const OUTSIDE: ElfError = ElfError::Damaged("a relocation is outside of what is loaded");

/// The boot configuration, from its section.
fn config(file: &[u8], header: &[u8]) -> Result<BootloaderConfig, ElfError> {
    let sections = table(
        file,
        u64_at(header, 40),
        u16_at(header, 58),
        64,
        u16_at(header, 60),
    )
    .ok_or(ElfError::Truncated("the section headers reach"))?;
    let section =
        |entry: &[u8]| range(file, u64_at(entry, 24), u64_at(entry, 32)).map(|range| &file[range]);
    let names = sections
        .chunks_exact(64)
        .nth(u16_at(header, 62).into())
        .and_then(section)
        .ok_or(ElfError::Config("the sections have no names"))?;
    let is_config = |entry: &&[u8]| {
        let name = names.get(u32_at(entry, 0) as usize..).unwrap_or_default();
        name.strip_prefix(CONFIG_SECTION)
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let entry = sections
        .chunks_exact(64)
        .find(is_config)
        .ok_or(ElfError::Config(
            "the section .bootloader-config is missing",
        ))?;
    let data = section(entry).ok_or(ElfError::Truncated(
        "the section .bootloader-config reaches",
    ))?;

    // The crate does not compare the versions, nor does it show what it read: an identifier of 16 bytes, then major
    // and minor version. Before version 1, what differs in the minor version is incompatible.
    let version = |data: &[u8]| (u16_at(data, 16), u16_at(data, 18));
    let own = BootloaderConfig::new_default().serialize();
    if data.get(..16) == Some(&own[..16]) && data.len() >= 20 && version(data) != version(&own) {
        return Err(ElfError::ApiVersion {
            kernel: version(data),
            loader: version(&own),
        });
    }
    BootloaderConfig::deserialize(data).map_err(ElfError::Config)
}

/// The range `len` bytes from `offset` in `file`, if the file is that long.
fn range(file: &[u8], offset: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= file.len()).then_some(start..end)
}

fn bytes(file: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    range(file, offset, len).and_then(|range| file.get(range))
}

/// A table of `count` entries of `expected` bytes each, if the file says the same length and holds the table.
fn table(file: &[u8], offset: u64, entry_len: u16, expected: u16, count: u16) -> Option<&[u8]> {
    if count > 0 && entry_len != expected {
        return None;
    }
    bytes(file, offset, u64::from(expected) * u64::from(count))
}

// The callers hand over slices whose length they know; beyond the end reads as zero rather than panicking.

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
pub(crate) mod tests;
