//! An image of any format.

use core::ops::Range;

use plinth_abi::VcpuState;

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

/// An image whose headers have been looked at.
#[derive(Debug)]
pub struct Image<'a> {
    parsed: Parsed<'a>,
}

#[derive(Debug)]
enum Parsed<'a> {
    Executable(Executable<'a>),
}

impl<'a> Image<'a> {
    /// Finds out what `bytes` are. A raw firmware image has no marks: it is known only by [`Self::with_format`].
    pub fn detect(bytes: &'a [u8]) -> Result<Self, ImageError> {
        Self::with_format(bytes, Format::Plinth)
    }

    /// Takes `bytes` for an image of that format.
    pub fn with_format(bytes: &'a [u8], format: Format) -> Result<Self, ImageError> {
        match format {
            Format::Plinth => Ok(Self {
                parsed: Parsed::Executable(Executable::parse(bytes)?),
            }),
            _ => Err(ImageError::UnknownFormat),
        }
    }

    /// What it is.
    pub fn format(&self) -> Format {
        match &self.parsed {
            Parsed::Executable(file) if file.is_firmware() => Format::Firmware,
            Parsed::Executable(_) => Format::Plinth,
        }
    }

    /// Where firmware needs memory of its own besides the machine's RAM; it ends at 4 GiB.
    pub fn firmware(&self) -> Option<Range<u64>> {
        match &self.parsed {
            Parsed::Executable(file) => file.is_firmware().then_some(FIRMWARE..FOUR_GIB),
        }
    }

    /// Copies everything to its place and gives the state in which vCPU 0 starts.
    ///
    /// `write` copies bytes to a guest-physical address within the RAM of `machine`, or within [`Self::firmware`], and says
    /// whether it could. After an error of `write` the memory holds a part; after another, nothing.
    ///
    /// For Plinth's own format, `machine` has one range of RAM from 0; RDI is its size. The command line and whatever else
    /// such a guest is given go into its start information, which is the caller's.
    pub fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        match &self.parsed {
            Parsed::Executable(file) => {
                let ram = machine.ram.first().map_or(0, |range| range.end);
                file.load(ram, write)
            }
        }
    }
}
