//! An image of any format.

use core::ops::Range;
use core::str::FromStr;

use plinth_abi::VcpuState;

use crate::firmware::Firmware;
use crate::linux::{self, Linux};
use crate::multiboot::{self, Multiboot};
use crate::pvh::{self, Pvh};
use crate::{Executable, FIRMWARE, FOUR_GIB, ImageError, Machine};

/// What an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A Linux kernel by the Linux/x86 boot protocol.
    Linux,
    /// An ELF executable with Xen's PVH entry.
    Pvh,
    /// A Multiboot image.
    Multiboot,
    /// Plinth's own: a static 64-bit ELF executable.
    Plinth,
    /// Firmware: a raw image, or an ELF executable that is entered at the reset vector.
    Firmware,
}

impl Format {
    /// All of them, in the order in which [`Image::detect`] looks for them.
    pub const ALL: [Self; 5] = [
        Self::Linux,
        Self::Pvh,
        Self::Multiboot,
        Self::Plinth,
        Self::Firmware,
    ];

    /// Its name in a machine's file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Pvh => "pvh",
            Self::Multiboot => "multiboot",
            Self::Plinth => "plinth",
            Self::Firmware => "firmware",
        }
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::named(text).ok_or("expected `linux`, `pvh`, `multiboot`, `plinth` or `firmware`")
    }
}

/// An image whose headers have been looked at.
#[derive(Debug)]
pub struct Image<'a> {
    parsed: Parsed<'a>,
}

#[derive(Debug)]
enum Parsed<'a> {
    Linux(Linux<'a>),
    Pvh(Pvh<'a>),
    Multiboot(Multiboot<'a>),
    Executable(Executable<'a>),
    Firmware(Firmware<'a>),
}

/// What ELF files begin with.
const ELF: &[u8] = b"\x7fELF";
/// What the files of usual compressors begin with: gzip, xz, bzip2, zstd, lz4.
const COMPRESSED: [&[u8]; 5] = [
    b"\x1f\x8b",
    b"\xfd7zXZ\0",
    b"BZh",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
];

impl<'a> Image<'a> {
    /// Finds out what `bytes` are. A raw firmware image has no marks: it is known only by [`Self::with_format`].
    pub fn detect(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let is_elf = bytes.starts_with(ELF);
        let format = if !is_elf && linux::is_linux(bytes) {
            Format::Linux
        } else if is_elf && pvh::is_pvh(bytes) {
            Format::Pvh
        } else if multiboot::is_multiboot(bytes) {
            Format::Multiboot
        } else if is_elf {
            Format::Plinth
        } else if COMPRESSED.iter().any(|mark| bytes.starts_with(mark)) {
            return Err(ImageError::Compressed);
        } else {
            return Err(ImageError::UnknownFormat);
        };
        Self::with_format(bytes, format)
    }

    /// Takes `bytes` for an image of that format.
    pub fn with_format(bytes: &'a [u8], format: Format) -> Result<Self, ImageError> {
        let parsed = match format {
            Format::Linux => Parsed::Linux(Linux::parse(bytes)?),
            Format::Pvh => Parsed::Pvh(Pvh::parse(bytes)?),
            Format::Multiboot => Parsed::Multiboot(Multiboot::parse(bytes)?),
            Format::Plinth => Parsed::Executable(Executable::parse(bytes)?),
            Format::Firmware if bytes.starts_with(ELF) => {
                let file = Executable::parse(bytes)?;
                if !file.is_firmware() {
                    return Err(ImageError::NotFirmware);
                }
                Parsed::Executable(file)
            }
            Format::Firmware => Parsed::Firmware(Firmware::parse(bytes)?),
        };
        Ok(Self { parsed })
    }

    /// What it is.
    pub fn format(&self) -> Format {
        match &self.parsed {
            Parsed::Linux(_) => Format::Linux,
            Parsed::Pvh(_) => Format::Pvh,
            Parsed::Multiboot(_) => Format::Multiboot,
            Parsed::Executable(file) if !file.is_firmware() => Format::Plinth,
            Parsed::Executable(_) | Parsed::Firmware(_) => Format::Firmware,
        }
    }

    /// Where firmware needs memory of its own besides the machine's RAM; it ends at 4 GiB.
    pub fn firmware(&self) -> Option<Range<u64>> {
        match &self.parsed {
            Parsed::Executable(file) => file.is_firmware().then_some(FIRMWARE..FOUR_GIB),
            Parsed::Firmware(file) => Some(file.range()),
            Parsed::Linux(_) | Parsed::Pvh(_) | Parsed::Multiboot(_) => None,
        }
    }

    /// Copies everything to its place and gives the state in which vCPU 0 starts.
    ///
    /// `write` copies bytes to a guest-physical address within the RAM of `machine`, or within [`Self::firmware`], and says
    /// whether it could. Where it could not, or where an executable of Plinth's own format is damaged, the memory holds a
    /// part after the error; else nothing.
    ///
    /// An executable of Plinth's own format takes the RAM that begins at 0, whose size RDI has. What else such a guest is
    /// given is in its start information, which the caller makes, with the command line.
    pub fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        if let Some(firmware) = self.firmware() {
            if !machine.command_line.is_empty() {
                return Err(ImageError::NoCommandLine);
            }
            let overlaps =
                |range: &Range<u64>| range.start.max(firmware.start) < range.end.min(firmware.end);
            if machine.ram.iter().any(overlaps) {
                return Err(ImageError::FirmwareInRam);
            }
        }
        if let Parsed::Executable(_) | Parsed::Firmware(_) = &self.parsed {
            if machine.initrd.is_some() {
                return Err(ImageError::NoInitrd);
            }
            if !machine.modules.is_empty() {
                return Err(ImageError::NoModules);
            }
        }
        match &self.parsed {
            Parsed::Linux(file) => file.load(machine, write),
            Parsed::Pvh(file) => file.load(machine, write),
            Parsed::Multiboot(file) => file.load(machine, write),
            Parsed::Executable(file) => {
                let low = machine.ram.iter().find(|range| range.start == 0);
                file.load(low.map_or(0, |range| range.end), write)
            }
            Parsed::Firmware(file) => file.load(machine, write),
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
