//! The local APIC by its MSRs (SDM vol. 3 table 12-6).

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::TIMER;

/// Where its registers are in memory until [`enable`].
pub const MEMORY: u64 = 0xfee0_0000;

const APIC_BASE: u32 = 0x1b;
const END_OF_INTERRUPT: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const COMMAND: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const SELF_IPI: u32 = 0x83f;
const TSC_DEADLINE: u32 = 0x6e0;
/// MSR_KVM_EOI_EN (Linux, Documentation/virt/kvm/x86/msr.rst).
const KVM_EOI: u32 = 0x4b56_4d04;

/// Bit 0: the vCPU may end the interrupt that it was given by clearing it.
static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

fn read(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the registers named above change nothing when they are read.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn write(msr: u32, value: u64) {
    // SAFETY: the registers named above govern interrupts only.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Goes to x2APIC mode, and lets the timer wait for a moment of the TSC.
pub fn enable() {
    const X2APIC: u64 = 1 << 10;
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    const TSC_DEADLINE_MODE: u64 = 2 << 17;
    write(APIC_BASE, read(APIC_BASE) | X2APIC);
    write(SPURIOUS, SOFTWARE_ENABLE | 0xff);
    write(LVT_TIMER, TSC_DEADLINE_MODE | u64::from(TIMER));
}

pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// The vCPU, the first or the second, wants to end interrupts by its word from now on.
pub fn end_by_word(vcpu: usize) {
    write(KVM_EOI, core::ptr::from_ref(word(vcpu)) as u64 | 1);
}

fn word(vcpu: usize) -> &'static AtomicU32 {
    let [first, second] = &WORDS;
    if vcpu == 0 { first } else { second }
}

/// Ends the interrupt by the vCPU's word, if it may, else by the register.
pub fn end_in_memory(vcpu: usize) {
    let word = word(vcpu);
    if word.load(Ordering::Relaxed) & 1 == 0 {
        end_of_interrupt();
    } else {
        word.store(0, Ordering::Relaxed);
    }
}

pub fn interrupt_self(vector: u8) {
    write(SELF_IPI, vector.into());
}

/// Interrupts the vCPU with that APIC ID.
pub fn interrupt(id: u32, vector: u8) {
    write(COMMAND, u64::from(id) << 32 | u64::from(vector));
}

/// INIT and two start-up messages, as the manual's protocol wants them (SDM vol. 3 10.4.4.1).
pub fn start(id: u32, page: u8) {
    const INIT: u64 = 5 << 8;
    const START_UP: u64 = 6 << 8;
    const ASSERT: u64 = 1 << 14;
    let target = u64::from(id) << 32;
    write(COMMAND, target | INIT | ASSERT);
    for _ in 0..2 {
        write(COMMAND, target | START_UP | ASSERT | u64::from(page));
    }
}

/// Has the timer interrupt at that moment of the TSC.
pub fn set_deadline(tsc: u64) {
    write(TSC_DEADLINE, tsc);
}
