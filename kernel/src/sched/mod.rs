//! Which vCPU runs where and when.
//!
//! Each CPU has a queue. Those that are ready take turns, each as long as its weight says (deficit round robin: who ran too long
//! pays in the next turn). Who wakes with credit left, because it used less than its share, runs before the others. A cap parks a
//! vCPU until the next period. A CPU without work takes some from the one that has most, and now and then CPUs even out what
//! they have. Choosing the next one takes constant time.

mod cpu;
mod entity;
mod queue;
mod timers;

use alloc::vec::Vec;

use plinth_abi::{Schedule, Status};

use crate::arch::cpu::{Cpu, PENDING_FLUSH, PENDING_RESCHEDULE};
use crate::mem::Ref;
use crate::object::Vcpu;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, spin_loop};
use crate::trace::{self, Kind};
use crate::virt::Vendor;

// In the host's tests the machine is that of a model: its CPUs are threads.
#[cfg(not(test))]
use crate::arch::{apic, cpu as machine, irq, speculation, time, trap, watchdog};
#[cfg(test)]
use crate::models::machine::{self, apic, irq, speculation, time, trap, watchdog};

pub use entity::{Activity, Entity, Units};
pub use queue::Position;
pub use timers::{NOWHERE, Waiter};

use cpu::Turn;
use queue::{Place, Queue};

/// How long a vCPU that has handed its CPU over may go on before an idle CPU is asked to help, in microseconds.
const HAND_OVER_US: u64 = 500;
/// How long another CPU is given to leave a guest before it gets an NMI, in microseconds: there are CPUs (Bochs's) that take no
/// interrupt in a guest that was entered with interrupts off.
const PATIENCE_US: u64 = 100;

impl<V: Vendor> PartialEq for Ref<Vcpu<V>> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

/// The scheduler.
pub struct Sched<V: Vendor> {
    cpus: Vec<CpuState<V>>,
    units: Units,
    /// vCPUs that there is room for in the queues.
    room: AtomicUsize,
    /// vCPUs that there are.
    live: AtomicUsize,
    /// Grows with every change of nested tables that a CPU may have cached; one that has seen less flushes before it enters a
    /// guest.
    epoch: AtomicU64,
    /// Somebody has to look at the first domain's end.
    attention: AtomicBool,
}

/// What the scheduler knows of a CPU.
struct CpuState<V: Vendor> {
    cpu: &'static Cpu,
    queue: Mutex<Queue<Ref<Vcpu<V>>>>,
    /// Whom what runs has passed the CPU on to, past the queue.
    next: Mutex<Option<Turn<V>>>,
    /// The weights of those that are ready, of the one that runs and of the one that it has passed the CPU on to.
    load: AtomicU64,
    /// It halts, or is about to.
    idle: AtomicBool,
    /// The vCPU that it runs, or is about to, was not woken: one that is may take its place.
    interruptible: AtomicBool,
    /// When what it runs has woken somebody for this CPU, or passed that on, and was expected to leave it to them; 0: it has not.
    handed: AtomicU64,
    /// The number of the domain that it runs; 0: none.
    domain: AtomicU64,
    /// The number of the domain that it ran last, where it puts barriers between domains; 0: none yet.
    entered: AtomicU64,
    /// The epoch that it has flushed for.
    flushed: AtomicU64,
    idle_ticks: AtomicU64,
    idle_halts: AtomicU64,
    /// When it compared its load with others' last.
    balanced: AtomicU64,
}

impl<V: Vendor> Sched<V> {
    /// A scheduler for all CPUs that are online.
    pub fn for_all_cpus() -> Self {
        let cpus = machine::cpus().iter().map(|&cpu| CpuState {
            cpu,
            queue: Mutex::new(Queue::new()),
            next: Mutex::new(None),
            load: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            interruptible: AtomicBool::new(false),
            handed: AtomicU64::new(0),
            domain: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            idle_ticks: AtomicU64::new(0),
            idle_halts: AtomicU64::new(0),
            balanced: AtomicU64::new(0),
        });
        Self {
            cpus: cpus.collect(),
            units: Units::of_tsc(time::tsc_hz()),
            room: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            attention: AtomicBool::new(false),
        }
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// TSC ticks that a CPU has been idle, and how often it halted.
    pub fn idle(&self, cpu: usize) -> (u64, u64) {
        self.cpus.get(cpu).map_or((0, 0), |state| {
            (
                state.idle_ticks.load(Ordering::Relaxed),
                state.idle_halts.load(Ordering::Relaxed),
            )
        })
    }

    /// Makes room in the queues for one more vCPU.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn admit(&self) -> Result<(), Status> {
        let live = self.live.fetch_add(1, Ordering::AcqRel) + 1;
        if live <= self.room.load(Ordering::Acquire) {
            return Ok(());
        }
        // By doubling, so that it is seldom.
        let room = (2 * live).max(64);
        for state in &self.cpus {
            if let Err(why) = state.queue.lock().reserve(room) {
                self.dismiss();
                return Err(why);
            }
        }
        self.room.fetch_max(room, Ordering::AcqRel);
        Ok(())
    }

    /// A vCPU leaves its room to the next.
    pub fn dismiss(&self) {
        self.live.fetch_sub(1, Ordering::AcqRel);
    }

    fn state(&self, cpu: u32) -> Option<&CpuState<V>> {
        self.cpus.get(cpu as usize)
    }

    /// Gets a CPU's attention.
    fn attract(&self, state: &CpuState<V>, flag: u32) {
        state.cpu.pending.fetch_or(flag, Ordering::SeqCst);
        if state.cpu.id != machine::cpu().id {
            apic::send_ipi(state.cpu.apic_id(), apic::KICK);
        }
    }

    /// Kicks CPUs whose timer should have ended a slice a good while ago, and sees to those that do not leave the kernel.
    fn look_after_others(&self, state: &CpuState<V>, now: u64) {
        for other in &self.cpus {
            if other.cpu.id == state.cpu.id {
                continue;
            }
            if time::is_overdue(other.cpu, now) {
                self.attract(other, PENDING_RESCHEDULE);
            }
            watchdog::look_at(other.cpu, now);
        }
    }

    /// When a CPU that is idle at `now` looks after the others again: not while all are idle.
    fn next_look(&self, state: &CpuState<V>, now: u64) -> u64 {
        let busy = |other: &CpuState<V>| {
            other.cpu.id != state.cpu.id && !other.idle.load(Ordering::Relaxed)
        };
        if self.cpus.iter().any(busy) {
            // A twentieth of a second: it is not worth more of an idle CPU.
            now.saturating_add(time::tsc_hz() / 20)
        } else {
            u64::MAX
        }
    }

    /// Somebody has to look at the first domain's end.
    pub fn ask_for_attention(&self) {
        self.attention.store(true, Ordering::Release);
        if let Some(first) = self.cpus.first() {
            self.attract(first, PENDING_RESCHEDULE);
        }
    }

    // What others do to a vCPU. Each locks its entity first, then a queue.

    /// Makes a vCPU that does not run ready. The entity is its, and its time is accounted for.
    fn enqueue(&self, vcpu: &Ref<Vcpu<V>>, entity: &mut Entity, position: Position) {
        if let Some(target) = self.target(entity) {
            self.enqueue_at(target, vcpu, entity, position);
            let wanted = target.idle.load(Ordering::SeqCst)
                || position == Position::Boosted && target.interruptible.load(Ordering::Relaxed);
            if wanted {
                self.attract(target, PENDING_RESCHEDULE);
            }
        }
    }

    /// As [`Self::enqueue`], on this CPU, which is not told.
    fn enqueue_at(
        &self,
        target: &CpuState<V>,
        vcpu: &Ref<Vcpu<V>>,
        entity: &mut Entity,
        position: Position,
    ) {
        entity.activity = Activity::Ready;
        self.move_to(target, vcpu, entity);
        entity.ticket = entity.ticket.wrapping_add(1);
        let place = Place {
            vcpu: vcpu.clone(),
            ticket: entity.ticket,
            weight: entity.weight(),
            cpu: entity.pin_of_place(),
        };
        target.load(place.weight);
        target.queue.lock().add(place, position);
    }

    /// The CPU for a vCPU that becomes ready: the one it is pinned to, or its last one where nobody else wants that or none idles, or one
    /// that idles.
    fn target(&self, entity: &Entity) -> Option<&CpuState<V>> {
        if let Some(pin) = entity.pin() {
            return self.state(pin);
        }
        let last = self.state(entity.cpu);
        if last.is_some_and(|state| state.load.load(Ordering::Relaxed) == 0) {
            return last;
        }
        let idle = self
            .cpus
            .iter()
            .find(|state| state.idle.load(Ordering::Relaxed));
        idle.or(last).or(self.cpus.first())
    }

    fn dequeue(&self, vcpu: &Ref<Vcpu<V>>, entity: &Entity) {
        let Some(state) = self.state(entity.cpu) else {
            return;
        };
        let mut queue = state.queue.lock();
        let weights = queue.remove(vcpu);
        state.load.fetch_sub(weights, Ordering::Relaxed);
    }

    /// The CPU for which a vCPU waits, or that it runs on, is this one.
    #[inline]
    fn move_to(&self, target: &CpuState<V>, vcpu: &Ref<Vcpu<V>>, entity: &mut Entity) {
        if target.cpu.id != entity.cpu {
            self.stop_timer(vcpu, entity);
            entity.goes_to(target.cpu.id);
        }
    }

    /// Takes a vCPU out of its CPU's timers. One that is woken stays there: mostly it waits for a time again soon, and another one
    /// is easier to set than to add. One that is over must not, nor one that goes to another CPU.
    fn stop_timer(&self, vcpu: &Ref<Vcpu<V>>, entity: &Entity) {
        if vcpu.place() == NOWHERE {
            return;
        }
        if let Some(state) = self.state(entity.cpu) {
            let taken = state.queue.lock().timers.take(vcpu);
            drop(taken);
        }
    }

    /// What a blocked vCPU waits for may have come. One that runs will look again before it blocks.
    pub fn wake(&self, vcpu: &Ref<Vcpu<V>>) {
        self.wake_on(vcpu, None);
    }

    /// As [`Sched::wake`], by somebody who is about to leave the calling CPU: that is the next to run what is woken, for to get
    /// another one's attention takes longer.
    pub fn hand_over(&self, vcpu: &Ref<Vcpu<V>>) {
        self.wake_on(vcpu, self.state(machine::cpu().id));
    }

    /// Wakes it, on `here` if that is the calling CPU, which it may run on.
    fn wake_on(&self, vcpu: &Ref<Vcpu<V>>, here: Option<&CpuState<V>>) {
        let now = time::tsc();
        let mut entity = vcpu.entity.lock();
        match entity.activity {
            Activity::Running => entity.woken = true,
            Activity::Blocked => self.unblock(vcpu, &mut entity, now, here),
            _ => {}
        }
    }

    /// What runs on the calling CPU goes on. If it was expected to leave it and has not for a while, an idle CPU may take what waits
    /// here.
    #[inline]
    pub fn stays(&self, me: &Cpu) {
        if let Some(state) = self.state(me.id)
            && state.handed.load(Ordering::Relaxed) != 0
        {
            self.share_out(state);
        }
    }

    #[inline(never)]
    fn share_out(&self, state: &CpuState<V>) {
        let handed = state.handed.load(Ordering::Relaxed);
        if state.next.lock().is_some()
            || time::tsc() < handed.saturating_add(time::ticks_of_us(HAND_OVER_US))
        {
            return;
        }
        state.handed.store(0, Ordering::Relaxed);
        let is_empty = state.queue.lock().is_empty();
        let idle = self
            .cpus
            .iter()
            .find(|other| other.idle.load(Ordering::SeqCst));
        if let Some(idle) = idle.filter(|_| !is_empty) {
            self.attract(idle, PENDING_RESCHEDULE);
        }
    }

    /// As [`Sched::wake`], by a vCPU that waits from now on. What is woken takes the calling CPU over as soon as that is left, past the queue,
    /// where it would be the first in that. The moment is its own from now on.
    pub fn pass(&self, vcpu: &Ref<Vcpu<V>>) {
        let now = time::tsc();
        let mut entity = vcpu.entity.lock();
        match entity.activity {
            Activity::Running => entity.woken = true,
            Activity::Blocked => {
                self.end_wait(vcpu, &mut entity, now);
                let here = self.state(machine::cpu().id);
                let taken = here.is_some_and(|here| self.take_over(here, vcpu, &mut entity, now));
                if !taken {
                    self.place_woken(vcpu, &mut entity, now, here);
                }
            }
            _ => {}
        }
    }

    /// Makes one that has just been woken the next on the calling CPU, whose state this is, if it would be the first in the queue; whether
    /// it is.
    #[inline]
    fn take_over(
        &self,
        here: &CpuState<V>,
        vcpu: &Ref<Vcpu<V>>,
        entity: &mut Entity,
        now: u64,
    ) -> bool {
        // Two that pass the CPU to each other for ever must not keep it from what it does between two others.
        let is_balanced =
            now.saturating_sub(here.balanced.load(Ordering::Relaxed)) <= self.units.balance;
        let is_first = is_balanced
            && !entity.held
            && entity.credit > 0
            && entity.pin().is_none_or(|pin| pin == here.cpu.id)
            && !here.queue.lock().has_boosted();
        if !is_first {
            return false;
        }
        let mut next = here.next.lock();
        if next.is_some() {
            return false;
        }
        here.handed.store(now.max(1), Ordering::Relaxed);
        self.move_to(here, vcpu, entity);
        entity.starts();
        let weight = entity.weight();
        here.load(weight);
        *next = Some(Turn {
            vcpu: vcpu.clone(),
            weight,
            start: now,
            end: now.saturating_add(entity.slice(now, &self.units)),
        });
        true
    }

    /// Whether what runs on the calling CPU has passed it on.
    pub fn has_passed(&self, me: &Cpu) -> bool {
        self.state(me.id)
            .is_some_and(|state| state.next.lock().is_some())
    }

    fn unblock(
        &self,
        vcpu: &Ref<Vcpu<V>>,
        entity: &mut Entity,
        now: u64,
        target: Option<&CpuState<V>>,
    ) {
        self.end_wait(vcpu, entity, now);
        self.place_woken(vcpu, entity, now, target);
    }

    /// What a blocked vCPU waits for has come: it is held until somebody says where it runs.
    #[inline]
    fn end_wait(&self, vcpu: &Ref<Vcpu<V>>, entity: &mut Entity, now: u64) {
        if core::mem::take(&mut entity.halted) {
            vcpu.domain.halted.fetch_sub(1, Ordering::AcqRel);
        }
        let others = self
            .state(entity.cpu)
            .map_or(0, |state| state.load.load(Ordering::Relaxed));
        let ticks = entity.change(Activity::Held, now);
        entity.earn(ticks, others, &self.units);
    }

    /// Makes one ready that was woken, if it is not held: on the calling CPU, if that is given and it may run there.
    fn place_woken(
        &self,
        vcpu: &Ref<Vcpu<V>>,
        entity: &mut Entity,
        now: u64,
        here: Option<&CpuState<V>>,
    ) {
        trace::record_at(
            machine::cpu().id,
            now,
            Kind::WAKE,
            vcpu.domain.number,
            vcpu.index,
            entity.cpu,
        );
        if entity.held {
            return;
        }
        let position = if entity.credit > 0 {
            Position::Boosted
        } else {
            Position::Back
        };
        match here.filter(|here| entity.pin().is_none_or(|pin| pin == here.cpu.id)) {
            Some(here) => {
                here.handed.store(now, Ordering::Relaxed);
                self.enqueue_at(here, vcpu, entity, position);
            }
            None => self.enqueue(vcpu, entity, position),
        }
    }

    /// The time that a vCPU waited for has come.
    fn expire(&self, vcpu: &Ref<Vcpu<V>>, now: u64) {
        let mut entity = vcpu.entity.lock();
        match entity.activity {
            Activity::Blocked => self.unblock(vcpu, &mut entity, now, None),
            Activity::Capped => {
                entity.change(Activity::Held, now);
                if !entity.held {
                    self.enqueue(vcpu, &mut entity, Position::Back);
                }
            }
            _ => {}
        }
    }

    /// Lets a vCPU run that was held.
    pub fn release(&self, vcpu: &Ref<Vcpu<V>>) {
        let now = time::tsc();
        let mut entity = vcpu.entity.lock();
        entity.held = false;
        if entity.activity == Activity::Held && !entity.finished {
            entity.account(now);
            self.place_new(&mut entity);
            self.enqueue(vcpu, &mut entity, Position::Back);
        }
    }

    /// One that never ran goes where there is least to do.
    fn place_new(&self, entity: &mut Entity) {
        if entity.switches == 0
            && let Some(least) = self
                .cpus
                .iter()
                .min_by_key(|state| state.load.load(Ordering::Relaxed))
        {
            entity.cpu = least.cpu.id;
        }
    }

    /// Holds a vCPU. One that runs leaves its CPU soon after.
    pub fn hold(&self, vcpu: &Ref<Vcpu<V>>) {
        let mut entity = vcpu.entity.lock();
        entity.held = true;
        match entity.activity {
            Activity::Ready => {
                self.dequeue(vcpu, &entity);
                entity.change(Activity::Held, time::tsc());
            }
            Activity::Running => self.expel(vcpu, &entity),
            _ => {}
        }
    }

    /// Ends a vCPU; whether that is done. One that runs leaves its CPU soon after, and tells its domain.
    pub fn finish(&self, vcpu: &Ref<Vcpu<V>>) -> bool {
        let mut entity = vcpu.entity.lock();
        entity.finished = true;
        match entity.activity {
            Activity::Running => {
                self.expel(vcpu, &entity);
                return false;
            }
            Activity::Ready => self.dequeue(vcpu, &entity),
            Activity::Blocked | Activity::Capped | Activity::Held | Activity::Over => {}
        }
        self.stop_timer(vcpu, &entity);
        entity.change(Activity::Over, time::tsc());
        true
    }

    fn expel(&self, vcpu: &Ref<Vcpu<V>>, entity: &Entity) {
        vcpu.must_leave.store(true, Ordering::SeqCst);
        if let Some(state) = self.state(entity.cpu) {
            self.attract(state, PENDING_RESCHEDULE);
        }
    }

    /// Makes a vCPU that runs look at what is pending for it.
    pub fn kick(&self, vcpu: &Ref<Vcpu<V>>) {
        let entity = vcpu.entity.lock();
        if entity.activity == Activity::Running
            && let Some(state) = self.state(entity.cpu)
        {
            self.attract(state, PENDING_RESCHEDULE);
        }
    }

    /// Changes how a vCPU is scheduled.
    ///
    /// # Errors
    /// `BAD_ARGUMENT` for a value out of its range, `WRONG_STATE` where it is over.
    pub fn set_schedule(&self, vcpu: &Ref<Vcpu<V>>, schedule: &Schedule) -> Result<(), Status> {
        let weights = Schedule::MIN_WEIGHT..=Schedule::MAX_WEIGHT;
        let pinned = schedule.cpu != Schedule::ANY_CPU;
        if !weights.contains(&schedule.weight)
            || schedule.cap > 100
            || pinned && self.state(schedule.cpu).is_none()
            || schedule.reserved != 0
        {
            return Err(Status::BAD_ARGUMENT);
        }
        let now = time::tsc();
        let mut entity = vcpu.entity.lock();
        if entity.is_over() {
            return Err(Status::WRONG_STATE);
        }
        // One that waits for a CPU waits anew: its weight is part of the load, and it may be for another CPU now.
        let ready = entity.activity == Activity::Ready;
        if ready {
            self.dequeue(vcpu, &entity);
        }
        entity.schedule = *schedule;
        entity.credit = entity.credit.min(entity.turn(&self.units));
        match entity.activity {
            Activity::Ready => {
                entity.account(now);
                self.enqueue(vcpu, &mut entity, Position::Back);
            }
            Activity::Running => self.expel(vcpu, &entity),
            _ => {}
        }
        Ok(())
    }

    // Flushes.

    /// Counts the changes to nested tables that need a flush: what was found out before is not to be relied on when it has changed.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Nested tables have changed that no CPU uses at present: each flushes before it enters a guest again.
    pub fn flush_later(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Nested tables of the domain numbered so have changed: returns when no CPU uses what they said any more. The caller
    /// holds no lock.
    pub fn flush_now(&self, me: &Cpu, hardware: &mut V::Cpu, domain: u32) {
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(mine) = self.state(me.id) else {
            return;
        };
        self.flush(mine, hardware);
        for state in &self.cpus {
            let runs = || {
                state.domain.load(Ordering::SeqCst) == u64::from(domain)
                    && state.flushed.load(Ordering::SeqCst) < epoch
            };
            if state.cpu.id == me.id || !runs() {
                continue;
            }
            self.attract(state, PENDING_FLUSH);
            let mut patience = time::tsc() + time::ticks_of_us(PATIENCE_US);
            while runs() {
                // The other one may be waiting for this CPU.
                self.flush(mine, hardware);
                let now = time::tsc();
                if now > patience {
                    state.cpu.send_nmi();
                    watchdog::look_at(state.cpu, now);
                    patience = now + time::ticks_of_us(PATIENCE_US);
                }
                spin_loop();
            }
        }
    }

    /// Flushes the calling CPU, whose state this is, if there is something that it has not flushed for.
    #[inline(always)]
    fn flush(&self, state: &CpuState<V>, hardware: &mut V::Cpu) {
        let epoch = self.epoch();
        if state.flushed.load(Ordering::Relaxed) != epoch {
            V::flush_all(hardware);
            state.flushed.store(epoch, Ordering::SeqCst);
        }
    }
}
