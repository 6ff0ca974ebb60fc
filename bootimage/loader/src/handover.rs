//! The last steps: leaves the firmware, writes the boot information, switches to the kernel's address space and enters
//! the kernel.
//!
//! From the end of boot services on, nothing may allocate memory or ask the firmware for anything.

#![allow(
    unsafe_code,
    reason = "ends boot services, switches page tables, and jumps"
)]

use core::arch::naked_asm;
use core::convert::Infallible;
use core::mem::{self, MaybeUninit};
use core::ops::Range;

use bootloader_api::BootInfo;
use bootloader_api::info::{FrameBuffer, MemoryRegion, MemoryRegions, TlsTemplate};
use plinth_loader::elf::Kernel;
use plinth_loader::layout::Layout;
use plinth_loader::memory;
use plinth_loader::{PAGE, page_down};
use uefi::boot::{self, MemoryType};
use uefi::mem::memory_map::MemoryMap;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::{interrupts, tables};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;

use crate::boot::BootError;
use crate::console::{self, say};
use crate::cpu;
use crate::firmware;
use crate::graphics::Framebuffer;
use crate::pages::{Pages, Run};

/// Segment descriptors (SDM volume 3, 3.4.5): none, 64-bit code, data. The firmware's are in memory that becomes free.
const DESCRIPTORS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: SegmentSelector = SegmentSelector(0x08);
const DATA: SegmentSelector = SegmentSelector(0x10);

/// How much memory the descriptors need, bytes.
pub const DESCRIPTORS_LEN: u64 = mem::size_of_val(&DESCRIPTORS) as u64;

/// Where the memory regions begin behind the boot information, bytes.
const REGIONS_AT: u64 =
    mem::size_of::<BootInfo>().next_multiple_of(mem::align_of::<MemoryRegion>()) as u64;

/// How much memory the boot information needs with so many memory regions, bytes.
pub fn boot_info_len(region_capacity: usize) -> u64 {
    REGIONS_AT + (region_capacity * mem::size_of::<MemoryRegion>()) as u64
}

/// The pages that hold the code which runs when the page tables are switched, at their physical address.
pub fn code_pages() -> Range<u64> {
    let start = switch as *const () as u64;
    // The code has fewer than 64 bytes.
    page_down(start)..page_down(start + 64) + PAGE
}

/// Everything that the kernel is told, ready to go.
pub struct Handover<'a> {
    /// The kernel.
    pub kernel: &'a Kernel<'a>,
    /// The whole kernel file in memory.
    pub kernel_file: &'static [u8],
    /// The length of the ramdisk in bytes.
    pub modules_len: u64,
    /// Where everything is mapped.
    pub layout: Layout,
    /// The physical address of the level-4 page table.
    pub root: u64,
    /// The framebuffer.
    pub framebuffer: Option<Framebuffer>,
    /// The physical address of the ACPI root pointer.
    pub rsdp: Option<u64>,
    /// Memory for the boot information and the memory regions.
    pub boot_info: Run,
    /// For how many memory regions there is room.
    pub region_capacity: usize,
    /// Memory for the segment descriptors.
    pub descriptors: Run,
}

impl Handover<'_> {
    /// The virtual address of the kernel's entry point.
    pub fn entry(&self) -> u64 {
        self.kernel.entry().wrapping_add(self.layout.kernel_bias)
    }

    /// Leaves the firmware and enters the kernel. `pages` is all the memory that the loader has taken.
    pub fn enter(mut self, mut pages: Pages) -> Result<Infallible, BootError> {
        for (at, descriptor) in self
            .descriptors
            .bytes()
            .chunks_exact_mut(8)
            .zip(DESCRIPTORS)
        {
            at.copy_from_slice(&descriptor.to_le_bytes());
        }
        pages.keep(code_pages());

        // SAFETY: no protocol is open any more, and from here on neither the firmware's console nor the allocator is
        // used. The values below are not dropped: the last call does not return.
        let map = unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) };
        interrupts::disable();
        console::firmware_has_gone();
        // SAFETY: boot services have ended, boot() has called cpu::check(), interrupts are off.
        unsafe { cpu::prepare() };

        let start = self.boot_info.start();
        let buffer = (start + REGIONS_AT) as *mut MaybeUninit<MemoryRegion>;
        // SAFETY: boot_info_len() reserved room for as many regions, suitably aligned; nobody else uses it.
        let buffer = unsafe { core::slice::from_raw_parts_mut(buffer, self.region_capacity) };
        let buffer = buffer.iter_mut();
        let first = buffer.as_slice().as_ptr() as *mut MemoryRegion;
        buffer.for_each(|region| {
            region.write(MemoryRegion::empty());
        });
        // SAFETY: the loop has initialised every region.
        let regions = unsafe { core::slice::from_raw_parts_mut(first, self.region_capacity) };
        let entries = map.entries().map(firmware::entry);
        let Ok(count) = memory::regions(entries, pages.taken(), regions) else {
            fail("the firmware's memory map has grown beyond the room for it");
        };

        let info = self.info(count);
        // SAFETY: the memory begins at a page boundary, is long enough and otherwise unused.
        unsafe { (start as *mut BootInfo).write(info) };
        // SAFETY: `root` maps the code of `switch`, the descriptors, the stack, the kernel and the boot information; the
        // descriptors were filled in above.
        unsafe {
            load_segments(self.descriptors.start());
            switch(
                self.root,
                self.layout.stack_top(),
                self.entry(),
                self.layout.boot_info,
            )
        }
    }

    fn info(&self, region_count: usize) -> BootInfo {
        let address = (self.layout.boot_info + REGIONS_AT) as usize;
        // SAFETY: MemoryRegions is a pointer and a length in C layout, and none of the two is looked at here: the pointer
        // is good in the kernel's address space, where `region_count` initialised regions are mapped at it.
        let regions =
            unsafe { mem::transmute::<[usize; 2], MemoryRegions>([address, region_count]) };
        let mut info = BootInfo::new(regions);
        info.framebuffer = match (&self.framebuffer, self.layout.framebuffer) {
            (Some(found), Some(page)) => {
                let address = page + found.address % PAGE;
                // SAFETY: the kernel's address space maps the whole framebuffer there, and the loader does not write it.
                Some(unsafe { FrameBuffer::new(address, found.info) })
            }
            _ => None,
        }
        .into();
        let bias = self.layout.kernel_bias;
        let tls = |tls: TlsTemplate| TlsTemplate {
            start_addr: tls.start_addr.wrapping_add(bias),
            ..tls
        };
        info.physical_memory_offset = self.layout.physical_memory.into();
        info.recursive_index = self.layout.recursive_index.into();
        info.rsdp_addr = self.rsdp.into();
        info.tls_template = self.kernel.tls().map(tls).into();
        info.ramdisk_addr = self.layout.ramdisk.into();
        info.ramdisk_len = self.modules_len;
        info.kernel_addr = self.kernel_file.as_ptr() as u64;
        info.kernel_len = self.kernel_file.len() as u64;
        info.kernel_image_offset = bias;
        info.kernel_stack_bottom = self.layout.stack_bottom();
        info.kernel_stack_len = self.layout.stack_len;
        info
    }
}

/// Loads the segment registers from the descriptors at `address`.
///
/// # Safety
/// There are [`DESCRIPTORS`], and they stay mapped there.
unsafe fn load_segments(address: u64) {
    let pointer = DescriptorTablePointer {
        limit: DESCRIPTORS_LEN as u16 - 1,
        base: VirtAddr::new(address),
    };
    // SAFETY: the caller's condition.
    unsafe {
        tables::lgdt(&pointer);
        CS::set_reg(CODE);
        SS::set_reg(DATA);
        DS::set_reg(DATA);
        ES::set_reg(DATA);
    }
}

/// Switches to the page tables at `root` and the stack that ends at `stack`, and calls `entry` with `boot_info`.
///
/// # Safety
/// In the address space of `root`, the pages of [`code_pages`] are mapped at the address that they have now, the stack is
/// writable, and `entry` takes `boot_info` by the System V calling convention and does not return.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(root: u64, stack: u64, entry: u64, boot_info: u64) -> ! {
    naked_asm!(
        "mov cr3, rdi",
        "mov rsp, rsi",
        "mov rdi, rcx",
        // A backtrace ends at a frame pointer of 0 and a return address of 0. The latter also aligns the stack as a call
        // does: 8 bytes off a multiple of 16.
        "xor ebp, ebp",
        "push rbp",
        "cld",
        "jmp rdx",
    )
}

/// Tells what went wrong after the firmware was left, and stops.
fn fail(what: &str) -> ! {
    say!("error: {what}");
    loop {
        x86_64::instructions::hlt();
    }
}
