//! Nested tables: when a flush is done, nobody uses what they said before.

use std::sync::Arc;

use super::vendor::{Frame, Tlb};
use super::world::World;
use super::{check_within, machine};
use crate::object::Stop;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// A page that is unmapped while a vCPU uses it, is nobody's after the flush.
#[test]
fn nobody_uses_a_page_after_the_flush() {
    check_within(2, || {
        let world = World::new(2);
        let domain = world.running(1);
        // Index of the frame that the guest's page is mapped to; the frames.
        let table = Arc::new(AtomicUsize::new(0));
        assert_eq!(table.load(Ordering::Relaxed), 0);
        let frames = Arc::new([Frame::default(), Frame::default()]);
        let (also, uses) = (table.clone(), frames.clone());
        let mut left = 2;
        let guest = world.start(0, move |_, tlb| {
            let frame = *tlb.0.get_or_insert_with(|| also.load(Ordering::Acquire));
            uses[frame].change();
            left -= 1;
            if left > 0 {
                return Some(Stop::Yielded);
            }
            machine::run_guest().then_some(Stop::Pending)
        });
        machine::take_place(machine::cpus()[1]);
        table.store(1, Ordering::Release);
        world
            .kernel
            .sched
            .flush_now(machine::cpu(), &mut Tlb::default(), domain.number);
        // The frame is another one's.
        frames[0].change();
        world.come_to_rest(vec![guest]);
    });
}
