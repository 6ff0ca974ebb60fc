//! Counted pointers, budgets, and the requests to a local APIC.

use std::sync::Arc;

use loom::sync::atomic::AtomicBool;

use super::vendor::Frame;
use super::{check, check_within, join, spawn};
use crate::intc::Requests;
use crate::mem::{Amounts, Budget, Charge, Ref};
use crate::sync::atomic::Ordering::Relaxed;

/// Whoever drops the last pointer sees all that others did, and drops the object once.
#[test]
fn the_last_pointer_drops_what_all_have_written() {
    struct Object([Frame; 2], Arc<AtomicBool>);
    impl Drop for Object {
        fn drop(&mut self) {
            self.0.iter().for_each(Frame::change);
            assert!(!self.1.swap(true, Relaxed));
        }
    }
    check(|| {
        let dropped = Arc::new(AtomicBool::new(false));
        let first = Ref::new(Object(Default::default(), dropped.clone())).unwrap();
        let second = first.clone();
        let other = spawn(move || {
            second.0[1].change();
            drop(second.clone());
        });
        first.0[0].change();
        drop(first);
        join(other);
        assert!(dropped.load(Relaxed));
    });
}

/// Whatever a budget is closed among, all of it goes back.
#[test]
fn what_was_charged_goes_back_whoever_closes_the_budget() {
    check(|| {
        let whole = Ref::new(Budget::whole(Amounts::heap(100))).unwrap();
        let part = Budget::part_of(&whole, Amounts::heap(50)).unwrap();
        let low = Budget::part_of(&part, Amounts::heap(20)).unwrap();
        let charge = Charge::new(&low, Amounts::heap(10)).unwrap();
        let drops = spawn(move || drop(charge));
        let also = part.clone();
        let closes = spawn(move || also.close());
        low.close();
        join(drops);
        join(closes);
        assert_eq!(whole.amounts().1, Amounts::heap(100));
    });
}

/// Requests whose atomics have all been touched.
fn requests() -> Arc<Requests> {
    let requests = Arc::new(Requests::new(0));
    let _ = format!("{requests:?}");
    requests
}

#[test]
fn whoever_sees_an_interrupt_sees_its_trigger_mode() {
    check(|| {
        let requests = requests();
        let also = requests.clone();
        let other = spawn(move || also.raise(0x30, true));
        if requests.highest() == Some(0x30) {
            assert!(requests.is_level(0x30));
        }
        assert!(join(other));
    });
}

/// Who is told that the vCPU has to be told is as many as there are interrupts taken.
#[test]
fn each_interrupt_is_told_of_once() {
    check(|| {
        let requests = requests();
        let raises = [0; 2].map(|_| {
            let also = requests.clone();
            spawn(move || also.raise(0x30, false))
        });
        let mut taken = usize::from(requests.take(0x30));
        let told = raises.map(join).into_iter().filter(|told| *told).count();
        taken += usize::from(requests.take(0x30));
        assert_eq!(taken, told);
    });
}

/// A start-up that was sent after an INIT arrives after it, and one of two signals of different kinds does not undo the other.
#[test]
fn a_start_up_comes_after_its_init() {
    check_within(3, || {
        let requests = requests();
        requests.raise_startup(1);
        let also = requests.clone();
        let starts = spawn(move || {
            also.raise_init();
            also.raise_startup(7);
        });
        let also = requests.clone();
        let other = spawn(move || also.raise_nmi());
        let first = requests.take_starts();
        assert!(
            first.init || first.page == Some(1),
            "what came first is there, too"
        );
        join(starts);
        assert!(join(other) && requests.take_nmi());
        let second = requests.take_starts();
        assert!(first.init != second.init);
        let started = [first, second].map(|starts| starts.page.filter(|page| *page == 7));
        assert_eq!(started[0].or(started[1]), Some(7));
    });
}
