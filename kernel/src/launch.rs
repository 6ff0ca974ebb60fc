//! From a machine that is up to the first domain: the vendor is chosen, its capabilities are shown, every CPU turns the
//! extension on and enters the scheduler.

use alloc::boxed::Box;

use spin::Once;

use crate::arch::cpu::Cpu;
use crate::arch::{errata, fpu, nmi_tick, power, speculation, time, trap};
use crate::boot::cmdline;
use crate::mem::frames::frames;
use crate::mem::{Amounts, Budget, Ref, heap};
use crate::object::{Kernel, keeps_apics};
use crate::root;
use crate::rules::cpuid::GuestIdentity;
use crate::rules::speculation::ArchCapabilities;
use crate::sched::Sched;
use crate::selftest;

use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::virt::{Capabilities, Lack, Vendor};

/// What every CPU does once the vendor is known.
trait Life: Send + Sync {
    fn live(&self, cpu: &'static Cpu) -> !;
}

static LIFE: Once<Box<dyn Life>> = Once::new();

/// Exit status of a machine that cannot run guests.
const NO_VIRTUALISATION: u32 = 102;

/// Where the other CPUs go when they are up: they wait until the boot CPU has chosen.
pub fn other_cpu(cpu: &'static Cpu) -> ! {
    loop {
        if cpu.is_parked() {
            trap::halt_forever();
        }
        if let Some(life) = LIFE.get() {
            life.live(cpu);
        }
        selftest::serve(cpu);
        core::hint::spin_loop();
    }
}

/// Chooses the vendor by what this CPU has, and runs domains until the machine's end.
pub fn launch(cpu: &'static Cpu) -> ! {
    match (Vmx::probe(), Svm::probe()) {
        (Ok(capabilities), _) => start::<Vmx>(cpu, &capabilities),
        (_, Ok(capabilities)) => start::<Svm>(cpu, &capabilities),
        (Err(vmx), Err(svm)) => {
            log::error!("this CPU cannot run guests");
            log::error!("  VMX: {vmx}");
            log::error!("  SVM: {svm}");
            power::end(cmdline::options().end, NO_VIRTUALISATION);
        }
    }
}

fn start<V: Vendor>(cpu: &'static Cpu, capabilities: &Capabilities) -> ! {
    show::<V>(capabilities);
    log::info!(
        "local APICs of PCs are {}",
        if keeps_apics::<V>() {
            "kept by the CPU"
        } else {
            "served by the kernel"
        }
    );
    speculation::report();
    if nmi_tick::is_needed() {
        nmi_tick::start();
    }
    LIFE.call_once(|| Box::new(World(kernel::<V>()))).live(cpu)
}

/// A kernel without domains.
///
/// # Panics
/// For want of memory: at boot, that is the machine's end.
pub fn kernel<V: Vendor>() -> &'static Kernel<V> {
    let whole = Amounts {
        frames: frames().free_frames().saturating_sub(RESERVE_FRAMES),
        memory_frames: 0,
        // What lies between blocks is of no use to anybody.
        heap: (heap::size() - heap::used()) as u64 / 8 * 7,
    };
    log::info!(
        "{} MiB of memory and {} MiB of kernel heap for domains",
        whole.frames >> 8,
        whole.heap >> 20
    );
    let Ok(whole) = Ref::new(Budget::whole(whole)) else {
        panic!("no heap for the first budget");
    };
    Box::leak(Box::new(Kernel::new(
        Sched::for_all_cpus(),
        identity::<V>(),
        host_cpuid,
        whole,
    )))
}

/// Frames that stay the kernel's: for page tables and the CPUs' own needs.
const RESERVE_FRAMES: u64 = 64;

struct World<V: Vendor>(&'static Kernel<V>);

impl<V: Vendor> Life for World<V> {
    fn live(&self, cpu: &'static Cpu) -> ! {
        match V::enable() {
            Ok(mut hardware) => {
                if cpu.id == 0 {
                    root::start(self.0, &mut hardware);
                }
                self.0.live(cpu, &mut hardware)
            }
            Err(lack) => refuse(cpu, lack),
        }
    }
}

/// A CPU that lacks what the boot CPU has takes no part; if it is the boot CPU, nothing can go on.
fn refuse(cpu: &'static Cpu, lack: Lack) -> ! {
    log::error!("cpu{} runs no guests: {lack}", cpu.id);
    if cpu.id == 0 {
        power::end(cmdline::options().end, NO_VIRTUALISATION);
    }
    trap::halt_forever()
}

/// What the guests' CPUs are.
fn identity<V: Vendor>() -> GuestIdentity {
    let instructions = V::guest_instructions();
    GuestIdentity {
        vcpus: 1,
        local_apic: false,
        invpcid: instructions.invpcid,
        rdtscp: instructions.rdtscp,
        xcr0_supported: fpu::features(),
        tsc_khz: u32::try_from(time::tsc_hz() / 1000).unwrap_or(0),
        apic_khz: 0,
        physical_bits: PHYSICAL_BITS.min(host_cpuid(0x8000_0008, 0)[0] as u8),
        arch_capabilities: errata::arch_capabilities().map(ArchCapabilities::for_guests),
    }
}

/// Bits of a guest-physical address that nested tables of four levels translate.
const PHYSICAL_BITS: u8 = 48;

fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

fn show<V: Vendor>(capabilities: &Capabilities) {
    log::info!("{} is used; what this CPU offers:", V::NAME);
    for row in &capabilities.rows {
        let note = if row.without.is_empty() { "" } else { "  -- " };
        log::info!("  {:<28} {}{note}{}", row.name, row.value, row.without);
    }
}
