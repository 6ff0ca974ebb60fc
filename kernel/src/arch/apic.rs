//! The local APIC: by MSRs where the CPU has x2APIC, else by its registers in memory (SDM vol. 3 chapter 12).

#![allow(unsafe_code, reason = "device registers in memory, and MSRs")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::Once;

use super::msr::{self, Msr};
use super::paging;
use crate::boot::acpi::Firmware;
use crate::mem::{Hpa, device};

/// Bytes from the registers on that are interrupt messages where devices write there (SDM vol. 3 12.11).
const MESSAGES: u64 = 1 << 20;

/// Vector of the timer.
pub const TIMER: u8 = 0xf0;
/// Vector by which one CPU gets another's attention.
pub const KICK: u8 = 0xf1;
/// Vector of the APIC's own errors.
pub const ERROR: u8 = 0xfe;
/// Vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;

/// Registers, by their offset in memory; the x2APIC MSR is 800h plus a sixteenth of it (SDM table 12-6).
#[derive(Clone, Copy)]
#[repr(u16)]
enum Register {
    Id = 0x20,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    SpuriousVector = 0xf0,
    InService = 0x100,
    ErrorStatus = 0x280,
    Command = 0x300,
    CommandHigh = 0x310,
    LvtTimer = 0x320,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    InitialCount = 0x380,
    CurrentCount = 0x390,
    Divide = 0x3e0,
}

const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;
const ALL_OTHERS: u32 = 3 << 18;
/// xAPIC: the last command has not been sent yet.
const COMMAND_PENDING: u32 = 1 << 12;
/// Polls of it before it is given up: a bus that is stuck must not hang the kernel.
const PATIENCE: u32 = 1_000_000;

static X2APIC: AtomicBool = AtomicBool::new(false);
/// Where the registers are mapped; 0 with x2APIC.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
/// What the firmware says of the inputs for NMIs.
static FIRMWARE: Once<Firmware> = Once::new();

fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

fn read(register: Register, index: u16) -> u32 {
    let offset = register as u16 + index * 16;
    if is_x2apic() {
        msr::read(Msr(0x800 + u32::from(offset >> 4))) as u32
    } else {
        // SAFETY: `init` mapped the page of registers, uncached; each is 32 bits wide.
        unsafe {
            ((REGISTERS.load(Ordering::Relaxed) + u64::from(offset)) as *const u32).read_volatile()
        }
    }
}

fn write(register: Register, value: u32) {
    if is_x2apic() {
        // SAFETY: APIC registers have no effect on memory.
        unsafe { msr::write(Msr(0x800 + (register as u32 >> 4)), u64::from(value)) };
    } else {
        let address = REGISTERS.load(Ordering::Relaxed) + register as u64;
        // SAFETY: as in `read`.
        unsafe { (address as *mut u32).write_volatile(value) };
    }
}

/// Finds the APIC's mode and maps its registers; on the boot CPU, before [`init_cpu`].
///
/// # Panics
/// Where the page of registers cannot be mapped: a kernel without interrupts can do nothing.
pub(super) fn init(firmware: &Firmware) {
    FIRMWARE.call_once(|| firmware.clone());
    let base = msr::read(Msr::IA32_APIC_BASE);
    let has_x2apic = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_x2apic());
    if has_x2apic {
        X2APIC.store(true, Ordering::Relaxed);
        // Its registers in memory may come back with the mode.
        device::keep(Hpa::new(base & BASE_ADDRESS), MESSAGES);
        return;
    }
    device::keep(Hpa::new(base & BASE_ADDRESS), MESSAGES);
    match paging::map_mmio(Hpa::new(base & BASE_ADDRESS), 4096) {
        Ok(address) => REGISTERS.store(address.get(), Ordering::Relaxed),
        Err(why) => panic!("the local APIC's registers cannot be mapped: {why:?}"),
    }
}

/// Switches the calling CPU's APIC on: everything accepted, the timer masked, and NMIs taken from the inputs that carry them.
pub(super) fn init_cpu() {
    let base = msr::read(Msr::IA32_APIC_BASE) | BASE_ENABLE;
    // SAFETY: the address stays; the mode is the one that `read` and `write` use from here on. There is no way from off to
    // x2APIC but through xAPIC (SDM vol. 3 figure 12-27).
    unsafe {
        msr::write(Msr::IA32_APIC_BASE, base);
        if is_x2apic() {
            msr::write(Msr::IA32_APIC_BASE, base | BASE_X2APIC);
        }
    }
    write(Register::TaskPriority, 0);
    write(
        Register::SpuriousVector,
        SOFTWARE_ENABLE | u32::from(SPURIOUS),
    );
    write(Register::LvtTimer, LVT_MASKED | u32::from(TIMER));
    let nmi = FIRMWARE
        .get()
        .map_or([false, true], |firmware| firmware.nmi_inputs(id()));
    for (lint, nmi) in [Register::LvtLint0, Register::LvtLint1]
        .into_iter()
        .zip(nmi)
    {
        write(lint, if nmi { LVT_NMI } else { LVT_MASKED });
    }
    clear_error();
    write(Register::LvtError, u32::from(ERROR));
}

/// "x2APIC" or "xAPIC".
pub fn mode() -> &'static str {
    if is_x2apic() { "x2APIC" } else { "xAPIC" }
}

/// Whether a message can be sent to the CPU with this APIC id alone: xAPIC has 8 bits for it, and 255 means all.
pub(super) fn can_address(apic_id: u32) -> bool {
    is_x2apic() || apic_id < 255
}

/// The calling CPU's APIC id.
pub fn id() -> u32 {
    let id = read(Register::Id, 0);
    if is_x2apic() { id } else { id >> 24 }
}

/// The handler of the interrupt in service has done its work.
pub(super) fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// Whether an interrupt with this vector is in service: it came through the APIC.
pub(super) fn in_service(vector: u8) -> bool {
    read(Register::InService, u16::from(vector >> 5)) >> (vector & 31) & 1 != 0
}

/// Reads the errors away: the register must be written before it shows them (SDM 12.5.3).
pub(super) fn clear_error() {
    write(Register::ErrorStatus, 0);
}

/// Waits until every store so far is seen by all, before any later instruction begins. WRMSR to an x2APIC register or to
/// IA32_TSC_DEADLINE doesn't wait by itself (SDM 12.12.3). A fence of the language is not enough: it orders memory accesses, and
/// may be compiled to a locked instruction, which WRMSR can overtake.
fn finish_stores() {
    // SAFETY: only orders what is around it.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

fn command(destination: u32, low: u32) {
    if is_x2apic() {
        // What the other CPU is to see comes before the message.
        finish_stores();
        // SAFETY: asks other CPUs for what the callers want.
        unsafe { msr::write(Msr(0x830), u64::from(destination) << 32 | u64::from(low)) };
        return;
    }
    write(Register::CommandHigh, destination << 24);
    write(Register::Command, low);
    for _ in 0..PATIENCE {
        if read(Register::Command, 0) & COMMAND_PENDING == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

/// Sends an interrupt to the CPU with this APIC id.
pub fn send_ipi(apic_id: u32, vector: u8) {
    command(apic_id, LEVEL_ASSERT | u32::from(vector));
}

/// Sends an NMI. See [`super::cpu::Cpu::send_nmi`].
pub(super) fn send_nmi(apic_id: u32) {
    command(apic_id, LEVEL_ASSERT | DELIVER_NMI);
}

/// Who a start-up message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// The CPU with this APIC id.
    One(u32),
    /// Every CPU but this one.
    AllOthers,
}

impl Target {
    fn fields(self) -> (u32, u32) {
        match self {
            Self::One(id) => (id, 0),
            Self::AllOthers => (0, ALL_OTHERS),
        }
    }
}

/// Sends INIT.
pub(super) fn send_init(target: Target) {
    let (destination, shorthand) = target.fields();
    command(destination, LEVEL_ASSERT | DELIVER_INIT | shorthand);
}

/// Sends a start-up message: execution begins at physical `page` times 4096, below 1 MiB.
pub(super) fn send_startup(target: Target, page: u8) {
    let (destination, shorthand) = target.fields();
    command(
        destination,
        LEVEL_ASSERT | DELIVER_STARTUP | shorthand | u32::from(page),
    );
}

/// Sets the timer to one-shot mode, counting at the full rate; not armed.
pub(super) fn timer_one_shot() {
    write(Register::Divide, DIVIDE_BY_1);
    write(Register::InitialCount, 0);
    write(Register::LvtTimer, u32::from(TIMER));
}

/// Sets the timer to TSC-deadline mode; not armed.
pub(super) fn timer_tsc_deadline() {
    write(Register::LvtTimer, TIMER_TSC_DEADLINE | u32::from(TIMER));
    // The mode must have taken effect before the deadline is written (SDM 12.5.4.1), or that would be ignored.
    finish_stores();
}

/// Lets the one-shot timer run for `count` of its ticks; 0 stops it.
pub(super) fn timer_count(count: u32) {
    write(Register::InitialCount, count);
}

/// What is left of the count.
pub(super) fn timer_left() -> u32 {
    read(Register::CurrentCount, 0)
}

/// Masks the timer, for measuring its rate.
pub(super) fn timer_masked() {
    write(Register::Divide, DIVIDE_BY_1);
    write(Register::LvtTimer, LVT_MASKED | u32::from(TIMER));
}
