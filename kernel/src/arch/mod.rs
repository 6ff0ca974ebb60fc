//! This CPU and the machine around it: registers, exceptions, interrupts, timers, the other CPUs.
//!
//! What is above asks here for things by their architectural names. Nothing here knows about guests.

mod alarm;
pub mod apic;
pub mod cpu;
pub mod debug;
pub mod errata;
pub mod fpu;
pub mod gdt;
pub mod idt;
mod ioapic;
pub mod irq;
mod machine_check;
pub mod msr;
pub mod mtrr;
pub mod nmi_tick;
pub mod paging;
mod pat;
pub mod pic;
pub mod power;
pub mod smp;
pub mod speculation;
pub mod stacks;
pub mod time;
pub mod trap;
pub mod watchdog;

use crate::boot::acpi::Firmware;

/// Makes the boot CPU one that can take exceptions. Needs frames and the kernel's address space.
///
/// `stack` is the one it runs on: its lowest address and its end.
pub fn init_boot_cpu(stack: (u64, u64)) {
    stacks::remember(stack.0, stack.1);
    let cpu = cpu::boot_cpu();
    cpu.install();
    smp::init_tables(cpu);
    pat::init();
    fpu::init(true);
    machine_check::init();
    mtrr::init();
}

/// Interrupts and time, on the boot CPU: the APIC on, the old controllers off, the machine's lines masked, the TSC calibrated.
pub fn init_interrupts(firmware: &Firmware) {
    pic::silence();
    apic::init(firmware);
    apic::init_cpu();
    irq::init(firmware);
    let cpu = cpu::boot_cpu();
    cpu.set_apic_id(apic::id());
    cpu::list(cpu);
    time::calibrate(firmware.pm_timer);
    time::init_cpu();
}
