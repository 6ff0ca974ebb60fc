//! Interrupts between CPUs and to oneself, and from the machine's lines.

#![allow(
    unsafe_code,
    reason = "looks at every register across an interrupt; ports of the PIT"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use super::{check, mailbox, tests};
use crate::arch::cpu::{self, Cpu};
use crate::arch::irq::{self, BindError};
use crate::arch::{apic, time, trap};
use crate::log;

tests!("interrupts":
    kicks_arrive_on_every_cpu_and_come_back,
    nmis_arrive_on_every_cpu,
    nmis_disturb_no_lock,
    unexpected_vectors_are_counted,
    registers_survive,
    a_kick_ends_a_halt,
    an_edge_waits_for_the_unmasking_of_its_line,
    a_level_comes_again_while_it_is_active,
    a_line_interrupts_the_cpu_it_is_bound_to,
    lines_that_are_not_there_are_refused,
    no_apic_reported_an_error,
);

/// How long an interrupt may take to arrive, in microseconds. Emulated CPUs have to wait for a turn on the host.
pub(super) const ARRIVAL_US: u64 = 2_000_000;

/// Waits for `condition`, with an interrupt window at each look; whether it came true.
pub(super) fn await_interrupt(limit_us: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = time::tsc() + time::ticks_of_us(limit_us);
    loop {
        trap::interrupt_window();
        if condition() {
            return true;
        }
        if time::tsc() > end {
            return false;
        }
        core::hint::spin_loop();
    }
}

fn kicks(cpu: &Cpu) -> u64 {
    cpu.counters.kick.load(Ordering::Relaxed)
}

fn nmis(cpu: &Cpu) -> u64 {
    cpu.counters.nmi.load(Ordering::Relaxed)
}

fn kicks_arrive_on_every_cpu_and_come_back() -> super::Outcome {
    let me = cpu::cpu();
    for other in mailbox::others() {
        let (there, here) = (kicks(other), kicks(me));
        apic::send_ipi(other.apic_id(), apic::KICK);
        let home = me.apic_id();
        let arrived = mailbox::start(other.id, move || {
            let arrived = await_interrupt(ARRIVAL_US, || kicks(other) != there);
            apic::send_ipi(home, apic::KICK);
            arrived
        })
        .wait()?;
        check!(arrived, "none arrived on cpu{}", other.id);
        check!(
            await_interrupt(ARRIVAL_US, || kicks(me) != here),
            "none came back from cpu{}",
            other.id
        );
        let counts = (kicks(other) - there, kicks(me) - here);
        check!(
            counts == (1, 1),
            "{counts:?} were counted with cpu{}",
            other.id
        );
        check!(
            me.take_pending() & cpu::PENDING_KICK != 0,
            "it was not noted as pending"
        );
    }
    Ok(())
}

fn nmis_arrive_on_every_cpu() -> super::Outcome {
    for &cpu in cpu::cpus() {
        for _ in 0..3 {
            let before = nmis(cpu);
            cpu.send_nmi();
            // No window: an NMI needs none.
            let end = time::tsc() + time::ticks_of_us(ARRIVAL_US);
            while nmis(cpu) == before && time::tsc() < end {
                core::hint::spin_loop();
            }
            let gone = nmis(cpu) - before;
            check!(gone == 1, "{gone} were counted on cpu{}", cpu.id);
        }
        check!(
            cpu.take_pending() & cpu::PENDING_NMI != 0,
            "it was not noted on cpu{}",
            cpu.id
        );
    }
    Ok(())
}

/// NMIs hit a CPU that takes the log's lock again and again; what is broken hangs here.
fn nmis_disturb_no_lock() -> super::Outcome {
    let Some(other) = mailbox::others().next() else {
        return Ok(());
    };
    let before = nmis(other);
    let work = mailbox::start(other.id, || {
        let end = time::tsc() + time::ticks_of_us(20_000);
        let mut text = [0; 512];
        let mut reads = 0_u32;
        while time::tsc() < end {
            let _ = log::read_ring(0, &mut text);
            reads += 1;
        }
        reads
    });
    let end = time::tsc() + time::ticks_of_us(20_000);
    while time::tsc() < end {
        other.send_nmi();
        time::delay_us(100);
    }
    let reads = work.wait()?;
    let gone = nmis(other) - before;
    check!(
        reads > 0 && gone > 0,
        "{reads} reads were disturbed by {gone} NMIs"
    );
    Ok(())
}

fn unexpected_vectors_are_counted() -> super::Outcome {
    let me = cpu::cpu();
    let count = || me.counters.unexpected.load(Ordering::Relaxed);
    // Lower ones later: each can only arrive when the ones before it have been ended at the APIC.
    for vector in [0xef, 0x77, 0x31] {
        let before = count();
        apic::send_ipi(me.apic_id(), vector);
        check!(
            await_interrupt(ARRIVAL_US, || count() != before),
            "vector {vector:#x} did not arrive"
        );
        check!(
            count() == before + 1,
            "vector {vector:#x} was counted more than once"
        );
    }
    Ok(())
}

fn registers_survive() -> super::Outcome {
    let me = cpu::cpu();
    let before = kicks(me);
    apic::send_ipi(me.apic_id(), apic::KICK);
    // The APIC takes its time; the interrupt is to come in the window below.
    time::delay_us(1000);
    let changed: u64;
    // SAFETY: all registers are declared or restored; the kernel has no red zone. The interrupt's handler returns.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rax, 0x10101010",
            "mov rbx, 0x11111111",
            "mov rcx, 0x12121212",
            "mov rdx, 0x13131313",
            "mov rsi, 0x14141414",
            "mov rdi, 0x15151515",
            "mov rbp, 0x16161616",
            "mov r8,  0x18181818",
            "mov r9,  0x19191919",
            "mov r10, 0x20202020",
            "mov r11, 0x21212121",
            "mov r12, 0x22222222",
            "mov r13, 0x23232323",
            "mov r14, 0x24242424",
            "mov r15, 0x25252525",
            "std",
            "sti",
            "nop",
            "nop",
            "cli",
            // The direction flag goes in for the handler and comes back.
            "pushfq",
            "cld",
            "bt dword ptr [rsp], 10",
            "lea rsp, [rsp + 8]",
            "jnc 3f",
            "cmp rax, 0x10101010",
            "jne 3f",
            "cmp rbx, 0x11111111",
            "jne 3f",
            "cmp rcx, 0x12121212",
            "jne 3f",
            "cmp rdx, 0x13131313",
            "jne 3f",
            "cmp rsi, 0x14141414",
            "jne 3f",
            "cmp rdi, 0x15151515",
            "jne 3f",
            "cmp rbp, 0x16161616",
            "jne 3f",
            "cmp r8, 0x18181818",
            "jne 3f",
            "cmp r9, 0x19191919",
            "jne 3f",
            "cmp r10, 0x20202020",
            "jne 3f",
            "cmp r11, 0x21212121",
            "jne 3f",
            "cmp r12, 0x22222222",
            "jne 3f",
            "cmp r13, 0x23232323",
            "jne 3f",
            "cmp r14, 0x24242424",
            "jne 3f",
            "cmp r15, 0x25252525",
            "jne 3f",
            "xor eax, eax",
            "jmp 4f",
            "3:",
            "mov eax, 1",
            "4:",
            "pop rbp",
            "pop rbx",
            out("rax") changed,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    check!(
        kicks(me) == before + 1,
        "the interrupt did not come in its window"
    );
    check!(changed == 0, "a register or the direction flag changed");
    Ok(())
}

fn a_kick_ends_a_halt() -> super::Outcome {
    let me = cpu::cpu();
    let home = me.apic_id();
    for other in mailbox::others() {
        let before = kicks(me);
        let sent = mailbox::start(other.id, move || {
            time::delay_us(2000);
            let at = time::tsc();
            apic::send_ipi(home, apic::KICK);
            at
        });
        while kicks(me) == before {
            trap::enable_and_halt();
        }
        let woken = time::tsc();
        let sent = sent.wait()?;
        check!(
            woken >= sent,
            "woken by cpu{} before it sent anything",
            other.id
        );
    }
    Ok(())
}

/// The PIT's line.
const PIT: u8 = 0;
/// Of its ticks.
const MILLISECOND: u16 = 1193;
/// How long is waited for what must not come, in microseconds: several times what the PIT takes.
const QUIET_US: u64 = 20_000;

/// Calls of [`count_line`], and the CPU of the last.
static LINE_CALLS: AtomicU64 = AtomicU64::new(0);
static LINE_CPU: AtomicU64 = AtomicU64::new(u64::MAX);

/// A handler of [`PIT`].
fn count_line(line: u8) {
    if line == PIT {
        LINE_CPU.store(u64::from(cpu::cpu().id), Ordering::Relaxed);
        LINE_CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

fn line_calls() -> u64 {
    LINE_CALLS.load(Ordering::Relaxed)
}

/// The PIT's line becomes inactive, and after `count` ticks (1.193182 MHz; 0 is 65536) active; it stays so.
fn pit_one_shot(count: u16) {
    // Mode 0 of channel 0, binary.
    const MODE_0: u8 = 0b0011_0000;
    let count = count.to_le_bytes();
    // SAFETY: the kernel uses channel 0 for nothing else before guests run.
    unsafe {
        Port::<u8>::new(0x43).write(MODE_0);
        Port::<u8>::new(0x40).write(count[0]);
        Port::<u8>::new(0x40).write(count[1]);
    }
}

/// Waits until the handler was called `expected` times since it had been called `before` times, and some more for what should
/// not come.
fn expect_calls(before: u64, expected: u64, when: &str) -> super::Outcome {
    await_interrupt(ARRIVAL_US, || line_calls() - before >= expected);
    await_interrupt(QUIET_US, || line_calls() - before > expected);
    let gone = line_calls() - before;
    check!(gone == expected, "{gone} calls, not {expected}, {when}");
    Ok(())
}

fn bind_pit(cpu: &Cpu) -> super::Outcome {
    irq::bind(PIT, cpu.apic_id(), count_line).map_err(|why| alloc::format!("{why:?}"))
}

fn an_edge_waits_for_the_unmasking_of_its_line() -> super::Outcome {
    // No tick of the firmware's any more.
    pit_one_shot(0);
    bind_pit(cpu::cpu())?;
    let before = line_calls();
    pit_one_shot(MILLISECOND);
    expect_calls(before, 1, "after the first edge")?;
    for _ in 0..2 {
        pit_one_shot(MILLISECOND);
        expect_calls(before, 1, "after edges at a line that is not unmasked")?;
    }
    irq::unmask(PIT);
    expect_calls(
        before,
        2,
        "after its unmasking: the edges since make one call",
    )?;
    irq::unmask(PIT);
    expect_calls(before, 2, "after an unmasking without an edge")?;
    pit_one_shot(MILLISECOND);
    expect_calls(before, 3, "after the next edge")?;
    irq::mask(PIT);
    pit_one_shot(MILLISECOND);
    expect_calls(before, 3, "after an edge at a masked line")?;
    irq::unmask(PIT);
    expect_calls(before, 3, "after its unmasking")?;
    pit_one_shot(MILLISECOND);
    expect_calls(before, 4, "after the edge behind that")?;
    irq::mask(PIT);
    Ok(())
}

fn a_level_comes_again_while_it_is_active() -> super::Outcome {
    irq::force_trigger(PIT, true);
    pit_one_shot(MILLISECOND);
    let before = line_calls();
    bind_pit(cpu::cpu())?;
    expect_calls(before, 1, "after the line became active")?;
    irq::unmask(PIT);
    expect_calls(before, 2, "after its unmasking while active")?;
    pit_one_shot(MILLISECOND);
    irq::unmask(PIT);
    expect_calls(before, 3, "after it became active again")?;
    // Inactive for a while: QEMU takes what is active now for an edge later.
    pit_one_shot(0);
    irq::force_trigger(PIT, false);
    Ok(())
}

fn a_line_interrupts_the_cpu_it_is_bound_to() -> super::Outcome {
    for other in mailbox::others() {
        bind_pit(other)?;
        let before = line_calls();
        let arrived = mailbox::start(other.id, move || {
            pit_one_shot(MILLISECOND);
            await_interrupt(ARRIVAL_US, || line_calls() != before)
        })
        .wait()?;
        irq::mask(PIT);
        check!(arrived, "none arrived on cpu{}", other.id);
        let taker = LINE_CPU.load(Ordering::Relaxed);
        check!(
            taker == u64::from(other.id),
            "cpu{taker} took one of cpu{}",
            other.id
        );
    }
    Ok(())
}

fn lines_that_are_not_there_are_refused() -> super::Outcome {
    let me = cpu::cpu().apic_id();
    for (line, apic_id, expected) in [
        // The old cascade's: its GSI carries the PIT.
        (2, me, BindError::NoSuchLine),
        (irq::ISA_LINES, me, BindError::NoSuchLine),
        (PIT, 255, BindError::Unreachable),
        (PIT, 256, BindError::Unreachable),
    ] {
        let result = irq::bind(line, apic_id, count_line);
        check!(
            result == Err(expected),
            "line {line} to {apic_id:#x}: {result:?}"
        );
    }
    Ok(())
}

fn no_apic_reported_an_error() -> super::Outcome {
    for cpu in cpu::cpus() {
        let errors = cpu.counters.apic_error.load(Ordering::Relaxed);
        check!(errors == 0, "cpu{} had {errors}", cpu.id);
    }
    Ok(())
}
