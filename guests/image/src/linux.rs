//! Linux kernels (bzImage), by the 64-bit entry of the Linux/x86 boot protocol (`Documentation/arch/x86/boot.rst`, fields
//! of the zero page in `zero-page.rst`).
//!
//! The file begins with code for real mode, of which only the setup header is of use here; what is behind it is loaded at
//! the address that the kernel prefers, or above it, and entered 200h bytes from its start. RSI points to the zero page:
//! the setup header, the memory map, and where the command line and the initial RAM disk are.

use core::mem::offset_of;

use plinth_abi::VcpuState;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::machine::PAGE;
use crate::place::{Block, Loading, checked};
use crate::{FOUR_GIB, ImageError, Machine};

/// Where the setup header begins, in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// Where the zero page's room for it ends.
const HEADER_END: usize = 0x290;
/// The byte that says how long it is, counted from the byte behind: the operand of the jump at its start.
const LENGTH: usize = 0x201;
const JUMP: u8 = 0xeb;
/// `boot_flag` and `header`.
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: [u8; 4] = *b"HdrS";
const MAGIC_AT: usize = HEADER + offset_of!(SetupHeader, header);
/// The first version that has `xloadflags`, and with it the 64-bit entry.
const OLDEST: u16 = 0x020c;
const SECTOR: usize = 512;
/// `syssize` counts these.
const PARAGRAPH: u64 = 16;
/// Where a kernel without preference is loaded.
const USUAL: u64 = 0x10_0000;
/// From the load address to the 64-bit entry.
const ENTRY: u64 = 0x200;
/// `loadflags`: the kernel is loaded at or above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: it has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `type_of_loader`: none that has a number.
const OTHER_LOADER: u8 = 0xff;
/// `vid_mode`: the mode that the display is in.
const VIDEO_NORMAL: u16 = 0xffff;
/// Entries of the zero page's memory map.
const MAP_ENTRIES: usize = 128;

/// `__BOOT_CS` and `__BOOT_DS`, and the table that has them: as flat as segments can be.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const GDT: [U64; 4] = [
    U64::ZERO,
    U64::ZERO,
    U64::new(0x00af_9b00_0000_ffff),
    U64::new(0x00cf_9300_0000_ffff),
];

/// `setup_header`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SetupHeader {
    setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    boot_flag: U16,
    jump: u8,
    length: u8,
    header: [u8; 4],
    version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
    type_of_loader: u8,
    loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    ramdisk_image: U32,
    ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: U32,
    initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable_kernel: u8,
    min_alignment: u8,
    xloadflags: U16,
    cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    payload_offset: U32,
    payload_length: U32,
    setup_data: U64,
    pref_address: U64,
    init_size: U32,
}

/// `boot_e820_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MapEntry {
    addr: U64,
    size: U64,
    kind: U32,
}

/// `boot_params`, the zero page. What a domain has nothing of stays 0: no display, no EFI, no disks of a BIOS.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ZeroPage {
    screen_and_apm: [u8; 0x70],
    acpi_rsdp_addr: U64,
    obsolete: [u8; 0x170],
    e820_entries: u8,
    counts: [u8; 8],
    hdr: [u8; HEADER_END - HEADER],
    edd_mbr_sig_buffer: [u8; 0x40],
    e820_table: [MapEntry; MAP_ENTRIES],
    rest: [u8; 0x330],
}

const _: () = assert!(size_of::<SetupHeader>() == 0x264 - HEADER);
const _: () = assert!(HEADER + offset_of!(SetupHeader, header) == 0x202);
const _: () = assert!(HEADER + offset_of!(SetupHeader, xloadflags) == 0x236);
const _: () = assert!(HEADER + offset_of!(SetupHeader, init_size) == 0x260);
const _: () = assert!(size_of::<ZeroPage>() == PAGE as usize);
const _: () = assert!(offset_of!(ZeroPage, e820_entries) == 0x1e8);
const _: () = assert!(offset_of!(ZeroPage, hdr) == HEADER);
const _: () = assert!(offset_of!(ZeroPage, e820_table) == 0x2d0);

/// A Linux kernel.
#[derive(Debug)]
pub(crate) struct Linux<'a> {
    /// The setup header as far as it is known here, and all of it.
    header: SetupHeader,
    raw_header: &'a [u8],
    /// What is loaded.
    code: &'a [u8],
}

/// Whether a file has the boot protocol's magic number.
pub(crate) fn is_linux(bytes: &[u8]) -> bool {
    bytes
        .get(MAGIC_AT..)
        .is_some_and(|bytes| bytes.starts_with(&MAGIC))
}

impl<'a> Linux<'a> {
    /// Looks at the setup header.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        if !is_linux(bytes) {
            return Err(ImageError::NotLinux);
        }
        let found = bytes.len() as u64;
        let truncated = |expected: usize| ImageError::LinuxTruncated {
            expected: expected as u64,
            found,
        };
        let known = HEADER + size_of::<SetupHeader>();
        let (header, _) = bytes
            .get(HEADER..)
            .and_then(|bytes| SetupHeader::read_from_prefix(bytes).ok())
            .ok_or(truncated(known))?;
        // The version first: older headers are shorter.
        if header.version.get() < OLDEST {
            return Err(ImageError::LinuxTooOld(header.version.get()));
        }
        if header.boot_flag.get() != BOOT_FLAG || header.jump != JUMP {
            return Err(ImageError::LinuxHeader(
                "its boot flag or the jump at its start is wrong",
            ));
        }
        let end = LENGTH + 1 + usize::from(header.length);
        if !(known..=HEADER_END).contains(&end) {
            return Err(ImageError::LinuxHeader("its length cannot be"));
        }
        let raw_header = bytes.get(HEADER..end).ok_or(truncated(end))?;
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(ImageError::LinuxLow);
        }
        if header.xloadflags.get() & XLF_KERNEL_64 == 0 {
            return Err(ImageError::LinuxNot64Bit);
        }
        // 0 means 4, for kernels from before there was a number; the boot sector is not counted.
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(header.syssize.get()) * PARAGRAPH;
        // Signatures may stand behind the kernel; they are not loaded.
        let code = bytes
            .get(start..)
            .zip(usize::try_from(size).ok())
            .and_then(|(bytes, size)| bytes.get(..size))
            .ok_or(ImageError::LinuxTruncated {
                expected: start as u64 + size,
                found,
            })?;
        if size <= ENTRY {
            return Err(ImageError::LinuxHeader(
                "its code ends before the 64-bit entry",
            ));
        }
        if header.relocatable_kernel != 0 {
            let alignment = header.kernel_alignment.get();
            let least = 1u32.checked_shl(header.min_alignment.into());
            if !alignment.is_power_of_two() || least.is_none_or(|least| least > alignment) {
                return Err(ImageError::LinuxHeader(
                    "kernel_alignment is no power of two, or less than min_alignment",
                ));
            }
        }
        Ok(Self {
            header,
            raw_header,
            code,
        })
    }

    pub(crate) fn load(
        &self,
        machine: &Machine<'_>,
        write: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<VcpuState, ImageError> {
        if !machine.modules.is_empty() {
            return Err(ImageError::NoModules);
        }
        let command_line = checked(machine.command_line)?;
        let (length, limit) = (command_line.len() as u64, self.header.cmdline_size.get());
        if length > limit.into() {
            return Err(ImageError::CommandLineTooLong {
                length,
                limit: limit.into(),
            });
        }
        let mut loading = Loading::new(machine);
        let mut header = self.header.clone();
        let kernel = self.place(&mut header, &mut loading)?;
        loading.put(kernel, self.code);

        let layout = boot_block(0, command_line, &ZeroPage::new_zeroed());
        let at = loading.low("page tables and boot parameters", layout.block.len())?;
        header.cmd_line_ptr = address(at + layout.command_line);
        let initrd = machine.initrd.unwrap_or(&[]);
        header.ramdisk_image = U32::ZERO;
        header.ramdisk_size = address(initrd.len() as u64);
        if !initrd.is_empty() {
            let at = self.place_initrd(initrd.len() as u64, &mut loading)?;
            loading.put(at, initrd);
            header.ramdisk_image = address(at);
        }
        let zero_page = self.zero_page(&header, &loading, machine.rsdp)?;
        let boot = boot_block(at, command_line, &zero_page);

        let mut state = VcpuState::long_mode(kernel + ENTRY, 0, boot.tables);
        state.rsi = boot.zero_page;
        state.cs.selector = BOOT_CS;
        for segment in [
            &mut state.ss,
            &mut state.ds,
            &mut state.es,
            &mut state.fs,
            &mut state.gs,
        ] {
            segment.selector = BOOT_DS;
        }
        state.gdtr.base = boot.gdt;
        state.gdtr.limit = size_of_val(&GDT) as u32 - 1;
        loading.put(at, boot.block.into_bytes());
        loading.write(write)?;
        Ok(state)
    }

    /// Takes the kernel's place, and says so in the header.
    ///
    /// It needs `init_size` bytes from where it runs. A kernel that can be relocated and is loaded below `pref_address`
    /// moves itself up to that before it looks at its memory map: so only places from there on are safe.
    fn place(
        &self,
        header: &mut SetupHeader,
        loading: &mut Loading<'_>,
    ) -> Result<u64, ImageError> {
        let preferred = match header.pref_address.get() {
            0 => USUAL,
            address => address,
        };
        let size = u64::from(header.init_size.get())
            .max(self.code.len() as u64)
            .next_multiple_of(PAGE);
        let end = preferred
            .checked_add(size)
            .filter(|end| *end <= FOUR_GIB)
            .ok_or(ImageError::LinuxHeader(
                "the place that it wants (pref_address, init_size) reaches beyond 4 GiB",
            ))?;
        if header.relocatable_kernel == 0 {
            loading.claim(preferred..end)?;
            header.code32_start = address(preferred);
            return Ok(preferred);
        }
        let alignment = header.kernel_alignment.get();
        let least = match header.min_alignment {
            0 => alignment,
            shift => 1u32.checked_shl(shift.into()).unwrap_or(alignment),
        };
        let mut alignments =
            core::iter::successors(Some(alignment), |alignment| Some(alignment / 2))
                .take_while(|alignment| *alignment >= least.max(1));
        let (alignment, kernel) = alignments
            .find_map(|alignment| {
                loading
                    .lowest(size, alignment.into(), preferred..FOUR_GIB)
                    .map(|kernel| (alignment, kernel))
            })
            .ok_or(if end > loading.end_of_ram() {
                ImageError::NeedsRam {
                    needs: end,
                    has: loading.end_of_ram(),
                }
            } else {
                ImageError::NoRoom {
                    what: "the kernel",
                    bytes: size,
                    below: FOUR_GIB,
                }
            })?;
        header.kernel_alignment = alignment.into();
        header.code32_start = address(kernel);
        Ok(kernel)
    }

    /// Takes a place for the initial RAM disk, as high as the kernel allows: it unpacks itself upwards.
    fn place_initrd(&self, bytes: u64, loading: &mut Loading<'_>) -> Result<u64, ImageError> {
        // The field is the last address that it may have.
        let below = u64::from(self.header.initrd_addr_max.get()) + 1;
        loading
            .highest(bytes, PAGE..below)
            .ok_or(ImageError::NoRoom {
                what: "the initial RAM disk",
                bytes,
                below: below.min(FOUR_GIB),
            })
    }

    /// The zero page, with a header that says where everything is.
    fn zero_page(
        &self,
        header: &SetupHeader,
        loading: &Loading<'_>,
        rsdp: Option<u64>,
    ) -> Result<ZeroPage, ImageError> {
        let mut page = ZeroPage::new_zeroed();
        // What newer kernels have behind the known part is theirs to read, too.
        if let Some(hdr) = page.hdr.get_mut(..self.raw_header.len()) {
            hdr.copy_from_slice(self.raw_header);
        }
        let mut header = header.clone();
        header.type_of_loader = OTHER_LOADER;
        header.ext_loader_type = 0;
        header.ext_loader_ver = 0;
        // The other flags are the real-mode code's and the kernel's own.
        header.loadflags = LOADED_HIGH;
        header.vid_mode = VIDEO_NORMAL.into();
        header.hardware_subarch = U32::ZERO;
        header.hardware_subarch_data = U64::ZERO;
        header.setup_data = U64::ZERO;
        // There is room: the known part is shorter than the whole.
        let _ = header.write_to_prefix(&mut page.hdr);
        page.acpi_rsdp_addr = rsdp.unwrap_or(0).into();
        page.e820_entries = u8::try_from(loading.map.len())
            .ok()
            .filter(|count| usize::from(*count) <= MAP_ENTRIES)
            .ok_or(ImageError::LongMemoryMap)?;
        for (entry, region) in page.e820_table.iter_mut().zip(&loading.map) {
            *entry = MapEntry {
                addr: region.start.into(),
                size: (region.end - region.start).into(),
                kind: region.kind.0.into(),
            };
        }
        Ok(page)
    }
}

/// What the kernel needs until it has its own, and where it is.
struct Boot {
    block: Block,
    tables: u64,
    zero_page: u64,
    gdt: u64,
    command_line: u64,
}

/// Page tables, the zero page, the GDT and the command line, for address `at`.
fn boot_block(at: u64, command_line: &str, zero_page: &ZeroPage) -> Boot {
    let mut block = Block::new(at);
    Boot {
        tables: block.identity_map(),
        zero_page: block.structure(zero_page),
        gdt: block.structure(&GDT),
        command_line: block.text(command_line),
        block,
    }
}

/// An address, or a size, as the header holds it: all that is placed lies below 4 GiB.
fn address(at: u64) -> U32 {
    U32::new(u32::try_from(at).unwrap_or(u32::MAX))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
