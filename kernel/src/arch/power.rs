//! The end: switching off, resetting, halting, with all other CPUs stopped first.

#![allow(unsafe_code, reason = "ports and registers that end the machine")]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;
use x86_64::instructions::port::Port;

use super::{cpu, paging, time, trap};
use crate::boot::acpi::{Firmware, Register, Reset, SoftOff};
use crate::boot::cmdline::End;
use crate::log;
use crate::mem::Hva;

/// What the firmware's tables say about the machine's end.
static WAYS: Once<(Option<SoftOff>, Option<Reset>)> = Once::new();
/// Where the reset register is mapped, if it lies in memory. At the end it is too late: a stopped CPU may hold the locks that
/// mapping needs.
static RESET_REGISTER: Once<Hva> = Once::new();

/// SLP_EN of a PM1 control register (ACPI 4.8.3.2.1).
const SLEEP_ENABLE: u16 = 1 << 13;
/// SCI_EN of PM1a_CNT: the chipset is in ACPI mode.
const SCI_ENABLE: u16 = 1;
/// How long the others are waited for, and the chipset, in microseconds.
const PATIENCE_US: u64 = 100_000;
/// The port by which Bochs is told to end.
const BOCHS: u16 = 0x8900;

/// Remembers how this machine is switched off and reset.
pub fn init(firmware: &Firmware) {
    WAYS.call_once(|| (firmware.soft_off, firmware.reset));
    if let Some(Reset {
        register: Register::Memory(address),
        ..
    }) = firmware.reset
    {
        match paging::map_mmio(address, 1) {
            Ok(register) => {
                RESET_REGISTER.call_once(|| register);
            }
            Err(why) => ::log::warn!("the reset register cannot be mapped: {why:?}"),
        }
    }
}

/// No CPU ends the machine yet.
const NOBODY: u32 = u32::MAX;
/// The CPU that ends the machine. There is only ever one: two that stop each other would leave nobody.
static LAST: AtomicU32 = AtomicU32::new(NOBODY);

/// Makes the calling CPU the only one that runs: the others are stopped by an NMI and waited for, up to a tenth of a second.
/// Where another CPU was first with this, the call does not return. A second call by the same CPU does nothing.
pub fn stop_others() {
    let me = cpu::id_if_known();
    match LAST.compare_exchange(NOBODY, me, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(first) if first == me => return,
        Err(_) => trap::stop(),
    }
    let others = || cpu::cpus().iter().filter(|other| other.id != me);
    log::without_others(|| {
        for other in others() {
            other.pending.fetch_or(cpu::PENDING_STOP, Ordering::SeqCst);
            other.send_nmi();
        }
        let end = time::tsc() + time::ticks_of_us(PATIENCE_US);
        while !others().all(|other| other.is_stopped()) && time::tsc() < end {
            core::hint::spin_loop();
        }
    });
}

/// Ends the machine: stops all CPUs, says so with the status (0: all well), and does as `how` says.
pub fn end(how: End, status: u32) -> ! {
    trap::disable_interrupts();
    stop_others();
    log::take_serial_back();
    log::plain_line(format_args!("plinth: machine ends, status {status}"));
    log::flush();
    match how {
        End::PowerOff => off(),
        End::Reboot => reset(),
        End::Halt => trap::halt_forever(),
    }
}

fn off() -> ! {
    let (soft_off, _) = WAYS.get().copied().unwrap_or_default();
    if let Some(soft_off) = soft_off {
        sleep(&soft_off);
        time::delay_us(PATIENCE_US);
    }
    // Nothing but Bochs listens to this port.
    for &letter in b"Shutdown" {
        // SAFETY: a port without a device takes the byte and does nothing.
        unsafe { Port::<u8>::new(BOCHS).write(letter) };
    }
    log::plain_line(format_args!(
        "this machine cannot switch itself off: it is safe to do so now"
    ));
    trap::halt_forever()
}

/// Enters S5 (ACPI 7.4.2).
fn sleep(ways: &SoftOff) {
    // SAFETY: these are the registers that the firmware's tables name for this purpose.
    unsafe {
        let mut control = Port::<u16>::new(ways.pm1a);
        if let Some((port, value)) = ways.enable
            && control.read() & SCI_ENABLE == 0
        {
            Port::<u8>::new(port).write(value);
            let end = time::tsc() + time::ticks_of_us(PATIENCE_US);
            while control.read() & SCI_ENABLE == 0 && time::tsc() < end {}
        }
        let kept = control.read() & !(7 << 10 | SLEEP_ENABLE);
        control.write(kept | u16::from(ways.sleep_type.0) << 10 | SLEEP_ENABLE);
        if let Some(second) = ways.pm1b {
            Port::<u16>::new(second).write(u16::from(ways.sleep_type.1) << 10 | SLEEP_ENABLE);
        }
    }
}

/// Resets the machine by whatever answers: ACPI's register, the chipset's, the keyboard controller's, a triple fault.
fn reset() -> ! {
    let (_, reset) = WAYS.get().copied().unwrap_or_default();
    // SAFETY: these ports and registers reset a PC, or do nothing.
    unsafe {
        match reset {
            Some(Reset {
                register: Register::Port(port),
                value,
            }) => Port::<u8>::new(port).write(value),
            Some(Reset {
                register: Register::Memory(_),
                value,
            }) => {
                if let Some(register) = RESET_REGISTER.get() {
                    (register.get() as *mut u8).write_volatile(value);
                }
            }
            None => {}
        }
        time::delay_us(PATIENCE_US);
        Port::<u8>::new(0xcf9).write(0x0e);
        time::delay_us(PATIENCE_US);
        Port::<u8>::new(0x64).write(0xfe);
        time::delay_us(PATIENCE_US);
        let nothing = [0u64; 2];
        asm!("lidt [{}]", "int3", in(reg) nothing.as_ptr(), options(noreturn));
    }
}
