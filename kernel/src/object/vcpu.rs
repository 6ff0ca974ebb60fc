//! A vCPU as others see it: the object that handles name. What runs is its [`Context`].

use alloc::boxed::Box;

use plinth_abi::{Status, VcpuInfo};

use super::{Context, Domain, EventQueue, Kernel};
use crate::arch::time;
use crate::intc::{Delivery, Destination, Message, Requests};
use crate::mem::{Amounts, Charge, Ref, try_box};
use crate::sched::{Activity, Entity, NOWHERE, Waiter};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::trace::Counters;
use crate::virt::Vendor;

/// A vCPU of a domain.
pub struct Vcpu<V: Vendor> {
    /// The domain whose memory and handles it sees.
    pub domain: Ref<Domain<V>>,
    /// Number within the domain, from 0.
    pub index: u32,
    /// How it is scheduled.
    pub entity: Mutex<Entity>,
    /// What runs; locked by the CPU that runs it, for as long as it does. Gone when the domain is destroyed.
    pub context: Mutex<Option<Box<Context<V>>>>,
    /// Events that wait for it.
    pub events: Mutex<EventQueue<V>>,
    /// The device access that it waits for.
    pub device: Mutex<DeviceWait>,
    /// Interrupts that are pending, and what else other CPUs ask of its local APIC.
    pub requests: Requests,
    /// Exits by kind, as they were when its last slice ended.
    pub exits: Mutex<Counters>,
    /// It must leave its CPU: held, ended, or to be moved. Looked at when the CPU is kicked.
    pub must_leave: AtomicBool,
    /// Events bound to its vectors.
    vectors: AtomicU32,
    /// Its place among the timers of a CPU.
    timer: AtomicUsize,
    _admission: Admission<V>,
    _charge: Charge,
}

/// The room that a vCPU has in the queues of the CPUs.
struct Admission<V: Vendor>(&'static Kernel<V>);

impl<V: Vendor> Admission<V> {
    fn new(kernel: &'static Kernel<V>) -> Result<Self, Status> {
        kernel.sched.admit()?;
        Ok(Self(kernel))
    }
}

impl<V: Vendor> Drop for Admission<V> {
    fn drop(&mut self) {
        self.0.sched.dismiss();
    }
}

/// An access that waits for whoever claimed the device.
#[derive(Debug, Default)]
pub struct DeviceWait {
    /// Accesses so far.
    pub sequence: u64,
    /// The claim that is waited for, by its number.
    pub claim: Option<u64>,
    /// What it was completed with.
    pub answer: Option<u64>,
}

impl<V: Vendor> Waiter for Ref<Vcpu<V>> {
    fn place(&self) -> usize {
        self.timer.load(Ordering::Relaxed)
    }

    fn set_place(&self, place: usize) {
        self.timer.store(place, Ordering::Relaxed);
    }
}

impl<V: Vendor> Vcpu<V> {
    /// Bytes of heap that one costs: itself, and its places in the queues of `cpus` CPUs. Its context has a charge of its own.
    fn cost(cpus: usize) -> u64 {
        const PLACES: u64 = 128;
        Ref::<Self>::COST + PLACES * cpus as u64
    }

    /// A new vCPU of `domain` in the state after reset, held.
    ///
    /// # Errors
    /// `OVER_BUDGET`, `NO_MEMORY`.
    pub fn new(domain: &Ref<Domain<V>>, index: u32) -> Result<Ref<Self>, Status> {
        Self::with_context(domain, index, |requests| {
            let context = Context::new(domain, index, requests)?;
            try_box(context).map(Some).map_err(|_| Status::NO_MEMORY)
        })
    }

    /// A new vCPU, held, and its context as `context` makes it.
    pub(crate) fn with_context(
        domain: &Ref<Domain<V>>,
        index: u32,
        context: impl FnOnce(&Requests) -> Result<Option<Box<Context<V>>>, Status>,
    ) -> Result<Ref<Self>, Status> {
        let sched = &domain.kernel.sched;
        let amounts = Amounts {
            heap: Self::cost(sched.cpus()),
            ..Amounts::default()
        };
        let charge = Charge::new(&domain.budget, amounts)?;
        let admission = Admission::new(domain.kernel)?;
        let requests = Requests::new(index);
        let context = context(&requests)?;
        Ref::new(Self {
            domain: domain.clone(),
            index,
            entity: Mutex::new(Entity::new(time::tsc())),
            context: Mutex::new(context),
            events: Mutex::default(),
            device: Mutex::default(),
            requests,
            exits: Mutex::default(),
            must_leave: AtomicBool::new(false),
            vectors: AtomicU32::new(0),
            timer: AtomicUsize::new(NOWHERE),
            _admission: admission,
            _charge: charge,
        })
        .map_err(|_| Status::NO_MEMORY)
    }

    /// Whether it will never run again.
    pub fn is_over(&self) -> bool {
        self.entity.lock().is_over()
    }

    /// Its context while it runs nowhere; `None` in it where its domain has been taken apart.
    ///
    /// # Errors
    /// `AGAIN` where it runs, or has been chosen to run: one that was just held or ended needs a moment to leave its CPU.
    pub fn at_rest(&self) -> Result<MutexGuard<'_, Option<Box<Context<V>>>>, Status> {
        let context = self.context.try_lock().ok_or(Status::AGAIN)?;
        // Its CPU takes the context only after it was chosen: until then the context is free, but not at rest.
        match self.entity.lock().activity {
            Activity::Running => Err(Status::AGAIN),
            _ => Ok(context),
        }
    }

    /// No event reaches it any more.
    pub fn close_events(&self) {
        // What was pending is dropped when the lock is not held: the last pointer to an event takes it.
        let pending = self.events.lock().close();
        drop(pending);
    }

    /// Whether an interrupt could come that wakes it from HLT.
    pub fn can_be_interrupted(&self) -> bool {
        self.vectors.load(Ordering::Relaxed) != 0 || self.requests.has_interrupt()
    }

    /// An event is bound to one of its vectors (1), or no longer (-1).
    pub fn expect_interrupts(&self, change: i32) {
        self.vectors.fetch_add(change as u32, Ordering::Relaxed);
    }

    /// What `VCPU_INFO` tells.
    pub fn info(&self) -> VcpuInfo {
        let mut info = self.entity.lock().info(time::tsc());
        info.index = self.index;
        // Those of one that runs are as old as its slice at most.
        let now = self.context.try_lock();
        info.exits = match now.as_ref().and_then(|context| context.as_deref()) {
            Some(context) => context.counters.all(),
            None => self.exits.lock().all(),
        };
        info
    }
}

impl<V: Vendor> Ref<Vcpu<V>> {
    /// Lets it go on, if it waits for something.
    pub fn wake(&self) {
        self.domain.kernel.sched.wake(self);
    }

    /// As [`Self::wake`], by a vCPU that is about to leave the calling CPU.
    pub fn hand_over(&self) {
        self.domain.kernel.sched.hand_over(self);
    }

    /// As [`Self::wake`], by a vCPU that waits from now on.
    pub fn pass(&self) {
        self.domain.kernel.sched.pass(self);
    }

    /// Makes an edge-triggered interrupt pending; a local APIC that is switched off ignores it.
    pub fn interrupt(&self, vector: u8) {
        let message = Message {
            destination: Destination::Physical(self.index),
            delivery: Delivery::Fixed(vector),
            level: false,
        };
        if self.domain.pc.is_some() && !self.requests.accepts(&message) {
            return;
        }
        // Whoever made it pending before has seen to it. To make the vCPU exit for each of a flood would leave it no time.
        if self.requests.raise(vector, false) {
            self.prompt();
        }
    }

    /// It is to look at its requests: wherever it runs or waits.
    pub fn prompt(&self) {
        self.domain.kernel.sched.wake(self);
        // A vCPU that runs takes it when it is made to exit.
        self.domain.kernel.sched.kick(self);
    }

    /// Completes the device access that it waits for, and wakes it so.
    ///
    /// # Errors
    /// `WRONG_STATE` where it waits for none.
    pub fn complete(&self, value: u64, wake: impl FnOnce(&Self)) -> Result<(), Status> {
        if self.is_over() {
            return Err(Status::WRONG_STATE);
        }
        let mut device = self.device.lock();
        device.claim.take().ok_or(Status::WRONG_STATE)?;
        device.answer = Some(value);
        drop(device);
        wake(self);
        Ok(())
    }

    /// Completes it as if nobody were there, if it waits for this claim.
    pub fn abandon(&self, claim: u64) {
        let mut device = self.device.lock();
        if device.claim == Some(claim) {
            device.claim = None;
            device.answer = Some(u64::MAX);
            drop(device);
            self.wake();
        }
    }
}
