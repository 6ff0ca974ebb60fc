//! Calls on vCPUs.

use plinth_abi::state::part;
use plinth_abi::{DomainState, Schedule, Status, VcpuInfo, VcpuState, rights};
use zerocopy::IntoBytes;

use super::Done;
use super::caller::{Caller, number};
use crate::arch::fpu;
use crate::mem::{Access, Ref};
use crate::object::{Context, Domain, Object, Vcpu};
use crate::virt::{Vcpu as _, Vendor};

/// Bytes of vector state that are copied at once.
const PIECE: usize = 512;

/// Adds a vCPU to a domain.
pub(super) fn create<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    if domain.state() != DomainState::CREATED {
        return Err(Status::WRONG_STATE);
    }
    caller.give(|| domain.add_vcpu().map(Object::Vcpu))
}

/// A handle to a domain's vCPU.
pub(super) fn open<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, index, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    let index = number(index)?;
    let vcpu = domain.living_vcpu(index)?;
    caller.give(|| Ok(Object::Vcpu(vcpu)))
}

/// The bytes of a part of a vCPU's state.
fn bytes_of(which: u64) -> Result<u64, Status> {
    match which {
        part::REGISTERS => Ok(size_of::<VcpuState>() as u64),
        part::VECTOR => Ok(fpu::area_bytes() as u64),
        _ => Err(Status::BAD_ARGUMENT),
    }
}

/// Calls `f` with the context of a vCPU that does not run, while the caller's own has left the CPU's control structures.
fn with_context<V: Vendor, R>(
    caller: &mut Caller<'_, '_, V>,
    vcpu: &Ref<Vcpu<V>>,
    f: impl FnOnce(&mut Context<V>, &mut V::Cpu) -> R,
) -> Result<R, Status> {
    let mut guard = vcpu.at_rest()?;
    let context = guard.as_deref_mut().ok_or(Status::WRONG_STATE)?;
    caller.context.hw.detach(caller.run.hardware);
    let result = f(context, caller.run.hardware);
    caller
        .context
        .hw
        .attach(caller.run.hardware, caller.context.domain.hardware());
    Ok(result)
}

fn state_of<V: Vendor>(domain: &Domain<V>, allowed: &[DomainState]) -> Result<(), Status> {
    allowed
        .contains(&domain.state())
        .then_some(())
        .ok_or(Status::WRONG_STATE)
}

/// Copies a part of a vCPU's state out.
pub(super) fn get_state<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [vcpu, which, gpa, length, ..] = caller.arguments();
    let vcpu = caller.vcpu_of(vcpu, rights::READ)?;
    let bytes = bytes_of(which)?;
    if length < bytes {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, bytes, Access::WRITE)?;
    let allowed = [
        DomainState::CREATED,
        DomainState::PAUSED,
        DomainState::ENDED,
    ];
    state_of(&vcpu.domain, &allowed)?;
    if which == part::REGISTERS {
        let state = with_context(caller, &vcpu, |context, hardware| {
            context.state(&vcpu, hardware)
        })?;
        caller.write(gpa, &state)?;
    } else {
        let mut guard = vcpu.at_rest()?;
        let context = guard.as_deref_mut().ok_or(Status::WRONG_STATE)?;
        let area = context.vector_state().bytes();
        for (index, piece) in area.chunks(PIECE).enumerate() {
            caller.write_bytes(gpa + (index * PIECE) as u64, piece)?;
        }
    }
    Ok(Done::Value(bytes))
}

/// Sets a part of a vCPU's state.
pub(super) fn set_state<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [vcpu, which, gpa, length, ..] = caller.arguments();
    let vcpu = caller.vcpu_of(vcpu, rights::CONTROL)?;
    if length != bytes_of(which)? {
        return Err(Status::BAD_ARGUMENT);
    }
    caller.check_buffer(gpa, length, Access::READ)?;
    let allowed = [DomainState::CREATED, DomainState::PAUSED];
    if which == part::REGISTERS {
        let mut state = VcpuState::RESET;
        caller.read_bytes(gpa, state.as_mut_bytes())?;
        state_of(&vcpu.domain, &allowed)?;
        with_context(caller, &vcpu, |context, hardware| {
            context.set_state(&vcpu, hardware, &state)
        })?
        .map_err(|_| Status::BAD_ARGUMENT)?;
        // It may have been waiting for something: the new state does not.
        vcpu.wake();
    } else {
        state_of(&vcpu.domain, &allowed)?;
        let mut guard = vcpu.at_rest()?;
        let context = guard.as_deref_mut().ok_or(Status::WRONG_STATE)?;
        let supported = context.cpuid.features().xcr0;
        let read = |offset: usize, out: &mut [u8]| caller.read_bytes(gpa + offset as u64, out);
        context.vector_state().set(supported, read)?;
    }
    Ok(Done::Value(0))
}

/// Sets weight, cap and pinning.
pub(super) fn schedule<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [vcpu, gpa, ..] = caller.arguments();
    let vcpu = caller.vcpu_of(vcpu, rights::CONTROL)?;
    let schedule: Schedule = caller.read(gpa)?;
    vcpu.domain.kernel.sched.set_schedule(&vcpu, &schedule)?;
    Ok(Done::Value(0))
}

/// Times and counters.
pub(super) fn info<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [vcpu, gpa, ..] = caller.arguments();
    let vcpu = caller.vcpu_of(vcpu, rights::READ)?;
    caller.check_buffer(gpa, size_of::<VcpuInfo>() as u64, Access::WRITE)?;
    caller.write(gpa, &vcpu.info())?;
    Ok(Done::Value(0))
}

/// The least vector of an interrupt: those below are the CPU's exceptions.
const LEAST_VECTOR: u8 = 32;

/// An interrupt's vector.
pub(super) fn vector(value: u64) -> Result<u8, Status> {
    u8::try_from(value)
        .ok()
        .filter(|vector| *vector >= LEAST_VECTOR)
        .ok_or(Status::BAD_ARGUMENT)
}

/// Makes an interrupt pending.
pub(super) fn interrupt<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [vcpu, wanted, ..] = caller.arguments();
    let vcpu = caller.vcpu_of(vcpu, rights::CONTROL)?;
    let vector = vector(wanted)?;
    if vcpu.is_over() {
        return Err(Status::WRONG_STATE);
    }
    vcpu.interrupt(vector);
    Ok(Done::Value(0))
}
