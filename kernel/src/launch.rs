//! From a machine that is up to running guests: the vendor is chosen, its capabilities are shown, every CPU turns the
//! extension on and enters the scheduler.

use alloc::boxed::Box;

use spin::Once;

use crate::arch::cpu::Cpu;
use crate::arch::{power, time};
use crate::boot::cmdline;
use crate::guests;
use crate::mem::frames::frames;
use crate::rules::cpuid::CpuidTable;
use crate::sched::Scheduler;
use crate::virt::svm::Svm;
use crate::virt::vmx::Vmx;
use crate::virt::{Capabilities, Lack, Vendor};

/// What every CPU does once the vendor is known.
type Life = dyn Fn(&'static Cpu) -> ! + Send + Sync;

static LIFE: Once<Box<Life>> = Once::new();

/// Exit status of a machine that cannot run guests.
const NO_VIRTUALISATION: u32 = 2;

/// Where the other CPUs go when they are up: they wait until the boot CPU has chosen.
pub fn other_cpu(cpu: &'static Cpu) -> ! {
    loop {
        if let Some(life) = LIFE.get() {
            life(cpu);
        }
        core::hint::spin_loop();
    }
}

/// Chooses the vendor by what this CPU has, and runs guests until the last has ended.
pub fn launch(cpu: &'static Cpu) -> ! {
    match (Vmx::probe(), Svm::probe()) {
        (Ok(capabilities), _) => start::<Vmx>(cpu, &capabilities),
        (_, Ok(capabilities)) => start::<Svm>(cpu, &capabilities),
        (Err(vmx), Err(svm)) => {
            log::error!("this CPU cannot run guests");
            log::error!("  VMX: {vmx}");
            log::error!("  SVM: {svm}");
            power::end(NO_VIRTUALISATION);
        }
    }
}

fn start<V: Vendor>(cpu: &'static Cpu, capabilities: &Capabilities) -> ! {
    show::<V>(capabilities);
    let list = guests::chosen(cmdline::options().guests);
    let cpuid = CpuidTable::of_host(time::tsc_hz() / 1000);
    let free = frames().free_frames();
    log::info!("{} guests to run, {} MiB of memory free", list.len(), free >> 8);
    let scheduler = Scheduler::<V>::new(&list, cpuid);
    let life = LIFE.call_once(|| Box::new(move |cpu| live(&scheduler, cpu)));
    life(cpu)
}

/// A CPU's way into the scheduler.
fn live<V: Vendor>(scheduler: &Scheduler<V>, cpu: &'static Cpu) -> ! {
    match V::enable() {
        Ok(mut hardware) => scheduler.run(cpu, &mut hardware),
        Err(lack) => refuse(cpu, lack),
    }
}

/// A CPU that lacks what the boot CPU has takes no part; if it is the boot CPU, nothing can go on.
fn refuse(cpu: &'static Cpu, lack: Lack) -> ! {
    log::error!("cpu{} runs no guests: {lack}", cpu.id);
    if cpu.id == 0 {
        power::end(NO_VIRTUALISATION);
    }
    power::park()
}

fn show<V: Vendor>(capabilities: &Capabilities) {
    log::info!("{} is used; what this CPU offers:", V::NAME);
    for row in &capabilities.rows {
        let note = if row.without.is_empty() { "" } else { "  -- " };
        log::info!("  {:<28} {}{note}{}", row.name, row.value, row.without);
    }
}
