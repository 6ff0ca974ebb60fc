//! Events: signal, wait, binding and end against each other.

use std::sync::{Arc, Mutex};

use super::world::World;
use super::{check_within, join, spawn};
use crate::object::{Ending, Stop, take_pending};

type Keys = Arc<Mutex<Vec<u64>>>;

/// A CPU whose vCPUs wait for events, again and again; the keys that they got.
fn waiters(world: &World) -> (Keys, loom::thread::JoinHandle<()>) {
    let got = Keys::default();
    let notes = got.clone();
    let cpu = world.start(0, move |vcpu, _| {
        while let Some(key) = take_pending(vcpu) {
            notes.lock().unwrap().push(key);
        }
        // Until a moment that never comes.
        Some(Stop::Blocked(1 << 40))
    });
    (got, cpu)
}

#[test]
fn no_signal_is_lost() {
    check_within(2, || {
        let world = World::new(1);
        let vcpu = world.running(1).vcpu(0).unwrap();
        let events = [1, 2].map(|key| {
            let event = world.event();
            event.bind(&vcpu, key).unwrap();
            event
        });
        let (got, cpu) = waiters(&world);
        let [first, second] = events.clone();
        let other = spawn(move || first.signal());
        second.signal();
        join(other);
        world.come_to_rest(vec![cpu]);
        got.lock().unwrap().sort_unstable();
        assert_eq!(*got.lock().unwrap(), [1, 2]);
    });
}

#[test]
fn signals_of_one_event_are_one_or_more() {
    check_within(2, || {
        let world = World::new(1);
        let vcpu = world.running(1).vcpu(0).unwrap();
        let event = world.event();
        event.bind(&vcpu, 7).unwrap();
        let (got, cpu) = waiters(&world);
        let also = event.clone();
        let other = spawn(move || also.signal());
        event.signal_and_pass();
        join(other);
        world.come_to_rest(vec![cpu]);
        assert!(matches!(**got.lock().unwrap(), [7] | [7, 7]), "{got:?}");
    });
}

#[test]
fn an_end_and_a_signal_leave_nothing() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.running(1);
        let vcpu = domain.vcpu(0).unwrap();
        let event = world.event();
        event.bind(&vcpu, 7).unwrap();
        let (_, cpu) = waiters(&world);
        let also = event.clone();
        let other = spawn(move || also.signal());
        domain.end(Ending::Killed, 0, 0).unwrap();
        join(other);
        world.come_to_rest(vec![cpu]);
        assert!(vcpu.is_over());
        assert_eq!(take_pending(&vcpu), None);
        assert_eq!(domain.life.lock().alive, 0);
        assert_eq!(event.count(), 1, "a queue has it still");
    });
}

/// A signal is taken once, by whom the event is bound to then.
#[test]
fn a_signal_is_taken_once_whatever_is_bound_meanwhile() {
    for same in [false, true] {
        check_within(3, move || {
            let world = World::new(1);
            let domain = world.domain(2);
            let [first, second] = [0, 1].map(|index| domain.vcpu(index).unwrap());
            let event = world.event();
            event.bind(&first, 1).unwrap();
            let (also, other) = (
                event.clone(),
                if same { first.clone() } else { second.clone() },
            );
            let binds = spawn(move || also.bind(&other, 2).unwrap());
            let also = event.clone();
            let signals = spawn(move || also.signal());
            let mut got: Vec<_> = take_pending(&first).into_iter().collect();
            join(binds);
            join(signals);
            got.extend(take_pending(&first));
            got.extend(take_pending(&second));
            assert!(matches!(*got, [1 | 2]), "{got:?}");
        });
    }
}
