//! A CPU's life: choose, run, look at what is pending, choose again; halt where there is nothing to do.

#[cfg(test)]
mod model;

use alloc::boxed::Box;

use super::{Activity, CpuState, Entity, Place, Position, Sched, irq, speculation, time, trap};
use crate::arch::cpu::{Cpu, PENDING_FLUSH, PENDING_IRQ, PENDING_NMI};
use crate::mem::{Ref, reaper};
use crate::object::{Context, Ending, Kernel, Run, Stop, Vcpu};
use crate::root;
use crate::selftest;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::trace::{self, Kind};
use crate::virt::Vendor;

/// What follows a look at what is pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// The vCPU goes on.
    GoOn,
    /// It has to leave the CPU: held, ended, or to be scheduled otherwise.
    Leave,
    /// Somebody else has been woken and comes first.
    GiveWay,
}

/// A vCPU's turn on a CPU.
pub(super) struct Turn<V: Vendor> {
    /// The vCPU.
    pub(super) vcpu: Ref<Vcpu<V>>,
    /// Its weight, which is part of the CPU's load.
    pub(super) weight: u16,
    /// The TSC from which on the CPU's time is its.
    pub(super) start: u64,
    /// The TSC when it has to leave the CPU.
    pub(super) end: u64,
}

/// What a CPU that was left does next.
pub(super) struct After<V: Vendor> {
    /// Whose turn it is, if the CPU was passed on.
    pub(super) passed: Option<Turn<V>>,
    /// How it was left.
    how: Kind,
    /// The TSC from which on it is free; `None`: something has been done since that nobody is to be charged for.
    since: Option<u64>,
}

/// How a vCPU has left a CPU.
struct Left {
    stop: Stop,
    /// How it made its domain end.
    ending: Option<Ending>,
    /// Somebody who was woken came first.
    gives_way: bool,
    rip: u64,
}

impl<V: Vendor> Kernel<V> {
    /// A CPU's life from here on.
    pub fn live(&'static self, cpu: &'static Cpu, hardware: &mut V::Cpu) -> ! {
        let Some(state) = self.sched.state(cpu.id) else {
            // Every CPU that is online has its state.
            trap::halt_forever()
        };
        let mut now = time::tsc();
        // How it was left, when, and by whom.
        let (mut how, mut last) = (Kind::NONE, (now, 0, 0));
        loop {
            cpu.watch.goes_on(now);
            if self.look_around(state, hardware) {
                now = time::tsc();
            }
            let Some(mut turn) = self.sched.choose(state, now) else {
                if how != Kind::NONE {
                    let (when, domain, vcpu) = last;
                    trace::record_at(cpu.id, when, how, domain, vcpu, 0);
                    how = Kind::NONE;
                }
                self.idle(state);
                now = time::tsc();
                continue;
            };
            let since = loop {
                let after = self.run_slice(state, &turn, how, hardware);
                how = after.how;
                match after.passed {
                    Some(next) => turn = next,
                    None => break after.since,
                }
            };
            let vcpu = turn.vcpu;
            let (domain, index) = (vcpu.domain.number, vcpu.index);
            // It may be the last that knows of the vCPU.
            drop(vcpu);
            now = since.unwrap_or_else(time::tsc);
            last = (now, domain, index);
        }
    }

    /// What has to be done between two slices; whether there was something.
    fn look_around(&'static self, state: &CpuState<V>, hardware: &mut V::Cpu) -> bool {
        let mut had = self.take_pending(state, hardware);
        let attention = &self.sched.attention;
        if attention.load(Ordering::Relaxed)
            && state.cpu.id == 0
            && attention.swap(false, Ordering::AcqRel)
        {
            root::attend(self, hardware);
            had = true;
        }
        reaper::step() || had
    }

    /// Takes what interrupt handlers and other CPUs have noted for this one, and wakes those whose time has come. Whether there was
    /// something.
    #[inline(always)]
    fn take_pending(&self, state: &CpuState<V>, hardware: &mut V::Cpu) -> bool {
        // The timer's interrupt notes that somebody's time has come.
        let is_pending = state.cpu.is_pending();
        if is_pending {
            self.take_noted(state, hardware);
        }
        is_pending
    }

    #[inline(never)]
    fn take_noted(&self, state: &CpuState<V>, hardware: &mut V::Cpu) {
        let pending = state.cpu.take_pending();
        if pending & PENDING_FLUSH != 0 {
            self.sched.flush(state, hardware);
        }
        if pending & PENDING_IRQ != 0 {
            for line in irq::take_pending() {
                self.signal_irq(line);
            }
        }
        if pending & PENDING_NMI != 0 {
            trap::tell_stray_nmi(state.cpu);
        }
        let now = time::tsc();
        loop {
            // The queue's lock is not held when the vCPU's is taken.
            let due = state.queue.lock().timers.take_due(now);
            match due {
                Some(vcpu) => self.sched.expire(&vcpu, now),
                None => break,
            }
        }
        self.sched.look_after_others(state, now);
    }

    /// Halts until there is something to do.
    fn idle(&self, state: &CpuState<V>) {
        selftest::serve(state.cpu);
        while reaper::step() {
            state.cpu.watch.goes_on(time::tsc());
            // The timer and devices get their moment between two steps.
            trap::interrupt_window();
            if state.cpu.is_pending() {
                return;
            }
        }
        state.idle.store(true, Ordering::SeqCst);
        // Who is woken tells it because it idles, and it need not be told twice.
        state.interruptible.store(false, Ordering::Relaxed);
        let (empty, earliest) = {
            let queue = state.queue.lock();
            (queue.is_empty(), queue.timers.earliest())
        };
        if empty && !state.cpu.is_pending() {
            let start = time::tsc();
            match self
                .sched
                .next_look(state, start)
                .min(earliest.unwrap_or(u64::MAX))
            {
                u64::MAX => time::disarm(),
                deadline => time::arm(deadline),
            }
            state.cpu.watch.rests();
            speculation::clear_buffers();
            trap::enable_and_halt();
            let end = time::tsc();
            state.cpu.watch.goes_on(end);
            state
                .idle_ticks
                .fetch_add(end.saturating_sub(start), Ordering::Relaxed);
            state.idle_halts.fetch_add(1, Ordering::Relaxed);
        }
        state.idle.store(false, Ordering::SeqCst);
    }

    /// Runs a vCPU that was chosen, until it leaves the CPU; `how` the last one did.
    fn run_slice(
        &'static self,
        state: &CpuState<V>,
        turn: &Turn<V>,
        how: Kind,
        hardware: &mut V::Cpu,
    ) -> After<V> {
        let (vcpu, deadline) = (&turn.vcpu, turn.end);
        let mut guard = vcpu.context.lock();
        let Some(context) = guard.as_deref_mut() else {
            // Only a domain that is over has given its contexts away, and that has no vCPU that is chosen.
            return After {
                passed: None,
                how,
                since: None,
            };
        };
        if context.clock.wants_steal_time() {
            let stolen = vcpu.entity.lock().info(turn.start).steal_ns;
            context.clock.tell_steal_time(&vcpu.domain, stolen);
        }
        trace::record_at(
            state.cpu.id,
            turn.start,
            Kind::RUN,
            vcpu.domain.number,
            vcpu.index,
            how.0,
        );
        self.enter_domain(state, vcpu, hardware);
        context.attach(hardware);
        let mut run = Run {
            vcpu,
            cpu: state.cpu,
            hardware,
        };
        context.begin_slice(deadline);
        let (stop, gives_way) = match context.go_on(&mut run) {
            Some(stop) => (stop, false),
            None => {
                // Now that the timer of its APIC has been looked at: one that has expired would end the run at once.
                self.set_timer(state, context, &mut run, deadline);
                self.run_until(state, context, &mut run, deadline)
            }
        };
        let rip = context.rip();
        let ending = (stop == Stop::Ended).then(|| {
            context.report();
            context.ending()
        });
        let hardware = run.hardware;
        context.detach(hardware);
        state.domain.store(0, Ordering::Release);
        if stop == Stop::SliceOver {
            // One that leaves by itself is off its CPU often enough for its own to be read.
            *vcpu.exits.lock() = context.counters.clone();
        }
        let left = Left {
            stop,
            ending,
            gives_way,
            rip,
        };
        self.give_up(state, turn, guard, &left)
    }

    /// Notes that the CPU runs a vCPU of this one's domain, and flushes what it may still know of nested tables that have changed.
    #[inline(always)]
    fn enter_domain(&self, state: &CpuState<V>, vcpu: &Vcpu<V>, hardware: &mut V::Cpu) {
        state
            .domain
            .store(vcpu.domain.number.into(), Ordering::SeqCst);
        // After the domain is known: who changes its tables waits for this CPU, or has changed the epoch before.
        self.sched.flush(state, hardware);
        if speculation::parts_domains() {
            state.part_domains(vcpu.domain.number);
        }
    }

    /// The vCPU whose turn it was has been detached: it gives up the CPU and its context.
    #[inline(always)]
    fn give_up(
        &'static self,
        state: &CpuState<V>,
        turn: &Turn<V>,
        context: MutexGuard<'_, Option<Box<Context<V>>>>,
        left: &Left,
    ) -> After<V> {
        state.interruptible.store(false, Ordering::Relaxed);
        state.unload(turn.weight);
        let passed = match state.handed.load(Ordering::Relaxed) {
            0 => None,
            _ => {
                state.handed.store(0, Ordering::Relaxed);
                state.next.lock().take()
            }
        };
        let since = passed.as_ref().map_or_else(time::tsc, |turn| turn.start);
        let entity = turn.vcpu.entity.lock();
        // Not before the entity is locked: whoever finds the context free finds no vCPU that still runs.
        drop(context);
        let how = self.leave(state, &turn.vcpu, entity, left, since);
        After {
            passed,
            how: how.unwrap_or(Kind::NONE),
            since: how.map(|_| since),
        }
    }

    /// Runs until something takes the CPU from the vCPU; whether that is somebody who was woken.
    fn run_until(
        &'static self,
        state: &CpuState<V>,
        context: &mut Context<V>,
        run: &mut Run<'_, V>,
        deadline: u64,
    ) -> (Stop, bool) {
        loop {
            let stop = context.run_loop(run, deadline);
            if stop != Stop::Pending {
                return (stop, false);
            }
            let now = time::tsc();
            state.cpu.watch.goes_on(now);
            self.take_pending(state, run.hardware);
            match self.look(state, run.vcpu) {
                Look::Leave => return (Stop::SliceOver, false),
                Look::GiveWay => return (Stop::SliceOver, true),
                Look::GoOn if time::tsc() >= deadline => return (Stop::SliceOver, false),
                Look::GoOn => {
                    if let Some(stop) = context.attend(run) {
                        return (stop, false);
                    }
                    self.set_timer(state, context, run, deadline);
                }
            }
        }
    }

    fn look(&self, state: &CpuState<V>, vcpu: &Vcpu<V>) -> Look {
        if vcpu.must_leave.swap(false, Ordering::SeqCst) {
            Look::Leave
        } else if state.interruptible.load(Ordering::Relaxed) && state.queue.lock().has_boosted() {
            Look::GiveWay
        } else {
            Look::GoOn
        }
    }

    /// Arms the timer for the end of the slice, or for the first that wakes before.
    fn set_timer(
        &self,
        state: &CpuState<V>,
        context: &mut Context<V>,
        run: &mut Run<'_, V>,
        deadline: u64,
    ) {
        let earliest = state.queue.lock().timers.earliest().unwrap_or(u64::MAX);
        context.set_deadline(run.hardware, deadline.min(earliest));
    }

    /// A vCPU has left the CPU, whose time was its up to `now`: what it does next. How it has left, for the trace; `None`: it is over,
    /// or its domain may be, and the trace has a record of that.
    fn leave(
        &'static self,
        state: &CpuState<V>,
        vcpu: &Ref<Vcpu<V>>,
        mut entity: MutexGuard<'_, Entity>,
        left: &Left,
        now: u64,
    ) -> Option<Kind> {
        let &Left {
            stop,
            ending,
            gives_way,
            rip,
        } = left;
        let units = &self.sched.units;
        // The moment is accounted for with this, whatever it does next.
        let ran = entity.change(Activity::Held, now);
        entity.charge(ran);
        // Who sets it has the entity locked.
        vcpu.must_leave.store(false, Ordering::Release);
        if entity.finished {
            entity.activity = Activity::Over;
            self.sched.stop_timer(vcpu, &entity);
            drop(entity);
            vcpu.domain.vcpu_left(vcpu.index, rip);
            return None;
        }
        if let Some(ending) = ending {
            entity.finished = true;
            self.sched.stop_timer(vcpu, &entity);
            drop(entity);
            // It may have been ended meanwhile: then it has a reason.
            let _ = vcpu.domain.end(ending, vcpu.index, rip);
            return None;
        }
        let how = match stop {
            Stop::Blocked(_) | Stop::Halted if entity.woken => Kind::NONE,
            Stop::Halted => {
                entity.activity = Activity::Blocked;
                entity.halted = true;
                self.sched.stop_timer(vcpu, &entity);
                vcpu.domain.halted.fetch_add(1, Ordering::AcqRel);
                drop(entity);
                vcpu.domain.vcpu_halted(vcpu.index, rip);
                return None;
            }
            Stop::Blocked(deadline) => {
                entity.activity = Activity::Blocked;
                match deadline {
                    u64::MAX => self.sched.stop_timer(vcpu, &entity),
                    _ => state.queue.lock().timers.set(deadline, vcpu),
                }
                return Some(Kind::BLOCK);
            }
            Stop::Yielded => Kind::YIELD,
            Stop::SliceOver | Stop::Pending | Stop::Ended => {
                entity.preemptions += 1;
                Kind::PREEMPT
            }
        };
        entity.woken = false;
        if entity.held {
            return Some(how);
        }
        if let Some(until) = entity.capped_until(now, units) {
            entity.activity = Activity::Capped;
            state.queue.lock().timers.set(until, vcpu);
            return Some(Kind::CAPPED);
        }
        let position = if entity.credit <= 0 {
            entity.next_turn(units);
            Position::Back
        } else if gives_way {
            Position::Front
        } else {
            Position::Back
        };
        self.sched.enqueue(vcpu, &mut entity, position);
        Some(how)
    }
}

impl<V: Vendor> CpuState<V> {
    /// Somebody with this weight wants the CPU.
    #[inline(always)]
    pub(super) fn load(&self, weight: u16) {
        self.load.fetch_add(weight.into(), Ordering::Relaxed);
    }

    /// Somebody with this weight wants it no longer.
    #[inline(always)]
    pub(super) fn unload(&self, weight: u16) {
        self.load.fetch_sub(weight.into(), Ordering::Relaxed);
    }

    /// Puts a barrier between the domain that is entered now and the last, if that was another one: its branches are not to be predicted
    /// by what the other did.
    #[inline(never)]
    fn part_domains(&self, domain: u32) {
        let last = self.entered.swap(domain.into(), Ordering::Relaxed);
        if last != u64::from(domain) {
            speculation::barrier();
        }
    }
}

impl<V: Vendor> Sched<V> {
    /// Takes the vCPU that this CPU runs next, at `now`. Its weight is part of the load until it leaves the CPU.
    fn choose(&self, state: &CpuState<V>, mut now: u64) -> Option<Turn<V>> {
        if now.saturating_sub(state.balanced.load(Ordering::Relaxed)) > self.units.balance {
            state.balanced.store(now, Ordering::Relaxed);
            self.even_out(state);
            now = time::tsc();
        }
        loop {
            let next = {
                let mut queue = state.queue.lock();
                // Who is woken from here on finds that out, and interrupts what runs then.
                let woken = queue.has_boosted();
                state.interruptible.store(!woken, Ordering::Relaxed);
                queue.next()
            };
            // What is taken from another CPU runs at once. By way of this CPU's queue the other one, which has nothing to do now,
            // could take it back before it ran, and so on for ever.
            let place = match next {
                Some(place) => place,
                None => {
                    let place = self.take_from_another(state, 0)?;
                    now = time::tsc();
                    place
                }
            };
            if let Some(slice) = self.take(state, &place, now) {
                return Some(Turn {
                    vcpu: place.vcpu,
                    weight: place.weight,
                    start: now,
                    end: now.saturating_add(slice),
                });
            }
        }
    }

    /// Makes the vCPU of a place run here; how long it may. Not, if the place is out of date or it has to wait for another turn.
    fn take(&self, state: &CpuState<V>, place: &Place<Ref<Vcpu<V>>>, now: u64) -> Option<u64> {
        let mut entity = place.vcpu.entity.lock();
        if entity.activity != Activity::Ready || entity.ticket != place.ticket {
            state.unload(place.weight);
            return None;
        }
        if entity.credit <= 0 && !entity.next_turn(&self.units) && !state.queue.lock().is_empty() {
            state.unload(place.weight);
            entity.account(now);
            self.enqueue(&place.vcpu, &mut entity, Position::Back);
            return None;
        }
        // Nobody else wants the CPU: old debts are forgotten.
        while entity.credit <= 0 {
            entity.next_turn(&self.units);
        }
        entity.account(now);
        entity.starts();
        Some(entity.slice(now, &self.units))
    }

    /// Takes a vCPU from the CPU with the highest load, if that is above `least`. It belongs to this CPU then, and is in no queue.
    fn take_from_another(&self, state: &CpuState<V>, least: u64) -> Option<Place<Ref<Vcpu<V>>>> {
        loop {
            let other = self
                .cpus
                .iter()
                .filter(|other| other.cpu.id != state.cpu.id)
                .max_by_key(|other| other.load.load(Ordering::Relaxed))
                .filter(|other| other.load.load(Ordering::Relaxed) > least)?;
            let given = other.queue.lock().give_away();
            let place = given?;
            other.unload(place.weight);
            let mut entity = place.vcpu.entity.lock();
            if entity.activity == Activity::Ready && entity.ticket == place.ticket {
                trace::record(
                    Kind::STEAL,
                    place.vcpu.domain.number,
                    place.vcpu.index,
                    entity.cpu,
                );
                self.move_to(state, &place.vcpu, &mut entity);
                state.load(place.weight);
                drop(entity);
                return Some(place);
            }
        }
    }

    /// Takes a vCPU from a CPU that has more to do. Where the difference is less than that vCPU, the other takes one back
    /// next time: all get the same share in the end.
    fn even_out(&self, state: &CpuState<V>) {
        let mine = state.load.load(Ordering::Relaxed);
        if mine != 0
            && let Some(place) = self.take_from_another(state, mine)
        {
            state.queue.lock().add(place, Position::Back);
        }
    }
}
