//! The order of steps, from the first file to the jump into the kernel.

use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;

use plinth_loader::elf::{ElfError, Kernel};
use plinth_loader::layout::{Layout, LayoutError, Lengths};
use plinth_loader::mapping::{Access, PAGE_1G, PAGE_2M};
use plinth_loader::memory;
use plinth_loader::space::{self, Placement, SpaceError};
use plinth_loader::{page_down, page_up};
use uefi::{CStr16, Status, cstr16};

use crate::console::say;
use crate::handover::{self, Handover};
use crate::pages::{OutOfMemory, Pages};
use crate::volume::{ReadError, Volume};
use crate::{cpu, firmware, graphics};

extern crate alloc;

const KERNEL: &CStr16 = cstr16!("\\plinth\\kernel.elf");
const MODULES: &CStr16 = cstr16!("\\plinth\\modules.tar");

/// Why the kernel could not be started.
pub enum BootError {
    /// The CPU or its state does not fit.
    Cpu(&'static str),
    /// The boot volume cannot be opened.
    Volume(Status),
    /// A file cannot be read.
    Read(&'static CStr16, ReadError),
    /// The kernel file is not usable.
    Kernel(ElfError),
    /// The kernel's configuration cannot be granted.
    Layout(LayoutError),
    /// The address space cannot be built.
    Space(SpaceError),
    /// Memory does not suffice for the named thing.
    Memory(&'static str),
    /// The firmware does not tell its memory map.
    MemoryMap(Status),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(what) => write!(f, "{what}"),
            Self::Volume(status) => write!(f, "the boot volume cannot be opened ({status})"),
            Self::Read(path, error) => write!(f, "{path} {error}"),
            Self::Kernel(error) => write!(f, "kernel.elf {error}"),
            Self::Layout(error) => write!(f, "{error}"),
            Self::Space(error) => write!(f, "{error}"),
            Self::Memory(what) => write!(f, "there is not enough memory for {what}"),
            Self::MemoryMap(status) => {
                write!(f, "the firmware does not tell its memory map ({status})")
            }
        }
    }
}

/// Starts the kernel. Returns only if that is not possible.
pub fn boot() -> Result<Infallible, BootError> {
    firmware::disable_watchdog();
    cpu::check().map_err(BootError::Cpu)?;

    let mut pages = Pages::new();
    let mut volume = Volume::of_loader().map_err(BootError::Volume)?;
    say!(
        "boot volume \"{}\", {} MiB",
        volume.label(),
        volume.size() >> 20
    );
    let kernel_file = read(&mut volume, KERNEL, &mut pages)?;
    let modules = read(&mut volume, MODULES, &mut pages)?;
    drop(volume);

    let kernel = Kernel::parse(kernel_file).map_err(BootError::Kernel)?;
    let framebuffer = graphics::framebuffer();
    match &framebuffer {
        Some(found) => say!(
            "framebuffer {}x{} at {:#x}",
            found.info.width,
            found.info.height,
            found.address
        ),
        None => say!("no framebuffer"),
    }

    // Leaving the firmware adds entries to the memory map: room for twice as many is set aside.
    let map = firmware::memory_map().map_err(BootError::MemoryMap)?;
    let ram = memory::ram(map.iter().copied());
    let usable: u64 = map
        .iter()
        .filter(|entry| entry.is_usable())
        .map(|entry| entry.end - entry.start)
        .sum();
    let largest_page = if cpu::has_1g_pages() {
        PAGE_1G
    } else {
        PAGE_2M
    };
    say!(
        "{} MiB of memory, physical memory mapped with pages of up to {}",
        usable >> 20,
        if largest_page == PAGE_1G {
            "1 GiB"
        } else {
            "2 MiB"
        }
    );
    let region_capacity = memory::capacity(2 * map.len(), RANGES_IN_USE);
    let boot_info = handover::boot_info_len(region_capacity);

    let framebuffer_pages = framebuffer.as_ref().and_then(|found| {
        Some(
            page_down(found.address)
                ..page_up(found.address.checked_add(found.info.byte_len as u64)?)?,
        )
    });
    let physical_memory = memory::physical_memory_len(&ram);
    let lengths = Lengths {
        boot_info,
        framebuffer: framebuffer_pages
            .as_ref()
            .map_or(0, |range| range.end - range.start),
        ramdisk: page_up(modules.len() as u64).unwrap_or(u64::MAX),
        physical_memory,
    };
    let descriptors = pages.take("the segment descriptors", handover::DESCRIPTORS_LEN)?;
    let identity = [
        (handover::code_pages(), Access::EXECUTE),
        (descriptors.range(), Access::READ),
    ];
    let reserved: Vec<_> = identity.iter().map(|(range, _)| range.clone()).collect();
    let layout = Layout::choose(&kernel, &lengths, &reserved).map_err(BootError::Layout)?;

    let span = kernel.span();
    let mut image = pages.take("the kernel", span.end - span.start)?;
    kernel
        .load(image.bytes(), layout.kernel_bias)
        .map_err(BootError::Kernel)?;
    let stack = pages.take("the kernel's stack", layout.stack_len)?;
    let boot_info = pages.take("the boot information", boot_info)?;
    let placement = Placement {
        kernel: image.start(),
        stack: stack.start(),
        boot_info: boot_info.range(),
        framebuffer: framebuffer_pages,
        ramdisk: (!modules.is_empty()).then(|| {
            let start = modules.as_ptr() as u64;
            start..start + lengths.ramdisk
        }),
        identity: &identity,
        ram: &ram,
        physical_memory,
        largest_page,
    };
    let root = space::build(&kernel, &layout, &placement, &mut pages).map_err(BootError::Space)?;

    // The code of the handover will be added to the list.
    if pages.taken().len() >= RANGES_IN_USE {
        return Err(BootError::Memory("the list of memory regions"));
    }
    let handover = Handover {
        kernel: &kernel,
        kernel_file,
        modules_len: modules.len() as u64,
        layout,
        root,
        framebuffer,
        rsdp: firmware::rsdp(),
        boot_info,
        region_capacity,
        descriptors,
    };
    say!(
        "kernel at {:#x}, entry {:#x}",
        span.start.wrapping_add(layout.kernel_bias),
        handover.entry()
    );
    say!("leaving firmware");
    handover.enter(pages)
}

/// A bound for the ranges that [`Pages`] lists: the things taken above, and the chunks of page tables.
const RANGES_IN_USE: usize = 256;

impl From<OutOfMemory> for BootError {
    fn from(error: OutOfMemory) -> Self {
        Self::Memory(error.0)
    }
}

fn read(
    volume: &mut Volume,
    path: &'static CStr16,
    pages: &mut Pages,
) -> Result<&'static [u8], BootError> {
    let bytes = volume
        .read(path, pages)
        .map_err(|error| BootError::Read(path, error))?;
    say!("{path}, {} bytes", bytes.len());
    Ok(bytes)
}
