//! The CPUs: who they are, and that they are alike.

#![allow(unsafe_code, reason = "reads control registers")]

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{check, mailbox, tests};
use crate::arch::cpu::{self, Cpu};
use crate::arch::msr::{self, Msr};
use crate::arch::{fpu, mtrr, time};

tests!("cpus":
    ids_are_unique,
    the_base_of_gs_is_the_cpus_own,
    control_registers_are_alike,
    protections_are_on,
    memory_types_are_alike,
    the_tsc_never_goes_back_between_cpus,
);

fn ids_are_unique() -> super::Outcome {
    let cpus = cpu::cpus();
    check!(!cpus.is_empty(), "no CPU is listed");
    for (index, cpu) in cpus.iter().enumerate() {
        check!(cpu.id as usize == index, "cpu{} is number {index}", cpu.id);
        let same = cpus
            .iter()
            .filter(|other| other.apic_id() == cpu.apic_id())
            .count();
        check!(same == 1, "{same} have APIC id {}", cpu.apic_id());
    }
    for (cpu, id) in mailbox::on_each(crate::arch::apic::id)? {
        check!(
            cpu.apic_id() == id,
            "cpu{} has APIC id {id}, listed is {}",
            cpu.id,
            cpu.apic_id()
        );
    }
    Ok(())
}

fn the_base_of_gs_is_the_cpus_own() -> super::Outcome {
    let look = || {
        (
            core::ptr::from_ref(cpu::cpu()) as u64,
            msr::read(Msr::IA32_GS_BASE),
        )
    };
    for (cpu, (found, base)) in mailbox::on_each(look)? {
        let address = core::ptr::from_ref(cpu) as u64;
        check!(
            found == address && base == address,
            "cpu{} is at {address:#x}, but finds {found:#x} by {base:#x}",
            cpu.id
        );
    }
    Ok(())
}

/// CR0, CR3, CR4, EFER, PAT and XCR0.
fn control() -> [u64; 6] {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    let efer = msr::read(Msr::IA32_EFER);
    [cr0, cr3, cr4, efer, msr::read(Msr::IA32_PAT), fpu::xcr0()]
}

fn control_registers_are_alike() -> super::Outcome {
    let mine = control();
    for (cpu, theirs) in mailbox::on_each(control)? {
        check!(
            theirs == mine,
            "cpu{} has {theirs:x?}, the boot CPU {mine:x?}",
            cpu.id
        );
    }
    check!(
        mine[5] == fpu::features(),
        "XCR0 is {:#x}, not {:#x}",
        mine[5],
        fpu::features()
    );
    Ok(())
}

fn protections_are_on() -> super::Outcome {
    for (cpu, [cr0, _, _, efer, _, _]) in mailbox::on_each(control)? {
        let id = cpu.id;
        check!(cr0 & 1 << 16 != 0, "cpu{id}: CR0.WP is clear");
        check!(
            cr0 & 3 << 29 == 0,
            "cpu{id}: caches are off by CR0 {cr0:#x}"
        );
        check!(efer & 1 << 11 != 0, "cpu{id}: EFER.NXE is clear");
    }
    Ok(())
}

/// SDM vol. 3 13.11.8: all CPUs have the same MTRRs.
fn memory_types_are_alike() -> super::Outcome {
    let mine = mtrr::registers();
    for (cpu, theirs) in mailbox::on_each(mtrr::registers)? {
        for (&(number, mine), (_, theirs)) in mine.iter().zip(theirs) {
            check!(
                mine == theirs,
                "MSR {number:#x} is {theirs:#x} on cpu{}, but {mine:#x} on the boot CPU",
                cpu.id
            );
        }
    }
    Ok(())
}

/// What two CPUs pass to and fro: the time at which one had it, and whose turn it is in bit 0.
struct Ball(AtomicU64);

const PASSES: u32 = 500;
/// Not longer than this, for emulated CPUs may have to share one of the host's.
const GAME_US: u64 = 1_000_000;

impl Ball {
    /// Plays for `side`; the steps back that it saw, and the passes.
    fn play(&self, side: u64) -> (Vec<(u64, u64)>, u32) {
        let end = time::tsc() + time::ticks_of_us(GAME_US);
        let mut back = Vec::new();
        let mut passes = 0;
        while passes < PASSES && time::tsc() < end {
            let ball = self.0.load(Ordering::Acquire);
            if ball & 1 != side {
                core::hint::spin_loop();
                continue;
            }
            let now = time::ordered_tsc();
            // Bit 0 of the time is lost to the turn.
            if now | 1 < ball | 1 {
                back.push((ball, now));
            }
            self.0.store(now & !1 | (side ^ 1), Ordering::Release);
            passes += 1;
        }
        (back, passes)
    }
}

fn played_with(other: &'static Cpu) -> Result<(Vec<(u64, u64)>, u32), String> {
    let ball = Arc::new(Ball(AtomicU64::new(0)));
    let theirs = ball.clone();
    let answer = mailbox::start(other.id, move || theirs.play(1));
    let (mut back, passes) = ball.play(0);
    back.extend(answer.wait()?.0);
    Ok((back, passes))
}

fn the_tsc_never_goes_back_between_cpus() -> super::Outcome {
    for other in mailbox::others() {
        let (back, passes) = played_with(other)?;
        check!(passes > 10, "only {passes} passes with cpu{}", other.id);
        check!(back.is_empty(), "it did with cpu{}: {back:?}", other.id);
    }
    Ok(())
}
