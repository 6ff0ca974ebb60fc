//! What the loader and the firmware told us, turned into typed facts. Everything read here is checked, for firmware tables are
//! often wrong; nothing here touches the hardware.

#![allow(
    unsafe_code,
    reason = "the loader's promises about addresses are believed here"
)]

pub mod acpi;
pub mod cmdline;
pub mod modules;
pub mod symbols;

use bootloader_api::BootInfo;
use bootloader_api::info::{FrameBuffer, MemoryRegion};
use raw_cpuid::CpuId;

use crate::arch::{apic, cpu, paging};
use crate::mem::frames::frames;
use crate::mem::{Hpa, Hva, device, phys};
use acpi::Firmware;
use cmdline::Options;

/// What the loader handed over, in the form in which it is used.
pub struct Facts {
    /// The machine's memory.
    pub memory: &'static [MemoryRegion],
    /// Where physical address 0 is mapped.
    pub physical_offset: u64,
    /// The screen.
    pub framebuffer: Option<FrameBuffer>,
    /// The ACPI root pointer.
    pub rsdp: Option<Hpa>,
    /// The module archive.
    pub ramdisk: &'static [u8],
    /// The kernel's own ELF file, for its symbols.
    pub kernel_file: &'static [u8],
    /// The boot stack: its lowest address and its end.
    pub stack: (u64, u64),
}

impl Facts {
    /// Takes the boot information apart.
    ///
    /// # Panics
    /// Where the loader did not map physical memory, which the kernel's configuration asks for.
    pub fn take(info: &'static mut BootInfo) -> Self {
        let Some(physical_offset) = info.physical_memory_offset.into_option() else {
            panic!("the loader has not mapped physical memory");
        };
        let bytes = |address: u64, len: u64| -> &'static [u8] {
            if address == 0 || len == 0 {
                return &[];
            }
            // SAFETY: the loader keeps these files in memory of their own, mapped for good, and nobody writes to them.
            unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }
        };
        Self {
            physical_offset,
            framebuffer: info.framebuffer.take(),
            rsdp: info.rsdp_addr.into_option().map(Hpa::new),
            ramdisk: bytes(
                info.ramdisk_addr.into_option().unwrap_or(0),
                info.ramdisk_len,
            ),
            kernel_file: bytes(physical_offset + info.kernel_addr, info.kernel_len),
            stack: (
                info.kernel_stack_bottom,
                info.kernel_stack_bottom + info.kernel_stack_len,
            ),
            memory: &info.memory_regions,
        }
    }
}

/// Keeps the screen's memory for the log: no guest is given it.
pub fn keep_framebuffer(framebuffer: &FrameBuffer) {
    let buffer = framebuffer.buffer();
    if let Some(start) = paging::translate(Hva::new(buffer.as_ptr() as u64)) {
        device::keep(start, buffer.len() as u64);
    }
}

/// Opens the module archive and reads the command line in it.
pub fn read_modules(ramdisk: &'static [u8]) -> &'static Options<'static> {
    let text = modules::init(ramdisk).text("cmdline").unwrap_or("");
    if !text.trim().is_empty() {
        log::info!("command line: {}", text.trim());
    }
    cmdline::init(text)
}

/// Reads the ACPI tables; nothing where there are none.
pub fn read_firmware(rsdp: Option<Hpa>) -> Firmware {
    let read = |address: Hpa, len: usize| -> Option<&'static [u8]> {
        let pointer = phys::checked_pointer(address, len)?;
        // SAFETY: mapped, as just checked. Firmware keeps its tables in memory that the loader does not report as usable, so
        // nobody writes to it.
        Some(unsafe { core::slice::from_raw_parts(pointer, len) })
    };
    match rsdp {
        Some(rsdp) => Firmware::read(rsdp, &read),
        None => Firmware::default(),
    }
}

/// Says what was found.
pub fn report(firmware: &Firmware) {
    let cpuid = CpuId::new();
    let model = cpuid.get_processor_brand_string();
    let model = model
        .as_ref()
        .map_or("unknown model", |brand| brand.as_str().trim());
    log::info!(
        "{} CPU{}, {model}, {}, {}",
        cpu::cpus().len(),
        if cpu::cpus().len() == 1 { "" } else { "s" },
        apic::mode(),
        if firmware.present { "ACPI" } else { "no ACPI" }
    );
    for cpu in cpu::cpus() {
        log::info!("  cpu{} has APIC id {}", cpu.id, cpu.apic_id());
    }
    let (total, free) = {
        let frames = frames();
        (frames.total_frames(), frames.free_frames())
    };
    log::info!("{} MiB of memory, {} MiB free", total >> 8, free >> 8);
}
