//! Calls on events.

use plinth_abi::{Status, rights};

use super::Done;
use super::caller::{Caller, living};
use super::vcpu::vector;
use crate::mem::{Amounts, Charge, Ref};
use crate::object::{Event, Object};
use crate::virt::Vendor;

/// Makes an event.
pub(super) fn create<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [domain, ..] = caller.arguments();
    let domain = caller.domain_of(domain, rights::CHARGE)?;
    living(&domain)?;
    caller.give(|| {
        let charge = Charge::new(&domain.budget, Amounts::heap(Event::<V>::COST))?;
        let event = Ref::new(Event::new(charge)).map_err(|_| Status::NO_MEMORY)?;
        Ok(Object::Event(event))
    })
}

/// Marks it pending.
pub(super) fn signal<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [event, ..] = caller.arguments();
    caller.event_of(event, rights::SIGNAL)?.signal();
    Ok(Done::Value(0))
}

/// Binds it to the calling vCPU.
pub(super) fn bind<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [event, key, ..] = caller.arguments();
    caller
        .event_of(event, rights::BIND)?
        .bind(caller.run.vcpu, key)?;
    Ok(Done::Value(0))
}

/// Binds it to a vector of a vCPU.
pub(super) fn bind_vector<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [event, vcpu, wanted, ..] = caller.arguments();
    let event = caller.event_of(event, rights::BIND)?;
    let vcpu = caller.vcpu_of(vcpu, rights::CONTROL)?;
    event.bind_vector(&vcpu, vector(wanted)?)?;
    Ok(Done::Value(0))
}

/// Ends its binding.
pub(super) fn unbind<V: Vendor>(caller: &mut Caller<'_, '_, V>) -> Result<Done, Status> {
    let [event, ..] = caller.arguments();
    caller.event_of(event, rights::BIND)?.unbind()?;
    Ok(Done::Value(0))
}
