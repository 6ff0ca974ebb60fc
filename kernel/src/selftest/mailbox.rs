//! Work for other CPUs, which wait for it in [`crate::launch::other_cpu`] with interrupts off. What nobody took until then is done
//! when its CPU first idles.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use super::check;
use crate::arch::cpu::{self, Cpu};
use crate::arch::time;

/// How long an answer may take, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

struct Job {
    cpu: u32,
    work: Box<dyn FnOnce() + Send>,
}

static JOBS: Mutex<Vec<Job>> = Mutex::new(Vec::new());
/// How many there are, so that a CPU that waits need not take the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Does what this CPU was sent, if anything.
pub fn serve(cpu: &Cpu) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    let mut jobs = JOBS.lock();
    let Some(index) = jobs.iter().position(|job| job.cpu == cpu.id) else {
        return;
    };
    let job = jobs.swap_remove(index);
    COUNT.store(jobs.len(), Ordering::Release);
    drop(jobs);
    (job.work)();
}

/// What another CPU will have answered.
pub(super) struct Answer<T> {
    cpu: u32,
    value: Arc<Mutex<Option<T>>>,
}

impl<T> Answer<T> {
    /// The answer; why there is none, after some seconds.
    pub(super) fn wait(self) -> Result<T, String> {
        let end = time::tsc() + time::ticks_of_us(PATIENCE_US);
        loop {
            if let Some(value) = self.value.lock().take() {
                return Ok(value);
            }
            check!(time::tsc() < end, "cpu{} does not answer", self.cpu);
            core::hint::spin_loop();
        }
    }
}

/// Lets the CPU with this id do `work`, at the same time as the caller goes on.
pub(super) fn start<T: Send + 'static>(
    cpu: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    let value = Arc::new(Mutex::new(None));
    let place = value.clone();
    let mut jobs = JOBS.lock();
    jobs.push(Job {
        cpu,
        work: Box::new(move || {
            let answer = work();
            *place.lock() = Some(answer);
        }),
    });
    COUNT.store(jobs.len(), Ordering::Release);
    Answer { cpu, value }
}

/// What `work` gives on each CPU, one after the other, the calling one included.
pub(super) fn on_each<T: Send + 'static>(
    work: fn() -> T,
) -> Result<Vec<(&'static Cpu, T)>, String> {
    let me = cpu::cpu().id;
    cpu::cpus()
        .iter()
        .map(|&cpu| {
            let answer = if cpu.id == me {
                work()
            } else {
                start(cpu.id, work).wait()?
            };
            Ok((cpu, answer))
        })
        .collect()
}

/// The CPUs other than the calling one.
pub(super) fn others() -> impl Iterator<Item = &'static Cpu> {
    let me = cpu::cpu().id;
    cpu::cpus()
        .iter()
        .copied()
        .filter(move |other| other.id != me)
}
