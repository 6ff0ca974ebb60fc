//! Handles: making, naming, closing and the table's end against each other.

use plinth_abi::{Handle, Status};

use super::vendor::Model;
use super::world::World;
use super::{check_within, join, spawn};
use crate::mem::Ref;
use crate::object::{Domain, Ending, Entry, Event, Object};

fn add(domain: &Ref<Domain<Model>>, event: &Ref<Event<Model>>) -> Result<Handle, Status> {
    domain.reserve_handle()?;
    domain.add_handle(Entry::full(Object::Event(event.clone())))
}

#[test]
fn a_handle_is_closed_once_and_names_nothing_afterwards() {
    check_within(3, || {
        let world = World::new(1);
        let domain = world.domain(0);
        let [old, new] = [world.event(), world.event()];
        let handle = u64::from(add(&domain, &old).unwrap().0);
        let close = |domain: Ref<Domain<Model>>| move || domain.remove_handle(handle).is_ok();
        let closes = spawn(close(domain.clone()));
        let (also, event) = (domain.clone(), new.clone());
        let adds = spawn(move || add(&also, &event).unwrap());
        // Whatever takes its place, the handle names this or nothing.
        let named = domain.with_handle(handle, |entry| match &entry.object {
            Object::Event(event) => event.clone(),
            _ => unreachable!(),
        });
        assert!(
            named.is_ok_and(|event| event.is_same(&old))
                || domain.with_handle(handle, |_| ()).is_err()
        );
        let here = close(domain.clone())();
        assert!(here != join(closes), "one of the two");
        assert_ne!(u64::from(join(adds).0), handle);
        assert_eq!(domain.info().handles, 1);
        assert_eq!((old.count(), new.count()), (1, 2));
        domain.remove_handle(handle).err().unwrap();
        domain
            .remove_handle(u64::from(add(&domain, &old).unwrap().0))
            .unwrap();
        assert!(domain.destroy_step().is_ok());
    });
}

#[test]
fn an_end_leaves_no_handle_whoever_adds_one() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.domain(0);
        let event = world.event();
        add(&domain, &event).unwrap();
        domain.end(Ending::Killed, 0, 0).unwrap();
        let (also, other) = (domain.clone(), event.clone());
        let adds = spawn(move || add(&also, &other).is_ok());
        let also = domain.clone();
        // Two that destroy it at once.
        let destroys = spawn(move || while also.destroy_step().is_ok_and(|done| !done) {});
        while domain.destroy_step().is_ok_and(|done| !done) {}
        join(destroys);
        join(adds);
        assert_eq!(domain.destroy_step(), Ok(true));
        assert_eq!(event.count(), 1, "a handle is left");
        assert_eq!(add(&domain, &event).err(), Some(Status::OVER_BUDGET));
        assert_eq!(domain.info().handles, 0);
        assert_eq!(domain.info().heap, domain.kernel.whole.amounts().0.heap);
    });
}
