//! RDMSR and WRMSR of registers that the guest does not reach by itself. What they mean is decided by `rules::msr`.

use core::marker::PhantomData;

use super::{Next, apic, control, instruction, raise};
use crate::arch::msr::Msr;
use crate::arch::{speculation, time};
use crate::object::{Context, Run};
use crate::rules::GeneralProtection;
use crate::rules::cr::ControlState;
use crate::rules::msr::{self, Context as Rules};
use crate::virt::{Event, Vcpu as VendorVcpu, Vendor};

/// The part of a vCPU that the rules need.
struct View<'a, V: Vendor> {
    control: ControlState,
    hw: &'a mut V::Vcpu,
    vendor: PhantomData<V>,
}

impl<V: Vendor> Rules for View<'_, V> {
    fn control(&self) -> ControlState {
        self.control
    }

    fn set_efer(&mut self, value: u64) {
        self.hw.set_efer(value);
    }

    fn host_tsc(&self) -> u64 {
        time::tsc()
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.hw.set_tsc_offset(offset);
    }

    fn switched(&self, msr: u32) -> Option<u64> {
        self.hw.msr(Msr(msr))
    }

    fn set_switched(&mut self, msr: u32, value: u64) -> bool {
        self.hw.set_msr(Msr(msr), value)
    }

    fn prediction_barrier(&mut self) {
        speculation::barrier();
    }
}

/// RDMSR. The CPU has checked CPL 0, under SVM too: its bitmap is consulted after the check.
pub(super) fn read<V: Vendor>(vcpu: &mut Context<V>, run: &Run<'_, V>) -> Next {
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    let number = vcpu.hw.gprs().rcx as u32;
    if let Some(result) = apic::read_msr(vcpu, run, number) {
        return finish_read(vcpu, length, result);
    }
    let view = View::<V> {
        control: control::state(vcpu),
        hw: &mut vcpu.hw,
        vendor: PhantomData,
    };
    let result = msr::read(number, &vcpu.msrs, vcpu.cpuid.features(), &view);
    finish_read(vcpu, length, result)
}

#[inline(always)]
fn finish_read<V: Vendor>(
    vcpu: &mut Context<V>,
    length: u8,
    result: Result<u64, GeneralProtection>,
) -> Next {
    match result {
        Ok(value) => {
            vcpu.hw.gprs_mut().set_edx_eax(value);
            vcpu.hw.skip(length);
            Next::Resume
        }
        Err(GeneralProtection) => raise(vcpu, Event::GP0),
    }
}

/// WRMSR. What is written with nearly every interrupt is part of the run loop's code.
#[inline(always)]
pub(super) fn write<V: Vendor>(vcpu: &mut Context<V>, run: &mut Run<'_, V>) -> Next {
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    let gprs = vcpu.hw.gprs();
    let (number, value) = (gprs.rcx as u32, gprs.edx_eax());
    if apic::write_msr_at_once(vcpu, run, number, value) {
        vcpu.hw.skip(length);
        return vcpu.deliver_interrupt(run.vcpu);
    }
    write_other(vcpu, run, number, value, length)
}

#[inline(never)]
fn write_other<V: Vendor>(
    vcpu: &mut Context<V>,
    run: &mut Run<'_, V>,
    number: u32,
    value: u64,
    length: u8,
) -> Next {
    if let Some(result) = apic::write_msr(vcpu, run, number, value) {
        return match result {
            Ok(()) => {
                vcpu.hw.skip(length);
                vcpu.deliver_interrupt(run.vcpu)
            }
            Err(GeneralProtection) => raise(vcpu, Event::GP0),
        };
    }
    let offset = vcpu.msrs.tsc_offset;
    let control = control::state(vcpu);
    let mut view = View::<V> {
        control,
        hw: &mut vcpu.hw,
        vendor: PhantomData,
    };
    match msr::write(
        number,
        value,
        &mut vcpu.msrs,
        vcpu.cpuid.features(),
        &mut view,
    ) {
        Ok(()) => {
            vcpu.hw.skip(length);
            if vcpu.msrs.tsc_offset != offset {
                vcpu.tsc_moved(run, offset);
            }
            Next::Resume
        }
        Err(GeneralProtection) => raise(vcpu, Event::GP0),
    }
}
