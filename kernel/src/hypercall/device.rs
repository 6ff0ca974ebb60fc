//! Calls on devices: those that a domain serves for another, and the machine's own.

use core::sync::atomic::Ordering;

use plinth_abi::{Claim as Wanted, Slot, Status, rights};

use super::Done;
use super::caller::{Caller, living, number};
use super::core::wait_until;
use crate::arch::irq;
use crate::intc::Message;
use crate::log;
use crate::mem::nested::GPA_LIMIT;
use crate::mem::{Amounts, Charge, PAGE_SIZE, Ref};
use crate::object::{Claim, ClaimKind, Line, Vcpu};
use crate::virt::{Vcpu as _, Vendor};

/// Ports there are.
const PORTS: u64 = 0x1_0000;

/// Claims a part of a domain.
pub(super) fn claim<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, gpa, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::DEVICE)?;
    let wanted: Wanted = caller.read(gpa)?;
    let (memory, _) = caller.memory_of(wanted.memory.into(), rights::READ | rights::WRITE)?;
    let event = caller.event_of(wanted.event.into(), rights::SIGNAL)?;
    let kind = ClaimKind::from_number(wanted.kind).ok_or(Status::BAD_ARGUMENT)?;
    let end = wanted
        .first
        .checked_add(wanted.length)
        .ok_or(Status::BAD_ARGUMENT)?;
    let sound = match kind {
        ClaimKind::Ports => end <= PORTS,
        ClaimKind::Acknowledge => wanted.first == 0 && end == 1 && domain.pc.is_some(),
        ClaimKind::Mmio => {
            end <= GPA_LIMIT
                && wanted.first.is_multiple_of(PAGE_SIZE)
                && end.is_multiple_of(PAGE_SIZE)
        }
    };
    let slots = u64::from(domain.max_vcpus) * size_of::<Slot>() as u64;
    if !sound || wanted.length == 0 || wanted.reserved != 0 || memory.bytes() < slots {
        return Err(Status::BAD_ARGUMENT);
    }
    if domain.is_over() || !memory.is_populated() {
        return Err(Status::WRONG_STATE);
    }
    let range = wanted.first..end;
    if domain.is_claimed(kind, &range) {
        return Err(Status::EXISTS);
    }
    let charge = Charge::new(&domain.budget, Amounts::heap(Claim::<V>::COST))?;
    let claimer = caller.domain().number;
    caller.domain().claims_made.store(true, Ordering::Release);
    domain.add_claim(Claim::new(
        kind, range, claimer, wanted.tag, memory, event, charge,
    ))?;
    Ok(Done::Value(0))
}

/// Gives a claim back.
pub(super) fn release<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, kind, first, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::DEVICE)?;
    let kind = ClaimKind::from_number(number(kind)?).ok_or(Status::BAD_ARGUMENT)?;
    living(&domain)?;
    domain.release(kind, first)?;
    Ok(Done::Value(0))
}

/// Completes an access.
pub(super) fn complete<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    // Who has answered has most likely nothing else to do.
    answer(caller, Ref::<Vcpu<V>>::hand_over)?;
    Ok(Done::Value(0))
}

/// Completes an access, and wakes the vCPU so.
#[inline]
fn answer<V: Vendor>(
    caller: &Caller<'_, '_, V>,
    wake: impl FnOnce(&Ref<Vcpu<V>>),
) -> Result<(), Status> {
    let [domain, index, value, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::DEVICE)?;
    let index = number(index)?;
    domain.living_vcpu(index)?.complete(value, wake)
}

/// Completes an access, and waits for the next event.
pub(super) fn complete_and_wait<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    // Where nothing is pending it waits: what comes meanwhile keeps it ready.
    let waits = caller.run.vcpu.events.lock().is_empty();
    answer(caller, |vcpu| {
        if waits {
            vcpu.pass();
        } else {
            vcpu.hand_over();
        }
    })?;
    let [_, _, _, deadline, ..] = caller.arguments();
    Ok(wait_until(deadline, waits))
}

/// A line of the domain's I/O APIC, or of its 8259A pair's output, changes.
pub(super) fn line<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, line, level, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::DEVICE)?;
    let line = Line::from_number(number(line)?).ok_or(Status::BAD_ARGUMENT)?;
    if level > 1 {
        return Err(Status::BAD_ARGUMENT);
    }
    living(&domain)?;
    let pc = domain.pc.as_ref().ok_or(Status::WRONG_STATE)?;
    domain.set_line(pc, line, level == 1);
    Ok(Done::Value(0))
}

/// A device sends a message-signalled interrupt.
pub(super) fn message<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, address, data, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::DEVICE)?;
    let message = Message::of_msi(address, number(data)?).ok_or(Status::BAD_ARGUMENT)?;
    living(&domain)?;
    let pc = domain.pc.as_ref().ok_or(Status::WRONG_STATE)?;
    domain.send(pc, &message, None);
    Ok(Done::Value(0))
}

/// Makes a physical interrupt signal an event.
pub(super) fn bind_irq<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [line, event, ..] = caller.arguments();
    let line = caller.irq_of(line)?;
    let event = caller.event_of(event, rights::SIGNAL)?;
    if !irq::is_available() {
        return Err(Status::NOT_SUPPORTED);
    }
    irq::bind(line, caller.run.cpu.apic_id(), irq::note).map_err(|_| Status::NOT_SUPPORTED)?;
    caller.domain().kernel.bind_irq(line, event)?;
    Ok(Done::Value(0))
}

/// The interrupt has been served.
pub(super) fn acknowledge_irq<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [line, ..] = caller.arguments();
    let line = caller.irq_of(line)?;
    if !caller.domain().kernel.is_irq_bound(line) {
        return Err(Status::WRONG_STATE);
    }
    irq::unmask(line);
    Ok(Done::Value(0))
}

/// Lets a domain use ports directly.
pub(super) fn enable_ports<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [ports, domain, ..] = caller.arguments();
    let (first, count) = caller.ports_of(ports)?;
    let domain = caller.domain_of(domain, rights::CONTROL)?;
    if domain.is_over() {
        return Err(Status::WRONG_STATE);
    }
    let range = u64::from(first)..u64::from(first) + u64::from(count);
    if domain.is_claimed(ClaimKind::Ports, &range) {
        return Err(Status::EXISTS);
    }
    domain.allow_ports(first, count)?;
    // The kernel's log leaves a port alone that somebody else drives.
    if log::uses_port(&range) {
        log::give_serial_away();
        domain.has_serial.store(true, Ordering::Release);
    }
    // The caller's own vCPU takes them up at once.
    let Caller { context, run, .. } = caller;
    context.hw.detach(run.hardware);
    context.hw.attach(run.hardware, context.domain.hardware());
    Ok(Done::Value(0))
}
