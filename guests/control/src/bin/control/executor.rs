//! The async executor, and what it does when there is nothing to do: the control guest waits by a hypercall, for an event or
//! for the time of the next timer.

#![allow(
    unsafe_code,
    reason = "the contracts of embassy-executor and critical-section"
)]

use alloc::boxed::Box;
use core::cell::RefCell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;

use critical_section::{CriticalSection, Mutex, RawRestoreState};
use embassy_executor::Spawner;
use embassy_executor::raw::Executor;
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;
use plinth_rt::{hypercall, object};

use crate::device::Answer;

/// Rounds between two looks at the clock, which costs a hypercall: so late may a timer be.
const ROUNDS: u32 = 16;

/// Whether a task wants to run.
static PENDING: AtomicBool = AtomicBool::new(false);
/// Whether a task waits for a time that the executor does not know of yet.
static TIMERS_CHANGED: AtomicBool = AtomicBool::new(true);

#[unsafe(export_name = "__pender")]
fn pender(_context: *mut ()) {
    PENDING.store(true, Ordering::Relaxed);
}

/// There is one vCPU, whose interrupts are always off: nothing can come in between.
struct OneCpu;
critical_section::set_impl!(OneCpu);

// SAFETY: see `OneCpu`.
unsafe impl critical_section::Impl for OneCpu {
    unsafe fn acquire() -> RawRestoreState {}
    unsafe fn release(_state: RawRestoreState) {}
}

/// Time is what the hypercall `CLOCK` says, in nanoseconds.
struct Clock {
    timers: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock {
    timers: Mutex::new(RefCell::new(Queue::new())),
});

impl Driver for Clock {
    fn now(&self) -> u64 {
        hypercall::clock()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        TIMERS_CHANGED.store(true, Ordering::Relaxed);
        critical_section::with(|section| {
            self.queue(section, |queue| queue.schedule_wake(at, waker))
        });
    }
}

impl Clock {
    fn queue<T>(&self, section: CriticalSection<'_>, with: impl FnOnce(&mut Queue) -> T) -> T {
        with(&mut self.timers.borrow_ref_mut(section))
    }

    /// Wakes the tasks whose time has come; when the next one's comes.
    fn wake_expired(&self) -> u64 {
        critical_section::with(|section| {
            self.queue(section, |queue| queue.next_expiration(hypercall::clock()))
        })
    }
}

/// Runs the tasks that `start` spawns, for ever; comes back only if it cannot spawn them. `deliver` gets the key of each
/// event that is bound to the vCPU; the answer that it leaves is given before anything else is done.
pub fn run<E>(
    start: impl FnOnce(Spawner) -> Result<(), E>,
    deliver: impl Fn(u64) -> Option<Answer>,
) -> E {
    let executor: &'static Executor = Box::leak(Box::new(Executor::new(core::ptr::null_mut())));
    if let Err(why) = start(executor.spawner()) {
        return why;
    }
    // When the first timer ends, and how many rounds there may be before the clock is looked at.
    let (mut next, mut rounds) = (u64::MAX, 0);
    let mut answer: Option<Answer> = None;
    loop {
        PENDING.store(false, Ordering::Relaxed);
        // SAFETY: called from here only, and never from within a task or the pender.
        unsafe { executor.poll() };
        if rounds == 0 || TIMERS_CHANGED.swap(false, Ordering::Relaxed) {
            next = CLOCK.wake_expired();
            rounds = ROUNDS;
        }
        let pending = PENDING.load(Ordering::Relaxed);
        // A deadline of 0 takes what is pending without waiting.
        rounds -= 1;
        let deadline = if pending { 0 } else { next };
        // To answer and to wait by one call is quicker.
        let came = match answer.take() {
            Some(answer) => answer.give_and_wait(deadline),
            None => object::wait(deadline),
        };
        match came {
            Ok(Some(key)) => {
                answer = deliver(key);
                // Tasks that have something to do may take their time.
                if PENDING.load(Ordering::Relaxed)
                    && let Some(answer) = answer.take()
                {
                    answer.give();
                }
            }
            Ok(None) | Err(_) if pending => {}
            Ok(None) | Err(_) => rounds = 0,
        }
    }
}
