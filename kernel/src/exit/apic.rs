//! The registers of the interrupt controllers as instructions reach them: MSRs and two pages of addresses. What they mean is decided in
//! `intc`.

use super::Next;
use crate::arch::msr::Msr;
use crate::intc::{Effect, LocalApic, Mode};
use crate::mem::{Gpa, PAGE_SIZE};
use crate::object::{Context, MSR_EOI, Run};
use crate::rules::GeneralProtection;
use crate::rules::msr::number as n;
use crate::virt::{Vcpu as _, Vendor};

/// Where the registers of the local APICs are, each vCPU's its own.
const LOCAL: u64 = 0xfee0_0000;
/// Where the I/O APIC's are.
const IO: u64 = 0xfec0_0000;
/// MSRs that belong to an x2APIC.
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// A page of an interrupt controller's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// Of the vCPU's local APIC.
    Local,
    /// Of the I/O APIC.
    Io,
}

/// The interrupt controller whose registers are at an address.
pub(super) fn page<V: Vendor>(vcpu: &Context<V>, gpa: Gpa) -> Option<Page> {
    let apic = vcpu.apic.as_ref()?;
    match gpa.get() & !(PAGE_SIZE - 1) {
        LOCAL if apic.mode() == Mode::XApic => Some(Page::Local),
        IO => Some(Page::Io),
        _ => None,
    }
}

/// Whether the part of a local APIC that the CPU may keep, or that changes when the guest ends an interrupt by itself, tells what this
/// register holds, or changes with it: TPR, PPR, EOI, the spurious vector register, which enables it, ISR and IRR. `index` is its MSR's
/// number above 0x800, or a sixteenth of its offset.
const fn is_kept(index: u32) -> bool {
    matches!(index, 0x08 | 0x0a | 0x0b | 0x0f | 0x10..=0x17 | 0x20..=0x27)
}

/// A register as an access of `size` bytes reads it.
pub(super) fn read<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    page: Page,
    gpa: Gpa,
    size: u8,
) -> u64 {
    let offset = gpa.offset_in(PAGE_SIZE) as u32;
    let now = vcpu.guest_clock();
    if vcpu.is_apic_away() && page == Page::Local && is_kept(offset >> 4) {
        vcpu.fetch_apic(run.vcpu);
    }
    let value = match (page, &mut vcpu.apic, &vcpu.domain.pc) {
        (Page::Local, Some(apic), _) => apic.read_mmio(offset & !3, &run.vcpu.requests, now),
        (Page::Io, _, Some(pc)) => vcpu
            .domain
            .with_io_apic(pc, None, |io, _| io.read_mmio(offset & !3)),
        _ => u32::MAX,
    };
    // Registers are 32 bits wide; the manual leaves other accesses undefined (SDM vol. 3 11.4.1).
    let part = u64::from(value) >> (8 * (offset & 3));
    part & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
}

/// A write of `size` bytes to a register; an interrupt may have become deliverable by it.
pub(super) fn write<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    page: Page,
    gpa: Gpa,
    size: u8,
    value: u64,
) {
    let offset = gpa.offset_in(PAGE_SIZE) as u32;
    if size < 4 || !offset.is_multiple_of(4) {
        return;
    }
    let (value, now) = (value as u32, vcpu.guest_clock());
    if page == Page::Local && is_kept(offset >> 4) {
        vcpu.fetch_apic(run.vcpu);
    }
    let index = vcpu.index;
    match (page, &mut vcpu.apic, &vcpu.domain.pc) {
        (Page::Local, Some(apic), _) => {
            let effect = apic.write_mmio(offset, value, &run.vcpu.requests, now);
            follow(vcpu, run, effect);
        }
        (Page::Io, _, Some(pc)) => {
            vcpu.domain.with_io_apic(pc, Some(index), |io, deliver| {
                io.write_mmio(offset, value, deliver);
            });
        }
        _ => {}
    }
}

/// A register of the local APIC's page, which is not away, as it reads with nothing else to follow; `None`: it is not so.
#[inline(always)]
pub(super) fn read_at_once<V: Vendor>(
    vcpu: &Context<V>,
    run: &Run<'_, V>,
    gpa: Gpa,
) -> Option<u32> {
    let offset = gpa.offset_in(PAGE_SIZE) as u32;
    let apic = vcpu.apic.as_ref()?;
    apic.read_mmio_at_once(offset, &run.vcpu.requests, vcpu.guest_clock())
}

/// A write of a register of the local APIC's page that is written with nearly every interrupt; whether it was one, and is done. An interrupt may have
/// become deliverable.
#[inline(always)]
pub(super) fn write_at_once<V: Vendor>(vcpu: &mut Context<V>, gpa: Gpa, value: u64) -> bool {
    let offset = gpa.offset_in(PAGE_SIZE) as u32;
    let apic = vcpu.apic.as_mut();
    apic.is_some_and(|apic| apic.write_mmio_at_once(offset, value as u32))
}

/// Does what a write leads to outside the local APIC. The caller then looks for an interrupt to deliver.
#[inline(always)]
fn follow<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, effect: Effect) {
    match effect {
        Effect::None
        | Effect::SelfInterrupt
        | Effect::Changed
        | Effect::Eoi {
            broadcast: false, ..
        } => {}
        _ => reach_out(vcpu, run, effect),
    }
}

#[inline(never)]
fn reach_out<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, effect: Effect) {
    if matches!(effect, Effect::Eoi { .. }) && vcpu.refuse_end() {
        return;
    }
    let Some(pc) = &vcpu.domain.pc else {
        return;
    };
    match effect {
        Effect::Send(message) => {
            vcpu.domain.send(pc, &message, Some(vcpu.index));
        }
        Effect::Eoi {
            vector,
            broadcast: true,
        } => {
            let sender = Some(vcpu.index);
            vcpu.domain.with_io_apic(pc, sender, |io, deliver| {
                io.end_of_interrupt(vector, deliver);
            });
        }
        Effect::Timer => vcpu.rearm(run),
        Effect::None | Effect::SelfInterrupt | Effect::Eoi { .. } | Effect::Changed => {}
    }
}

/// RDMSR of the local APIC's registers and of the clock; `None`: no such MSR.
#[inline(always)]
pub(super) fn read_msr<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &Run<'_, V>,
    msr: u32,
) -> Option<Result<u64, GeneralProtection>> {
    if vcpu.is_apic_away() && is_kept(msr.wrapping_sub(*X2APIC.start())) {
        vcpu.fetch_apic(run.vcpu);
    }
    let apic = vcpu.apic.as_ref()?;
    Some(match msr {
        n::APIC_BASE => Ok(apic.base()),
        n::TSC_DEADLINE => Ok(apic.tsc_deadline()),
        _ if X2APIC.contains(&msr) => apic.read_msr(msr, &run.vcpu.requests, vcpu.guest_clock()),
        MSR_EOI => Ok(vcpu.ends.read()),
        _ => Ok(vcpu.clock.read(msr)?),
    })
}

/// WRMSR of the registers that are written with nearly every interrupt; whether it was one, and is done. An interrupt may have become
/// deliverable.
#[inline(always)]
pub(super) fn write_msr_at_once<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    msr: u32,
    value: u64,
) -> bool {
    // An end that is offered needs none: the model says what follows from one that is told all the same.
    if V::Vcpu::KEEPS_APIC && is_kept(msr.wrapping_sub(*X2APIC.start())) {
        vcpu.fetch_apic(run.vcpu);
    }
    let Some(apic) = &mut vcpu.apic else {
        return false;
    };
    match apic.write_msr_at_once(msr, value, &run.vcpu.requests) {
        Some(effect) => {
            follow(vcpu, run, effect);
            true
        }
        None => false,
    }
}

/// WRMSR, as [`read_msr`], of what [`write_msr_at_once`] has left. An interrupt may have become deliverable.
#[inline(always)]
pub(super) fn write_msr<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    msr: u32,
    value: u64,
) -> Option<Result<(), GeneralProtection>> {
    vcpu.apic.as_ref()?;
    if matches!(msr, n::APIC_BASE | MSR_EOI) {
        vcpu.fetch_apic(run.vcpu);
    }
    let now = vcpu.guest_clock();
    let requests = &run.vcpu.requests;
    let apic: &mut LocalApic = vcpu.apic.as_mut()?;
    let effect = match msr {
        n::APIC_BASE => apic.set_base(value, requests),
        _ if X2APIC.contains(&msr) => apic.write_msr(msr, value, requests, now),
        MSR_EOI => return Some(vcpu.ends.write(value)),
        _ => {
            let now = vcpu.now();
            let wall_clock = vcpu.domain.pc.as_ref().map_or(0, |pc| pc.wall_clock);
            return vcpu.clock.write(msr, value, &vcpu.domain, &now, wall_clock);
        }
    };
    Some(effect.map(|effect| follow(vcpu, run, effect)))
}

/// The guest has ended an interrupt at the local APIC that the CPU keeps, and its end is to be told.
pub(super) fn ended<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, vector: u8) -> Next {
    vcpu.fetch_apic(run.vcpu);
    if let Some(apic) = &mut vcpu.apic {
        let effect = apic.ended(vector, true, &run.vcpu.requests);
        follow(vcpu, run, effect);
    }
    vcpu.deliver_interrupt(run.vcpu)
}

/// The guest has written a vector to SELF IPI of the local APIC that the CPU keeps, and the CPU has not taken it.
pub(super) fn self_ipi<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>, vector: u8) -> Next {
    // Only in x2APIC mode: the write is one of those.
    let _ = write_msr_at_once(vcpu, run, Msr::X2APIC_SELF_IPI.0, vector.into());
    vcpu.deliver_interrupt(run.vcpu)
}

/// CR8 is written.
pub(super) fn set_task_priority<V: Vendor>(vcpu: &mut Context<V>, class: u8) {
    match &mut vcpu.apic {
        // What it leads to is that an interrupt may be delivered.
        Some(apic) => {
            let _ = apic.set_task_priority(class);
        }
        None => vcpu.task_priority = class,
    }
}

/// CR8 is read.
pub(super) fn task_priority<V: Vendor>(vcpu: &Context<V>) -> u8 {
    match &vcpu.apic {
        Some(apic) => apic.task_priority(),
        None => vcpu.task_priority,
    }
}
