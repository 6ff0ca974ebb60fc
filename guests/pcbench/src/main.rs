//! Measures what a PC's exits cost: accesses to the local APIC, interrupts between two vCPUs, waking by the timer, fresh memory, and a
//! device that another domain serves. A line each: `bench NAME: MEDIAN (LEAST to MOST)`, in ticks of the TSC. The names are those of
//! kvm-unit-tests' `vmexit` where it has the operation.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "executes the instructions that are measured")]

mod apic;
mod second;

use core::sync::atomic::{AtomicU64, Ordering};

use plinth_common::{Ticks, around};
use plinth_pc::println;
use plinth_pc::trap::{self, Frame};
use x86_64::instructions::interrupts;

plinth_pc::start!(main, all_segments: false);
plinth_pc::pvh_note!();

/// To the second vCPU, which answers.
const PING: u8 = 0x40;
/// The answer.
const PONG: u8 = 0x41;
/// To itself.
const SELF: u8 = 0x42;
/// The timer's.
const TIMER: u8 = 0x43;
/// The same three, whose handlers end them by a word in memory; before that, the message that the second vCPU is to have such a word.
const PING_BY_WORD: u8 = 0x44;
const PONG_BY_WORD: u8 = 0x45;
const SELF_BY_WORD: u8 = 0x46;
const TAKE_WORD: u8 = 0x47;

/// Ticks in which the second vCPU comes to rest.
const REST: u64 = 100_000;
/// Ticks in which the first vCPU's CPU comes to rest, more than enough, and how closely the least that is enough is looked for.
const FAR: u64 = 16_000;
const NEARER: u64 = 16;
/// By how much waking may take longer or shorter than usual while the CPU still sleeps.
const JITTER: u64 = 64;
/// Ticks until an interrupt for which a vCPU waits without halting: longer than it takes to ask for it.
const AHEAD: u64 = 20_000;
/// The power management timer, which the control guest serves.
const PM_TIMER: u16 = 0x608;
/// COM1's line status and scratch registers.
const LINE_STATUS: u16 = 0x3fd;
const SCRATCH: u16 = 0x3ff;
/// Memory from here on has not been touched.
const FRESH: u64 = 16 << 20;
/// Where the local APIC's version register is while it is accessed as memory.
const VERSION: u64 = apic::MEMORY + 0x30;

/// Interrupts that the first vCPU has taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// The next page that has not been touched.
static NEXT: AtomicU64 = AtomicU64::new(FRESH);

fn main() -> u32 {
    trap::set_handler(Some(on_interrupt));
    report(
        "xapic_read",
        &around!("mov ecx, {version}", "mov eax, [rcx]"; version = const VERSION),
    );
    apic::enable();
    report("x2apic_read", &around!("mov ecx, 0x808", "rdmsr"));
    report(
        "x2apic_write",
        &around!("mov ecx, 0x808", "xor eax, eax", "xor edx, edx", "wrmsr"),
    );
    report("mov_from_cr8", &around!("mov rax, cr8"));
    report("mov_to_cr8", &around!("xor eax, eax", "mov cr8, rax"));
    report("self_ipi", &|| interrupted(|| apic::interrupt_self(SELF)));
    // A moment that is over: the interrupt comes at once.
    report("tscdeadline_immed", &|| {
        interrupted(|| apic::set_deadline(now()))
    });
    // How much later than it should a vCPU that runs has taken the timer's interrupt.
    report("tscdeadline", &|| {
        interrupted(|| apic::set_deadline(now() + AHEAD)).saturating_sub(AHEAD)
    });
    if has_tsc_adjust() {
        report("rd_tsc_adjust_msr", &around!("mov ecx, 0x3b", "rdmsr"));
        report(
            "wr_tsc_adjust_msr",
            &around!("mov ecx, 0x3b", "xor eax, eax", "xor edx, edx", "wrmsr"),
        );
    }
    report(
        "tscdeadline_write",
        &around!(
            "mov ecx, 0x6e0",
            "mov eax, -1",
            "mov edx, 0x7fffffff",
            "wrmsr"
        ),
    );
    report(
        "inl_from_pmtimer",
        &around!("mov dx, {port}", "in eax, dx"; port = const PM_TIMER),
    );
    report(
        "inb_served_by_control",
        &around!("mov dx, {port}", "in al, dx"; port = const LINE_STATUS),
    );
    report(
        "outb_served_by_control",
        &around!("mov dx, {port}", "out dx, al"; port = const SCRATCH),
    );
    report("nested_fault", &|| {
        let page = NEXT.fetch_add(4096, Ordering::Relaxed);
        around!("mov [r9], rcx"; in("r9") page)()
    });
    second::start();
    report("ipi_halt", &|| round_trip(PING));
    if timer_is_exact() {
        report("halt_timer", &halt_and_wake);
    }
    second::spin(true);
    report("halt_timer_busy", &|| {
        rest();
        let whole = timed(rest);
        // The other vCPU has had the CPU for the rest.
        whole.saturating_sub(second::spun())
    });
    second::spin(false);
    // As Linux ends interrupts where KVM's leaves say that it may.
    apic::end_by_word(0);
    apic::interrupt(second::ID, TAKE_WORD);
    report("self_ipi_pv_eoi", &|| {
        interrupted(|| apic::interrupt_self(SELF_BY_WORD))
    });
    report("ipi_halt_pv_eoi", &|| round_trip(PING_BY_WORD));
    0
}

/// The ticks from an interrupt to the second vCPU until its answer, while both halt.
fn round_trip(vector: u8) -> u64 {
    rest();
    timed(|| {
        apic::interrupt(second::ID, vector);
        wait_for_one();
    })
}

fn report(name: &str, operation: &dyn Fn() -> u64) {
    println!("bench {name}: {}", Ticks::of(operation));
}

/// The time stamp counter.
fn now() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn timed(operation: impl FnOnce()) -> u64 {
    let start = now();
    operation();
    now() - start
}

/// The ticks until the interrupt that this causes has been taken; the vCPU does not halt. Interrupts are off before and after.
fn interrupted(cause: impl FnOnce()) -> u64 {
    let before = TAKEN.load(Ordering::Relaxed);
    interrupts::enable();
    let ticks = timed(|| {
        cause();
        while TAKEN.load(Ordering::Relaxed) == before {}
    });
    interrupts::disable();
    ticks
}

/// Whether there is TSC_ADJUST (SDM vol. 2, CPUID leaf 07H, EBX bit 1).
fn has_tsc_adjust() -> bool {
    core::arch::x86_64::__cpuid(0).eax >= 7
        && core::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 1 != 0
}

/// Halts until the first vCPU has taken one interrupt more. Interrupts are off before and after.
fn wait_for_one() {
    let before = TAKEN.load(Ordering::Relaxed);
    while TAKEN.load(Ordering::Relaxed) == before {
        interrupts::enable_and_hlt();
        interrupts::disable();
    }
}

/// Halts until the timer ends it, so that the second vCPU has the CPU, and comes to rest.
fn rest() {
    apic::set_deadline(now() + REST);
    wait_for_one();
}

/// The ticks from before the timer is set until its interrupt has ended HLT, on a CPU that has nothing else to do; without those in which the
/// CPU sleeps.
///
/// If the timer is set far ahead, the CPU has come to rest before, and the interrupt is taken as much after its time as it takes to
/// wake. Where that is only just so, the CPU has not slept.
fn halt_and_wake() -> u64 {
    let mut least = halted(FAR);
    let usual = least.saturating_sub(FAR);
    let (mut too_near, mut far) = (0, FAR / NEARER);
    while far - too_near > 1 {
        let steps = too_near.midpoint(far);
        let ahead = steps * NEARER;
        let ticks = halted(ahead);
        if ticks.saturating_sub(ahead).abs_diff(usual) > JITTER {
            too_near = steps;
        } else {
            far = steps;
            least = ticks;
        }
    }
    least
}

/// The ticks from before the timer is set so far ahead until its interrupt has ended HLT.
fn halted(ahead: u64) -> u64 {
    timed(|| {
        apic::set_deadline(now() + ahead);
        wait_for_one();
    })
}

/// Whether the timer's interrupt comes to the tick, so that [`halt_and_wake`] can tell when the CPU no longer sleeps: QEMU's does with
/// `-icount`, Bochs's does not.
fn timer_is_exact() -> bool {
    let [first, others @ ..] = [(); 8].map(|()| halted(FAR));
    others.iter().all(|ticks| *ticks == first)
}

fn on_interrupt(frame: &mut Frame) -> bool {
    match frame.vector as u8 {
        PING => {
            apic::end_of_interrupt();
            apic::interrupt(0, PONG);
        }
        PONG | SELF | TIMER => {
            apic::end_of_interrupt();
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
        PING_BY_WORD => {
            apic::end_in_memory(1);
            apic::interrupt(0, PONG_BY_WORD);
        }
        PONG_BY_WORD | SELF_BY_WORD => {
            apic::end_in_memory(0);
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
        TAKE_WORD => {
            apic::end_of_interrupt();
            apic::end_by_word(1);
        }
        _ => return false,
    }
    true
}
