//! What is wrong with an image, in words that say what to do.

use core::fmt;

/// What is wrong with an image, or with the memory that it is to run in.
///
/// [`Self::text`] says it without the numbers, `Display` with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// The bytes are no ELF file, or one for other CPUs' word size or byte order.
    NotElf,
    /// It has to be linked or relocated first, or is for another CPU.
    NotStatic,
    /// Nothing says what to load.
    NoSegments,
    /// The file is shorter than it claims.
    SegmentTruncated,
    /// More bytes to copy than room for them.
    SegmentOverflows,
    /// It reaches beyond the last address.
    SegmentWraps,
    /// It lies in no RAM of the domain, or where the first page tables go.
    SegmentOutsideRam,
    /// Not even the page tables fit.
    TooLittleRam,
    /// The stack of an ordinary guest would lie where its first page tables map nothing.
    TooMuchRam,
    /// Page tables must begin with a page.
    UnalignedRam,

    /// The file is of no format that is known.
    UnknownFormat,
    /// The file is compressed as a whole.
    Compressed,
    /// The file is to be a Linux kernel and lacks the boot protocol's marks.
    NotLinux,
    /// The file is to have a PVH entry and has no note of it.
    NoPvhEntry,
    /// The file is to be a Multiboot image and has no valid header in its first 8 KiB.
    NotMultiboot,
    /// The file is to be firmware and is an ELF file that is entered elsewhere.
    NotFirmware,
    /// The size of a raw firmware image, in bytes, is none that a flash memory has.
    FirmwareSize(u64),
    /// The domain's RAM reaches to where firmware is.
    FirmwareInRam,

    /// The boot protocol of a Linux kernel, as (major << 8) + minor, is older than 2.12.
    LinuxTooOld(u16),
    /// A Linux kernel without a 64-bit entry.
    LinuxNot64Bit,
    /// A Linux kernel that is loaded below 1 MiB (a zImage).
    LinuxLow,
    /// A Linux kernel's file is shorter than its header says.
    LinuxTruncated {
        /// Bytes by its header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A field of a Linux kernel's setup header cannot be; which, and why.
    LinuxHeader(&'static str),

    /// An executable's CPU is none of a PC's.
    WrongCpu,
    /// More segments than any system has.
    TooManySegments,
    /// Two segments of the image lie at one place.
    SegmentsOverlap,
    /// The entry lies in nothing that is loaded.
    EntryOutside(u64),
    /// The PVH entry's note is no address below 4 GiB.
    BadPvhEntry,
    /// The contents of a section reach beyond the end of the file.
    SectionTruncated,

    /// A Multiboot header requires (flag bits 0 to 15) what is not known; the flags that are not.
    MultibootFlags(u32),
    /// A Multiboot header requires a video mode.
    MultibootVideo,
    /// The address fields of a Multiboot header contradict each other or the file; which.
    MultibootAddresses(&'static str),

    /// What is loaded needs more RAM below 4 GiB than there is.
    NeedsRam {
        /// The end of what it needs.
        needs: u64,
        /// The end of RAM that it can have.
        has: u64,
    },
    /// A part of the image lies where the domain has no RAM of its own.
    NotInRam {
        /// The first address.
        start: u64,
        /// The first address behind it.
        end: u64,
    },
    /// There is RAM, but no piece is large enough.
    NoRoom {
        /// What for.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The address that it must end at, or below.
        below: u64,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        length: u64,
        /// What the kernel takes.
        limit: u64,
    },
    /// The command line, or a module's, has a zero byte in it, which would end it.
    CommandLineZero,
    /// Images of this format know no command line.
    NoCommandLine,
    /// Images of this format know no initial RAM disk.
    NoInitrd,
    /// Images of this format know no modules.
    NoModules,
    /// The memory map has more entries than the kernel can be told.
    LongMemoryMap,
    /// The domain's memory could not be written.
    NotWritten,
}

impl ImageError {
    /// The error in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotElf => "not an ELF file",
            Self::NotStatic => "not a static x86-64 executable",
            Self::NoSegments => "it has no program headers",
            Self::SegmentTruncated => "a segment reaches beyond the end of the file",
            Self::SegmentOverflows => "a segment is larger in the file than in memory",
            Self::SegmentWraps => "a segment's address wraps",
            Self::SegmentOutsideRam => "a segment does not fit into the domain's RAM",
            Self::TooLittleRam => "too little RAM",
            Self::TooMuchRam => "more than 1 GiB of RAM, which only firmware can take",
            Self::UnalignedRam => "RAM is no multiple of 4 KiB",
            Self::UnknownFormat => {
                "neither a Linux kernel (bzImage), nor an ELF executable, nor a Multiboot image"
            }
            Self::Compressed => "the file is compressed: unpack it first",
            Self::NotLinux => "not a Linux kernel (bzImage)",
            Self::NoPvhEntry => "it has no PVH entry: no ELF note names one",
            Self::NotMultiboot => "it has no valid Multiboot header in its first 8 KiB",
            Self::NotFirmware => "an ELF file that is not entered at the reset vector",
            Self::FirmwareSize(_) => {
                "a raw firmware image is a multiple of 4 KiB, and at most 16 MiB"
            }
            Self::FirmwareInRam => "the domain's RAM reaches to where firmware is, below 4 GiB",
            Self::LinuxTooOld(_) => {
                "the kernel's boot protocol is older than 2.12 (Linux 3.8), which has the 64-bit entry"
            }
            Self::LinuxNot64Bit => "a 32-bit kernel: it has no 64-bit entry",
            Self::LinuxLow => "a zImage, which is loaded below 1 MiB: a bzImage is needed",
            Self::LinuxTruncated { .. } => "the kernel's file is shorter than its header says",
            Self::LinuxHeader(_) => "the kernel's setup header is damaged",
            Self::WrongCpu => "an executable for another CPU",
            Self::TooManySegments => "it has more segments than any system has",
            Self::SegmentsOverlap => "two segments overlap",
            Self::EntryOutside(_) => "the entry lies in none of its segments",
            Self::BadPvhEntry => "the note of the PVH entry holds no address below 4 GiB",
            Self::SectionTruncated => "a section reaches beyond the end of the file",
            Self::MultibootFlags(_) => "its Multiboot header requires what is not known",
            Self::MultibootVideo => "it requires a video mode, and a domain has no display",
            Self::MultibootAddresses(_) => "the addresses in its Multiboot header are wrong",
            Self::NeedsRam { .. } => "it needs more RAM",
            Self::NotInRam { .. } => "it is to lie where the domain has no RAM of its own",
            Self::NoRoom { .. } => "something does not fit into the domain's RAM",
            Self::CommandLineTooLong { .. } => "the command line is longer than the kernel takes",
            Self::CommandLineZero => "a zero byte in the command line",
            Self::NoCommandLine => "it takes no command line",
            Self::NoInitrd => "it takes no initial RAM disk",
            Self::NoModules => "it takes no modules",
            Self::LongMemoryMap => "the memory map has more than 128 entries",
            Self::NotWritten => "the domain's memory could not be written",
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::FirmwareSize(bytes) => write!(f, "{}; this one has {bytes} bytes", self.text()),
            Self::LinuxTooOld(version) => write!(
                f,
                "the kernel's boot protocol is {}.{:02}; 2.12 (Linux 3.8) or later is needed",
                version >> 8,
                version & 0xff
            ),
            Self::LinuxTruncated { expected, found } => {
                write!(f, "{}: {found} bytes of {expected}", self.text())
            }
            Self::LinuxHeader(why) | Self::MultibootAddresses(why) => {
                write!(f, "{}: {why}", self.text())
            }
            Self::EntryOutside(entry) => write!(f, "{} ({entry:#x})", self.text()),
            Self::MultibootFlags(flags) => write!(f, "{} (flags {flags:#x})", self.text()),
            Self::NeedsRam { needs, has } => {
                // Rounded so that who gives what is asked for gives enough.
                let (unit, name) = if needs < MIB {
                    (KIB, "KiB")
                } else {
                    (MIB, "MiB")
                };
                write!(
                    f,
                    "it needs {} {name} of RAM, the domain has {} {name} that it can have",
                    needs.div_ceil(unit),
                    has / unit
                )
            }
            Self::NotInRam { start, end } => write!(f, "{} ({start:#x} to {end:#x})", self.text()),
            Self::NoRoom { what, bytes, below } => write!(
                f,
                "no room for {what} ({} KiB) in the domain's RAM below {} MiB",
                bytes.div_ceil(KIB),
                below / MIB
            ),
            Self::CommandLineTooLong { length, limit } => write!(
                f,
                "a command line of {length} bytes, and the kernel takes {limit}"
            ),
            _ => f.write_str(self.text()),
        }
    }
}

impl core::error::Error for ImageError {}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
