//! The scheduler in a model: a CPU's life, in which a closure takes the place of the guest, and what has to hold when all is quiet.

use super::{Activity, Left, Look, Place, Sched, Turn};
use crate::mem::Ref;
use crate::models::machine;
use crate::models::vendor::{Model, Tlb};
use crate::object::{Ending, Kernel, Stop, Vcpu};
use crate::sync::atomic::Ordering::{Relaxed, Release};

impl Kernel<Model> {
    /// As [`Kernel::live`], until the model is over. `guest` is what a vCPU does until it leaves the CPU, or `None` where it never does.
    pub(crate) fn live_in_model(
        &'static self,
        cpu: u32,
        mut guest: impl FnMut(&Ref<Vcpu<Model>>, &mut Tlb) -> Option<Stop>,
    ) {
        let state = self.sched.state(cpu).unwrap();
        let tlb = &mut Tlb::default();
        machine::take_place(state.cpu);
        while !machine::is_over() {
            self.look_around(state, tlb);
            let mut next = self.sched.choose(state, machine::time::tsc());
            if next.is_none() {
                self.idle(state);
            }
            while let Some(turn) = next {
                match self.run_in_model(cpu, &turn, tlb, &mut guest) {
                    Some(passed) => next = passed,
                    None => return,
                }
            }
        }
    }

    /// As [`Kernel::run_slice`]; `None`: it runs for ever.
    fn run_in_model(
        &'static self,
        cpu: u32,
        turn: &Turn<Model>,
        tlb: &mut Tlb,
        guest: &mut impl FnMut(&Ref<Vcpu<Model>>, &mut Tlb) -> Option<Stop>,
    ) -> Option<Option<Turn<Model>>> {
        let state = self.sched.state(cpu).unwrap();
        let vcpu = &turn.vcpu;
        let address = core::ptr::from_ref::<Vcpu<Model>>(vcpu).addr();
        machine::begin_run(address);
        let context = vcpu.context.lock();
        self.enter_domain(state, vcpu, tlb);
        let (stop, gives_way) = loop {
            match guest(vcpu, tlb)? {
                Stop::Pending => {
                    self.take_pending(state, tlb);
                    match self.look(state, vcpu) {
                        Look::Leave => break (Stop::SliceOver, false),
                        Look::GiveWay => break (Stop::SliceOver, true),
                        Look::GoOn => {}
                    }
                }
                stop => break (stop, false),
            }
        };
        state.domain.store(0, Release);
        machine::end_run();
        let left = Left {
            stop,
            ending: (stop == Stop::Ended).then_some(Ending::Status(0)),
            gives_way,
            rip: 0,
        };
        Some(self.give_up(state, turn, context, &left).passed)
    }
}

impl Sched<Model> {
    /// Touches all atomics, so that a model may follow them from here on.
    pub(crate) fn touch(&self) {
        let Self {
            room, live, epoch, ..
        } = self;
        let _ = (room.load(Relaxed), live.load(Relaxed), epoch.load(Relaxed));
        self.attention.load(Relaxed);
        for state in &self.cpus {
            state.idle.load(Relaxed);
            state.interruptible.load(Relaxed);
            for counter in [
                &state.load,
                &state.handed,
                &state.domain,
                &state.entered,
                &state.flushed,
                &state.idle_ticks,
                &state.idle_halts,
                &state.balanced,
            ] {
                counter.load(Relaxed);
            }
        }
    }

    /// Nothing happens any more: nobody waits for a CPU that has nothing to do, and the scheduler knows of each vCPU what it does.
    pub(crate) fn check_at_rest(&self, vcpus: &[Ref<Vcpu<Model>>]) {
        for state in &self.cpus {
            let waits = state.queue.lock().has_boosted();
            assert!(
                !waits || !state.interruptible.load(Relaxed),
                "one that was woken waits for one that was not"
            );
        }
        let places: Vec<Vec<_>> = self
            .cpus
            .iter()
            .map(|state| core::iter::from_fn(|| state.queue.lock().next()).collect())
            .collect();
        let mut loads: Vec<u64> = places
            .iter()
            .map(|places| places.iter().map(|place| u64::from(place.weight)).sum())
            .collect();
        for vcpu in vcpus {
            let entity = vcpu.entity.lock();
            let cpu = entity.cpu as usize;
            let is_its = |place: &&Place<Ref<Vcpu<Model>>>| {
                place.vcpu.is_same(vcpu) && place.ticket == entity.ticket
            };
            let here = places[cpu].iter().filter(is_its).count();
            let everywhere = places.iter().flatten().filter(is_its).count();
            let activity = entity.activity;
            match activity {
                Activity::Ready => {
                    assert_eq!((here, everywhere), (1, 1), "places of one that is ready");
                    assert!(
                        machine::is_busy(entity.cpu),
                        "a vCPU waits for a CPU that does nothing"
                    );
                }
                Activity::Running => {
                    assert!(!entity.held, "a vCPU that is held runs for ever");
                    assert!(
                        entity.pin().is_none_or(|pin| pin == entity.cpu),
                        "a vCPU runs where it must not"
                    );
                    loads[cpu] += u64::from(entity.weight());
                }
                _ => {}
            }
            assert!(
                !entity.finished || activity == Activity::Over,
                "{activity:?}"
            );
            let timer = self.cpus[cpu].queue.lock().timers.take(vcpu);
            assert!(
                activity != Activity::Over || timer.is_none(),
                "a timer for one that is over"
            );
        }
        for (state, load) in self.cpus.iter().zip(loads) {
            let earliest = state.queue.lock().timers.earliest();
            assert_eq!(earliest, None, "a timer for nobody");
            let passed = state.next.lock().is_some();
            assert!(!passed, "a CPU that was passed on and is not taken over");
            assert_eq!(state.load.load(Relaxed), load, "the load");
        }
    }

    /// Forgets all vCPUs.
    pub(crate) fn clear(&self) {
        for state in &self.cpus {
            // What is dropped may lock the queue.
            while let Some(place) = { state.queue.lock().next() } {
                drop(place);
            }
            while let Some(vcpu) = { state.queue.lock().timers.take_due(u64::MAX) } {
                drop(vcpu);
            }
        }
    }
}
