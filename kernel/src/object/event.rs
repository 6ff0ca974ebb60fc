//! Events: notifications that wake a vCPU or raise an interrupt in it.
//!
//! An event is pending or not; signals that come before it is taken are one. Lock order: an event's own lock, then a
//! vCPU's queue; never the other way round.

use alloc::collections::VecDeque;

use plinth_abi::Status;

use super::Vcpu;
use crate::mem::{Charge, Ref};
use crate::sync::Mutex;
use crate::virt::Vendor;

/// Events that can be bound to one vCPU: changes of a binding look at all that are pending.
const MOST_BOUND: usize = 4096;

/// An event.
pub struct Event<V: Vendor> {
    state: Mutex<State<V>>,
    _charge: Charge,
}

struct State<V: Vendor> {
    pending: bool,
    binding: Binding<V>,
    /// Counts its bindings to a `WAIT`.
    bindings: u64,
}

/// Whom an event tells.
enum Binding<V: Vendor> {
    Nobody,
    /// `WAIT` of this vCPU gives the key.
    Wait(Ref<Vcpu<V>>, u64),
    /// The interrupt is raised.
    Vector(Ref<Vcpu<V>>, u8),
}

/// An event's place in a queue.
pub struct Pending<V: Vendor> {
    event: Ref<Event<V>>,
    /// The binding by which it got there. With another one it has another place.
    binding: u64,
}

/// The events that are pending for a vCPU's `WAIT`, in the order of their signals.
pub struct EventQueue<V: Vendor> {
    pending: VecDeque<Pending<V>>,
    /// Events bound to the vCPU: so many may become pending.
    bound: usize,
    /// The vCPU is over: nothing more is taken.
    closed: bool,
}

impl<V: Vendor> Default for EventQueue<V> {
    fn default() -> Self {
        Self {
            pending: VecDeque::new(),
            bound: 0,
            closed: false,
        }
    }
}

impl<V: Vendor> EventQueue<V> {
    /// Makes room for one more bound event.
    fn bind(&mut self) -> Result<(), Status> {
        if self.closed {
            return Err(Status::WRONG_STATE);
        }
        if self.bound >= MOST_BOUND {
            return Err(Status::OVER_BUDGET);
        }
        let missing = (self.bound + 1).saturating_sub(self.pending.len());
        self.pending
            .try_reserve(missing)
            .map_err(|_| Status::NO_MEMORY)?;
        self.bound += 1;
        Ok(())
    }

    /// Whether no event is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    fn unbind(&mut self, event: &Ref<Event<V>>) {
        self.bound = self.bound.saturating_sub(1);
        self.pending.retain(|other| !other.event.is_same(event));
    }

    /// Nothing is waited for any more. What was pending is to be dropped when the queue's lock is not held: the last pointer to an event
    /// takes it.
    #[must_use]
    pub fn close(&mut self) -> VecDeque<Pending<V>> {
        self.closed = true;
        core::mem::take(&mut self.pending)
    }
}

impl<V: Vendor> Event<V> {
    /// What one costs in kernel heap, with its place in a queue.
    pub const COST: u64 = Ref::<Self>::COST + 2 * size_of::<Pending<V>>() as u64;

    /// An event that is not pending and tells nobody.
    pub const fn new(charge: Charge) -> Self {
        Self {
            state: Mutex::new(State {
                pending: false,
                binding: Binding::Nobody,
                bindings: 0,
            }),
            _charge: charge,
        }
    }
}

impl<V: Vendor> Ref<Event<V>> {
    /// Marks it pending, and tells whom it is bound to.
    pub fn signal(&self) {
        let mut state = self.state.lock();
        if !core::mem::replace(&mut state.pending, true) {
            self.tell(&mut state, Ref::<Vcpu<V>>::wake);
        }
    }

    /// As [`Event::signal`], by a vCPU that waits from now on.
    pub fn signal_and_pass(&self) {
        let mut state = self.state.lock();
        if !core::mem::replace(&mut state.pending, true) {
            self.tell(&mut state, Ref::<Vcpu<V>>::pass);
        }
    }

    /// It has just become pending, or bound.
    fn tell(&self, state: &mut State<V>, wake: fn(&Ref<Vcpu<V>>)) {
        match &state.binding {
            Binding::Nobody => {}
            Binding::Wait(vcpu, _) => {
                let mut queue = vcpu.events.lock();
                if queue.closed {
                    drop(queue);
                    state.binding = Binding::Nobody;
                    return;
                }
                // There is room: `EventQueue::bind` made it.
                queue.pending.push_back(Pending {
                    event: self.clone(),
                    binding: state.bindings,
                });
                drop(queue);
                wake(vcpu);
            }
            Binding::Vector(vcpu, vector) => {
                state.pending = false;
                vcpu.interrupt(*vector);
            }
        }
    }

    /// Binds it to a vCPU's `WAIT`.
    ///
    /// # Errors
    /// `NO_MEMORY`, or `WRONG_STATE` where the vCPU is over; nothing has changed then.
    pub fn bind(&self, vcpu: &Ref<Vcpu<V>>, key: u64) -> Result<(), Status> {
        let mut state = self.state.lock();
        vcpu.events.lock().bind()?;
        self.loosen(&mut state);
        state.binding = Binding::Wait(vcpu.clone(), key);
        state.bindings += 1;
        if state.pending {
            self.tell(&mut state, Ref::<Vcpu<V>>::wake);
        }
        Ok(())
    }

    /// Binds it to an interrupt vector of a vCPU.
    ///
    /// # Errors
    /// `WRONG_STATE` where the vCPU is over.
    pub fn bind_vector(&self, vcpu: &Ref<Vcpu<V>>, vector: u8) -> Result<(), Status> {
        let mut state = self.state.lock();
        if vcpu.is_over() {
            return Err(Status::WRONG_STATE);
        }
        self.loosen(&mut state);
        vcpu.expect_interrupts(1);
        state.binding = Binding::Vector(vcpu.clone(), vector);
        if state.pending {
            self.tell(&mut state, Ref::<Vcpu<V>>::wake);
        }
        Ok(())
    }

    /// Ends its binding.
    ///
    /// # Errors
    /// `NOT_FOUND` where there is none.
    pub fn unbind(&self) -> Result<(), Status> {
        let mut state = self.state.lock();
        if matches!(state.binding, Binding::Nobody) {
            return Err(Status::NOT_FOUND);
        }
        self.loosen(&mut state);
        Ok(())
    }

    fn loosen(&self, state: &mut State<V>) {
        match core::mem::replace(&mut state.binding, Binding::Nobody) {
            Binding::Nobody => {}
            Binding::Wait(vcpu, _) => vcpu.events.lock().unbind(self),
            Binding::Vector(vcpu, _) => vcpu.expect_interrupts(-1),
        }
    }
}

impl<V: Vendor> Drop for Event<V> {
    fn drop(&mut self) {
        // Nobody else knows it any more: it is in no queue that is locked.
        match &self.state.get_mut().binding {
            Binding::Nobody => {}
            Binding::Wait(vcpu, _) => {
                let mut queue = vcpu.events.lock();
                queue.bound = queue.bound.saturating_sub(1);
            }
            Binding::Vector(vcpu, _) => vcpu.expect_interrupts(-1),
        }
    }
}

/// Takes the event that has been pending longest for this vCPU: its key.
pub fn take_pending<V: Vendor>(vcpu: &Ref<Vcpu<V>>) -> Option<u64> {
    loop {
        let Pending { event, binding } = vcpu.events.lock().pending.pop_front()?;
        let mut state = event.state.lock();
        // It may have been bound anew meanwhile, to this vCPU even: then it is pending by that binding.
        if state.bindings == binding
            && let Binding::Wait(_, key) = &state.binding
        {
            let key = *key;
            state.pending = false;
            return Some(key);
        }
    }
}
