//! The kernel's entry: the boot order, readable at a glance.

#![no_std]
#![no_main]

use bootloader_api::config::Mapping;
use bootloader_api::{BootInfo, BootloaderConfig, entry_point};
use plinth_kernel::arch::{self, cpu, power, smp, time};
use plinth_kernel::boot::{self, symbols};
use plinth_kernel::mem::{PAGE_SIZE, device, frames, heap};
use plinth_kernel::{launch, log, selftest};

/// What the loader is asked for: a stack of 128 KiB, and all physical memory mapped.
const CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 128 << 10;
    config.mappings.physical_memory = Some(Mapping::Dynamic);
    config
};

entry_point!(main, config = &CONFIG);

fn main(info: &'static mut BootInfo) -> ! {
    time::start();
    log::init();
    ::log::info!("Plinth {} is starting", env!("CARGO_PKG_VERSION"));

    let facts = boot::Facts::take(info);
    frames::init(facts.memory, facts.physical_offset);
    let memory = frames::frames().free_frames() * PAGE_SIZE;
    heap::init(heap::size_for(memory));
    device::keep_memory(facts.memory);
    symbols::init(facts.kernel_file);
    if let Some(framebuffer) = facts.framebuffer {
        boot::keep_framebuffer(&framebuffer);
        log::show_on(framebuffer);
    }
    let options = boot::read_modules(facts.ramdisk);
    log::set_level(options.log);

    let mut firmware = boot::read_firmware(facts.rsdp);
    if let Some(test) = options.test {
        selftest::prepare(test, &mut firmware);
    }
    power::init(&firmware);
    arch::init_boot_cpu(facts.stack);
    arch::init_interrupts(&firmware);
    smp::start_all(&firmware, options.maxcpus, launch::other_cpu);
    boot::report(&firmware);

    if let Some(test) = options.test {
        selftest::run(test);
    }
    launch::launch(cpu::cpu())
}
