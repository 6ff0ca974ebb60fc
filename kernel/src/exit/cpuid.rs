//! CPUID.

use super::{Next, instruction};
use crate::object::Context;
use crate::rules::cpuid::Registers;
use crate::virt::{Gprs, Vcpu as _, Vendor};

/// Answers from the domain's table. All four registers are written as 32-bit values: their upper halves become zero.
#[inline(always)]
pub(super) fn handle<V: Vendor>(vcpu: &mut Context<V>) -> Next {
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    let gprs = vcpu.hw.gprs();
    let (leaf, subleaf) = (gprs.rax as u32, gprs.rcx as u32);
    let registers = vcpu.cpuid(leaf, subleaf);
    set(vcpu.hw.gprs_mut(), registers);
    vcpu.hw.skip(length);
    Next::Resume
}

/// Answers in passing: a leaf that depends on nothing else. Whether it is one.
#[inline(always)]
pub(super) fn in_passing<V: Vendor>(vcpu: &mut Context<V>) -> bool {
    match vcpu.cpuid.plain(vcpu.hw.gprs().rax as u32) {
        Some(registers) => {
            set(vcpu.hw.gprs_mut(), registers);
            true
        }
        None => false,
    }
}

#[inline(always)]
fn set(gprs: &mut Gprs, registers: Registers) {
    let [eax, ebx, ecx, edx] = registers;
    gprs.rax = u64::from(eax);
    gprs.rbx = u64::from(ebx);
    gprs.rcx = u64::from(ecx);
    gprs.rdx = u64::from(edx);
}
