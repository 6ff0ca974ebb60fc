//! Speculative execution on the calling CPU: what it says of itself, and what is set once.
//!
//! What is needed is decided by `rules::speculation`; what is done at each entry and exit is in `virt::guard`.

#![allow(unsafe_code, reason = "CR4 and MSRs that govern predictions")]

use alloc::vec::Vec;
use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::sync::atomic::{AtomicBool, Ordering};

use super::cpu::cpus;
use super::errata;
use super::gdt::KERNEL_DS;
use super::msr::{self, Msr};
use crate::boot::cmdline::{self, Threads};
use crate::rules::speculation::{self as rules, Circumstances, Facts, Mitigations, Plan, Rsb};

/// EFER.AIBRSE (APM2 3.1.7).
const EFER_AUTOMATIC_IBRS: u64 = 1 << 21;
/// CR4.SMEP, and CPUID leaf 7 EBX for it.
const CR4_SMEP: u64 = 1 << 20;
const EBX_SMEP: u32 = 1 << 7;
/// DE_CFG: LFENCE waits for all that is before it.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// IA32_PRED_CMD.IBPB.
const IBPB: u64 = 1 << 0;

/// Whether a CPU that goes from one domain to another puts a barrier between them.
static BARRIERS: AtomicBool = AtomicBool::new(false);
/// Whether a CPU that halts clears its buffers: what is in them is the other thread's then.
static CLEARS: AtomicBool = AtomicBool::new(false);

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// What is done on the calling CPU. All CPUs are up, so that those are known which share a core.
pub fn plan() -> Plan {
    let bits = thread_bits();
    let mut cores: Vec<u32> = cpus().iter().map(|cpu| cpu.apic_id() >> bits).collect();
    cores.sort_unstable();
    plan_where(cores.windows(2).any(|pair| pair.first() == pair.last()))
}

/// What is done on the calling CPU, where two of those that run guests share a core, or none do.
fn plan_where(shares_cores: bool) -> Plan {
    let circumstances = Circumstances {
        arch_capabilities: errata::arch_capabilities(),
        is_emulated: errata::is_tcg() || errata::is_bochs(),
        shares_cores,
    };
    Facts::new(&cpuid, &circumstances).plan(cmdline::options().mitigations)
}

/// How many of the low bits of an APIC identifier tell the threads of one core apart.
pub(super) fn thread_bits() -> u32 {
    rules::thread_bits(&cpuid)
}

/// Whether all threads of a core run guests, or one of each alone.
pub(super) fn uses_threads() -> bool {
    let options = cmdline::options();
    match options.smt {
        Threads::On => true,
        Threads::Off => false,
        Threads::Auto => {
            options.mitigations != rules::Choice::Auto || !plan_where(true).threads_see_each_other
        }
    }
}

/// Tells what is done, on the boot CPU.
pub fn report() {
    let plan = plan();
    log::info!("speculation: {plan}");
    if !plan.lacking.is_empty() {
        log::warn!(
            "speculation: this CPU, or its microcode, has no {}",
            plan.lacking
        );
    }
    if plan.threads_see_each_other {
        log::warn!(
            "speculation: threads share cores, and what runs on one may read what runs on the other; smt=off keeps all but one of each core idle"
        );
    }
}

/// Sets what stays as it is on the calling CPU, and tells what is to be done at entries and exits.
pub fn enable() -> Plan {
    let plan = plan();
    if plan.taken.contains(Mitigations::IBPB) {
        BARRIERS.store(true, Ordering::Relaxed);
    }
    if plan.taken.contains(Mitigations::VERW) {
        CLEARS.store(true, Ordering::Relaxed);
    }
    // Where there is no such register, the plan has no bit for it; else it is to be as the plan says, whatever the firmware left.
    // SAFETY: its bits change predictions only.
    let written = unsafe { msr::try_write(Msr::IA32_SPEC_CTRL, plan.kernel_spec_ctrl) };
    if !written && plan.kernel_spec_ctrl != 0 {
        log::warn!(
            "speculation: SPEC_CTRL does not take {:#x}, which the CPU announces",
            plan.kernel_spec_ctrl
        );
    }
    if plan.automatic_ibrs {
        // SAFETY: as above; the CPU announces it, and the rest of EFER stays.
        unsafe {
            msr::write(
                Msr::IA32_EFER,
                msr::read(Msr::IA32_EFER) | EFER_AUTOMATIC_IBRS,
            );
        }
    }
    // What comes before the first return after an exit ends in an LFENCE. Only AMD's CPUs have this register, and only those of some
    // families need it.
    if plan.rsb != Rsb::Untouched
        && let Some(configuration) = msr::try_read(Msr::DE_CFG)
    {
        // SAFETY: LFENCE does no less than before.
        let _ = unsafe { msr::try_write(Msr::DE_CFG, configuration | DE_CFG_LFENCE) };
    }
    // IBRS that is set once keeps guests' return stacks out where SMEP is on, too. The kernel has no page of user mode.
    if plan.taken.contains(Mitigations::IBRS)
        && __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).ebx & EBX_SMEP != 0
    {
        // SAFETY: SMEP forbids executing pages of user mode, of which the kernel's tables have none.
        unsafe {
            asm!("mov {t}, cr4", "or {t}, {smep}", "mov cr4, {t}", t = out(reg) _, smep = const CR4_SMEP, options(nostack));
        }
    }
    plan
}

/// Whether [`barrier`] is due where the calling CPU goes from one domain to another.
#[inline(always)]
pub fn parts_domains() -> bool {
    BARRIERS.load(Ordering::Relaxed)
}

/// To be done before the calling CPU halts: nothing of what guests did is left in buffers that another thread of the core gets meanwhile.
pub fn clear_buffers() {
    if CLEARS.load(Ordering::Relaxed) {
        let selector = KERNEL_DS;
        // SAFETY: it changes nothing but a flag, and what the CPU has in its buffers. Only its form with an operand in memory is sure to
        // clear them.
        unsafe {
            asm!("verw word ptr [{}]", in(reg) &raw const selector, options(nostack, readonly))
        };
    }
}

/// An indirect branch prediction barrier: what was executed before it on the calling CPU predicts no indirect branch after it.
/// Nothing happens on a CPU that lacks what the boot CPU announces, for want of its microcode.
pub fn barrier() {
    // SAFETY: it changes predictions only.
    let _ = unsafe { msr::try_write(Msr::IA32_PRED_CMD, IBPB) };
}
