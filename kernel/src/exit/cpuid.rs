//! CPUID.

use super::{Next, instruction};
use crate::object::Context;
use crate::virt::{Vcpu as _, Vendor};

/// Answers from the domain's table. All four registers are written as 32-bit values: their upper halves become zero.
#[inline(always)]
pub(super) fn handle<V: Vendor>(vcpu: &mut Context<V>) -> Next {
    let length = match instruction::length(vcpu) {
        Ok(length) => length,
        Err(next) => return next,
    };
    let gprs = vcpu.hw.gprs();
    let (leaf, subleaf) = (gprs.rax as u32, gprs.rcx as u32);
    let [eax, ebx, ecx, edx] = vcpu.cpuid(leaf, subleaf);
    let gprs = vcpu.hw.gprs_mut();
    gprs.rax = u64::from(eax);
    gprs.rbx = u64::from(ebx);
    gprs.rcx = u64::from(ecx);
    gprs.rdx = u64::from(edx);
    vcpu.hw.skip(length);
    Next::Resume
}
